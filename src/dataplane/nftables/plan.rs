//! The difference between what should be and what is, as an ordered list of steps for one transaction.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::model::{Chain, Element, Key, LOCAL_OFFSET, Step, Structure, Verdict};
use crate::cluster::Family;
use crate::forwarding::{Changes, Desired, Frontend, Masquerade, SetChange, Target, Usable};

/// Steps for each family's table, applied in one batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps of a family, in order; a family without any is left out.
    pub tables: Vec<(Family, Vec<Step>)>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// How many steps there are.
    pub fn len(&self) -> usize {
        self.tables.iter().map(|(_, steps)| steps.len()).sum()
    }

    fn push(&mut self, family: Family, steps: Vec<Step>) {
        if !steps.is_empty() {
            self.tables.push((family, steps));
        }
    }
}

/// A table as it was read from the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedTable {
    /// Where its constant part (sets, base chains, rules) or a chain of a count is not as we would make it: the
    /// first such place. Then the table is replaced.
    pub difference: Option<String>,
    /// Its chains of a count.
    pub chains: FxHashSet<Chain>,
    /// Its elements, but for those that the kernel adds by itself (affinity).
    pub elements: FxHashSet<Element>,
}

/// The tables of both families, `None` where there is none.
pub type Observed = BTreeMap<Family, Option<ObservedTable>>;

/// How many elements refer to each chain of a count; the chain is there as long as one does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainUse(FxHashMap<(Family, Chain), usize>);

impl ChainUse {
    fn of<'a>(family: Family, elements: impl IntoIterator<Item = &'a Element>) -> ChainUse {
        let mut used = ChainUse::default();
        for element in elements {
            if let Some(chain) = counted_chain(element) {
                *used.0.entry((family, chain)).or_default() += 1;
            }
        }
        used
    }

    fn chains(&self, family: Family) -> Vec<Chain> {
        let mut chains: Vec<Chain> = self.0.keys().filter(|(f, _)| *f == family).map(|(_, c)| *c).collect();
        chains.sort_unstable();
        chains
    }
}

/// The chain of a count that an element sends packets to.
fn counted_chain(element: &Element) -> Option<Chain> {
    let verdict = match element {
        Element::Service(_, verdict) | Element::LocalService(_, verdict) => verdict,
        Element::Slot(_, _, verdict) | Element::Choice(_, _, verdict) => verdict,
        _ => return None,
    };
    match verdict {
        Verdict::Goto(chain) | Verdict::Jump(chain) if chain.is_counted() => Some(*chain),
        _ => None,
    }
}

/// The constant part of a family's table.
pub fn structure(desired: &Desired, family: Family) -> Structure {
    let settings = desired.settings();
    Structure {
        local_detection: settings.local_detection(family).clone(),
        masquerade_all: settings.masquerade_all,
    }
}

/// The elements of one frontend.
pub fn elements_of(key: Key, frontend: &Frontend, out: &mut Vec<Element>) {
    let verdict = |target: &Target, chain: fn(u32) -> Chain| match target {
        // At most MAX_ENDPOINTS, so it fits.
        Target::Endpoints(endpoints) => Verdict::Goto(chain(endpoints.len() as u32)),
        Target::Refuse => Verdict::Goto(Chain::NoEndpoints),
        Target::Drop => Verdict::Drop,
    };
    let endpoints = |target: &Target, offset: u32, out: &mut Vec<Element>| {
        out.extend((offset..).zip(target.endpoints()).map(|(i, e)| Element::Endpoint(key, i, *e)));
    };
    out.push(Element::Service(key, verdict(&frontend.inside, Chain::Endpoints)));
    endpoints(&frontend.inside, 0, out);
    if frontend.outside.is_some() || frontend.sources.is_some() {
        out.push(Element::Special(key));
    }
    if let Some(outside) = &frontend.outside {
        out.push(Element::LocalService(key, verdict(outside, Chain::Local)));
        endpoints(outside, LOCAL_OFFSET, out);
    }
    if let Some(sources) = &frontend.sources {
        out.push(Element::Restricted(key));
        out.extend(sources.iter().map(|source| Element::AllowedSource(key, *source)));
    }
    match frontend.masquerade {
        Masquerade::OffCluster => {}
        Masquerade::All => out.push(Element::MasqueradeAll(key)),
        Masquerade::Own => out.push(Element::MasqueradeOwn(key)),
    }
}

