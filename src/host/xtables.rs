//! The tables of iptables-legacy: read, and written again without some chains.
//!
//! A table is one row of entries. A jump is the offset of the entry that it leads to, so that taking entries out
//! means to work all offsets out anew; and the counters of what stays are put back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use rustc_hash::FxHashMap;

use super::ruleset::{self, Part};
use crate::cluster::Family;
use crate::dataplane::nftables::uapi::NFT_PAYLOAD_NETWORK_HEADER;
use crate::netlink::xtables::{Info, Xtables};

/// `NF_INET_*` by number, as iptables calls its chains.
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// `XT_ERROR_TARGET`: it heads a chain that iptables made, and ends the table.
const ERROR: &str = "ERROR";
/// `sizeof(struct xt_entry_target)`, before what a target has of its own.
const TARGET: usize = 32;
/// A verdict of the standard target for `NF_DROP`: `-NF_DROP - 1`.
const DROP: i32 = -1;
/// The same for `NF_ACCEPT`.
const ACCEPT: i32 = -2;
/// Programs of iptables-legacy take turns by this file.
const LOCK: &str = "/run/xtables.lock";
/// How often a table is read again that others change.
const TRIES: usize = 20;

/// Why a table could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("cannot {what} table {table} of iptables-legacy ({family}): {errno}{}", remedy(*errno))]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The table.
        table: String,
        /// Its family.
        family: Family,
        /// What the kernel answered.
        #[source]
        errno: Errno,
    },
    /// The kernel's own list of tables cannot be read.
    #[error("cannot read {path}: {error}")]
    Names {
        /// The file.
        path: String,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// A table is not what the kernel's headers describe.
    #[error("table {table} of iptables-legacy ({family}) is malformed: {what}")]
    Malformed {
        /// The table.
        table: String,
        /// Its family.
        family: Family,
        /// What is wrong.
        what: &'static str,
    },
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM => ": this needs root, or CAP_NET_ADMIN",
        Errno::EAGAIN => ": another program changes it all the time",
        _ => "",
    }
}

/// Where things are in an entry, which differs by family.
struct Layout {
    target_offset: usize,
    next_offset: usize,
    /// Which conditions are meant the other way around.
    inverted: usize,
    /// `sizeof(struct ipt_entry)`.
    size: usize,
}

fn layout(family: Family) -> Layout {
    match family {
        Family::Ipv4 => Layout { target_offset: 88, next_offset: 90, inverted: 83, size: 112 },
        Family::Ipv6 => Layout { target_offset: 140, next_offset: 142, inverted: 132, size: 168 },
    }
}

/// What an entry does with a packet that it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Goes on with the entry at this offset; with its own end: a rule without a target.
    Goto(usize),
    /// A verdict (`-NF_* - 1`) or `RETURN`.
    Verdict(i32),
    /// Any other, by name. `ERROR` heads a chain.
    Other(String),
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it starts in the table.
    pub offset: usize,
    bytes: Vec<u8>,
    /// Offset of the target within.
    at: usize,
    /// What it does.
    pub target: Target,
}

impl Entry {
    fn end(&self) -> usize {
        self.offset + self.bytes.len()
    }

    /// The chain that it calls.
    pub fn jump<'a>(&self, table: &'a Table) -> Option<&'a str> {
        match self.target {
            Target::Goto(offset) if offset != self.end() => table.chain_at(offset),
            _ => None,
        }
    }
}

/// A chain: its name and its entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Whether the kernel calls it.
    pub built_in: bool,
    /// The entry that heads it, if it was made by iptables, its rules, and its policy or `RETURN`.
    pub entries: std::ops::Range<usize>,
    /// Where those begin that a jump leads to.
    start: usize,
}

/// One table as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its chains in order.
    pub chains: Vec<Chain>,
    entries: Vec<Entry>,
    /// Chains that can be called, by where they start.
    starts: FxHashMap<usize, usize>,
    info: Info,
}

