//! What `explain` says is what the rules do: on random clusters, packets are followed through the elements of the
//! plan.

#[path = "support/events.rs"]
#[allow(dead_code)] // Other tests use the rest.
mod events;
#[path = "support/tracer.rs"]
mod tracer;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use events::{Batch, batches, node, settings};
use proptest::prelude::*;
use sluice::cluster::{Family, Index, Protocol};
use sluice::dataplane::memory::Memory;
use sluice::dataplane::nftables::model::Element;
use sluice::dataplane::nftables::plan::{self, Observed};
use sluice::forwarding::explain::{Client, Explanation, Origin, Verdict, explain};
use sluice::forwarding::{Desired, Key, LocalDetection, Settings};
use tracer::{Packet, Tables, Trace};

/// This node's addresses, one of which looks like a pod's: a bridge has such.
const OWN: [&str; 4] = ["198.18.0.11", "10.128.0.7", "fd00:198:18::11", "fd00:10:128::7"];

/// Endpoints and other pods, this node, and outside clients of which some are in source ranges.
fn sources() -> Vec<IpAddr> {
    let pods = (0..8).flat_map(|n| [format!("10.128.0.{n}"), format!("fd00:10:128::{n}")]);
    let others = ["10.128.9.9", "fd00:10:128::9:9", "192.0.2.9", "10.1.2.3", "2001:db8::9", "fd00:5::5"];
    let all = pods.chain(others.map(str::to_owned)).chain(OWN.map(str::to_owned));
    all.map(|text| text.parse().expect("an address")).collect()
}

fn own() -> Vec<IpAddr> {
    OWN.iter().map(|text| text.parse().expect("an address")).collect()
}

/// Ways to tell pods from others.
fn any_settings() -> impl Strategy<Value = Settings> {
    let detection = prop_oneof![
        3 => Just(LocalDetection::Cidr),
        1 => Just(LocalDetection::None),
        1 => Just(LocalDetection::Bridge("cni0".into())),
        1 => Just(LocalDetection::InterfacePrefix("veth".into())),
    ];
    (detection, prop::bool::weighted(0.2)).prop_map(|(detection, masquerade_all)| {
        let mut settings = Settings { masquerade_all, ..settings() };
        // Of this node's addresses in service ranges none is dropped.
        settings.service_cidrs.push("198.18.0.0/24".parse().expect("a CIDR"));
        if detection != LocalDetection::Cidr {
            settings.pod_cidrs.clear();
        }
        settings.local_detection = [detection.clone(), detection];
        settings
    })
}

/// A cluster after these batches, and the tables of plans that were applied one after another.
fn apply(batches: Vec<Batch>, settings: &Settings) -> (Index, Desired, Observed) {
    let mut index = Index::new("node1");
    let (mut desired, _) = Desired::from_scratch(&index, node(), settings.clone());
    let structure = |family| plan::structure(settings, family);
    let mut memory = Memory::default();
    let (first, mut used) = plan::plan(&desired, &memory.observe(structure));
    memory.apply(&first).expect("a first load");
    let start = Instant::now();
    for (n, batch) in (0..).zip(batches) {
        batch.into_iter().for_each(|change| index.apply(change));
        let dirty = index.take_dirty().services;
        let changes = desired.update(&index, dirty, start + Duration::from_secs(2 * n));
        memory.apply(&plan::plan_changes(&changes, &Family::ALL, &mut used)).expect("a change");
    }
    (index, desired, memory.observe(structure))
}

/// Everything that is served, ports beside it, and addresses of nobody.
fn keys(tables: &Tables, family: Family) -> BTreeSet<Key> {
    let mut keys: BTreeSet<Key> = tables.keys().collect();
    let beside: Vec<Key> = keys.iter().map(|key| Key { port: key.port ^ 1, ..*key }).collect();
    keys.extend(beside);
    let addresses = match family {
        Family::Ipv4 => {
            ["10.96.0.0", "10.96.0.1", "10.97.0.1", "203.0.113.1", "198.18.0.11", "198.18.0.12", "8.8.8.8"]
                .as_slice()
        }
        Family::Ipv6 => &["fd00:10:96::1", "fd00:10:96::77", "fd00:203::1", "fd00:198:18::11", "2001:db8::1"],
    };
    for address in addresses {
        let address = address.parse().expect("an address");
        for (protocol, port) in [(Protocol::Tcp, 80), (Protocol::Udp, 53), (Protocol::Tcp, 30001)] {
            keys.insert(Key { address, protocol, port });
        }
    }
    keys
}

