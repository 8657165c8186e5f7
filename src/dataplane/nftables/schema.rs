//! The tables that sluice makes, as data: which sets, which chains, which rules.
//!
//! The sets and the base chains are the tables below; the rules are in [`rules`], in the order of a packet's way.
//! A [`Rule`] carries its nft text beside its expressions, so that what is printed and what is sent to the kernel
//! come from the same line.

mod field;
mod rule;

use crate::cluster::{Family, Protocol};

pub use field::Field;
pub use rule::Rule;

use Field::{
    Constant, DestinationAddress, DestinationPort, L4Protocol, OriginalDestinationAddress,
    OriginalDestinationPort, PortOf, Priority, Random, SourceAddress, SourcePort,
};
use field::{concatenation, family_pick, tlv, tlv_u32, typeof_fields, typeof_verdict};
use rule::{Side, rule};

use super::model::{Chain, LOCAL_OFFSET, LocalDetection, Set, Structure, Verdict};
use super::uapi::*;

/// The comment of the tables.
pub const COMMENT: &str = "sluice service proxy";

/// What packets are looked up by.
const KEY: [Field; 3] = [DestinationAddress, L4Protocol, DestinationPort];
/// What answers are looked up by.
const SOURCE_KEY: [Field; 3] = [SourceAddress, L4Protocol, SourcePort];
/// The same of the connection, before translation.
const ORIGINAL_KEY: [Field; 3] = [OriginalDestinationAddress, L4Protocol, OriginalDestinationPort];
/// A client of a service port with session affinity.
const CLIENT: [Field; 2] = [SourceAddress, Priority];
/// How `typeof` says that a part of a key is a number: nft has no plain integer there.
const INDEX: Field = Random(2, 0);

/// What the elements of a set hold beside their key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Nothing,
    Verdict,
    Data(&'static [Field]),
}

/// The sets of every table in the order in which nft lists them, which is that of their making.
const SETS: [(Set, &[Field], Holds); 20] = [
    (Set::PodCidrs, &[SourceAddress], Holds::Nothing),
    (Set::ServiceCidrs, &[SourceAddress], Holds::Nothing),
    (Set::ClusterIps, &[SourceAddress], Holds::Nothing),
    (Set::Services, &KEY, Holds::Verdict),
    (
        Set::Endpoints,
        &[DestinationAddress, L4Protocol, DestinationPort, INDEX],
        // Not `tcp dport`: nft would list the first rule that uses the map with it, and a reload would
        // restrict that rule to TCP.
        Holds::Data(&[DestinationAddress, DestinationPort]),
    ),
    (Set::Special, &KEY, Holds::Nothing),
    (Set::Restricted, &KEY, Holds::Nothing),
    // One set a protocol: with `meta l4proto` inside an interval key nft 1.0.6 adds a byteorder expression of
    // one byte, which kernel 6.12.117 refuses (EOPNOTSUPP).
    (
        Set::AllowedSources(Protocol::Tcp),
        &[DestinationAddress, PortOf(Protocol::Tcp), SourceAddress],
        Holds::Nothing,
    ),
    (
        Set::AllowedSources(Protocol::Udp),
        &[DestinationAddress, PortOf(Protocol::Udp), SourceAddress],
        Holds::Nothing,
    ),
    (
        Set::AllowedSources(Protocol::Sctp),
        &[DestinationAddress, PortOf(Protocol::Sctp), SourceAddress],
        Holds::Nothing,
    ),
    (Set::LocalServices, &KEY, Holds::Verdict),
    (Set::MasqueradeAll, &KEY, Holds::Nothing),
    (Set::MasqueradeOwn, &KEY, Holds::Nothing),
    (Set::Hairpin, &[SourceAddress, DestinationAddress], Holds::Nothing),
    (Set::AffinityIds, &KEY, Holds::Data(&[Priority])),
    (Set::LocalAffinityIds, &KEY, Holds::Data(&[Priority])),
    (Set::Slots, &[Priority, INDEX], Holds::Verdict),
    (Set::Choices, &[Priority, INDEX], Holds::Verdict),
    (Set::IpvsAddresses, &[SourceAddress], Holds::Nothing),
    (Set::Serving, &SOURCE_KEY, Holds::Nothing),
];

