//! What a Service means, case by case.

mod explain;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::service::{Before, forward};
use super::*;
use crate::cluster::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Family, Index, ObjectName, Protocol, Service,
    ServicePort, TrafficPolicy,
};

fn node() -> NodeView {
    NodeView {
        name: "node1".into(),
        zone: Some("zone-a".into()),
        node_port_addresses: vec!["198.18.0.11".parse().unwrap(), "fd00:198:18::11".parse().unwrap()],
    }
}

fn service(name: &str, cluster_ips: &[&str]) -> Service {
    let cluster_ips = cluster_ips.iter().map(|a| a.parse().unwrap()).collect();
    Service::new(ObjectName::new("default", name), cluster_ips, vec![port("http", 80, None)])
}

fn port(name: &str, number: u16, node_port: Option<u16>) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port: number.try_into().unwrap(),
        node_port: node_port.map(|p| p.try_into().unwrap()),
    }
}

/// An endpoint from `ADDRESS@NODE FLAGS`: ready unless `!` (not ready), `t` (terminating, serving) or `T`
/// (terminating, not serving); `z:ZONE`, `n:NODE` are hints.
fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split(' ');
    let (address, on) = words.next().unwrap().split_once('@').unwrap();
    let mut conditions = Conditions::READY;
    let (mut zones, mut nodes) = (vec![], vec![]);
    for word in words {
        match word {
            "!" => conditions = Conditions { ready: false, serving: false, terminating: false },
            "t" => conditions = Conditions { ready: false, serving: true, terminating: true },
            "T" => conditions = Conditions { ready: false, serving: false, terminating: true },
            hint => match hint.split_once(':').unwrap() {
                ("z", zone) => zones.push(Arc::from(zone)),
                (_, node) => nodes.push(Arc::from(node)),
            },
        }
    }
    let hints = |list: Vec<Arc<str>>| (!list.is_empty()).then(|| list.into());
    Endpoint {
        conditions,
        node: (!on.is_empty()).then(|| on.into()),
        zone_hints: hints(zones),
        node_hints: hints(nodes),
        ..Endpoint::ready(address.parse().unwrap())
    }
}

fn slice(name: &str, service: &str, endpoints: &[&str]) -> EndpointSlice {
    let endpoints: Vec<Endpoint> = endpoints.iter().map(|e| endpoint(e)).collect();
    EndpointSlice {
        name: ObjectName::new("default", name),
        service: service.into(),
        family: endpoints.first().map_or(Family::Ipv4, |e| Family::of(e.address)),
        ports: vec![EndpointPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 8080.try_into().unwrap(),
        }],
        endpoints,
        triggered: None,
    }
}

/// What becomes of a target, in short: endpoint addresses without the port, `refuse` or `drop`.
fn short(target: &Target) -> String {
    match target {
        Target::Refuse => "refuse".into(),
        Target::Drop => "drop".into(),
        Target::Endpoints(list) => list.iter().map(|e| e.ip().to_string()).collect::<Vec<_>>().join(" "),
        Target::Sticky(sticky) => {
            let slot = |(slot, e): &(u32, SocketAddr)| format!("{slot}:{}", e.ip());
            sticky.live.iter().map(slot).collect::<Vec<_>>().join(" ")
        }
    }
}

fn run(service: &Service, slices: &[EndpointSlice]) -> Forwarding {
    let slices: Vec<_> = slices.iter().cloned().map(Arc::new).collect();
    let (mut slots, mut ids) = Default::default();
    let mut before =
        Before { frontend: |_: &Key| None, slots: &mut slots, ids: &mut ids, now: Instant::now() };
    forward(service, &slices, &node(), &mut before)
}

fn of(forwarding: &Forwarding, kind: FrontendKind) -> &Frontend {
    &forwarding.claims.iter().find(|c| c.kind == kind).unwrap().frontend
}

const A: &str = "10.128.0.65";
const B: &str = "10.128.1.5";
const C: &str = "10.128.2.5";

