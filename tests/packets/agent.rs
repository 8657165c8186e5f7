//! The real agent, as a process in the node's namespace.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use crate::netns::Namespace;
use crate::probe::slowness;

const CLUSTER_CIDR: &str = "10.128.0.0/16,fd00:10:128::/48";
const HEALTHZ: &str = "0.0.0.0:10256";
const METRICS: &str = "0.0.0.0:10249";

/// Where the agent has its objects and its configuration from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Files of manifests, and flags.
    Manifests,
    /// An API server, and a configuration file.
    ApiServer,
}

/// How the agent is started.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentOptions {
    /// The program.
    pub binary: PathBuf,
    /// Where it has its objects from.
    pub source: Source,
    /// What differs from the configuration that the cases were recorded with, in KubeProxyConfiguration's form.
    pub config: Map<String, Value>,
}

impl AgentOptions {
    /// Whether the agent runs in mode ipvs.
    pub fn ipvs(&self) -> bool {
        self.config.get("mode").is_some_and(|mode| mode == "ipvs")
    }

    /// The command line in a lab's directory; the configuration file is written there.
    ///
    /// # Errors
    /// On a key that has no flag here, or when the file cannot be written.
    pub fn arguments(&self, directory: &Path) -> Result<Vec<String>> {
        match self.source {
            Source::Manifests => {
                let mut arguments = flags(&self.config)?;
                arguments.push(format!("--manifests={}", directory.display()));
                Ok(arguments)
            }
            Source::ApiServer => {
                let mut configuration = recorded(&directory.join("kubeconfig"));
                let (own, config) =
                    self.config.clone().into_iter().partition(|(key, _)| own_flag(key).is_some());
                merge(&mut configuration, &Value::Object(config));
                let path = directory.join("config.conf");
                fs::write(&path, serde_json::to_string_pretty(&configuration)?)?;
                let own = flatten(&own).into_iter();
                let own = own.filter_map(|(key, value)| Some(format!("{}={value}", own_flag(&key)?)));
                Ok(std::iter::once(format!("--config={}", path.display())).chain(own).collect())
            }
        }
    }
}

/// The configuration that the cases were recorded with.
fn recorded(kubeconfig: &Path) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": "node1",
        "clusterCIDR": CLUSTER_CIDR,
        "clientConnection": {"kubeconfig": kubeconfig},
        "nftables": {"minSyncPeriod": "0s", "syncPeriod": "30s"},
        "conntrack": {"maxPerCore": 0},
        "healthzBindAddress": HEALTHZ,
        "metricsBindAddress": METRICS,
    })
}

/// The same as flags, and what `config` changes in it.
fn flags(config: &Map<String, Value>) -> Result<Vec<String>> {
    let mut cluster_cidr = CLUSTER_CIDR.to_owned();
    let mut flags = vec![
        String::from("--hostname-override=node1"),
        format!("--healthz-bind-address={HEALTHZ}"),
        format!("--metrics-bind-address={METRICS}"),
    ];
    for (key, value) in flatten(config) {
        let flag = match key.as_str() {
            "mode" => "--proxy-mode",
            "clusterCIDR" => {
                cluster_cidr = value;
                continue;
            }
            "nftables.masqueradeAll" => "--masquerade-all",
            "detectLocalMode" => "--detect-local-mode",
            "detectLocal.bridgeInterface" => "--pod-bridge-interface",
            "detectLocal.interfaceNamePrefix" => "--pod-interface-name-prefix",
            "nodePortAddresses" => "--nodeport-addresses",
            "conntrack.tcpBeLiberal" => "--conntrack-tcp-be-liberal",
            _ => own_flag(&key).with_context(|| format!("config: no flag is known for {key}"))?,
        };
        flags.push(format!("{flag}={value}"));
    }
    flags.push(format!("--cluster-cidr={cluster_cidr}"));
    Ok(flags)
}

/// Flags of sluice alone; a configuration file has no such fields.
fn own_flag(key: &str) -> Option<&'static str> {
    match key {
        "allowedExternalIPs" => Some("--allowed-external-ips"),
        "allowedLoadBalancerIPs" => Some("--allowed-load-balancer-ips"),
        "conntrackDropInvalid" => Some("--conntrack-drop-invalid"),
        _ => None,
    }
}

/// Applies a JSON merge patch (RFC 7396).
pub fn merge(target: &mut Value, patch: &Value) {
    let Some(changes) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else { return };
    for (key, value) in changes {
        if value.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Scalars by their path, lists joined with commas.
fn flatten(map: &Map<String, Value>) -> Vec<(String, String)> {
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
    /// Starts it in `node` on the objects in a lab's directory or their server; its log is appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(node: &Namespace, options: &AgentOptions, directory: &Path, log: &Path) -> Result<Self> {
        let arguments = options.arguments(directory)?;
        let output = File::options().create(true).append(true).open(log)?;
        let child = node.enter(|| {
            Command::new(&options.binary)
                .arg("run")
                .args(&arguments)
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
    /// When it goes on.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + Duration::from_secs(10) * slowness();
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