impl Table {
    /// A chain's rules; the last is its policy, or an empty rule that returns.
    pub fn rules(&self, chain: &Chain) -> impl Iterator<Item = &Entry> {
        let start = chain.start;
        self.entries.get(chain.entries.clone()).unwrap_or_default().iter().filter(move |e| e.offset >= start)
    }

    fn chain_at(&self, offset: usize) -> Option<&str> {
        self.starts.get(&offset).and_then(|index| self.chains.get(*index)).map(|chain| &*chain.name)
    }
}

/// iptables' conditions and verdicts in the words of nf_tables, for those who only look.
impl From<&Table> for ruleset::Table {
    fn from(table: &Table) -> ruleset::Table {
        let chains = table.chains.iter().map(|chain| {
            let mut rules: Vec<ruleset::Rule> = table
                .rules(chain)
                .map(|entry| ruleset::Rule { handle: 0, parts: parts(table, entry) })
                .collect();
            let policy = rules.pop();
            let hook = chain.built_in.then(|| ruleset::Hook {
                kind: table.name.clone(),
                hook: BUILT_IN.iter().position(|name| *name == chain.name).unwrap_or_default() as u32,
                priority: priority(&table.name, &chain.name),
                drops: policy.is_some_and(|policy| policy.parts.contains(&Part::Drop)),
            });
            ruleset::Chain { name: chain.name.clone(), hook, rules }
        });
        let chains = chains.collect();
        ruleset::Table { family: table.family.number(), name: table.name.clone(), legacy: true, chains }
    }
}

/// `NF_IP_PRI_*` of `linux/netfilter_ipv4.h`.
fn priority(table: &str, chain: &str) -> i32 {
    match (table, chain) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", "PREROUTING" | "OUTPUT") => -100,
        ("nat", _) => 100,
        ("security", _) => 50,
        _ => 0,
    }
}

fn parts(table: &Table, entry: &Entry) -> Vec<Part> {
    let mut parts = Vec::new();
    let (width, base) = if table.family == Family::Ipv4 { (4, 16) } else { (16, 24) };
    let layout = layout(table.family);
    // Source, destination, source mask, destination mask; then interfaces, protocol and flags.
    let header = entry.bytes.get(..layout.size).unwrap_or_default();
    let field = |index: usize| header.get(index * width..(index + 1) * width).unwrap_or_default();
    let given = |bytes: &[u8]| bytes.iter().any(|byte| *byte != 0);
    for (index, offset, inverted) in [(0, base - width, 0x08), (1, base, 0x10)] {
        if given(field(index + 2)) {
            let equal = header.get(layout.inverted).is_some_and(|flags| flags & inverted == 0);
            parts.push(Part::Load(NFT_PAYLOAD_NETWORK_HEADER, offset as u32, width as u32));
            parts.push(Part::Mask(field(index + 2).to_vec()));
            parts.push(Part::Compare(equal, field(index).to_vec()));
        }
    }
    // A protocol alone is no hindrance to one that looks for ports; interfaces are conditions.
    if given(header.get(4 * width..4 * width + 64).unwrap_or_default()) {
        parts.push(Part::Other("interface".into()));
    }
    let mut rest = entry.bytes.get(layout.size..entry.at).unwrap_or_default();
    // struct xt_entry_match: length, name, revision, data.
    while let Some(name) = rest.get(2..TARGET - 1) {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let Some(data) = rest.get(TARGET..length) else { break };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        parts.push(ruleset::matched(&String::from_utf8_lossy(name), data));
        rest = rest.get(length..).unwrap_or_default();
    }
    parts.push(match &entry.target {
        Target::Goto(_) => entry.jump(table).map_or(Part::Neutral, |chain| Part::Jump(chain.into())),
        Target::Verdict(DROP) => Part::Drop,
        Target::Verdict(ACCEPT) => Part::Accept,
        Target::Verdict(_) => Part::Verdict,
        Target::Other(name) => ruleset::target(name),
    });
    parts
}

