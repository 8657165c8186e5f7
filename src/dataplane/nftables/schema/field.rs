//! The parts that keys and data consist of, each known in three forms: as the kernel's expression that loads it,
//! as nft text, and as the `typeof` that nft keeps in a set's user data to print it by.

use std::borrow::Cow;

use crate::cluster::{Family, Protocol};

use super::super::expression::{Expression, Register};
use super::super::uapi::*;

/// A part of a key or of an element's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `ip saddr`.
    SourceAddress,
    /// `ip daddr`.
    DestinationAddress,
    /// `meta l4proto`.
    L4Protocol,
    /// `th sport`.
    SourcePort,
    /// `th dport`.
    DestinationPort,
    /// `tcp dport` and its like: only packets of this protocol have it.
    PortOf(Protocol),
    /// `numgen random mod N offset M`.
    Random(u32, u32),
    /// The constant number K, which nft has as `numgen inc mod 1 offset K`.
    Constant(u32),
    /// `meta priority`.
    Priority,
    /// `ct original ip daddr`.
    OriginalDestinationAddress,
    /// `ct original proto-dst`.
    OriginalDestinationPort,
}

/// nft's `enum datatypes` (include/datatype.h).
const TYPE_INTEGER: u32 = 4;
const TYPE_IPADDR: u32 = 7;
const TYPE_IP6ADDR: u32 = 8;
const TYPE_INET_PROTOCOL: u32 = 12;
const TYPE_INET_SERVICE: u32 = 13;
const TYPE_CLASSID: u32 = 23;

/// nft's `enum expr_types` (include/expression.h).
const EXPR_VERDICT: u32 = 1;
const EXPR_PAYLOAD: u32 = 7;
const EXPR_META: u32 = 9;
const EXPR_CONCAT: u32 = 13;
const EXPR_NUMGEN: u32 = 23;

/// nft's `enum proto_desc_id` (include/proto.h).
const PROTO_DESC_UDP: u32 = 6;
const PROTO_DESC_TCP: u32 = 8;
const PROTO_DESC_SCTP: u32 = 10;
const PROTO_DESC_TH: u32 = 11;
const PROTO_DESC_IP: u32 = 12;
const PROTO_DESC_IP6: u32 = 13;

/// nft's `enum ip_hdr_fields`, `ip6_hdr_fields`, and the like for transport headers.
const IPHDR_SADDR: u32 = 11;
const IPHDR_DADDR: u32 = 12;
const IP6HDR_SADDR: u32 = 8;
const IP6HDR_DADDR: u32 = 9;
const THDR_SPORT: u32 = 1;
const THDR_DPORT: u32 = 2;

impl Field {
    /// Bytes, before padding to 4.
    pub fn length(self, family: Family) -> u32 {
        match self {
            Field::SourceAddress | Field::DestinationAddress | Field::OriginalDestinationAddress => {
                family_pick(family, 4, 16)
            }
            Field::L4Protocol => 1,
            Field::SourcePort
            | Field::DestinationPort
            | Field::PortOf(_)
            | Field::OriginalDestinationPort => 2,
            Field::Random(..) | Field::Constant(_) | Field::Priority => 4,
        }
    }

    /// The number of its nft data type; a concatenation has 6 bits for each.
    pub fn data_type(self, family: Family) -> u32 {
        match self {
            Field::SourceAddress | Field::DestinationAddress | Field::OriginalDestinationAddress => {
                family_pick(family, TYPE_IPADDR, TYPE_IP6ADDR)
            }
            Field::L4Protocol => TYPE_INET_PROTOCOL,
            Field::SourcePort
            | Field::DestinationPort
            | Field::PortOf(_)
            | Field::OriginalDestinationPort => TYPE_INET_SERVICE,
            Field::Random(..) | Field::Constant(_) => TYPE_INTEGER,
            Field::Priority => TYPE_CLASSID,
        }
    }

