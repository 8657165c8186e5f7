//! Random cluster events over a universe small enough that Services, slices and addresses keep colliding.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use rustc_hash::FxHashSet;
use sluice::cluster::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Family, Index, ObjectName, Protocol,
    Scheduler, Service, ServicePort, TrafficPolicy,
};
use sluice::dataplane::nftables::model::{Chain, Element, Key, LOCAL_OFFSET, Verdict};
use sluice::dataplane::nftables::plan::{Observed, ObservedTable};
use sluice::forwarding::{Desired, LocalDetection, NodeView, Settings};

/// One batch of changes, as a source sends it.
pub type Batch = Vec<Change>;

/// How many of each thing there are: the fewer, the more often they collide.
#[derive(Clone, Copy, Debug)]
pub struct Universe {
    /// Services; slices name others, too.
    pub services: u8,
    /// EndpointSlices.
    pub slices: u8,
    /// Addresses that are taken for ClusterIPs.
    pub cluster_ips: u8,
    /// Addresses of load balancers, and for externalIPs one more.
    pub external: u8,
    /// NodePorts.
    pub node_ports: u16,
    /// Addresses of endpoints.
    pub pods: u8,
    /// The most endpoints of a slice.
    pub endpoints: usize,
}

impl Universe {
    /// Everything collides with everything.
    pub const SMALL: Universe = Universe {
        services: 6,
        slices: 8,
        cluster_ips: 5,
        external: 3,
        node_ports: 3,
        pods: 8,
        endpoints: 4,
    };
}

/// The node all tests run on.
pub fn node() -> NodeView {
    NodeView {
        name: "node1".into(),
        zone: Some("zone-a".into()),
        node_port_addresses: ["198.18.0.11", "fd00:198:18::11"]
            .map(|a| a.parse().expect("an address"))
            .to_vec(),
    }
}

/// The settings all tests run with.
pub fn settings() -> Settings {
    Settings {
        local_detection: [LocalDetection::Cidr, LocalDetection::Cidr],
        pod_cidrs: ["10.128.0.0/16", "fd00:10:128::/48"].map(|c| c.parse().expect("a CIDR")).to_vec(),
        service_cidrs: ["10.96.0.0/12", "fd00:10:96::/112"].map(|c| c.parse().expect("a CIDR")).to_vec(),
        drop_invalid: true,
        ..Settings::default()
    }
}

/// Sequences of batches.
pub fn batches(count: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<Batch>> {
    vec(batch(Universe::SMALL), count)
}

/// Changes that come together.
pub fn batch(universe: Universe) -> impl Strategy<Value = Batch> {
    vec(change(universe), 1..4)
}

fn change(of: Universe) -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0..of.services, prop::option::weighted(0.8, service(of))).prop_map(|(n, s)| {
            let name = ObjectName::new("ns", format!("svc{n}"));
            Change::Service(name.clone(), s.map(|mut s| { s.name = name; s }))
        }),
        8 => (0..of.slices, prop::option::weighted(0.85, slice(of))).prop_map(|(n, s)| {
            let name = ObjectName::new("ns", format!("slice{n}"));
            Change::EndpointSlice(name.clone(), s.map(|mut s| { s.name = name; s }))
        }),
    ]
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![2 => Just(TrafficPolicy::Cluster), 1 => Just(TrafficPolicy::Local)]
}

fn addresses(v4: &'static str, v6: &'static str, of: u8, most: usize) -> impl Strategy<Value = Vec<IpAddr>> {
    vec((0..of, any::<bool>()), 0..=most).prop_map(move |list| {
        list.into_iter()
            .filter_map(|(n, six)| if six { format!("{v6}{n}") } else { format!("{v4}{n}") }.parse().ok())
            .collect()
    })
}

fn service(universe: Universe) -> impl Strategy<Value = Service> {
    let ports = prop::sample::subsequence(vec![("http", 80u16, 6u8), ("alt", 81, 6), ("dns", 53, 17)], 1..=3);
    let ranges =
        prop::sample::subsequence(vec!["10.0.0.0/8", "10.1.0.0/16", "fd00::/16", "0.0.0.0/0"], 0..=2);
    let node_port = prop::option::of(30000..30000 + universe.node_ports);
    (
        (0..universe.cluster_ips, 0..3u8, 0..3i64),
        ports,
        node_port,
        addresses("203.0.113.", "fd00:203::", universe.external, 2),
        // Some of these are ClusterIPs of other Services.
        addresses("10.96.0.", "fd00:203::", universe.external + 1, 2),
        ranges,
        (
            policy(),
            policy(),
            prop::option::weighted(0.3, prop::sample::select(vec![5u32, 60])),
            prop::option::weighted(
                0.2,
                prop::sample::select(vec![Scheduler::Wlc, Scheduler::Dh, Scheduler::Ovf]),
            ),
        ),
    )
        .prop_map(
            |(
                (ip, families, created),
                ports,
                node_port,
                lb,
                external,
                ranges,
                (ext, int, affinity, scheduler),
            )| {
                let (v4, v6) = (format!("10.96.0.{ip}"), format!("fd00:10:96::{ip}"));
                let cluster_ips: Vec<IpAddr> = match families {
                    0 => vec![v4],
                    1 => vec![v6],
                    _ => vec![v4, v6],
                }
                .iter()
                .filter_map(|a| a.parse().ok())
                .collect();
                let has = |f| cluster_ips.iter().any(|a| Family::of(*a) == f);
                let own = |list: Vec<IpAddr>| list.into_iter().filter(|a| has(Family::of(*a))).collect();
                let ports = ports
                    .into_iter()
                    .enumerate()
                    .filter_map(|(i, (name, number, protocol))| {
                        Some(ServicePort {
                            name: name.into(),
                            protocol: Protocol::from_number(protocol)?,
                            port: number.try_into().ok()?,
                            node_port: node_port.and_then(|p| (p + i as u16).try_into().ok()),
                        })
                    })
                    .collect();
                Service {
                    created,
                    external_ips: own(external),
                    load_balancer_ips: own(lb),
                    source_ranges: ranges.iter().filter_map(|r| r.parse().ok()).collect(),
                    external_policy: ext,
                    internal_policy: int,
                    affinity,
                    scheduler,
                    ..Service::new(ObjectName::new("", ""), cluster_ips, ports)
                }
            },
        )
}

