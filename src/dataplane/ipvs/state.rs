//! What the IPVS data plane remembers between plans: endpoints that went and may keep their connections.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};

use super::model::{Destination, Key, Step, VirtualService, virtual_service};
use super::plan::Plan;
use crate::cluster::{Protocol, Scheduler};
use crate::dataplane::nftables;
use crate::forwarding::{Frontend, SetChange};

/// Whether an address begins or ceases to be kept on the device without a frontend.
pub type KeptChange = (IpAddr, SetChange);

/// How long a destination that went may keep connections. As kube-proxy's `rsGracefulDeletePeriod`.
pub const LIMIT: Duration = Duration::from_secs(15 * 60);

/// What is known of the kernel's state beside the desired state.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The scheduler of Services that ask for none.
    pub default: Scheduler,
    /// The kernel, or the host, has no IPv6.
    pub ipv4_only: bool,
    /// Schedulers that the kernel does not have.
    pub lacking: FxHashSet<Scheduler>,
    /// Destinations and addresses that the kernel does not take, as they are and this host is.
    pub odd: Odd,
    /// Destinations without new connections, with the time until which they may keep those they have.
    pub terminating: FxHashMap<Key, FxHashMap<SocketAddr, Instant>>,
    /// Virtual services that are there only for such destinations.
    pub lingering: FxHashMap<Key, VirtualService>,
    /// Those of them whose frontend is gone, so that nothing else keeps the address on the device.
    pub kept: FxHashSet<Key>,
}

/// What the kernel refuses for what it is: tried again when its Service changes, or the host's addresses do.
#[derive(Clone, Debug, Default)]
pub struct Odd {
    /// Endpoints.
    pub destinations: FxHashSet<(Key, SocketAddr)>,
    /// Service addresses.
    pub addresses: FxHashSet<IpAddr>,
}

/// Whose a destination is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Of<'a> {
    /// The virtual service.
    pub(super) key: Key,
    /// Its scheduler.
    pub(super) scheduler: Scheduler,
    /// What is to be there now.
    pub(super) frontend: Option<&'a Frontend>,
}

impl Of<'_> {
    /// Whether connections to a destination that gets no new ones may go on. A UDP flow and an SCTP association do not end
    /// as long as their senders go on, so that they may only while the destination still serves. dh always chooses the same
    /// destination, even when it takes no connections.
    pub(super) fn may_keep(&self, destination: &SocketAddr) -> bool {
        let drains = || {
            let draining = self.frontend.and_then(|frontend| frontend.draining.as_ref());
            draining.is_some_and(|draining| draining.contains(destination))
        };
        self.scheduler != Scheduler::Dh && (self.key.protocol == Protocol::Tcp || drains())
    }
}

/// Steps by when they are taken.
#[derive(Debug, Default)]
pub(super) struct Phases {
    pub(super) services: Vec<Step>,
    pub(super) early: Vec<Step>,
    pub(super) late: Vec<Step>,
    pub(super) retired: Vec<Step>,
    pub(super) deleted: Vec<Step>,
}

impl Phases {
    /// Puts addresses and tables between.
    pub(super) fn plan(
        self,
        device: Vec<Step>,
        add: Vec<IpAddr>,
        tables: nftables::plan::Plan,
        delete: Vec<IpAddr>,
    ) -> Plan {
        let mut before = device;
        before.extend(self.services);
        before.extend(self.early);
        before.extend(add.into_iter().map(Step::AddAddress));
        let mut after = self.late;
        after.extend(self.retired);
        after.extend(self.deleted);
        after.extend(delete.into_iter().map(Step::DeleteAddress));
        Plan { before, tables, after }
    }
}

impl State {
    /// What IPVS is to do for a frontend, with a scheduler that the kernel has.
    pub(super) fn wanted(&self, key: &Key, frontend: &Frontend) -> Option<(VirtualService, Vec<SocketAddr>)> {
        if !self.serves(&key.address) {
            return None;
        }
        let (mut service, target) = virtual_service(frontend, self.default)?;
        service.scheduler = self.available(service.scheduler);
        let mut endpoints: Vec<SocketAddr> = target.endpoints().map(|(_, endpoint)| endpoint).collect();
        endpoints.sort_unstable();
        Some((service, endpoints))
    }

    /// Whether addresses of this family are served.
    pub(super) fn serves(&self, address: &IpAddr) -> bool {
        address.is_ipv4() || !self.ipv4_only
    }

    /// The scheduler, or one in its place that the kernel has.
    pub fn available(&self, scheduler: Scheduler) -> Scheduler {
        let has = |scheduler: &Scheduler| !self.lacking.contains(scheduler);
        [scheduler, self.default].into_iter().find(has).unwrap_or_default()
    }

    /// Takes new connections from a destination: its connections stay, unless it is better that they end.
    pub(super) fn retire(
        &mut self,
        of: Of<'_>,
        destination: SocketAddr,
        limit: Instant,
        steps: &mut Vec<Step>,
    ) {
        if self.odd.destinations.remove(&(of.key, destination)) || !of.may_keep(&destination) {
            steps.push(Step::DeleteDestination(of.key, destination));
        } else {
            steps.push(Step::SetWeight(of.key, destination, 0));
            self.wait_for(of.key, destination, limit);
        }
    }

    /// A destination without new connections is to be deleted when it has none left.
    pub(super) fn wait_for(&mut self, key: Key, destination: SocketAddr, limit: Instant) {
        self.terminating.entry(key).or_default().insert(destination, limit);
    }

