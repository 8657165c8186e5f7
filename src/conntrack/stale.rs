//! Which entries are stale, as a pure function of what changed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::cluster::{Family, Protocol};
use crate::forwarding::{Changes, Frontend, Key, Usable};

/// Up to so many endpoints are looked for one by one.
const FEW: usize = 8;

/// Endpoints of frontends that the kernel's rules do not tell of, and that may have connections all the same.
pub type Known = FxHashMap<Key, Vec<Usable>>;

/// A connection as conntrack has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Where the client sent its packets.
    pub destination: Key,
    /// The client.
    pub source: IpAddr,
    /// Who answers: the endpoint, or the destination itself where nothing is translated.
    pub reply_source: SocketAddr,
    /// A TCP connection whose SYN has no answer yet.
    pub half_open: bool,
}

/// What changed at one frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Change {
    /// Endpoints that no longer serve.
    gone: FxHashSet<SocketAddr>,
    /// Endpoints that serve now and did not: they cancel an older `gone`.
    came: FxHashSet<SocketAddr>,
    /// Whether flows may be older than the frontend, or than its first endpoint.
    fresh: bool,
    /// Whether the frontend went.
    went: bool,
    /// Who may connect, where that changed.
    sources: Option<Option<Arc<[IpNet]>>>,
    /// All that serve, where what went is not known: flows to any other endpoint are stale.
    only: Option<FxHashSet<SocketAddr>>,
}

impl Change {
    fn finds_something(&self) -> bool {
        !self.gone.is_empty() || self.fresh || matches!(self.sources, Some(Some(_))) || self.only.is_some()
    }

    fn merge(&mut self, newer: Change) {
        self.gone.retain(|endpoint| !newer.came.contains(endpoint));
        self.came.retain(|endpoint| !newer.gone.contains(endpoint));
        if let Some(only) = &mut self.only {
            only.extend(newer.came.iter().copied());
            only.retain(|endpoint| !newer.gone.contains(endpoint));
        }
        if newer.only.is_some() {
            self.only = newer.only;
        }
        self.gone.extend(newer.gone);
        self.came.extend(newer.came);
        self.fresh = (self.fresh || newer.fresh) && !newer.went;
        self.went = newer.went;
        if newer.sources.is_some() {
            self.sources = newer.sources;
        }
    }
}

/// The entries that are to go, by what changed at the frontends that they were made for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stale {
    changes: FxHashMap<Key, Change>,
}

impl Stale {
    /// What a change makes stale; after a full comparison, with regard to what was found in the kernel and to
    /// what is `known` besides.
    pub fn new(changes: &Changes, known: &Known) -> Stale {
        let mut stale = Stale::default();
        let adopted = &changes.adopted;
        for (key, (before, after)) in &changes.frontends {
            let before = before.as_ref().or_else(|| adopted.frontends.get(key));
            stale.compare(*key, before, after.as_ref(), changes, known);
        }
        // Those that are there no longer.
        let went = |key: &&Key| !changes.frontends.contains_key(key);
        for (key, before) in &adopted.frontends {
            if went(&key) {
                stale.compare(*key, Some(before), None, changes, known);
            }
        }
        for key in known.keys().filter(went).filter(|key| !adopted.frontends.contains_key(key)) {
            stale.compare(*key, None, None, changes, known);
        }
        stale
    }

    fn compare(
        &mut self,
        key: Key,
        before: Option<&Frontend>,
        after: Option<&Frontend>,
        changes: &Changes,
        known: &Known,
    ) {
        let slots = changes.adopted.slots.get(&key);
        let mut old: Vec<SocketAddr> = before.iter().flat_map(|f| f.serving()).collect();
        old.extend(slots.into_iter().flatten().map(|(_, endpoint)| endpoint));
        let had_endpoints = slots.is_some() || before.is_some_and(|f| f.endpoints().next().is_some());
        old.extend(known.get(&key).into_iter().flatten().flat_map(|list| list.iter()));
        let new: Vec<SocketAddr> = after.iter().flat_map(|f| f.serving()).collect();
        let (gone, came) = (missing(&old, &new), missing(&new, &old));
        let mut change = Change { gone, came, went: after.is_none(), ..Change::default() };
        if key.protocol != Protocol::Tcp {
            let itself = SocketAddr::new(key.address, key.port);
            let has_endpoints = after.is_some_and(|f| f.endpoints().next().is_some());
            let fresh = after.is_some() && (before.is_none() || has_endpoints && !had_endpoints);
            change.fresh = fresh && !new.contains(&itself);
            let sources = |frontend: Option<&Frontend>| frontend.and_then(|f| f.sources.clone());
            if sources(before) != sources(after) {
                change.sources = Some(sources(after));
            }
        }
        if change != Change::default() {
            self.changes.insert(key, change);
        }
    }

