//! The difference between what should be and what is, as ordered steps.
//!
//! IPVS has no transactions. The order makes up for it:
//!
//! 1. virtual services without destinations, changes of scheduler
//! 2. destinations of what the tables let pass already, and of what they translate until now; addresses, by which the
//!    host goes to a service from the service's own address
//! 3. the tables, in one transaction
//! 4. destinations of what the tables let pass from now on: before, masquerade and source ranges were not there
//! 5. endpoints that went: weight 0, or deleted; virtual services without destinations; addresses
//!
//! So whatever works goes on: an endpoint comes before another goes, and what is deleted gets no packets any more.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;
use rustc_hash::FxHashSet;

use super::kernel::Observed;
use super::model::{Destination, Key, ObservedService, Step, Timeouts, VirtualService};
use super::state::{LIMIT, Of, Phases, State};
use crate::dataplane::nftables;
use crate::forwarding::{Changes, Desired, SetChange};

/// The ports that the API server gives NodePorts by default.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

/// Ordered steps; the tables' are one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What comes before the tables.
    pub before: Vec<Step>,
    /// The tables.
    pub tables: nftables::plan::Plan,
    /// What comes after them.
    pub after: Vec<Step>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many steps there are.
    pub fn len(&self) -> usize {
        self.before.len() + self.tables.len() + self.after.len()
    }
}

/// What a change of the desired state needs. `tables` plans the nft part, given whose addresses are kept besides.
pub fn plan_changes(
    changes: &Changes,
    state: &mut State,
    now: Instant,
    tables: impl FnOnce(&[(IpAddr, SetChange)]) -> nftables::plan::Plan,
) -> Plan {
    let mut phases = Phases::default();
    let mut kept = Vec::new();
    for (key, (before, after)) in &changes.frontends {
        kept.extend(state.change(*key, before.as_ref(), after.as_ref(), now + LIMIT, &mut phases));
    }
    let tables = tables(&kept);
    let (add, delete) = addresses(&tables);
    phases.plan(Vec::new(), add, tables, delete)
}

/// The addresses that a change gives kube-ipvs0 and takes away: the tables know them as well.
pub fn addresses(tables: &nftables::plan::Plan) -> (Vec<IpAddr>, Vec<IpAddr>) {
    use nftables::model::{Element::IpvsAddress, Step};
    let (mut add, mut delete) = (Vec::new(), Vec::new());
    for step in tables.tables.iter().flat_map(|(_, steps)| steps) {
        match step {
            Step::Add(IpvsAddress(address)) => add.push(*address),
            Step::Delete(IpvsAddress(address)) => delete.push(*address),
            _ => {}
        }
    }
    (add, delete)
}

/// What else a full comparison goes by.
#[derive(Clone, Debug, Default)]
pub struct Bounds<'a> {
    /// Ranges in which nothing is deleted that is not ours.
    pub exclude: &'a [IpNet],
    /// Timeouts that are asked for; 0: as they are.
    pub timeouts: Timeouts,
    /// Keys that the tables let pass now.
    pub passing: FxHashSet<Key>,
    /// Whether there are tables of another kind, which serve until they are replaced.
    pub replacing: bool,
}

