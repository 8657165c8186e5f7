//! The nf_tables rules of every program, as far as it takes to see where they send packets.

use nix::errno::Errno;
use rustc_hash::FxHashMap;

use crate::dataplane::nftables::uapi::*;
use crate::netlink::{Attribute, Error, Malformed, Message, Request, Socket};

/// `NFPROTO_UNSPEC`: all families.
const ALL_FAMILIES: u8 = 0;
/// `NFTA_RULE_HANDLE`.
pub(super) const NFTA_RULE_HANDLE: u16 = 3;
/// `NFTA_TARGET_NAME` and `NFTA_MATCH_NAME` of `linux/netfilter/nf_tables_compat.h`.
const NFTA_COMPAT_NAME: u16 = 1;
/// `NFTA_MATCH_INFO`.
const NFTA_MATCH_INFO: u16 = 3;
/// `XT_CONNTRACK_STATE` and `XT_CONNTRACK_STATE_DNAT` of `linux/netfilter/xt_conntrack.h`.
const XT_CONNTRACK_STATE: u16 = 1;
const XT_CONNTRACK_STATE_DNAT: u16 = 1 << 7;
/// nft's data type of ports.
const TYPE_INET_SERVICE: u32 = 13;
/// `NFT_META_NFPROTO`.
const NFT_META_NFPROTO: u32 = 15;
/// How often the rules are read again that changed meanwhile.
const TRIES: usize = 20;

/// All tables of one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The generation that they belong to.
    pub generation: u32,
    /// In the kernel's order.
    pub tables: Vec<Table>,
}

/// One table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// `NFPROTO_*`.
    pub family: u8,
    /// Its name.
    pub name: String,
    /// Whether it is one of iptables-legacy, which nf_tables does not know.
    pub legacy: bool,
    /// In the kernel's order.
    pub chains: Vec<Chain>,
}

/// One chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where the kernel calls it from; `None`: only other chains do.
    pub hook: Option<Hook>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// A base chain's place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hook {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// `NF_INET_*`.
    pub hook: u32,
    /// Lower is earlier.
    pub priority: i32,
    /// Whether what no rule decided on is dropped.
    pub drops: bool,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The kernel's number for it.
    pub handle: u64,
    /// Its expressions.
    pub parts: Vec<Part>,
}

/// One expression, as far as it is understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Calls another chain, to come back or not.
    Jump(String),
    /// Drops.
    Drop,
    /// Accepts.
    Accept,
    /// Another verdict.
    Verdict,
    /// An ICMP error or a reset.
    Reject,
    /// Translates the destination: nft's own `dnat` and `redirect`, or iptables' targets.
    Dnat,
    /// Loads bytes of a header: `NFT_PAYLOAD_*`, offset, length.
    Load(u32, u32, u32),
    /// Keeps these bits of what was loaded.
    Mask(Vec<u8>),
    /// Compares what was loaded: whether it has to be equal, and to what.
    Compare(bool, Vec<u8>),
    /// What was loaded has to be that or more, in memory order.
    AtLeast(Vec<u8>),
    /// What was loaded has to be that or less.
    AtMost(Vec<u8>),
    /// What was loaded has to be between these, both included.
    Between(Vec<u8>, Vec<u8>),
    /// What was loaded has to be a member of a set.
    In(String),
    /// Loads the packet's family (`NFT_META_NFPROTO`), which nft asks for in tables of both.
    LoadFamily,
    /// Loads the status of the connection (`NFT_CT_STATUS`).
    LoadStatus,
    /// Goes on for connections whose destination is translated.
    Translated,
    /// Goes on for destination ports in one of these ranges, first and last.
    Ports(Vec<(u16, u16)>),
    /// Counts, remarks and the like: what lets every packet pass.
    Neutral,
    /// Anything else, by the kernel's name.
    Other(String),
}

impl Rule {
    /// Its expressions without those that let every packet of a family pass.
    pub fn essence(&self) -> Vec<&Part> {
        let mut essence = Vec::new();
        let mut parts = self.parts.iter().filter(|part| **part != Part::Neutral);
        while let Some(part) = parts.next() {
            match part {
                Part::LoadFamily => drop(parts.next()),
                part => essence.push(part),
            }
        }
        essence
    }

