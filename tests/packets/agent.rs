//! The real agent, as a process in the node's namespace.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::netns::Namespace;

/// How the agent is started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The program.
    pub binary: PathBuf,
    /// Its flags, in kube-proxy's names.
    pub flags: Vec<String>,
}

impl AgentOptions {
    /// The configuration that the cases were recorded with, and what `config` changes in it. Its keys are those
    /// of KubeProxyConfiguration.
    ///
    /// # Errors
    /// On a key that has no flag here.
    pub fn new(binary: &Path, config: &serde_json::Map<String, Value>) -> Result<Self> {
        let mut cluster_cidr = String::from("10.128.0.0/16,fd00:10:128::/48");
        let mut flags = vec![String::from("--hostname-override=node1")];
        for (key, value) in flatten(config) {
            let flag = match key.as_str() {
                "clusterCIDR" => {
                    cluster_cidr = value;
                    continue;
                }
                "nftables.masqueradeAll" => "--masquerade-all",
                "detectLocalMode" => "--detect-local-mode",
                "detectLocal.bridgeInterface" => "--pod-bridge-interface",
                "detectLocal.interfaceNamePrefix" => "--pod-interface-name-prefix",
                "nodePortAddresses" => "--nodeport-addresses",
                _ => bail!("config: no flag is known for {key}"),
            };
            flags.push(format!("{flag}={value}"));
        }
        flags.push(format!("--cluster-cidr={cluster_cidr}"));
        Ok(Self { binary: binary.to_owned(), flags })
    }
}

/// Scalars by their path, lists joined with commas.
fn flatten(map: &serde_json::Map<String, Value>) -> Vec<(String, String)> {
    let mut flat = Vec::new();
    for (key, value) in map {
        match value {
            Value::Object(inner) => {
                flat.extend(flatten(inner).into_iter().map(|(name, value)| (format!("{key}.{name}"), value)));
            }
            Value::Array(items) => {
                flat.push((key.clone(), items.iter().map(scalar).collect::<Vec<_>>().join(",")));
            }
            _ => flat.push((key.clone(), scalar(value))),
        }
    }
    flat
}

fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A running agent. It is killed when dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: PathBuf,
}

impl Agent {
    /// Starts it in `node` on the manifests in a directory; its log is appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(node: &Namespace, options: &AgentOptions, manifests: &Path, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        let child = node.enter(|| {
            Command::new(&options.binary)
                .arg("run")
                .arg("--manifests")
                .arg(manifests)
                .args(&options.flags)
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output)
                .spawn()
                .with_context(|| format!("start {}", options.binary.display()))
        })?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Fails when it has ended by itself.
    ///
    /// # Errors
    /// With its status and the end of its log.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the agent ended ({status}):\n{}", log_tail(&self.log)),
        }
    }

    /// Ends it in the orderly way.
    ///
    /// # Errors
    /// When it goes on for ten seconds.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            sleep(Duration::from_millis(5));
        }
        bail!("the agent does not end on SIGTERM:\n{}", log_tail(&self.log))
    }

    /// Ends it with SIGKILL, at whatever it is doing.
    ///
    /// # Errors
    /// When it has ended by itself before.
    pub fn kill(mut self) -> Result<()> {
        self.check()?;
        self.signal(Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("send {signal} to the agent"))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a log.
pub fn log_tail(log: &Path) -> String {
    const LINES: usize = 25;
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LINES)..];
    if tail.is_empty() { String::from("(nothing logged)") } else { tail.join("\n") }
}
