//! The difference between what should be and what is, as an ordered list of steps for one transaction.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::model::{Chain, Element, Key, LOCAL_OFFSET, Set, Step, Structure, Verdict};
use super::translation::{Translation, sticky_beside_ipvs, sticky_changes};
use crate::cluster::Family;
use crate::forwarding::{
    Adopted, Changes, Desired, Frontend, Masquerade, SetChange, Settings, Sticky, Target,
};

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
    /// How many sets `sticky-K` there are, from 0 on.
    pub sticky_sets: u32,
    /// Its elements, but for those that the kernel adds by itself (affinity).
    pub elements: FxHashSet<Element>,
}

/// The tables of both families, `None` where there is none.
pub type Observed = BTreeMap<Family, Option<ObservedTable>>;

/// What a table's elements add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// What they were made for.
    translation: Translation,
    /// How many frontends, or virtual services that outlive theirs, hold each address of kube-ipvs0.
    held: FxHashMap<IpAddr, usize>,
    /// How many frontends clients stick to by the table where IPVS translates, by id.
    stickies: FxHashMap<u32, usize>,
    /// How many elements refer to each chain of a count; the chain is there as long as one does.
    chains: FxHashMap<(Family, Chain), usize>,
    /// How many elements each set has, where it has any.
    elements: FxHashMap<(Family, Set), usize>,
}

impl Usage {
    /// Nothing yet but what is not elements.
    fn holding(desired: &Desired, translation: Translation, kept: &[IpAddr]) -> Usage {
        let mut used = Usage::default();
        if translation != Translation::Table {
            for (key, frontend, _) in desired.frontends() {
                if translation.holds(key.address) {
                    *used.held.entry(key.address).or_default() += 1;
                }
                if let Some(sticky) = sticky_beside_ipvs(frontend) {
                    *used.stickies.entry(sticky.id).or_default() += 1;
                }
            }
            for address in kept.iter().filter(|address| translation.holds(**address)) {
                *used.held.entry(*address).or_default() += 1;
            }
        }
        used.translation = translation;
        used
    }

    /// Counts the uses of kube-ipvs0's addresses; gives the addresses that it is to get and to lose.
    fn hold(&mut self, changes: &Changes, kept: &[(IpAddr, SetChange)]) -> Vec<(IpAddr, SetChange)> {
        let frontends = changes.frontends.iter().filter_map(|(key, change)| match change {
            (None, Some(_)) => Some((key.address, SetChange::Added)),
            (Some(_), None) => Some((key.address, SetChange::Removed)),
            _ => None,
        });
        let uses: Vec<_> = frontends.chain(kept.iter().copied()).collect();
        let mut before: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for (address, change) in uses.into_iter().filter(|(a, _)| self.translation.holds(*a)) {
            let count = self.held.entry(address).or_default();
            before.entry(address).or_insert(*count);
            match change {
                SetChange::Added => *count += 1,
                // In any order: what is removed may be added later here.
                SetChange::Removed => *count = count.wrapping_sub(1),
            }
        }
        let held = &mut self.held;
        let changed = before.into_iter().filter_map(|(address, before)| {
            let after = held.get(&address).copied().unwrap_or(0);
            if after == 0 {
                held.remove(&address);
            }
            match (before, after) {
                (0, 1..) => Some((address, SetChange::Added)),
                (1.., 0) => Some((address, SetChange::Removed)),
                _ => None,
            }
        });
        changed.collect()
    }

    fn of<'a>(family: Family, elements: impl IntoIterator<Item = &'a Element>) -> Usage {
        let mut used = Usage::default();
        for element in elements {
            *used.elements.entry((family, element.set())).or_default() += 1;
            if let Some(chain) = counted_chain(element) {
                *used.chains.entry((family, chain)).or_default() += 1;
            }
        }
        used
    }

    /// The addresses that kube-ipvs0 should have.
    pub fn held(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.held.keys().copied()
    }

    /// Takes in those of another family.
    fn extend(&mut self, other: Usage) {
        self.chains.extend(other.chains);
        self.elements.extend(other.elements);
    }

    fn chains(&self, family: Family) -> Vec<Chain> {
        let of_family = self.chains.keys().filter(|(f, _)| *f == family);
        let mut chains: Vec<Chain> = of_family.map(|(_, c)| *c).collect();
        chains.sort_unstable();
        chains
    }

    /// How many elements a set should have.
    pub fn elements(&self, family: Family, set: Set) -> usize {
        self.elements.get(&(family, set)).copied().unwrap_or(0)
    }

    /// The chains of a count and the sets that a family's table should have.
    pub fn parts(&self, family: Family) -> (Vec<Chain>, Vec<Set>) {
        (self.chains(family), (0..self.sticky_sets(family)).map(Set::Sticky).collect())
    }

    /// How many sets `sticky-K` the chains of a family need.
    fn sticky_sets(&self, family: Family) -> u32 {
        sticky_sets(self.chains.keys().filter(|(f, _)| *f == family).map(|(_, chain)| chain))
    }
}

