//! What is written is read back.

use std::collections::BTreeSet;

use sluice::cluster::{Family, Protocol};
use sluice::dataplane::nftables::decode::{all_elements, elements, observe};
use sluice::dataplane::nftables::element::{Decoded, Sticky};
use sluice::dataplane::nftables::encode::encode_with_clients;
use sluice::dataplane::nftables::expression::Expression;
use sluice::dataplane::nftables::model::{Chain, Element, LocalDetection, Set, Step, Structure};
use sluice::dataplane::nftables::schema;
use sluice::netlink::Socket;

use super::sample::{Content, content, structures};
use super::space::{commit, in_new_namespace, ip, nft};

fn observed_elements(socket: &mut Socket, family: Family, structure: &Structure) -> BTreeSet<Element> {
    let sets: Vec<Set> = schema::sets(structure).collect();
    let decoded = all_elements(socket, family, &sets, 20).unwrap();
    let element = |decoded| match decoded {
        Decoded::Element(element) => element,
        other => panic!("{other:?}"),
    };
    decoded.into_iter().map(element).collect()
}

fn difference(socket: &mut Socket, family: Family, content: &Content) -> Option<String> {
    let observed = observe(socket, family).unwrap().expect("a table");
    observed.difference(family, &content.structure, &content.chains, &content.sets)
}

#[test]
fn what_is_written_is_observed() {
    in_new_namespace(|| {
        let mut socket = Socket::open().unwrap();
        for family in Family::ALL {
            assert_eq!(observe(&mut socket, family).unwrap(), None);
        }
        for structure in structures() {
            for family in Family::ALL {
                let content = content(family, structure.clone());
                let mut steps = vec![Step::DestroyTable];
                steps.extend(content.steps());
                commit(&[(family, steps)]);
                assert_eq!(difference(&mut socket, family, &content), None);
                let written: BTreeSet<Element> = content.elements.iter().cloned().collect();
                assert_eq!(observed_elements(&mut socket, family, &content.structure), written);
            }
        }
    });
}

#[test]
fn what_nft_loads_from_the_text_is_observed_as_the_same() {
    in_new_namespace(|| {
        let mut socket = Socket::open().unwrap();
        for family in Family::ALL {
            let structure = Structure { local_detection: LocalDetection::Cidr, ..Structure::default() };
            let content = content(family, structure);
            // Twice: the second time there is a table to be replaced.
            for _ in 0..2 {
                nft(&["-f", "-"], &content.text(family));
            }
            assert_eq!(difference(&mut socket, family, &content), None);
            let written: BTreeSet<Element> = content.elements.iter().cloned().collect();
            assert_eq!(observed_elements(&mut socket, family, &content.structure), written);
        }
    });
}

#[test]
fn every_foreign_change_of_the_structure_is_a_difference() {
    let changes = [
        ("add rule {} sluice special accept", "chain special has 7 rules, not 6"),
        ("insert rule {} sluice services counter", "rule 1 of chain services"),
        ("flush chain {} sluice no-endpoints", "chain no-endpoints has 0 rules, not 2"),
        ("add chain {} sluice mine", "chain mine is not"),
        ("add set {} sluice mine { type mark; }", "set mine is not"),
        ("add chain {} sluice endpoints-77", "chain endpoints-77 is not"),
        ("add set {} sluice sticky-9 { type mark; }", "set sticky-9 is not"),
        ("add table {} sluice { flags dormant; }", "has flags 0x1"),
        ("delete chain {} sluice endpoints-3", "chain endpoints-3 is missing"),
    ];
    for (change, expected) in changes {
        for family in Family::ALL {
            let found = in_new_namespace(move || {
                let structure = Structure { local_detection: LocalDetection::Cidr, ..Structure::default() };
                let mut content = content(family, structure);
                content.chains.push(Chain::Endpoints(3));
                commit(&[(family, content.steps())]);
                nft(&["-f", "-"], &change.replacen("{}", ip(family), 1));
                let mut socket = Socket::open().unwrap();
                difference(&mut socket, family, &content).unwrap_or_default()
            });
            assert!(found.contains(expected), "{change}: {found:?}");
        }
    }
}

#[test]
fn another_structure_is_a_difference() {
    in_new_namespace(|| {
        let mut socket = Socket::open().unwrap();
        for family in Family::ALL {
            for written in structures() {
                let content = content(family, written.clone());
                let mut steps = vec![Step::DestroyTable];
                steps.extend(content.steps());
                commit(&[(family, steps)]);
                let observed = observe(&mut socket, family).unwrap().unwrap();
                for asked in structures() {
                    let difference = observed.difference(family, &asked, &content.chains, &content.sets);
                    assert_eq!(
                        difference.is_none(),
                        asked == written,
                        "{written:?} {asked:?} {difference:?}"
                    );
                }
            }
        }
    });
}

