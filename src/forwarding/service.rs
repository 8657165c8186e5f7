//! One Service by itself: the addresses it claims, and what happens to packets sent there.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use ipnet::IpNet;
use serde::Serialize;

use super::affinity::{Ids, PortSlots, Scope, Sticky};
use super::endpoints::{Categories, Usable, arrange, categorize, draining, hairpin_addresses, merge};
use super::{Key, NodeView};
use crate::cluster::{
    Endpoint, EndpointSlice, Family, Protocol, Scheduler, Service, ServicePort, TrafficPolicy,
};

/// The most endpoints of one Service port that are used; more would run into the indices of local endpoints.
pub const MAX_ENDPOINTS: usize = 32768;

/// What kind of address a frontend is, in the order in which claims to the same address and port win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// An address of the node with `nodePort`.
    NodePort,
    /// `status.loadBalancer.ingress[].ip`.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIp,
}

impl std::fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            FrontendKind::ClusterIp => "ClusterIP",
            FrontendKind::NodePort => "NodePort",
            FrontendKind::LoadBalancer => "load-balancer address",
            FrontendKind::ExternalIp => "externalIP",
        })
    }
}

/// What happens to a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// It goes to one of these, each with the same share; never empty.
    Endpoints(Usable),
    /// As `Endpoints`, but a client goes where it went before.
    Sticky(Arc<Sticky>),
    /// It is refused: there is no endpoint anywhere.
    Refuse,
    /// It is dropped: there are endpoints, but none that the policy allows here.
    Drop,
}

impl Target {
    fn none(any: bool) -> Target {
        if any { Target::Drop } else { Target::Refuse }
    }

    fn usable(&self) -> Option<&Usable> {
        match self {
            Target::Endpoints(endpoints) => Some(endpoints),
            Target::Sticky(_) | Target::Refuse | Target::Drop => None,
        }
    }

    /// What clients stick to, with affinity.
    pub fn sticky(&self) -> Option<&Arc<Sticky>> {
        match self {
            Target::Sticky(sticky) => Some(sticky),
            Target::Endpoints(_) | Target::Refuse | Target::Drop => None,
        }
    }

    /// The endpoints, each with its index; none where it refuses or drops.
    pub fn endpoints(&self) -> impl Iterator<Item = (u32, SocketAddr)> + '_ {
        let (dense, slots): (&[SocketAddr], &[(u32, SocketAddr)]) = match self {
            Target::Endpoints(endpoints) => (endpoints, &[]),
            Target::Sticky(sticky) => (&[], &sticky.live),
            Target::Refuse | Target::Drop => (&[], &[]),
        };
        (0..).zip(dense.iter().copied()).chain(slots.iter().copied())
    }
}

/// Whose connections get an address of the node as their source. A pod that reaches itself always does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// Those from outside the cluster: ClusterIPs.
    OffCluster,
    /// All: external addresses under the Cluster policy, since the reply must come back through here.
    All,
    /// The node's own: external addresses under the Local policy, which keeps the source.
    Own,
}

/// What happens to packets for one address, protocol and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// For everybody, or, where `outside` is set, for this cluster's pods and this node.
    pub inside: Target,
    /// For traffic from outside, where that differs: `externalTrafficPolicy: Local`.
    pub outside: Option<Target>,
    /// Masquerade.
    pub masquerade: Masquerade,
    /// Who may connect at all; `None`: everybody.
    pub sources: Option<Arc<[IpNet]>>,
    /// Endpoints that are not in `inside` but serve, sorted: terminating ones, mostly, also those that hints or
    /// the policy rule out. They get no new connection and keep those that they have, so this makes no rule.
    /// `None` where there is none.
    pub draining: Option<Usable>,
    /// The scheduler that the Service asks for; only IPVS has a choice.
    pub scheduler: Option<Scheduler>,
}

