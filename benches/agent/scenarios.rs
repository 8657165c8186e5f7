//! Many changes in a short time.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::commits;
use crate::figures::{Fresh, LONG, Setup, committed, quantiles, spread};
use crate::objects::{self, Shape, addresses};
use crate::server::Resource;

/// How long all commits of a burst take, and how many there are.
pub fn bursts(setup: &Setup) -> Result<()> {
    let agent = setup.start()?;
    agent.synced(LONG)?;
    let commits = commits::watch(&setup.lab.node)?;
    let mut fresh = Fresh::new();
    println!(
        "\n| slices written at once ({} Services x 10) | to the last commit | commits |",
        setup.shape.services
    );
    println!("| --- | --- | --- |");
    for size in [1, 10, 100, 1_000] {
        let mut rounds = Vec::new();
        for round in 0..5 {
            let slices: Vec<_> = (0..size)
                .map(|i| {
                    let addresses = fresh.take(10);
                    let number = spread(round * size + i, setup.shape.services);
                    (addresses[0], objects::slice(number, 0, &addresses, false))
                })
                .collect();
            let start = Instant::now();
            for (_, slice) in &slices {
                setup.server.modify(Resource::EndpointSlices, slice);
            }
            let last = slices.last().map_or(Ipv4Addr::UNSPECIFIED, |(address, _)| *address);
            let mut count = 0;
            let end = loop {
                let commit = commits.recv_timeout(LONG)?;
                count += 1;
                if commit.fresh.contains(&last) {
                    break commit.at;
                }
            };
            rounds.push((end - start, count));
            std::thread::sleep(Duration::from_millis(50));
        }
        rounds.sort_unstable();
        let (time, count) = rounds[2];
        println!("| {size} | {:.2} ms | {count} |", time.as_secs_f64() * 1e3);
    }
    agent.terminate()
}

/// Every pod of a deployment is replaced, one after the other, 100 a second.
pub fn rollout(services: u32, pods: u32) -> Result<()> {
    let shape = Shape { services, endpoints: 10, ..Shape::default() };
    let setup = Setup::new(shape)?;
    // One Service more than the others, with its slices of 100.
    let number = services;
    let mut fresh = Fresh::new();
    let mut endpoints = fresh.take(pods);
    let big = objects::service(shape, number);
    setup.server.load(Resource::Services, (0..services).map(|n| objects::service(shape, n)).chain([big]));
    let slices = |endpoints: &[Ipv4Addr]| -> Vec<_> {
        let parts = endpoints.chunks(100).enumerate();
        parts.map(|(part, some)| objects::slice(number, part as u32, some, false)).collect()
    };
    let all = (0..services).flat_map(|n| objects::slices(shape, n)).chain(slices(&endpoints));
    setup.server.load(Resource::EndpointSlices, all);
    let agent = setup.start()?;
    agent.synced(LONG)?;
    let commits = commits::watch(&setup.lab.node)?;
    let cpu = agent.cpu()?;
    let (mut times, mut messages) = (Vec::new(), 0);
    for i in 0..pods {
        let new = fresh.take(1)[0];
        endpoints[i as usize] = new;
        let part = i as usize / 100;
        let some: Vec<Ipv4Addr> = endpoints.chunks(100).nth(part).unwrap_or_default().to_vec();
        let slice = objects::slice(number, part as u32, &some, false);
        let at = Instant::now();
        setup.server.modify(Resource::EndpointSlices, &slice);
        let commit = committed(&commits, new)?;
        messages += commit.messages;
        times.push(commit.at - at);
        std::thread::sleep(Duration::from_millis(10).saturating_sub(at.elapsed()));
    }
    let cpu = agent.cpu()? - cpu;
    println!("\n| rolling restart of {pods} pods of one Service, beside {services} x 10 | |\n| --- | --- |");
    println!("| a pod replaced, write to commit, p50 / p99 | {} |", quantiles(times));
    println!("| CPU a pod | {:.2} ms |", cpu * 1e3 / f64::from(pods));
    println!("| messages a pod | {:.1} |", messages as f64 / f64::from(pods));
    agent.terminate()
}

