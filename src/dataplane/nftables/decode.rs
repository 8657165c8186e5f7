//! Reads a table back from the kernel: what it is made of, and its elements.
//!
//! The structure is small and constant (a third of a millisecond). Dumps of elements are quadratic in the kernel:
//! each round of 32 KB walks the set from its start, 100,000 elements take 0.25 to 0.8 s (6.18). They are given to
//! a callback as they come.
//!
//! A commit by anybody in the namespace while the structure is read spoils that: it is asked for again here. Elements are
//! given as they are; a dump that is not whole is [`Error::Interrupted`], and what came has to be thrown away.

use std::hash::BuildHasher;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;
use rustc_hash::{FxBuildHasher, FxHashSet};

use crate::cluster::Family;
use crate::netlink::attribute::Attribute;
use crate::netlink::{Error, Malformed, Message, Request, Socket};

use super::element::{self, Decoded, network, previous};
use super::encode::TableName;
use super::expression::Expression;
use super::model::{Chain, Element, Set, Structure, TABLE};
use super::schema::{self, SetDefinition};
use super::uapi::*;

/// How often what was interrupted is asked for again. Each try takes a third of a millisecond; other agents commit
/// some hundred times a second at most.
const TRIES: usize = 20;

/// A table as the kernel has it, without its elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// `NFT_TABLE_F_*`; sluice writes none.
    pub flags: u32,
    /// Its sets and maps, in the order of their making; anonymous ones are not among them.
    pub sets: Vec<ObservedSet>,
    /// Its chains, in the order of their making.
    pub chains: Vec<ObservedChain>,
}

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedSet {
    /// Its name.
    pub name: String,
    /// Which of sluice's sets it is, by name.
    pub set: Option<Set>,
    /// What it takes.
    pub definition: SetDefinition,
    /// How many elements it has. `None` on kernels that do not say (6.1, 6.12), and for `pod-cidrs` and
    /// `service-cidrs`: there the kernel counts half of the bounds, rounded down, and an interval that reaches the
    /// last address has one bound only (6.18).
    pub count: Option<u32>,
}

/// A chain with its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedChain {
    /// Its name.
    pub name: String,
    /// Which of sluice's chains it is, by name.
    pub chain: Option<Chain>,
    /// Where it is called from, when it is a base chain.
    pub hook: Option<ObservedHook>,
    /// Its rules.
    pub rules: Vec<Vec<Expression>>,
}

/// A base chain's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedHook {
    /// `nat`, `filter` or `route`.
    pub kind: String,
    /// `NF_INET_*`.
    pub hook: u32,
    /// Lower runs earlier.
    pub priority: i32,
    /// `NF_ACCEPT` or `NF_DROP`.
    pub policy: u32,
}