/// Clients that all `sticky-K` sets together remember at least; an element is some 104 bytes (6.18). A full set
/// stops no traffic, it only forgets.
const STICKY_BUDGET: u32 = 262_144;

/// Elements that a `sticky-K` set takes. A set's size is given once, while their number grows: so each doubling of
/// the number halves the size of those that come, and all of N together stay below `(1 + log2(N) / 2)` budgets.
pub fn sticky_size(slot: u32) -> u32 {
    (STICKY_BUDGET / slot.saturating_add(1).next_power_of_two()).max(1024)
}

/// Seconds that a `sticky-K` element lives where the rule that adds it does not say: the default of
/// `sessionAffinityConfig.clientIP.timeoutSeconds`.
pub const STICKY_TIMEOUT: u32 = 10_800;

/// A base chain's place in the kernel. All are of type nat, so that established packets run no rule at all, but for
/// those that look for INVALID packets, where the operator asks for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// `NF_INET_*`.
    pub hook: u32,
    /// Lower runs earlier.
    pub priority: i32,
    /// As nft lists it.
    pub text: &'static str,
}

/// Translation runs before everybody else's (dstnat is -100): at equal priority the newest chain would be first.
/// Refusing what nobody serves runs after them: once one has translated a packet, these do not run.
///
/// What drops INVALID packets runs after conntrack (-200) and before anything is decided by addresses; a forward chain
/// would not see those for this host, which it would answer with a reset.
const BASE_CHAINS: [(Chain, Hook); 7] = [
    (
        Chain::Prerouting,
        Hook {
            kind: "nat",
            hook: NF_INET_PRE_ROUTING,
            priority: -101,
            text: "type nat hook prerouting priority dstnat - 1; policy accept;",
        },
    ),
    (
        Chain::Output,
        Hook {
            kind: "nat",
            hook: NF_INET_LOCAL_OUT,
            priority: -101,
            text: "type nat hook output priority -101; policy accept;",
        },
    ),
    (
        Chain::PreroutingUnclaimed,
        Hook {
            kind: "nat",
            hook: NF_INET_PRE_ROUTING,
            priority: -50,
            text: "type nat hook prerouting priority -50; policy accept;",
        },
    ),
    (
        Chain::OutputUnclaimed,
        Hook {
            kind: "nat",
            hook: NF_INET_LOCAL_OUT,
            priority: -50,
            text: "type nat hook output priority -50; policy accept;",
        },
    ),
    (
        Chain::Postrouting,
        Hook {
            kind: "nat",
            hook: NF_INET_POST_ROUTING,
            priority: 100,
            text: "type nat hook postrouting priority srcnat; policy accept;",
        },
    ),
    (
        Chain::PreroutingInvalid,
        Hook {
            kind: "filter",
            hook: NF_INET_PRE_ROUTING,
            priority: -150,
            text: "type filter hook prerouting priority mangle; policy accept;",
        },
    ),
    (
        Chain::OutputInvalid,
        Hook {
            kind: "filter",
            hook: NF_INET_LOCAL_OUT,
            priority: -150,
            text: "type filter hook output priority mangle; policy accept;",
        },
    ),
];

/// The chains that do not depend on what is served, in the order in which nft lists them.
const CHAINS: [Chain; 15] = [
    Chain::Prerouting,
    Chain::Output,
    Chain::Services,
    Chain::PreroutingUnclaimed,
    Chain::OutputUnclaimed,
    Chain::Unclaimed,
    Chain::Special,
    Chain::Postrouting,
    Chain::AfterDnat,
    Chain::MasqueradeExternal,
    Chain::NoEndpoints,
    Chain::PreroutingInvalid,
    Chain::OutputInvalid,
    Chain::Invalid,
    Chain::DropInvalid,
];

/// The chains of a table of this structure but for those of a count.
pub fn chains(structure: &Structure) -> impl Iterator<Item = Chain> + Clone + use<> {
    let drop_invalid = structure.drop_invalid;
    CHAINS.into_iter().filter(move |chain| match chain {
        Chain::PreroutingInvalid | Chain::OutputInvalid | Chain::Invalid | Chain::DropInvalid => drop_invalid,
        _ => true,
    })
}

