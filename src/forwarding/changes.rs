//! What a change of the desired state changed, and what the first one started from.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::Key;
use super::affinity::Sticky;
use super::service::{Frontend, FrontendKind};
use crate::cluster::ObjectName;

/// What is already in the kernel when the desired state is built.
#[derive(Debug, Default)]
pub struct Adopted {
    /// The endpoint lists of each key, in the order of their indices.
    pub frontends: FxHashMap<Key, Frontend>,
    /// The slots of keys with affinity.
    pub slots: FxHashMap<Key, Vec<(u32, SocketAddr)>>,
    /// The affinity ids of each key, for all and for traffic from outside under the Local policy.
    pub ids: FxHashMap<Key, [Option<u32>; 2]>,
    /// How many slots there are in each family: in those, clients may be remembered.
    pub known_slots: [u32; 2],
}

/// A claim that lost, or was refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The Service that does not get the address.
    pub loser: ObjectName,
    /// What it claimed.
    pub key: Key,
    /// As what.
    pub kind: FrontendKind,
    /// The Service that has it.
    pub winner: ObjectName,
}

/// A claim that the operator's settings refuse.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refused {
    /// The Service.
    pub service: ObjectName,
    /// What it claims.
    pub key: Key,
    /// As what.
    pub kind: FrontendKind,
}

/// A part of the desired state that only some Services ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A frontend.
    Frontend(Key),
    /// A ClusterIP.
    ClusterIp(IpAddr),
    /// An endpoint that may reach itself.
    Hairpin(IpAddr),
    /// What clients stick to, by id.
    Affinity(u32),
}

/// Whether a member of a set came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetChange {
    /// It came.
    Added,
    /// It went.
    Removed,
}

/// What was and what is; `None` where there is nothing.
pub type Change<T> = (Option<T>, Option<T>);

/// The difference between two states of [`Desired`].
#[derive(Debug, Default)]
pub struct Changes {
    /// Frontends before and after; both never equal.
    pub frontends: BTreeMap<Key, Change<Frontend>>,
    /// Frontends that changed and are no matter of rules, see [`Key::is_relayed`].
    pub relayed: Vec<Key>,
    /// ClusterIPs that came or went.
    pub cluster_ips: BTreeMap<IpAddr, SetChange>,
    /// Addresses of possibly local endpoints that came or went.
    pub hairpin: BTreeMap<IpAddr, SetChange>,
    /// Affinity ids: what stuck to what before and after; both never equal.
    pub stickies: BTreeMap<u32, Change<Arc<Sticky>>>,
    /// Endpoints that came or went, where INVALID packets are dropped.
    pub serving: BTreeMap<Key, SetChange>,
    /// Claims newly lost.
    pub conflicts: Vec<Conflict>,
    /// Claims that the settings refuse.
    pub refused: Vec<Refused>,
    /// Service ports with more endpoints than can be used.
    pub overfull: Vec<(ObjectName, Arc<str>, usize)>,
    /// Services that were worked out.
    pub services: usize,
    /// What was in the kernel before, when everything was worked out: then `frontends` has nothing before.
    pub adopted: Adopted,
}

impl Changes {
    /// Whether no rule changes.
    pub fn is_empty(&self) -> bool {
        let same_rules = |change: &(Option<Frontend>, Option<Frontend>)| match change {
            (Some(before), Some(after)) => before.same_rules(after),
            (before, after) => before.is_none() && after.is_none(),
        };
        self.frontends.values().all(same_rules)
            && self.cluster_ips.is_empty()
            && self.hairpin.is_empty()
            && self.stickies.is_empty()
            && self.serving.is_empty()
    }

    /// Takes in what changed after this.
    pub fn extend(&mut self, newer: Changes) {
        let Changes {
            frontends,
            relayed,
            cluster_ips,
            hairpin,
            stickies,
            serving,
            conflicts,
            refused,
            overfull,
            services,
            adopted: _,
        } = newer;
        self.relayed.extend(relayed);
        for (key, (before, after)) in frontends {
            self.frontends.entry(key).or_insert((before, None)).1 = after;
        }
        self.frontends.retain(|_, (before, after)| before != after);
        for (id, (before, after)) in stickies {
            self.stickies.entry(id).or_insert((before, None)).1 = after;
        }
        self.stickies.retain(|_, (before, after)| before != after);
        cluster_ips.into_iter().for_each(|(address, c)| Changes::toggle(&mut self.cluster_ips, address, c));
        hairpin.into_iter().for_each(|(address, c)| Changes::toggle(&mut self.hairpin, address, c));
        serving.into_iter().for_each(|(endpoint, c)| Changes::toggle(&mut self.serving, endpoint, c));
        self.conflicts.extend(conflicts);
        self.refused.extend(refused);
        self.overfull.extend(overfull);
        self.services += services;
    }

    pub(super) fn toggle<T: Ord>(set: &mut BTreeMap<T, SetChange>, member: T, change: SetChange) {
        match set.get(&member) {
            Some(before) if *before != change => {
                set.remove(&member);
            }
            _ => {
                set.insert(member, change);
            }
        }
    }
}
