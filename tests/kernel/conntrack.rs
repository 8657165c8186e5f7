//! Which connections are deleted: entries of a real conntrack, and real UDP flows through real rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice::cluster::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Family, ObjectName, Protocol, Service,
    ServicePort,
};
use sluice::config::Config;
use sluice::config::merge::{Given, merge};
use sluice::conntrack::kernel::Conntrack;
use sluice::conntrack::{Cleaner, Stale};
use sluice::dataplane::nftables::Nftables;
use sluice::forwarding::{Changes, Frontend, Key, Masquerade, Target};
use sluice::metrics::Metrics;
use sluice::reconcile::Reconciler;
use sluice::reporting::Reporting;

use crate::space::{in_new_namespace, run};

/// An entry: client, destination, reply source, and what else `conntrack -I` is to be told.
const ENTRIES: &[(&str, &str, &str, &str)] = &[
    ("10.0.0.1:1001", "10.96.0.10:53", "10.128.0.1:5353", "udp"),
    ("10.0.0.1:1002", "10.96.0.10:53", "10.128.0.2:5353", "udp"),
    ("10.0.0.1:1003", "10.96.0.10:53", "10.96.0.10:53", "udp"),
    ("10.0.0.1:1004", "10.96.0.10:53", "10.128.0.1:5353", "udp -w 7"),
    ("10.0.0.1:1005", "10.96.0.10:54", "10.128.0.1:5353", "udp"),
    ("10.0.0.1:1006", "10.96.0.11:53", "10.128.0.1:5353", "udp"),
    ("10.0.0.1:1007", "10.128.0.1:5353", "10.128.0.1:5353", "udp"),
    (
        "10.0.0.1:1008",
        "10.96.0.10:53",
        "10.128.0.1:5353",
        "sctp --state ESTABLISHED --orig-vtag 1 --reply-vtag 2",
    ),
    ("10.0.0.1:1009", "10.96.0.10:53", "10.128.0.1:5353", "tcp --state SYN_SENT"),
    ("10.0.0.1:1010", "10.96.0.10:53", "10.128.0.1:5353", "tcp --state SYN_RECV"),
    ("10.0.0.1:1011", "10.96.0.10:53", "10.128.0.1:5353", "tcp --state ESTABLISHED -u SEEN_REPLY,ASSURED"),
    ("10.0.0.1:1012", "10.96.0.10:53", "10.128.0.2:5353", "tcp --state SYN_SENT"),
    ("[fd00::1]:1013", "[fd00:10:96::a]:53", "[fd00:10:128::1]:5353", "udp"),
    ("[fd00::1]:1014", "[fd00:10:96::a]:53", "[fd00:10:128::2]:5353", "udp"),
    ("10.9.0.1:1015", "10.96.0.10:53", "10.128.0.2:5353", "udp"),
];

fn fill() {
    for (client, destination, reply, rest) in ENTRIES {
        let [client, destination, reply] =
            [client, destination, reply].map(|a| a.parse::<SocketAddr>().unwrap());
        let addresses = [client.ip(), destination.ip(), reply.ip(), client.ip()].map(|a| a.to_string());
        let ports = [client, destination, reply, client].map(|a| a.port().to_string());
        let mut arguments = vec!["-I", "-t", "600", "-p"];
        arguments.extend(rest.split(' '));
        for (name, value) in ["-s", "-d", "-r", "-q"].into_iter().zip(&addresses) {
            arguments.extend([name, value]);
        }
        let names = ["--sport", "--dport", "--reply-port-src", "--reply-port-dst"];
        for (name, value) in names.into_iter().zip(&ports) {
            arguments.extend([name, value]);
        }
        run("conntrack", &arguments, "");
    }
}