/// The whole difference. `tables` plans the nft part, given the addresses that are kept besides, and says which
/// addresses kube-ipvs0 is to have.
pub fn plan(
    desired: &Desired,
    observed: &Observed,
    bounds: &Bounds<'_>,
    state: &mut State,
    now: Instant,
    tables: impl FnOnce(&[IpAddr]) -> (nftables::plan::Plan, FxHashSet<IpAddr>),
) -> Plan {
    let mut phases = Phases::default();
    let known = std::mem::take(&mut state.terminating);
    let known = |key: &Key, destination: &SocketAddr| known.get(key)?.get(destination).copied();
    state.lingering.clear();
    state.kept.clear();
    let odd = std::mem::take(&mut state.odd.destinations);
    let mut wanted = FxHashSet::default();
    let mut frontends: Vec<_> = desired.frontends().map(|(key, frontend, _)| (*key, frontend)).collect();
    frontends.sort_unstable_by_key(|(key, _)| *key);
    for (key, frontend) in frontends {
        let Some((service, mut endpoints)) = state.wanted(&key, frontend) else { continue };
        endpoints.retain(|endpoint| {
            let refused = odd.contains(&(key, *endpoint));
            if refused {
                state.odd.destinations.insert((key, *endpoint));
            }
            !refused
        });
        wanted.insert(key);
        let there = observed.services.get(&key);
        let served = there.is_some_and(|there| there.destinations.values().any(|d| d.weight > 0));
        let early = bounds.replacing || bounds.passing.contains(&key) || served;
        compare(key, &service, &endpoints, there, early, &mut phases);
        for (destination, found) in there.into_iter().flat_map(|service| &service.destinations) {
            if endpoints.binary_search(destination).is_err() {
                let of = Of { key, scheduler: service.scheduler, frontend: Some(frontend) };
                let found =
                    Found { destination: *destination, found: *found, known: known(&key, destination) };
                retire_found(state, of, found, now, &mut phases.retired);
            }
        }
    }
    let mut stale: Vec<(&Key, &ObservedService)> = observed
        .services
        .iter()
        .filter(|(key, service)| !wanted.contains(key) && is_stale(key, service, desired, observed, bounds))
        .collect();
    stale.sort_unstable_by_key(|(key, _)| **key);
    for (key, there) in stale {
        let scheduler = there.scheduler.parse().unwrap_or_default();
        let persistence = (there.flags & super::model::PERSISTENT != 0).then_some(there.timeout);
        let service = VirtualService { scheduler, persistence };
        let mut retired = Vec::new();
        let frontend = desired.frontend(key).map(|(frontend, _)| frontend);
        let of = Of { key: *key, scheduler, frontend };
        for (destination, found) in &there.destinations {
            let found = Found { destination: *destination, found: *found, known: known(key, destination) };
            retire_found(state, of, found, now, &mut retired);
        }
        state.end(*key, service, retired, &mut phases);
        if state.lingering.contains_key(key) && frontend.is_none() {
            state.kept.insert(*key);
        }
    }
    phases.retired.sort_by_key(|step| match step {
        Step::SetWeight(key, destination, _) | Step::DeleteDestination(key, destination) => {
            Some((*key, *destination))
        }
        _ => None,
    });
    let kept: Vec<IpAddr> = state.kept.iter().map(|key| key.address).collect();
    let (tables, mut held) = tables(&kept);
    held.retain(|address| state.serves(address));
    let has = |a: &IpAddr| {
        observed.held.contains(a) && (a.is_ipv6() || observed.arp.right && observed.arp.addresses.contains(a))
    };
    let mut add: Vec<IpAddr> =
        held.iter().filter(|a| !has(a) && !state.odd.addresses.contains(a)).copied().collect();
    let foreign = |a: &IpAddr| bounds.exclude.iter().any(|net| net.contains(a)) || is_link_local(a);
    let there = observed.held.union(&observed.arp.addresses);
    let mut delete: Vec<IpAddr> = there.filter(|a| !held.contains(a) && !foreign(a)).copied().collect();
    add.sort_unstable();
    delete.sort_unstable();
    let mut first = Vec::new();
    if !observed.arp.right {
        first.push(Step::AddArpTable);
    }
    if !observed.device {
        first.push(Step::AddDevice);
    }
    let asked = bounds.timeouts;
    let or = |asked: u32, there| if asked == 0 { there } else { asked };
    let timeouts = Timeouts {
        tcp: or(asked.tcp, observed.timeouts.tcp),
        tcp_fin: or(asked.tcp_fin, observed.timeouts.tcp_fin),
        udp: or(asked.udp, observed.timeouts.udp),
    };
    if timeouts != observed.timeouts {
        first.push(Step::SetTimeouts(asked));
    }
    phases.plan(first, add, tables, delete)
}

/// What one frontend lacks in the kernel.
fn compare(
    key: Key,
    service: &VirtualService,
    endpoints: &[SocketAddr],
    there: Option<&ObservedService>,
    early: bool,
    phases: &mut Phases,
) {
    match there {
        None => phases.services.push(Step::AddService(key, *service)),
        Some(there) if !there.is(&key, service) => phases.services.push(Step::SetService(key, *service)),
        Some(_) => {}
    }
    let adds = if early { &mut phases.early } else { &mut phases.late };
    for endpoint in endpoints {
        let found = there.and_then(|there| there.destinations.get(endpoint));
        match found {
            None => adds.push(Step::AddDestination(key, *endpoint, service.weight())),
            Some(found) if found.weight != service.weight() || found.forwarding != 0 => {
                adds.push(Step::SetWeight(key, *endpoint, service.weight()));
            }
            Some(_) => {}
        }
    }
}