fn slice(of: Universe) -> impl Strategy<Value = EndpointSlice> {
    (0..of.services, any::<bool>(), vec(endpoint(of.pods), 0..=of.endpoints)).prop_map(
        |(service, six, endpoints)| EndpointSlice {
            name: ObjectName::new("", ""),
            service: format!("svc{service}").into(),
            family: if six { Family::Ipv6 } else { Family::Ipv4 },
            ports: [
                ("http", 8080u16, Protocol::Tcp),
                ("alt", 8081, Protocol::Tcp),
                ("dns", 5353, Protocol::Udp),
            ]
            .into_iter()
            .filter_map(|(name, port, protocol)| {
                Some(EndpointPort { name: name.into(), protocol, port: port.try_into().ok()? })
            })
            .collect(),
            endpoints: endpoints
                .into_iter()
                .map(|(n, mut e)| {
                    let address = if six { format!("fd00:10:128::{n}") } else { format!("10.128.0.{n}") };
                    e.address = address.parse().expect("an address");
                    e
                })
                .collect(),
            triggered: None,
        },
    )
}

fn endpoint(pods: u8) -> impl Strategy<Value = (u8, Endpoint)> {
    let hint = || prop::option::weighted(0.3, prop::sample::select(vec!["zone-a", "zone-b"]));
    (0..pods, prop::option::of(1..3u8), 0..6u8, hint()).prop_map(|(address, node, state, zone)| {
        let conditions = match state {
            0..=2 => Conditions::READY,
            3 => Conditions { ready: false, serving: true, terminating: true },
            4 => Conditions { ready: false, serving: false, terminating: true },
            _ => Conditions { ready: false, serving: false, terminating: false },
        };
        let zone_hints = zone.map(|z| vec![Arc::from(z)].into());
        let node = node.map(|n| Arc::from(format!("node{n}")));
        let address_later = IpAddr::from([0, 0, 0, 0]);
        (address, Endpoint { conditions, node, zone_hints, ..Endpoint::ready(address_later) })
    })
}

/// An empty index and what is desired for it.
#[allow(dead_code, reason = "tests/ipvs.rs starts otherwise")]
pub fn start() -> (Index, Desired) {
    let index = Index::new("node1");
    let (desired, _) = Desired::from_scratch(&index, node(), settings());
    (index, desired)
}

/// Tables without the numbering of indices, ids and slots: endpoints of a key are numbered in the order of their
/// addresses, slots of session affinity are left out where the endpoints say the same.
pub fn canonical(mut observed: Observed) -> Observed {
    for table in observed.values_mut().flatten() {
        renumber(table);
    }
    observed
}

fn renumber(table: &mut ObservedTable) {
    let sticky: BTreeSet<Key> = table
        .elements
        .iter()
        .filter_map(|e| match e {
            Element::AffinityId(key, _) | Element::LocalAffinityId(key, _) => Some(*key),
            _ => None,
        })
        .collect();
    let mut lists: BTreeMap<(Key, bool), Vec<(u32, SocketAddr)>> = BTreeMap::new();
    let mut rest = FxHashSet::default();
    for element in table.elements.drain() {
        match element {
            Element::Endpoint(key, index, address) => {
                lists.entry((key, index >= LOCAL_OFFSET)).or_default().push((index, address));
            }
            // Where to is a matter of slots; that they go somewhere is not.
            Element::Service(key, Verdict::Goto(Chain::Sticky(_, n))) => {
                rest.insert(Element::Service(key, Verdict::Goto(Chain::Sticky(0, n))));
            }
            Element::LocalService(key, Verdict::Goto(Chain::StickyLocal(_, n))) => {
                rest.insert(Element::LocalService(key, Verdict::Goto(Chain::StickyLocal(0, n))));
            }
            Element::Slot(..) => {}
            Element::Choice(id, choice, Verdict::Goto(Chain::Pick(timeout, _))) => {
                rest.insert(Element::Choice(id, choice, Verdict::Goto(Chain::Pick(timeout, 0))));
            }
            other => {
                rest.insert(other);
            }
        }
    }
    for ((key, local), mut list) in lists {
        let offset = if local { LOCAL_OFFSET } else { 0 };
        list.sort_unstable();
        let indices: Vec<u32> = list.iter().map(|(i, _)| *i - offset).collect();
        let dense = indices.iter().copied().eq(0..list.len() as u32);
        assert!(dense || sticky.contains(&key), "indices of {key} are dense: {indices:?}");
        let mut addresses: Vec<_> = list.into_iter().map(|(_, a)| a).collect();
        addresses.sort_unstable();
        rest.extend((offset..).zip(addresses).map(|(i, a)| Element::Endpoint(key, i, a)));
    }
    table.chains.retain(|c| !matches!(c, Chain::Sticky(..) | Chain::StickyLocal(..) | Chain::Pick(..)));
    table.sticky_sets = 0;
    table.elements = rest;
}
