//! Which endpoints of a Service port are used, by whom.
//!
//! The rules are kube-proxy's (`pkg/proxy/topology.go` of Kubernetes 1.36; KEP-1669 terminating endpoints,
//! KEP-2433 and KEP-3015 topology): ready ones, restricted by hints where every ready endpoint carries one; with
//! none ready, those that terminate but still serve.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use serde::Serialize;

use super::NodeView;
use super::affinity::Scope;
use crate::cluster::{Endpoint, EndpointSlice, Family, Protocol};

/// The endpoints of one Service port in one family, one entry an address and port.
///
/// An endpoint that several slices list counts once; the entry that can be used best is taken (ready before
/// serving-terminating before neither).
pub fn merge<'a>(
    slices: &'a [Arc<EndpointSlice>],
    family: Family,
    port_name: &str,
    protocol: Protocol,
) -> Vec<(SocketAddr, &'a Endpoint)> {
    let mut merged: Vec<(SocketAddr, &Endpoint)> = Vec::new();
    let mut seen: FxHashMap<SocketAddr, usize> = FxHashMap::default();
    // A single slice with a single matching port cannot repeat an address unless it is malformed, but that is
    // for the look-up to find out: the cost is small beside everything else.
    for (address, endpoint) in
        slices.iter().filter(|s| s.family == family).flat_map(|s| listed(s, port_name, protocol))
    {
        match seen.entry(address) {
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(merged.len());
                merged.push((address, endpoint));
            }
            std::collections::hash_map::Entry::Occupied(entry) => {
                let known = &mut merged[*entry.get()].1;
                if precedence(endpoint) > precedence(known) {
                    *known = endpoint;
                }
            }
        }
    }
    merged
}

/// What one slice lists for a port; none where it has no such port.
pub(super) fn listed<'a>(
    slice: &'a EndpointSlice,
    port_name: &str,
    protocol: Protocol,
) -> impl Iterator<Item = (SocketAddr, &'a Endpoint)> {
    let ports = slice.ports.iter().filter(move |p| *p.name == *port_name && p.protocol == protocol);
    ports.flat_map(|port| {
        slice.endpoints.iter().map(|endpoint| (SocketAddr::new(endpoint.address, port.port.get()), endpoint))
    })
}

/// Which of two entries for one address counts: by use, then (so that the order of slices never matters) by
/// where it is and what it hints at.
fn precedence(endpoint: &Endpoint) -> (u8, impl Ord + '_) {
    let c = endpoint.conditions;
    let usable = if c.ready {
        2
    } else if c.serving && c.terminating {
        1
    } else {
        0
    };
    (usable, (&endpoint.node, &endpoint.zone, &endpoint.zone_hints, &endpoint.node_hints))
}

/// Endpoints in an order that stays: index i of the list is index i in the kernel.
pub type Usable = Arc<[SocketAddr]>;

/// The endpoints of a Service port by who may use them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Categories {
    /// For the Cluster policy: the whole cluster's, after topology.
    pub cluster: Vec<SocketAddr>,
    /// For the Local policy: this node's.
    pub local: Vec<SocketAddr>,
    /// Whether there is any usable endpoint anywhere; without one traffic is refused, else what lacks an
    /// endpoint for its policy is dropped.
    pub any: bool,
}

/// Topology that the hints of the ready endpoints ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// No restriction.
    All,
    /// Only endpoints hinted for this node.
    Node,
    /// Only endpoints hinted for this node's zone.
    Zone,
}

/// Reads the topology off the hints: node hints before zone hints, each only where every ready endpoint has one
/// and at least one is for us.
pub fn topology(endpoints: &[(SocketAddr, &Endpoint)], node: &NodeView) -> Topology {
    let mut ready = endpoints.iter().map(|(_, e)| *e).filter(|e| e.conditions.ready).peekable();
    if ready.peek().is_none() {
        return Topology::All;
    }
    let (mut all_node, mut for_node, mut all_zone, mut for_zone) = (true, false, true, false);
    for endpoint in ready {
        match &endpoint.node_hints {
            Some(hints) => for_node |= hints.iter().any(|h| **h == *node.name),
            None => all_node = false,
        }
        match &endpoint.zone_hints {
            Some(hints) => for_zone |= in_zone(hints, node),
            None => all_zone = false,
        }
    }
    match (all_node && for_node, all_zone && for_zone) {
        (true, _) => Topology::Node,
        (false, true) => Topology::Zone,
        (false, false) => Topology::All,
    }
}

fn in_zone(hints: &[Arc<str>], node: &NodeView) -> bool {
    node.zone.as_deref().is_some_and(|zone| hints.iter().any(|h| **h == *zone))
}

fn hinted(endpoint: &Endpoint, topology: Topology, node: &NodeView) -> bool {
    match topology {
        Topology::All => true,
        Topology::Node => {
            endpoint.node_hints.as_ref().is_some_and(|hints| hints.iter().any(|h| **h == *node.name))
        }
        Topology::Zone => endpoint.zone_hints.as_ref().is_some_and(|hints| in_zone(hints, node)),
    }
}

/// Why an endpoint is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Used {
    /// It is ready.
    Ready,
    /// It terminates but still serves, and no other is ready.
    StillServing,
}