/// Every entry by its client's port: who answers, and its id.
fn entries() -> BTreeMap<u16, (IpAddr, String)> {
    let mut entries = BTreeMap::new();
    for family in ["ipv4", "ipv6"] {
        for line in run("conntrack", &["-L", "-f", family, "-o", "id"], "").lines() {
            let value = |name: &str, nth| {
                line.split_whitespace()
                    .filter_map(|word| word.strip_prefix(name))
                    .nth(nth)
                    .unwrap()
                    .to_owned()
            };
            let reply = value("src=", 1).parse().unwrap();
            entries.insert(value("sport=", 0).parse().unwrap(), (reply, value("id=", 0)));
        }
    }
    entries
}

fn key(address: &str, protocol: Protocol) -> Key {
    let address: SocketAddr = address.parse().unwrap();
    Key { address: address.ip(), protocol, port: address.port() }
}

fn frontend(endpoints: &[&str], sources: Option<&str>) -> Frontend {
    Frontend {
        inside: Target::Endpoints(endpoints.iter().map(|e| e.parse().unwrap()).collect()),
        outside: None,
        masquerade: Masquerade::OffCluster,
        sources: sources.map(|net| [net.parse().unwrap()].into()),
        draining: None,
        scheduler: None,
    }
}

#[test]
fn just_the_stale_entries_are_deleted() {
    in_new_namespace(|| {
        type Change = (Key, Option<Frontend>, Option<Frontend>);
        let (e1, e2) = ("10.128.0.1:5353", "10.128.0.2:5353");
        let one_gone = |protocol| -> Change {
            let after = frontend(&[e2], None);
            (key("10.96.0.10:53", protocol), Some(frontend(&[e1, e2], None)), Some(after))
        };
        let v6: Change = (
            key("[fd00:10:96::a]:53", Protocol::Udp),
            Some(frontend(&["[fd00:10:128::1]:5353", "[fd00:10:128::2]:5353"], None)),
            None,
        );
        let fresh: Change = (key("10.96.0.10:53", Protocol::Udp), None, Some(frontend(&[e1, e2], None)));
        let ranges: Change = (
            key("10.96.0.10:53", Protocol::Udp),
            Some(frontend(&[e1, e2], None)),
            Some(frontend(&[e1, e2], Some("10.0.0.0/16"))),
        );
        let elsewhere: Change = (key("10.96.0.99:53", Protocol::Udp), Some(frontend(&[e1], None)), None);
        // The changes, the entries that go, and how many the kernel has to list for it.
        for (changes, expected, listed) in [
            (vec![one_gone(Protocol::Udp)], &[1001, 1004][..], 3),
            (vec![one_gone(Protocol::Sctp)], &[1008], 1),
            (vec![one_gone(Protocol::Tcp)], &[1009], 2),
            (vec![fresh], &[1003], 6),
            (vec![ranges], &[1015], 6),
            (vec![v6.clone()], &[1013, 1014], 2),
            (vec![elsewhere.clone()], &[], 0),
            (vec![one_gone(Protocol::Udp), elsewhere, v6], &[1001, 1004, 1013, 1014], 7),
        ] {
            run("conntrack", &["-F"], "");
            fill();
            let before = entries();
            assert_eq!(before.len(), ENTRIES.len());
            let mut all = Changes::default();
            all.frontends.extend(changes.into_iter().map(|(key, before, after)| (key, (before, after))));
            let stale = Stale::new(&all, &Default::default());
            let pass = Conntrack::open().unwrap().clean(&stale).unwrap();
            let after = entries();
            let gone: Vec<u16> = before.keys().filter(|port| !after.contains_key(port)).copied().collect();
            assert_eq!(gone, expected);
            assert_eq!((pass.deleted, pass.listed), (expected.len(), listed), "{expected:?}");
        }
    });
}

const SERVERS: [&str; 3] = ["10.128.0.1", "10.128.0.2", "10.128.0.3"];
const FLOWS: usize = 24;

/// Servers that answer with their address.
fn serve() {
    for address in SERVERS {
        let socket = UdpSocket::bind((address, 5353)).unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(address.as_bytes(), from);
            }
        });
    }
}

fn clients() -> Vec<UdpSocket> {
    let client = |_| {
        let socket = UdpSocket::bind("10.128.1.1:0").unwrap();
        socket.connect("10.96.0.10:53").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    };
    (0..FLOWS).map(client).collect()
}

