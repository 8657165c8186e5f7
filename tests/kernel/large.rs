//! Tables that are too large to be dumped are read by look-ups, and nothing escapes those.

use std::collections::BTreeSet;
use std::time::Instant;

use sluice::cluster::{Change, Family, Index, Interner, TrafficPolicy};
use sluice::dataplane::DataPlane;
use sluice::dataplane::nftables::decode::{all_elements, observe};
use sluice::dataplane::nftables::element::Decoded;
use sluice::dataplane::nftables::model::{Element, Set};
use sluice::dataplane::nftables::plan::{self, Plan};
use sluice::dataplane::nftables::{Nftables, lookup, schema};
use sluice::forwarding::Desired;
use sluice::netlink::Socket;

use super::space::{in_new_namespace, nft};
use super::synthetic;

const SERVICES: u32 = 4_100;

/// Many plain Services, and some whose endpoints are reached in other ways.
fn index() -> Index {
    let mut index = Index::new("node-1");
    let mut names = Interner::default();
    for number in 0..SERVICES {
        let mut change = synthetic::service(&mut names, number);
        if let Change::Service(_, Some(service)) = &mut change {
            service.affinity = (number % 1000 < 6).then_some(60);
            if number % 1000 < 12 {
                service.load_balancer_ips =
                    vec![[203, 0, 113, (number / 1000 * 20 + number % 1000) as u8].into()];
                service.external_policy = [TrafficPolicy::Cluster, TrafficPolicy::Local][number as usize % 2];
            }
        }
        index.apply(change);
        index.apply(synthetic::slice(&mut names, number, 10, 0));
    }
    index.take_dirty();
    index
}

/// What a new agent would do.
fn after_a_restart(index: &Index) -> Plan {
    let mut plane = Nftables::open().unwrap();
    let observed = plane.observe(&synthetic::settings()).unwrap();
    let adopted = plane.adopt(&observed);
    let (desired, _) =
        Desired::adopting(index, synthetic::node(), synthetic::settings(), adopted, Instant::now());
    plane.plan(&desired, &observed)
}

/// The endpoints by look-ups and by a dump.
fn both_ways() -> (Option<Vec<Element>>, Vec<Element>) {
    let mut socket = Socket::open().unwrap();
    let mut elements = |sets: &[Set]| -> Vec<Element> {
        let decoded = all_elements(&mut socket, Family::Ipv4, sets, 20).unwrap();
        decoded.into_iter().filter_map(|d| if let Decoded::Element(e) = d { Some(e) } else { None }).collect()
    };
    let others: Vec<Set> = schema::sets(&plan::structure(&synthetic::settings(), Family::Ipv4))
        .filter(|set| *set != Set::Endpoints)
        .collect();
    let others = elements(&others).into_iter().collect();
    let dumped = elements(&[Set::Endpoints]);
    let count = observe(&mut socket, Family::Ipv4).unwrap().unwrap().count(Set::Endpoints);
    let found = lookup::endpoints(&mut socket, Family::Ipv4, &others, count.expect("kernel 6.18")).unwrap();
    (found, dumped)
}

#[test]
fn look_ups_find_what_a_dump_finds() {
    in_new_namespace(|| {
        let index = index();
        let plan = after_a_restart(&index);
        Nftables::open().unwrap().apply(&plan).unwrap();
        let (found, dumped) = both_ways();
        assert!(dumped.len() > 41_000, "above the size from which on look-ups are used");
        let set = |elements: Vec<Element>| elements.into_iter().collect::<BTreeSet<_>>();
        assert_eq!(found.map(set), Some(set(dumped)));
        assert!(after_a_restart(&index).is_empty(), "a restart writes nothing");

        let name = "ip sluice endpoints";
        let (key, endpoint) = ("10.96.0.100 . tcp . 80", "10.128.3.229 . 8080");
        nft(&["delete", "element", name, &format!("{{ {key} . 3 }}")], "");
        assert_eq!(both_ways().0, None, "one is not there");
        let steps = |expected: std::ops::Range<usize>| {
            let plan = after_a_restart(&index);
            assert!(expected.contains(&plan.len()), "only that Service is put right: {plan}");
        };
        // Its list closes up.
        steps(1..20);
        nft(&["add", "element", name, &format!("{{ {key} . 99 : {endpoint} }}")], "");
        assert_eq!(both_ways().0, None, "as many as there should be, but another");
        steps(2..21);
        Nftables::open().unwrap().apply(&after_a_restart(&index)).unwrap();
        assert!(after_a_restart(&index).is_empty());
        nft(&["add", "element", name, &format!("{{ {key} . 99 : {endpoint} }}")], "");
        assert_eq!(both_ways().0, None, "one too many");
        steps(1..2);
    });
}
