//! The packet tracer against packets: random clusters are programmed into the node's kernel, the tracer says for each
//! address and client what becomes of a connection, and then connections are made.
//!
//! `SLUICE_TRACED_CLUSTERS` is how many clusters, `PROPTEST_RNG_SEED` which. A cluster that fails is made smaller and printed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use sluice::cluster::{Change, Endpoint, Family, Index, Protocol};
use sluice::dataplane::DataPlane;
use sluice::dataplane::nftables::translation::Translation;
use sluice::dataplane::nftables::{Nftables, plan};
use sluice::forwarding::{Desired, Key, LocalDetection, Settings};
use tokio::task::JoinSet;

use crate::events::{self, Batch, Universe};
use crate::netns::Namespace;
use crate::probe::{self, Client, Observation, Outcome, SILENCE, Source, Target, patience};
use crate::server::{Servers, runtime};
use crate::topology::{POD_PORTS, PodNetwork, Topology, is_node_address};
use crate::tracer::{Packet, Tables, Trace};

/// How many clusters are tried where nothing else is said.
const CLUSTERS: u32 = 12;
/// How many smaller clusters are tried after a failure; each takes up to some seconds.
const SMALLER: u32 = 40;

const UNIVERSE: Universe = Universe {
    services: 6,
    slices: 18,
    cluster_ips: 5,
    external: 3,
    node_ports: 6,
    pods: ENDPOINTS.len() as u8,
    endpoints: 4,
};

/// Where endpoints are: address, IPv6 address, node. A pod, another, a third, the node's own network; then the same
/// of other nodes.
const ENDPOINTS: [(&str, &str, &str); 8] = [
    ("10.128.0.65", "fd00:10:128::1:1", "node1"),
    ("10.128.0.129", "fd00:10:128::2:1", "node1"),
    ("10.128.0.193", "fd00:10:128::3:1", "node1"),
    ("198.18.0.11", "fd00:198:18::11", "node1"),
    ("10.128.1.1", "fd00:10:128:1::1", "node2"),
    ("10.128.1.2", "fd00:10:128:1::2", "node2"),
    ("10.128.2.1", "fd00:10:128:2::1", "node3"),
    ("198.18.0.12", "fd00:198:18::12", "node2"),
];

/// Who connects: the namespace, and its address in each family. Two of them are endpoints themselves.
const CLIENTS: [(&str, &str, &str); 4] = [
    ("pod1", "10.128.0.65", "fd00:10:128::1:1"),
    ("pod2", "10.128.0.129", "fd00:10:128::2:1"),
    ("host", "198.18.0.11", "fd00:198:18::11"),
    ("ext", "198.18.0.100", "fd00:198:18::100"),
];