impl Observed {
    /// The chains that depend on what is served: `endpoints-N` and their like.
    pub fn dynamic_chains(&self) -> impl Iterator<Item = Chain> + '_ {
        self.chains.iter().filter_map(|chain| chain.chain).filter(|chain| chain.is_counted())
    }

    /// The sets that depend on what is served: `sticky-K`.
    pub fn dynamic_sets(&self) -> impl Iterator<Item = Set> + '_ {
        self.sets.iter().filter_map(|set| set.set).filter(|set| matches!(set, Set::Sticky(_)))
    }

    /// Whether a set is there, and made as this version makes it, so that its elements can be read.
    pub fn has(&self, family: Family, set: Set) -> bool {
        let definition = schema::definition(family, set);
        self.sets.iter().any(|observed| observed.set == Some(set) && observed.definition == definition)
    }

    /// Number of elements of a set, where the kernel says.
    pub fn count(&self, set: Set) -> Option<u32> {
        self.sets.iter().find(|observed| observed.set == Some(set))?.count
    }

    /// The first thing that differs from a table of this structure with these chains and sets besides the constant
    /// ones; `None` when nothing does. Comments and user data do not count: they only matter for listings.
    pub fn difference(
        &self,
        family: Family,
        structure: &Structure,
        chains: &[Chain],
        sets: &[Set],
    ) -> Option<String> {
        if self.flags != 0 {
            return Some(format!("{} has flags {:#x}", TableName(family), self.flags));
        }
        self.set_difference(family, structure, sets)
            .or_else(|| self.chain_difference(family, structure, chains))
    }

    fn set_difference(&self, family: Family, structure: &Structure, dynamic: &[Set]) -> Option<String> {
        let wanted: Vec<Set> = schema::sets(structure).chain(dynamic.iter().copied()).collect();
        for observed in &self.sets {
            let Some(set) = observed.set.filter(|set| wanted.contains(set)) else {
                return Some(format!("set {} is not sluice's or not needed", observed.name));
            };
            let definition = schema::definition(family, set);
            if observed.definition != definition {
                return Some(format!("set {set} is {:?} and should be {definition:?}", observed.definition));
            }
        }
        let missing = |set: &&Set| !self.sets.iter().any(|observed| observed.set == Some(**set));
        wanted.iter().find(missing).map(|set| format!("set {set} is missing"))
    }

    fn chain_difference(&self, family: Family, structure: &Structure, dynamic: &[Chain]) -> Option<String> {
        let wanted: Vec<Chain> = schema::chains(structure).chain(dynamic.iter().copied()).collect();
        for observed in &self.chains {
            let Some(chain) = observed.chain.filter(|chain| wanted.contains(chain)) else {
                return Some(format!("chain {} is not sluice's or not needed", observed.name));
            };
            let hook = schema::hook(chain).map(|hook| ObservedHook {
                kind: hook.kind.to_owned(),
                hook: hook.hook,
                priority: hook.priority,
                policy: NF_ACCEPT,
            });
            if observed.hook != hook {
                return Some(format!("chain {chain} is called from {:?}, not {hook:?}", observed.hook));
            }
            let rules = schema::rules(family, chain, structure);
            for (index, (rule, there)) in rules.iter().zip(&observed.rules).enumerate() {
                if rule.expressions != *there {
                    return Some(format!("rule {} of chain {chain} is not {}", index + 1, rule.text));
                }
            }
            if rules.len() != observed.rules.len() {
                let (there, wanted) = (observed.rules.len(), rules.len());
                return Some(format!("chain {chain} has {there} rules, not {wanted}"));
            }
        }
        let missing = |chain: &&Chain| !self.chains.iter().any(|observed| observed.chain == Some(**chain));
        wanted.iter().find(missing).map(|chain| format!("chain {chain} is missing"))
    }
}

/// Reads the structure of a family's table; `None` when there is none. Consistent in itself: it is read again
/// while others commit.
pub fn observe(socket: &mut Socket, family: Family) -> Result<Option<Observed>, Error> {
    observe_number(socket, family.number())
}

/// The same of a family by its number (`NFPROTO_*`).
pub fn observe_number(socket: &mut Socket, family: u8) -> Result<Option<Observed>, Error> {
    for _ in 0..TRIES {
        match in_one_generation(socket, |socket| observe_once(socket, family)) {
            Err(Error::Interrupted) => {}
            result => return result,
        }
    }
    Err(Error::Interrupted)
}

fn observe_once(socket: &mut Socket, family: u8) -> Result<Option<Observed>, Error> {
    let Some(flags) = table_flags(socket, family)? else { return Ok(None) };
    let mut observed = Observed { flags, ..Observed::default() };
    socket.dump(&request(NFT_MSG_GETSET, family), |message| -> Result<(), Error> {
        observed.sets.extend(read_set(&message)?);
        Ok(())
    })?;
    // Chains and objects like them are dumped for a whole family (6.18 filters rules and sets only).
    socket.dump(&request(NFT_MSG_GETCHAIN, family), |message| -> Result<(), Error> {
        observed.chains.extend(read_chain(&message)?);
        Ok(())
    })?;
    socket.dump(&request(NFT_MSG_GETRULE, family), |message| -> Result<(), Error> {
        if let Some((name, rule)) = read_rule(&message)? {
            let chain = observed.chains.iter_mut().find(|chain| chain.name == name);
            chain.ok_or(Error::Interrupted)?.rules.push(rule);
        }
        Ok(())
    })?;
    Ok(Some(observed))
}

/// A dump of what the table has.
fn request(kind: u8, family: u8) -> Request {
    let mut request = Request::dump(kind, family);
    request.string(NFTA_TABLE_NAME, TABLE);
    request
}

