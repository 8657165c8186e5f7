use crate::forwarding::{Adopted, Masquerade, Target};

use super::*;

const VIP: &str = "10.96.0.10:53";
const CLIENT: &str = "198.51.100.7";

fn key(protocol: Protocol) -> Key {
    let vip: SocketAddr = VIP.parse().unwrap();
    Key { address: vip.ip(), protocol, port: vip.port() }
}

/// `E1`, `E2` and so on are endpoints, `V` is the frontend's own address, `X` is nobody we know.
fn address(name: &str) -> SocketAddr {
    match name.split_at(1) {
        ("E", number) => format!("10.128.0.{number}:5353").parse().unwrap(),
        ("V", _) => VIP.parse().unwrap(),
        _ => "192.0.2.99:53".parse().unwrap(),
    }
}

/// A frontend from `E1 E2 | outside: E1 | draining: E3 | sources: 10.0.0.0/8`; `none` is no frontend.
fn frontend(text: &str) -> Option<Frontend> {
    if text == "none" {
        return None;
    }
    let list = |names: &str| names.split_whitespace().map(address).collect::<Usable>();
    let target = |names: &str| match list(names) {
        list if list.is_empty() => Target::Refuse,
        list => Target::Endpoints(list),
    };
    let mut parts = text.split('|');
    let mut frontend = Frontend {
        inside: target(parts.next().unwrap()),
        outside: None,
        masquerade: Masquerade::OffCluster,
        sources: None,
        draining: None,
        scheduler: None,
    };
    for part in parts {
        match part.split_once(':').unwrap() {
            (" outside", names) => frontend.outside = Some(target(names)),
            (" draining", names) => frontend.draining = Some(list(names)),
            (_, nets) => {
                frontend.sources = Some(nets.split_whitespace().map(|n| n.parse().unwrap()).collect())
            }
        }
    }
    Some(frontend)
}

fn change(protocol: Protocol, before: &str, after: &str) -> Changes {
    let mut changes = Changes::default();
    changes.frontends.insert(key(protocol), (frontend(before), frontend(after)));
    changes
}

fn stale(protocol: Protocol, before: &str, after: &str) -> Stale {
    Stale::new(&change(protocol, before, after), &Known::default())
}

fn flow(protocol: Protocol, reply_source: &str) -> Flow {
    let reply_source = address(reply_source);
    Flow { destination: key(protocol), source: CLIENT.parse().unwrap(), reply_source, half_open: false }
}

