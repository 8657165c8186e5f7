//! Refusals name what was refused, and change nothing.

use std::net::SocketAddr;

use nix::errno::Errno;
use sluice::cluster::{Family, Protocol};
use sluice::dataplane::nftables::Error as Failure;
use sluice::dataplane::nftables::encode::{self, Plan, Refused, encode};
use sluice::dataplane::nftables::model::{Chain, Element, Key, Set, Step, Structure, Verdict};
use sluice::netlink::{Error, Socket};

use super::sample::{Content, content};
use super::space::{bytecode, commit, in_new_namespace};

fn key(host: u8) -> Key {
    Key { address: [10, 200, 0, host].into(), protocol: Protocol::Tcp, port: 80 }
}

fn endpoint(host: u8, index: u32, port: u16) -> Element {
    Element::Endpoint(key(host), index, SocketAddr::new([10, 1, 1, 1].into(), port))
}

/// The refusals of a plan on top of a table with some content; the table must be as before.
fn refusals(steps: Vec<Step>) -> Vec<Refused> {
    in_new_namespace(move || {
        let Content { structure, sets, chains, mut elements } = content(Family::Ipv4, Structure::default());
        elements.push(Element::Service(key(1), Verdict::Drop));
        elements.push(endpoint(1, 0, 1));
        elements.push(Element::AllowedSource(key(1), "10.0.0.0/8".parse().unwrap()));
        commit(&[(Family::Ipv4, Content { structure, sets, chains, elements }.steps())]);
        let before = bytecode(Family::Ipv4);
        // The other family's part comes first, to see that steps are found behind it.
        let other = vec![Step::DestroyTable, Step::CreateTable(Structure::default())];
        let plan: &Plan = &[(Family::Ipv6, other), (Family::Ipv4, steps)];
        let error = encode::commit(&mut Socket::open().unwrap(), plan, &encode(plan, None)).unwrap_err();
        assert_eq!(bytecode(Family::Ipv4), before);
        match error {
            Failure::Refused(refusals) => refusals,
            error => panic!("{error}"),
        }
    })
}

#[test]
fn a_duplicate_with_other_data_is_named() {
    let refusals = refusals(vec![
        Step::Add(endpoint(2, 0, 1)),
        Step::Add(endpoint(2, 1, 1)),
        Step::Add(endpoint(1, 0, 2)),
        Step::Add(endpoint(2, 2, 1)),
        Step::Add(Element::Service(key(1), Verdict::Accept)),
    ]);
    let [endpoint, service] = &refusals[..] else { panic!("{refusals:?}") };
    assert_eq!((endpoint.errno, endpoint.step), (Errno::EEXIST, Some((1, 2))));
    assert_eq!(endpoint.object, "element 10.200.0.1 . tcp . 80 . 0 in map endpoints of table ip sluice");
    assert_eq!((service.errno, service.step), (Errno::EEXIST, Some((1, 4))));
    assert_eq!(service.object, "element 10.200.0.1 . tcp . 80 in map services of table ip sluice");
    assert!(service.to_string().starts_with("the kernel refused element 10.200.0.1"), "{service}");
}

#[test]
fn a_missing_element_is_named() {
    let net = |text: &str| text.parse().unwrap();
    let refusals = refusals(vec![
        Step::Delete(Element::PodCidr(net("10.0.0.0/9"))),
        Step::Delete(Element::PodCidr(net("10.128.0.0/9"))),
        Step::Delete(Element::PodCidr(net("77.0.0.0/8"))),
        Step::Delete(endpoint(1, 0, 1)),
        Step::Delete(endpoint(9, 0, 1)),
        Step::Delete(Element::AllowedSource(key(1), net("10.0.0.0/8"))),
        Step::Delete(Element::AllowedSource(key(1), net("10.0.0.0/9"))),
    ]);
    let [pods, endpoint, source] = &refusals[..] else { panic!("{refusals:?}") };
    assert_eq!((pods.errno, pods.step), (Errno::ENOENT, Some((1, 2))));
    assert_eq!(pods.object, "element 77.0.0.0/8 in set pod-cidrs of table ip sluice");
    assert_eq!((endpoint.errno, endpoint.step), (Errno::ENOENT, Some((1, 4))));
    assert_eq!((source.errno, source.step), (Errno::ENOENT, Some((1, 6))));
    assert_eq!(
        source.object,
        "element 10.200.0.1 . 80 . 10.0.0.0/9 in set allowed-sources-tcp of table ip sluice"
    );
}

#[test]
fn an_element_far_inside_a_long_list_is_named() {
    let key =
        |n: u32| Key { address: (0x0ac8_0000 + n).to_be_bytes().into(), protocol: Protocol::Tcp, port: 1 };
    let mut steps: Vec<Step> = (0..5000).map(|n| Step::Add(Element::MasqueradeAll(key(n)))).collect();
    steps[4321] = Step::Add(Element::Endpoint(self::key(1), 0, "10.1.1.1:9".parse().unwrap()));
    steps[3210] = Step::Add(Element::Service(key(3210), Verdict::Goto(Chain::Endpoints(404))));
    let refusals = refusals(steps);
    let steps: Vec<_> = refusals.iter().map(|refused| (refused.errno, refused.step)).collect();
    assert_eq!(steps, [(Errno::ENOENT, Some((1, 3210))), (Errno::EEXIST, Some((1, 4321)))]);
}

#[test]
fn sets_and_chains_are_named() {
    let refusals = refusals(vec![
        Step::DeleteChain(Chain::Endpoints(404)),
        Step::DeleteSet(Set::Sticky(404)),
        Step::DeleteChain(Chain::Endpoints(2)),
        Step::AddChain(Chain::Pick(5, 99)),
    ]);
    let found: Vec<_> = refusals.iter().map(|r| (r.errno, r.object.as_str())).collect();
    let expected = [
        (Errno::ENOENT, "chain endpoints-404 of table ip sluice"),
        (Errno::ENOENT, "set sticky-404 of table ip sluice"),
        (Errno::EBUSY, "chain endpoints-2 of table ip sluice"),
        (Errno::ENOENT, "a rule in chain pick-5-99 of table ip sluice"),
    ];
    assert_eq!(found, expected);
}

#[test]
fn what_is_in_use_can_be_deleted_after_its_users() {
    in_new_namespace(|| {
        let family = Family::Ipv4;
        let content = content(family, Structure::default());
        commit(&[(family, content.steps())]);
        let mut steps: Vec<Step> = content.elements.iter().cloned().map(Step::Delete).collect();
        steps.extend(content.chains.iter().rev().copied().map(Step::DeleteChain));
        steps.extend(content.sets.iter().copied().map(Step::DeleteSet));
        commit(&[(family, steps)]);
        let left = bytecode(family);
        let mut empty = vec![Step::DestroyTable];
        empty.push(Step::CreateTable(Structure::default()));
        commit(&[(family, empty)]);
        assert_eq!(left, bytecode(family));
    });
}

#[test]
fn a_stale_generation_is_refused() {
    in_new_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let plan: &Plan = &[(Family::Ipv4, vec![Step::CreateTable(Structure::default())])];
        let generation = socket.generation().unwrap();
        socket.commit(&encode(plan, Some(generation))).unwrap();
        let again = encode(&[(Family::Ipv4, vec![Step::DestroyTable])], Some(generation));
        assert!(matches!(socket.commit(&again), Err(Error::Stale)));
        assert!(!bytecode(Family::Ipv4).is_empty());
        let now = socket.generation().unwrap();
        let again = encode(&[(Family::Ipv4, vec![Step::DestroyTable])], Some(now));
        socket.commit(&again).unwrap();
    });
}