    /// The first comparison of an agent: endpoints that drained when the last one ended, and went meanwhile, are in no
    /// table, so that of UDP and SCTP every flow to an endpoint that does not serve is stale.
    pub fn first(changes: &Changes) -> Stale {
        let mut stale = Stale::new(changes, &Known::default());
        for (key, (_, after)) in changes.frontends.iter().filter(|(key, _)| key.protocol != Protocol::Tcp) {
            if let Some(after) = after {
                stale.changes.entry(*key).or_default().only = Some(after.serving().collect());
            }
        }
        stale
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        !self.changes.values().any(Change::finds_something)
    }

    /// Takes in what became stale, or ceased to be, after this.
    pub fn merge(&mut self, newer: Stale) {
        for (key, change) in newer.changes {
            self.changes.entry(key).or_default().merge(change);
        }
    }

    /// Whether an entry is to go.
    pub fn covers(&self, flow: &Flow) -> bool {
        let Some(change) = self.changes.get(&flow.destination) else { return false };
        if flow.destination.protocol == Protocol::Tcp && !flow.half_open {
            return false;
        }
        let Key { address, port, .. } = flow.destination;
        if change.gone.contains(&flow.reply_source) {
            return true;
        }
        let untranslated = flow.reply_source == SocketAddr::new(address, port);
        if change.fresh && untranslated {
            return true;
        }
        if change.only.as_ref().is_some_and(|only| !untranslated && !only.contains(&flow.reply_source)) {
            return true;
        }
        match &change.sources {
            Some(Some(sources)) => !sources.iter().any(|net| net.contains(&flow.source)),
            Some(None) | None => false,
        }
    }

    /// What has to be listed to find them all.
    pub fn scopes(&self) -> Vec<Scope> {
        let mut scopes: Vec<Scope> = Vec::new();
        for (key, change) in self.changes.iter().filter(|(_, change)| change.finds_something()) {
            let of = |s: &Scope| s.family == key.family() && s.protocol == key.protocol;
            let at = scopes.iter().position(of).unwrap_or_else(|| {
                let (family, protocol) = (key.family(), key.protocol);
                scopes.push(Scope { family, protocol, destination: One::None, reply_source: One::None });
                scopes.len() - 1
            });
            let scope = &mut scopes[at];
            scope.destination.add(key.address);
            if change.fresh || change.sources.is_some() || change.only.is_some() {
                scope.reply_source = One::Several;
            }
            change.gone.iter().for_each(|endpoint| scope.reply_source.add(endpoint.ip()));
        }
        scopes.sort_unstable_by_key(|scope| (scope.family, scope.protocol));
        scopes
    }
}

/// What one listing has to give. The kernel leaves out the rest where it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Entries of this family.
    pub family: Family,
    /// Entries of this protocol.
    pub protocol: Protocol,
    /// Their original destination.
    pub destination: One,
    /// Their reply source.
    pub reply_source: One,
}

/// Whether several addresses are all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum One {
    /// There is none yet.
    None,
    /// All are this one.
    Is(IpAddr),
    /// There are several.
    Several,
}

impl One {
    fn add(&mut self, address: IpAddr) {
        *self = match *self {
            One::None => One::Is(address),
            One::Is(known) if known == address => One::Is(known),
            One::Is(_) | One::Several => One::Several,
        };
    }

    /// The address, where there is but one.
    pub fn get(self) -> Option<IpAddr> {
        match self {
            One::Is(address) => Some(address),
            One::None | One::Several => None,
        }
    }
}

/// What is in `list` but not in `other`. The lists are mostly equal, place by place: endpoints keep their index.
fn missing(list: &[SocketAddr], other: &[SocketAddr]) -> FxHashSet<SocketAddr> {
    let moved = list.iter().enumerate().filter(|(i, endpoint)| other.get(*i) != Some(endpoint));
    let mut missing: FxHashSet<SocketAddr> = moved.map(|(_, endpoint)| *endpoint).collect();
    if missing.len() <= FEW {
        missing.retain(|endpoint| !other.contains(endpoint));
    } else {
        let other: FxHashSet<&SocketAddr> = other.iter().collect();
        missing.retain(|endpoint| !other.contains(endpoint));
    }
    missing
}

#[cfg(test)]
mod tests;
