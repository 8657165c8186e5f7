//! What kube-proxy left on this host, and its removal.
//!
//! Its nftables mode has the tables `ip kube-proxy` and `ip6 kube-proxy`; its modes iptables and ipvs have chains
//! `KUBE-*` in tables that others use, too, and are told by name ([`chains`]); mode ipvs has the device `kube-ipvs0`
//! and ipsets besides. A table that is left goes on refusing what it does not know, before other programs get to see a packet.

use std::collections::BTreeSet;
use std::fmt;

use nix::errno::Errno;

use super::ruleset::{self, NFTA_RULE_HANDLE, Ruleset};
use super::{ipset, xtables};
use crate::cluster::Family;
use crate::dataplane::ipvs::{self, plan::Whose};
use crate::dataplane::nftables::uapi::*;
use crate::netlink::{self, Batch, Socket};

pub mod chains;
pub mod running;

/// kube-proxy's table in mode nftables.
pub const TABLE: &str = "kube-proxy";
/// The tables in which modes iptables and ipvs have chains.
const IPTABLES: [&str; 3] = ["nat", "filter", "mangle"];
/// The ipsets of mode ipvs (`pkg/proxy/ipvs/ipset.go`), less `KUBE-` or, for IPv6, `KUBE-6-`.
const SETS: [&str; 17] = [
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-CIDR",
    "LOAD-BALANCER-SOURCE-IP",
    "LOOP-BACK",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-TCP",
    "NODE-PORT-UDP",
];
/// How often a batch is made anew for rules that changed meanwhile.
const TRIES: usize = 20;

/// Something of kube-proxy's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// Its table in mode nftables.
    Table(Family),
    /// Chains in a table of iptables.
    Chains {
        /// The family.
        family: Family,
        /// The table's name.
        table: String,
        /// Whether it is one of iptables-legacy.
        legacy: bool,
        /// How many.
        chains: usize,
        /// Rules elsewhere that call them.
        rules: usize,
    },
    /// Virtual services, or the device of their addresses, in words.
    Ipvs(String),
    /// So many of its ipsets.
    Sets(usize),
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Leftover::Ipvs(what) => f.write_str(what),
            Leftover::Sets(count) => write!(f, "{count} ipsets"),
            Leftover::Table(family) => write!(f, "table {} {TABLE}", word(*family)),
            Leftover::Chains { family, table, legacy, chains, rules } => {
                let variant = if *legacy { "legacy" } else { "nft" };
                let program = if *family == Family::Ipv4 { "iptables" } else { "ip6tables" };
                write!(f, "table {table} of {program}-{variant} ({chains} chains, called by {rules} rules)")
            }
        }
    }
}

/// nft's word for a family.
fn word(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ip",
        Family::Ipv6 => "ip6",
    }
}