    /// The ranges of destination ports that it goes on for; `None`: it does not ask.
    pub fn destination_ports(&self) -> Option<Vec<(u16, u16)>> {
        let mut found = None;
        let mut loaded = false;
        let mut first = 0;
        for part in &self.parts {
            let port = |value: &[u8]| value.get(..2).map(|v| u16::from_be_bytes([v[0], v[1]]));
            match part {
                Part::Load(base, offset, length) => {
                    loaded = (*base, *offset, *length) == (NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
                }
                Part::Compare(true, value) if loaded => found = port(value).map(|port| vec![(port, port)]),
                Part::AtLeast(value) if loaded => {
                    first = port(value).unwrap_or_default();
                    found = Some(vec![(first, u16::MAX)]);
                }
                Part::AtMost(value) if loaded => found = port(value).map(|last| vec![(first, last)]),
                Part::Between(from, to) if loaded => {
                    found = port(from).zip(port(to)).map(|range| vec![range]);
                }
                Part::Ports(ranges) => found = Some(ranges.clone()),
                _ => {}
            }
        }
        // All ports are as good as none.
        found.filter(|ranges| *ranges != [(0, u16::MAX)])
    }

    /// The chains that it calls.
    pub fn jumps(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Jump(chain) => Some(&**chain),
            _ => None,
        })
    }
}

/// Reads everything as it is at one moment.
///
/// # Errors
/// When the kernel does not show it: that needs `CAP_NET_ADMIN`; or when it changes all the time.
pub fn read(socket: &mut Socket) -> Result<Ruleset, Error> {
    for _ in 0..TRIES {
        let generation = socket.generation()?;
        match read_once(socket) {
            Ok(tables) if socket.generation()? == generation => return Ok(Ruleset { generation, tables }),
            // A table that went while its rules were read.
            Ok(_) | Err(Error::Interrupted | Error::Request(Errno::ENOENT)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::Interrupted)
}

fn read_once(socket: &mut Socket) -> Result<Vec<Table>, Error> {
    let mut tables: Vec<Table> = Vec::new();
    socket.dump(&Request::dump(NFT_MSG_GETTABLE, ALL_FAMILIES), |message| -> Result<(), Error> {
        let [_, name, ..]: Attributes<'_> = message.attributes().table()?;
        let name = text(name)?.into();
        tables.push(Table { family: message.family, name, ..Table::default() });
        Ok(())
    })?;
    socket.dump(&Request::dump(NFT_MSG_GETCHAIN, ALL_FAMILIES), |message| -> Result<(), Error> {
        let (table, chain) = chain(&message)?;
        let table = tables.iter_mut().find(|t| t.family == message.family && t.name == table);
        table.ok_or(Error::Interrupted)?.chains.push(chain);
        Ok(())
    })?;
    let mut rules: FxHashMap<(usize, String), Vec<Rule>> = FxHashMap::default();
    socket.dump(&Request::dump(NFT_MSG_GETRULE, ALL_FAMILIES), |message| -> Result<(), Error> {
        let a: Attributes<'_> = message.attributes().table()?;
        let name = text(a[usize::from(NFTA_RULE_TABLE)])?;
        let table = tables.iter().position(|t| t.family == message.family && t.name == name);
        let chain = text(a[usize::from(NFTA_RULE_CHAIN)])?.to_owned();
        rules.entry((table.ok_or(Error::Interrupted)?, chain)).or_default().push(rule(&a)?);
        Ok(())
    })?;
    for (index, table) in tables.iter_mut().enumerate() {
        for chain in &mut table.chains {
            chain.rules = rules.remove(&(index, chain.name.clone())).unwrap_or_default();
        }
    }
    read_sets_of_ports(socket, &mut tables)?;
    Ok(tables)
}

/// Puts the ports into rules that look them up in sets of nothing but ports.
fn read_sets_of_ports(socket: &mut Socket, tables: &mut [Table]) -> Result<(), Error> {
    let mut sets = Vec::new();
    socket.dump(&Request::dump(NFT_MSG_GETSET, ALL_FAMILIES), |message| -> Result<(), Error> {
        let a: Attributes<'_> = message.attributes().table()?;
        let get = |kind: u16| a[usize::from(kind)];
        let of_ports = number(get(NFTA_SET_KEY_TYPE))? == TYPE_INET_SERVICE
            && number(get(NFTA_SET_FLAGS))? & NFT_SET_MAP == 0;
        if of_ports {
            let name = text(get(NFTA_SET_NAME))?.to_owned();
            sets.push((message.family, text(get(NFTA_SET_TABLE))?.to_owned(), name));
        }
        Ok(())
    })?;
    for (family, table, set) in sets {
        let Some(table) = tables.iter_mut().find(|t| t.family == family && t.name == table) else { continue };
        let rules = table.chains.iter_mut().flat_map(|chain| &mut chain.rules);
        let parts = rules.flat_map(|rule| &mut rule.parts);
        let mut uses = parts.filter(|part| matches!(part, Part::In(name) if *name == set)).peekable();
        if uses.peek().is_none() {
            continue;
        }
        let ports = Part::Ports(ports_of(socket, family, &table.name, &set)?);
        uses.for_each(|part| *part = ports.clone());
    }
    Ok(())
}

/// The ranges of a set of ports.
fn ports_of(socket: &mut Socket, family: u8, table: &str, set: &str) -> Result<Vec<(u16, u16)>, Error> {
    let mut request = Request::dump(NFT_MSG_GETSETELEM, family);
    request.string(NFTA_TABLE_NAME, table);
    request.string(NFTA_SET_ELEM_LIST_SET, set);
    let mut bounds = Vec::new();
    let mut intervals = false;
    socket.dump(&request, |message| -> Result<(), Error> {
        let [.., elements]: [_; NFTA_SET_ELEM_LIST_ELEMENTS as usize + 1] = message.attributes().table()?;
        let Some(elements) = elements else { return Ok(()) };
        for element in elements.nested() {
            let a: Attributes<'_> = element?.nested().table()?;
            let key = value(a[usize::from(NFTA_SET_ELEM_KEY)])?;
            let end = number(a[usize::from(NFTA_SET_ELEM_FLAGS)])? & NFT_SET_ELEM_INTERVAL_END != 0;
            intervals |= end;
            bounds.extend(key.get(..2).map(|key| (u16::from_be_bytes([key[0], key[1]]), end)));
        }
        Ok(())
    })?;
    if !intervals {
        return Ok(bounds.into_iter().map(|(port, _)| (port, port)).collect());
    }
    // An end is the port after the last; where another interval starts there it comes first.
    bounds.sort_unstable_by_key(|(port, end)| (*port, !end));
    let mut ranges = Vec::new();
    let mut start = None;
    for (port, end) in bounds {
        if let Some(first) = start.take() {
            ranges.push((first, port.saturating_sub(1)));
        }
        start = (!end).then_some(port);
    }
    ranges.extend(start.map(|first| (first, u16::MAX)));
    Ok(ranges)
}

type Attributes<'a> = [Option<Attribute<'a>>; 12];

fn text(attribute: Option<Attribute<'_>>) -> Result<&str, Malformed> {
    attribute.ok_or(Malformed("an object without its name"))?.string()
}

fn number(attribute: Option<Attribute<'_>>) -> Result<u32, Malformed> {
    attribute.map_or(Ok(0), |a| a.u32())
}

fn chain<'a>(message: &Message<'a>) -> Result<(&'a str, Chain), Malformed> {
    let a: Attributes<'a> = message.attributes().table()?;
    let get = |kind: u16| a[usize::from(kind)];
    let hook = match get(NFTA_CHAIN_HOOK) {
        None => None,
        Some(hook) => {
            let hook: Attributes<'_> = hook.nested().table()?;
            Some(Hook {
                kind: get(NFTA_CHAIN_TYPE).map_or(Ok(""), |kind| kind.string())?.into(),
                hook: number(hook[usize::from(NFTA_HOOK_HOOKNUM)])?,
                priority: number(hook[usize::from(NFTA_HOOK_PRIORITY)])? as i32,
                drops: get(NFTA_CHAIN_POLICY).is_some_and(|p| p.u32() == Ok(NF_DROP)),
            })
        }
    };
    let chain = Chain { name: text(get(NFTA_CHAIN_NAME))?.into(), hook, rules: Vec::new() };
    Ok((text(get(NFTA_CHAIN_TABLE))?, chain))
}

