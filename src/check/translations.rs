//! Rules of others that translate destinations which are Services' here. Of sets
//! only those of ports are looked into, maps are not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Cluster, Host, Severity, table_name};
use crate::dataplane::nftables::model::TABLE;
use crate::dataplane::nftables::uapi::*;
use crate::host::kube_proxy;
use crate::host::ruleset::{Chain, Part, Rule, Table};

/// So many are named.
const NAMED: usize = 20;
/// Chains call each other so deep at most.
const DEPTH: usize = 16;

/// Which ports of an address are Services'.
type Ours = BTreeMap<IpAddr, BTreeSet<u16>>;

/// Finds rules that take connections to Services away, or would if they came first.
pub fn foreign(host: &mut Host<'_>) {
    let Some(cluster) = host.cluster else { return };
    let search = Search::new(cluster);
    let mut found = BTreeSet::new();
    for table in
        host.tables.iter().filter(|table| table.legacy || !matches!(&*table.name, TABLE | kube_proxy::TABLE))
    {
        search.table(table, &mut found);
    }
    let more = found.len().saturating_sub(NAMED);
    for what in found.into_iter().take(NAMED) {
        let remedy = "take the rule away, or give the Service another address or port; a hostPort that equals a NodePort \
                      belongs to the Pod that has it";
        host.find("translations", Severity::Warning, what, remedy);
    }
    if more > 0 {
        host.find("translations", Severity::Warning, format!("and {more} more rules like these"), "as above");
    }
}

struct Search {
    ours: Ours,
    node_ports: BTreeMap<u16, IpAddr>,
}

impl Search {
    fn new(cluster: &Cluster) -> Search {
        let mut ours = Ours::new();
        let mut node_ports = BTreeMap::new();
        let node = &cluster.desired.node().node_port_addresses;
        for (key, ..) in cluster.desired.frontends() {
            ours.entry(key.address).or_default().insert(key.port);
            if node.contains(&key.address) {
                node_ports.insert(key.port, key.address);
            }
        }
        Search { ours, node_ports }
    }

    fn table(&self, table: &Table, found: &mut BTreeSet<String>) {
        let translating = translating(table);
        for chain in &table.chains {
            let Some(place) = &chain.hook else { continue };
            let at_hook = matches!(place.hook, NF_INET_PRE_ROUTING | NF_INET_LOCAL_OUT);
            if place.kind == "nat" && at_hook {
                self.chain(table, chain, place.priority, &translating, DEPTH, found);
            }
        }
    }

    fn chain(
        &self,
        table: &Table,
        chain: &Chain,
        priority: i32,
        translating: &BTreeSet<&str>,
        depth: usize,
        found: &mut BTreeSet<String>,
    ) {
        for rule in &chain.rules {
            let translates = match rule.parts.last() {
                Some(Part::Dnat) => true,
                Some(Part::Jump(to)) => translating.contains(&**to),
                _ => false,
            };
            if !translates {
                continue;
            }
            match (self.target(rule, table.family), rule.parts.last()) {
                (Target::Ours(what), _) => {
                    let order = match priority < -101 {
                        true => "before sluice's at -101: sluice does not see these connections",
                        false => "after sluice's at -101, so that it has no effect on them",
                    };
                    found.insert(format!(
                        "a rule in chain {} of {} translates {what}, at priority {priority}, {order}",
                        chain.name,
                        table_name(table)
                    ));
                }
                (Target::Anything, Some(Part::Jump(to))) if depth > 0 => {
                    if let Some(called) = table.chains.iter().find(|chain| chain.name == *to) {
                        self.chain(table, called, priority, translating, depth - 1, found);
                    }
                }
                _ => {}
            }
        }
    }

    /// What of ours a rule's conditions let through, as far as they are about the destination.
    fn target(&self, rule: &Rule, family: u8) -> Target {
        let conditions = Conditions::of(rule, family);
        let fits = |port: &u16| {
            let has =
                |ranges: &Vec<(u16, u16)>| ranges.iter().any(|(first, last)| (first..=last).contains(&port));
            conditions.ports.as_ref().is_none_or(has)
        };
        match &conditions.address {
            Some((mask, value, equal)) => {
                let hit = self.ours.iter().find_map(|(address, ports)| {
                    let hit = matches(*address, mask, value)? == *equal;
                    let port = ports.iter().find(|port| fits(port)).filter(|_| hit)?;
                    Some((*address, *port))
                });
                match hit {
                    Some((address, port)) => {
                        Target::Ours(std::net::SocketAddr::new(address, port).to_string())
                    }
                    None => Target::Others,
                }
            }
            None if conditions.ports.is_some() => {
                let hit = self.node_ports.iter().find(|(port, _)| fits(port));
                hit.map_or(Target::Others, |(port, address)| {
                    Target::Ours(format!("NodePort {}", std::net::SocketAddr::new(*address, *port)))
                })
            }
            None => Target::Anything,
        }
    }
}

enum Target {
    Ours(String),
    Others,
    /// The rule does not ask for a destination.
    Anything,
}

/// What a rule asks for of the destination.
#[derive(Default)]
struct Conditions {
    /// Mask, value, and whether it must be equal.
    address: Option<(Vec<u8>, Vec<u8>, bool)>,
    ports: Option<Vec<(u16, u16)>>,
}

impl Conditions {
    fn of(rule: &Rule, family: u8) -> Conditions {
        let mut conditions = Conditions::default();
        let mut loaded = None;
        let mut mask: Option<&Vec<u8>> = None;
        for part in &rule.parts {
            match part {
                Part::Load(base, offset, length) => (loaded, mask) = (Some((*base, *offset, *length)), None),
                Part::Mask(bits) => mask = Some(bits),
                Part::Compare(equal, value) => match loaded {
                    // The header says which family it is, where the table has both.
                    Some((NFT_PAYLOAD_NETWORK_HEADER, offset, length))
                        if offset == 16 && length <= 4 && family != 10 || offset == 24 =>
                    {
                        let mask = mask.cloned().unwrap_or_else(|| vec![0xff; value.len()]);
                        conditions.address = Some((mask, value.clone(), *equal));
                    }
                    _ => {}
                },
                _ => loaded = None,
            }
        }
        conditions.ports = rule.destination_ports();
        conditions
    }
}

/// Whether an address has this value in these bits; `None`: it is of another family.
fn matches(address: IpAddr, mask: &[u8], value: &[u8]) -> Option<bool> {
    let bytes = match address {
        IpAddr::V4(v4) if value.len() <= 4 => v4.octets().to_vec(),
        IpAddr::V6(v6) if value.len() > 4 => v6.octets().to_vec(),
        _ => return None,
    };
    Some(bytes.iter().zip(mask).map(|(byte, mask)| byte & mask).eq(value.iter().take(mask.len()).copied()))
}

/// Chains in which a rule translates, or that call one.
fn translating(table: &Table) -> BTreeSet<&str> {
    let mut found: BTreeSet<&str> = BTreeSet::new();
    let does = |chain: &Chain| chain.rules.iter().any(|rule| rule.parts.contains(&Part::Dnat));
    let foreign = |chain: &&Chain| !kube_proxy::chains::is_kube_proxys(&chain.name);
    found.extend(table.chains.iter().filter(foreign).filter(|chain| does(chain)).map(|chain| &*chain.name));
    loop {
        let calls = |chain: &&Chain| chain.rules.iter().flat_map(Rule::jumps).any(|to| found.contains(to));
        let more: Vec<&str> = table
            .chains
            .iter()
            .filter(foreign)
            .filter(|chain| !found.contains(&*chain.name) && calls(chain))
            .map(|chain| &*chain.name)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}
