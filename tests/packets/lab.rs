//! A topology with a running agent and its objects, and the pool of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::agent::{Agent, AgentOptions, log_tail};
use crate::cluster::{Cluster, SENTINEL};
use crate::probe::{Client, Protocol, Target, slowness};
use crate::server::runtime;
use crate::topology::{PodNetwork, Topology};

/// Longest time from a written manifest to packets that meet it.
fn longest() -> Duration {
    Duration::from_secs(10) * slowness()
}

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Everything a case needs.
pub struct Lab {
    // The agent ends before the namespaces go.
    agent: Option<Agent>,
    options: AgentOptions,
    /// The objects that the agent reads.
    pub cluster: Cluster,
    /// The namespaces.
    pub topology: Topology,
    directory: PathBuf,
    keep_directory: bool,
    /// What the agent has in the kernel without any service but the sentinel.
    empty: BTreeMap<String, usize>,
}

impl Lab {
    /// Builds a topology and starts an agent in it.
    ///
    /// # Errors
    /// When the topology cannot be built, or the agent does not serve.
    pub fn start(options: AgentOptions, pod_network: PodNetwork) -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("sluice-packets-{}-{number}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let topology = Topology::build(pod_network)?;
        let mut lab = Self {
            agent: None,
            cluster: Cluster::new(&directory.join("cluster"), options.source, &topology.node)?,
            options,
            topology,
            directory,
            keep_directory: false,
            empty: BTreeMap::new(),
        };
        lab.begin()?;
        Ok(lab)
    }

    fn begin(&mut self) -> Result<()> {
        self.cluster.write()?;
        self.start_agent()?;
        self.settle().context("the first start")?;
        self.empty = self.footprint()?;
        Ok(())
    }