/// How many sets `sticky-K` these chains need, from 0 on.
pub fn sticky_sets<'a>(chains: impl IntoIterator<Item = &'a Chain>) -> u32 {
    let needs = |chain: &Chain| match chain {
        Chain::Sticky(slots, _) | Chain::StickyLocal(slots, _) => *slots,
        Chain::Pick(_, slot) => *slot + 1,
        _ => 0,
    };
    chains.into_iter().map(needs).max().unwrap_or(0)
}

/// The chain of a count that an element sends packets to.
pub(in crate::dataplane) fn counted_chain(element: &Element) -> Option<Chain> {
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
pub fn structure(settings: &Settings, family: Family) -> Structure {
    Structure {
        local_detection: settings.local_detection(family).clone(),
        masquerade_all: settings.masquerade_all,
        ipvs: settings.ipvs.is_some(),
        drop_invalid: settings.drop_invalid,
    }
}

/// The elements of what clients stick to: each live slot, and the same again without gaps.
fn elements_of_sticky(sticky: &Sticky, out: &mut Vec<Element>) {
    for (choice, (slot, _)) in (0..).zip(&sticky.live) {
        let pick = Verdict::Goto(Chain::Pick(sticky.timeout, *slot));
        out.push(Element::Slot(sticky.id, *slot, pick));
        out.push(Element::Choice(sticky.id, choice, pick));
    }
}

/// The family of what clients stick to.
fn family_of(sticky: &Sticky) -> Option<Family> {
    sticky.live.first().map(|(_, endpoint)| Family::of(endpoint.ip()))
}

/// Every element of a family's table.
pub fn elements(desired: &Desired, translation: &Translation, family: Family) -> Vec<Element> {
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
    out.extend(desired.serving().filter(|endpoint| endpoint.family() == family).map(Element::Serving));
    for (key, frontend, _) in desired.frontends() {
        if key.family() == family {
            translation.elements_of(*key, frontend, &mut out);
        }
    }
    for sticky in translation.stickies(desired).into_iter().filter(|s| family_of(s) == Some(family)) {
        elements_of_sticky(sticky, &mut out);
    }
    let held: FxHashSet<IpAddr> = desired
        .frontends()
        .map(|(key, ..)| key.address)
        .filter(|address| Family::of(*address) == family && translation.holds(*address))
        .collect();
    out.extend(held.into_iter().map(Element::IpvsAddress));
    out
}

/// What observed tables add up to.
pub fn usage(observed: &Observed) -> Usage {
    let mut used = Usage::default();
    for (family, table) in observed.iter().filter_map(|(family, table)| Some((*family, table.as_ref()?))) {
        used.extend(Usage::of(family, &table.elements));
    }
    used
}

/// The chains of a count that these elements need, sorted.
pub fn chains<'a>(family: Family, elements: impl IntoIterator<Item = &'a Element>) -> Vec<Chain> {
    Usage::of(family, elements).chains(family)
}

/// The whole difference. Also says what it will add up to.
pub fn plan(desired: &Desired, observed: &Observed) -> (Plan, Usage) {
    plan_for(desired, observed, Translation::of(desired), &[])
}

