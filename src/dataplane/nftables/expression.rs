//! The expressions of rules, typed: each is one instruction of the kernel's rule machine.
//!
//! Each is written as nft 1.0.6 writes it and read back from what the kernel makes of it: registers have two
//! numbers, and the kernel adds attributes that follow from others.

mod decode;

use std::fmt;

use crate::netlink::Writer;

use super::model::{Set, Verdict};
use super::uapi::*;

/// A place in the register file, in units of 4 bytes: 0 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(u32);

impl Register {
    /// The first, where every key and every single value starts.
    pub const FIRST: Register = Register(0);

    /// The register that follows a value of `length` bytes in this one; values are padded to 4 bytes.
    pub fn after(self, length: u32) -> Register {
        Register(self.0 + length.div_ceil(4))
    }

    /// Its number: every fourth has two, and the kernel and nft use the lower one.
    fn number(self) -> u32 {
        if self.0.is_multiple_of(4) { NFT_REG_1 + self.0 / 4 } else { NFT_REG32_00 + self.0 }
    }

    fn from_number(number: u32) -> Option<Register> {
        match number {
            NFT_REG_1..=NFT_REG_4 => Some(Register((number - NFT_REG_1) * 4)),
            NFT_REG32_00..=NFT_REG32_15 => Some(Register(number - NFT_REG32_00)),
            _ => None,
        }
    }
}

/// Up to 16 bytes, as a register holds them: addresses and ports in network order, everything else in host order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Data {
    bytes: [u8; 16],
    length: usize,
}

impl Data {
    /// These bytes, as many as fit.
    pub fn new(value: &[u8]) -> Data {
        let mut bytes = [0; 16];
        let length = value.len().min(bytes.len());
        bytes[..length].copy_from_slice(&value[..length]);
        Data { bytes, length }
    }

    /// A number in host order.
    pub fn host(value: u32) -> Data {
        Data::new(&value.to_ne_bytes())
    }