/// Random clusters, one after the other.
///
/// # Errors
/// With the smallest cluster found in which a packet did not go where the tracer said, and what it did.
pub fn run() -> Result<()> {
    let topology = Topology::build(PodNetwork::Routed)?;
    // Endpoints with the node's network, besides those of other nodes.
    let _servers = Servers::start(&topology.node, &POD_PORTS)?;
    let cases = match std::env::var("SLUICE_TRACED_CLUSTERS") {
        Ok(count) => count.parse()?,
        Err(_) => CLUSTERS,
    };
    let config = ProptestConfig {
        cases,
        max_shrink_iters: SMALLER,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let met = std::cell::RefCell::new(BTreeMap::<&str, usize>::new());
    let batch = events::batch(UNIVERSE).prop_map(|batch| batch.into_iter().map(placed).collect());
    let batches = prop::collection::vec(batch, 20..45);
    let outcome = TestRunner::new(config).run(&(batches, settings()), |(batches, settings)| {
        try_cluster(&topology, &batches, &settings, &mut met.borrow_mut())
            .map_err(|error| TestCaseError::fail(format!("{error:#}")))
    });
    outcome.map_err(|error| anyhow!("{error}"))?;
    let met = met.into_inner();
    println!("connections in {cases} random clusters, by what became of them: {met:?}");
    let kinds = ["dropped", "kept", "masqueraded", "refused", "untouched"];
    if !met.keys().eq(kinds.iter()) {
        bail!("met only {met:?}, of {kinds:?}");
    }
    Ok(())
}

/// Ways to tell pods from others that this topology has.
fn settings() -> impl Strategy<Value = Settings> {
    let detection = prop_oneof![
        3 => Just(LocalDetection::Cidr),
        1 => Just(LocalDetection::None),
        1 => Just(LocalDetection::InterfacePrefix("pod".into())),
    ];
    (detection, prop::bool::weighted(0.2)).prop_map(|(detection, masquerade_all)| {
        let mut settings = Settings { masquerade_all, ..events::settings() };
        if detection != LocalDetection::Cidr {
            settings.pod_cidrs.clear();
        }
        settings.local_detection = [detection.clone(), detection];
        settings
    })
}

/// The generator numbers endpoints; here they get addresses that answer, and the nodes that these are on.
fn placed(mut change: Change) -> Change {
    if let Change::EndpointSlice(_, Some(slice)) = &mut change {
        for endpoint in &mut slice.endpoints {
            place(endpoint);
        }
    }
    change
}

fn place(endpoint: &mut Endpoint) {
    let number = match endpoint.address {
        IpAddr::V4(v4) => usize::from(v4.octets()[3]),
        IpAddr::V6(v6) => usize::from(v6.octets()[15]),
    };
    let (v4, v6, node) = ENDPOINTS[number % ENDPOINTS.len()];
    let text = if endpoint.address.is_ipv4() { v4 } else { v6 };
    endpoint.address = text.parse().expect("an address");
    if endpoint.node.is_some() {
        endpoint.node = Some(node.into());
    }
}

/// A connection and what is to become of it.
struct Flow {
    client: Client,
    name: &'static str,
    target: Target,
    trace: Trace,
    affinity: bool,
    /// Whether the destination is the node's own address.
    local: bool,
}

fn try_cluster(
    topology: &Topology,
    batches: &[Batch],
    settings: &Settings,
    met: &mut BTreeMap<&'static str, usize>,
) -> Result<()> {
    let desired = program(&topology.node, batches, settings)?;
    topology.node.output("conntrack", &["-F"])?;
    let mut flows = Vec::new();
    for family in Family::ALL {
        let tables = Tables::new(
            plan::structure(settings, family),
            plan::elements(&desired, &Translation::Table, family),
        );
        flows.extend(flows_of(topology, &tables, family)?);
    }
    let mut wrong = Vec::new();
    let mut running = JoinSet::new();
    runtime().block_on(async {
        for flow in flows {
            running.spawn(async move { (observe(&flow).await, flow) });
        }
        while let Some(done) = running.join_next().await {
            let (seen, flow) = done?;
            *met.entry(kind(&flow.trace)).or_default() += 1;
            if let Err(problem) = seen.and_then(|seen| judge(&flow, &seen)) {
                wrong.push(format!("{} to {}: {:?}: {problem:#}", flow.name, flow.target, flow.trace));
            }
        }
        anyhow::Ok(())
    })?;
    if !wrong.is_empty() {
        wrong.sort_unstable();
        bail!("{} connections go elsewhere than traced:\n{}", wrong.len(), wrong.join("\n"));
    }
    Ok(())
}

/// Brings the node's kernel to a cluster, change by change as the agent does.
fn program(node: &Namespace, batches: &[Batch], settings: &Settings) -> Result<Desired> {
    let mut plane = node.enter(|| Ok(Nftables::open()?))?;
    plane.cleanup()?;
    let mut index = Index::new("node1");
    let (mut desired, _) = Desired::from_scratch(&index, events::node(), settings.clone());
    let observed = plane.observe(settings)?;
    let plan = plane.plan(&desired, &observed);
    plane.apply(&plan)?;
    let start = Instant::now();
    for (number, batch) in (0..).zip(batches) {
        batch.iter().cloned().for_each(|change| index.apply(change));
        let dirty = index.take_dirty().services;
        let changes = desired.update(&index, dirty, start + Duration::from_secs(2 * number));
        let plan = plane.plan_changes(&changes);
        plane.apply(&plan)?;
    }
    Ok(desired)
}

fn flows_of(topology: &Topology, tables: &Tables, family: Family) -> Result<Vec<Flow>> {
    let mut keys: BTreeSet<Key> = tables.keys().filter(|key| key.protocol != Protocol::Sctp).collect();
    let beside: Vec<Key> = keys.iter().map(|key| Key { port: key.port + 1000, ..*key }).collect();
    // One in four is enough: what nobody claims meets few rules.
    keys.extend(beside.iter().step_by(4));
    let unallocated = if family == Family::Ipv4 { "10.96.0.99" } else { "fd00:10:96::99" };
    keys.insert(Key { address: unallocated.parse()?, protocol: Protocol::Tcp, port: 80 });
    let mut flows = Vec::new();
    for key in keys {
        let local = is_node_address(key.address);
        for (name, v4, v6) in CLIENTS {
            let source: IpAddr = if family == Family::Ipv4 { v4 } else { v6 }.parse()?;
            let packet = Packet {
                key,
                source,
                from_pod_interface: name.starts_with("pod"),
                source_is_local: name == "host",
                destination_is_local: local,
            };
            let protocol =
                if key.protocol == Protocol::Udp { probe::Protocol::Udp } else { probe::Protocol::Tcp };
            let trace = reachable(name, tables.trace(&packet));
            let namespace = topology.namespace(name)?;
            flows.extend(trace.map(|trace| Flow {
                client: Client { namespace: namespace.clone(), source: Some(source) },
                name,
                target: Target { address: SocketAddr::new(key.address, key.port), protocol },
                trace,
                affinity: tables.timeout(&key).is_some(),
                local,
            }));
        }
    }
    Ok(flows)
}

/// What comes back. An answer from another node to an outside client goes there directly, so that without masquerade
/// it has a source that nobody asked; with local detection there is no such trace.
fn reachable(client: &str, trace: Trace) -> Option<Trace> {
    let lost = |(endpoint, (_, masqueraded)): (&SocketAddr, &(usize, bool))| {
        let here = ENDPOINTS.iter().any(|(v4, v6, node)| {
            *node == "node1" && [v4, v6].iter().any(|it| it.parse() == Ok(endpoint.ip()))
        });
        client == "ext" && !here && !masqueraded
    };
    match &trace {
        Trace::Forwarded(to) if to.iter().any(lost) => None,
        _ => Some(trace),
    }
}

fn kind(trace: &Trace) -> &'static str {
    match trace {
        Trace::Forwarded(to) if to.values().any(|(_, masqueraded)| *masqueraded) => "masqueraded",
        Trace::Forwarded(_) => "kept",
        Trace::Refused => "refused",
        Trace::Dropped => "dropped",
        Trace::Untouched => "untouched",
    }
}