/// The sets of a table of this structure; `sticky-K` is made when it is needed.
pub fn sets(structure: &Structure) -> impl Iterator<Item = Set> + use<> {
    let (ipvs, drop_invalid) = (structure.ipvs, structure.drop_invalid);
    SETS.into_iter().map(|(set, ..)| set).filter(move |set| match set {
        Set::IpvsAddresses => ipvs,
        Set::Serving => drop_invalid,
        _ => true,
    })
}

/// Where a set is in the order of their making.
pub fn position(set: Set) -> u32 {
    SETS.iter().position(|(other, ..)| *other == set).map_or(0, |index| index as u32)
}

/// The place of a base chain; `None` for the others.
pub fn hook(chain: Chain) -> Option<Hook> {
    BASE_CHAINS.into_iter().find(|(base, _)| *base == chain).map(|(_, hook)| hook)
}

/// A set as the kernel knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetDefinition {
    /// `NFT_SET_*`.
    pub flags: u32,
    /// nft's data types of the key, 6 bits each.
    pub key_type: u32,
    /// Bytes of the key, each part padded to 4.
    pub key_length: u32,
    /// The same of the data; `NFT_DATA_VERDICT` for verdicts.
    pub data_type: u32,
    /// Bytes of the data.
    pub data_length: u32,
    /// Most elements; 0 is unlimited.
    pub size: u32,
    /// Milliseconds that an element lives; 0 is for ever.
    pub timeout: u64,
    /// Bytes of each part of the key, where ranges of them are looked up.
    pub parts: Vec<u32>,
}

/// The parts of a set's key, and what its elements hold.
fn parts(set: Set) -> (&'static [Field], Holds) {
    match set {
        Set::Sticky(_) => (&CLIENT, Holds::Nothing),
        set => SETS
            .iter()
            .find(|(listed, ..)| *listed == set)
            .map_or((&[], Holds::Nothing), |(_, key, holds)| (*key, *holds)),
    }
}

/// The definition of a set.
pub fn definition(family: Family, set: Set) -> SetDefinition {
    let (key, holds) = parts(set);
    let data_type = |fields: &[Field]| fields.iter().fold(0, |all, f| all << 6 | f.data_type(family));
    let length = |fields: &[Field]| fields.iter().map(|f| f.length(family).next_multiple_of(4)).sum();
    let mut definition =
        SetDefinition { key_type: data_type(key), key_length: length(key), ..Default::default() };
    match holds {
        Holds::Nothing => {}
        Holds::Verdict => {
            definition.flags |= NFT_SET_MAP;
            definition.data_type = NFT_DATA_VERDICT;
        }
        Holds::Data(fields) => {
            definition.flags |= NFT_SET_MAP;
            definition.data_type = data_type(fields);
            definition.data_length = length(fields);
        }
    }
    match set {
        Set::PodCidrs | Set::ServiceCidrs => definition.flags |= NFT_SET_INTERVAL,
        Set::AllowedSources(_) => {
            definition.flags |= NFT_SET_INTERVAL | NFT_SET_CONCAT;
            definition.parts = key.iter().map(|field| field.length(family)).collect();
        }
        Set::Sticky(slot) => {
            definition.flags |= NFT_SET_EVAL | NFT_SET_TIMEOUT;
            definition.size = sticky_size(slot);
            definition.timeout = u64::from(STICKY_TIMEOUT) * 1000;
        }
        _ => {}
    }
    definition
}

/// libnftnl's `NFTNL_UDATA_SET_*`.
const UDATA_SET_KEYBYTEORDER: u8 = 0;
const UDATA_SET_DATABYTEORDER: u8 = 1;
const UDATA_SET_KEY_TYPEOF: u8 = 3;
const UDATA_SET_DATA_TYPEOF: u8 = 4;
const UDATA_SET_DATA_INTERVAL: u8 = 6;
/// nft's `enum byteorder`; a concatenation has none.
const BYTEORDER_INVALID: u32 = 0;
const BYTEORDER_HOST_ENDIAN: u32 = 1;
const BYTEORDER_BIG_ENDIAN: u32 = 2;