/// Who answers each client now; with it, the id of its entry.
fn ask(clients: &[UdpSocket]) -> Vec<(String, String)> {
    let answers: Vec<String> = clients
        .iter()
        .map(|client| {
            client.send(b"?").unwrap();
            let mut buffer = [0; 16];
            let length = client.recv(&mut buffer).expect("an answer");
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        })
        .collect();
    let entries = entries();
    let id = |client: &UdpSocket| entries[&client.local_addr().unwrap().port()].1.clone();
    answers.into_iter().zip(clients.iter().map(id)).collect()
}

fn service() -> Change {
    let name = ObjectName::new("default", "dns");
    let port = ServicePort {
        name: "".into(),
        protocol: Protocol::Udp,
        port: 53.try_into().unwrap(),
        node_port: None,
    };
    Change::Service(name.clone(), Some(Service::new(name, vec!["10.96.0.10".parse().unwrap()], vec![port])))
}

/// Endpoints by the last number of their address; a `t` after it: terminating, but serving.
fn slice(endpoints: &str) -> Change {
    let endpoint = |text: &str| {
        let ready = !text.ends_with('t');
        let address = format!("10.128.0.{}", text.trim_end_matches('t')).parse().unwrap();
        let conditions = Conditions { ready, serving: true, terminating: !ready };
        Endpoint { conditions, node: Some("node1".into()), ..Endpoint::ready(address) }
    };
    let slice = EndpointSlice {
        name: ObjectName::new("default", "dns-1"),
        service: "dns".into(),
        family: Family::Ipv4,
        triggered: None,
        ports: vec![EndpointPort {
            name: "".into(),
            protocol: Protocol::Udp,
            port: 5353.try_into().unwrap(),
        }],
        endpoints: endpoints.split_whitespace().map(endpoint).collect(),
    };
    Change::EndpointSlice(slice.name.clone(), Some(slice))
}

fn start(changes: [Change; 2]) -> Reconciler<Nftables> {
    let config = Config::new(&merge(&Given::default(), None).unwrap(), "node1").unwrap();
    let reporting = Reporting::new(Arc::new(Metrics::new().unwrap()));
    let mut reconciler = Reconciler::new(config, Nftables::open().unwrap(), reporting);
    reconciler.clean_conntrack(Cleaner::start(None).unwrap());
    apply(&mut reconciler, changes);
    reconciler
}

fn apply<const N: usize>(reconciler: &mut Reconciler<Nftables>, changes: [Change; N]) {
    reconciler.apply(changes);
    reconciler.sync().unwrap();
}

/// Those whose endpoint is `gone` have another, all others the same entry as before. (A new entry may have the id
/// of the old one: it is made from the entry's place in memory and the original tuple.)
fn moved(before: &[(String, String)], after: &[(String, String)], gone: &str) {
    assert!(before.iter().any(|(endpoint, _)| endpoint == gone), "no flow went to {gone}");
    for (before, after) in before.iter().zip(after) {
        if before.0 == gone {
            assert_ne!(after.0, gone);
        } else {
            assert_eq!(before, after);
        }
    }
}

