//! Batches of all sizes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;

use sluice::cluster::{Family, Protocol};
use sluice::dataplane::nftables::decode::{all_elements, elements, observe};
use sluice::dataplane::nftables::element::Decoded;
use sluice::dataplane::nftables::encode::{encode, split};
use sluice::dataplane::nftables::model::{Chain, Element, Key, Set, Step, Structure};
use sluice::netlink::{Capacities, Error, Socket};

use super::sample::{Content, content};
use super::space::{bytecode, commit, in_new_namespace};

/// Many endpoints of one key each.
pub fn endpoints(family: Family, count: u32) -> Vec<Element> {
    let address = |n: u32| match family {
        Family::Ipv4 => IpAddr::from((0x0a00_0000 + n).to_be_bytes()),
        Family::Ipv6 => IpAddr::from((0xfd << 120 | u128::from(n)).to_be_bytes()),
    };
    let key = |n| Key { address: address(n), protocol: Protocol::Tcp, port: 80 };
    (0..count).map(|n| Element::Endpoint(key(n), 0, (address(n), 8080).into())).collect()
}

fn large(family: Family, count: u32) -> Content {
    let mut content = content(family, Structure::default());
    content.elements.extend(endpoints(family, count));
    content
}

#[test]
fn a_batch_of_more_than_50_mib_is_one_transaction() {
    in_new_namespace(|| {
        let mut steps = vec![Step::CreateTable(Structure::default())];
        steps.extend(endpoints(Family::Ipv6, 800_000).into_iter().map(Step::Add));
        let batch = encode(&[(Family::Ipv6, steps)], None);
        assert!(batch.as_bytes().len() > 50 << 20, "{} bytes", batch.as_bytes().len());
        let mut socket = Socket::open().unwrap();
        let before = socket.generation().unwrap();
        socket.commit(&batch).unwrap();
        assert_eq!(socket.generation().unwrap(), before.wrapping_add(1));
        let observed = observe(&mut socket, Family::Ipv6).unwrap().unwrap();
        assert!(matches!(observed.count(Set::Endpoints), None | Some(800_000)));
    });
}

#[test]
fn what_does_not_fit_is_not_sent_and_can_be_split() {
    for capacity in [4 << 10, 64 << 10, 150 << 10] {
        for family in Family::ALL {
            let whole = large(family, 8_000);
            let plan = [(family, whole.steps())];
            let (one, many) = in_new_namespace(move || {
                commit(&plan);
                let one = bytecode(family);
                commit(&[(family, vec![Step::DestroyTable])]);
                let mut socket =
                    Socket::with_capacities(Capacities { send: capacity, ..Capacities::default() }).unwrap();
                let before = socket.generation().unwrap();
                let error = socket.commit(&encode(&plan, None)).unwrap_err();
                assert!(matches!(error, Error::TooLong { .. }), "{error}");
                assert_eq!(socket.generation().unwrap(), before);
                let batches = split(&plan, socket.send_capacity());
                assert!(batches.len() > 2);
                for (index, batch) in batches.iter().enumerate() {
                    assert!(batch.as_bytes().len() <= socket.send_capacity());
                    // Nothing is in force before the last batch.
                    let hooks = observe(&mut socket, family).unwrap().map_or(0, |observed| {
                        observed.chains.iter().filter(|chain| chain.hook.is_some()).count()
                    });
                    assert_eq!(hooks, 0, "before batch {index} of {}", batches.len());
                    socket.commit(batch).unwrap();
                }
                let observed = observe(&mut socket, family).unwrap().unwrap();
                assert_eq!(observed.difference(family, &whole.structure, &whole.chains, &whole.sets), None);
                (one, bytecode(family))
            });
            for (one, many) in one.iter().zip(&many) {
                assert_eq!(one, many, "in parts of {capacity}");
            }
            assert_eq!(one.len(), many.len());
        }
    }
}

#[test]
fn many_refusals_do_not_get_lost() {
    in_new_namespace(|| {
        commit(&[(Family::Ipv4, content(Family::Ipv4, Structure::default()).steps())]);
        let steps = (1000..6000).map(|n| Step::DeleteChain(Chain::Endpoints(n))).collect();
        let error = Socket::open().unwrap().commit(&encode(&[(Family::Ipv4, steps)], None)).unwrap_err();
        match error {
            Error::Refused(refusals) => assert_eq!(refusals.len(), 5000),
            other => panic!("{other}"),
        }
    });
}

