//! Sets that are being resized while they are read.

use std::collections::BTreeSet;

use sluice::cluster::Family;
use sluice::dataplane::nftables::decode::elements;
use sluice::dataplane::nftables::element::Decoded;
use sluice::dataplane::nftables::model::{Element, Set, Step, Structure};
use sluice::netlink::{Error, Socket};

use super::capacity::endpoints;
use super::space::{commit, in_new_namespace};

/// Fills a set in parts, which makes the kernel resize its hash table in the background, and reads it at once.
fn fill_and_read(family: Family, count: u32) {
    let all = endpoints(family, count);
    commit(&[(family, vec![Step::CreateTable(Structure::default())])]);
    for part in all.chunks(700) {
        commit(&[(family, part.iter().cloned().map(Step::Add).collect::<Vec<_>>())]);
    }
    let mut socket = Socket::open().unwrap();
    let mut whole = 0;
    while whole < 2 {
        let mut seen: Vec<Element> = Vec::new();
        let result = elements(&mut socket, family, Set::Endpoints, |decoded| match decoded {
            Decoded::Element(element) => seen.push(element),
            other => panic!("{other:?}"),
        });
        match result {
            Ok(()) => {
                assert_eq!(seen.len(), all.len());
                let distinct: BTreeSet<Element> = seen.into_iter().collect();
                assert_eq!(distinct.len(), all.len());
                whole += 1;
            }
            Err(Error::Interrupted) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_dump_of_a_set_that_is_resized_is_whole_or_interrupted() {
    // More threads than processors, so that the kernel's own work has to wait.
    let threads: Vec<_> = (0..6)
        .map(|n| {
            std::thread::spawn(move || {
                for round in 0..3 {
                    in_new_namespace(move || fill_and_read(Family::Ipv6, 8000 + (n * 3 + round) * 400));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