/// Waits until no entry is answered by this address.
fn wait_until_gone(address: &str) {
    let address: IpAddr = address.parse().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while entries().values().any(|(reply, _)| *reply == address) {
        assert!(Instant::now() < deadline, "there still are entries to {address}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn prepare() {
    for command in ["link set lo up", "address add 10.128.1.1/32 dev lo", "route add 10.96.0.0/12 dev lo"] {
        run("ip", &command.split(' ').collect::<Vec<_>>(), "");
    }
    for address in SERVERS {
        run("ip", &["address", "add", &format!("{address}/32"), "dev", "lo"], "");
    }
    serve();
}

#[test]
fn flows_leave_an_endpoint_when_it_is_gone_and_not_when_it_terminates() {
    in_new_namespace(|| {
        prepare();
        let mut reconciler = start([service(), slice("1 2 3")]);
        let clients = clients();
        let first = ask(&clients);
        apply(&mut reconciler, [slice("1t 2 3")]);
        let second = ask(&clients);
        assert_eq!(first, second);
        apply(&mut reconciler, [slice("2 3")]);
        wait_until_gone(SERVERS[0]);
        let third = ask(&clients);
        moved(&first, &third, SERVERS[0]);
        apply(&mut reconciler, [Change::EndpointSlice(ObjectName::new("default", "dns-1"), None)]);
        wait_until_gone(SERVERS[1]);
        wait_until_gone(SERVERS[2]);
    });
}

#[test]
fn a_restart_finds_what_went_meanwhile_and_leaves_the_rest() {
    in_new_namespace(|| {
        prepare();
        // Dropping it waits for the deletions.
        drop(start([service(), slice("1 2 3")]));
        let clients = clients();
        let first = ask(&clients);
        drop(start([service(), slice("1 2 3")]));
        assert_eq!(first, ask(&clients));
        drop(start([service(), slice("1 3")]));
        let second = ask(&clients);
        moved(&first, &second, SERVERS[1]);
        // Terminating at the restart, and gone in the very sync that compares everything.
        let mut reconciler = start([service(), slice("1t 3")]);
        let third = ask(&clients);
        assert_eq!(second, third);
        reconciler.compare(sluice::dataplane::Look::Changed);
        apply(&mut reconciler, [slice("3")]);
        drop(reconciler);
        moved(&third, &ask(&clients), SERVERS[0]);
    });
}

#[test]
fn a_restart_finds_what_drained_before_and_went_meanwhile() {
    in_new_namespace(|| {
        prepare();
        drop(start([service(), slice("1 2 3")]));
        let clients = clients();
        let first = ask(&clients);
        // It drains when the agent ends, so that no table names it.
        drop(start([service(), slice("1 2t 3")]));
        let second = ask(&clients);
        assert_eq!(first, second);
        drop(start([service(), slice("1 2t 3")]));
        assert_eq!(second, ask(&clients), "it serves still");
        drop(start([service(), slice("1 3")]));
        moved(&second, &ask(&clients), SERVERS[1]);
    });
}

#[test]
fn flows_that_are_older_than_the_service_find_it() {
    in_new_namespace(|| {
        prepare();
        // Something that is not ours makes conntrack look at packets here; nobody answers yet.
        crate::space::nft(
            &["-f", "-"],
            "table ip t { chain c { type filter hook output priority 0; ct state new accept; }; }",
        );
        let client = UdpSocket::bind("10.128.1.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.send_to(b"?", "10.96.0.10:53").unwrap();
        let vip: IpAddr = "10.96.0.10".parse().unwrap();
        assert_eq!(entries().values().map(|(reply, _)| *reply).collect::<Vec<_>>(), [vip]);
        drop(start([service(), slice("2")]));
        client.send_to(b"?", "10.96.0.10:53").unwrap();
        let mut buffer = [0; 16];
        let (length, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (SERVERS[1].as_bytes(), "10.96.0.10:53".parse().unwrap()));
    });
}

/// Work that comes while a pass runs, or before it began, is as the last state has it.
#[test]
fn an_endpoint_that_comes_back_keeps_its_flows() {
    in_new_namespace(|| {
        run("ip", &["link", "set", "lo", "up"], "");
        fill();
        let udp = key("10.96.0.10:53", Protocol::Udp);
        let both = frontend(&["10.128.0.1:5353", "10.128.0.2:5353"], None);
        let one = frontend(&["10.128.0.2:5353"], None);
        let change = |before: &Frontend, after: &Frontend| {
            let mut changes = Changes::default();
            changes.frontends.insert(udp, (Some(before.clone()), Some(after.clone())));
            Stale::new(&changes, &Default::default())
        };
        let mut stale = change(&both, &one);
        stale.merge(change(&one, &both));
        assert!(stale.is_empty());
        assert_eq!(Conntrack::open().unwrap().clean(&stale).unwrap().listed, 0);
        assert_eq!(entries().len(), ENTRIES.len());
    });
}