#[test]
fn a_small_receive_buffer_still_reports_failure() {
    in_new_namespace(|| {
        commit(&[(Family::Ipv4, content(Family::Ipv4, Structure::default()).steps())]);
        let steps = (1000..6000).map(|n| Step::DeleteChain(Chain::Endpoints(n))).collect();
        let mut socket =
            Socket::with_capacities(Capacities { receive: 4096, ..Capacities::default() }).unwrap();
        let error = socket.commit(&encode(&[(Family::Ipv4, steps)], None)).unwrap_err();
        assert!(matches!(error, Error::Refused(_) | Error::Receive(nix::errno::Errno::ENOBUFS)), "{error}");
        // And the socket goes on working.
        socket.commit(&encode(&[(Family::Ipv4, vec![Step::DestroyTable])], None)).unwrap();
    });
}

#[test]
fn a_user_namespace_loads_in_parts() {
    // A program with threads cannot enter a user namespace: the test runs itself in one.
    const INSIDE: &str = "SLUICE_TEST_INSIDE_USER_NAMESPACE";
    if std::env::var_os(INSIDE).is_none() {
        let own = std::env::current_exe().unwrap();
        let test = "capacity::a_user_namespace_loads_in_parts";
        let child = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net"])
            .arg(own)
            .args(["--exact", test, "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success(), "{output}\n{}", String::from_utf8_lossy(&child.stderr));
        assert!(output.contains("1 passed"), "{output}");
        return;
    }
    let mut socket = Socket::open().unwrap();
    let family = Family::Ipv4;
    let content = large(family, 200_000);
    let plan = [(family, content.steps())];
    let whole = encode(&plan, None).as_bytes().len();
    assert!(whole > socket.send_capacity(), "{whole} bytes, {} at once", socket.send_capacity());
    for batch in split(&plan, socket.send_capacity()) {
        socket.commit(&batch).unwrap();
    }
    let observed = observe(&mut socket, family).unwrap().unwrap();
    assert_eq!(observed.difference(family, &content.structure, &content.chains, &content.sets), None);
    // Again while the kernel is still resizing what was filled.
    let read = all_elements(&mut socket, family, &[Set::Endpoints], 1000).unwrap();
    assert_eq!(read.len(), content.elements.iter().filter(|e| e.set() == Set::Endpoints).count());
    socket.commit(&encode(&[(family, vec![Step::DestroyTable])], None)).unwrap();
}

#[test]
fn a_dump_during_commits_of_others_is_whole() {
    in_new_namespace(|| {
        let family = Family::Ipv4;
        let first = endpoints(family, 3000);
        let mut steps = vec![Step::CreateTable(Structure::default())];
        steps.extend(first.iter().cloned().map(Step::Add));
        commit(&[(family, steps)]);
        let all: BTreeSet<Element> = first.into_iter().collect();
        // Sockets belong to the namespace of the thread that opens them.
        let (mut reader, mut writer) = (Socket::open().unwrap(), Socket::open().unwrap());
        let stop = std::sync::atomic::AtomicBool::new(false);
        let (mut whole, mut interrupted) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let table = [(Family::Ipv6, vec![Step::CreateTable(Structure::default())])];
                let gone = [(Family::Ipv6, vec![Step::DestroyTable])];
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    writer.commit(&encode(&table, None)).unwrap();
                    writer.commit(&encode(&gone, None)).unwrap();
                }
            });
            for _ in 0..100 {
                let mut read = BTreeSet::new();
                match elements(&mut reader, family, Set::Endpoints, |decoded| match decoded {
                    Decoded::Element(element) => {
                        read.insert(element);
                    }
                    other => panic!("{other:?}"),
                }) {
                    Ok(()) => {
                        whole += 1;
                        assert_eq!(read, all);
                    }
                    Err(Error::Interrupted) => interrupted += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        // Only the kernel's own work on a set that was just filled is in the way, and that ends.
        assert!(whole > interrupted, "{whole} whole, {interrupted} interrupted");
    });
}
