//! What is said about an address, case by case.

use std::net::IpAddr;

use super::*;
use crate::cluster::Scheduler;
use crate::forwarding::explain::{
    Answer, Client, Explanation, Masqueraded, Origin, Reason, Verdict, explain,
};

const OWN: &str = "198.18.0.11";

fn settings() -> Settings {
    Settings {
        local_detection: [LocalDetection::Cidr, LocalDetection::Cidr],
        pod_cidrs: vec!["10.128.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "198.18.0.0/24".parse().unwrap()],
        masquerade_all: false,
        ..Settings::default()
    }
}

/// What is said about `ADDRESS:PORT` to each origin, or to the client `from`.
fn ask(
    at: &str,
    from: Option<&str>,
    settings: Settings,
    objects: &[(&Service, &[EndpointSlice])],
) -> Explanation {
    let at: SocketAddr = at.parse().unwrap();
    let key = Key { address: at.ip(), protocol: Protocol::Tcp, port: at.port() };
    let index = index(objects);
    let (desired, _) = Desired::from_scratch(&index, node(), settings);
    let own: [IpAddr; 1] = [OWN.parse().unwrap()];
    let clients = match from {
        Some(address) => vec![Client::at(address.parse().unwrap(), &own, desired.settings(), &index)],
        None => Client::each(desired.settings(), key.family()).into(),
    };
    explain(&desired, &index, key, &own, &clients)
}

fn used(answer: &Answer) -> String {
    answer.endpoints.iter().map(|e| e.address.ip().to_string()).collect::<Vec<_>>().join(" ")
}

fn left_out(answer: &Answer) -> String {
    let unused = |u: &crate::forwarding::explain::Unused| format!("{} {:?}", u.address, u.because);
    answer.left_out.iter().map(unused).collect::<Vec<_>>().join(", ")
}

#[test]
fn every_endpoint_that_is_left_out_has_its_reason() {
    let (cluster, local) = (TrafficPolicy::Cluster, TrafficPolicy::Local);
    for (policy, endpoints, expected, reasons) in [
        (cluster, &["A@node1", "B@node2"][..], "A B", ""),
        (cluster, &["A@node1 !", "B@node2", "C@node3 T"], "B", "A NotReady, C Terminated"),
        (cluster, &["A@node1 t", "B@node2"], "B", "A Terminating"),
        (cluster, &["A@node1 t", "B@node2 t", "C@node2 !"], "A B", "C NotReady"),
        (cluster, &["A@node1 z:zone-a", "B@node2 z:zone-b"], "A", "B HintedForAnotherZone"),
        (cluster, &["A@node1 z:zone-a", "B@node2"], "A B", ""),
        (cluster, &["A@node1 n:node1", "B@node2 n:node2"], "A", "B HintedForAnotherNode"),
        (cluster, &["A@node1 z:zone-a", "B@node2 t z:zone-b"], "A", "B Terminating"),
        (local, &["A@node1", "B@node2", "C@node1 !"], "A", "C NotReady, B NotOnThisNode"),
        (local, &["A@node1 t", "B@node2"], "A", "B NotOnThisNode"),
        (local, &["A@node1 t", "B@node1"], "B", "A Terminating"),
        (local, &["B@node2"], "", "B NotOnThisNode"),
    ] {
        let full = |text: &str| text.replace('A', self::A).replace('B', self::B).replace('C', self::C);
        let list: Vec<String> = endpoints.iter().map(|e| full(e)).collect();
        let list: Vec<&str> = list.iter().map(String::as_str).collect();
        let mut svc = service("a", &["10.96.0.1"]);
        svc.internal_policy = policy;
        let told = ask("10.96.0.1:80", None, settings(), &[(&svc, &[slice("s", "a", &list)])]);
        for answer in &told.answers {
            assert_eq!(used(answer), full(expected), "{policy:?} {endpoints:?}");
            let reasons: Vec<String> = reasons
                .split_terminator(", ")
                .map(|text| text.split_once(' ').map(|(a, why)| format!("{} {why}", full(a))).unwrap())
                .collect();
            assert_eq!(left_out(answer), reasons.join(", "), "{policy:?} {endpoints:?}");
            let n = answer.endpoints.len();
            assert_eq!(answer.share_percent, (n > 0).then(|| 100.0 / n as f64));
        }
    }
}

#[test]
fn what_slices_list_besides_is_told() {
    let svc = service("a", &["10.96.0.1", "fd00:10:96::1"]);
    let first = slice("s1", "a", &[&format!("{A}@node1 !"), &format!("{B}@node2")]);
    let again = slice("s2", "a", &[&format!("{A}@node1")]);
    let six = slice("s3", "a", &["fd00:10:128::5@node1"]);
    let mut other = slice("s4", "a", &[&format!("{C}@node3")]);
    other.ports[0].name = "metrics".into();
    let told = ask("10.96.0.1:80", Some("192.0.2.9"), settings(), &[(&svc, &[first, again, six, other])]);
    let [answer] = told.answers.as_slice() else { panic!("{told:?}") };
    assert_eq!(used(answer), format!("{A} {B}"), "the entry that is ready counts");
    assert_eq!(left_out(answer), format!("fd00:10:128::5 OtherFamily, {C} NoSuchPort, {A} Duplicate"));
}

/// For a pod, this node and an outside client: the verdict, the endpoints, and why it is masqueraded.
type Experience = (Verdict, &'static str, Option<Masqueraded>);

/// Where to, externalTrafficPolicy, endpoints.
type Case = (&'static str, Settings, TrafficPolicy, &'static [&'static str], [Experience; 3]);

#[test]
fn clients_differ_by_policy_and_masquerade() {
    use Masqueraded::{All, External, OffCluster, Own};
    use Verdict::{Dropped, Forwarded};
    let no_detection = Settings { local_detection: Default::default(), ..settings() };
    let all = Settings { masquerade_all: true, ..settings() };
    let (cluster, local) = (TrafficPolicy::Cluster, TrafficPolicy::Local);
    let both = "10.128.0.65 10.128.1.5";
    let cases: Vec<Case> = vec![
        (
            "10.96.0.1:80",
            settings(),
            cluster,
            &["10.128.0.65@node1", "10.128.1.5@node2"],
            [
                (Forwarded, both, None),
                (Forwarded, both, Some(OffCluster)),
                (Forwarded, both, Some(OffCluster)),
            ],
        ),
        ("10.96.0.1:80", all, cluster, &["10.128.1.5@node2"], [(Forwarded, "10.128.1.5", Some(All)); 3]),
        (
            "10.96.0.1:80",
            no_detection.clone(),
            cluster,
            &["10.128.1.5@node2"],
            [(Forwarded, "10.128.1.5", None); 3],
        ),
        (
            "203.0.113.2:80",
            settings(),
            cluster,
            &["10.128.1.5@node2"],
            [(Forwarded, "10.128.1.5", Some(External)); 3],
        ),
        (
            "203.0.113.2:80",
            settings(),
            local,
            &["10.128.0.65@node1", "10.128.1.5@node2"],
            [(Forwarded, both, None), (Forwarded, both, Some(Own)), (Forwarded, "10.128.0.65", None)],
        ),
        (
            "198.18.0.11:30080",
            settings(),
            local,
            &["10.128.1.5@node2"],
            [(Forwarded, "10.128.1.5", None), (Forwarded, "10.128.1.5", Some(Own)), (Dropped, "", None)],
        ),
        (
            "198.18.0.11:30080",
            no_detection,
            local,
            &["10.128.1.5@node2"],
            [(Dropped, "", None), (Forwarded, "10.128.1.5", Some(Own)), (Dropped, "", None)],
        ),
    ];
    for (at, settings, external, endpoints, expected) in cases {
        let mut svc = service("a", &["10.96.0.1"]);
        svc.ports = vec![port("http", 80, Some(30080))];
        svc.external_ips = vec!["203.0.113.2".parse().unwrap()];
        svc.external_policy = external;
        let told = ask(at, None, settings, &[(&svc, &[slice("s", "a", endpoints)])]);
        let got: Vec<_> = told.answers.iter().map(|a| (a.verdict, used(a), a.masqueraded)).collect();
        let expected = expected.map(|(verdict, endpoints, why)| (verdict, endpoints.to_owned(), why));
        assert_eq!(got, expected, "{at} {external:?}");
        assert!(told.is_served());
    }
}

#[test]
fn the_address_of_a_client_decides() {
    let mut svc = service("a", &["10.96.0.1"]);
    svc.load_balancer_ips = vec!["203.0.113.1".parse().unwrap()];
    svc.external_policy = TrafficPolicy::Local;
    svc.source_ranges = vec!["192.0.2.0/24".parse().unwrap(), "10.128.0.0/24".parse().unwrap()];
    let slices = [slice("s", "a", &[&format!("{A}@node1"), &format!("{B}@node2")])];
    for (from, origin, verdict, endpoints, hairpins) in [
        ("192.0.2.9", Origin::Outside, Verdict::Forwarded, A.to_owned(), 0),
        ("10.128.0.66", Origin::Pod, Verdict::Forwarded, format!("{A} {B}"), 0),
        (A, Origin::Pod, Verdict::Forwarded, format!("{A} {B}"), 1),
        (B, Origin::Pod, Verdict::Dropped, String::new(), 0),
        (OWN, Origin::Node, Verdict::Dropped, String::new(), 0),
        ("203.0.113.99", Origin::Outside, Verdict::Dropped, String::new(), 0),
    ] {
        let told = ask("203.0.113.1:80", Some(from), settings(), &[(&svc, &slices)]);
        let [answer] = told.answers.as_slice() else { panic!("{told:?}") };
        assert_eq!(
            (answer.client.origin, answer.verdict, used(answer)),
            (origin, verdict, endpoints),
            "{from}"
        );
        assert_eq!(answer.endpoints.iter().filter(|e| e.hairpin).count(), hairpins, "{from}");
        let reason = (verdict == Verdict::Dropped).then_some(Reason::SourceNotAllowed);
        assert_eq!(answer.reason, reason, "{from}");
    }
    // Nothing but the interface tells a pod where detection goes by it.
    let bridge = LocalDetection::Bridge("cni0".into());
    let settings = Settings { local_detection: [bridge.clone(), bridge], pod_cidrs: vec![], ..settings() };
    let of = |from| ask("10.96.0.1:80", Some(from), settings.clone(), &[(&svc, &slices)]).answers[0].clone();
    assert_eq!(
        (of(A).client.origin, of(A).client.counts_as_pod),
        (Origin::Pod, true),
        "an endpoint on this node"
    );
    assert_eq!(of(A).masqueraded, None);
    assert_eq!(of(B).client.origin, Origin::Outside, "one on another node comes in from outside");
    assert_eq!(of(B).masqueraded, Some(Masqueraded::OffCluster));
}

#[test]
fn what_nobody_serves_is_refused_dropped_or_left_alone() {
    let svc = service("a", &["10.96.0.1"]);
    let local = TrafficPolicy::Local;
    let mut away = service("away", &["10.96.0.2"]);
    away.internal_policy = local;
    let slices = [slice("s", "away", &[&format!("{B}@node2")])];
    for (at, verdict, reason) in [
        ("10.96.0.1:80", Verdict::Refused, Reason::NoEndpoints),
        ("10.96.0.1:81", Verdict::Refused, Reason::NoSuchPort),
        ("10.96.0.2:80", Verdict::Dropped, Reason::NoLocalEndpoints),
        ("10.96.0.3:80", Verdict::Dropped, Reason::NotAllocated),
        ("198.18.0.12:80", Verdict::Dropped, Reason::NotAllocated),
        // In a service range, too, but this node's.
        ("198.18.0.11:80", Verdict::Untouched, Reason::NotOurs),
        ("203.0.113.1:80", Verdict::Untouched, Reason::NotOurs),
    ] {
        let told = ask(at, None, settings(), &[(&svc, &[]), (&away, &slices)]);
        for answer in &told.answers {
            assert_eq!((answer.verdict, answer.reason), (verdict, Some(reason)), "{at}");
        }
        assert!(!told.is_served());
        let owner = told.cluster_ip_of.first().map(|o| (o.service.name.to_string(), o.ports.join(" ")));
        let expected = match at.split(':').next() {
            Some("10.96.0.1") => Some(("a".to_owned(), "80/tcp".to_owned())),
            Some("10.96.0.2") => Some(("away".to_owned(), "80/tcp".to_owned())),
            _ => None,
        };
        assert_eq!(owner, expected, "{at}");
    }
}

#[test]
fn who_else_claims_an_address_is_told() {
    let (mut a, mut b, mut c) =
        (service("a", &["10.96.0.1"]), service("b", &["10.96.0.2"]), service("c", &["10.96.0.3"]));
    (a.created, b.created, c.created) = (3, 2, 1);
    a.load_balancer_ips = vec!["203.0.113.1".parse().unwrap()];
    for s in [&mut b, &mut c] {
        s.external_ips = vec!["203.0.113.1".parse().unwrap(), "10.96.0.1".parse().unwrap()];
    }
    // The same address twice in one Service is no contest.
    a.external_ips = vec!["203.0.113.1".parse().unwrap()];
    b.affinity = Some(60);
    let objects: [(&Service, &[EndpointSlice]); 3] = [(&a, &[]), (&b, &[]), (&c, &[])];
    let told = |at| ask(at, None, settings(), &objects);
    let losers = |told: &Explanation| {
        told.losers
            .iter()
            .map(|l| format!("{}{}", l.service.name, if l.refused { "!" } else { "" }))
            .collect::<Vec<_>>()
    };
    let lb = told("203.0.113.1:80");
    let winner = lb.winner.clone().unwrap();
    assert_eq!(
        (&*winner.service.name, winner.kind, &*winner.port),
        ("a", FrontendKind::LoadBalancer, "http")
    );
    assert_eq!(losers(&lb), ["c", "b"], "the older one first");
    let ip = told("10.96.0.1:80");
    assert_eq!(ip.winner.as_ref().map(|w| w.kind), Some(FrontendKind::ClusterIp));
    assert_eq!(losers(&ip), ["b!", "c!"]);
    assert_eq!(told("10.96.0.2:80").winner.unwrap().affinity_seconds, Some(60));
}

#[test]
fn the_fields_of_the_json_form_stay() {
    let svc = service("a", &["10.96.0.1"]);
    let slices = [slice("s", "a", &[&format!("{A}@node1"), &format!("{B}@node2 !")])];
    let told = ask("10.96.0.1:80", Some(A), settings(), &[(&svc, &slices)]);
    let expected = serde_json::json!({
        "destination": "10.96.0.1:80/tcp",
        "winner": {
            "service": "default/a", "port": "http", "kind": "cluster-ip", "affinitySeconds": null, "sources": null,
        },
        "losers": [],
        "clusterIpOf": [{"service": "default/a", "ports": ["80/tcp"]}],
        "answers": [{
            "client": {"origin": "pod", "address": A, "countsAsPod": true, "countsAsNode": false},
            "verdict": "forwarded",
            "reason": null,
            "policy": "Cluster",
            "scheduler": null,
            "sharePercent": 100.0,
            "endpoints": [
                {"address": "10.128.0.65:8080", "node": "node1", "because": "ready", "hairpin": true},
            ],
            "leftOut": [{"because": "not-ready", "address": B, "port": 8080}],
            "masqueraded": null,
        }],
    });
    assert_eq!(serde_json::to_value(&told).unwrap(), expected);
}

#[test]
fn mode_ipvs_has_schedulers_and_the_nodes_own_source() {
    let settings = || Settings { ipvs: Some(Scheduler::Rr), ..settings() };
    let mut svc = service("a", &["10.96.0.1"]);
    svc.external_ips = vec!["203.0.113.2".parse().unwrap()];
    svc.external_policy = TrafficPolicy::Local;
    let slices = [slice("s", "a", &[&format!("{A}@node1"), &format!("{B}@node2")])];
    let by = |told: &Explanation| -> Vec<_> {
        told.answers.iter().map(|a| (a.scheduler, a.share_percent, a.masqueraded)).collect()
    };
    let off_cluster = Some(Masqueraded::OffCluster);
    let told = ask("10.96.0.1:80", None, settings(), &[(&svc, &slices)]);
    let rr = |why| (Some("rr"), Some(50.0), why);
    assert_eq!(by(&told), [rr(None), rr(off_cluster), rr(off_cluster)]);
    let undetected = Settings { local_detection: Default::default(), ..settings() };
    let told = ask("10.96.0.1:80", None, undetected, &[(&svc, &slices)]);
    assert_eq!(by(&told), [rr(None), rr(Some(Masqueraded::OwnByIpvs)), rr(None)]);
    svc.scheduler = Some(Scheduler::Wlc);
    let told = ask("10.96.0.1:80", Some(A), settings(), &[(&svc, &slices)]);
    assert_eq!(by(&told), [(Some("wlc"), None, None)]);
    // At such an address the tables translate for pods and the node.
    let told = ask("203.0.113.2:80", None, settings(), &[(&svc, &slices)]);
    let inside = |why| (None, Some(50.0), why);
    assert_eq!(by(&told), [inside(None), inside(Some(Masqueraded::Own)), (Some("wlc"), None, None)]);
    let told = ask("203.0.113.2:81", None, settings(), &[(&svc, &slices)]);
    let refused = |a: &Answer| (a.verdict, a.reason) == (Verdict::Refused, Some(Reason::OtherPorts));
    assert!(told.answers.iter().all(refused), "{told:?}");
}