/// Whether there is a table, and its flags.
fn table_flags(socket: &mut Socket, family: u8) -> Result<Option<u32>, Error> {
    let mut request = Request::get(NFT_MSG_GETTABLE, family);
    request.string(NFTA_TABLE_NAME, TABLE);
    let flags = socket.request(&request, |message| {
        let [_, _, flags] = message.attributes().table()?;
        flags.map_or(Ok(0), |flags| flags.u32())
    });
    match flags {
        Ok(flags) => Ok(Some(flags)),
        Err(Error::Request(Errno::ENOENT)) => Ok(None),
        Err(error) => Err(error),
    }
}

type Table<'a> = [Option<Attribute<'a>>; 24];

fn get<'a>(attributes: &Table<'a>, kind: u16) -> Option<Attribute<'a>> {
    attributes.get(usize::from(kind)).copied().flatten()
}

fn number_or_0(attributes: &Table<'_>, kind: u16) -> Result<u32, Malformed> {
    get(attributes, kind).map_or(Ok(0), |number| number.u32())
}

fn name<'a>(attributes: &Table<'a>, kind: u16) -> Result<&'a str, Malformed> {
    get(attributes, kind).ok_or(Malformed("an object without its name"))?.string()
}

fn read_set(message: &Message<'_>) -> Result<Option<ObservedSet>, Malformed> {
    let a: Table<'_> = message.attributes().table()?;
    const ANONYMOUS: u32 = 1;
    if name(&a, NFTA_SET_TABLE)? != TABLE || number_or_0(&a, NFTA_SET_FLAGS)? & ANONYMOUS != 0 {
        return Ok(None);
    }
    let name = name(&a, NFTA_SET_NAME)?;
    let mut definition = SetDefinition {
        flags: number_or_0(&a, NFTA_SET_FLAGS)?,
        key_type: number_or_0(&a, NFTA_SET_KEY_TYPE)?,
        key_length: number_or_0(&a, NFTA_SET_KEY_LEN)?,
        data_type: number_or_0(&a, NFTA_SET_DATA_TYPE)?,
        data_length: number_or_0(&a, NFTA_SET_DATA_LEN)?,
        timeout: get(&a, NFTA_SET_TIMEOUT).map_or(Ok(0), |timeout| timeout.u64())?,
        ..SetDefinition::default()
    };
    // The kernel has the length of its own structure here.
    if definition.data_type == NFT_DATA_VERDICT {
        definition.data_length = 0;
    }
    if let Some(description) = get(&a, NFTA_SET_DESC) {
        let [_, size, parts] = description.nested().table()?;
        definition.size = size.map_or(Ok(0), |size| size.u32())?;
        if let Some(parts) = parts {
            for part in parts.nested() {
                let [_, length] = part?.nested().table()?;
                definition.parts.push(length.map_or(Ok(0), |length| length.u32())?);
            }
        }
    }
    let count = get(&a, NFTA_SET_COUNT).map(|count| count.u32()).transpose()?;
    let count = count.filter(|_| definition.flags & (NFT_SET_INTERVAL | NFT_SET_CONCAT) != NFT_SET_INTERVAL);
    Ok(Some(ObservedSet { name: name.to_owned(), set: name.parse().ok(), definition, count }))
}

fn read_chain(message: &Message<'_>) -> Result<Option<ObservedChain>, Malformed> {
    let a: Table<'_> = message.attributes().table()?;
    if name(&a, NFTA_CHAIN_TABLE)? != TABLE {
        return Ok(None);
    }
    let name = name(&a, NFTA_CHAIN_NAME)?;
    let hook = match get(&a, NFTA_CHAIN_HOOK) {
        None => None,
        Some(hook) => {
            let hook: Table<'_> = hook.nested().table()?;
            Some(ObservedHook {
                kind: get(&a, NFTA_CHAIN_TYPE).map_or(Ok(""), |kind| kind.string())?.to_owned(),
                hook: number_or_0(&hook, NFTA_HOOK_HOOKNUM)?,
                priority: number_or_0(&hook, NFTA_HOOK_PRIORITY)? as i32,
                policy: number_or_0(&a, NFTA_CHAIN_POLICY)?,
            })
        }
    };
    Ok(Some(ObservedChain { name: name.to_owned(), chain: name.parse().ok(), hook, rules: Vec::new() }))
}

/// A rule and the name of its chain.
fn read_rule<'a>(message: &Message<'a>) -> Result<Option<(&'a str, Vec<Expression>)>, Malformed> {
    let a: Table<'_> = message.attributes().table()?;
    if name(&a, NFTA_RULE_TABLE)? != TABLE {
        return Ok(None);
    }
    let rule =
        get(&a, NFTA_RULE_EXPRESSIONS).map_or(Ok(Vec::new()), |e| Expression::decode_list(e.nested()))?;
    Ok(Some((name(&a, NFTA_RULE_CHAIN)?, rule)))
}