#[test]
fn every_kind_of_address_gets_all_endpoints_and_its_masquerade() {
    let mut svc = service("a", &["10.96.0.1"]);
    svc.ports = vec![port("http", 80, Some(30080))];
    svc.load_balancer_ips = vec!["203.0.113.1".parse().unwrap()];
    svc.external_ips = vec!["203.0.113.2".parse().unwrap()];
    let f = run(&svc, &[slice("s", "a", &[&format!("{A}@node1"), &format!("{B}@node2")])]);
    let all = format!("{A} {B}");
    for (kind, key, masquerade) in [
        (FrontendKind::ClusterIp, "10.96.0.1:80", Masquerade::OffCluster),
        (FrontendKind::NodePort, "198.18.0.11:30080", Masquerade::All),
        (FrontendKind::LoadBalancer, "203.0.113.1:80", Masquerade::All),
        (FrontendKind::ExternalIp, "203.0.113.2:80", Masquerade::All),
    ] {
        let claim = f.claims.iter().find(|c| c.kind == kind).unwrap();
        assert_eq!(SocketAddr::new(claim.key.address, claim.key.port), key.parse().unwrap());
        assert_eq!(short(&claim.frontend.inside), all);
        assert_eq!((claim.frontend.masquerade, &claim.frontend.outside), (masquerade, &None));
    }
    assert_eq!(f.claims.len(), 4);
    assert_eq!(f.hairpin, [A.parse::<std::net::IpAddr>().unwrap()]);
}

#[test]
fn families_have_frontends_of_their_own() {
    let svc = service("a", &["10.96.0.1", "fd00:10:96::1"]);
    let f = run(&svc, &[slice("s", "a", &[&format!("{A}@node1")])]);
    assert_eq!(short(&f.claims[0].frontend.inside), A);
    assert_eq!(short(&f.claims[1].frontend.inside), "refuse", "no endpoint in IPv6");
    let svc = service("a", &["10.96.0.1"]);
    let f = run(&svc, &[slice("s", "a", &["fd00:10:128::1@node1"])]);
    assert_eq!((f.claims.len(), short(&f.claims[0].frontend.inside)), (1, "refuse".into()));
}

/// inside | outside of a NodePort and | of the ClusterIP, for endpoint states and policies.
#[test]
fn states_and_policies() {
    let cluster = TrafficPolicy::Cluster;
    let local = TrafficPolicy::Local;
    type Case =
        (TrafficPolicy, TrafficPolicy, &'static [&'static str], &'static str, &'static str, &'static str);
    let cases: &[Case] = &[
        // external, internal, endpoints, NodePort inside, NodePort outside, ClusterIP
        (cluster, cluster, &[], "refuse", "-", "refuse"),
        (local, cluster, &[], "refuse", "-", "refuse"),
        (cluster, local, &[], "refuse", "-", "refuse"),
        (cluster, cluster, &["1@node1 !"], "refuse", "-", "refuse"),
        (cluster, cluster, &["1@node1 T"], "refuse", "-", "refuse"),
        (local, cluster, &["1@node1", "2@node2"], "1 2", "1", "1 2"),
        (local, local, &["1@node1", "2@node2"], "1 2", "1", "1"),
        (local, cluster, &["2@node2"], "2", "drop", "2"),
        (cluster, local, &["2@node2"], "2", "-", "drop"),
        (local, local, &["2@node2 t"], "2", "drop", "drop"),
        (cluster, cluster, &["1@node1 t", "2@node2"], "2", "-", "2"),
        (cluster, cluster, &["1@node1 t", "2@node2 T", "3@node3 !"], "1", "-", "1"),
        (local, cluster, &["1@node1 t", "2@node2"], "2", "1", "2"),
        (local, cluster, &["1@node1 t", "2@node1"], "2", "2", "2"),
        (local, cluster, &["1@node1 T", "2@node2 t"], "2", "drop", "2"),
        (local, cluster, &["1@ ", "2@node2"], "1 2", "drop", "1 2"),
    ];
    for (external, internal, endpoints, inside, outside, cluster_ip) in cases {
        let mut svc = service("a", &["10.96.0.1"]);
        svc.ports = vec![port("http", 80, Some(30080))];
        (svc.external_policy, svc.internal_policy) = (*external, *internal);
        let endpoints: Vec<String> = endpoints.iter().map(|e| format!("10.128.0.{}", e.trim())).collect();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let f = run(&svc, &[slice("s", "a", &endpoints)]);
        let strip = |t: &Target| short(t).replace("10.128.0.", "");
        let np = of(&f, FrontendKind::NodePort);
        assert_eq!(strip(&np.inside), *inside, "inside, {endpoints:?}");
        assert_eq!(np.outside.as_ref().map_or("-".into(), strip), *outside, "outside, {endpoints:?}");
        assert_eq!(strip(&of(&f, FrontendKind::ClusterIp).inside), *cluster_ip, "ClusterIP, {endpoints:?}");
    }
}

