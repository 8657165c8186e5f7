//! Rules, built once for both uses: each part adds its nft text and its expressions.

use std::fmt::{self, Write};

use crate::cluster::{Family, Protocol};

use super::super::expression::{Data, Expression, Register};
use super::super::model::{Chain, Set, Verdict};
use super::super::text::Duration;
use super::super::uapi::*;
use super::field::{Field, concatenation, family_pick};

/// One rule: the same thing as nft text and as expressions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    family: Family,
    /// The rule as nft lists it, without its comment.
    pub text: String,
    /// The rule as the kernel runs it.
    pub expressions: Vec<Expression>,
    /// Its comment.
    pub comment: Option<&'static str>,
}

/// Which address a routing question is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    Source,
    Destination,
}

/// An empty rule.
pub(super) fn rule(family: Family) -> Rule {
    Rule { family, text: String::new(), expressions: Vec::new(), comment: None }
}

impl Rule {
    fn say(&mut self, text: fmt::Arguments<'_>) {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        // Writing to a String does not fail.
        let _ = self.text.write_fmt(text);
    }

    /// Loads a concatenation of fields; answers where the next one would be.
    fn load(&mut self, fields: &[Field]) -> Register {
        // The port of one protocol is only looked at in packets of that protocol; nft adds the test by itself.
        for field in fields {
            if let Field::PortOf(protocol) = field {
                self.test_protocol(*protocol);
            }
        }
        let mut register = Register::FIRST;
        for field in fields {
            self.expressions.push(field.load(self.family, register));
            register = register.after(field.length(self.family));
        }
        register
    }

    fn test_protocol(&mut self, protocol: Protocol) {
        self.expressions.push(Field::L4Protocol.load(self.family, Register::FIRST));
        self.compare(true, Data::new(&[protocol.number()]));
    }

    fn compare(&mut self, equal: bool, data: Data) {
        let operation = if equal { NFT_CMP_EQ } else { NFT_CMP_NEQ };
        self.expressions.push(Expression::Cmp { from: Register::FIRST, operation, data });
    }

    /// Whether a property of the connection has this bit.
    fn has_bit(&mut self, key: u32, bit: u32) {
        let register = Register::FIRST;
        self.expressions.push(Expression::Ct { key, direction: None, to: register });
        let (mask, xor) = (Data::host(bit), Data::host(0));
        self.expressions.push(Expression::Bitwise { from: register, to: register, mask, xor });
        self.compare(false, Data::host(0));
    }

    /// `FIELDS @SET`.
    pub(super) fn lookup(mut self, fields: &[Field], set: Set) -> Rule {
        self.say(format_args!("{} @{set}", concatenation(self.family, fields)));
        self.load(fields);
        self.expressions.push(Expression::Lookup { set, key: Register::FIRST, invert: false });
        self
    }

    /// `FIELDS != @SET`.
    pub(super) fn lookup_not(mut self, fields: &[Field], set: Set) -> Rule {
        self.say(format_args!("{} != @{set}", concatenation(self.family, fields)));
        self.load(fields);
        self.expressions.push(Expression::Lookup { set, key: Register::FIRST, invert: true });
        self
    }

    /// `FIELDS vmap @MAP`.
    pub(super) fn verdict_map(mut self, fields: &[Field], set: Set) -> Rule {
        self.say(format_args!("{} vmap @{set}", concatenation(self.family, fields)));
        self.load(fields);
        self.expressions.push(Expression::VerdictMap { set, key: Register::FIRST });
        self
    }

    /// `dnat ip to FIELDS map @MAP`.
    pub(super) fn dnat(mut self, fields: &[Field], set: Set) -> Rule {
        let ip = family_pick(self.family, "ip", "ip6");
        self.say(format_args!("dnat {ip} to {} map @{set}", concatenation(self.family, fields)));
        self.load(fields);
        let address = Register::FIRST;
        self.expressions.push(Expression::Map { set, key: Register::FIRST, to: address });
        let port = address.after(Field::DestinationAddress.length(self.family));
        let family = self.family.number().into();
        self.expressions.push(Expression::Dnat { family, address, port });
        self
    }

    /// `meta priority set FIELDS map @MAP`.
    pub(super) fn set_priority_from(mut self, fields: &[Field], set: Set) -> Rule {
        self.say(format_args!("meta priority set {} map @{set}", concatenation(self.family, fields)));
        self.load(fields);
        self.expressions.push(Expression::Map { set, key: Register::FIRST, to: Register::FIRST });
        self.expressions.push(Expression::SetMeta { key: NFT_META_PRIORITY, from: Register::FIRST });
        self
    }

    /// `meta priority set none`: 0, what packets have where nobody sets it.
    pub(super) fn clear_priority(mut self) -> Rule {
        self.say(format_args!("meta priority set none"));
        self.expressions.push(Expression::Immediate { to: Register::FIRST, data: Data::host(0) });
        self.expressions.push(Expression::SetMeta { key: NFT_META_PRIORITY, from: Register::FIRST });
        self
    }

    /// `update @SET { FIELDS timeout T }`.
    pub(super) fn update(mut self, set: Set, fields: &[Field], seconds: u32) -> Rule {
        let key = concatenation(self.family, fields);
        self.say(format_args!("update @{set} {{ {key} timeout {} }}", Duration(seconds)));
        self.load(fields);
        let timeout = u64::from(seconds) * 1000;
        self.expressions.push(Expression::Update { set, key: Register::FIRST, timeout });
        self
    }