/// How many packets the counters of a chain's rules have counted; `None` where there is no such chain.
pub fn counted(socket: &mut Socket, family: Family, chain: Chain) -> Result<Option<u64>, Error> {
    let mut request = request(NFT_MSG_GETRULE, family.number());
    request.display(NFTA_RULE_CHAIN, chain);
    let mut counted = None;
    socket.dump(&request, |message| -> Result<(), Error> {
        let a: Table<'_> = message.attributes().table()?;
        let Some(expressions) = get(&a, NFTA_RULE_EXPRESSIONS) else { return Ok(()) };
        for expression in expressions.nested() {
            let [_, name, data] = expression?.nested().table()?;
            let (Some(name), Some(data)) = (name, data) else { continue };
            if name.string()? == Expression::Counter.name() {
                let data: Table<'_> = data.nested().table()?;
                let packets = get(&data, NFTA_COUNTER_PACKETS).map_or(Ok(0), |packets| packets.u64())?;
                *counted.get_or_insert(0) += packets;
            }
        }
        Ok(())
    })?;
    Ok(counted)
}

/// Reads all elements of some sets as they are at one moment, again when interrupted, as often as given.
pub fn all_elements(
    socket: &mut Socket,
    family: Family,
    sets: &[Set],
    tries: usize,
) -> Result<Vec<Decoded>, Error> {
    for _ in 0..tries {
        let mut all = Vec::new();
        let read = in_one_generation(socket, |socket| {
            sets.iter().try_for_each(|set| elements(socket, family, *set, |e| all.push(e)))
        });
        match read {
            Err(Error::Interrupted) => {}
            result => return result.map(|()| all),
        }
    }
    Err(Error::Interrupted)
}

/// How many elements are asked for at once. Each answer takes some 5 KB of the receive buffer, of which there may be
/// 208 KiB only (`net.core.rmem_default`); more at once are no faster (6.18).
const LOOKED_UP_AT_ONCE: usize = 32;

/// Looks elements of one set up by their keys. The first one that is not there ends it ([`Error::Request`] with
/// `ENOENT`). Whether the table changed meanwhile is for the caller to find out.
pub fn look_up<'a>(
    socket: &mut Socket,
    family: Family,
    keys: impl IntoIterator<Item = &'a Element>,
) -> Result<Vec<Element>, Error> {
    let mut keys = keys.into_iter().peekable();
    let Some(set) = keys.peek().map(|element| element.set()) else { return Ok(Vec::new()) };
    let mut found = Vec::with_capacity(keys.size_hint().0);
    while keys.peek().is_some() {
        let mut request = Request::get(NFT_MSG_GETSETELEM, family.number());
        request.string(NFTA_TABLE_NAME, TABLE);
        request.display(NFTA_SET_ELEM_LIST_SET, set);
        let mut count = 0;
        request.nested(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
            for key in keys.by_ref().take(LOOKED_UP_AT_ONCE) {
                element::encode(list, key, false);
                count += 1;
            }
        });
        socket.request_each(&request, count, |message| -> Result<(), Error> {
            visit_elements(&message, |attribute| {
                if let Decoded::Element(element) = element::decode(family, set, attribute)? {
                    found.push(element);
                }
                Ok(())
            })
        })?;
    }
    Ok(found)
}

/// The elements of a message that lists some.
fn visit_elements<'a>(
    message: &Message<'a>,
    mut visit: impl FnMut(Attribute<'a>) -> Result<(), Error>,
) -> Result<(), Error> {
    let attributes: Table<'_> = message.attributes().table()?;
    let Some(list) = get(&attributes, NFTA_SET_ELEM_LIST_ELEMENTS) else { return Ok(()) };
    list.nested().try_for_each(|attribute| visit(attribute?))
}

/// A dump of elements does not say that it was interrupted (no `NLM_F_DUMP_INTR`, seen on 6.18), unlike those of
/// sets, chains and rules: only the generation tells.
fn in_one_generation<T>(
    socket: &mut Socket,
    read: impl FnOnce(&mut Socket) -> Result<T, Error>,
) -> Result<T, Error> {
    let before = socket.generation()?;
    let result = read(socket);
    if socket.generation()? == before { result } else { Err(Error::Interrupted) }
}

