//! All Services together: who gets an address and port that several claim, and what a change changes.

use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::{FxHashMap, FxHashSet};

use super::affinity::{Ids, PortKey, PortSlots, Slots, Sticky, is_of};
use super::changes::{Adopted, Changes, Conflict, Part, Refused, SetChange};
use super::service::{Before, Forwarding, Frontend, FrontendKind, Target, addresses, forward, ports_at};
use super::{Key, NodeView, Settings};
use crate::cluster::{Family, Index, ObjectName, Service};

/// What every address and port should do, for one node. Kept up to date service by service; the same as built
/// from scratch but for the order of endpoints, which follows what was there before.
#[derive(Debug, Default)]
pub struct Desired {
    settings: Settings,
    node: NodeView,
    frontends: FxHashMap<Key, Claims>,
    services: FxHashMap<ObjectName, Record>,
    /// Who has an address as ClusterIP (as a rule one).
    cluster_ips: FxHashMap<IpAddr, Vec<Arc<Service>>>,
    /// Who claims an address as externalIP or load-balancer address; looked at when a ClusterIP comes or goes.
    external: FxHashMap<IpAddr, FxHashSet<ObjectName>>,
    hairpin: FxHashMap<IpAddr, u32>,
    ids: Ids,
    /// By id, with the number of frontends that send there.
    stickies: FxHashMap<u32, (Arc<Sticky>, usize)>,
    /// How many frontends have connections to an endpoint; empty unless INVALID packets are dropped.
    serving: FxHashMap<Key, u32>,
    /// Found in the kernel at start, for ours to be put into the same order.
    adopted: Adopted,
}

/// All claims to one key, the best first.
#[derive(Debug)]
struct Claims {
    winner: Claimant,
    losers: Vec<Claimant>,
}

#[derive(Debug)]
struct Claimant {
    service: Arc<Service>,
    kind: FrontendKind,
    frontend: Frontend,
}

impl Claimant {
    /// ClusterIP before NodePort before load balancer before externalIP, then the older Service.
    fn rank(&self) -> (FrontendKind, i64, &ObjectName) {
        (self.kind, self.service.created, &self.service.name)
    }
}

/// What a Service had a part in, so that it can be taken back.
#[derive(Debug)]
struct Record {
    service: Arc<Service>,
    keys: Box<[Key]>,
    hairpin: Box<[IpAddr]>,
    slots: PortSlots,
}

impl Desired {
    /// Everything, from the final objects.
    pub fn from_scratch(index: &Index, node: NodeView, settings: Settings) -> (Desired, Changes) {
        Desired::adopting(index, node, settings, Adopted::default(), Instant::now())
    }

    /// Everything, with each endpoint list in the order of `adopted` as far as it has the same members. `now` is
    /// for slots of session affinity, which rest when they are freed.
    pub fn adopting(
        index: &Index,
        node: NodeView,
        settings: Settings,
        adopted: Adopted,
        now: Instant,
    ) -> (Desired, Changes) {
        let mut desired = Desired { settings, node, adopted, ..Desired::default() };
        let mut changes = desired.update(index, index.services().map(|s| s.name.clone()), now);
        changes.adopted = std::mem::take(&mut desired.adopted);
        (desired, changes)
    }

    /// Works out again the Services that changed, and those which that concerns.
    pub fn update(
        &mut self,
        index: &Index,
        dirty: impl IntoIterator<Item = ObjectName>,
        now: Instant,
    ) -> Changes {
        let mut changes = Changes::default();
        // Sorted, so that the same change gives the same result.
        let mut dirty: Vec<ObjectName> = dirty.into_iter().collect();
        dirty.sort_unstable();
        let mut concerned = FxHashSet::default();
        for name in &dirty {
            self.set_cluster_ips(name, index.service(name), &mut changes, &mut concerned);
        }
        for name in &dirty {
            concerned.remove(name);
        }
        let mut concerned: Vec<ObjectName> = concerned.into_iter().collect();
        concerned.sort_unstable();
        for name in dirty.iter().chain(&concerned) {
            self.set_service(name, index, now, &mut changes);
        }
        changes.services = dirty.len() + concerned.len();
        let relayed = &mut changes.relayed;
        changes.frontends.retain(|key, (before, after)| {
            let changed = before != after;
            if changed && key.is_relayed() {
                relayed.push(*key);
            }
            changed && !key.is_relayed()
        });
        self.set_stickies(&mut changes);
        if self.settings.drop_invalid {
            self.set_serving(&mut changes);
        }
        changes
    }