/// Every element of a family's table.
pub fn elements(desired: &Desired, family: Family) -> Vec<Element> {
    let mut out = Vec::new();
    let ranges = |nets: &[IpNet], make: fn(IpNet) -> Element, out: &mut Vec<Element>| {
        let nets: Vec<IpNet> = nets.iter().filter(|n| Family::of_net(n) == family).copied().collect();
        out.extend(IpNet::aggregate(&nets).into_iter().map(make));
    };
    ranges(&desired.settings().pod_cidrs, Element::PodCidr, &mut out);
    ranges(&desired.settings().service_cidrs, Element::ServiceCidr, &mut out);
    let in_family = |a: &IpAddr| Family::of(*a) == family;
    out.extend(desired.cluster_ips().filter(in_family).map(Element::ClusterIp));
    out.extend(desired.hairpin().filter(in_family).map(Element::Hairpin));
    for (key, frontend, _) in desired.frontends() {
        if key.family() == family {
            elements_of(*key, frontend, &mut out);
        }
    }
    out
}

/// The chains of a count that these elements need, sorted.
pub fn chains<'a>(family: Family, elements: impl IntoIterator<Item = &'a Element>) -> Vec<Chain> {
    ChainUse::of(family, elements).chains(family)
}

/// The whole difference. Also says how chains are used once it is applied.
pub fn plan(desired: &Desired, observed: &Observed) -> (Plan, ChainUse) {
    let mut plan = Plan::default();
    let mut used = ChainUse::default();
    for (family, table) in observed {
        let elements = elements(desired, *family);
        let used_here = ChainUse::of(*family, &elements);
        let chains = used_here.chains(*family);
        let steps = match table {
            Some(table) if table.difference.is_none() => difference(table, chains, elements),
            _ => create(structure(desired, *family), table.is_some(), chains, elements),
        };
        plan.push(*family, steps);
        used.0.extend(used_here.0);
    }
    (plan, used)
}

fn create(structure: Structure, exists: bool, chains: Vec<Chain>, mut elements: Vec<Element>) -> Vec<Step> {
    elements.sort_unstable();
    let destroy = exists.then_some(Step::DestroyTable);
    destroy
        .into_iter()
        .chain([Step::CreateTable(structure)])
        .chain(chains.into_iter().map(Step::AddChain))
        .chain(elements.into_iter().map(Step::Add))
        .collect()
}

fn difference(observed: &ObservedTable, chains: Vec<Chain>, desired: Vec<Element>) -> Vec<Step> {
    let mut add: Vec<Element> = Vec::new();
    let mut unwanted: FxHashSet<&Element> = observed.elements.iter().collect();
    for element in desired {
        if !unwanted.remove(&element) {
            add.push(element);
        }
    }
    let delete: Vec<Element> = unwanted.into_iter().cloned().collect();
    let new_chains = chains.iter().filter(|c| !observed.chains.contains(c)).copied().collect();
    let mut old_chains: Vec<Chain> =
        observed.chains.iter().filter(|c| !chains.contains(c)).copied().collect();
    old_chains.sort_unstable();
    steps(new_chains, delete, add, old_chains)
}

/// Chains before the elements that refer to them, an element's old data before its new.
fn steps(
    new_chains: Vec<Chain>,
    mut delete: Vec<Element>,
    mut add: Vec<Element>,
    old_chains: Vec<Chain>,
) -> Vec<Step> {
    delete.sort_unstable();
    add.sort_unstable();
    new_chains
        .into_iter()
        .map(Step::AddChain)
        .chain(delete.into_iter().map(Step::Delete))
        .chain(add.into_iter().map(Step::Add))
        .chain(old_chains.into_iter().map(Step::DeleteChain))
        .collect()
}