impl Frontend {
    /// One that nobody answers at.
    pub fn refusing() -> Frontend {
        Frontend {
            inside: Target::Refuse,
            outside: None,
            masquerade: Masquerade::OffCluster,
            sources: None,
            draining: None,
            scheduler: None,
        }
    }

    /// The endpoints that get new connections, as the lists of inside and outside have them: some are there twice.
    pub fn endpoints(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let targets = [Some(&self.inside), self.outside.as_ref()];
        targets.into_iter().flatten().flat_map(|target| target.endpoints().map(|(_, endpoint)| endpoint))
    }

    /// Whether two differ in nothing that makes rules: only in what drains.
    pub fn same_rules(&self, other: &Frontend) -> bool {
        let Frontend { inside, outside, masquerade, sources, draining: _, scheduler: _ } = self;
        *inside == other.inside
            && *outside == other.outside
            && *masquerade == other.masquerade
            && *sources == other.sources
    }

    /// The endpoints whose connections go on: those that get new ones, and those that still serve.
    pub fn serving(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.endpoints().chain(self.draining.iter().flat_map(|draining| draining.iter().copied()))
    }
}

/// A frontend that a Service wants to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Where.
    pub key: Key,
    /// Which kind of address it is.
    pub kind: FrontendKind,
    /// What for.
    pub frontend: Frontend,
}

/// All that one Service asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// Its frontends.
    pub claims: Vec<Claim>,
    /// Endpoint addresses that may be this node's pods, sorted, each once.
    pub hairpin: Vec<IpAddr>,
    /// Ports that have more endpoints than can be used, with their number.
    pub overfull: Vec<(Arc<str>, usize)>,
}

/// What [`forward`] is to go on from, so that what stays keeps its place.
pub(super) struct Before<'a, P> {
    /// The frontend of a key as it is now.
    pub(super) frontend: P,
    /// The slots of ports with affinity; brought up to date.
    pub(super) slots: &'a mut PortSlots,
    /// Ids for new ones.
    pub(super) ids: &'a mut Ids,
    /// The time, for slots that rest.
    pub(super) now: Instant,
}

/// Works out one Service.
pub(super) fn forward<'a, P>(
    service: &Service,
    slices: &[Arc<EndpointSlice>],
    node: &NodeView,
    before: &mut Before<'_, P>,
) -> Forwarding
where
    P: Fn(&Key) -> Option<&'a Frontend>,
{
    let mut forwarding = Forwarding::default();
    for family in Family::ALL {
        let in_family = |a: &&IpAddr| Family::of(**a) == family;
        let Some(&cluster_ip) = service.cluster_ips.iter().find(in_family) else { continue };
        let sources = sources(service, family);
        for port in &service.ports {
            let endpoints = merge(slices, family, &port.name, port.protocol);
            hairpin_addresses(&endpoints, node, &mut forwarding.hairpin);
            let mut categories = categorize(&endpoints, node);
            let total = categories.cluster.len().max(categories.local.len());
            if total > MAX_ENDPOINTS {
                forwarding.overfull.push((port.name.clone(), total));
                categories.cluster.truncate(MAX_ENDPOINTS);
                categories.local.truncate(MAX_ENDPOINTS);
            }
            let mut targets = Targets::new(service, port, family, &endpoints, categories, before);
            for (address, port_number, kind) in addresses(service, node, port, family, cluster_ip) {
                let key = Key { address, protocol: port.protocol, port: port_number };
                let sources = sources.clone().filter(|_| kind == FrontendKind::LoadBalancer);
                let frontend = targets.frontend(service, kind, (before.frontend)(&key), sources);
                forwarding.claims.push(Claim { key, kind, frontend });
            }
        }
    }
    forwarding.hairpin.sort_unstable();
    forwarding.hairpin.dedup();
    forwarding
}