/// The user data that nft 1.0.6 would write with a set. nft prints the set by it: without, a number in a key is
/// listed as `[invalid type]` and does not load again. nft 1.1.3 reads it; what 1.1.3 itself writes, 1.0.6 crashes on.
pub fn set_user_data(family: Family, set: Set) -> Vec<u8> {
    let (key, holds) = parts(set);
    let mut out = Vec::with_capacity(192);
    let order = if key.len() == 1 { BYTEORDER_BIG_ENDIAN } else { BYTEORDER_INVALID };
    tlv_u32(&mut out, UDATA_SET_KEYBYTEORDER, order);
    if holds != Holds::Nothing {
        let order = if matches!(holds, Holds::Data([_])) { BYTEORDER_HOST_ENDIAN } else { BYTEORDER_INVALID };
        tlv_u32(&mut out, UDATA_SET_DATABYTEORDER, order);
    }
    // A set of single addresses is declared by `type`.
    if key.len() > 1 {
        typeof_fields(&mut out, UDATA_SET_KEY_TYPEOF, family, key);
    }
    match holds {
        Holds::Nothing => return out,
        Holds::Verdict => typeof_verdict(&mut out, UDATA_SET_DATA_TYPEOF),
        Holds::Data(fields) => typeof_fields(&mut out, UDATA_SET_DATA_TYPEOF, family, fields),
    }
    tlv_u32(&mut out, UDATA_SET_DATA_INTERVAL, 0);
    out
}

/// The lines of a set's declaration as nft lists them, without its elements.
pub fn set_text(family: Family, set: Set) -> Vec<String> {
    let (key, holds) = parts(set);
    let mut key_text = match key {
        [_] => format!("type {}", family_pick(family, "ipv4_addr", "ipv6_addr")),
        key => format!("typeof {}", concatenation(family, key)),
    };
    match holds {
        Holds::Nothing => {}
        Holds::Verdict => key_text.push_str(" : verdict"),
        Holds::Data(fields) => key_text.extend([" : ", &concatenation(family, fields)]),
    }
    let mut lines = vec![key_text];
    match set {
        Set::PodCidrs | Set::ServiceCidrs | Set::AllowedSources(_) => lines.push("flags interval".to_owned()),
        Set::Sticky(slot) => {
            lines.push(format!("size {}", sticky_size(slot)));
            lines.push("flags dynamic,timeout".to_owned());
            lines.push(format!("timeout {}", super::text::Duration(STICKY_TIMEOUT)));
        }
        _ => {}
    }
    lines
}

/// `map` or `set`, nft's word for it.
pub fn set_keyword(set: Set) -> &'static str {
    if parts(set).1 == Holds::Nothing { "set" } else { "map" }
}

/// A rule for which the kernel tracks connections, whether or not a packet ever comes to it.
pub fn about_connections() -> Rule {
    rule(Family::Ipv4).translated()
}

/// Whatever comes is dropped.
pub fn drop_all(family: Family) -> Rule {
    rule(family).verdict(Verdict::Drop)
}