#[test]
fn hints_restrict_only_where_every_ready_endpoint_has_them() {
    for (endpoints, expected) in [
        (vec!["1@node1 z:zone-a", "2@node2 z:zone-b"], "1"),
        (vec!["1@node1 z:zone-a", "2@node2"], "1 2"),
        (vec!["1@node1 z:zone-b", "2@node2 z:zone-b"], "1 2"),
        (vec!["1@node1 z:zone-a", "2@node2 z:zone-b", "3@node3 !"], "1"),
        (vec!["1@node1 n:node1 z:zone-a", "2@node2 n:node2 z:zone-a"], "1"),
        (vec!["1@node1 n:node2 z:zone-a", "2@node2 n:node2 z:zone-b"], "1"),
        (vec!["1@node1 n:node1 z:zone-a", "2@node2 z:zone-a"], "1 2"),
        (vec!["1@node1 t z:zone-b", "2@node2 t z:zone-b"], "1 2"),
        (vec!["1@node1 t z:zone-a", "2@node2 z:zone-b"], "2"),
    ] {
        let list: Vec<String> = endpoints.iter().map(|e| format!("10.128.0.{e}")).collect();
        let list: Vec<&str> = list.iter().map(String::as_str).collect();
        let f = run(&service("a", &["10.96.0.1"]), &[slice("s", "a", &list)]);
        let got = short(&f.claims[0].frontend.inside).replace("10.128.0.", "");
        assert_eq!(got, expected, "{endpoints:?}");
    }
}

#[test]
fn an_endpoint_in_several_slices_counts_once_and_ready_wins() {
    let a = slice("s1", "a", &[&format!("{A}@node1 !"), &format!("{B}@node2")]);
    let b = slice("s2", "a", &[&format!("{A}@node1"), &format!("{B}@node2 t")]);
    for slices in [[a.clone(), b.clone()], [b, a]] {
        let f = run(&service("a", &["10.96.0.1"]), &slices);
        assert_eq!(short(&f.claims[0].frontend.inside), format!("{A} {B}"));
    }
}

#[test]
fn ports_are_matched_by_name_and_protocol() {
    let mut other = slice("s", "a", &[&format!("{A}@node1")]);
    other.ports[0].protocol = Protocol::Udp;
    let mut svc = service("a", &["10.96.0.1"]);
    assert_eq!(short(&run(&svc, &[other]).claims[0].frontend.inside), "refuse");
    svc.ports.push(port("https", 443, None));
    let mut two = slice("s", "a", &[&format!("{A}@node1")]);
    two.ports.push(EndpointPort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 9090.try_into().unwrap(),
    });
    let f = run(&svc, &[two]);
    let ports: Vec<u16> = f.claims[0].frontend.inside.endpoints().map(|(_, e)| e.port()).collect();
    assert_eq!(ports, [8080, 9090], "one name, two numbers");
    assert_eq!(short(&f.claims[1].frontend.inside), "refuse");
}

#[test]
fn source_ranges_guard_the_load_balancer_address_only_and_in_their_family_only() {
    let mut svc = service("a", &["10.96.0.1", "fd00:10:96::1"]);
    svc.ports = vec![port("http", 80, Some(30080))];
    svc.load_balancer_ips = vec!["203.0.113.1".parse().unwrap(), "fd00:203::1".parse().unwrap()];
    svc.external_ips = vec!["203.0.113.2".parse().unwrap()];
    svc.source_ranges = ["10.1.0.0/16", "10.0.0.0/8", "10.0.0.0/8"].map(|r| r.parse().unwrap()).to_vec();
    let f = run(&svc, &[]);
    for claim in &f.claims {
        let guarded = claim.kind == FrontendKind::LoadBalancer && claim.key.address.is_ipv4();
        let expected: Option<Arc<[ipnet::IpNet]>> = guarded.then(|| ["10.0.0.0/8".parse().unwrap()].into());
        assert_eq!(claim.frontend.sources, expected, "{:?}: overlapping ranges are joined", claim.key);
    }
}