/// What the client gets to see of it. Where nobody translates, the node's address has no such port, and what goes
/// elsewhere ends at the gateway.
fn outcome(flow: &Flow) -> Outcome {
    match flow.trace {
        Trace::Forwarded(_) => Outcome::Connect,
        Trace::Refused => Outcome::Refused,
        Trace::Untouched if flow.local => Outcome::Refused,
        Trace::Dropped | Trace::Untouched => Outcome::Timeout,
    }
}

/// Tries until every endpoint has answered, as long as that can be expected.
async fn observe(flow: &Flow) -> Result<Observation> {
    let wait = if outcome(flow) == Outcome::Timeout { SILENCE } else { patience() };
    let Trace::Forwarded(to) = &flow.trace else {
        return flow.client.attempts(flow.target, 1, false, wait).await;
    };
    if flow.affinity {
        // One after the other: two at once may both be the first.
        return flow.client.attempts(flow.target, 3, true, wait).await;
    }
    let mut seen = Observation::default();
    // With a thousand endpoints one of them would be missed once in e^40.
    for _ in 0..20 {
        seen.merge(flow.client.attempts(flow.target, 2 * to.len(), false, wait).await?);
        if !seen.outcomes.keys().eq([&Outcome::Connect]) || seen.endpoints.len() >= to.len() {
            break;
        }
    }
    Ok(seen)
}

fn judge(flow: &Flow, seen: &Observation) -> Result<()> {
    if !seen.outcomes.keys().eq([&outcome(flow)]) {
        bail!("{seen}");
    }
    let Trace::Forwarded(to) = &flow.trace else { return Ok(()) };
    let all = seen.endpoints.keys().eq(to.keys());
    let one = seen.endpoints.len() == 1 && seen.endpoints.keys().all(|endpoint| to.contains_key(endpoint));
    if !if flow.affinity { one } else { all } {
        bail!("{seen}");
    }
    for (endpoint, sources) in &seen.sources {
        let masqueraded = to.get(endpoint).is_some_and(|(_, masqueraded)| *masqueraded);
        // What stays on the node passes no postrouting.
        let node_itself = is_node_address(endpoint.ip());
        let right = |source: &Source| match (flow.name, masqueraded) {
            ("host", true) => matches!(source, Source::Kept | Source::Node),
            (_, true) if !node_itself => *source == Source::Node,
            _ => *source == Source::Kept,
        };
        if !sources.iter().all(|(source, _)| right(source)) {
            bail!("source: {seen}");
        }
    }
    Ok(())
}