/// The tables that are there, and only these: asking for others would make them.
///
/// # Errors
/// On the first that cannot be read.
pub fn read(family: Family) -> Result<Vec<Table>, Error> {
    let names = names(family)?;
    names.iter().map(|name| read_table(family, name)).collect()
}

fn names(family: Family) -> Result<Vec<String>, Error> {
    let path = match family {
        Family::Ipv4 => "/proc/thread-self/net/ip_tables_names",
        Family::Ipv6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        // The kernel has no iptables-legacy, or its module is not loaded.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::Names { path: path.into(), error }),
    }
}

fn read_table(family: Family, name: &str) -> Result<Table, Error> {
    let kernel = |what| move |errno| Error::Kernel { what, table: name.into(), family, errno };
    let socket = Xtables::open(family == Family::Ipv6).map_err(kernel("open a socket for"))?;
    for _ in 0..TRIES {
        let info = socket.info(name).map_err(kernel("read"))?;
        match socket.entries(name, &info) {
            Ok(blob) => return parse(family, name, info, &blob),
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(kernel("read")(errno)),
        }
    }
    Err(kernel("read")(Errno::EAGAIN))
}

fn parse(family: Family, name: &str, info: Info, blob: &[u8]) -> Result<Table, Error> {
    let malformed = |what| Error::Malformed { table: name.into(), family, what };
    let mut entries = Vec::with_capacity(info.entries as usize);
    let mut offset = 0;
    while let Some(rest) = blob.get(offset..).filter(|rest| !rest.is_empty()) {
        let entry = parse_entry(family, offset, rest).ok_or_else(|| malformed("an entry's length"))?;
        offset = entry.end();
        entries.push(entry);
    }
    let mut chains: Vec<Chain> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let has_hook =
            |hook: &usize| info.hooks & (1 << hook) != 0 && info.hook_entry[*hook] as usize == entry.offset;
        let (name, built_in, start) = match &entry.target {
            // The last entry has no chain.
            Target::Other(target) if target == ERROR && index + 1 < entries.len() => {
                let name = entry.bytes.get(entry.at + TARGET..).unwrap_or_default();
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                (String::from_utf8_lossy(name).into_owned(), false, entry.end())
            }
            _ => match (0..BUILT_IN.len()).find(has_hook) {
                Some(hook) => (BUILT_IN[hook].to_owned(), true, entry.offset),
                None => continue,
            },
        };
        if let Some(before) = chains.last_mut() {
            before.entries.end = index;
        }
        chains.push(Chain { name, built_in, entries: index..entries.len().saturating_sub(1), start });
    }
    if entries.len() != info.entries as usize || chains.is_empty() {
        return Err(malformed("the number of entries"));
    }
    let callable = chains.iter().enumerate().filter(|(_, chain)| !chain.built_in);
    let starts = callable.map(|(index, chain)| (chain.start, index)).collect();
    Ok(Table { family, name: name.into(), chains, entries, starts, info })
}

fn parse_entry(family: Family, offset: usize, rest: &[u8]) -> Option<Entry> {
    let layout = layout(family);
    let half = |at: usize| Some(usize::from(u16::from_ne_bytes([*rest.get(at)?, *rest.get(at + 1)?])));
    let (at, length) = (half(layout.target_offset)?, half(layout.next_offset)?);
    let bytes = rest.get(..length)?;
    let name = bytes.get(at + 2..at + TARGET - 1).filter(|_| at >= layout.size)?;
    let name = name.split(|byte| *byte == 0).next()?;
    let target = match name {
        [] => {
            let verdict = i32::from_ne_bytes(bytes.get(at + TARGET..at + TARGET + 4)?.try_into().ok()?);
            usize::try_from(verdict).map_or(Target::Verdict(verdict), Target::Goto)
        }
        name => Target::Other(String::from_utf8_lossy(name).into_owned()),
    };
    Some(Entry { offset, bytes: bytes.to_vec(), at, target })
}