/// The same for another view of the host, while kube-ipvs0 is to keep these addresses besides.
pub fn plan_for(
    desired: &Desired,
    observed: &Observed,
    translation: Translation,
    kept: &[IpAddr],
) -> (Plan, Usage) {
    let mut plan = Plan::default();
    let mut used = Usage::holding(desired, translation, kept);
    for (family, table) in observed {
        let mut elements = elements(desired, &used.translation, *family);
        let held =
            elements.iter().filter_map(|e| if let Element::IpvsAddress(a) = e { Some(*a) } else { None });
        let held: FxHashSet<IpAddr> = held.collect();
        let kept = used.held.keys().filter(|a| Family::of(**a) == *family && !held.contains(a));
        elements.extend(kept.map(|address| Element::IpvsAddress(*address)));
        let used_here = Usage::of(*family, &elements);
        let chains = used_here.chains(*family);
        let steps = match table {
            Some(table) if table.difference.is_none() => difference(table, chains, elements),
            _ => create(structure(desired.settings(), *family), table.is_some(), chains, elements),
        };
        plan.push(*family, steps);
        used.extend(used_here);
    }
    (plan, used)
}

fn create(structure: Structure, exists: bool, chains: Vec<Chain>, mut elements: Vec<Element>) -> Vec<Step> {
    elements.sort_unstable();
    let destroy = exists.then_some(Step::DestroyTable);
    let sets = 0..sticky_sets(&chains);
    destroy
        .into_iter()
        .chain([Step::CreateTable(structure)])
        .chain(sets.map(|k| Step::AddSet(Set::Sticky(k))))
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
    let sets = (observed.sticky_sets, sticky_sets(&chains));
    steps(sets, (new_chains, old_chains), delete, add)
}

/// Sets before the chains and chains before the elements that refer to them, an element's old data before its
/// new; what is no longer referred to last.
fn steps(
    (sets_before, sets_after): (u32, u32),
    (new_chains, old_chains): (Vec<Chain>, Vec<Chain>),
    mut delete: Vec<Element>,
    mut add: Vec<Element>,
) -> Vec<Step> {
    delete.sort_unstable();
    add.sort_unstable();
    (sets_before..sets_after)
        .map(|k| Step::AddSet(Set::Sticky(k)))
        .chain(new_chains.into_iter().map(Step::AddChain))
        .chain(delete.into_iter().map(Step::Delete))
        .chain(add.into_iter().map(Step::Add))
        .chain(old_chains.into_iter().map(Step::DeleteChain))
        .chain((sets_after..sets_before).map(|k| Step::DeleteSet(Set::Sticky(k))))
        .collect()
}

/// The difference that one change of the desired state makes, of a size proportional to the change. Updates
/// `used`, which must have been right before; if applying fails it is to be read anew, by [`plan`].
pub fn plan_changes(changes: &Changes, families: &[Family], used: &mut Usage) -> Plan {
    plan_changes_keeping(changes, &[], families, used)
}

/// The same, while virtual services that outlive their frontends begin or cease to keep an address on kube-ipvs0.
pub fn plan_changes_keeping(
    changes: &Changes,
    kept: &[(IpAddr, SetChange)],
    families: &[Family],
    used: &mut Usage,
) -> Plan {
    let mut plan = Plan::default();
    let stickies: Vec<_> = match used.translation {
        Translation::Table => changes.stickies.values().cloned().collect(),
        Translation::Ipvs(_) => sticky_changes(changes.frontends.values(), &mut used.stickies),
    };
    let held = match used.translation {
        Translation::Table => Vec::new(),
        Translation::Ipvs(_) => used.hold(changes, kept),
    };
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
        for (endpoint, change) in changes.serving.iter().filter(|(e, _)| e.family() == *family) {
            put(*change, Element::Serving(*endpoint));
        }
        for (address, change) in held.iter().filter(|(a, _)| Family::of(*a) == *family) {
            put(*change, Element::IpvsAddress(*address));
        }
        for (key, (old, new)) in changes.frontends.iter().filter(|(k, _)| k.family() == *family) {
            if let Some(old) = old {
                used.translation.elements_of(*key, old, &mut before);
            }
            if let Some(new) = new {
                used.translation.elements_of(*key, new, &mut after);
            }
        }
        for (old, new) in &stickies {
            for (sticky, elements) in [(old, &mut before), (new, &mut after)] {
                if let Some(sticky) = sticky.as_ref().filter(|s| family_of(s) == Some(*family)) {
                    elements_of_sticky(sticky, elements);
                }
            }
        }
        let kept: FxHashSet<&Element> = {
            let before: FxHashSet<&Element> = before.iter().collect();
            after.iter().filter(|e| before.contains(e)).collect()
        };
        let delete: Vec<Element> = before.iter().filter(|e| !kept.contains(e)).cloned().collect();
        let add: Vec<Element> = after.iter().filter(|e| !kept.contains(e)).cloned().collect();
        let sets_before = used.sticky_sets(*family);
        let chains = used.update(*family, &delete, &add);
        let sets = (sets_before, used.sticky_sets(*family));
        plan.push(*family, steps(sets, chains, delete, add));
    }
    plan
}

