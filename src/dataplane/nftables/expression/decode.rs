//! Expressions as the kernel gives them back.

use crate::netlink::{Attribute, Attributes, Malformed};

use super::super::model::{Chain, Set, Verdict};
use super::super::uapi::*;
use super::{Data, Expression, Register};

type Table<'a> = [Option<Attribute<'a>>; 12];

/// Why an expression is not one that sluice writes; it is [`Expression::Unknown`] then.
struct Foreign;

impl From<Malformed> for Foreign {
    fn from(_: Malformed) -> Foreign {
        Foreign
    }
}

impl Expression {
    /// The expressions of a rule's list.
    pub fn decode_list(list: Attributes<'_>) -> Result<Vec<Expression>, Malformed> {
        list.map(|attribute| Expression::decode(attribute?)).collect()
    }

    /// One element of a rule's list.
    pub fn decode(attribute: Attribute<'_>) -> Result<Expression, Malformed> {
        let [_, name, data] = attribute.nested().table()?;
        let name = name.ok_or(Malformed("an expression without its name"))?.string()?;
        let attributes: Table<'_> = match data {
            Some(data) => data.nested().table()?,
            None => Default::default(),
        };
        Ok(decode(name, &attributes).unwrap_or_else(|Foreign| Expression::Unknown(name.to_owned())))
    }
}

fn decode(name: &str, a: &Table<'_>) -> Result<Expression, Foreign> {
    Ok(match name {
        "payload" => Expression::Payload {
            base: number(a, NFTA_PAYLOAD_BASE)?,
            offset: number(a, NFTA_PAYLOAD_OFFSET)?,
            length: number(a, NFTA_PAYLOAD_LEN)?,
            to: register(a, NFTA_PAYLOAD_DREG)?,
        },
        "meta" => {
            let key = number(a, NFTA_META_KEY)?;
            match get(a, NFTA_META_SREG) {
                Some(_) => Expression::SetMeta { key, from: register(a, NFTA_META_SREG)? },
                None => Expression::Meta { key, to: register(a, NFTA_META_DREG)? },
            }
        }
        "ct" => Expression::Ct {
            key: number(a, NFTA_CT_KEY)?,
            direction: get(a, NFTA_CT_DIRECTION).map(|d| d.u8()).transpose()?,
            to: register(a, NFTA_CT_DREG)?,
        },
        "cmp" => Expression::Cmp {
            from: register(a, NFTA_CMP_SREG)?,
            operation: number(a, NFTA_CMP_OP)?,
            data: data(a, NFTA_CMP_DATA)?,
        },
        "bitwise" if optional(a, NFTA_BITWISE_OP)? == 0 => Expression::Bitwise {
            from: register(a, NFTA_BITWISE_SREG)?,
            to: register(a, NFTA_BITWISE_DREG)?,
            mask: data(a, NFTA_BITWISE_MASK)?,
            xor: data(a, NFTA_BITWISE_XOR)?,
        },
        "lookup" => lookup(a)?,
        "immediate" if number(a, NFTA_IMMEDIATE_DREG)? == NFT_REG_VERDICT => {
            let verdict = get(a, NFTA_IMMEDIATE_DATA).ok_or(Foreign)?;
            Expression::Verdict(decode_verdict(verdict)?.ok_or(Foreign)?)
        }
        "immediate" => Expression::Immediate {
            to: register(a, NFTA_IMMEDIATE_DREG)?,
            data: data(a, NFTA_IMMEDIATE_DATA)?,
        },
        "nat" => nat(a)?,
        "masq" if get(a, 2).is_none() && get(a, 3).is_none() => {
            Expression::Masquerade { flags: optional(a, NFTA_MASQ_FLAGS)? }
        }
        "counter" => Expression::Counter,
        "reject" => {
            let kind = number(a, NFTA_REJECT_TYPE)?;
            let code = get(a, NFTA_REJECT_ICMP_CODE).map(|code| code.u8()).transpose()?;
            // A reset has no code, whatever was written.
            let code = if kind == NFT_REJECT_TCP_RST { 0 } else { code.ok_or(Foreign)? };
            Expression::Reject { kind, code }
        }
        "fib" => Expression::Fib {
            result: number(a, NFTA_FIB_RESULT)?,
            flags: number(a, NFTA_FIB_FLAGS)?,
            to: register(a, NFTA_FIB_DREG)?,
        },
        "numgen" => Expression::Numgen {
            kind: number(a, NFTA_NG_TYPE)?,
            modulus: number(a, NFTA_NG_MODULUS)?,
            offset: optional(a, NFTA_NG_OFFSET)?,
            to: register(a, NFTA_NG_DREG)?,
        },
        "dynset" => update(a)?,
        _ => return Err(Foreign),
    })
}

