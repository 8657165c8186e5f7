//! The agent ends and starts, and the rules are flushed under it, while connections are open.

use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{apply, ask, check, remote_pods, service, session, slice};
use crate::cluster::SENTINEL;
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::probe::{Session, patience, slowness};
use crate::server::runtime;

/// An open connection goes on, and the restart writes nothing: between the end of the old agent and the first
/// change for the new one, that change is all that the kernel reports.
pub fn restart_under_traffic(lab: &mut Lab) -> Result<()> {
    apply(
        lab,
        &[
            service("a", "10.96.220.1", Some(32100)),
            slice("a", &remote_pods(3)),
            service("b", "10.96.220.2", None),
            slice("b", &[]),
            service("c", "10.96.220.3", None),
            slice("c", &[String::from("10.128.0.65")]),
        ],
    )?;
    let mut open =
        [session(lab, "pod2", "10.96.220.1:80/tcp")?, session(lab, "ext", "198.18.0.11:32100/tcp")?];
    let before = lab.footprint()?;
    let (answers, events) = under_traffic(&mut open, || {
        let monitor = Monitor::start(&lab.topology.node)?;
        lab.restart_agent()?;
        lab.settle()?;
        monitor.stop()
    })?;
    if answers < 10 {
        bail!("only {answers} answers during the restart");
    }
    let foreign: Vec<_> = events
        .lines()
        .filter(|line| line.starts_with("add ") || line.starts_with("delete ") || line.starts_with("insert "))
        .filter(|line| !SENTINEL.iter().any(|address| line.contains(address)))
        .collect();
    if !foreign.is_empty() {
        bail!("the restart wrote rules:\n{}", foreign.join("\n"));
    }
    if !SENTINEL.iter().all(|address| events.contains(address)) {
        bail!("nft monitor did not see the change that was made after the restart:\n{events}");
    }
    let after = lab.footprint()?;
    if before != after {
        bail!("before {before:?}\nafter {after:?}");
    }
    check(
        lab,
        "- {from: pod2, to: '10.96.220.1:80/tcp', \
           expect: {endpoints: ['10.128.1.1:8080', '10.128.1.2:8080', '10.128.1.3:8080'], source: kept}}\n\
         - {from: pod2, to: '10.96.220.2:80/tcp', expect: refused}",
    )
}