#[test]
fn what_stays_keeps_its_index() {
    let addr = |n: u16| SocketAddr::new([10, 128, 0, n as u8].into(), 80);
    let list = |ns: &[u16]| ns.iter().map(|n| addr(*n)).collect::<Vec<_>>();
    let check = |before: &[u16], wanted: &[u16], after: &[u16]| {
        assert_eq!(&*arrange(&list(before), list(wanted)), &*list(after), "{before:?} -> {wanted:?}");
    };
    check(&[], &[3, 1, 2], &[1, 2, 3]);
    check(&[1, 2, 3], &[1, 3, 4], &[1, 4, 3]);
    check(&[1, 2, 3, 4], &[1, 3, 4], &[1, 4, 3]);
    check(&[1, 2], &[3, 2, 1, 4], &[1, 2, 3, 4]);
    check(&[1, 2], &[], &[]);
}

fn index(objects: &[(&Service, &[EndpointSlice])]) -> Index {
    let mut index = Index::new("node1");
    for (service, slices) in objects {
        index.apply(Change::Service(service.name.clone(), Some((*service).clone())));
        for slice in *slices {
            index.apply(Change::EndpointSlice(slice.name.clone(), Some(slice.clone())));
        }
    }
    index
}

fn winner(desired: &Desired, at: &str) -> Option<String> {
    let at: SocketAddr = at.parse().unwrap();
    let key = Key { address: at.ip(), protocol: Protocol::Tcp, port: at.port() };
    desired.frontend(&key).map(|(_, s)| s.name.name.to_string())
}

#[test]
fn the_older_service_wins_and_the_loser_takes_over() {
    let (mut a, mut b) = (service("a", &["10.96.0.1"]), service("b", &["10.96.0.2"]));
    for s in [&mut a, &mut b] {
        s.external_ips = vec!["203.0.113.1".parse().unwrap()];
    }
    (a.created, b.created) = (2, 1);
    let mut index = index(&[(&a, &[]), (&b, &[])]);
    let (mut desired, changes) = Desired::from_scratch(&index, node(), Settings::default());
    assert_eq!(winner(&desired, "203.0.113.1:80").as_deref(), Some("b"));
    assert_eq!(changes.conflicts.len(), 1);
    assert_eq!(changes.conflicts[0].loser.name.as_ref(), "a");
    index.apply(Change::Service(b.name.clone(), None));
    desired.update(&index, index_dirty(&["b"]), Instant::now());
    assert_eq!(winner(&desired, "203.0.113.1:80").as_deref(), Some("a"));
    // A kind that ranks higher wins whatever the age.
    b.external_ips.clear();
    b.load_balancer_ips = vec!["203.0.113.1".parse().unwrap()];
    b.created = 9;
    index.apply(Change::Service(b.name.clone(), Some(b.clone())));
    desired.update(&index, index_dirty(&["b"]), Instant::now());
    assert_eq!(winner(&desired, "203.0.113.1:80").as_deref(), Some("b"));
}

fn index_dirty(names: &[&str]) -> Vec<ObjectName> {
    names.iter().map(|n| ObjectName::new("default", *n)).collect()
}

#[test]
fn another_services_cluster_ip_cannot_be_claimed() {
    let (a, mut evil) = (service("a", &["10.96.0.1"]), service("evil", &["10.96.0.2"]));
    evil.external_ips = vec!["10.96.0.1".parse().unwrap()];
    evil.ports = vec![port("http", 81, None)];
    // Whichever comes first.
    for order in [["a", "evil"], ["evil", "a"]] {
        let mut index = Index::new("node1");
        let (mut desired, _) = Desired::from_scratch(&index, node(), Settings::default());
        let mut conflicts = 0;
        for name in order {
            let service = if name == "a" { &a } else { &evil };
            index.apply(Change::Service(service.name.clone(), Some(service.clone())));
            conflicts += desired.update(&index, index_dirty(&[name]), Instant::now()).conflicts.len();
        }
        assert_eq!(winner(&desired, "10.96.0.1:81"), None, "a port that the owner does not even use");
        assert_eq!(conflicts, 1);
        index.apply(Change::Service(a.name.clone(), None));
        desired.update(&index, index_dirty(&["a"]), Instant::now());
        assert_eq!(winner(&desired, "10.96.0.1:81").as_deref(), Some("evil"));
        index.apply(Change::Service(a.name.clone(), Some(a.clone())));
        desired.update(&index, index_dirty(&["a"]), Instant::now());
        assert_eq!(winner(&desired, "10.96.0.1:81"), None);
    }
}