/// A destination that was found and should not be.
struct Found {
    destination: SocketAddr,
    found: Destination,
    /// Until when it may keep its connections, where it is known.
    known: Option<Instant>,
}

/// One that is known is looked after already and no difference; another one goes at once if it is idle.
fn retire_found(state: &mut State, of: Of<'_>, it: Found, now: Instant, steps: &mut Vec<Step>) {
    let Found { destination, found, known } = it;
    let takes_none = found.weight == 0 && of.may_keep(&destination);
    match known {
        Some(limit) if takes_none => state.wait_for(of.key, destination, limit),
        None if found.active == 0 && found.inactive == 0 => {
            steps.push(Step::DeleteDestination(of.key, destination));
        }
        None if takes_none => state.wait_for(of.key, destination, now + LIMIT),
        known => state.retire(of, destination, known.unwrap_or(now + LIMIT), steps),
    }
}

/// Whether a virtual service that no Service asks for is ours, or kube-proxy's: it made those on the device's
/// addresses, and those for NodePorts.
fn is_stale(
    key: &Key,
    service: &ObservedService,
    desired: &Desired,
    observed: &Observed,
    bounds: &Bounds<'_>,
) -> bool {
    let excluded = || bounds.exclude.iter().any(|net| net.contains(&key.address));
    service.is_ours() || !excluded() && is_kube_proxys(key, observed, &desired.node().node_port_addresses)
}

/// Whether a virtual service that is not ours is where kube-proxy's mode ipvs has its own: on an address of the device, or,
/// beside it, on a NodePort at one of these addresses.
fn is_kube_proxys<'a>(key: &Key, observed: &Observed, node: impl IntoIterator<Item = &'a IpAddr>) -> bool {
    let node_port =
        || observed.device && NODE_PORTS.contains(&key.port) && node.into_iter().any(|a| *a == key.address);
    observed.held.contains(&key.address) || node_port()
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Whose entries and device are to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Sluice's.
    Ours,
    /// Those of kube-proxy's mode ipvs.
    KubeProxys,
}

/// Removes what is ours, or kube-proxy's. The device goes unless somebody else's virtual services need its addresses; ours
/// is known by the table for ARP.
pub fn cleanup(observed: &Observed, whose: Whose) -> Vec<Step> {
    let goes = |key: &Key, service: &ObservedService| match whose {
        Whose::Ours => service.is_ours(),
        Whose::KubeProxys => !service.is_ours() && is_kube_proxys(key, observed, &observed.host),
    };
    let (gone, others): (Vec<_>, Vec<_>) = observed.services.iter().partition(|(key, s)| goes(key, s));
    let needed: FxHashSet<IpAddr> = others.iter().map(|(key, _)| key.address).collect();
    let mut gone: Vec<Key> = gone.into_iter().map(|(key, _)| *key).collect();
    gone.sort_unstable();
    let mut steps: Vec<Step> = gone.iter().map(|key| Step::DeleteService(*key)).collect();
    let is_theirs = whose == Whose::Ours || !observed.arp.exists;
    if is_theirs && observed.held.is_disjoint(&needed) {
        steps.extend(observed.device.then_some(Step::DeleteDevice));
    } else {
        let mut addresses: Vec<IpAddr> = gone
            .iter()
            .map(|key| key.address)
            .filter(|a| observed.held.contains(a) && !needed.contains(a))
            .collect();
        addresses.dedup();
        steps.extend(addresses.into_iter().map(Step::DeleteAddress));
    }
    steps.extend((whose == Whose::Ours && observed.arp.exists).then_some(Step::DeleteArpTable));
    steps
}

/// All steps that make what is desired where there is nothing yet but a host with these addresses, without the tables.
pub fn from_nothing(desired: &Desired, translation: nftables::translation::Translation) -> Vec<Step> {
    let Some(default) = desired.settings().ipvs else { return Vec::new() };
    let (mut state, bounds) = (State { default, ..State::default() }, Bounds::default());
    let tables = |kept: &[IpAddr]| {
        let (tables, used) = nftables::plan::plan_for(desired, &Default::default(), translation, kept);
        (tables, used.held().collect())
    };
    let plan = plan(desired, &Observed::default(), &bounds, &mut state, Instant::now(), tables);
    plan.before.into_iter().chain(plan.after).collect()
}
