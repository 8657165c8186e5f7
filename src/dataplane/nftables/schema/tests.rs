use proptest::prelude::*;

use crate::netlink::{Attribute, Attributes, Writer};

use super::super::expression::{Expression, Register};
use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Recorded from nft 1.0.6 loading the same declarations, on a little-endian machine.
#[test]
#[cfg(target_endian = "little")]
fn user_data_is_that_of_nft() {
    let cases = [
        (Family::Ipv4, Set::PodCidrs, "000402000000"),
        (
            Family::Ipv4,
            Set::Endpoints,
            "000400000000010400000000036000040d00000001580014000407000000010c00040c00000001040c000000010e0004090000\
             0001060004100000000214000407000000010c00040b000000010402000000031a000417000000011200040100000001040200\
             0000020400000000043400040d000000012c0014000407000000010c00040c00000001040c0000000114000407000000010c00\
             040b000000010402000000060400000000",
        ),
        (
            Family::Ipv6,
            Set::AllowedSources(Protocol::Sctp),
            "000400000000034a00040d00000001420014000407000000010c00040d0000000104090000000114000407000000010c00040a\
             0000000104020000000214000407000000010c00040d000000010408000000",
        ),
        (
            Family::Ipv6,
            Set::AffinityIds,
            "000400000000010401000000034400040d000000013c0014000407000000010c00040d000000010409000000010e0004090000\
             0001060004100000000214000407000000010c00040b000000010402000000040e0004090000000106000402000000060400000\
             000",
        ),
        (
            Family::Ipv4,
            Set::Slots,
            "000400000000010400000000033400040d000000012c000e0004090000000106000402000000011a0004170000000112000401\
             00000001040200000002040000000004080004010000000100060400000000",
        ),
    ];
    for (family, set, expected) in cases {
        assert_eq!(hex(&set_user_data(family, set)), expected, "{family} {set}");
    }
    assert_eq!(hex(&comment_user_data("x")), "00027800");
}

#[test]
fn user_data_fits_what_the_kernel_takes() {
    const NFT_USERDATA_MAXLEN: usize = 256;
    for family in Family::ALL {
        for set in sets(&Structure { ipvs: true, drop_invalid: true, ..Structure::default() })
            .chain([Set::Sticky(0)])
        {
            assert!(set_user_data(family, set).len() <= NFT_USERDATA_MAXLEN, "{set}");
        }
    }
}

fn every_chain() -> impl Iterator<Item = Chain> {
    CHAINS.into_iter().chain([Chain::Endpoints(7), Chain::Local(2), Chain::Pick(60, 3), Chain::Sticky(4, 3)])
}

fn structures() -> Vec<Structure> {
    let detections = [
        LocalDetection::None,
        LocalDetection::Cidr,
        LocalDetection::Bridge("cni0".into()),
        LocalDetection::InterfacePrefix("veth".into()),
    ];
    let one = |local_detection: &LocalDetection, masquerade_all, ipvs| Structure {
        local_detection: local_detection.clone(),
        masquerade_all,
        ipvs,
        drop_invalid: masquerade_all || ipvs,
    };
    detections.iter().flat_map(|d| [one(d, false, false), one(d, true, false), one(d, false, true)]).collect()
}

#[test]
fn expressions_are_read_back() {
    for family in Family::ALL {
        for structure in structures() {
            for rule in every_chain().flat_map(|chain| rules(family, chain, &structure)) {
                let mut writer = Writer::default();
                rule.expressions.iter().for_each(|expression| expression.encode(&mut writer));
                let read = Expression::decode_list(Attributes::new(writer.as_bytes()));
                assert_eq!(read.as_ref(), Ok(&rule.expressions), "{rule}");
            }
        }
    }
}

/// Every set that a rule looks into has a key as long as what the rule has loaded, and the kernel's 64 bytes of
/// registers hold it.
#[test]
fn rules_and_sets_agree() {
    for family in Family::ALL {
        for rule in every_chain().flat_map(|chain| rules(family, chain, &structures()[2])) {
            let mut end = Register::FIRST;
            for expression in &rule.expressions {
                let (set, key) = match *expression {
                    Expression::Payload { to, length, .. } => {
                        end = to.after(length);
                        continue;
                    }
                    Expression::Ct { to, key, .. } => {
                        end = to.after(if key == NFT_CT_DST_IP6 { 16 } else { 4 });
                        continue;
                    }
                    Expression::Meta { to, .. } | Expression::Numgen { to, .. } => {
                        end = to.after(4);
                        continue;
                    }
                    Expression::Lookup { set, key, .. }
                    | Expression::Map { set, key, .. }
                    | Expression::VerdictMap { set, key }
                    | Expression::Update { set, key, .. } => (set, key),
                    _ => continue,
                };
                let length = definition(family, set).key_length;
                assert_eq!(key.after(length), end, "{family} {rule}");
                assert!((4..=64).contains(&length), "{family} {set}");
            }
        }
    }
}

#[test]
fn without_local_detection_nothing_is_inside() {
    for family in Family::ALL {
        let structure = Structure::default();
        let text = |chain| {
            let rules = rules(family, chain, &structure);
            rules.into_iter().map(|rule| rule.text).collect::<Vec<_>>()
        };
        assert!(!text(Chain::AfterDnat).iter().any(|rule| rule.contains("daddr @cluster-ips")));
        assert!(
            !text(Chain::Special).iter().any(|rule| rule.contains("iifname") || rule.contains("@pod-cidrs"))
        );
    }
}

#[test]
fn a_packet_for_the_same_bridge_is_told_by_its_source() {
    let structure =
        Structure { local_detection: LocalDetection::Bridge("cni0".into()), ..Structure::default() };
    let rules = rules(Family::Ipv4, Chain::AfterDnat, &structure);
    let texts: Vec<_> = rules.iter().map(|rule| rule.text.as_str()).collect();
    assert_eq!(
        texts,
        [
            "ct original ip daddr @cluster-ips iif != 0 iifname != \"cni0\" masquerade fully-random",
            "ct original ip daddr @cluster-ips iif 0 fib saddr type local masquerade fully-random",
            "ip saddr . ip daddr @hairpin masquerade fully-random",
            "goto masquerade-external",
        ]
    );
}

proptest! {
    #[test]
    fn reading_any_expression_does_not_panic(bytes: Vec<u8>) {
        let _ = Expression::decode(Attribute { kind: NFTA_LIST_ELEM, value: &bytes });
        let _ = Expression::decode_list(Attributes::new(&bytes));
    }

    #[test]
    fn reading_a_damaged_rule_does_not_panic(place: prop::sample::Index, byte: u8, which: prop::sample::Index) {
        let all: Vec<Rule> = Family::ALL.into_iter().flat_map(|family| {
            every_chain().flat_map(move |chain| rules(family, chain, &Structure::default()))
        }).collect();
        let mut writer = Writer::default();
        which.get(&all).expressions.iter().for_each(|expression| expression.encode(&mut writer));
        let mut bytes = writer.as_bytes().to_vec();
        *place.get_mut(&mut bytes) = byte;
        let _ = Expression::decode_list(Attributes::new(&bytes));
    }
}