    /// Starts the agent on a kernel as the last one left it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_agent(&mut self) -> Result<()> {
        let (node, directory) = (&self.topology.node, self.cluster.directory());
        self.agent = Some(Agent::start(node, &self.options, directory, &self.log())?);
        Ok(())
    }

    /// The running agent, taken out to be ended.
    ///
    /// # Errors
    /// When there is none.
    pub fn take_agent(&mut self) -> Result<Agent> {
        self.agent.take().context("no agent is running")
    }

    /// Ends the agent in the orderly way and starts it again.
    ///
    /// # Errors
    /// When it does not end, or not start.
    pub fn restart_agent(&mut self) -> Result<()> {
        self.take_agent()?.terminate()?;
        self.start_agent()
    }

    /// The mode as the configuration has it.
    pub fn mode(&self) -> Option<(String, Value)> {
        self.options.config.get_key_value("mode").map(|(key, mode)| (key.clone(), mode.clone()))
    }

    /// The same objects in the other mode, on a kernel as the agent left it.
    ///
    /// # Errors
    /// When it does not end, or not start.
    pub fn switch_mode(&mut self) -> Result<()> {
        let mode = if self.options.ipvs() { "nftables" } else { "ipvs" };
        self.take_agent()?.terminate()?;
        self.options.config.insert(String::from("mode"), Value::from(mode));
        self.start_agent()
    }

    /// Ends the agent and starts it with another configuration, on a kernel as it is.
    ///
    /// # Errors
    /// When it does not end, or not start.
    pub fn restart_with(&mut self, config: serde_json::Map<String, Value>) -> Result<()> {
        self.take_agent()?.terminate()?;
        self.start_with(config)
    }

    /// Starts the agent with another configuration.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_with(&mut self, config: serde_json::Map<String, Value>) -> Result<()> {
        self.options.config = config;
        self.start_agent()
    }

    /// Another configuration, on a kernel without any rules.
    fn reconfigure(&mut self, options: AgentOptions) -> Result<()> {
        self.take_agent()?.terminate()?;
        self.wipe()?;
        self.options = options;
        self.begin()
    }

    /// `sluice cleanup`.
    ///
    /// # Errors
    /// When it fails.
    pub fn cleanup(&self) -> Result<()> {
        self.topology.node.output(&self.options.binary.to_string_lossy(), &["cleanup"]).map(drop)
    }

    /// Removes all rules, and what mode ipvs has besides.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn wipe(&self) -> Result<()> {
        if self.options.ipvs() {
            self.cleanup()?;
        }
        self.topology.node.output("nft", &["flush", "ruleset"])?;
        Ok(())
    }

    /// The virtual services of IPVS and the addresses of kube-ipvs0; nothing where the kernel has no IPVS. Services
    /// that only wait for the connections they have do not count: they end at any time.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn virtual_services(&self) -> Result<BTreeSet<String>> {
        // The kernel gives a page at a time and goes on by counting: where the agent deletes something meanwhile,
        // something else is left out.
        let mut last = self.virtual_services_once()?;
        loop {
            let now = self.virtual_services_once()?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
    }

    fn virtual_services_once(&self) -> Result<BTreeSet<String>> {
        self.topology.node.enter(|| {
            let mut found = BTreeSet::new();
            // Lines of virtual services begin with the protocol, those of their destinations with an arrow.
            let services = fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default();
            let mut lines =
                services.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).peekable();
            while let Some(words) = lines.next() {
                let [protocol @ ("TCP" | "UDP" | "SCTP"), address, scheduler, ..] = words[..] else {
                    continue;
                };
                let mut weights = Vec::new();
                while let Some(destination) = lines.next_if(|words| words.first() == Some(&"->")) {
                    weights.extend(destination.get(3).copied().map(str::to_owned));
                }
                if weights.is_empty() || weights.iter().any(|weight| weight != "0") {
                    let address = readable(address).with_context(|| format!("{address} in ip_vs"))?;
                    found.insert(format!("{protocol} {address} {scheduler}"));
                }
            }
            let addresses =
                Command::new("ip").args(["-o", "address", "show", "dev", "kube-ipvs0"]).output()?;
            for line in String::from_utf8_lossy(&addresses.stdout).lines() {
                found.extend(line.split_whitespace().nth(3).map(|it| format!("kube-ipvs0 {it}")));
            }
            Ok(found)
        })
    }

    /// Writes the objects and waits until packets meet them: the sentinel's new endpoints, written last, answer at
    /// its new port in both families.
    ///
    /// # Errors
    /// When they do not within ten seconds, or the agent ended.
    pub fn settle(&mut self) -> Result<Duration> {
        let sentinel = self.cluster.write()?;
        let written = Instant::now();
        for (service, endpoint) in SENTINEL.iter().zip(&sentinel.endpoints) {
            let address = SocketAddr::new(service.parse()?, sentinel.port);
            self.await_sentinel(address, SocketAddr::new(endpoint.parse()?, 7070), written)?;
        }
        Ok(written.elapsed())
    }

    fn await_sentinel(&mut self, address: SocketAddr, wanted: SocketAddr, written: Instant) -> Result<()> {
        let target = Target { address, protocol: Protocol::Tcp };
        let client = Client { namespace: self.topology.node.clone(), source: None };
        loop {
            let wait = Duration::from_millis(150) * slowness();
            let seen = runtime().block_on(client.attempts(target, 1, true, wait))?;
            if seen.endpoints.contains_key(&wanted) {
                return Ok(());
            }
            if let Some(agent) = &mut self.agent {
                agent.check()?;
            }
            if written.elapsed() > longest() {
                bail!(
                    "a change is not in effect after {:?}: {target} should reach {wanted}, seen: {seen}",
                    longest()
                );
            }
            sleep(Duration::from_millis(3));
        }
    }

    /// Back to no objects and no remembered connections.
    ///
    /// # Errors
    /// When the agent leaves chains or elements behind.
    pub fn clear(&mut self) -> Result<()> {
        self.cluster.reset();
        self.settle().context("after the objects were removed")?;
        self.topology.node.output("conntrack", &["-F"])?;
        let begun = Instant::now();
        loop {
            let left = self.footprint()?;
            let before = |what: &String| self.empty.get(what).copied().unwrap_or(0);
            let Some((what, count)) = left.iter().find(|(what, count)| **count > before(what)) else {
                return Ok(());
            };
            // There, addresses go after the tables, which the sentinel needs.
            if !self.options.ipvs() || begun.elapsed() > longest() {
                let before = before(what);
                bail!("after all objects were removed, {what} has {count}, but had {before} before");
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// How many rules each chain and how many elements each set of ours has. Sets that packets fill are left out.
    ///
    /// # Errors
    /// When nft cannot list the rules.
    pub fn footprint(&self) -> Result<BTreeMap<String, usize>> {
        let listing: Value =
            serde_json::from_str(&self.topology.node.output("nft", &["-j", "list", "ruleset"])?)?;
        let mut counts = BTreeMap::new();
        for item in listing["nftables"].as_array().into_iter().flatten() {
            for (kind, object) in item.as_object().into_iter().flatten() {
                let text = |key: &str| object[key].as_str().unwrap_or_default();
                let name = |kind: &str, key: &str| {
                    format!("{kind} {} {} {}", text("family"), text("table"), text(key))
                };
                if !is_our_table(text("table")) {
                    continue;
                }
                let elements = object["elem"].as_array().map_or(0, Vec::len);
                match kind.as_str() {
                    "chain" => *counts.entry(name("chain", "name")).or_default() += 1,
                    "rule" => *counts.entry(name("chain", "chain")).or_default() += 1,
                    "set" | "map" if !filled_by_packets(object) => {
                        counts.insert(name(kind, "name"), elements + 1);
                    }
                    _ => {}
                }
            }
        }
        if self.options.ipvs() {
            // A deleted Service's virtual services stay until their connections end.
            return Ok(counts);
        }
        for kind in ["TCP", "UDP", "SCTP", "kube-ipvs0"] {
            let count = self.virtual_services()?.iter().filter(|it| it.starts_with(kind)).count();
            counts.insert(format!("{kind} in IPVS"), count);
        }
        Ok(counts)
    }

    /// All our chains, rules and elements as lines, without handles and without the indices that only number
    /// endpoints: their order is not fixed. Sets that packets fill are left out.
    ///
    /// # Errors
    /// When nft cannot list the rules.
    pub fn rules(&self) -> Result<BTreeSet<String>> {
        let listing: Value =
            serde_json::from_str(&self.topology.node.output("nft", &["-j", "list", "ruleset"])?)?;
        let mut lines = self.virtual_services()?;
        for item in listing["nftables"].as_array().into_iter().flatten() {
            for (kind, object) in item.as_object().into_iter().flatten() {
                let is_ours =
                    ["table", "name"].iter().any(|it| object[it].as_str().is_some_and(is_our_table));
                if !is_ours || filled_by_packets(object) {
                    continue;
                }
                let mut object = object.clone();
                let elements = object.as_object_mut().and_then(|map| {
                    map.remove("handle");
                    map.remove("elem")
                });
                lines.insert(format!("{kind} {object}"));
                let name = &object["name"];
                for element in elements.iter().flat_map(|it| it.as_array()).flatten() {
                    lines.insert(format!(
                        "{} {} {name} {}",
                        object["family"],
                        object["table"],
                        unnumbered(element)
                    ));
                }
            }
        }
        Ok(lines)
    }

    /// All that the agents of this lab have logged.
    pub fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.directory.join("agent.log")
    }

    /// The end of the agent's log, and the path of a file with the node's rules. The directory is kept.
    pub fn report(&mut self) -> String {
        self.keep_directory = true;
        let rules = self.directory.join("ruleset.nft");
        let listing = self.topology.node.output("nft", &["list", "ruleset"]);
        let ipvs = self
            .topology
            .node
            .enter(|| Ok(fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default()));
        let listing = listing.and_then(|text| Ok(text + &ipvs?));
        let written = listing.and_then(|text| fs::write(&rules, text).map_err(Into::into));
        let rules = match written {
            Ok(()) => rules.display().to_string(),
            Err(error) => format!("(not listed: {error:#})"),
        };
        format!(
            "rules of the node: {rules}\nobjects or kubeconfig: {}\nagent: {:?}, {}\nend of the agent's log:\n{}",
            self.cluster.directory().display(),
            self.options.source,
            Value::Object(self.options.config.clone()),
            log_tail(&self.log())
        )
    }
}

/// `0A60FFFE:0050` as `10.96.255.254:80`; an IPv6 address has all its digits there, in brackets.
fn readable(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let address = match address.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
        Some(address) => address.parse().ok()?,
        None => Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?).into(),
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

fn is_our_table(name: &str) -> bool {
    name.starts_with("sluice")
}

/// An element `address . protocol . port . INDEX : endpoint` without the index.
fn unnumbered(element: &Value) -> Value {
    let mut element = element.clone();
    if let Some(key) = element.get_mut(0).and_then(|key| key["concat"].as_array_mut())
        && key.len() == 4
        && key[3].is_u64()
    {
        key.pop();
    }
    element
}

fn filled_by_packets(set: &Value) -> bool {
    set["flags"].as_array().is_some_and(|flags| flags.iter().any(|flag| flag == "dynamic"))
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep_directory {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// Labs that wait for their next case. A lab whose case failed is not given back.
static POOL: Mutex<Vec<Lab>> = Mutex::new(Vec::new());

/// A lab with routed pods and these options, empty: a waiting one where there is one.
///
/// # Errors
/// As [`Lab::start`].
pub fn take(options: AgentOptions) -> Result<Lab> {
    let waiting = {
        let mut pool = POOL.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let same = pool.iter().position(|lab| lab.options == options);
        let similar = || {
            let alike =
                |lab: &Lab| lab.options.source == options.source && lab.options.ipvs() == options.ipvs();
            pool.iter().rposition(alike)
        };
        same.or_else(similar).map(|index| pool.swap_remove(index))
    };
    match waiting {
        Some(lab) if lab.options == options => Ok(lab),
        Some(mut lab) => {
            lab.reconfigure(options)?;
            Ok(lab)
        }
        None => Lab::start(options, PodNetwork::Routed),
    }
}

/// Gives a lab back that is empty again.
pub fn give_back(lab: Lab) {
    POOL.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(lab);
}

/// Removes all waiting labs.
pub fn close() {
    POOL.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
}