    /// `meta l4proto PROTOCOL`.
    pub(super) fn protocol(mut self, protocol: Protocol) -> Rule {
        self.say(format_args!("meta l4proto {protocol}"));
        self.test_protocol(protocol);
        self
    }

    /// `fib saddr type local`, `fib daddr type != local`.
    pub(super) fn local(mut self, side: Side, is: bool) -> Rule {
        let (name, flags) = match side {
            Side::Source => ("saddr", NFTA_FIB_F_SADDR),
            Side::Destination => ("daddr", NFTA_FIB_F_DADDR),
        };
        self.say(format_args!("fib {name} type {}local", if is { "" } else { "!= " }));
        self.expressions.push(Expression::Fib {
            result: NFT_FIB_RESULT_ADDRTYPE,
            flags,
            to: Register::FIRST,
        });
        self.compare(is, Data::host(RTN_LOCAL));
        self
    }

    /// `iif != 0`: the packet was received; `iif 0`: this host made it, or the hook does not know its origin.
    pub(super) fn received(mut self, is: bool) -> Rule {
        self.say(format_args!("{}", if is { "iif != 0" } else { "iif 0" }));
        self.expressions.push(Expression::Meta { key: NFT_META_IIF, to: Register::FIRST });
        self.compare(!is, Data::host(0));
        self
    }

    /// `iifname "NAME"`, `iifname != "NAME"`; with `prefix`, `"NAME*"`. Names have at most 15 bytes.
    pub(super) fn interface(mut self, is: bool, name: &str, prefix: bool) -> Rule {
        // A prefix as long as a name can be is a name; nft takes no more.
        let prefix = prefix && name.len() < 15;
        let not = if is { "" } else { "!= " };
        let star = if prefix { "*" } else { "" };
        self.say(format_args!("iifname {not}\"{name}{star}\""));
        self.expressions.push(Expression::Meta { key: NFT_META_IIFNAME, to: Register::FIRST });
        self.compare(is, if prefix { Data::new(name.as_bytes()) } else { Data::interface(name) });
        self
    }

    /// `ct status dnat`.
    pub(super) fn translated(mut self) -> Rule {
        self.say(format_args!("ct status dnat"));
        self.has_bit(NFT_CT_STATUS, IPS_DST_NAT);
        self
    }

    /// `ct state invalid`: conntrack could not make it fit a connection, and no translation is applied.
    pub(super) fn invalid(mut self) -> Rule {
        self.say(format_args!("ct state invalid"));
        self.has_bit(NFT_CT_STATE, NF_CT_STATE_INVALID_BIT);
        self
    }

    /// `counter`.
    pub(super) fn counter(mut self) -> Rule {
        self.say(format_args!("counter packets 0 bytes 0"));
        self.expressions.push(Expression::Counter);
        self
    }

    /// `ct direction original`: not an answer, nor a refusal of ours.
    pub(super) fn original_direction(mut self) -> Rule {
        self.say(format_args!("ct direction original"));
        self.expressions.push(Expression::Ct { key: NFT_CT_DIRECTION, direction: None, to: Register::FIRST });
        self.compare(true, Data::new(&[IP_CT_DIR_ORIGINAL]));
        self
    }

    /// `masquerade fully-random`.
    pub(super) fn masquerade(mut self) -> Rule {
        self.say(format_args!("masquerade fully-random"));
        self.expressions.push(Expression::Masquerade { flags: NF_NAT_RANGE_PROTO_RANDOM_FULLY });
        self
    }

    /// `reject with tcp reset`.
    pub(super) fn reset(mut self) -> Rule {
        self.say(format_args!("reject with tcp reset"));
        self.expressions.push(Expression::Reject { kind: NFT_REJECT_TCP_RST, code: 0 });
        self
    }

    /// `reject`: port unreachable.
    pub(super) fn reject(mut self) -> Rule {
        self.say(format_args!("reject"));
        let code = family_pick(self.family, ICMP_PORT_UNREACH, ICMPV6_PORT_UNREACH);
        self.expressions.push(Expression::Reject { kind: NFT_REJECT_ICMP_UNREACH, code });
        self
    }

    /// A verdict.
    pub(super) fn verdict(mut self, verdict: Verdict) -> Rule {
        self.say(format_args!("{verdict}"));
        self.expressions.push(Expression::Verdict(verdict));
        self
    }

    /// `goto CHAIN`.
    pub(super) fn goto(self, chain: Chain) -> Rule {
        self.verdict(Verdict::Goto(chain))
    }

    /// Adds a comment.
    pub(super) fn comment(mut self, comment: &'static str) -> Rule {
        self.comment = Some(comment);
        self
    }

    /// The user data in which nft keeps the comment: its libnftnl TLV 0.
    pub(in super::super) fn user_data(&self) -> Option<Vec<u8>> {
        self.comment.map(super::comment_user_data)
    }
}

impl fmt::Display for Rule {
    /// As nft lists it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match self.comment {
            Some(comment) => write!(f, " comment \"{comment}\""),
            None => Ok(()),
        }
    }
}