    /// Takes a Service's ClusterIPs in or out; a Service that claims such an address otherwise is concerned.
    fn set_cluster_ips(
        &mut self,
        name: &ObjectName,
        service: Option<&Arc<Service>>,
        changes: &mut Changes,
        concerned: &mut FxHashSet<ObjectName>,
    ) {
        let old = self.services.get(name).map(|r| r.service.clone());
        let mut touched: Vec<IpAddr> = Vec::new();
        for address in old.iter().flat_map(|s| &s.cluster_ips) {
            touched.push(*address);
            if let Entry::Occupied(mut owners) = self.cluster_ips.entry(*address) {
                owners.get_mut().retain(|s| s.name != *name);
                if owners.get().is_empty() {
                    owners.remove();
                    Changes::toggle(&mut changes.cluster_ips, *address, SetChange::Removed);
                }
            }
        }
        if let Some(service) = service {
            for address in &service.cluster_ips {
                touched.push(*address);
                let owners = self.cluster_ips.entry(*address).or_default();
                if owners.is_empty() {
                    Changes::toggle(&mut changes.cluster_ips, *address, SetChange::Added);
                }
                owners.push(service.clone());
            }
        }
        if old.as_ref().map(|s| &s.cluster_ips) != service.map(|s| &s.cluster_ips) {
            for address in touched {
                concerned.extend(self.external.get(&address).into_iter().flatten().cloned());
            }
        }
    }

    /// Replaces what a Service has by what it should have now.
    fn set_service(&mut self, name: &ObjectName, index: &Index, now: Instant, changes: &mut Changes) {
        let service = index.service(name);
        let mut old = self.services.remove(name);
        let mut slots = match (&mut old, service) {
            (Some(old), Some(service)) if old.service.created == service.created => {
                std::mem::take(&mut old.slots)
            }
            // Deleted and made again under the same name: nobody sticks to what it was.
            (Some(old), _) => {
                old.slots.values().for_each(|slots| self.ids.release(slots.ids()));
                PortSlots::default()
            }
            (None, Some(service)) => self.adopted_slots(service, now),
            (None, None) => PortSlots::default(),
        };
        let forwarding = service.map_or_else(Forwarding::default, |service| {
            let frontend = |key: &Key| {
                // What was adopted comes first: another claimant of the key may have been here meanwhile.
                let now = || self.frontends.get(key).map(|claims| &claims.winner.frontend);
                self.adopted.frontends.get(key).or_else(now)
            };
            let mut before = Before { frontend, slots: &mut slots, ids: &mut self.ids, now };
            forward(service, index.slices_of(name), &self.node, &mut before)
        });
        if let Some(old) = &old {
            self.retract(old, changes);
        }
        self.set_hairpin(&forwarding.hairpin, old.as_ref(), changes);
        let live = |k: &PortKey| service.is_some_and(|s| s.affinity.is_some() && has_port(s, k));
        let ids = &mut self.ids;
        slots.retain(|key, slots| {
            let keep = live(key);
            if !keep {
                ids.release(slots.ids());
            }
            keep
        });
        let Some(service) = service else { return };
        for address in service.external_ips.iter().chain(&service.load_balancer_ips) {
            self.external.entry(*address).or_default().insert(name.clone());
        }
        let Forwarding { claims, hairpin, overfull } = forwarding;
        changes.overfull.extend(overfull.into_iter().map(|(port, n)| (name.clone(), port, n)));
        let mut keys = Vec::with_capacity(claims.len());
        for claim in claims {
            if !self.settings.allows(&claim.key.address, claim.kind) {
                let service = name.clone();
                changes.refused.push(Refused { service, key: claim.key, kind: claim.kind });
                continue;
            }
            if let Some(owner) = self.foreign_owner(claim.key.address, claim.kind, name) {
                let (loser, winner) = (name.clone(), owner.name.clone());
                changes.conflicts.push(Conflict { loser, key: claim.key, kind: claim.kind, winner });
                continue;
            }
            keys.push(claim.key);
            let claimant = Claimant { service: service.clone(), kind: claim.kind, frontend: claim.frontend };
            self.submit(claim.key, claimant, changes);
        }
        // An address that is, say, both load-balancer address and externalIP has one key twice.
        keys.sort_unstable();
        keys.dedup();
        let (keys, hairpin) = (keys.into(), hairpin.into());
        let record = Record { service: service.clone(), keys, hairpin, slots };
        self.services.insert(name.clone(), record);
    }