/// Why leftovers could not be found or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Those in nf_tables.
    #[error("kube-proxy's rules in nf_tables: {}", netlink_text(.0))]
    Nftables(#[from] netlink::Error),
    /// Those of iptables-legacy.
    #[error(transparent)]
    Xtables(#[from] xtables::Error),
    /// Its ipsets.
    #[error("kube-proxy's ipsets: {}", netlink_text(.0))]
    Sets(netlink::Error),
    /// An ipset that something still uses.
    #[error("kube-proxy's ipset {name}: {}", .errno.desc())]
    Set {
        /// Its name.
        name: String,
        /// What the kernel answered.
        errno: Errno,
    },
    /// Those in IPVS.
    #[error("kube-proxy's virtual services: {0}")]
    Ipvs(#[from] ipvs::Error),
}

fn netlink_text(error: &netlink::Error) -> String {
    let refused = match error {
        netlink::Error::Request(errno) | netlink::Error::Send { errno, .. } => Some(*errno),
        netlink::Error::Refused(refusals) => refusals.first().map(|r| r.errno),
        _ => None,
    };
    match refused {
        Some(Errno::EPERM) => {
            "the kernel does not show or change them (EPERM): this needs root, or CAP_NET_ADMIN".into()
        }
        _ => error.to_string(),
    }
}

/// What there is, or was, and what could not be looked at, or removed.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// What there is, or was.
    pub found: Vec<Leftover>,
    /// Where it failed; the rest was looked at all the same.
    pub errors: Vec<Error>,
}

impl Leftovers {
    fn add_ipvs(&mut self, wanted: bool, look: fn(Whose) -> Result<Vec<String>, ipvs::Error>) {
        match wanted.then(|| look(Whose::KubeProxys)) {
            Some(Ok(found)) => self.found.extend(found.into_iter().map(Leftover::Ipvs)),
            Some(Err(error)) => self.errors.push(error.into()),
            None => {}
        }
    }
}

/// Looks for what kube-proxy left in the network namespace of the calling thread, in IPVS only if that is asked for:
/// in mode ipvs it is sluice's to deal with. Needs `CAP_NET_ADMIN`.
pub fn find(in_ipvs: bool) -> Leftovers {
    let mut left = Leftovers::default();
    left.add_ipvs(in_ipvs, ipvs::leftovers);
    match Socket::open().and_then(|mut socket| ruleset::read(&mut socket)) {
        Ok(rules) => left.found.extend(in_nftables(&rules).into_iter().map(|(leftover, _)| leftover)),
        Err(error) => left.errors.push(error.into()),
    }
    for family in Family::ALL {
        match xtables::read(family) {
            Ok(tables) => {
                for table in tables.iter().filter(|t| IPTABLES.contains(&&*t.name)) {
                    let gone = in_xtables(table);
                    let rules = calls(&of_xtables(table), &gone);
                    left.found.extend(leftover(family, &table.name, true, gone.len(), rules));
                }
            }
            Err(error) => left.errors.push(error.into()),
        }
    }
    match sets() {
        Ok((_, sets)) => left.found.extend((!sets.is_empty()).then_some(Leftover::Sets(sets.len()))),
        Err(error) => left.errors.push(Error::Sets(error)),
    }
    left
}

/// The ipsets of mode ipvs that there are, and the socket that they were found by.
fn sets() -> Result<(Socket, Vec<String>), netlink::Error> {
    let mut socket = Socket::open()?;
    let mut names = ipset::names(&mut socket)?;
    names.retain(|name| is_set_name(name));
    Ok((socket, names))
}

/// kube-router has sets `KUBE-SRC-*` and `KUBE-DST-*`: a prefix would not do.
fn is_set_name(name: &str) -> bool {
    // Names have 31 bytes at most, which cuts some of IPv6 off.
    const LONGEST: usize = 31;
    let Some(rest) = name.strip_prefix("KUBE-") else { return false };
    let (prefix, rest) = rest.strip_prefix("6-").map_or(("KUBE-", rest), |rest| ("KUBE-6-", rest));
    SETS.iter().any(|set| rest == &set[..set.len().min(LONGEST - prefix.len())])
}

/// After the rules that look into them.
fn remove_sets(left: &mut Leftovers) -> Result<(), netlink::Error> {
    let (mut socket, names) = sets()?;
    let stay = ipset::destroy(&mut socket, names.iter().map(String::as_str))?;
    let gone = names.len() - stay.len();
    left.found.extend((gone > 0).then_some(Leftover::Sets(gone)));
    left.errors.extend(stay.into_iter().map(|(name, errno)| Error::Set { name: name.to_owned(), errno }));
    Ok(())
}

/// Removes what kube-proxy left (see [`find`]), and nothing else; says what there was.
pub fn remove(in_ipvs: bool) -> Leftovers {
    let mut left = Leftovers::default();
    left.add_ipvs(in_ipvs, ipvs::cleanup);
    match remove_from_nftables() {
        Ok(found) => left.found.extend(found),
        Err(error) => left.errors.push(error.into()),
    }
    for family in Family::ALL {
        let tables =
            xtables::read(family).map_err(|error| left.errors.push(error.into())).unwrap_or_default();
        for table in tables.iter().filter(|t| IPTABLES.contains(&&*t.name)) {
            match xtables::remove(family, &table.name, in_xtables) {
                Ok((chains, rules)) => left.found.extend(leftover(family, &table.name, true, chains, rules)),
                Err(error) => left.errors.push(error.into()),
            }
        }
    }
    if let Err(error) = remove_sets(&mut left) {
        left.errors.push(Error::Sets(error));
    }
    left
}

fn leftover(family: Family, table: &str, legacy: bool, chains: usize, rules: usize) -> Option<Leftover> {
    (chains > 0).then(|| Leftover::Chains { family, table: table.into(), legacy, chains, rules })
}

/// How many rules of chains that stay call one that goes.
fn calls(chains: &[chains::Chain<'_>], gone: &BTreeSet<String>) -> usize {
    let stay = chains.iter().filter(|chain| !gone.contains(chain.name));
    stay.flat_map(|chain| &chain.calls).filter(|name| gone.contains(**name)).count()
}

fn of_xtables(table: &xtables::Table) -> Vec<chains::Chain<'_>> {
    let of = |chain: &xtables::Chain| table.rules(chain).filter_map(|rule| rule.jump(table)).collect();
    table.chains.iter().map(|c| chains::Chain { name: &c.name, built_in: c.built_in, calls: of(c) }).collect()
}

fn in_xtables(table: &xtables::Table) -> BTreeSet<String> {
    chains::to_remove(&of_xtables(table))
}

/// A leftover and the chains of it; a whole table has none.
fn in_nftables(rules: &Ruleset) -> Vec<(Leftover, BTreeSet<String>)> {
    let mut found = Vec::new();
    for family in Family::ALL {
        for table in rules.tables.iter().filter(|t| t.family == family.number()) {
            if table.name == TABLE {
                found.push((Leftover::Table(family), BTreeSet::new()));
            } else if IPTABLES.contains(&&*table.name) {
                let chains = of_nftables(table);
                let gone = chains::to_remove(&chains);
                let rules = calls(&chains, &gone);
                let leftover = leftover(family, &table.name, false, gone.len(), rules);
                found.extend(leftover.map(|leftover| (leftover, gone)));
            }
        }
    }
    found
}

fn of_nftables(table: &ruleset::Table) -> Vec<chains::Chain<'_>> {
    let mut chains = Vec::new();
    for chain in &table.chains {
        let calls = chain.rules.iter().flat_map(ruleset::Rule::jumps).collect();
        chains.push(chains::Chain { name: &chain.name, built_in: chain.hook.is_some(), calls });
    }
    chains
}