/// The difference that one change of the desired state makes, of a size proportional to the change. Updates
/// `used`, which must have been right before; if applying fails it is to be read anew, by [`plan`].
pub fn plan_changes(changes: &Changes, families: &[Family], used: &mut ChainUse) -> Plan {
    let mut plan = Plan::default();
    for family in families {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let mut put = |change: SetChange, element: Element| match change {
            SetChange::Added => after.push(element),
            SetChange::Removed => before.push(element),
        };
        for (address, change) in changes.cluster_ips.iter().filter(|(a, _)| Family::of(**a) == *family) {
            put(*change, Element::ClusterIp(*address));
        }
        for (address, change) in changes.hairpin.iter().filter(|(a, _)| Family::of(**a) == *family) {
            put(*change, Element::Hairpin(*address));
        }
        for (key, (old, new)) in changes.frontends.iter().filter(|(k, _)| k.family() == *family) {
            if let Some(old) = old {
                elements_of(*key, old, &mut before);
            }
            if let Some(new) = new {
                elements_of(*key, new, &mut after);
            }
        }
        let kept: FxHashSet<&Element> = {
            let before: FxHashSet<&Element> = before.iter().collect();
            after.iter().filter(|e| before.contains(e)).collect()
        };
        let delete: Vec<Element> = before.iter().filter(|e| !kept.contains(e)).cloned().collect();
        let add: Vec<Element> = after.iter().filter(|e| !kept.contains(e)).cloned().collect();
        let (new_chains, old_chains) = used.update(*family, &delete, &add);
        plan.push(*family, steps(new_chains, delete, add, old_chains));
    }
    plan
}

impl ChainUse {
    /// Counts elements out and in; gives the chains that are newly needed and those no longer needed.
    fn update(&mut self, family: Family, delete: &[Element], add: &[Element]) -> (Vec<Chain>, Vec<Chain>) {
        let mut touched: BTreeMap<Chain, (usize, usize)> = BTreeMap::new();
        for chain in delete.iter().filter_map(counted_chain) {
            touched.entry(chain).or_default().0 += 1;
        }
        for chain in add.iter().filter_map(counted_chain) {
            touched.entry(chain).or_default().1 += 1;
        }
        let (mut new, mut old) = (Vec::new(), Vec::new());
        for (chain, (minus, plus)) in touched {
            let count = self.0.entry((family, chain)).or_default();
            let before = *count;
            *count = (*count + plus).saturating_sub(minus);
            match (before, *count) {
                (0, 1..) => new.push(chain),
                (1.., 0) => old.push(chain),
                _ => {}
            }
            if *count == 0 {
                self.0.remove(&(family, chain));
            }
        }
        (new, old)
    }
}

/// The endpoint lists that a table holds, in the order of their indices, for [`Desired::adopting`].
pub fn adopt(observed: &Observed) -> FxHashMap<Key, Frontend> {
    let mut lists: FxHashMap<Key, (BTreeMap<u32, SocketAddr>, BTreeMap<u32, SocketAddr>)> =
        FxHashMap::default();
    for element in observed.values().flatten().flat_map(|t| &t.elements) {
        if let Element::Endpoint(key, index, endpoint) = element {
            let (inside, outside) = lists.entry(*key).or_default();
            let list = if *index < LOCAL_OFFSET { inside } else { outside };
            list.insert(*index, *endpoint);
        }
    }
    let target = |list: BTreeMap<u32, SocketAddr>| {
        let usable: Usable = list.into_values().collect();
        Target::Endpoints(usable)
    };
    let frontend = |(inside, outside): (BTreeMap<_, _>, BTreeMap<_, _>)| Frontend {
        inside: target(inside),
        outside: (!outside.is_empty()).then(|| target(outside)),
        masquerade: Masquerade::OffCluster,
        sources: None,
    };
    lists.into_iter().map(|(key, lists)| (key, frontend(lists))).collect()
}

impl fmt::Display for Plan {
    /// As nft commands.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (family, steps) in &self.tables {
            write!(f, "{}", super::text::steps(*family, steps))?;
        }
        Ok(())
    }
}