/// Who sticks to an endpoint stays there when the tables are made anew for a changed setting, in both families, but
/// for those whose endpoint went meanwhile.
pub fn affinity_over_structure(lab: &mut Lab) -> Result<()> {
    let sticky = |name: &str, cluster_ip: &str| {
        let mut service = service(name, cluster_ip, None);
        service["spec"]["sessionAffinity"] = "ClientIP".into();
        service
    };
    let v6 = |count: usize| (1..=count).map(|n| format!("fd00:10:128:1::{n:x}")).collect::<Vec<_>>();
    let services = [("four", "10.96.232.1"), ("six", "fd00:10:96::e801")];
    for (name, address) in services {
        lab.cluster.apply("scenario", &sticky(name, address))?;
    }
    // The slots are not those that a table without a past would have.
    apply(lab, &[slice("four", &remote_pods(9)), slice("six", &v6(9))])?;
    apply(lab, &[slice("four", &remote_pods(8)[2..]), slice("six", &v6(8)[2..])])?;
    let clients: Vec<(String, String)> = (65..=84)
        .map(|n| (format!("pod1@10.128.0.{n}"), String::from("10.96.232.1:80/tcp")))
        .chain(
            (1..=20)
                .map(|n| (format!("pod1@fd00:10:128::1:{n:x}"), String::from("[fd00:10:96::e801]:80/tcp"))),
        )
        .collect();
    let met = |lab: &Lab| -> Result<Vec<SocketAddr>> {
        clients.iter().map(|(from, to)| one(lab, from, to)).collect()
    };
    let before = met(lab)?;
    let structures = [
        serde_json::json!({"nftables": {"masqueradeAll": true}}),
        serde_json::json!({"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "pod"}}),
    ];
    for config in structures {
        lab.restart_with(serde_json::from_value(config)?)?;
        lab.settle()?;
        let after = met(lab)?;
        if before != after {
            bail!("before {before:?}\nafter {after:?}");
        }
    }
    // While the agent is away an endpoint of each goes.
    let gone = [before[0], before[20]];
    lab.take_agent()?.terminate()?;
    let without = |all: Vec<String>| {
        let gone = gone.map(|endpoint| endpoint.ip().to_string());
        all.into_iter().filter(|address| !gone.contains(address)).collect::<Vec<_>>()
    };
    lab.cluster.apply("scenario", &slice("four", &without(remote_pods(8)[2..].to_vec())))?;
    lab.cluster.apply("scenario", &slice("six", &without(v6(8)[2..].to_vec())))?;
    lab.start_with(serde_json::Map::new())?;
    lab.settle()?;
    for (before, after) in before.iter().zip(met(lab)?) {
        if gone.contains(before) == (*before == after) {
            bail!("{gone:?} went; from {before} to {after}");
        }
    }
    Ok(())
}

fn one(lab: &Lab, from: &str, to: &str) -> Result<SocketAddr> {
    let (name, source) = from.split_once('@').context("a client with its address")?;
    let mut client = super::client(lab, name)?;
    client.source = Some(source.parse()?);
    let seen = runtime().block_on(client.attempts(to.parse()?, 3, true, patience()))?;
    match seen.endpoints.keys().collect::<Vec<_>>()[..] {
        [endpoint] if seen.outcomes.len() == 1 => Ok(*endpoint),
        _ => bail!("{from} to {to}: {seen}"),
    }
}

/// Rules stay, however the agent ended.
pub fn rules_stay_without_agent(lab: &mut Lab) -> Result<()> {
    const FLOWS: &str = "\
- {from: pod2, to: '10.96.221.1:80/tcp', expect: {endpoints: ['10.128.1.1:8080', '10.128.1.2:8080'], source: kept}}
- {from: ext, to: '198.18.0.11:32110/tcp', expect: {endpoints: ['10.128.1.1:8080', '10.128.1.2:8080'], source: node}}
- {from: pod2, to: '10.96.221.9:80/tcp', expect: timeout}";
    apply(lab, &[service("a", "10.96.221.1", Some(32110)), slice("a", &remote_pods(2))])?;
    let before = lab.rules()?;
    lab.take_agent()?.terminate()?;
    if lab.rules()? != before {
        bail!("rules changed when the agent ended on SIGTERM");
    }
    lab.start_agent()?;
    lab.settle()?;
    let before = lab.rules()?;
    lab.take_agent()?.kill()?;
    if lab.rules()? != before {
        bail!("rules changed when the agent was killed");
    }
    // The check changes the sentinel and needs an agent for that: flows first, by hand.
    for (from, to, wanted) in [("pod2", "10.96.221.1:80/tcp", 2), ("ext", "198.18.0.11:32110/tcp", 2)] {
        let seen = super::observe(lab, from, to, 40)?;
        if seen.endpoints.len() != wanted || seen.outcomes.len() != 1 {
            bail!("without an agent, {from} to {to}: {seen}");
        }
    }
    lab.start_agent()?;
    check(lab, FLOWS)
}

/// Somebody flushes all rules and has some of their own: ours come back, theirs stay. Connections that are open meanwhile
/// live on where they are held, see tests/operator/drift.rs; else the kernel may cease to translate them.
pub fn ruleset_flushed(lab: &mut Lab) -> Result<()> {
    apply(lab, &[service("a", "10.96.222.1", None), slice("a", &remote_pods(2))])?;
    let before = lab.footprint()?;
    let rules = "flush ruleset\ntable inet admin { chain mine { accept; }; }";
    lab.topology.node.feed("nft", &["-f", "-"], rules)?;
    // No object changes: nothing but the loss itself can make the agent write.
    let begun = Instant::now();
    while lab.footprint()? != before {
        if begun.elapsed() > Duration::from_secs(10) * slowness() {
            bail!("the rules are not back after {:?}: {:?}", begun.elapsed(), lab.footprint()?);
        }
    }
    lab.settle()?;
    let after = lab.footprint()?;
    if before != after {
        bail!("before {before:?}\nafter {after:?}");
    }
    lab.topology.node.output("nft", &["list", "chain", "inet", "admin", "mine"])?;
    check(
        lab,
        "- {from: pod2, to: '10.96.222.1:80/tcp', \
         expect: {endpoints: ['10.128.1.1:8080', '10.128.1.2:8080'], source: kept}}",
    )
}

/// The agent starts again in mode ipvs, and then in nftables: the connections that each finds go on, no new one fails
/// meanwhile, and nothing of the mode before is left.
pub fn mode_switched_and_back(lab: &mut Lab) -> Result<()> {
    apply(lab, &[service("a", "10.96.225.1", Some(32130)), slice("a", &remote_pods(2))])?;
    let flows = "\
- {from: pod2, to: '10.96.225.1:80/tcp', expect: {endpoints: ['10.128.1.1:8080', '10.128.1.2:8080'], source: kept}}
- {from: ext, to: '198.18.0.11:32130/tcp', expect: {endpoints: ['10.128.1.1:8080', '10.128.1.2:8080'], source: node}}";
    let before = lab.footprint()?;
    for to_ipvs in [true, false] {
        let clients = [("pod2", "10.96.225.1:80/tcp"), ("ext", "198.18.0.11:32130/tcp")];
        let mut open = Vec::new();
        for (from, to) in clients {
            open.push(session(lab, from, to)?);
        }
        let connecting = Connecting::start(lab, &clients)?;
        under_traffic(&mut open, || {
            lab.switch_mode()?;
            lab.settle()?;
            Ok(())
        })?;
        connecting.stop()?;
        check(lab, flows)?;
        // A reset, which IPVS remembers for ten seconds; its virtual service stays as long.
        open.into_iter().for_each(Session::abort);
        let begun = Instant::now();
        while lab.virtual_services()?.is_empty() == to_ipvs {
            if begun.elapsed() > Duration::from_secs(150) * slowness() {
                bail!(
                    "virtual services in mode nftables, or none in mode ipvs: {:?}",
                    lab.virtual_services()?
                );
            }
            thread::sleep(Duration::from_secs(1));
        }
    }
    let after = lab.footprint()?;
    if before != after {
        bail!("before {before:?}\nafter {after:?}");
    }
    let log = lab.log_text();
    if let Some(line) = log.lines().find(|line| {
        [" ERROR ", "mode ipvs left cannot", "kube-proxy's rules are on"].iter().any(|it| line.contains(it))
    }) {
        bail!("the log has: {line}");
    }
    lab.take_agent()?.terminate()?;
    let node = &lab.topology.node;
    node.feed("nft", &["-f", "-"], "table inet admin { chain mine { accept; }; }")?;
    lab.cleanup()?;
    let (rules, left) = (node.output("nft", &["list", "ruleset"])?, lab.virtual_services()?);
    if !rules.starts_with("table inet admin {") || rules.matches("table").count() != 1 || !left.is_empty() {
        bail!("after cleanup: {left:?}\n{rules}");
    }
    Ok(())
}

/// While mode ipvs ends, the node has ClusterIPs of its own and goes to them from themselves: its new connections are
/// answered all the same.
pub fn mode_left_by_the_node(lab: &mut Lab) -> Result<()> {
    let (target, endpoints) = ("10.96.226.1:80/tcp", remote_pods(1));
    apply(lab, &[service("a", "10.96.226.1", None), slice("a", &endpoints)])?;
    let mut open = [session(lab, "pod2", target)?, session(lab, "host", target)?];
    under_traffic(&mut open, || {
        lab.switch_mode()?;
        lab.settle()?;
        if !lab.virtual_services()?.contains("kube-ipvs0 10.96.226.1/32") {
            bail!("nothing is left of mode ipvs: {:?}", lab.virtual_services()?);
        }
        check(
            lab,
            "- {from: pod2, to: '10.96.226.1:80/tcp', expect: {endpoints: ['10.128.1.1:8080'], source: kept}}\n\
             - {from: host, to: '10.96.226.1:80/tcp', expect: {endpoints: ['10.128.1.1:8080'], source: node}}",
        )
    })?;
    Ok(())
}

/// New connections all the time, each of which has to be answered.
struct Connecting {
    ended: Arc<AtomicBool>,
    clients: Vec<thread::JoinHandle<Result<usize>>>,
}

impl Connecting {
    fn start(lab: &Lab, clients: &[(&str, &str)]) -> Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (from, to) in clients {
            let (client, target) = (super::client(lab, from)?, to.parse()?);
            let (ended, from) = (ended.clone(), (*from).to_owned());
            threads.push(thread::spawn(move || {
                let mut answered = 0;
                while !ended.load(Ordering::Acquire) {
                    let seen = runtime().block_on(client.attempts(target, 1, true, patience()))?;
                    if seen.endpoints.is_empty() {
                        bail!("a new connection from {from} to {target}: {seen}");
                    }
                    answered += 1;
                    thread::sleep(Duration::from_millis(50));
                }
                Ok(answered)
            }));
        }
        Ok(Self { ended, clients: threads })
    }

    fn stop(self) -> Result<()> {
        self.ended.store(true, Ordering::Release);
        for client in self.clients {
            let answered = client.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
            if answered < 3 {
                bail!("only {answered} new connections meanwhile");
            }
        }
        Ok(())
    }
}

/// Runs `work` while every connection is asked every ten milliseconds; returns the number of answers.
fn under_traffic<T>(open: &mut [Session], work: impl FnOnce() -> Result<T>) -> Result<(usize, T)> {
    let mut endpoints = Vec::new();
    for session in open.iter_mut() {
        endpoints.push(ask(session)?);
    }
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut answers = 0;
            // Once more when the work has ended.
            loop {
                let last = ended.load(Ordering::Acquire);
                for (session, endpoint) in open.iter_mut().zip(&endpoints) {
                    let answered = ask(session)?;
                    if answered != *endpoint {
                        bail!("the open connection moved from {endpoint} to {answered}");
                    }
                    answers += 1;
                }
                if last {
                    return Ok(answers);
                }
                thread::sleep(Duration::from_millis(10));
            }
        });
        let result = work();
        ended.store(true, Ordering::Release);
        let answers = traffic.join().map_err(|_| anyhow::anyhow!("the traffic panicked"))??;
        Ok((answers, result?))
    })
}

/// What the kernel tells about changes of rules.
struct Monitor {
    child: Child,
}

impl Monitor {
    fn start(node: &Namespace) -> Result<Self> {
        let child = node.enter(|| {
            let mut command = Command::new("nft");
            command.arg("monitor").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
            command.spawn().context("start nft monitor")
        })?;
        // It says nothing when it listens.
        thread::sleep(Duration::from_millis(500) * slowness());
        Ok(Self { child })
    }

    fn stop(mut self) -> Result<String> {
        thread::sleep(Duration::from_millis(200) * slowness());
        self.child.kill()?;
        let mut text = String::new();
        if let Some(stdout) = &mut self.child.stdout {
            stdout.read_to_string(&mut text)?;
        }
        self.child.wait()?;
        Ok(text)
    }
}