/// What is said, in the tracer's terms.
fn said(explanation: &Explanation) -> Trace {
    let [answer] = explanation.answers.as_slice() else { panic!("one client, one answer: {explanation:?}") };
    match answer.verdict {
        Verdict::Forwarded => {
            let share = 100.0 / answer.endpoints.len() as f64;
            assert_eq!(answer.share_percent, Some(share));
            let always = answer.masqueraded.is_some();
            let each = answer.endpoints.iter().map(|e| (e.address, (1, always || e.hairpin)));
            Trace::Forwarded(each.collect::<BTreeMap<_, _>>())
        }
        Verdict::Refused => Trace::Refused,
        Verdict::Dropped => Trace::Dropped,
        Verdict::Untouched => Trace::Untouched,
    }
}

/// What was met, so that a property that meets nothing is noticed.
type Met = BTreeSet<&'static str>;

fn compare(
    family: Family,
    (index, desired): (&Index, &Desired),
    elements: Vec<Element>,
    met: &mut Met,
) -> Result<(), TestCaseError> {
    let own = own();
    let tables = Tables::new(plan::structure(desired.settings(), family), elements);
    for key in keys(&tables, family) {
        for source in sources().into_iter().filter(|source| Family::of(*source) == family) {
            let client = Client::at(source, &own, desired.settings(), index);
            let packet = Packet {
                key,
                source,
                // A packet's interface is a fact of its own; a client's address says as much as it can.
                from_pod_interface: client.origin == Origin::Pod,
                source_is_local: own.contains(&source),
                destination_is_local: own.contains(&key.address),
            };
            let explanation = explain(desired, index, key, &own, &[client]);
            let traced = tables.trace(&packet);
            prop_assert_eq!(said(&explanation), traced.clone(), "{:?} {:#?}", packet, explanation);
            note(&traced, met);
            if matches!(traced, Trace::Forwarded(_)) {
                let affinity = explanation.winner.and_then(|winner| winner.affinity_seconds);
                prop_assert_eq!(affinity, tables.timeout(&key), "{}", key);
            }
        }
        clients_of_no_address(&tables, (index, desired), key)?;
    }
    Ok(())
}

/// What is said of a pod, this node and an outside client is what one of each experiences, where everybody may
/// connect.
fn clients_of_no_address(
    tables: &Tables,
    (index, desired): (&Index, &Desired),
    key: Key,
) -> Result<(), TestCaseError> {
    let v4 = key.address.is_ipv4();
    for client in Client::each(desired.settings(), key.family()) {
        let explanation = explain(desired, index, key, &own(), &[client]);
        if explanation.winner.as_ref().is_some_and(|winner| winner.sources.is_some()) {
            continue;
        }
        let source = match (client.origin, v4) {
            (Origin::Pod, true) => "10.128.9.9",
            (Origin::Pod, false) => "fd00:10:128::9:9",
            (Origin::Node, true) => "198.18.0.11",
            (Origin::Node, false) => "fd00:198:18::11",
            (Origin::Outside, true) => "192.0.2.9",
            (Origin::Outside, false) => "2001:db8::9",
        };
        let packet = Packet {
            key,
            source: source.parse().expect("an address"),
            from_pod_interface: client.origin == Origin::Pod,
            source_is_local: client.origin == Origin::Node,
            destination_is_local: own().contains(&key.address),
        };
        // This one is no endpoint, so it does not reach itself.
        let mut told = explanation.clone();
        told.answers.iter_mut().flat_map(|a| &mut a.endpoints).for_each(|e| e.hairpin = false);
        prop_assert_eq!(said(&told), tables.trace(&packet), "{:?} {:#?}", packet, explanation);
    }
    Ok(())
}

fn note(trace: &Trace, met: &mut Met) {
    match trace {
        Trace::Forwarded(to) => {
            for (_, masqueraded) in to.values() {
                met.insert(if *masqueraded { "masqueraded" } else { "source kept" });
            }
        }
        Trace::Refused => {
            met.insert("refused");
        }
        Trace::Dropped => {
            met.insert("dropped");
        }
        Trace::Untouched => {
            met.insert("untouched");
        }
    }
}