    /// A whole interface name, padded with zeros.
    pub fn interface(name: &str) -> Data {
        let mut bytes = [0; 16];
        let length = name.len().min(15);
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        Data { bytes, length: 16 }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One instruction. Fields are the kernel's: numbers that are open-ended there (`NFT_META_*`) are so here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Loads bytes of the packet.
    Payload {
        /// `NFT_PAYLOAD_*`.
        base: u32,
        /// Bytes from there.
        offset: u32,
        /// Bytes.
        length: u32,
        /// Where to.
        to: Register,
    },
    /// Loads `NFT_META_*`.
    Meta {
        /// `NFT_META_*`.
        key: u32,
        /// Where to.
        to: Register,
    },
    /// Sets `NFT_META_*`.
    SetMeta {
        /// `NFT_META_*`.
        key: u32,
        /// Where from.
        from: Register,
    },
    /// Loads `NFT_CT_*` of the connection.
    Ct {
        /// `NFT_CT_*`.
        key: u32,
        /// `IP_CT_DIR_*`.
        direction: Option<u8>,
        /// Where to.
        to: Register,
    },
    /// Goes on when a register compares so (`NFT_CMP_*`), in memory order.
    Cmp {
        /// What.
        from: Register,
        /// `NFT_CMP_*`.
        operation: u32,
        /// With what.
        data: Data,
    },
    /// `(from & mask) ^ xor`.
    Bitwise {
        /// Where from.
        from: Register,
        /// Where to.
        to: Register,
        /// Bits kept.
        mask: Data,
        /// Bits flipped.
        xor: Data,
    },
    /// Goes on when a set has the key, or has not.
    Lookup {
        /// Which set.
        set: Set,
        /// Where the key starts.
        key: Register,
        /// Goes on when it has not.
        invert: bool,
    },
    /// Loads the data of a map's element; ends the rule when there is none.
    Map {
        /// Which map.
        set: Set,
        /// Where the key starts.
        key: Register,
        /// Where to.
        to: Register,
    },
    /// Does what a verdict map's element says, when there is one.
    VerdictMap {
        /// Which map.
        set: Set,
        /// Where the key starts.
        key: Register,
    },
    /// Loads a constant.
    Immediate {
        /// Where to.
        to: Register,
        /// What.
        data: Data,
    },
    /// A verdict.
    Verdict(Verdict),
    /// Destination NAT to one address and port.
    Dnat {
        /// `NFPROTO_*`.
        family: u32,
        /// Where the address is.
        address: Register,
        /// Where the port is.
        port: Register,
    },
    /// Source NAT to an address of the output device.
    Masquerade {
        /// `NF_NAT_RANGE_*`.
        flags: u32,
    },
    /// Counts packets and bytes, from 0 on. How many there were is no part of it.
    Counter,
    /// An ICMP error or a TCP reset.
    Reject {
        /// `NFT_REJECT_*`.
        kind: u32,
        /// Code of the ICMP error.
        code: u8,
    },
    /// Asks the routing table.
    Fib {
        /// `NFT_FIB_RESULT_*`.
        result: u32,
        /// `NFTA_FIB_F_*`.
        flags: u32,
        /// Where to.
        to: Register,
    },
    /// A random or incrementing number, in host order.
    Numgen {
        /// `NFT_NG_*`.
        kind: u32,
        /// It is below this.
        modulus: u32,
        /// Added afterwards.
        offset: u32,
        /// Where to.
        to: Register,
    },
    /// Adds the key to a set, or renews its timeout.
    Update {
        /// Which set.
        set: Set,
        /// Where the key starts.
        key: Register,
        /// Milliseconds; 0 is the set's own.
        timeout: u64,
    },
    /// Something that sluice does not write, by the kernel's name for it.
    Unknown(String),
}

impl Expression {
    /// The kernel's name.
    pub fn name(&self) -> &str {
        match self {
            Expression::Payload { .. } => "payload",
            Expression::Meta { .. } | Expression::SetMeta { .. } => "meta",
            Expression::Ct { .. } => "ct",
            Expression::Cmp { .. } => "cmp",
            Expression::Bitwise { .. } => "bitwise",
            Expression::Lookup { .. } | Expression::Map { .. } | Expression::VerdictMap { .. } => "lookup",
            Expression::Immediate { .. } | Expression::Verdict(_) => "immediate",
            Expression::Dnat { .. } => "nat",
            Expression::Masquerade { .. } => "masq",
            Expression::Counter => "counter",
            Expression::Reject { .. } => "reject",
            Expression::Fib { .. } => "fib",
            Expression::Numgen { .. } => "numgen",
            Expression::Update { .. } => "dynset",
            Expression::Unknown(name) => name,
        }
    }

    /// Writes the expression as one element of a rule's list. [`Expression::Unknown`] has nothing but its name:
    /// the kernel refuses it.
    pub fn encode(&self, writer: &mut Writer) {
        writer.nested(NFTA_LIST_ELEM, |w| {
            w.string(NFTA_EXPR_NAME, self.name());
            w.nested(NFTA_EXPR_DATA, |w| self.encode_data(w));
        });
    }