/// Why an endpoint gets no new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeftOut {
    /// It is not ready.
    NotReady,
    /// It terminates and serves no more.
    Terminated,
    /// It terminates while others are ready.
    Terminating,
    /// Every ready endpoint has zone hints, and this one's are for other zones.
    HintedForAnotherZone,
    /// Every ready endpoint has node hints, and this one's are for other nodes.
    HintedForAnotherNode,
    /// It is not on this node, and the policy is Local.
    NotOnThisNode,
    /// It is of the other family.
    OtherFamily,
    /// Its slice has no port of this name and protocol.
    NoSuchPort,
    /// It is listed more than once; the entry that can be used best counts.
    Duplicate,
    /// There are more than [`super::MAX_ENDPOINTS`].
    TooMany,
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            LeftOut::NotReady => "not ready",
            LeftOut::Terminated => "terminating, serves no more",
            LeftOut::Terminating => "terminating while others are ready",
            LeftOut::HintedForAnotherZone => "hinted for another zone",
            LeftOut::HintedForAnotherNode => "hinted for another node",
            LeftOut::NotOnThisNode => "not on this node (policy Local)",
            LeftOut::OtherFamily => "other family",
            LeftOut::NoSuchPort => "slice without this port",
            LeftOut::Duplicate => "listed more than once",
            LeftOut::TooMany => "more than can be used",
        })
    }
}

/// Which endpoints of a Service port are used.
#[derive(Debug)]
pub(super) struct Selection<'a> {
    node: &'a NodeView,
    topology: Topology,
    /// Whether a scope has a ready endpoint; if not, those that still serve are used.
    ready: [bool; 2],
}

impl<'a> Selection<'a> {
    pub(super) fn new(endpoints: &[(SocketAddr, &Endpoint)], node: &'a NodeView) -> Selection<'a> {
        let mut selection = Selection { node, topology: topology(endpoints, node), ready: [false; 2] };
        selection.ready = [Scope::Cluster, Scope::Local].map(|scope| {
            endpoints.iter().any(|(_, e)| e.conditions.ready && selection.is_in_place(scope, e))
        });
        selection
    }

    fn is_in_place(&self, scope: Scope, endpoint: &Endpoint) -> bool {
        match scope {
            Scope::Cluster => hinted(endpoint, self.topology, self.node),
            Scope::Local => self.node.is_local(endpoint),
        }
    }

    /// Whether and why an endpoint is used in a scope.
    pub(super) fn judge(&self, scope: Scope, endpoint: &Endpoint) -> Result<Used, LeftOut> {
        let c = endpoint.conditions;
        let used = match (c.ready, c.terminating) {
            (true, _) => Used::Ready,
            (false, true) if c.serving => Used::StillServing,
            (false, true) => return Err(LeftOut::Terminated),
            (false, false) => return Err(LeftOut::NotReady),
        };
        if !self.is_in_place(scope, endpoint) {
            return Err(match (scope, self.topology) {
                (Scope::Local, _) => LeftOut::NotOnThisNode,
                (Scope::Cluster, _) if used == Used::StillServing => LeftOut::Terminating,
                (Scope::Cluster, Topology::Node) => LeftOut::HintedForAnotherNode,
                (Scope::Cluster, Topology::Zone | Topology::All) => LeftOut::HintedForAnotherZone,
            });
        }
        if used == Used::StillServing && self.ready[scope as usize] {
            return Err(LeftOut::Terminating);
        }
        Ok(used)
    }
}

/// Sorts the endpoints of a Service port into those for the Cluster and for the Local policy.
pub fn categorize(endpoints: &[(SocketAddr, &Endpoint)], node: &NodeView) -> Categories {
    let selection = Selection::new(endpoints, node);
    let [cluster, local] = [Scope::Cluster, Scope::Local].map(|scope| {
        let used = endpoints.iter().filter(|(_, e)| selection.judge(scope, e).is_ok());
        used.map(|(a, _)| *a).collect::<Vec<SocketAddr>>()
    });
    let any = !cluster.is_empty();
    Categories { cluster, local, any }
}

/// The endpoints that serve but are not in `used`, sorted; `None` where there is none. `used` has only such that
/// serve.
pub(super) fn draining(endpoints: &[(SocketAddr, &Endpoint)], used: &[SocketAddr]) -> Option<Usable> {
    let serves = |e: &Endpoint| e.conditions.ready || e.conditions.serving;
    if endpoints.iter().filter(|(_, e)| serves(e)).count() == used.len() {
        return None;
    }
    let used: FxHashSet<&SocketAddr> = used.iter().collect();
    let rest = endpoints.iter().filter(|(a, e)| serves(e) && !used.contains(a));
    Some(sorted(rest.map(|(a, _)| *a).collect()).into())
}

/// Puts `wanted` into an order that moves as few as possible from their index in `previous`: what stays keeps
/// its index, what is new takes the freed ones, and only what would lie beyond the new end moves down.
pub fn arrange(previous: &[SocketAddr], wanted: Vec<SocketAddr>) -> Usable {
    if previous.is_empty() {
        return sorted(wanted).into();
    }
    let mut slots: Vec<Option<SocketAddr>> = vec![None; wanted.len()];
    let mut wanted: FxHashSet<SocketAddr> = wanted.into_iter().collect();
    for (slot, address) in slots.iter_mut().zip(previous) {
        if wanted.remove(address) {
            *slot = Some(*address);
        }
    }
    let mut rest = sorted(wanted.into_iter().collect()).into_iter();
    slots.into_iter().filter_map(|slot| slot.or_else(|| rest.next())).collect()
}

fn sorted(mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    addresses.sort_unstable();
    addresses
}

/// The addresses of endpoints that may be on this node: a connection from such an address to itself must be
/// masqueraded. An endpoint that names no node counts, too, since no other node's pod sends from here.
pub fn hairpin_addresses(endpoints: &[(SocketAddr, &Endpoint)], node: &NodeView, out: &mut Vec<IpAddr>) {
    out.extend(
        endpoints
            .iter()
            .filter(|(_, e)| {
                (e.conditions.ready || e.conditions.serving) && (e.node.is_none() || node.is_local(e))
            })
            .map(|(a, _)| a.ip()),
    );
}