fn rule(a: &Attributes<'_>) -> Result<Rule, Malformed> {
    let handle = a[usize::from(NFTA_RULE_HANDLE)].map_or(Ok(0), |handle| handle.u64())?;
    let mut rule = Rule { handle, parts: Vec::new() };
    if let Some(list) = a[usize::from(NFTA_RULE_EXPRESSIONS)] {
        for expression in list.nested() {
            let [_, name, data] = expression?.nested().table()?;
            let data = data.map_or(Ok(Default::default()), |data| data.nested().table())?;
            rule.parts.push(part(text(name)?, &data)?);
        }
    }
    Ok(rule)
}

fn part(name: &str, a: &Attributes<'_>) -> Result<Part, Malformed> {
    let get = |kind: u16| a[usize::from(kind)];
    Ok(match name {
        "immediate" if number(get(NFTA_IMMEDIATE_DREG))? == NFT_REG_VERDICT => {
            verdict(get(NFTA_IMMEDIATE_DATA))?
        }
        "nat" if number(get(NFTA_NAT_TYPE))? == NFT_NAT_DNAT => Part::Dnat,
        "redir" => Part::Dnat,
        "reject" => Part::Reject,
        "counter" | "log" | "last" => Part::Neutral,
        "payload" => Part::Load(
            number(get(NFTA_PAYLOAD_BASE))?,
            number(get(NFTA_PAYLOAD_OFFSET))?,
            number(get(NFTA_PAYLOAD_LEN))?,
        ),
        "bitwise" => Part::Mask(value(get(NFTA_BITWISE_MASK))?),
        "cmp" => match (number(get(NFTA_CMP_OP))?, value(get(NFTA_CMP_DATA))?) {
            (NFT_CMP_LTE, value) => Part::AtMost(value),
            (NFT_CMP_GTE, value) => Part::AtLeast(value),
            (operation, value) => Part::Compare(operation == NFT_CMP_EQ, value),
        },
        "range" if number(get(NFTA_RANGE_OP))? == NFT_RANGE_EQ => {
            Part::Between(value(get(NFTA_RANGE_FROM_DATA))?, value(get(NFTA_RANGE_TO_DATA))?)
        }
        "lookup" if get(NFTA_LOOKUP_DREG).is_none() && number(get(NFTA_LOOKUP_FLAGS))? == 0 => {
            Part::In(text(get(NFTA_LOOKUP_SET))?.into())
        }
        "target" => target(text(get(NFTA_COMPAT_NAME))?),
        "match" => matched(text(get(NFTA_COMPAT_NAME))?, get(NFTA_MATCH_INFO).map_or(&[], |info| info.value)),
        "meta" if number(get(NFTA_META_KEY))? == NFT_META_NFPROTO => Part::LoadFamily,
        "ct" if number(get(NFTA_CT_KEY))? == NFT_CT_STATUS => Part::LoadStatus,
        other => Part::Other(other.into()),
    })
}