/// The rules of a chain.
pub fn rules(family: Family, chain: Chain, structure: &Structure) -> Vec<Rule> {
    let new = || rule(family);
    let indexed = |index| [DestinationAddress, L4Protocol, DestinationPort, index];
    // The trailing drop catches a packet that read the old count and the new endpoints: untranslated, its
    // connection would stay broken for as long as conntrack remembers it.
    let translate = |index| [new().dnat(&indexed(index), Set::Endpoints), new().verdict(Verdict::Drop)];
    match chain {
        Chain::Prerouting | Chain::Output => vec![new().goto(Chain::Services)],
        Chain::Services => vec![
            new().lookup(&KEY, Set::Special).verdict(Verdict::Jump(Chain::Special)),
            new().verdict_map(&KEY, Set::Services),
        ],
        Chain::PreroutingUnclaimed | Chain::OutputUnclaimed => vec![new().goto(Chain::Unclaimed)],
        Chain::Unclaimed => unclaimed(family, structure),
        Chain::Special => special(family, structure),
        // Conntrack does not know what IPVS translates as such. A reset that refuses a connection comes here, too, and
        // has to keep its source.
        Chain::Postrouting if structure.ipvs => vec![new().original_direction().goto(Chain::AfterDnat)],
        Chain::Postrouting => vec![new().translated().goto(Chain::AfterDnat)],
        Chain::AfterDnat => after_dnat(family, structure),
        Chain::MasqueradeExternal => masquerade_external(family),
        // A reset, not an ICMP error, for TCP: IPv6 connect() acts on an unreachable port only at its second
        // SYN, a second later.
        Chain::NoEndpoints => vec![new().protocol(Protocol::Tcp).reset(), new().reject()],
        Chain::PreroutingInvalid | Chain::OutputInvalid => vec![new().invalid().goto(Chain::Invalid)],
        Chain::Invalid => invalid(family),
        Chain::DropInvalid => vec![new().counter().verdict(Verdict::Drop)],
        Chain::Endpoints(n) => translate(Random(n, 0)).into(),
        Chain::Local(n) => translate(Random(n, LOCAL_OFFSET)).into(),
        Chain::Pick(timeout, slot) => {
            // The update is a rule of its own: a full set must not stop traffic.
            let [dnat, drop] = translate(Constant(slot));
            vec![new().update(Set::Sticky(slot), &CLIENT, timeout), new().clear_priority(), dnat, drop]
        }
        Chain::Sticky(slots, choices) => sticky(family, Set::AffinityIds, slots, choices),
        Chain::StickyLocal(slots, choices) => sticky(family, Set::LocalAffinityIds, slots, choices),
    }
}

fn unclaimed(family: Family, structure: &Structure) -> Vec<Rule> {
    let to = |set| rule(family).lookup(&[DestinationAddress], set);
    let unallocated = to(Set::ServiceCidrs)
        .local(Side::Destination, false)
        .verdict(Verdict::Drop)
        .comment("not an allocated ClusterIP");
    if structure.ipvs {
        // What IPVS serves is accepted once more, since it is translated later. Anything else to an address that
        // is this host's only for the sake of IPVS must not reach the host's own programs.
        let served = rule(family).verdict(Verdict::Jump(Chain::Services));
        // The host goes to such an address from that address, so the reset that refuses it is sent there, too.
        let unserved = rule(family).original_direction().lookup(&[DestinationAddress], Set::IpvsAddresses);
        return vec![served, unserved.goto(Chain::NoEndpoints), unallocated];
    }
    // A packet that passed the chains before this one before the commit that made them, and this one after it, is translated
    // here: the table that was before, of mode ipvs, has accepted it.
    let served = to(Set::ClusterIps).verdict(Verdict::Jump(Chain::Services));
    vec![served, to(Set::ClusterIps).goto(Chain::NoEndpoints), unallocated]
}

fn special(family: Family, structure: &Structure) -> Vec<Rule> {
    let new = || rule(family);
    let mut rules: Vec<Rule> = Protocol::ALL
        .into_iter()
        .map(|protocol| {
            new()
                .lookup(&KEY, Set::Restricted)
                .lookup_not(
                    &[DestinationAddress, PortOf(protocol), SourceAddress],
                    Set::AllowedSources(protocol),
                )
                .verdict(Verdict::Drop)
        })
        .collect();
    // Pods and this node are inside: for them externalTrafficPolicy does not count. In prerouting a bridge is
    // the input device of its ports' packets, br_netfilter or not. In output there is no input device and its
    // name is empty, so that only the rule about this node's addresses can match.
    match &structure.local_detection {
        LocalDetection::None => {}
        LocalDetection::Cidr => {
            rules.push(new().lookup(&[SourceAddress], Set::PodCidrs).verdict(Verdict::Return));
        }
        LocalDetection::Bridge(name) => {
            rules.push(new().interface(true, name, false).verdict(Verdict::Return));
        }
        LocalDetection::InterfacePrefix(name) => {
            rules.push(new().interface(true, name, true).verdict(Verdict::Return));
        }
    }
    rules.push(new().local(Side::Source, true).verdict(Verdict::Return));
    rules.push(new().verdict_map(&KEY, Set::LocalServices));
    rules
}