/// Takes chains out of a table, with the rules that call them, if `chains` names any for the table as it is then.
/// All else stays as it is, counters included. Returns how many chains and how many rules elsewhere went.
///
/// # Errors
/// Nothing was changed then; a table that others change meanwhile is read again.
pub fn remove(
    family: Family,
    name: &str,
    chains: impl Fn(&Table) -> BTreeSet<String>,
) -> Result<(usize, usize), Error> {
    let kernel = |what, errno| Error::Kernel { what, table: name.into(), family, errno };
    let socket = Xtables::open(family == Family::Ipv6).map_err(|errno| kernel("open a socket for", errno))?;
    // Where the file is there; the kernel notices most of what happens in between, too.
    let file = fs::File::open(LOCK).ok();
    let _lock = file.and_then(|file| Flock::lock(file, FlockArg::LockExclusive).ok());
    for _ in 0..TRIES {
        let table = read_table(family, name)?;
        let chains = chains(&table);
        if chains.is_empty() {
            return Ok((0, 0));
        }
        let rest = without(&table, &chains);
        match socket.replace(name, &rest.info, &rest.blob, table.info.entries) {
            Ok(counters) => {
                let kept: Vec<_> =
                    rest.kept.iter().filter_map(|index| counters.get(*index)).copied().collect();
                // What was counted is lost otherwise; nothing that matters to a packet.
                let _ = socket.add_counters(name, &kept);
                return Ok((chains.len(), rest.rules));
            }
            Err(Errno::EAGAIN) => {}
            Err(errno) => return Err(kernel("replace", errno)),
        }
    }
    Err(kernel("replace", Errno::EAGAIN))
}

/// A table without some chains.
struct Rest {
    info: Info,
    blob: Vec<u8>,
    /// Which entries of the table it has.
    kept: Vec<usize>,
    /// Rules that called a chain which is gone.
    rules: usize,
}

fn without(table: &Table, chains: &BTreeSet<String>) -> Rest {
    let calls_gone = |entry: &Entry| entry.jump(table).is_some_and(|chain| chains.contains(chain));
    let mut of_gone = vec![false; table.entries.len()];
    for chain in table.chains.iter().filter(|c| !c.built_in && chains.contains(&c.name)) {
        of_gone[chain.entries.clone()].fill(true);
    }
    let mut kept = Vec::new();
    let mut rules = 0;
    // Where what was at an offset is now; what is gone: where the next is that stays.
    let mut moved = BTreeMap::new();
    let mut length = 0;
    for (index, entry) in table.entries.iter().enumerate() {
        moved.insert(entry.offset, length);
        if of_gone[index] {
            continue;
        }
        if calls_gone(entry) {
            rules += 1;
            continue;
        }
        kept.push(index);
        length += entry.bytes.len();
    }
    let moved = |offset: usize| moved.get(&offset).copied().unwrap_or(length);
    let mut blob = Vec::with_capacity(length);
    for index in &kept {
        let entry = &table.entries[*index];
        let start = blob.len();
        blob.extend_from_slice(&entry.bytes);
        if let Target::Goto(to) = entry.target {
            let to = moved(to) as i32;
            let at = start + entry.at + TARGET;
            blob[at..at + 4].copy_from_slice(&to.to_ne_bytes());
        }
    }
    let offsets = |offsets: [u32; 5]| offsets.map(|offset| moved(offset as usize) as u32);
    let info = Info {
        hooks: table.info.hooks,
        hook_entry: offsets(table.info.hook_entry),
        underflow: offsets(table.info.underflow),
        entries: kept.len() as u32,
        size: blob.len() as u32,
    };
    Rest { info, blob, kept, rules }
}