    /// As nft prints it.
    pub fn text(self, family: Family) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Field::SourceAddress => family_pick(family, "ip saddr", "ip6 saddr"),
            Field::DestinationAddress => family_pick(family, "ip daddr", "ip6 daddr"),
            Field::L4Protocol => "meta l4proto",
            Field::SourcePort => "th sport",
            Field::DestinationPort => "th dport",
            Field::PortOf(Protocol::Tcp) => "tcp dport",
            Field::PortOf(Protocol::Udp) => "udp dport",
            Field::PortOf(Protocol::Sctp) => "sctp dport",
            Field::Random(n, 0) => return Cow::Owned(format!("numgen random mod {n}")),
            Field::Random(n, offset) => return Cow::Owned(format!("numgen random mod {n} offset {offset}")),
            Field::Constant(0) => "numgen inc mod 1",
            Field::Constant(k) => return Cow::Owned(format!("numgen inc mod 1 offset {k}")),
            Field::Priority => "meta priority",
            Field::OriginalDestinationAddress => {
                family_pick(family, "ct original ip daddr", "ct original ip6 daddr")
            }
            Field::OriginalDestinationPort => "ct original proto-dst",
        })
    }

    /// The expression that loads it.
    pub fn load(self, family: Family, to: Register) -> Expression {
        let network = |offset| {
            let length = family_pick(family, 4, 16);
            Expression::Payload { base: NFT_PAYLOAD_NETWORK_HEADER, offset, length, to }
        };
        let original = |key| Expression::Ct { key, direction: Some(IP_CT_DIR_ORIGINAL), to };
        match self {
            Field::SourceAddress => network(family_pick(family, 12, 8)),
            Field::DestinationAddress => network(family_pick(family, 16, 24)),
            Field::L4Protocol => Expression::Meta { key: NFT_META_L4PROTO, to },
            Field::SourcePort => {
                Expression::Payload { base: NFT_PAYLOAD_TRANSPORT_HEADER, offset: 0, length: 2, to }
            }
            Field::DestinationPort | Field::PortOf(_) => {
                Expression::Payload { base: NFT_PAYLOAD_TRANSPORT_HEADER, offset: 2, length: 2, to }
            }
            Field::Random(modulus, offset) => Expression::Numgen { kind: NFT_NG_RANDOM, modulus, offset, to },
            Field::Constant(offset) => {
                Expression::Numgen { kind: NFT_NG_INCREMENTAL, modulus: 1, offset, to }
            }
            Field::Priority => Expression::Meta { key: NFT_META_PRIORITY, to },
            Field::OriginalDestinationAddress => original(family_pick(family, NFT_CT_DST_IP, NFT_CT_DST_IP6)),
            Field::OriginalDestinationPort => original(NFT_CT_PROTO_DST),
        }
    }

    /// nft's `expr_ops->build_udata` of 1.0.6: the kind of expression and what it takes to build it again.
    fn write_typeof(self, family: Family, out: &mut Vec<u8>) {
        let header = |out: &mut Vec<u8>, protocol: u32, field: u32| {
            tlv_u32(out, 0, EXPR_PAYLOAD);
            tlv(out, 1, |out| {
                tlv_u32(out, 0, protocol);
                tlv_u32(out, 1, field);
            });
        };
        let meta = |out: &mut Vec<u8>, key: u32| {
            tlv_u32(out, 0, EXPR_META);
            tlv(out, 1, |out| tlv_u32(out, 0, key));
        };
        let ip = family_pick(family, PROTO_DESC_IP, PROTO_DESC_IP6);
        match self {
            Field::SourceAddress => header(out, ip, family_pick(family, IPHDR_SADDR, IP6HDR_SADDR)),
            Field::DestinationAddress | Field::OriginalDestinationAddress => {
                header(out, ip, family_pick(family, IPHDR_DADDR, IP6HDR_DADDR));
            }
            Field::L4Protocol => meta(out, NFT_META_L4PROTO),
            Field::SourcePort => header(out, PROTO_DESC_TH, THDR_SPORT),
            Field::DestinationPort | Field::OriginalDestinationPort => header(out, PROTO_DESC_TH, THDR_DPORT),
            Field::PortOf(protocol) => {
                let protocol = match protocol {
                    Protocol::Tcp => PROTO_DESC_TCP,
                    Protocol::Udp => PROTO_DESC_UDP,
                    Protocol::Sctp => PROTO_DESC_SCTP,
                };
                header(out, protocol, THDR_DPORT);
            }
            Field::Random(modulus, offset) => numgen(out, NFT_NG_RANDOM, modulus, offset),
            Field::Constant(offset) => numgen(out, NFT_NG_INCREMENTAL, 1, offset),
            Field::Priority => meta(out, NFT_META_PRIORITY),
        }
    }
}

fn numgen(out: &mut Vec<u8>, kind: u32, modulus: u32, offset: u32) {
    tlv_u32(out, 0, EXPR_NUMGEN);
    tlv(out, 1, |out| {
        tlv_u32(out, 0, kind);
        tlv_u32(out, 1, modulus);
        tlv_u32(out, 2, offset);
    });
}

/// The user data `typeof` of a key or of data, under its TLV type.
pub(super) fn typeof_fields(out: &mut Vec<u8>, kind: u8, family: Family, fields: &[Field]) {
    tlv(out, kind, |out| match fields {
        [field] => field.write_typeof(family, out),
        fields => {
            tlv_u32(out, 0, EXPR_CONCAT);
            tlv(out, 1, |out| {
                for (index, field) in fields.iter().enumerate() {
                    tlv(out, index as u8, |out| field.write_typeof(family, out));
                }
            });
        }
    });
}

/// The user data `typeof` of verdicts.
pub(super) fn typeof_verdict(out: &mut Vec<u8>, kind: u8) {
    tlv(out, kind, |out| {
        tlv_u32(out, 0, EXPR_VERDICT);
        tlv(out, 1, |_| {});
    });
}

/// libnftnl's user data: a byte of type, a byte of length, no padding.
pub(super) fn tlv(out: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(&[kind, 0]);
    let start = out.len();
    fill(out);
    out[start - 1] = (out.len() - start) as u8;
}

/// A number of user data, which is in host order.
pub(super) fn tlv_u32(out: &mut Vec<u8>, kind: u8, value: u32) {
    tlv(out, kind, |out| out.extend_from_slice(&value.to_ne_bytes()));
}

/// What a family has.
pub(super) fn family_pick<T>(family: Family, ipv4: T, ipv6: T) -> T {
    match family {
        Family::Ipv4 => ipv4,
        Family::Ipv6 => ipv6,
    }
}

/// The fields as nft prints a concatenation.
pub(super) fn concatenation(family: Family, fields: &[Field]) -> String {
    let texts: Vec<_> = fields.iter().map(|field| field.text(family)).collect();
    texts.join(" . ")
}