fn after_dnat(family: Family, structure: &Structure) -> Vec<Rule> {
    let to_cluster_ip = || rule(family).lookup(&[OriginalDestinationAddress], Set::ClusterIps);
    // Under br_netfilter there is no input device in postrouting: a pod's packet to a pod on the same bridge
    // looks as if this node had made it, but for its source address.
    let by_interface = |name: &str, prefix| {
        [
            to_cluster_ip().received(true).interface(false, name, prefix).masquerade(),
            to_cluster_ip().received(false).local(Side::Source, true).masquerade(),
        ]
    };
    let mut rules = match &structure.local_detection {
        // Nothing to be decided by the source any more.
        _ if structure.masquerade_all => vec![to_cluster_ip().masquerade()],
        LocalDetection::None if structure.ipvs => Vec::new(),
        // Where the host has the address itself, it goes there from it, and no endpoint could answer: while mode ipvs
        // ends, or by another program's doing.
        LocalDetection::None => vec![rule(family).lookup(&[SourceAddress], Set::ClusterIps).masquerade()],
        LocalDetection::Cidr => {
            vec![to_cluster_ip().lookup_not(&[SourceAddress], Set::PodCidrs).masquerade()]
        }
        LocalDetection::Bridge(name) => by_interface(name, false).into(),
        LocalDetection::InterfacePrefix(name) => by_interface(name, true).into(),
    };
    let hairpin = rule(family).lookup(&[SourceAddress, DestinationAddress], Set::Hairpin);
    if structure.ipvs {
        // To an address of kube-ipvs0 the host goes from that address, which no endpoint could answer.
        rules.push(rule(family).lookup(&[SourceAddress], Set::IpvsAddresses).masquerade());
        // The host's connections to itself come here, too, which nobody translated.
        rules.push(hairpin.local(Side::Source, false).masquerade());
    } else {
        rules.push(hairpin.masquerade());
    }
    rules.push(rule(family).goto(Chain::MasqueradeExternal));
    rules
}

/// One rule a protocol only because the text needs to know what `proto-dst` is. They must not use `th dport`: nft
/// would list that as `tcp dport`, without the rest.
fn masquerade_external(family: Family) -> Vec<Rule> {
    let of = |protocol, set| rule(family).protocol(protocol).lookup(&ORIGINAL_KEY, set);
    let all = Protocol::ALL.into_iter().map(|p| of(p, Set::MasqueradeAll).masquerade());
    let own =
        Protocol::ALL.into_iter().map(|p| of(p, Set::MasqueradeOwn).local(Side::Source, true).masquerade());
    all.chain(own).collect()
}

/// INVALID packets are not translated, so they carry the addresses that they were sent with: answers the endpoint's,
/// requests the Service's.
fn invalid(family: Family) -> Vec<Rule> {
    let of = |fields: &[Field], set| rule(family).lookup(fields, set).goto(Chain::DropInvalid);
    vec![
        of(&SOURCE_KEY, Set::Serving),
        of(&[DestinationAddress], Set::ClusterIps),
        of(&KEY, Set::MasqueradeAll),
        of(&KEY, Set::MasqueradeOwn),
    ]
}

/// Looks for the client in each slot, else chooses. The service port's id travels in the packet's priority, on
/// the first packet of a flow only, and no fwmark is touched.
fn sticky(family: Family, ids: Set, slots: u32, choices: u32) -> Vec<Rule> {
    let new = || rule(family);
    let mut rules = vec![new().set_priority_from(&KEY, ids)];
    rules.extend((0..slots).map(|slot| {
        new().lookup(&CLIENT, Set::Sticky(slot)).verdict_map(&[Priority, Constant(slot)], Set::Slots)
    }));
    rules.push(new().verdict_map(&[Priority, Random(choices, 0)], Set::Choices));
    rules.push(new().verdict(Verdict::Drop));
    rules
}

/// A comment as nft keeps it in user data.
pub(crate) fn comment_user_data(comment: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(comment.len() + 3);
    tlv(&mut out, 0, |out| {
        out.extend_from_slice(comment.as_bytes());
        out.push(0);
    });
    out
}

/// `ip sluice` or `ip6 sluice`.
pub fn table_name(family: Family) -> &'static str {
    family_pick(family, "ip sluice", "ip6 sluice")
}

#[cfg(test)]
mod tests;
