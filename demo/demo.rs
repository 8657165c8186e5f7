//! Shows the agent at work: a node with three pods, a client outside and two more nodes out of network
//! namespaces, real connections, and what became of them. Needs root, iproute2 and nft.

#![allow(dead_code, reason = "the tests use the rest of what they share with this")]

#[path = "../tests/packets/agent.rs"]
mod agent;
#[path = "../tests/packets/netns.rs"]
mod netns;
#[path = "../tests/packets/probe.rs"]
mod probe;
#[path = "../tests/packets/server.rs"]
mod server;
#[path = "../tests/packets/topology.rs"]
mod topology;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::agent::{Agent, AgentOptions, log_tail};
use crate::probe::{Client, Observation, Outcome, Source};
use crate::server::runtime;
use crate::topology::{PodNetwork, Topology};

const SHOP: &str = "10.96.0.10:80/tcp";
const OLD_ENDPOINT: &str = "10.128.1.5";
const NEW_ENDPOINT: &str = "10.128.2.9";

fn main() -> Result<()> {
    netns::remove_stale();
    let directory = std::env::temp_dir().join(format!("sluice-demo-{}", std::process::id()));
    let manifests = directory.join("manifests");
    copy_manifests(&manifests)?;
    let log = directory.join("agent.log");
    let result = demonstrate(&manifests, &log);
    if result.is_err() {
        eprintln!("end of the agent's log:\n{}", log_tail(&log));
    }
    fs::remove_dir_all(&directory)?;
    result
}

/// A copy, because the demonstration edits one of them.
fn copy_manifests(to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/manifests");
    for entry in fs::read_dir(&from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// The agent beside this program, or the one that `SLUICE` names.
fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SLUICE") {
        return Ok(PathBuf::from(path));
    }
    let this = std::env::current_exe()?;
    let beside = this.parent().and_then(Path::parent).context("where this program is")?.join("sluice");
    if !beside.exists() {
        bail!("{} is not there: cargo build makes it", beside.display());
    }
    Ok(beside)
}

fn demonstrate(manifests: &Path, log: &Path) -> Result<()> {
    let config = serde_json::Map::new();
    let options = AgentOptions { binary: binary()?, source: agent::Source::Manifests, config };
    let topology = Topology::build(PodNetwork::Routed)?;
    println!("A node 198.18.0.11 with the pods pod1 10.128.0.65, pod2 10.128.0.129 and pod3 10.128.0.193;");
    println!("a client outside, 198.18.0.100; and the other nodes' pods, 10.128.1.x and 10.128.2.x.");
    println!("Each is a network namespace, every line below is made of real connections.\n");

    let started = Instant::now();
    let agent = Agent::start(&topology.node, &options, manifests, log)?;
    let demo = Demo { topology };
    demo.until_answered(SHOP, None)?;
    println!("sluice run --manifests demo/manifests: first answer {} after its start.\n", ms(started));

    println!("Service shop, ClusterIP 10.96.0.10 port 80 and node port 30080, two endpoints");
    demo.show("pod2", SHOP, "pods are not masqueraded")?;
    demo.show("pod1", SHOP, "a pod that reaches itself has to be")?;
    demo.show("ext", "198.18.0.11:30080/tcp", "from outside, so that answers come back this way")?;

    println!("\nService web, load balancer 198.51.100.20, externalTrafficPolicy Local");
    demo.show("ext", "198.51.100.20:80/tcp", "only the endpoint here, which sees its client")?;

    println!("\nWhat is not served");
    demo.show("pod2", "10.96.0.30:80/tcp", "service idle has no endpoints: told at once")?;
    demo.show("pod2", "10.96.0.10:9999/tcp", "a port that shop does not have: told at once")?;
    demo.show("pod2", "10.96.77.77:80/tcp", "nobody's ClusterIP: dropped, not sent to the gateway")?;

    demo.replace_endpoint(&manifests.join("shop.yaml"))?;
    demo.list()?;
    agent.terminate()?;
    println!("\nThe agent has ended; its rules stay until `sluice cleanup`:");
    demo.show("pod2", SHOP, "still served")?;
    Ok(())
}

struct Demo {
    topology: Topology,
}

impl Demo {
    fn client(&self, from: &str) -> Result<Client> {
        Ok(Client { namespace: self.topology.namespace(from)?.clone(), source: None })
    }

    fn observe(&self, from: &str, to: &str, tries: usize, wait: Duration) -> Result<Observation> {
        let client = self.client(from)?;
        runtime().block_on(client.attempts(to.parse()?, tries, false, wait))
    }

    /// One line for what became of twenty connections, one more for each endpoint.
    fn show(&self, from: &str, to: &str, why: &str) -> Result<()> {
        let from_name = if from == "ext" { "outside" } else { from };
        let begun = Instant::now();
        let seen = self.observe(from, to, 20, Duration::from_secs(1))?;
        let outcomes: Vec<_> =
            seen.outcomes.iter().map(|(outcome, n)| format!("{n} {}", said(*outcome))).collect();
        let to = to.trim_end_matches("/tcp");
        println!("  {from_name:>7} -> {to:<20} {} in {} ({why})", outcomes.join(", "), ms(begun));
        for (endpoint, n) in &seen.endpoints {
            for (source, address) in seen.sources.get(endpoint).into_iter().flatten() {
                let who = match source {
                    Source::Kept => "the client itself",
                    Source::Node => "the node: masqueraded",
                    Source::Other(_) => "somebody else",
                };
                println!("            {n:>2} by {endpoint:<18} which saw {address}, {who}");
            }
        }
        Ok(())
    }

    /// Connects until it is answered, by this endpoint where one is given.
    fn until_answered(&self, to: &str, endpoint: Option<&str>) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            let seen = self.observe("host", to, 1, Duration::from_millis(50))?;
            if seen.endpoints.keys().any(|it| endpoint.is_none_or(|wanted| it.ip().to_string() == wanted)) {
                return Ok(());
            }
        }
        bail!("{to} is not answered within ten seconds")
    }

    fn replace_endpoint(&self, file: &Path) -> Result<()> {
        println!("\nNow {OLD_ENDPOINT} is replaced by {NEW_ENDPOINT} in shop.yaml, while all goes on");
        let text = fs::read_to_string(file)?.replace(OLD_ENDPOINT, NEW_ENDPOINT);
        let temporary = file.with_extension("new");
        fs::write(&temporary, text)?;
        let written = Instant::now();
        fs::rename(&temporary, file)?;
        self.until_answered(SHOP, Some(NEW_ENDPOINT))?;
        println!("  first answer by {NEW_ENDPOINT} {} after the file was written", ms(written));
        self.show("pod2", SHOP, "the old endpoint gets no new connection")
    }

    fn list(&self) -> Result<()> {
        println!("\nAll of that is elements of sets in the kernel:");
        for map in ["services", "endpoints"] {
            let text = self.topology.node.output("nft", &["list", "map", "ip", "sluice", map])?;
            for line in text.lines().filter(|line| !line.is_empty()) {
                println!("  {}", line.replace('\t', "  "));
            }
        }
        Ok(())
    }
}

fn said(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Connect => "answered",
        Outcome::Refused => "refused",
        Outcome::Timeout => "silent",
        Outcome::Unreachable => "unreachable",
        Outcome::Reset => "reset",
        Outcome::Closed => "closed",
    }
}

fn ms(since: Instant) -> String {
    format!("{:.1} ms", since.elapsed().as_secs_f64() * 1000.0)
}
