//! A packet's way through the elements of a table, rule by rule as in rules/README.md. It knows nothing of Services:
//! only what sets and maps hold, and what the constant rules do with them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use sluice::dataplane::nftables::model::{Chain, Element, Key, LOCAL_OFFSET, Structure, Verdict};
use sluice::forwarding::LocalDetection;

/// The first packet of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Where to.
    pub key: Key,
    /// Its source address.
    pub source: IpAddr,
    /// Whether it came in through an interface that pods are behind.
    pub from_pod_interface: bool,
    /// `fib saddr type local`: this node made it.
    pub source_is_local: bool,
    /// `fib daddr type local`.
    pub destination_is_local: bool,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trace {
    /// It goes to one of these, with the number of chances that each has, and whether its source is masqueraded.
    Forwarded(BTreeMap<SocketAddr, (usize, bool)>),
    /// `reject`.
    Refused,
    /// `drop`.
    Dropped,
    /// No rule decides.
    Untouched,
}

/// The sets and maps of one family's table.
#[derive(Debug, Default)]
pub struct Tables {
    structure: Structure,
    pod_cidrs: Vec<IpNet>,
    service_cidrs: Vec<IpNet>,
    cluster_ips: BTreeSet<IpAddr>,
    services: BTreeMap<Key, Verdict>,
    endpoints: BTreeMap<(Key, u32), SocketAddr>,
    special: BTreeSet<Key>,
    restricted: BTreeSet<Key>,
    allowed_sources: Vec<(Key, IpNet)>,
    local_services: BTreeMap<Key, Verdict>,
    masquerade_all: BTreeSet<Key>,
    /// Looked at for INVALID packets only.
    serving: BTreeSet<Key>,
    masquerade_own: BTreeSet<Key>,
    hairpin: BTreeSet<IpAddr>,
    ipvs_addresses: BTreeSet<IpAddr>,
    affinity_ids: BTreeMap<Key, u32>,
    local_affinity_ids: BTreeMap<Key, u32>,
    slots: BTreeMap<(u32, u32), Verdict>,
    choices: BTreeMap<(u32, u32), Verdict>,
}

impl Tables {
    /// Puts the elements into their sets; panics where a set has a key twice, as the kernel would refuse it.
    pub fn new(structure: Structure, elements: impl IntoIterator<Item = Element>) -> Tables {
        let mut t = Tables { structure, ..Tables::default() };
        for element in elements {
            let text = format!("{element:?} is there once");
            let is_new = match element {
                Element::PodCidr(net) => push(&mut t.pod_cidrs, net),
                Element::ServiceCidr(net) => push(&mut t.service_cidrs, net),
                Element::ClusterIp(address) => t.cluster_ips.insert(address),
                Element::Service(key, verdict) => t.services.insert(key, verdict).is_none(),
                Element::Endpoint(key, index, to) => t.endpoints.insert((key, index), to).is_none(),
                Element::Special(key) => t.special.insert(key),
                Element::Restricted(key) => t.restricted.insert(key),
                Element::AllowedSource(key, net) => push(&mut t.allowed_sources, (key, net)),
                Element::LocalService(key, verdict) => t.local_services.insert(key, verdict).is_none(),
                Element::MasqueradeAll(key) => t.masquerade_all.insert(key),
                Element::MasqueradeOwn(key) => t.masquerade_own.insert(key),
                Element::Serving(endpoint) => t.serving.insert(endpoint),
                Element::IpvsAddress(address) => t.ipvs_addresses.insert(address),
                Element::Hairpin(address) => t.hairpin.insert(address),
                Element::AffinityId(key, id) => t.affinity_ids.insert(key, id).is_none(),
                Element::LocalAffinityId(key, id) => t.local_affinity_ids.insert(key, id).is_none(),
                Element::Slot(id, slot, verdict) => t.slots.insert((id, slot), verdict).is_none(),
                Element::Choice(id, choice, verdict) => t.choices.insert((id, choice), verdict).is_none(),
            };
            assert!(is_new, "{text}");
        }
        t
    }

    /// Chain `services`, then, where it decides nothing, `unclaimed`; what is translated goes on to `after-dnat`.
    pub fn trace(&self, packet: &Packet) -> Trace {
        let special = self.special.contains(&packet.key).then(|| self.special(packet)).flatten();
        match special.or_else(|| self.services.get(&packet.key).copied()) {
            Some(verdict) => self.follow(verdict, packet),
            None => self.unclaimed(packet),
        }
    }

    /// What decides in chain `special`; `None`: back to `services`.
    fn special(&self, packet: &Packet) -> Option<Verdict> {
        let allowed = |(key, net): &(Key, IpNet)| *key == packet.key && net.contains(&packet.source);
        if self.restricted.contains(&packet.key) && !self.allowed_sources.iter().any(allowed) {
            return Some(Verdict::Drop);
        }
        if self.is_pod(packet) || packet.source_is_local {
            return None;
        }
        self.local_services.get(&packet.key).copied()
    }

    fn is_pod(&self, packet: &Packet) -> bool {
        match self.structure.local_detection {
            LocalDetection::None => false,
            LocalDetection::Cidr => self.pod_cidrs.iter().any(|net| net.contains(&packet.source)),
            LocalDetection::Bridge(_) | LocalDetection::InterfacePrefix(_) => packet.from_pod_interface,
        }
    }