#[test]
fn a_change_changes_no_more_than_it_says() {
    let a = service("a", &["10.96.0.1"]);
    let b = service("b", &["10.96.0.2"]);
    let before = slice("s", "a", &[&format!("{A}@node1"), &format!("{B}@node2")]);
    let mut index = index(&[(&a, &[before]), (&b, &[])]);
    let (mut desired, _) = Desired::from_scratch(&index, node(), Settings::default());
    assert!(
        desired.update(&index, index_dirty(&["a", "b"]), Instant::now()).is_empty(),
        "worked out again, nothing new"
    );
    let after = slice("s", "a", &[&format!("{A}@node1"), &format!("{C}@node3")]);
    index.apply(Change::EndpointSlice(after.name.clone(), Some(after)));
    let changes = desired.update(&index, index_dirty(&["a"]), Instant::now());
    assert_eq!((changes.frontends.len(), changes.cluster_ips.len(), changes.hairpin.len()), (1, 0, 0));
    let (_, new) = changes.frontends.values().next().unwrap();
    assert_eq!(short(&new.as_ref().unwrap().inside), format!("{A} {C}"));
}

#[test]
fn affinity_shares_slots_between_addresses_and_keeps_scopes_apart() {
    let mut svc = service("a", &["10.96.0.1"]);
    svc.ports = vec![port("http", 80, Some(30080))];
    svc.affinity = Some(10800);
    svc.external_policy = TrafficPolicy::Local;
    let f = run(&svc, &[slice("s", "a", &[&format!("{A}@node1"), &format!("{B}@node2")])]);
    let (ip, np) = (of(&f, FrontendKind::ClusterIp), of(&f, FrontendKind::NodePort));
    assert_eq!(ip.inside, np.inside, "the same clients go to the same endpoints, whatever address they use");
    assert_eq!(short(&np.inside), format!("0:{A} 1:{B}"));
    let outside = np.outside.as_ref().unwrap();
    assert_eq!(short(outside), format!("0:{A}"));
    let id = |t: &Target| if let Target::Sticky(s) = t { s.id } else { panic!("{t:?}") };
    assert_ne!(id(&np.inside), id(outside), "outside clients are remembered apart");
}