/// 1,000 slices a second in which one endpoint is another.
pub fn churn(setup: &Setup, time: Duration) -> Result<()> {
    const RATE: u32 = 1_000;
    let agent = setup.start()?;
    agent.synced(LONG)?;
    let commits = commits::watch(&setup.lab.node)?;
    let count = RATE * time.as_secs() as u32;
    let (cpu, before) = (agent.cpu()?, agent.memory()?);
    let start = Instant::now();
    let (written, seen, messages) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut fresh = Fresh::new();
            let mut written = Vec::with_capacity(count as usize);
            for i in 0..count {
                let number = spread(i, setup.shape.services);
                let mut endpoints = addresses(setup.shape, number);
                let new = fresh.take(1)[0];
                endpoints[i as usize % 10] = new;
                let slice = objects::slice(number, 0, &endpoints, false);
                let due = start + Duration::from_secs(1) / RATE * i;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                written.push((new, Instant::now()));
                setup.server.modify(Resource::EndpointSlices, &slice);
            }
            written
        });
        let mut seen = HashMap::new();
        let mut messages = 0;
        loop {
            match commits.recv_timeout(Duration::from_secs(2)) {
                Ok(commit) => {
                    messages += commit.messages;
                    for address in commit.fresh {
                        seen.entry(address).or_insert(commit.at);
                    }
                }
                Err(RecvTimeoutError::Timeout) if writer.is_finished() => break,
                Err(_) => {}
            }
        }
        (writer.join().expect("no panic"), seen, messages)
    });
    // What was replaced within one commit was never in the kernel.
    let lag = |(address, at): &(Ipv4Addr, Instant)| Some(seen.get(address)?.saturating_duration_since(*at));
    let part = written.len() / 6;
    let (cpu, after) = (agent.cpu()? - cpu, agent.memory()?);
    println!(
        "\n| {RATE} changes a second for {} s, {} Services x 10 | |\n| --- | --- |",
        time.as_secs(),
        setup.shape.services
    );
    for (name, some) in [("first", &written[..part]), ("last", &written[written.len() - part..])] {
        println!(
            "| lag in the {name} sixth, p50 / p99 | {} |",
            quantiles(some.iter().filter_map(lag).collect())
        );
    }
    println!("| changes that were seen | {} of {count} |", written.iter().filter_map(lag).count());
    println!("| CPU of the agent | {:.0} % of one core |", cpu / time.as_secs_f64() * 100.0);
    println!("| messages a change | {:.2} |", messages as f64 / f64::from(count));
    println!("| resident before / after | {} / {} MiB |", before.resident, after.resident);
    agent.terminate()
}

/// Services that come, get other endpoints twice, and go, 20 at a time, each under a name of its own in one of 500
/// namespaces: what stays of them in memory.
pub fn lives(setup: &Setup, rounds: u32) -> Result<()> {
    const AT_ONCE: u32 = 20;
    let agent = setup.start()?;
    agent.synced(LONG)?;
    let commits = commits::watch(&setup.lab.node)?;
    let mut fresh = Fresh::new();
    let in_namespace = |mut object: serde_json::Value, number: u32| {
        object["metadata"]["namespace"] = format!("namespace-{}", number % 500).into();
        object
    };
    let server = &setup.server;
    let mut resident = vec![agent.memory()?.resident];
    for round in 0..rounds {
        let numbers = || (0..AT_ONCE).map(|i| setup.shape.services + round * AT_ONCE + i);
        let service = |number| in_namespace(objects::service(setup.shape, number), number);
        let mut slices = Vec::new();
        for event in ["ADDED", "MODIFIED", "MODIFIED"] {
            let mut last = Ipv4Addr::UNSPECIFIED;
            slices.clear();
            for number in numbers() {
                if event == "ADDED" {
                    server.tell(Resource::Services, event, &service(number));
                }
                let addresses = fresh.take(10);
                last = addresses[0];
                slices.push(in_namespace(objects::slice(number, 0, &addresses, false), number));
                server.tell(Resource::EndpointSlices, event, &slices[slices.len() - 1]);
            }
            committed(&commits, last)?;
        }
        for (number, slice) in numbers().zip(&slices) {
            server.tell(Resource::Services, "DELETED", &service(number));
            server.tell(Resource::EndpointSlices, "DELETED", slice);
        }
        if (round + 1) % (rounds / 4) == 0 {
            std::thread::sleep(Duration::from_secs(2));
            resident.push(agent.memory()?.resident);
        }
    }
    println!(
        "\n| {} Services that come, change twice and go, beside {} x 10 | |\n| --- | --- |",
        rounds * AT_ONCE,
        setup.shape.services
    );
    println!(
        "| resident before / after half / after all | {} / {} / {} MiB |",
        resident[0], resident[1], resident[2]
    );
    agent.terminate()
}
