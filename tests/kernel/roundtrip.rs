//! What sluice wrote can be listed and loaded again, by the oldest nft that is supported and by a newer one.

use std::collections::BTreeSet;

use sluice::cluster::Family;
use sluice::dataplane::nftables::decode::{all_elements, observe};
use sluice::dataplane::nftables::element::Decoded;
use sluice::dataplane::nftables::model::{Element, Set, Step, Structure};
use sluice::dataplane::nftables::schema;
use sluice::dataplane::nftables::text::write_plan;
use sluice::netlink::Socket;

use super::sample::{Content, content, structures};
use super::space::{bytecode_by, commit, in_new_namespace, listing, nft, run, trixie};

/// The table in this namespace is the content.
fn assert_content(family: Family, content: &Content) {
    let mut socket = Socket::open().unwrap();
    let observed = observe(&mut socket, family).unwrap().unwrap();
    assert_eq!(observed.difference(family, &content.structure, &content.chains, &content.sets), None);
    let sets: Vec<Set> = schema::sets(&content.structure).collect();
    let read = all_elements(&mut socket, family, &sets, 20).unwrap();
    let read: BTreeSet<Element> = read
        .into_iter()
        .map(|decoded| match decoded {
            Decoded::Element(element) => element,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(read, content.elements.iter().cloned().collect());
}

/// Lists by one nft what sluice wrote, loads that by another where there is no table.
fn round_trip(family: Family, content: &Content, lister: &'static str, loader: &'static str) {
    let steps = content.steps();
    let (written, text) = in_new_namespace(move || {
        commit(&[(family, steps)]);
        (bytecode_by(loader, family), listing(lister, family))
    });
    // nft 1.1.3 lists this priority by a name that 1.0.6 does not know in output.
    let text = match (lister, loader) {
        (_, "nft") if lister != loader => {
            text.replace("hook output priority dstnat - 1;", "hook output priority -101;")
        }
        _ => text,
    };
    let content = content.clone();
    let loaded = in_new_namespace(move || {
        run(loader, &["-f", "-"], &text);
        assert_content(family, &content);
        bytecode_by(loader, family)
    });
    assert_eq!(written, loaded, "{lister} to {loader}");
}

#[test]
fn what_was_written_is_listed_and_loaded_by_both_versions() {
    let programs = ["nft", trixie()];
    for family in Family::ALL {
        for structure in structures() {
            let content = content(family, structure);
            for lister in programs {
                for loader in programs {
                    round_trip(family, &content, lister, loader);
                }
            }
        }
    }
}

#[test]
fn an_empty_table_makes_the_round_trip() {
    for family in Family::ALL {
        for program in ["nft", trixie()] {
            round_trip(family, &Content::default(), program, program);
        }
    }
}

#[test]
fn the_text_is_loaded_by_both_versions() {
    for family in Family::ALL {
        for program in ["nft", trixie()] {
            for structure in structures() {
                for content in
                    [content(family, structure.clone()), Content { structure, ..Content::default() }]
                {
                    in_new_namespace(move || {
                        run(program, &["-f", "-"], &content.text(family));
                        run(program, &["-f", "-"], &content.text(family));
                        assert_content(family, &content);
                    });
                }
            }
        }
    }
}

#[test]
fn a_table_with_clients_makes_the_round_trip() {
    for family in Family::ALL {
        for program in ["nft", trixie()] {
            let text = in_new_namespace(move || {
                commit(&[(family, content(family, Structure::default()).steps())]);
                let (ip, client) =
                    if family == Family::Ipv4 { ("ip", "10.1.2.3") } else { ("ip6", "2001:db8::5") };
                nft(
                    &[
                        "add", "element", ip, "sluice", "sticky-1", "{", client, ".", "0:7", "timeout", "5m",
                        "}",
                    ],
                    "",
                );
                listing(program, family)
            });
            in_new_namespace(move || {
                run(program, &["-f", "-"], &text);
                let found =
                    all_elements(&mut Socket::open().unwrap(), family, &[Set::Sticky(1)], 20).unwrap();
                assert_eq!(found.len(), 1);
            });
        }
    }
}

/// A plan's text does what the plan does, where nft can: it cannot add rules that use the map `endpoints` to a
/// table that is there.
#[test]
fn the_text_of_a_plan_does_what_the_plan_does() {
    for family in Family::ALL {
        for program in ["nft", trixie()] {
            let content = content(family, Structure::default());
            in_new_namespace(move || {
                let mut text = String::new();
                write_plan(&mut text, family, &[&[Step::DestroyTable][..], &content.steps()].concat())
                    .unwrap();
                let (structure, elements): (Vec<_>, Vec<_>) =
                    text.lines().partition(|line| !line.starts_with("add element"));
                run(program, &["-f", "-"], &structure.join("\n"));
                run(program, &["-f", "-"], &elements.join("\n"));
                assert_content(family, &content);
                let delete: Vec<Step> = content.elements.iter().cloned().map(Step::Delete).collect();
                let mut text = String::new();
                write_plan(&mut text, family, &delete).unwrap();
                run(program, &["-f", "-"], &text);
                assert_content(family, &Content { elements: Vec::new(), ..content });
            });
        }
    }
}