#[test]
fn foreign_expressions_and_elements_are_unknown() {
    in_new_namespace(|| {
        let family = Family::Ipv4;
        commit(&[(family, content(family, Structure::default()).steps())]);
        let changes = "
            add element ip sluice allowed-sources-tcp { 10.96.0.1 . 80-90 . 10.0.0.0/8 }
            add element ip sluice services { 10.96.0.1 . icmp . 80 : drop }
            add element ip sluice hairpin { 10.1.1.1 . 10.1.1.2 }
            add chain ip sluice foreign
            add element ip sluice services { 10.96.0.2 . tcp . 80 : goto foreign }
            add element ip sluice pod-cidrs { 9.0.0.1-9.0.0.6 }
            add rule ip sluice foreign ip saddr 10.0.0.0-10.0.0.4 tcp dport vmap { 80-90 : accept } counter
            add rule ip sluice foreign3 counter limit rate 5/second snat to 10.0.0.1 persistent
            add rule ip sluice foreign meta mark set ct mark ip saddr & 255.0.0.0 == 10.0.0.0 goto foreign2
        ";
        nft(
            &["-f", "-"],
            &changes.replace(
                "add chain ip sluice foreign",
                "add chain ip sluice foreign\nadd chain ip sluice foreign2\nadd chain ip sluice foreign3",
            ),
        );
        let mut socket = Socket::open().unwrap();
        let mut unknown = Vec::new();
        for set in schema::sets(&Structure::default()) {
            elements(&mut socket, family, set, |decoded| match decoded {
                Decoded::Unknown(_) => unknown.push(set),
                Decoded::Element(_) => {}
                other => panic!("{other:?}"),
            })
            .unwrap();
        }
        let expected =
            [Set::PodCidrs, Set::Services, Set::Services, Set::AllowedSources(Protocol::Tcp), Set::Hairpin];
        assert_eq!(unknown, expected);
        let observed = observe(&mut socket, family).unwrap().unwrap();
        let foreign = observed.chains.iter().filter(|chain| chain.name.starts_with("foreign"));
        let rules: Vec<_> = foreign.flat_map(|chain| &chain.rules).flatten().collect();
        let unknown = rules.iter().filter(|e| matches!(e, Expression::Unknown(_))).count();
        assert!(unknown >= 4, "{rules:?}");
    });
}

#[test]
fn clients_are_observed_with_their_time() {
    in_new_namespace(|| {
        for family in Family::ALL {
            commit(&[(family, content(family, Structure::default()).steps())]);
            let client = if family == Family::Ipv4 { "10.1.2.3" } else { "2001:db8::5" };
            nft(
                &[
                    "add",
                    "element",
                    ip(family),
                    "sluice",
                    "sticky-1",
                    "{",
                    client,
                    ".",
                    "0:7",
                    "timeout",
                    "5m",
                    "}",
                ],
                "",
            );
            let mut socket = Socket::open().unwrap();
            let found = all_elements(&mut socket, family, &[Set::Sticky(1)], 20).unwrap();
            let [Decoded::Sticky(sticky)] = found[..] else { panic!("{found:?}") };
            assert_eq!((sticky.slot, sticky.client.to_string().as_str(), sticky.id), (1, client, 7));
            assert_eq!(sticky.timeout, 300_000);
            assert!((1..=300_000).contains(&sticky.expires), "{sticky:?}");

            // The table is made anew, and the client is still known, for no longer than before.
            let mut steps = vec![Step::DestroyTable];
            steps.extend(content(family, Structure::default()).steps());
            let clients = [(family, vec![Sticky { expires: sticky.expires / 2, ..sticky }])];
            socket.commit(&encode_with_clients(&[(family, steps)], &clients, None)).unwrap();
            let found = all_elements(&mut socket, family, &[Set::Sticky(1)], 20).unwrap();
            let [Decoded::Sticky(carried)] = found[..] else { panic!("{found:?}") };
            assert_eq!(Sticky { expires: 0, ..carried }, Sticky { expires: 0, ..sticky });
            assert!((1..=sticky.expires / 2).contains(&carried.expires), "{carried:?}");
        }
    });
}

#[test]
fn elements_are_counted_where_the_kernel_counts() {
    in_new_namespace(|| {
        let content = content(Family::Ipv4, Structure::default());
        commit(&[(Family::Ipv4, content.steps())]);
        let mut socket = Socket::open().unwrap();
        let observed = observe(&mut socket, Family::Ipv4).unwrap().unwrap();
        for set in [
            Set::PodCidrs,
            Set::ServiceCidrs,
            Set::Services,
            Set::Endpoints,
            Set::AllowedSources(Protocol::Udp),
        ] {
            let written = content.elements.iter().filter(|element| element.set() == set).count();
            // Kernels before 6.16 do not say.
            if let Some(count) = observed.count(set) {
                assert_eq!(count as usize, written, "{set}");
            }
        }
        assert_eq!(observed.count(Set::PodCidrs), None);
    });
}

#[test]
fn another_commit_is_noticed_by_the_generation() {
    in_new_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let before = socket.generation().unwrap();
        commit(&[(Family::Ipv4, vec![Step::CreateTable(Structure::default())])]);
        assert_eq!(socket.generation().unwrap(), before.wrapping_add(1));
    });
}