    /// Ends the waiting for a destination; says whether it was waited for.
    pub fn revive(&mut self, key: &Key, destination: &SocketAddr) -> bool {
        let Some(destinations) = self.terminating.get_mut(key) else { return false };
        let known = destinations.remove(destination).is_some();
        if destinations.is_empty() {
            self.terminating.remove(key);
        }
        known
    }

    /// Deletes destinations that kept their connections until now, and may not any more.
    fn end_connections(&mut self, of: Of<'_>, steps: &mut Vec<Step>) {
        let destinations = self.terminating.get(&of.key).into_iter().flatten();
        let destinations = destinations.map(|(destination, _)| *destination);
        let mut over: Vec<SocketAddr> =
            destinations.filter(|destination| !of.may_keep(destination)).collect();
        over.sort_unstable();
        for destination in over {
            self.revive(&of.key, &destination);
            steps.push(Step::DeleteDestination(of.key, destination));
        }
    }

    /// What a virtual service that is no longer needed leaves behind: itself, while a destination has connections.
    pub(super) fn end(
        &mut self,
        key: Key,
        service: VirtualService,
        mut retired: Vec<Step>,
        phases: &mut Phases,
    ) {
        if self.terminating.contains_key(&key) {
            self.lingering.insert(key, service);
            phases.retired.append(&mut retired);
        } else {
            self.lingering.remove(&key);
            // Its destinations go with it.
            phases.deleted.push(Step::DeleteService(key));
        }
    }

    /// What one changed frontend needs; gives whether its address is kept, or no longer, without a frontend.
    pub(super) fn change(
        &mut self,
        key: Key,
        before: Option<&Frontend>,
        after: Option<&Frontend>,
        limit: Instant,
        phases: &mut Phases,
    ) -> Option<KeptChange> {
        let old = before.and_then(|frontend| self.wanted(&key, frontend));
        let new = after.and_then(|frontend| self.wanted(&key, frontend));
        let there = old.as_ref().map(|(service, _)| *service).or_else(|| self.lingering.get(&key).copied());
        let old_endpoints = old.map(|(_, endpoints)| endpoints).unwrap_or_default();
        let of = |service: &VirtualService| Of { key, scheduler: service.scheduler, frontend: after };
        match (there, new) {
            (there, Some((service, endpoints))) => {
                match there {
                    None => phases.services.push(Step::AddService(key, service)),
                    Some(there) if there != service => phases.services.push(Step::SetService(key, service)),
                    Some(_) => {}
                }
                // Until the tables let it pass there is no hurry, and they do more than that.
                let adds = if old_endpoints.is_empty() { &mut phases.late } else { &mut phases.early };
                let reweigh = there.is_some_and(|there| there.weight() != service.weight());
                for endpoint in &endpoints {
                    let weight = service.weight();
                    if old_endpoints.binary_search(endpoint).is_ok() {
                        if reweigh && !self.odd.destinations.contains(&(key, *endpoint)) {
                            adds.push(Step::SetWeight(key, *endpoint, weight));
                        }
                    } else if self.revive(&key, endpoint) {
                        adds.push(Step::SetWeight(key, *endpoint, weight));
                    } else {
                        adds.push(Step::AddDestination(key, *endpoint, weight));
                    }
                }
                self.lingering.remove(&key);
                self.end_connections(of(&service), &mut phases.retired);
                for endpoint in old_endpoints.iter().filter(|e| endpoints.binary_search(e).is_err()) {
                    self.retire(of(&service), *endpoint, limit, &mut phases.retired);
                }
            }
            (Some(service), None) => {
                let mut retired = Vec::new();
                self.end_connections(of(&service), &mut retired);
                for endpoint in &old_endpoints {
                    self.retire(of(&service), *endpoint, limit, &mut retired);
                }
                self.end(key, service, retired, phases);
            }
            (None, None) => {}
        }
        self.keep(key, self.lingering.contains_key(&key) && after.is_none())
    }

    fn keep(&mut self, key: Key, keep: bool) -> Option<KeptChange> {
        match keep {
            true => self.kept.insert(key).then_some((key.address, SetChange::Added)),
            false => self.kept.remove(&key).then_some((key.address, SetChange::Removed)),
        }
    }

    /// Deletes destinations that have no connections left, or no time; with the last one the virtual service that was
    /// there only for it. `there` says what is found of a virtual service. Gives also whose addresses are no longer
    /// kept.
    pub fn tend<E>(
        &mut self,
        now: Instant,
        mut there: impl FnMut(&Key) -> Result<FxHashMap<SocketAddr, Destination>, E>,
    ) -> Result<(Vec<Step>, Vec<KeptChange>), E> {
        let (mut steps, mut kept) = (Vec::new(), Vec::new());
        let mut waiting: Vec<Key> = self.terminating.keys().copied().collect();
        waiting.sort_unstable();
        for key in waiting {
            let there = there(&key)?;
            let mut gone = Vec::new();
            for (destination, limit) in self.terminating.get(&key).cloned().unwrap_or_default() {
                match there.get(&destination) {
                    Some(found) if found.active + found.inactive > 0 && now < limit => continue,
                    Some(_) => gone.push(Step::DeleteDestination(key, destination)),
                    None => {}
                }
                self.revive(&key, &destination);
            }
            if self.lingering.contains_key(&key) && !self.terminating.contains_key(&key) {
                steps.push(Step::DeleteService(key));
                self.lingering.remove(&key);
                kept.extend(self.keep(key, false));
            } else {
                steps.append(&mut gone);
            }
        }
        Ok((steps, kept))
    }
}

#[cfg(test)]
mod tests;
