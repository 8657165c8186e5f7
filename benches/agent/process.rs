//! The agent as a process of its own, in a memory cgroup of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Namespace;
use crate::objects::NODE;

/// A running agent; it is killed when this is dropped.
pub struct Agent {
    child: Child,
    pub started: Instant,
    lines: Receiver<(Instant, String)>,
    group: Option<PathBuf>,
}

/// What the log says of the first sync.
pub struct Synced {
    pub at: Instant,
    pub steps: u64,
    pub elapsed_ms: f64,
}

/// MiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub resident: u64,
    pub most: u64,
    /// What the cgroup is charged with, and the kernel's part of it: the tables, mostly.
    pub charged: Option<(u64, u64)>,
}

impl Agent {
    /// Starts the agent on the API server of this kubeconfig.
    pub fn start(node: &Namespace, kubeconfig: &Path) -> Result<Agent> {
        let started = Instant::now();
        let mut child = node.enter(|| {
            let child = Command::new(env!("CARGO_BIN_EXE_sluice"))
                .args([
                    "run",
                    "--hostname-override",
                    NODE,
                    "--cluster-cidr",
                    "10.128.0.0/9",
                    "--nodeport-addresses",
                    "198.18.0.0/15",
                    "--kubeconfig",
                ])
                .arg(kubeconfig)
                .stderr(Stdio::piped())
                .stdout(Stdio::null())
                .spawn();
            child.context("start the agent")
        })?;
        let group = group(child.id());
        let stderr = child.stderr.take().context("stderr")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // Once the first sync is seen nobody listens any more.
                _ = sender.send((Instant::now(), line));
            }
        });
        Ok(Agent { child, started, lines, group })
    }

    /// Waits for the first full sync.
    pub fn synced(&self, within: Duration) -> Result<Synced> {
        let deadline = Instant::now() + within;
        let mut log = String::new();
        loop {
            let Ok((at, line)) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            else {
                bail!("no sync within {within:?}; the log:\n{log}");
            };
            if line.contains("sync=\"full\"") {
                let number = |key: &str| {
                    let value = line.split_whitespace().find_map(|word| word.strip_prefix(key))?;
                    value.parse::<f64>().ok()
                };
                let missing = || line.clone();
                return Ok(Synced {
                    at,
                    steps: number("steps=").with_context(missing)? as u64,
                    elapsed_ms: number("elapsed_ms=").with_context(missing)?,
                });
            }
            log.push_str(&line);
            log.push('\n');
        }
    }

    /// Seconds of CPU so far.
    pub fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |n: usize| fields.get(n).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        // User and system; there are 100 ticks a second.
        Ok((ticks(11) + ticks(12)) / 100.0)
    }

    pub fn memory(&self) -> Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
        };
        let charge = |name: &str| {
            let text = fs::read_to_string(self.group.as_ref()?.join(name)).ok()?;
            Some(text.trim().parse::<u64>().ok()? >> 20)
        };
        let charged = charge("memory.usage_in_bytes").zip(charge("memory.kmem.usage_in_bytes"));
        Ok(Memory { resident: field("VmRSS:"), most: field("VmHWM:"), charged })
    }

    /// Ends it as the kubelet does.
    pub fn terminate(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        _ = self.child.kill();
        _ = self.child.wait();
        if let Some(group) = &self.group {
            // What the kernel holds for the tables stays charged to the parent.
            _ = fs::remove_dir(group);
        }
    }
}

/// A memory cgroup with this process; `None` where there are none of the first version.
fn group(pid: u32) -> Option<PathBuf> {
    let group = PathBuf::from(format!("/sys/fs/cgroup/memory/sluice-bench-{pid}"));
    fs::create_dir(&group).ok()?;
    fs::write(group.join("cgroup.procs"), pid.to_string()).ok()?;
    Some(group)
}