/// Reads what is in a set, each element as it comes; intervals come last, as networks. The set must be there
/// ([`Error::Request`] with `ENOENT`). On [`Error::Interrupted`] what came has to be thrown away. Commits of others to
/// their own tables do no harm; whether this one changed meanwhile is for the caller to find out.
///
/// The kernel goes on where it was by counting, and a hash table that is being resized in the background, some
/// milliseconds after it was filled, changes its order meanwhile: the dump then has some elements twice and lacks
/// as many others (seen on 6.18: 463 of 15,000). None twice and as many as the kernel counts is all of them.
pub fn elements(
    socket: &mut Socket,
    family: Family,
    set: Set,
    visit: impl FnMut(Decoded),
) -> Result<(), Error> {
    elements_of_number(socket, (family.number(), family), set, visit)
}

/// The same of a table of another family (`NFPROTO_*`) whose addresses are of this one.
pub fn elements_of_number(
    socket: &mut Socket,
    (number, family): (u8, Family),
    set: Set,
    mut visit: impl FnMut(Decoded),
) -> Result<(), Error> {
    let mut request = request(NFT_MSG_GETSETELEM, number);
    request.display(NFTA_SET_ELEM_LIST_SET, set);
    let mut bounds = Vec::new();
    let mut seen = FxHashSet::default();
    let mut total = 0;
    socket.dump(&request, |message| -> Result<(), Error> {
        visit_elements(&message, |attribute| {
            total += 1;
            // Packets put clients into a set while it is read; one that comes twice is of no consequence.
            let twice = !seen.insert(FxBuildHasher.hash_one(attribute.value));
            match element::decode(family, set, attribute)? {
                Decoded::Sticky(_) if twice => {}
                _ if twice => return Err(Error::Interrupted),
                Decoded::Start(address) => bounds.push((address, false)),
                Decoded::End(address) => bounds.push((address, true)),
                decoded => visit(decoded),
            }
            Ok(())
        })
    })?;
    let settled = !matches!(set, Set::PodCidrs | Set::ServiceCidrs | Set::Sticky(_));
    if settled && count(socket, number, set)?.is_some_and(|count| count != total) {
        return Err(Error::Interrupted);
    }
    networks(set, bounds, &mut visit);
    Ok(())
}

/// How many elements a set has, where the kernel says.
fn count(socket: &mut Socket, family: u8, set: Set) -> Result<Option<u32>, Error> {
    let mut request = Request::get(NFT_MSG_GETSET, family);
    request.string(NFTA_TABLE_NAME, TABLE);
    request.display(NFTA_SET_NAME, set);
    socket.request(&request, |message| {
        let attributes: Table<'_> = message.attributes().table()?;
        get(&attributes, NFTA_SET_COUNT).map(|count| count.u32()).transpose()
    })
}

/// Makes networks of the bounds of intervals. An interval without an end reaches to the last address; an end
/// without a start, which nft writes before the first interval, means nothing.
fn networks(set: Set, mut bounds: Vec<(IpAddr, bool)>, visit: &mut impl FnMut(Decoded)) {
    // Where one interval ends and another starts, the end is first.
    bounds.sort_unstable_by_key(|(address, end)| (*address, !end));
    let mut starts: Option<IpAddr> = None;
    for (address, end) in bounds {
        // An interval that starts before another has ended is nothing that the kernel takes.
        if let Some(first) = starts.take() {
            visit(interval(set, first, Some(address)));
        }
        starts = (!end).then_some(address);
    }
    if let Some(first) = starts {
        visit(interval(set, first, None));
    }
}

/// The element of an interval by its first address and the one after its last.
fn interval(set: Set, first: IpAddr, end: Option<IpAddr>) -> Decoded {
    let last = match end {
        Some(end) => previous(end),
        None if first.is_ipv4() => IpAddr::from([0xff; 4]),
        None => IpAddr::from([0xff; 16]),
    };
    let make: fn(IpNet) -> Element = match set {
        Set::PodCidrs => Element::PodCidr,
        _ => Element::ServiceCidr,
    };
    match network(first, last) {
        Some(net) => Decoded::Element(make(net)),
        None => Decoded::Unknown(format!("{first}-{last}")),
    }
}