fn lookup(a: &Table<'_>) -> Result<Expression, Foreign> {
    let set = set(a, NFTA_LOOKUP_SET)?;
    let key = register(a, NFTA_LOOKUP_SREG)?;
    let invert = match optional(a, NFTA_LOOKUP_FLAGS)? {
        0 => false,
        NFT_LOOKUP_F_INV => true,
        _ => return Err(Foreign),
    };
    match get(a, NFTA_LOOKUP_DREG) {
        None => Ok(Expression::Lookup { set, key, invert }),
        Some(_) if invert => Err(Foreign),
        Some(to) if to.u32()? == NFT_REG_VERDICT => Ok(Expression::VerdictMap { set, key }),
        Some(_) => Ok(Expression::Map { set, key, to: register(a, NFTA_LOOKUP_DREG)? }),
    }
}

fn nat(a: &Table<'_>) -> Result<Expression, Foreign> {
    let (address, port) = (register(a, NFTA_NAT_REG_ADDR_MIN)?, register(a, NFTA_NAT_REG_PROTO_MIN)?);
    // The kernel gives the upper ends of the ranges, too, which are the lower ends where none was written.
    let same = |kind, lower: Register| match get(a, kind) {
        None => Ok(true),
        Some(_) => register(a, kind).map(|upper| upper == lower),
    };
    let ranges = !same(NFTA_NAT_REG_ADDR_MAX, address)? || !same(NFTA_NAT_REG_PROTO_MAX, port)?;
    let flags = optional(a, NFTA_NAT_FLAGS)? & !NF_NAT_RANGE_IMPLIED;
    if number(a, NFTA_NAT_TYPE)? != NFT_NAT_DNAT || ranges || flags != 0 {
        return Err(Foreign);
    }
    Ok(Expression::Dnat { family: number(a, NFTA_NAT_FAMILY)?, address, port })
}

fn update(a: &Table<'_>) -> Result<Expression, Foreign> {
    let extras = [NFTA_DYNSET_SREG_DATA, NFTA_DYNSET_EXPR, NFTA_DYNSET_EXPRESSIONS];
    let plain = extras.iter().all(|kind| get(a, *kind).is_none()) && optional(a, NFTA_DYNSET_FLAGS)? == 0;
    if !plain || number(a, NFTA_DYNSET_OP)? != NFT_DYNSET_OP_UPDATE {
        return Err(Foreign);
    }
    let timeout = get(a, NFTA_DYNSET_TIMEOUT).map(|timeout| timeout.u64()).transpose()?;
    Ok(Expression::Update {
        set: set(a, NFTA_DYNSET_SET_NAME)?,
        key: register(a, NFTA_DYNSET_SREG_KEY)?,
        timeout: timeout.unwrap_or(0),
    })
}

/// A verdict that is the data of an element or of an immediate; `None` where sluice does not use it.
pub(in super::super) fn decode_verdict(data: Attribute<'_>) -> Result<Option<Verdict>, Malformed> {
    let [_, _, verdict] = data.nested().table()?;
    let Some(verdict) = verdict else { return Ok(None) };
    let [_, code, chain] = verdict.nested().table()?;
    let code = code.ok_or(Malformed("a verdict without its code"))?.u32()?;
    let chain = match chain {
        Some(chain) => chain.string()?.parse::<Chain>().ok(),
        None => None,
    };
    Ok(match (code, chain) {
        (NF_ACCEPT, _) => Some(Verdict::Accept),
        (NF_DROP, _) => Some(Verdict::Drop),
        (NFT_RETURN, _) => Some(Verdict::Return),
        (NFT_GOTO, Some(chain)) => Some(Verdict::Goto(chain)),
        (NFT_JUMP, Some(chain)) => Some(Verdict::Jump(chain)),
        _ => None,
    })
}

fn get<'a>(a: &Table<'a>, kind: u16) -> Option<Attribute<'a>> {
    a.get(usize::from(kind)).copied().flatten()
}

fn number(a: &Table<'_>, kind: u16) -> Result<u32, Foreign> {
    Ok(get(a, kind).ok_or(Foreign)?.u32()?)
}

/// 0 where the attribute is missing.
fn optional(a: &Table<'_>, kind: u16) -> Result<u32, Foreign> {
    Ok(get(a, kind).map(|attribute| attribute.u32()).transpose()?.unwrap_or(0))
}

fn register(a: &Table<'_>, kind: u16) -> Result<Register, Foreign> {
    Register::from_number(number(a, kind)?).ok_or(Foreign)
}

fn set(a: &Table<'_>, kind: u16) -> Result<Set, Foreign> {
    get(a, kind).ok_or(Foreign)?.string()?.parse().map_err(|_| Foreign)
}

fn data(a: &Table<'_>, kind: u16) -> Result<Data, Foreign> {
    let [_, value] = get(a, kind).ok_or(Foreign)?.nested().table()?;
    let value = value.ok_or(Foreign)?.value;
    if value.len() > 16 { Err(Foreign) } else { Ok(Data::new(value)) }
}
