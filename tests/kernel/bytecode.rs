//! Netlink and text say the same.

use sluice::cluster::Family;

use super::sample::{content, structures};
use super::space::{bytecode, commit, in_new_namespace, listing, nft};

#[test]
fn what_is_sent_is_what_nft_makes_of_the_text() {
    for family in Family::ALL {
        for structure in structures() {
            let content = content(family, structure);
            let (text, steps) = (content.text(family), content.steps());
            let (theirs, their_listing) = in_new_namespace(move || {
                nft(&["-f", "-"], &text);
                (bytecode(family), listing("nft", family))
            });
            let (ours, our_listing) = in_new_namespace(move || {
                commit(&[(family, steps)]);
                (bytecode(family), listing("nft", family))
            });
            assert!(ours.len() > 100, "{ours:#?}");
            for (ours, theirs) in ours.iter().zip(&theirs) {
                assert_eq!(ours, theirs, "{family} {:?}", content.structure);
            }
            assert_eq!(ours.len(), theirs.len());
            let sorted = |listing: &str| {
                let mut lines: Vec<_> = listing.lines().map(str::to_owned).collect();
                lines.sort();
                lines.len()
            };
            assert_eq!(sorted(&our_listing), sorted(&their_listing));
        }
    }
}