/// The targets of one Service port in one family, from which its frontends are put together.
struct Targets {
    cluster: Arranged,
    local: Arranged,
    any: bool,
    /// With affinity: of the Cluster and of the Local policy.
    sticky: Option<[Option<Arc<Sticky>>; 2]>,
    /// What serves without being in the list of the Cluster or of the Local policy.
    draining: [Option<Usable>; 2],
}

impl Targets {
    fn new<P>(
        service: &Service,
        port: &ServicePort,
        family: Family,
        endpoints: &[(SocketAddr, &Endpoint)],
        Categories { cluster, local, any }: Categories,
        before: &mut Before<'_, P>,
    ) -> Targets {
        let key = (family, port.protocol, port.name.clone());
        let uses_local = service.internal_policy == TrafficPolicy::Local
            || service.external_policy == TrafficPolicy::Local;
        let sticky = service.affinity.map(|timeout| {
            let slots = before.slots.entry(key).or_default();
            let local = if uses_local { &*local } else { &[] };
            slots.assign(cluster.iter().chain(local), timeout, before.now);
            [(Scope::Cluster, &*cluster), (Scope::Local, local)].map(|(scope, endpoints)| {
                if endpoints.is_empty() {
                    return None;
                }
                let id = slots.id(scope, || before.ids.allocate(service, port, family, scope));
                slots.sticky(id, timeout, endpoints)
            })
        });
        let (cluster, local) = (Arranged::new(cluster), Arranged::new(local));
        // Outside the Local policy comes on top of the Cluster policy's list, so it needs none of its own.
        let inside = (service.internal_policy == TrafficPolicy::Local).then_some(&local.wanted);
        let draining = [Some(&cluster.wanted), inside].map(|used| draining(endpoints, used?));
        Targets { cluster, local, any, sticky, draining }
    }

    fn target(&mut self, scope: Scope, previous: Option<&Target>) -> Target {
        if let Some(sticky) = &self.sticky {
            return sticky[scope as usize].clone().map_or_else(|| Target::none(self.any), Target::Sticky);
        }
        let list = match scope {
            Scope::Cluster => &mut self.cluster,
            Scope::Local => &mut self.local,
        };
        let usable = list.after(previous.and_then(Target::usable));
        if usable.is_empty() { Target::none(self.any) } else { Target::Endpoints(usable.clone()) }
    }

    fn frontend(
        &mut self,
        service: &Service,
        kind: FrontendKind,
        previous: Option<&Frontend>,
        sources: Option<Arc<[IpNet]>>,
    ) -> Frontend {
        let scheduler = service.scheduler;
        let old_inside = previous.map(|f| &f.inside);
        let old_outside = previous.and_then(|f| f.outside.as_ref());
        if kind == FrontendKind::ClusterIp {
            let scope = inside_scope(service, kind);
            let inside = self.target(scope, old_inside);
            let draining = self.draining[scope as usize].clone();
            let masquerade = Masquerade::OffCluster;
            return Frontend { inside, outside: None, masquerade, sources, draining, scheduler };
        }
        let inside = self.target(inside_scope(service, kind), old_inside);
        let (outside, masquerade) = match service.external_policy {
            TrafficPolicy::Cluster => (None, Masquerade::All),
            // Without any endpoint inside and outside are refused alike.
            TrafficPolicy::Local if !self.any => (None, Masquerade::Own),
            TrafficPolicy::Local => (Some(self.target(Scope::Local, old_outside)), Masquerade::Own),
        };
        let draining = self.draining[Scope::Cluster as usize].clone();
        Frontend { inside, outside, masquerade, sources, draining, scheduler }
    }
}

/// Which endpoints pods and this node reach at an address of this kind; everybody does at a ClusterIP.
pub(super) fn inside_scope(service: &Service, kind: FrontendKind) -> Scope {
    match (kind, service.internal_policy) {
        (FrontendKind::ClusterIp, TrafficPolicy::Local) => Scope::Local,
        _ => Scope::Cluster,
    }
}

