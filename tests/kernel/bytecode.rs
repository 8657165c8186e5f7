//! Netlink and text say the same.

use sluice::cluster::Family;

use sluice::netlink::{Error, Request, Socket};

use super::sample::{Content, content, structures};
use super::space::{bytecode, commit, in_new_namespace, nft};

/// What the kernel gives back of sets, chains and rules, handles left out: types, lengths, user data, expressions.
fn raw(family: Family) -> Vec<Vec<(u16, Vec<u8>)>> {
    const NFT_MSG_GETCHAIN: u8 = 4;
    const NFT_MSG_GETRULE: u8 = 7;
    const NFT_MSG_GETSET: u8 = 10;
    let number = if family == Family::Ipv4 { 2 } else { 10 };
    let mut socket = Socket::open().unwrap();
    let mut all = Vec::new();
    for (kind, handles) in [(NFT_MSG_GETSET, &[16][..]), (NFT_MSG_GETCHAIN, &[2]), (NFT_MSG_GETRULE, &[3, 6])]
    {
        socket
            .dump(&Request::dump(kind, number), |message| -> Result<(), Error> {
                let attributes = message.attributes().map(Result::unwrap);
                let kept = attributes.filter(|attribute| !handles.contains(&attribute.kind));
                all.push(kept.map(|attribute| (attribute.kind, attribute.value.to_vec())).collect());
                Ok(())
            })
            .unwrap();
    }
    all
}

#[test]
fn what_the_kernel_keeps_is_the_same_byte_for_byte() {
    for family in Family::ALL {
        for structure in structures() {
            // Without elements: user data that nft writes for intervals is seen in the other test.
            let content = Content { elements: Vec::new(), ..content(family, structure) };
            let (text, steps) = (content.text(family), content.steps());
            let theirs = in_new_namespace(move || {
                nft(&["-f", "-"], &text);
                raw(family)
            });
            let ours = in_new_namespace(move || {
                commit(&[(family, steps)]);
                raw(family)
            });
            assert!(ours.len() > 80, "{}", ours.len());
            assert_eq!(ours, theirs, "{family} {:?}", content.structure);
        }
    }
}

#[test]
fn what_is_sent_is_what_nft_makes_of_the_text() {
    for family in Family::ALL {
        for structure in structures() {
            let content = content(family, structure);
            let (text, steps) = (content.text(family), content.steps());
            let theirs = in_new_namespace(move || {
                nft(&["-f", "-"], &text);
                bytecode(family)
            });
            let ours = in_new_namespace(move || {
                commit(&[(family, steps)]);
                bytecode(family)
            });
            assert!(ours.len() > 100, "{ours:#?}");
            for (ours, theirs) in ours.iter().zip(&theirs) {
                assert_eq!(ours, theirs, "{family} {:?}", content.structure);
            }
            assert_eq!(ours.len(), theirs.len());
        }
    }
}