#[test]
fn affinity_slots_stay_with_their_endpoints() {
    let mut a = service("a", &["10.96.0.1"]);
    a.affinity = Some(60);
    let endpoints = |list: &[&str]| slice("s", "a", list);
    let (x, y, z) = (format!("{A}@node1"), format!("{B}@node2"), format!("{C}@node3"));
    let mut index = index(&[(&a, &[endpoints(&[&x, &y])])]);
    let (mut desired, _) = Desired::from_scratch(&index, node(), Settings::default());
    let at = |desired: &Desired| {
        let key = Key { address: "10.96.0.1".parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
        short(&desired.frontend(&key).unwrap().0.inside)
    };
    assert_eq!(at(&desired), format!("0:{A} 1:{B}"));
    let start = Instant::now();
    let mut change = |desired: &mut Desired, list: &[&str], seconds| {
        let slice = endpoints(list);
        index.apply(Change::EndpointSlice(slice.name.clone(), Some(slice)));
        desired.update(&index, index_dirty(&["a"]), start + std::time::Duration::from_secs(seconds));
    };
    change(&mut desired, &[&y, &z], 1);
    assert_eq!(at(&desired), format!("1:{B} 2:{C}"), "the freed slot is not given to another");
    change(&mut desired, &[&y], 2);
    change(&mut desired, &[&y, &x], 62);
    assert_eq!(at(&desired), format!("0:{A} 1:{B}"), "until the timeout has passed");
}

#[test]
fn local_endpoints_are_counted_for_load_balancers_and_operators() {
    let mut lb = service("lb", &["10.96.0.1", "fd00:96::1"]);
    let locals = |service: &Service, slices: &[EndpointSlice]| {
        let slices: Vec<_> = slices.iter().cloned().map(Arc::new).collect();
        local(service, &slices, &node())
    };
    let here = slice(
        "s1",
        "lb",
        &["10.0.0.1@node1", "10.0.0.2@node1 !", "10.0.0.3@node1 t", "10.0.0.4@node2", "10.0.0.5@"],
    );
    // The same ready address again, and one that another slice says is not ready.
    let again = slice("s2", "lb", &["10.0.0.1@node1", "10.0.0.2@node1"]);
    let v6 = slice("s3", "lb", &["fd00::4@node2"]);
    let slices = [here, again, v6];
    assert_eq!(locals(&lb, &slices), Local::default(), "the Cluster policies need no local endpoints");
    lb.internal_policy = TrafficPolicy::Local;
    let expected = Local { without_internal: [0, 1], ..Local::default() };
    assert_eq!(locals(&lb, &slices), expected);
    lb.external_policy = TrafficPolicy::Local;
    lb.health_check_node_port = 32000.try_into().ok();
    let found = locals(&lb, &slices);
    assert_eq!(found.health_check.map(|h| (h.port.get(), h.endpoints)), Some((32000, [Some(2), Some(0)])));
    assert_eq!((found.without_internal, found.without_external), ([0, 1], [0, 1]));
    lb.cluster_ips.truncate(1);
    let found = locals(&lb, &slices);
    assert_eq!(found.health_check.map(|h| h.endpoints), Some([Some(2), None]), "no IPv6, no port there");
    assert_eq!(found.without_external, [0, 0]);
    assert_eq!(locals(&lb, &[]).without_internal, [0, 0], "without any endpoint nothing is missing here");
}

/// What of a frontend gets no new connection but keeps those that it has.
fn drains(frontend: &Frontend) -> String {
    frontend
        .draining
        .iter()
        .flat_map(|list| list.iter())
        .map(|e| e.ip().to_string())
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn endpoints_that_serve_but_get_nothing_new_are_known_as_draining() {
    let (cluster, local) = (TrafficPolicy::Cluster, TrafficPolicy::Local);
    for (endpoints, internal, external, inside, expected) in [
        // Nothing in the usual case.
        (&["A@node1", "B@node2"][..], cluster, cluster, "A B", ""),
        (&["A@node1 !", "B@node2"], cluster, cluster, "B", ""),
        (&["A@node1 T", "B@node2"], cluster, cluster, "B", ""),
        // Terminating, while others are ready; without others it is used.
        (&["A@node1 t", "B@node2"], cluster, cluster, "B", "A"),
        (&["A@node1 t", "B@node2 t"], cluster, cluster, "A B", ""),
        // Ruled out by hints or by the policy.
        (&["A@node1 z:zone-a", "B@node2 z:zone-b"], cluster, cluster, "A", "B"),
        (&["A@node1", "B@node2", "C@node2 t"], local, cluster, "A", "B C"),
        (&["B@node2"], local, cluster, "drop", "B"),
        (&["A@node1", "B@node2"], cluster, local, "A B", ""),
    ] {
        let endpoints: Vec<String> =
            endpoints.iter().map(|e| e.replace('A', A).replace('B', B).replace('C', C)).collect();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let mut svc = service("a", &["10.96.0.1"]);
        (svc.internal_policy, svc.external_policy) = (internal, external);
        svc.external_ips = vec!["203.0.113.2".parse().unwrap()];
        let f = run(&svc, &[slice("s", "a", &endpoints)]);
        let full = |text: &str| text.replace('A', A).replace('B', B).replace('C', C);
        let cluster_ip = of(&f, FrontendKind::ClusterIp);
        assert_eq!(short(&cluster_ip.inside), full(inside), "{endpoints:?}");
        assert_eq!(drains(cluster_ip), full(expected), "{endpoints:?}");
        let mut serving: Vec<_> = cluster_ip.serving().collect();
        serving.sort_unstable();
        let mut all: Vec<_> = of(&f, FrontendKind::ExternalIp).serving().collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(serving, all, "{endpoints:?}");
    }
}