impl Usage {
    /// Counts elements out and in; gives the chains that are newly needed and those no longer needed.
    fn update(&mut self, family: Family, delete: &[Element], add: &[Element]) -> (Vec<Chain>, Vec<Chain>) {
        for element in delete {
            if let Entry::Occupied(mut count) = self.elements.entry((family, element.set())) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
        for element in add {
            *self.elements.entry((family, element.set())).or_default() += 1;
        }
        let mut touched: BTreeMap<Chain, (usize, usize)> = BTreeMap::new();
        for chain in delete.iter().filter_map(counted_chain) {
            touched.entry(chain).or_default().0 += 1;
        }
        for chain in add.iter().filter_map(counted_chain) {
            touched.entry(chain).or_default().1 += 1;
        }
        let (mut new, mut old) = (Vec::new(), Vec::new());
        for (chain, (minus, plus)) in touched {
            let count = self.chains.entry((family, chain)).or_default();
            let before = *count;
            *count = (*count + plus).saturating_sub(minus);
            match (before, *count) {
                (0, 1..) => new.push(chain),
                (1.., 0) => old.push(chain),
                _ => {}
            }
            if *count == 0 {
                self.chains.remove(&(family, chain));
            }
        }
        (new, old)
    }
}

/// The endpoint lists and slots that the tables hold, for [`Desired::adopting`].
pub fn adopt(observed: &Observed) -> Adopted {
    let mut adopted = Adopted::default();
    let mut lists: FxHashMap<Key, [BTreeMap<u32, SocketAddr>; 2]> = FxHashMap::default();
    let mut sources: FxHashMap<Key, Vec<IpNet>> = FxHashMap::default();
    for (family, table) in observed.iter().filter_map(|(f, t)| Some((f, t.as_ref()?))) {
        adopted.known_slots[*family as usize] = table.sticky_sets;
        for element in &table.elements {
            match element {
                Element::Endpoint(key, index, endpoint) => {
                    let list = usize::from(*index >= LOCAL_OFFSET);
                    lists.entry(*key).or_default()[list].insert(*index, *endpoint);
                }
                Element::AffinityId(key, id) => adopted.ids.entry(*key).or_default()[0] = Some(*id),
                Element::LocalAffinityId(key, id) => adopted.ids.entry(*key).or_default()[1] = Some(*id),
                Element::Service(key, _) => {
                    // Also those without any endpoint.
                    lists.entry(*key).or_default();
                }
                Element::AllowedSource(key, source) => sources.entry(*key).or_default().push(*source),
                _ => {}
            }
        }
    }
    let target = |list: BTreeMap<u32, SocketAddr>| match list.is_empty() {
        true => Target::Refuse,
        false => Target::Endpoints(list.into_values().collect()),
    };
    for (key, [inside, outside]) in lists {
        let sources = sources.remove(&key).map(|mut sources| {
            sources.sort_unstable();
            sources.into()
        });
        let mut inside = inside;
        if adopted.ids.contains_key(&key) {
            // A slot beyond those that there are sets for is nobody's.
            let known = adopted.known_slots[key.family() as usize];
            let slots = std::mem::take(&mut inside).into_iter().filter(|(slot, _)| *slot < known);
            adopted.slots.insert(key, slots.collect());
        }
        let outside = (!outside.is_empty()).then(|| target(outside));
        let (masquerade, draining) = (Masquerade::OffCluster, None);
        let frontend =
            Frontend { inside: target(inside), outside, masquerade, sources, draining, scheduler: None };
        adopted.frontends.insert(key, frontend);
    }
    adopted
}

impl fmt::Display for Plan {
    /// As nft commands.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (family, steps) in &self.tables {
            super::text::write_plan(f, *family, steps)?;
        }
        Ok(())
    }
}