    /// Takes back what a Service claims.
    fn retract(&mut self, old: &Record, changes: &mut Changes) {
        let name = &old.service.name;
        for key in &old.keys {
            self.withdraw(key, name, changes);
        }
        for address in old.service.external_ips.iter().chain(&old.service.load_balancer_ips) {
            if let Some(claimants) = self.external.get_mut(address) {
                claimants.remove(name);
                if claimants.is_empty() {
                    self.external.remove(address);
                }
            }
        }
    }

    /// The slots that a Service's ports have in the kernel.
    fn adopted_slots(&self, service: &Service, now: Instant) -> PortSlots {
        let Some(timeout) = service.affinity else { return PortSlots::default() };
        let until = now + std::time::Duration::from_secs(timeout.into());
        let mut slots = PortSlots::default();
        for cluster_ip in &service.cluster_ips {
            let family = Family::of(*cluster_ip);
            for port in &service.ports {
                // Each address of the port has those that may be reached through it; the slots are the same.
                let keys = addresses(service, &self.node, port, family, *cluster_ip)
                    .map(|(address, number, _)| Key { address, protocol: port.protocol, port: number });
                let own = |key: &Key| {
                    self.adopted.ids.get(key).is_some_and(|ids| is_of(*ids, service, port, family))
                };
                let lists = keys.filter(own).filter_map(|k| self.adopted.slots.get(&k));
                let live: Vec<_> = lists.flatten().copied().collect();
                if !live.is_empty() {
                    let known = self.adopted.known_slots[family as usize];
                    let key = (family, port.protocol, port.name.clone());
                    slots.insert(key, Slots::adopt(live, known, until));
                }
            }
        }
        slots
    }

    /// The other Service whose ClusterIP this address is, unless it is claimed as a ClusterIP, too.
    fn foreign_owner(&self, address: IpAddr, kind: FrontendKind, name: &ObjectName) -> Option<&Arc<Service>> {
        if matches!(kind, FrontendKind::ClusterIp | FrontendKind::NodePort) {
            return None;
        }
        let owners = self.cluster_ips.get(&address)?;
        if owners.iter().any(|s| s.name == *name) { None } else { owners.first() }
    }

    fn submit(&mut self, key: Key, mut claimant: Claimant, changes: &mut Changes) {
        match self.frontends.entry(key) {
            Entry::Vacant(entry) => {
                changes.frontends.entry(key).or_insert((None, None)).1 = Some(claimant.frontend.clone());
                entry.insert(Claims { winner: claimant, losers: Vec::new() });
            }
            Entry::Occupied(mut entry) => {
                let claims = entry.get_mut();
                if claimant.rank() < claims.winner.rank() {
                    let before = claims.winner.frontend.clone();
                    std::mem::swap(&mut claims.winner, &mut claimant);
                    let after = claims.winner.frontend.clone();
                    changes.frontends.entry(key).or_insert((Some(before), None)).1 = Some(after);
                }
                if claims.winner.service.name != claimant.service.name {
                    changes.conflicts.push(Conflict {
                        loser: claimant.service.name.clone(),
                        key,
                        kind: claimant.kind,
                        winner: claims.winner.service.name.clone(),
                    });
                }
                let at = claims.losers.partition_point(|l| l.rank() < claimant.rank());
                claims.losers.insert(at, claimant);
            }
        }
    }

