//! A synthetic cluster: `services` Services with one TCP port and `endpoints` endpoints each.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sluice::cluster::{
    Change, Endpoint, EndpointPort, EndpointSlice, Family, Index, Interner, ObjectName, Protocol, Service,
    ServicePort,
};
use sluice::dataplane::DataPlane;
use sluice::forwarding::{Desired, LocalDetection, NodeView, Settings};

fn http_port(number: u16) -> std::num::NonZeroU16 {
    number.try_into().expect("not zero")
}

/// The Service of this number.
pub fn service(names: &mut Interner, number: u32) -> Change {
    let name = ObjectName::new(names.intern("default"), format!("service-{number}"));
    let port = ServicePort {
        name: names.intern("http"),
        protocol: Protocol::Tcp,
        port: http_port(80),
        node_port: None,
    };
    Change::Service(
        name.clone(),
        Some(Service::new(name, vec![IpAddr::V4(Ipv4Addr::from(0x0a60_0001 + number))], vec![port])),
    )
}

/// The slice of this number; another `generation` has another last endpoint.
pub fn slice(names: &mut Interner, number: u32, endpoints: u32, generation: u32) -> Change {
    let name = ObjectName::new(names.intern("default"), format!("service-{number}-abcde"));
    let endpoint = |i: u32| {
        let last = i + 1 == endpoints;
        let host = number * endpoints + i + if last { 0x0040_0000 + generation } else { 0 };
        Endpoint::ready(IpAddr::V4(Ipv4Addr::from(0x0a80_0000 + host)))
    };
    let mut endpoints: Vec<Endpoint> = (0..endpoints).map(endpoint).collect();
    for (i, endpoint) in endpoints.iter_mut().enumerate() {
        endpoint.node = Some(names.intern(&format!("node-{}", (number as usize + i) % 100)));
        endpoint.zone = Some(names.intern(["zone-a", "zone-b", "zone-c"][i % 3]));
    }
    Change::EndpointSlice(
        name.clone(),
        Some(EndpointSlice {
            name,
            service: format!("service-{number}").into(),
            family: Family::Ipv4,
            ports: vec![EndpointPort {
                name: names.intern("http"),
                protocol: Protocol::Tcp,
                port: http_port(8080),
            }],
            endpoints,
            triggered: None,
        }),
    )
}

/// All changes that make the cluster.
pub fn changes(services: u32, endpoints: u32) -> Vec<Change> {
    let mut names = Interner::default();
    (0..services).flat_map(|n| [service(&mut names, n), slice(&mut names, n, endpoints, 0)]).collect()
}

/// The cluster, indexed.
pub fn index(services: u32, endpoints: u32) -> Index {
    let mut index = Index::new("node-1");
    changes(services, endpoints).into_iter().for_each(|change| index.apply(change));
    index.take_dirty();
    index
}

/// The node.
pub fn node() -> NodeView {
    NodeView { name: "node-1".into(), zone: Some("zone-a".into()), node_port_addresses: vec![] }
}

/// Its settings.
pub fn settings() -> Settings {
    let net = |text: &str| text.parse::<IpNet>().expect("a CIDR");
    Settings {
        local_detection: [LocalDetection::Cidr, LocalDetection::None],
        pod_cidrs: vec![net("10.128.0.0/9")],
        service_cidrs: vec![net("10.96.0.0/11")],
        masquerade_all: false,
        ..Settings::default()
    }
}

/// Takes a change in; the time from the event to the end of the commit.
#[allow(dead_code, reason = "some benches have no kernel")]
pub fn change<D: DataPlane>(
    index: &mut Index,
    desired: &mut Desired,
    plane: &mut D,
    change: Change,
) -> Result<Duration, D::Error> {
    let start = Instant::now();
    index.apply(change);
    let dirty = index.take_dirty();
    let changes = desired.update(index, dirty.services, start);
    let plan = plane.plan_changes(&changes);
    plane.apply(&plan)?;
    Ok(start.elapsed())
}