    fn encode_data(&self, w: &mut Writer) {
        match *self {
            Expression::Payload { base, offset, length, to } => {
                w.u32(NFTA_PAYLOAD_DREG, to.number());
                w.u32(NFTA_PAYLOAD_BASE, base);
                w.u32(NFTA_PAYLOAD_OFFSET, offset);
                w.u32(NFTA_PAYLOAD_LEN, length);
            }
            Expression::Meta { key, to } => {
                w.u32(NFTA_META_KEY, key);
                w.u32(NFTA_META_DREG, to.number());
            }
            Expression::SetMeta { key, from } => {
                w.u32(NFTA_META_KEY, key);
                w.u32(NFTA_META_SREG, from.number());
            }
            Expression::Ct { key, direction, to } => {
                w.u32(NFTA_CT_KEY, key);
                w.u32(NFTA_CT_DREG, to.number());
                if let Some(direction) = direction {
                    w.u8(NFTA_CT_DIRECTION, direction);
                }
            }
            Expression::Cmp { from, operation, data } => {
                w.u32(NFTA_CMP_SREG, from.number());
                w.u32(NFTA_CMP_OP, operation);
                value(w, NFTA_CMP_DATA, data.as_bytes());
            }
            Expression::Bitwise { from, to, mask, xor } => {
                w.u32(NFTA_BITWISE_SREG, from.number());
                w.u32(NFTA_BITWISE_DREG, to.number());
                w.u32(NFTA_BITWISE_LEN, mask.length as u32);
                value(w, NFTA_BITWISE_MASK, mask.as_bytes());
                value(w, NFTA_BITWISE_XOR, xor.as_bytes());
            }
            Expression::Immediate { to, data } => {
                w.u32(NFTA_IMMEDIATE_DREG, to.number());
                value(w, NFTA_IMMEDIATE_DATA, data.as_bytes());
            }
            Expression::Verdict(verdict) => {
                w.u32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
                encode_verdict(w, NFTA_IMMEDIATE_DATA, verdict);
            }
            Expression::Dnat { family, address, port } => {
                w.u32(NFTA_NAT_TYPE, NFT_NAT_DNAT);
                w.u32(NFTA_NAT_FAMILY, family);
                w.u32(NFTA_NAT_REG_ADDR_MIN, address.number());
                w.u32(NFTA_NAT_REG_PROTO_MIN, port.number());
            }
            Expression::Counter => {}
            Expression::Masquerade { flags } => w.u32(NFTA_MASQ_FLAGS, flags),
            Expression::Reject { kind, code } => {
                w.u32(NFTA_REJECT_TYPE, kind);
                w.u8(NFTA_REJECT_ICMP_CODE, code);
            }
            Expression::Fib { result, flags, to } => {
                w.u32(NFTA_FIB_FLAGS, flags);
                w.u32(NFTA_FIB_RESULT, result);
                w.u32(NFTA_FIB_DREG, to.number());
            }
            Expression::Numgen { kind, modulus, offset, to } => {
                w.u32(NFTA_NG_DREG, to.number());
                w.u32(NFTA_NG_MODULUS, modulus);
                w.u32(NFTA_NG_TYPE, kind);
                w.u32(NFTA_NG_OFFSET, offset);
            }
            _ => self.encode_set_reference(w),
        }
    }

    fn encode_set_reference(&self, w: &mut Writer) {
        let lookup = |w: &mut Writer, set: Set, key: Register, to: Option<u32>| {
            w.u32(NFTA_LOOKUP_SREG, key.number());
            if let Some(to) = to {
                w.u32(NFTA_LOOKUP_DREG, to);
            }
            w.string(NFTA_LOOKUP_SET, &set.to_string());
        };
        match *self {
            Expression::Lookup { set, key, invert } => {
                lookup(w, set, key, None);
                if invert {
                    w.u32(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
                }
            }
            Expression::Map { set, key, to } => lookup(w, set, key, Some(to.number())),
            Expression::VerdictMap { set, key } => lookup(w, set, key, Some(NFT_REG_VERDICT)),
            Expression::Update { set, key, timeout } => {
                w.u32(NFTA_DYNSET_SREG_KEY, key.number());
                w.u32(NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE);
                if timeout != 0 {
                    w.u64(NFTA_DYNSET_TIMEOUT, timeout);
                }
                w.string(NFTA_DYNSET_SET_NAME, &set.to_string());
            }
            _ => {}
        }
    }
}

fn value(writer: &mut Writer, kind: u16, bytes: &[u8]) {
    writer.nested(kind, |w| w.bytes(NFTA_DATA_VALUE, bytes));
}

/// Writes a verdict as the data of an element or of an immediate.
pub(super) fn encode_verdict(writer: &mut Writer, kind: u16, verdict: Verdict) {
    let (code, chain) = match verdict {
        Verdict::Accept => (NF_ACCEPT, None),
        Verdict::Drop => (NF_DROP, None),
        Verdict::Return => (NFT_RETURN, None),
        Verdict::Goto(chain) => (NFT_GOTO, Some(chain)),
        Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
    };
    writer.nested(kind, |w| {
        w.nested(NFTA_DATA_VERDICT, |w| {
            w.u32(NFTA_VERDICT_CODE, code);
            if let Some(chain) = chain {
                w.display(NFTA_VERDICT_CHAIN, chain);
            }
        });
    });
}

pub(super) use decode::decode_verdict;