#[test]
fn the_rules_do_what_explain_says() {
    let mut runner =
        proptest::test_runner::TestRunner::new(ProptestConfig { cases: 60, ..ProptestConfig::default() });
    let met = std::cell::RefCell::new(Met::new());
    let outcome = runner.run(&(batches(1..30), any_settings()), |(batches, settings)| {
        let (index, desired, observed) = apply(batches, &settings);
        for (family, table) in observed {
            let elements = table.expect("a table").elements.into_iter().collect();
            compare(family, (&index, &desired), elements, &mut met.borrow_mut())?;
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    let all = ["dropped", "masqueraded", "refused", "source kept", "untouched"];
    assert_eq!(met.into_inner().into_iter().collect::<Vec<_>>(), all);
}

fn sluice(arguments: &str) -> (Option<i32>, String) {
    let manifests =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/clusters/policies/manifests");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_sluice"))
        .arg("explain")
        .args(arguments.split_whitespace())
        .arg("--manifests")
        .arg(manifests)
        .args(["--node-name=node1", "--cluster-cidr=10.128.0.0/16"])
        .output()
        .expect("sluice runs");
    (output.status.code(), String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn the_exit_status_says_whether_somebody_answers() {
    for (arguments, status) in [
        ("10.96.0.11:80", 0),
        ("203.0.113.11:80 --from 10.1.2.3", 0),
        ("203.0.113.11:80 --from 192.0.2.9", 1),
        ("198.18.0.11:30082", 0),
        ("198.18.0.11:30082 --from 192.0.2.9", 1),
        ("10.96.0.13:80", 1),
        ("10.96.0.11:80/udp", 1),
        ("8.8.8.8:53 --format=json", 1),
        ("10.96.0.11", 2),
        ("10.96.0.11:80 --from fd00::1", 2),
        ("10.96.0.11:80 --config /does/not/exist", 2),
    ] {
        assert_eq!(sluice(arguments).0, Some(status), "{arguments}");
    }
}

#[test]
fn the_words() {
    let (_, words) = sluice("203.0.113.11:80");
    let expected = "\
203.0.113.11:80/tcp is served as load-balancer address of default/here
  only for 10.0.0.0/8, 198.18.0.0/16; others are dropped

From a pod:
  forwarded to one of 2 endpoints, 50% each
    10.128.0.65:8080 on node1
    10.128.1.5:8080 on node2
  masqueraded only where a pod reaches itself: 10.128.0.65

From this node:
  forwarded to one of 2 endpoints, 50% each
    10.128.0.65:8080 on node1
    10.128.1.5:8080 on node2
  masqueraded: this node's own connection to an external address

From an outside client:
  forwarded to 1 endpoint
    10.128.0.65:8080 on node1
  not masqueraded: the endpoint sees the client's address
  left out, not on this node (policy Local): 10.128.1.5:8080
";
    assert_eq!(words, expected);
    let (_, json) = sluice("203.0.113.11:80 --format json");
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let verdicts: Vec<_> =
        json["answers"].as_array().expect("a list").iter().map(|a| &a["verdict"]).collect();
    assert_eq!(verdicts, ["forwarded"; 3]);
}

#[test]
fn node_ports_on_loopback_are_this_hosts_and_tcp() {
    let at = |what: &str| sluice(&format!("{what} --nodeport-addresses=localhost"));
    let (status, words) = at("127.0.0.1:30082");
    let expected = "\
127.0.0.1:30082/tcp is served as NodePort of default/away

From a pod or an outside client:
  left alone: this is the client's own loopback address

From this node:
  forwarded to 1 endpoint
    10.128.1.5:8080 on node2
  masqueraded: relayed by the agent, which makes a connection of its own
";
    assert_eq!((status, &*words), (Some(0), expected));
    let (status, words) = at("127.0.0.1:30082/udp --from 127.0.0.1");
    assert_eq!(status, Some(1));
    assert!(words.contains("NodePorts on loopback addresses are served for TCP only"), "{words}");
    assert_eq!(sluice("127.0.0.1:30082").0, Some(1), "not by default");
    assert_eq!(at("198.18.0.11:30082").0, Some(1), "there only");
}

#[test]
fn claims_that_flags_refuse_are_named() {
    let (status, words) = sluice("203.0.113.11:80 --allowed-load-balancer-ips=203.0.113.0/29,fd00::/8");
    assert_eq!(status, Some(1));
    let claimed = "claimed by default/here as load-balancer address: refused by --allowed-load-balancer-ips";
    assert!(words.contains(claimed), "{words}");
    assert_eq!(sluice("203.0.113.11:80 --allowed-load-balancer-ips=203.0.113.0/28").0, Some(0));
    assert_eq!(sluice("203.0.113.11:80 --allowed-external-ips=none").0, Some(0), "it is none");
    assert_eq!(sluice("203.0.113.11:80 --allowed-external-ips=some").0, Some(2));
}