/// A target of iptables by its name.
pub(super) fn target(name: &str) -> Part {
    match name {
        "DNAT" | "REDIRECT" => Part::Dnat,
        "REJECT" => Part::Reject,
        name => Part::Other(name.into()),
    }
}

/// A match of iptables by its name and its data (`linux/netfilter/xt_*.h`).
pub(super) fn matched(name: &str, data: &[u8]) -> Part {
    let half = |at: usize| Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?));
    match name {
        "comment" => Part::Neutral,
        // struct xt_tcp and xt_udp: source ports, destination ports.
        "tcp" | "udp" => match (half(4), half(6)) {
            (Some(first), Some(last)) => Part::Ports(vec![(first, last)]),
            _ => Part::Other(name.into()),
        },
        "multiport" => multiport(data).map_or_else(|| Part::Other(name.into()), Part::Ports),
        // struct xt_conntrack_mtinfo2 and 3: flags, inverted flags, states.
        "conntrack" => match (half(146), half(148), half(150)) {
            (Some(XT_CONNTRACK_STATE), Some(0), Some(states)) if states & XT_CONNTRACK_STATE_DNAT != 0 => {
                Part::Translated
            }
            _ => Part::Other(name.into()),
        },
        _ => Part::Other(name.into()),
    }
}

/// The ranges of `struct xt_multiport_v1`: flags (1 is destination ports), how many, 15 ports, 15 times whether a port is
/// the first of a range, whether it is inverted.
fn multiport(data: &[u8]) -> Option<Vec<(u16, u16)>> {
    const DESTINATION: u8 = 1;
    const MOST: usize = 15;
    let (flags, count, inverted) = (*data.first()?, usize::from(*data.get(1)?), *data.get(2 + MOST * 3)?);
    if flags != DESTINATION || inverted != 0 || count > MOST {
        return None;
    }
    let ports = data.get(2..2 + count * 2)?.chunks(2).map(|port| u16::from_ne_bytes([port[0], port[1]]));
    let mut numbered = ports.zip(&data[2 + MOST * 2..]);
    let mut ranges = Vec::new();
    while let Some((first, begins)) = numbered.next() {
        let last = if *begins == 0 { first } else { numbered.next()?.0 };
        ranges.push((first, last));
    }
    Some(ranges)
}

fn verdict(data: Option<Attribute<'_>>) -> Result<Part, Malformed> {
    let [_, _, verdict] = data.ok_or(Malformed("a verdict without its data"))?.nested().table()?;
    let [_, code, chain] = verdict.ok_or(Malformed("a verdict without its data"))?.nested().table()?;
    Ok(match number(code)? {
        NFT_JUMP | NFT_GOTO => Part::Jump(text(chain)?.into()),
        NF_DROP => Part::Drop,
        NF_ACCEPT => Part::Accept,
        _ => Part::Verdict,
    })
}

fn value(data: Option<Attribute<'_>>) -> Result<Vec<u8>, Malformed> {
    let Some(data) = data else { return Ok(Vec::new()) };
    let [_, value] = data.nested().table()?;
    Ok(value.map_or_else(Vec::new, |value| value.value.to_vec()))
}