/// Who may use the load-balancer addresses of a family. Ranges that overlap are joined: an nftables interval set
/// refuses them.
fn sources(service: &Service, family: Family) -> Option<Arc<[IpNet]>> {
    let mut ranges: Vec<IpNet> =
        service.source_ranges.iter().filter(|r| Family::of_net(r) == family).copied().collect();
    if ranges.len() > 1 {
        ranges = IpNet::aggregate(&ranges);
        ranges.sort_unstable();
    }
    (!ranges.is_empty()).then(|| ranges.into())
}

/// The port of a Service that is reached at a key, and the kinds of address that the key is, best first.
pub(super) fn ports_at<'a>(
    service: &'a Service,
    node: &NodeView,
    key: &Key,
) -> impl Iterator<Item = (&'a ServicePort, FrontendKind)> {
    let cluster_ip = service.cluster_ips.iter().find(|a| Family::of(**a) == key.family());
    let ports = service.ports.iter().filter(|port| port.protocol == key.protocol);
    ports.flat_map(move |port| {
        let all = cluster_ip.into_iter().flat_map(|ip| addresses(service, node, port, key.family(), *ip));
        let here = all.filter(|(address, number, _)| (*address, *number) == (key.address, key.port));
        here.map(|(_, _, kind)| (port, kind)).collect::<Vec<_>>()
    })
}

/// Every address of a Service port in one family, with the port number and kind it has there.
pub(super) fn addresses(
    service: &Service,
    node: &NodeView,
    port: &ServicePort,
    family: Family,
    cluster_ip: IpAddr,
) -> impl Iterator<Item = (IpAddr, u16, FrontendKind)> {
    let number = port.port.get();
    let at = move |kind| move |address: &IpAddr| (*address, number, kind);
    let node_ports = port
        .node_port
        .into_iter()
        .flat_map(|p| node.node_port_addresses.iter().map(move |a| (*a, p.get(), FrontendKind::NodePort)))
        // What the agent relays is TCP.
        .filter(|(address, _, _)| port.protocol == Protocol::Tcp || !address.is_loopback());
    std::iter::once((cluster_ip, number, FrontendKind::ClusterIp))
        .chain(node_ports)
        .chain(service.load_balancer_ips.iter().map(at(FrontendKind::LoadBalancer)))
        .chain(service.external_ips.iter().map(at(FrontendKind::ExternalIp)))
        .filter(move |(address, _, _)| Family::of(*address) == family)
}

/// One list of endpoints, arranged once for each different order that it had before: the frontends of a Service
/// port share it.
struct Arranged {
    wanted: Vec<SocketAddr>,
    done: Vec<(Option<Usable>, Usable)>,
}

impl Arranged {
    fn new(wanted: Vec<SocketAddr>) -> Arranged {
        Arranged { wanted, done: Vec::new() }
    }

    fn after(&mut self, previous: Option<&Usable>) -> &Usable {
        let known = self.done.iter().position(|(before, _)| match (before, previous) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
            (None, None) => true,
            _ => false,
        });
        let index = known.unwrap_or_else(|| {
            let arranged = match previous {
                // Nothing changed: keep sharing the list that is there.
                Some(old) if is_arrangement(old, &self.wanted) => old.clone(),
                old => arrange(old.map_or(&[], |o| &**o), self.wanted.clone()),
            };
            self.done.push((previous.cloned(), arranged));
            self.done.len() - 1
        });
        &self.done[index].1
    }
}

/// Whether `old` has just the members of `wanted`, each of which is there once.
fn is_arrangement(old: &[SocketAddr], wanted: &[SocketAddr]) -> bool {
    if old.len() != wanted.len() {
        return false;
    }
    let sorted = |list: &[SocketAddr]| {
        let mut list = list.to_vec();
        list.sort_unstable();
        list
    };
    sorted(old) == sorted(wanted)
}