/// In one transaction, made for the rules as they were read.
fn remove_from_nftables() -> Result<Vec<Leftover>, netlink::Error> {
    let mut socket = Socket::open()?;
    for _ in 0..TRIES {
        let rules = ruleset::read(&mut socket)?;
        let found = in_nftables(&rules);
        if found.is_empty() {
            return Ok(Vec::new());
        }
        match socket.commit(&removal(&rules, &found)) {
            Ok(()) => return Ok(found.into_iter().map(|(leftover, _)| leftover).collect()),
            Err(netlink::Error::Stale) => {}
            Err(error) => return Err(error),
        }
    }
    Err(netlink::Error::Stale)
}

fn removal(rules: &Ruleset, found: &[(Leftover, BTreeSet<String>)]) -> Batch {
    let mut batch = Batch::new(Some(rules.generation));
    for (leftover, gone) in found {
        let (family, name) = match leftover {
            Leftover::Table(family) => {
                batch.message(NFT_MSG_DELTABLE, 0, family.number(), 0);
                batch.string(NFTA_TABLE_NAME, TABLE);
                continue;
            }
            Leftover::Chains { family, table, .. } => (family.number(), table),
            Leftover::Ipvs(_) | Leftover::Sets(_) => continue,
        };
        let Some(table) = rules.tables.iter().find(|t| t.family == family && t.name == *name) else {
            continue;
        };
        for chain in table.chains.iter().filter(|chain| !gone.contains(&chain.name)) {
            for rule in chain.rules.iter().filter(|rule| rule.jumps().any(|to| gone.contains(to))) {
                batch.message(NFT_MSG_DELRULE, 0, family, 0);
                batch.string(NFTA_RULE_TABLE, name);
                batch.string(NFTA_RULE_CHAIN, &chain.name);
                batch.u64(NFTA_RULE_HANDLE, rule.handle);
            }
        }
        // Chains that call each other can go only when all are empty.
        for chain in gone {
            batch.message(NFT_MSG_DELRULE, 0, family, 0);
            batch.string(NFTA_RULE_TABLE, name);
            batch.string(NFTA_RULE_CHAIN, chain);
        }
        for chain in gone {
            batch.message(NFT_MSG_DELCHAIN, 0, family, 0);
            batch.string(NFTA_CHAIN_TABLE, name);
            batch.string(NFTA_CHAIN_NAME, chain);
        }
    }
    batch.end();
    batch
}

#[cfg(test)]
mod tests {
    use super::is_set_name;

    #[test]
    fn its_sets_are_told_by_name() {
        for name in [
            "KUBE-CLUSTER-IP",
            "KUBE-6-CLUSTER-IP",
            "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
            // As the kernel has them.
            "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS",
            "KUBE-6-LOAD-BALANCER-SOURCE-CID",
        ] {
            assert!(name.len() <= 31 && is_set_name(name), "{name}");
        }
        for name in [
            "KUBE-SRC-ABCDEF",
            "KUBE-6-",
            "KUBE-",
            "KUBE-CLUSTER-IP-2",
            "kube-cluster-ip",
            "CLUSTER-IP",
            "mine",
        ] {
            assert!(!is_set_name(name), "{name}");
        }
    }
}
