//! Network namespaces with a name, entered thread by thread.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What all names begin with. The pid follows, so that what a dead process left can be told from a live one's.
const PREFIX: &str = "sluice-net";
const NETNS_DIR: &str = "/run/netns";

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A named network namespace. Dropping it does not remove it: [`NamespaceSet`] does.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// The name `ip netns exec` takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside the namespace. Sockets made and processes started there stay in it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = Path::new(NETNS_DIR).join(&self.name);
        let result = thread::scope(|scope| {
            scope
                .spawn(|| {
                    let netns = File::open(&path).with_context(|| format!("open {}", path.display()))?;
                    setns(&netns, CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("enter {} (this needs root)", path.display()))?;
                    work()
                })
                .join()
        });
        match result {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a program inside and returns what it printed; an error has its stderr.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.enter(|| {
            let output = Command::new(program)
                .args(arguments)
                .stdin(Stdio::null())
                .output()
                .with_context(|| format!("start {program}"))?;
            if !output.status.success() {
                bail!(
                    "{program} {}: {}",
                    arguments.join(" "),
                    String::from_utf8_lossy(&output.stderr).trim()
                );
            }
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    /// Runs a program inside with `input` on its stdin.
    pub fn feed(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        self.enter(|| feed(Command::new(program).args(arguments), input))
    }

    /// Runs lines of `ip` commands in one process.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], lines).with_context(|| format!("in {}", self.name))
    }

    /// Writes `(path below /proc/sys, value)` pairs. That tree shows the namespace of the reading thread.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (key, value) in settings {
                let path = Path::new("/proc/sys").join(key);
                fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))?;
            }
            Ok(())
        })
    }
}

/// Namespaces made together and removed together.
#[derive(Debug)]
pub struct NamespaceSet {
    names: Vec<String>,
}

impl NamespaceSet {
    /// Makes one namespace a role.
    ///
    /// # Errors
    /// Without root or `ip`.
    pub fn create<const N: usize>(roles: [&str; N]) -> Result<(Self, [Namespace; N])> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespaces =
            roles.map(|role| Namespace { name: format!("{PREFIX}-{}-{number}-{role}", std::process::id()) });
        let lines: String = namespaces.iter().map(|it| format!("netns add {}\n", it.name)).collect();
        let set = Self { names: namespaces.iter().map(|it| it.name.clone()).collect() };
        feed(Command::new("ip").args(["-batch", "-"]), &lines)
            .context("make network namespaces (this needs root and iproute2)")?;
        Ok((set, namespaces))
    }
}

impl Drop for NamespaceSet {
    fn drop(&mut self) {
        remove(&self.names);
    }
}

/// Removes what earlier processes left behind because they were killed, and ends the processes still inside.
pub fn remove_stale() {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return };
    let names = entries.flatten().filter_map(|it| it.file_name().into_string().ok());
    let stale: Vec<String> = names.filter(|name| owner(name).is_some_and(|pid| !alive(pid))).collect();
    remove(&stale);
}

fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-').next()?.parse().ok()
}

/// A zombie is dead, whoever has not waited for it yet.
fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    // The state follows the program's name, which is in parentheses and may hold others.
    stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X'])))
}

fn remove(names: &[String]) {
    let mut names = names.to_vec();
    names.retain(|name| Path::new(NETNS_DIR).join(name).exists());
    if names.is_empty() {
        return;
    }
    let mut pids = BTreeSet::new();
    for name in &names {
        let Ok(output) = Command::new("ip").args(["netns", "pids", name]).output() else { continue };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        pids.extend(text.split_whitespace().filter_map(|it| it.parse::<i32>().ok()));
    }
    for pid in pids.into_iter().filter(|pid| u32::try_from(*pid) != Ok(std::process::id())) {
        // An error means that it has ended already.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let lines: String = names.iter().map(|name| format!("netns del {name}\n")).collect();
    if let Err(error) = feed(Command::new("ip").args(["-force", "-batch", "-"]), &lines) {
        eprintln!("network namespaces are left behind: {error:#}");
    }
}

fn feed(command: &mut Command, input: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that stops early says why on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{program}: {}\n{input}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