/// Which of the flows to these are stale.
fn found(stale: &Stale, protocol: Protocol) -> String {
    let names = ["E1", "E2", "E3", "V", "X"];
    let names = names.into_iter().filter(|name| stale.covers(&flow(protocol, name)));
    names.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_flow_is_stale_when_what_it_goes_to_is_no_longer_there() {
    for (before, after, expected) in [
        // Endpoints go and come.
        ("E1 E2", "E2", "E1"),
        ("E1 E2", "E1 E3", "E2"),
        ("E1", "E1 E2", ""),
        ("E1 E2", "E2 E1", ""),
        ("E1", "", "E1"),
        ("E1 E2", "none", "E1 E2"),
        // Terminating, but serving: until it is gone, or serves no more.
        ("E1 E2", "E2 | draining: E1", ""),
        ("E2 | draining: E1", "E2", "E1"),
        ("E2 | draining: E1", "E1 E2", ""),
        ("E1 | draining: E2", "none", "E1 E2"),
        ("E1", " | draining: E1", ""),
        // Local policy: each side's endpoints may have each side's flows.
        ("E1 E2 | outside: E1", "E1 E2 | outside: E2", ""),
        ("E1 E2 | outside: E1", "E2 | outside: ", "E1"),
        ("E1 | outside: E3", "E1", "E3"),
        ("E1", "E2 | outside: E1", ""),
        // Flows that are older than the frontend, or than its first endpoint.
        ("none", "E1", "V"),
        ("none", "", "V"),
        ("", "E1", "V"),
        ("", " | outside: ", ""),
        ("E1", "E2", "E1"),
        // An endpoint that is the frontend's own address is not untranslated.
        ("none", "E1 V", ""),
        ("V", "E1", "V"),
        // The same frontend of another Service.
        ("E1 | sources: 198.51.100.0/24", "E2", "E1"),
        // Source ranges.
        ("E1", "E1 | sources: 10.0.0.0/8", "E1 E2 E3 V X"),
        ("E1", "E1 | sources: 10.0.0.0/8 198.51.100.0/24", ""),
        ("E1 | sources: 198.51.0.0/16", "E1 | sources: 10.0.0.0/8", "E1 E2 E3 V X"),
        ("E1 | sources: 198.51.0.0/16", "E1", ""),
        ("E1 | sources: 10.0.0.0/8", "E1 E2 | sources: 10.0.0.0/8", ""),
        ("E1 | sources: 10.0.0.0/8", "none", "E1"),
    ] {
        for protocol in [Protocol::Udp, Protocol::Sctp] {
            let stale = stale(protocol, before, after);
            assert_eq!(found(&stale, protocol), expected, "{before} → {after}");
            // With other ranges there may be something to find, whatever this client's address is.
            let looks = !expected.is_empty() || after.contains("sources") && !before.contains("sources");
            assert_eq!(stale.is_empty(), !looks, "{before} → {after}");
            // Another protocol or port is another frontend.
            assert_eq!(found(&stale, Protocol::Tcp), "");
            let mut other = flow(protocol, "E1");
            other.destination.port += 1;
            assert!(!stale.covers(&other));
        }
    }
}

#[test]
fn of_tcp_only_half_open_connections_to_what_is_gone_are_stale() {
    let stale = |before, after| stale(Protocol::Tcp, before, after);
    assert!(!stale("E1 E2", "E2").covers(&flow(Protocol::Tcp, "E1")));
    assert!(stale("E1 E2", "E2").covers(&Flow { half_open: true, ..flow(Protocol::Tcp, "E1") }));
    assert!(!stale("E1 E2", "E2").covers(&Flow { half_open: true, ..flow(Protocol::Tcp, "E2") }));
    assert!(stale("E1 E2", "E2 | draining: E1").is_empty());
    assert!(stale("none", "E1").is_empty());
    assert!(stale("E1", "E1 | sources: 10.0.0.0/8").is_empty());
}

#[test]
fn what_piles_up_is_as_the_last_state_has_it() {
    for (states, expected) in [
        (&["E1 E2", "E2", "E3"][..], "E1 E2"),
        (&["E1 E2", "E2", "E1 E2"], ""),
        (&["E1", "E1 E2", "E1"], "E2"),
        (&["E1", "none", "E1"], "V"),
        (&["E1", "", "E1 E2"], "V"),
        (&["E1", "none", "E2"], "E1 V"),
        (&["none", "E1", "none"], "E1"),
        (&["E1", "E2 | draining: E1", "E2"], "E1"),
        (&["E1", "E1 | sources: 10.0.0.0/8", "E1"], ""),
        (&["E1", "E1 | sources: 198.51.100.0/24", "E1 | sources: 10.0.0.0/8"], "E1 E2 E3 V X"),
    ] {
        let mut all = Stale::default();
        for pair in states.windows(2) {
            all.merge(stale(Protocol::Udp, pair[0], pair[1]));
        }
        assert_eq!(found(&all, Protocol::Udp), expected, "{states:?}");
    }
}

#[test]
fn a_full_comparison_starts_from_what_was_in_the_kernel() {
    let udp = key(Protocol::Udp);
    let full = |observed: &str, slots: &[&str], after: &str, known: &str| {
        let mut adopted = Adopted::default();
        adopted.frontends.extend(frontend(observed).map(|frontend| (udp, frontend)));
        if !slots.is_empty() {
            adopted.slots.insert(udp, (0..).zip(slots.iter().map(|name| address(name))).collect());
        }
        let mut changes = Changes { adopted, ..Changes::default() };
        changes.frontends.extend(frontend(after).map(|after| (udp, (None, Some(after)))));
        let mut before = Known::default();
        if !known.is_empty() {
            before.insert(udp, vec![known.split(' ').map(address).collect()]);
        }
        found(&Stale::new(&changes, &before), Protocol::Udp)
    };
    // Nothing happened meanwhile.
    assert_eq!(full("E1 E2", &[], "E2 E1", ""), "");
    assert_eq!(full("", &[], "", ""), "");
    // Endpoints or all went, or came, while nobody looked.
    assert_eq!(full("E1 E2", &[], "E2", ""), "E1");
    assert_eq!(full("E1 E2", &[], "none", ""), "E1 E2");
    assert_eq!(full("none", &[], "E1", ""), "V");
    assert_eq!(full("", &[], "E1", ""), "V");
    assert_eq!(full("E1", &[], "E2 | draining: E1", ""), "");
    // With affinity.
    assert_eq!(full("", &["E1", "E2"], "E2", ""), "E1");
    assert_eq!(full("", &["E1"], "none", ""), "E1");
    // What was known besides.
    assert_eq!(full("E2", &[], "E2", "E1"), "E1");
    assert_eq!(full("E2", &[], "E2 | draining: E1", "E1"), "");
    assert_eq!(full("none", &[], "none", "E1"), "E1");
    // Source ranges.
    assert_eq!(full("E1", &[], "E1 | sources: 10.0.0.0/8", ""), "E1 E2 E3 V X");
    assert_eq!(full("E1 | sources: 10.0.0.0/8", &[], "E1 | sources: 10.0.0.0/8", ""), "");
}

#[test]
fn the_first_comparison_leaves_only_flows_to_what_serves() {
    let first = |protocol: Protocol, after: &str| {
        let mut changes = Changes::default();
        let key = key(protocol);
        changes.adopted.frontends.extend(frontend("E1").map(|frontend| (key, frontend)));
        changes.frontends.extend(frontend(after).map(|after| (key, (None, Some(after)))));
        found(&Stale::first(&changes), protocol)
    };
    assert_eq!(first(Protocol::Udp, "E1 | draining: E2"), "E3 X");
    assert_eq!(first(Protocol::Udp, "E1 E2 E3"), "X");
    assert_eq!(first(Protocol::Tcp, "E1"), "");
}

#[test]
fn a_listing_is_as_narrow_as_what_is_looked_for() {
    let one = |name: &str| One::Is(address(name).ip());
    for (before, after, reply_source) in [
        ("E1 E2", "E2", one("E1")),
        ("E1 E2", "", One::Several),
        ("none", "E1", One::Several),
        ("E1", "E1 | sources: 10.0.0.0/8", One::Several),
    ] {
        let scopes = stale(Protocol::Udp, before, after).scopes();
        let (family, protocol, destination) = (Family::Ipv4, Protocol::Udp, one("V"));
        assert_eq!(scopes, [Scope { family, protocol, destination, reply_source }], "{before} → {after}");
    }
    assert!(stale(Protocol::Udp, "E1", "E1 E2").scopes().is_empty());
    let mut two = stale(Protocol::Udp, "E1", "");
    two.merge(stale(Protocol::Sctp, "E1", ""));
    assert_eq!(two.scopes().len(), 2);
}

#[test]
fn many_endpoints_that_moved_are_compared_as_few_are() {
    let list = |numbers: std::ops::Range<u32>| -> Vec<SocketAddr> {
        numbers.map(|n| SocketAddr::new(IpAddr::from((0x0a80_0000 + n).to_be_bytes()), 53)).collect()
    };
    for gone in [1, FEW as u32, FEW as u32 + 1, 500] {
        let missing = missing(&list(0..1000), &list(gone..1000));
        assert_eq!(missing, list(0..gone).into_iter().collect());
    }
}
