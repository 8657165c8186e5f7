//! The figures of a cluster of one size.

use std::net::Ipv4Addr;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::commits::{self, Commit, FRESH};
use crate::lab::{Lab, reach};
use crate::objects::{self, Shape, cluster_ip};
use crate::process::{Agent, Memory};
use crate::server::{ApiServer, Resource};

/// Nothing takes that long.
pub const LONG: Duration = Duration::from_secs(180);

/// A cluster, and a node that knows nothing yet.
pub struct Setup {
    pub shape: Shape,
    pub lab: Lab,
    pub server: ApiServer,
    pub folder: tempfile::TempDir,
    /// Serves until it is dropped.
    _runtime: tokio::runtime::Runtime,
}

impl Setup {
    pub fn new(shape: Shape) -> Result<Setup> {
        let lab = Lab::build()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let server = lab.node.enter(|| ApiServer::start(&runtime))?;
        server.load(Resource::Services, (0..shape.services).map(|n| objects::service(shape, n)));
        server.load(Resource::EndpointSlices, (0..shape.services).flat_map(|n| objects::slices(shape, n)));
        server.load(Resource::Nodes, std::iter::once(objects::node()));
        let range = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/11"]}});
        server.load(Resource::ServiceCidrs, std::iter::once(range));
        let folder = tempfile::tempdir()?;
        Ok(Setup { shape, lab, server, folder, _runtime: runtime })
    }

    pub fn start(&self) -> Result<Agent> {
        Agent::start(&self.lab.node, &self.server.write_kubeconfig(self.folder.path())?)
    }

    /// The address of the last Service.
    pub fn last(&self) -> Ipv4Addr {
        cluster_ip(self.shape.services - 1)
    }
}

/// Addresses that no endpoint has had.
pub struct Fresh(u32);

impl Fresh {
    pub fn new() -> Fresh {
        Fresh(FRESH)
    }

    pub fn take(&mut self, count: u32) -> Vec<Ipv4Addr> {
        self.0 += count;
        (self.0 - count..self.0).map(Ipv4Addr::from).collect()
    }
}

/// The commit in which an address comes first.
pub fn committed(commits: &Receiver<Commit>, address: Ipv4Addr) -> Result<Commit> {
    loop {
        let commit = commits.recv_timeout(Duration::from_secs(60)).context("no commit within a minute")?;
        if commit.fresh.contains(&address) {
            return Ok(commit);
        }
    }
}

pub fn head(what: &str) {
    println!(
        "\n| {what} | start to first connection | first sync | CPU until then | restart, nothing changed: until synced, CPU | slice with 10 other addresses: \
         write to commit, p50 / p99 | write to first connection, p50 / p99 | CPU a change | messages a change | \
         resident after start (most) / after changes | cgroup: all, of it the kernel's |"
    );
    println!("|{}", " --- |".repeat(11));
}

pub fn row(name: &str, shape: Shape, quick: bool) -> Result<()> {
    let setup = Setup::new(shape)?;
    let agent = setup.start()?;
    let first = setup.lab.as_client(|| reach(setup.last(), LONG, |_| true))? - agent.started;
    let synced = agent.synced(LONG)?;
    let cpu_of_start = agent.cpu()?;
    std::thread::sleep(Duration::from_secs(3));
    let start = agent.memory()?;
    agent.terminate()?;
    let agent = setup.start()?;
    let again = agent.synced(LONG)?;
    let (restart, cpu_of_restart) = (again.at - agent.started, agent.cpu()?);
    let commits = commits::watch(&setup.lab.node)?;
    let count = if quick { 20 } else { 500 };
    let mut fresh = Fresh::new();
    let cpu = agent.cpu()?;
    let mut messages = 0;
    let mut to_commit = Vec::new();
    for i in 0..count {
        let (at, commit) = change(&setup, i, &mut fresh, &commits)?;
        messages += commit.messages;
        to_commit.push(commit.at.saturating_duration_since(at));
        std::thread::sleep(Duration::from_millis(2));
    }
    let cpu = (agent.cpu()? - cpu) / f64::from(count);
    let to_connection = connections(&setup, &mut fresh, if quick { 10 } else { 200 })?;
    let after = agent.memory()?;
    println!(
        "| {name} | {:.2} s | {:.0} ms | {cpu_of_start:.2} s | {:.2} s{}, {cpu_of_restart:.2} s | {} | {} | {:.2} ms | {:.1} | {} ({}) / {} MiB | {} |",
        first.as_secs_f64(),
        synced.elapsed_ms,
        restart.as_secs_f64(),
        if again.steps > 0 { format!(", {} steps", again.steps) } else { String::new() },
        quantiles(to_commit),
        quantiles(to_connection),
        cpu * 1e3,
        messages as f64 / f64::from(count),
        start.resident,
        start.most,
        after.resident,
        charged(start),
    );
    agent.terminate()
}

/// Writes a slice with other addresses and waits for the commit; when it was written.
fn change(setup: &Setup, i: u32, fresh: &mut Fresh, commits: &Receiver<Commit>) -> Result<(Instant, Commit)> {
    let addresses = fresh.take(setup.shape.endpoints);
    let slice = objects::slice(spread(i, setup.shape.services), 0, &addresses, false);
    let at = Instant::now();
    setup.server.modify(Resource::EndpointSlices, &slice);
    Ok((at, committed(commits, addresses[0])?))
}

/// Times from a write to the first connection to one of the new endpoints.
fn connections(setup: &Setup, fresh: &mut Fresh, count: u32) -> Result<Vec<Duration>> {
    setup.lab.as_client(|| {
        let mut times = Vec::new();
        for i in 0..count {
            let number = spread(i + 7, setup.shape.services);
            if number < setup.shape.affinity {
                continue;
            }
            let addresses = fresh.take(setup.shape.endpoints);
            let slice = objects::slice(number, 0, &addresses, false);
            let at = Instant::now();
            setup.server.modify(Resource::EndpointSlices, &slice);
            times
                .push(reach(cluster_ip(number), Duration::from_secs(60), |to| addresses.contains(&to))? - at);
            std::thread::sleep(Duration::from_millis(5));
        }
        if times.is_empty() {
            bail!("no change was measured");
        }
        Ok(times)
    })
}

/// Service numbers all over the cluster, none twice within a long time.
pub fn spread(i: u32, services: u32) -> u32 {
    const PRIME: u64 = 7_919;
    (u64::from(i) * PRIME % u64::from(services)) as u32
}

pub fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| {
        let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
        times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    format!("{:.2} / {:.2} ms", at(50), at(99))
}

fn charged(memory: Memory) -> String {
    match memory.charged {
        Some((all, kernel)) => format!("{all}, {kernel} MiB"),
        None => "not here".to_owned(),
    }
}