    fn withdraw(&mut self, key: &Key, name: &ObjectName, changes: &mut Changes) {
        let Entry::Occupied(mut entry) = self.frontends.entry(*key) else { return };
        let claims = entry.get_mut();
        claims.losers.retain(|l| l.service.name != *name);
        if claims.winner.service.name != *name {
            return;
        }
        let before = claims.winner.frontend.clone();
        let change = changes.frontends.entry(*key).or_insert((Some(before), None));
        if claims.losers.is_empty() {
            change.1 = None;
            entry.remove();
        } else {
            claims.winner = claims.losers.remove(0);
            change.1 = Some(claims.winner.frontend.clone());
        }
    }

    fn set_hairpin(&mut self, new: &[IpAddr], old: Option<&Record>, changes: &mut Changes) {
        for address in new {
            let count = self.hairpin.entry(*address).or_default();
            *count += 1;
            if *count == 1 {
                Changes::toggle(&mut changes.hairpin, *address, SetChange::Added);
            }
        }
        for address in old.iter().flat_map(|r| &r.hairpin) {
            let Entry::Occupied(mut count) = self.hairpin.entry(*address) else { continue };
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
                Changes::toggle(&mut changes.hairpin, *address, SetChange::Removed);
            }
        }
    }

    /// Finds out from the frontends that changed what clients stick to now, and did before.
    fn set_stickies(&mut self, changes: &mut Changes) {
        let stickies = |frontend: &Option<Frontend>| {
            let targets = frontend.iter().flat_map(|f| [Some(&f.inside), f.outside.as_ref()]).flatten();
            targets.filter_map(Target::sticky).cloned().collect::<Vec<_>>()
        };
        for (before, after) in changes.frontends.values() {
            for sticky in stickies(before) {
                if let Some((known, count)) = self.stickies.get_mut(&sticky.id) {
                    changes.stickies.entry(sticky.id).or_insert((Some(known.clone()), None));
                    *count -= 1;
                }
            }
            for sticky in stickies(after) {
                let known = self.stickies.get(&sticky.id).map(|(known, _)| known.clone());
                changes.stickies.entry(sticky.id).or_insert((known, None));
                let entry = self.stickies.entry(sticky.id).or_insert((sticky.clone(), 0));
                *entry = (sticky, entry.1 + 1);
            }
        }
        for (id, (_, after)) in &mut changes.stickies {
            if let Entry::Occupied(entry) = self.stickies.entry(*id) {
                if entry.get().1 == 0 {
                    entry.remove();
                } else {
                    *after = Some(entry.get().0.clone());
                }
            }
        }
        changes.stickies.retain(|_, (before, after)| before != after);
    }

    /// Counts the endpoints of the frontends that changed, what drains among them.
    fn set_serving(&mut self, changes: &mut Changes) {
        let serving = |key: &Key, frontend: &Option<Frontend>| {
            let protocol = key.protocol;
            let endpoints = frontend.iter().flat_map(Frontend::serving);
            endpoints.map(|e| Key { address: e.ip(), protocol, port: e.port() }).collect::<Vec<_>>()
        };
        for (key, (before, after)) in &changes.frontends {
            for endpoint in serving(key, after) {
                let count = self.serving.entry(endpoint).or_default();
                *count += 1;
                if *count == 1 {
                    Changes::toggle(&mut changes.serving, endpoint, SetChange::Added);
                }
            }
            for endpoint in serving(key, before) {
                let Entry::Occupied(mut count) = self.serving.entry(endpoint) else { continue };
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                    Changes::toggle(&mut changes.serving, endpoint, SetChange::Removed);
                }
            }
        }
    }

    /// The settings that hold for all.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The node.
    pub fn node(&self) -> &NodeView {
        &self.node
    }

    /// Every frontend that is a matter of rules, with the Service that has it, in no order.
    pub fn frontends(&self) -> impl Iterator<Item = (&Key, &Frontend, &Arc<Service>)> {
        let by_rules = self.frontends.iter().filter(|(key, _)| !key.is_relayed());
        by_rules.map(|(k, c)| (k, &c.winner.frontend, &c.winner.service))
    }

    /// The frontend of a key and the Service that has it.
    pub fn frontend(&self, key: &Key) -> Option<(&Frontend, &Arc<Service>)> {
        self.frontends.get(key).map(|c| (&c.winner.frontend, &c.winner.service))
    }

    /// The Service that has a key, and the name of its port there.
    pub fn port_of(&self, key: &Key) -> Option<(ObjectName, Arc<str>)> {
        let winner = &self.frontends.get(key)?.winner;
        let mut ports = super::service::ports_at(&winner.service, &self.node, key);
        let (port, _) = ports.find(|(_, kind)| *kind == winner.kind)?;
        Some((winner.service.name.clone(), port.name.clone()))
    }

    /// Every claim to a key, the one that wins first.
    pub fn claims(&self, key: &Key) -> impl Iterator<Item = (FrontendKind, &Arc<Service>)> {
        let claims = self.frontends.get(key).into_iter();
        claims.flat_map(|c| std::iter::once(&c.winner).chain(&c.losers)).map(|c| (c.kind, &c.service))
    }

    /// The claims to a key that are refused, and whether by the settings; if not, its address is another Service's
    /// ClusterIP. By name.
    pub fn refused_claims(&self, key: &Key) -> Vec<(FrontendKind, &Arc<Service>, bool)> {
        let claimants = self.external.get(&key.address).into_iter().flatten();
        let services = claimants.filter_map(|name| self.services.get(name)).map(|record| &record.service);
        let refused = services.flat_map(|service| {
            let claims = ports_at(service, &self.node, key).map(|(_, kind)| kind);
            claims.filter_map(move |kind| {
                let forbidden = !self.settings.allows(&key.address, kind);
                let refused = forbidden || self.foreign_owner(key.address, kind, &service.name).is_some();
                refused.then_some((kind, service, forbidden))
            })
        });
        let mut refused: Vec<_> = refused.collect();
        refused.sort_unstable_by_key(|(kind, service, _)| (&service.name, *kind));
        refused
    }

    /// The Services whose ClusterIP an address is; as a rule one or none.
    pub fn cluster_ip_owners(&self, address: IpAddr) -> &[Arc<Service>] {
        self.cluster_ips.get(&address).map_or(&[], Vec::as_slice)
    }

    /// Whether a connection from this address to itself is masqueraded, once it has come through a Service.
    pub fn is_hairpin(&self, address: IpAddr) -> bool {
        self.hairpin.contains_key(&address)
    }

    /// Everything that clients stick to, in no order.
    pub fn stickies(&self) -> impl Iterator<Item = &Arc<Sticky>> {
        self.stickies.values().map(|(sticky, _)| sticky)
    }

    /// Every ClusterIP, in no order.
    pub fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.cluster_ips.keys().copied()
    }

    /// The Services that ask for a part, sorted.
    pub fn who_asks_for(&self, part: Part) -> Vec<ObjectName> {
        let mut names: Vec<ObjectName> = match part {
            Part::Frontend(key) => self.frontend(&key).map(|(_, s)| s.name.clone()).into_iter().collect(),
            Part::ClusterIp(address) => {
                self.cluster_ip_owners(address).iter().map(|s| s.name.clone()).collect()
            }
            Part::Hairpin(address) => {
                let asks = |record: &&Record| record.hairpin.contains(&address);
                self.services.values().filter(asks).map(|record| record.service.name.clone()).collect()
            }
            Part::Affinity(id) => {
                let asks = |f: &Frontend| {
                    [Some(&f.inside), f.outside.as_ref()]
                        .iter()
                        .flatten()
                        .any(|t| t.sticky().is_some_and(|s| s.id == id))
                };
                self.frontends().filter(|(_, f, _)| asks(f)).map(|(_, _, s)| s.name.clone()).collect()
            }
        };
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Every endpoint that connections through Services go to, in no order, where INVALID packets are dropped.
    pub fn serving(&self) -> impl Iterator<Item = Key> + '_ {
        self.serving.keys().copied()
    }

    /// Every address of a possibly local endpoint, in no order.
    pub fn hairpin(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.hairpin.keys().copied()
    }
}

fn has_port(service: &Service, (family, protocol, name): &PortKey) -> bool {
    service.cluster_ips.iter().any(|a| Family::of(*a) == *family)
        && service.ports.iter().any(|p| p.protocol == *protocol && p.name == *name)
}
