//! Session affinity: the slots of a Service port's endpoints.
//!
//! A client is remembered by the *slot* of its endpoint, not by the endpoint. An endpoint keeps its slot as long
//! as it is there; a slot that was freed is not used again before the timeout has passed, since until then
//! clients may be remembered there. So nothing has to be purged, and whoever lost its endpoint is the only one
//! that moves.

use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet, FxHasher};

use crate::cluster::{Family, Protocol, Service, ServicePort};

/// Endpoints that clients stick to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sticky {
    /// Number of the Service port, in one family and for one scope, under which clients are remembered.
    pub id: u32,
    /// How long after its last new connection a client is remembered, in seconds.
    pub timeout: u32,
    /// The endpoints by slot, ascending; never empty.
    pub live: Box<[(u32, SocketAddr)]>,
}

/// Whose connections: those that may go to every endpoint, or those of the Local policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    Cluster,
    Local,
}

/// The slots of one Service port in one family.
#[derive(Debug, Default)]
pub(super) struct Slots {
    live: FxHashMap<SocketAddr, u32>,
    /// Freed slots, with the time when they may be used again.
    resting: FxHashMap<u32, Instant>,
    ids: [Option<u32>; 2],
}

/// A Service port, by name, in one family.
pub(super) type PortKey = (Family, Protocol, Arc<str>);

/// The slots of a Service's ports.
pub(super) type PortSlots = FxHashMap<PortKey, Slots>;

impl Slots {
    /// Slots as they are in the kernel. What is not taken below `known` slots rests, since nobody knows for how
    /// long it has been free.
    pub(super) fn adopt(
        live: impl IntoIterator<Item = (u32, SocketAddr)>,
        known: u32,
        until: Instant,
    ) -> Slots {
        let live: FxHashMap<SocketAddr, u32> = live.into_iter().map(|(slot, e)| (e, slot)).collect();
        let taken: FxHashSet<u32> = live.values().copied().collect();
        let resting = (0..known).filter(|slot| !taken.contains(slot)).map(|slot| (slot, until)).collect();
        Slots { live, resting, ids: [None; 2] }
    }

    /// Gives every wanted endpoint a slot and frees those of others.
    pub(super) fn assign<'a>(
        &mut self,
        wanted: impl Iterator<Item = &'a SocketAddr> + Clone,
        timeout: u32,
        now: Instant,
    ) {
        let keep: FxHashSet<&SocketAddr> = wanted.clone().collect();
        let until = now + Duration::from_secs(timeout.into());
        let resting = &mut self.resting;
        self.live.retain(|endpoint, slot| {
            let keep = keep.contains(endpoint);
            if !keep {
                resting.insert(*slot, until);
            }
            keep
        });
        resting.retain(|_, until| *until > now);
        let mut new: Vec<&SocketAddr> = keep.into_iter().filter(|e| !self.live.contains_key(e)).collect();
        new.sort_unstable();
        let taken: FxHashSet<u32> = self.live.values().chain(self.resting.keys()).copied().collect();
        let free = (0..).filter(|slot| !taken.contains(slot));
        self.live.extend(new.into_iter().copied().zip(free));
    }

    /// The endpoints of one scope, all of which were assigned.
    pub(super) fn sticky(&self, id: u32, timeout: u32, endpoints: &[SocketAddr]) -> Option<Arc<Sticky>> {
        let mut live: Vec<(u32, SocketAddr)> =
            endpoints.iter().filter_map(|e| self.live.get(e).map(|slot| (*slot, *e))).collect();
        live.sort_unstable();
        (!live.is_empty()).then(|| Arc::new(Sticky { id, timeout, live: live.into() }))
    }

    /// The id of a scope, which stays as long as the slots do.
    pub(super) fn id(&mut self, scope: Scope, allocate: impl FnOnce() -> u32) -> u32 {
        *self.ids[scope as usize].get_or_insert_with(allocate)
    }

    /// The ids to be given back.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.ids.into_iter().flatten()
    }
}