    fn unclaimed(&self, packet: &Packet) -> Trace {
        let to = packet.key.address;
        if self.cluster_ips.contains(&to) {
            Trace::Refused
        } else if self.service_cidrs.iter().any(|net| net.contains(&to)) && !packet.destination_is_local {
            Trace::Dropped
        } else {
            Trace::Untouched
        }
    }

    fn follow(&self, verdict: Verdict, packet: &Packet) -> Trace {
        let key = packet.key;
        let endpoints: Vec<Option<SocketAddr>> = match verdict {
            Verdict::Drop => return Trace::Dropped,
            Verdict::Goto(Chain::NoEndpoints) => return Trace::Refused,
            Verdict::Goto(Chain::Endpoints(n)) => (0..n).map(|i| self.endpoint(key, i)).collect(),
            Verdict::Goto(Chain::Local(n)) => (0..n).map(|i| self.endpoint(key, LOCAL_OFFSET + i)).collect(),
            Verdict::Goto(Chain::Sticky(slots, n)) => {
                self.sticky(packet, self.affinity_ids.get(&key), slots, n)
            }
            Verdict::Goto(Chain::StickyLocal(slots, n)) => {
                self.sticky(packet, self.local_affinity_ids.get(&key), slots, n)
            }
            other => panic!("{key} is sent to {other:?}"),
        };
        let mut chances = BTreeMap::new();
        for endpoint in endpoints {
            // Without one the packet would meet the chain's trailing drop, which is only for the time of a change.
            let endpoint = endpoint.unwrap_or_else(|| panic!("{key} has an endpoint at every index"));
            let masquerade = self.is_masqueraded(packet, endpoint.ip());
            chances.entry(endpoint).or_insert((0, masquerade)).0 += 1;
        }
        Trace::Forwarded(chances)
    }

    fn endpoint(&self, key: Key, index: u32) -> Option<SocketAddr> {
        self.endpoints.get(&(key, index)).copied()
    }

    /// Where a new client goes. One that is remembered in a slot must go to where a new one could.
    fn sticky(&self, packet: &Packet, id: Option<&u32>, slots: u32, n: u32) -> Vec<Option<SocketAddr>> {
        let id = *id.unwrap_or_else(|| panic!("{} has an affinity id", packet.key));
        let pick = |verdict: Option<&Verdict>| match verdict {
            Some(Verdict::Goto(Chain::Pick(_, slot))) => self.endpoint(packet.key, *slot),
            other => panic!("{} is sent to {other:?} by its affinity", packet.key),
        };
        let new: Vec<_> = (0..n).map(|choice| pick(self.choices.get(&(id, choice)))).collect();
        let live = (0..slots).filter_map(|slot| self.slots.get(&(id, slot)));
        let remembered: BTreeSet<_> = live.map(|verdict| pick(Some(verdict))).collect();
        assert_eq!(remembered, new.iter().copied().collect(), "slots and choices of {}", packet.key);
        new
    }

    /// How long the affinity of a key lasts, for each of its endpoints alike.
    pub fn timeout(&self, key: &Key) -> Option<u32> {
        let ids = [self.affinity_ids.get(key), self.local_affinity_ids.get(key)];
        let of = |id: &u32| self.slots.range((*id, 0)..=(*id, u32::MAX)).map(|(_, verdict)| *verdict);
        let timeouts: BTreeSet<u32> = ids
            .into_iter()
            .flatten()
            .flat_map(of)
            .filter_map(|verdict| match verdict {
                Verdict::Goto(Chain::Pick(timeout, _)) => Some(timeout),
                _ => None,
            })
            .collect();
        assert!(timeouts.len() < 2, "{key} has one timeout: {timeouts:?}");
        timeouts.first().copied()
    }

    /// Chains `after-dnat` and `masquerade-external`.
    fn is_masqueraded(&self, packet: &Packet, endpoint: IpAddr) -> bool {
        let off_cluster = match self.structure.local_detection {
            _ if self.structure.masquerade_all => true,
            LocalDetection::None => false,
            _ => !self.is_pod(packet),
        };
        let key = &packet.key;
        self.cluster_ips.contains(&key.address) && off_cluster
            || packet.source == endpoint && self.hairpin.contains(&endpoint)
            || self.masquerade_all.contains(key)
            || self.masquerade_own.contains(key) && packet.source_is_local
    }

    /// Every key that something is said about.
    pub fn keys(&self) -> impl Iterator<Item = Key> + '_ {
        self.services.keys().copied()
    }
}

/// Intervals that overlap are refused by the kernel.
fn push<T: Overlap>(list: &mut Vec<T>, new: T) -> bool {
    let overlaps = list.iter().any(|known| known.overlaps(&new));
    list.push(new);
    !overlaps
}

trait Overlap {
    fn overlaps(&self, other: &Self) -> bool;
}

impl Overlap for IpNet {
    fn overlaps(&self, other: &IpNet) -> bool {
        self.contains(other) || other.contains(self)
    }
}

impl Overlap for (Key, IpNet) {
    fn overlaps(&self, other: &(Key, IpNet)) -> bool {
        self.0 == other.0 && self.1.overlaps(&other.1)
    }
}