/// Ids in use. An id follows from what it stands for, so that a restarted agent finds the same ones; only where
/// two collide does the later one move on.
#[derive(Debug, Default)]
pub(super) struct Ids(FxHashSet<u32>);

/// The ids that a Service port may have, the first free one of which it gets.
fn candidates(
    service: &Service,
    port: &ServicePort,
    family: Family,
    scope: Scope,
) -> impl Iterator<Item = u32> + use<> {
    let mut hasher = FxHasher::default();
    (&*service.name.namespace, &*service.name.name, service.created).hash(&mut hasher);
    (&*port.name, port.protocol, family, scope).hash(&mut hasher);
    let ids = std::iter::repeat_with(move || {
        1u8.hash(&mut hasher);
        let hash = hasher.finish();
        (hash ^ (hash >> 32)) as u32
    });
    // The id travels as packet priority, which nft prints as MAJOR:MINOR or, for all zeroes and all ones, as a word.
    ids.filter(|id| id & 0xffff != 0 && id >> 16 != 0 && *id != u32::MAX)
}

/// Whether the ids that a key has in the kernel, of both scopes, are those of this Service port: two Services may claim
/// a key, and then it has the slots of one of them.
pub(super) fn is_of(ids: [Option<u32>; 2], service: &Service, port: &ServicePort, family: Family) -> bool {
    [(Scope::Cluster, ids[0]), (Scope::Local, ids[1]), (Scope::Local, ids[0])].into_iter().any(
        |(scope, id)| {
            // Two collisions in a row are not to be expected.
            id.is_some_and(|id| {
                candidates(service, port, family, scope).take(3).any(|candidate| candidate == id)
            })
        },
    )
}

impl Ids {
    pub(super) fn allocate(
        &mut self,
        service: &Service,
        port: &ServicePort,
        family: Family,
        scope: Scope,
    ) -> u32 {
        // There are more candidates than Services.
        candidates(service, port, family, scope).find(|id| self.0.insert(*id)).unwrap_or(1)
    }

    pub(super) fn release(&mut self, ids: impl Iterator<Item = u32>) {
        ids.for_each(|id| {
            self.0.remove(&id);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(list: &[u8]) -> Vec<SocketAddr> {
        list.iter().map(|n| SocketAddr::new([10, 0, 0, *n].into(), 80)).collect()
    }

    fn slots_of(slots: &Slots, list: &[u8]) -> Vec<u32> {
        endpoints(list).iter().map(|e| slots.live[e]).collect()
    }

    #[test]
    fn a_freed_slot_rests_for_the_timeout() {
        let mut slots = Slots::default();
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        slots.assign(endpoints(&[1, 2, 3]).iter(), 10, at(0));
        assert_eq!(slots_of(&slots, &[1, 2, 3]), [0, 1, 2]);
        slots.assign(endpoints(&[1, 3]).iter(), 10, at(1));
        slots.assign(endpoints(&[1, 3, 4]).iter(), 10, at(2));
        assert_eq!(slots_of(&slots, &[1, 3, 4]), [0, 2, 3], "slot 1 rests");
        slots.assign(endpoints(&[1, 3, 4, 5]).iter(), 10, at(12));
        assert_eq!(slots_of(&slots, &[1, 3, 4, 5]), [0, 2, 3, 1], "and is used again");
    }

    #[test]
    fn after_a_restart_unknown_slots_rest() {
        let start = Instant::now();
        let until = start + Duration::from_secs(10);
        let live = endpoints(&[1, 2]);
        let mut slots = Slots::adopt([(0, live[0]), (3, live[1])], 5, until);
        slots.assign(endpoints(&[1, 2, 3]).iter(), 10, start);
        assert_eq!(slots_of(&slots, &[1, 2, 3]), [0, 3, 5]);
    }
}
