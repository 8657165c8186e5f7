//! What happens to a connection to one address, and why.
//!
//! The answer comes from [`Desired`], which the rules are made of, and the reasons from the predicates that it was
//! worked out with. Only what the constant rules decide is decided here: what a packet's source means to them, and
//! what becomes of addresses that no Service port has.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};
use serde::{Serialize, Serializer};

use super::affinity::Scope;
use super::endpoints::{LeftOut, Selection, Used, listed, merge};
use super::service::{Frontend, FrontendKind, Masquerade, Target, inside_scope, ports_at};
use super::{Desired, Key, LocalDetection, Settings};
use crate::cluster::{Family, Index, ObjectName, Protocol, Scheduler, Service, ServicePort};

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A pod.
    Pod,
    /// This node itself, or a pod on its network.
    Node,
    /// Anywhere else.
    Outside,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Pod => "a pod",
            Origin::Node => "this node",
            Origin::Outside => "an outside client",
        })
    }
}

/// A client, as the rules see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Client {
    /// What it is.
    pub origin: Origin,
    /// Its address, where it is known.
    pub address: Option<IpAddr>,
    /// Whether local detection takes it for a pod.
    pub counts_as_pod: bool,
    /// Whether its address is one of this node's.
    pub counts_as_node: bool,
}

impl Client {
    /// One of each origin.
    pub fn each(settings: &Settings, family: Family) -> [Client; 3] {
        let detected = *settings.local_detection(family) != LocalDetection::None;
        [Origin::Pod, Origin::Node, Origin::Outside].map(|origin| Client {
            origin,
            address: None,
            counts_as_pod: origin == Origin::Pod && detected,
            counts_as_node: origin == Origin::Node,
        })
    }

    /// The client with this address; `own` are the node's. Where pods are told by the interface that they send
    /// from, those in the Node's podCIDRs and the endpoints on this node are taken for pods.
    pub fn at(address: IpAddr, own: &[IpAddr], settings: &Settings, index: &Index) -> Client {
        let within = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&address));
        let counts_as_node = is_own(address, own);
        let in_pod_cidrs = within(&settings.pod_cidrs);
        let is_pod = in_pod_cidrs
            || within(index.node().map_or(&[], |node| &node.pod_cidrs))
            || index.endpoints().any(|e| e.address == address && e.node.as_ref() == Some(index.node_name()));
        let counts_as_pod = match settings.local_detection(Family::of(address)) {
            LocalDetection::None => false,
            LocalDetection::Cidr => in_pod_cidrs,
            // The node's own packets come in through no interface.
            LocalDetection::Bridge(_) | LocalDetection::InterfacePrefix(_) => is_pod && !counts_as_node,
        };
        let origin = match (counts_as_node, is_pod) {
            (true, _) => Origin::Node,
            (false, true) => Origin::Pod,
            (false, false) => Origin::Outside,
        };
        Client { origin, address: Some(address), counts_as_pod, counts_as_node }
    }
}

/// As the kernel's type `local`.
fn is_own(address: IpAddr, own: &[IpAddr]) -> bool {
    address.is_loopback() || own.contains(&address)
}

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It goes to one of the endpoints.
    Forwarded,
    /// It is answered with a TCP reset, or with ICMP port unreachable.
    Refused,
    /// It is not answered.
    Dropped,
    /// The rules leave it alone.
    Untouched,
}

/// Why a connection is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// No endpoint can be used anywhere.
    NoEndpoints,
    /// It goes to a ClusterIP whose Service has no such port.
    NoSuchPort,
    /// There are endpoints, but none on this node, and the policy is Local.
    NoLocalEndpoints,
    /// The client is in none of the source ranges.
    SourceNotAllowed,
    /// In mode ipvs: the address is on kube-ipvs0 for the sake of other ports.
    OtherPorts,
    /// It goes to a service address that no Service has.
    NotAllocated,
    /// No Service claims the address.
    NotOurs,
    /// It goes to a NodePort on a loopback address, but not by TCP.
    NotRelayed,
    /// It goes to a loopback address, and the client is another host than this node.
    OwnLoopback,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::NoEndpoints => "no endpoint can be used anywhere",
            Reason::NoSuchPort => "the Service with this ClusterIP has no such port",
            Reason::NoLocalEndpoints => "endpoints elsewhere, none on this node, and the policy is Local",
            Reason::SourceNotAllowed => "the client is in none of loadBalancerSourceRanges",
            Reason::OtherPorts => "the address is on kube-ipvs0 for other ports of Services",
            Reason::NotAllocated => "in the service range, but no Service's ClusterIP",
            Reason::NotOurs => "no Service answers here",
            Reason::NotRelayed => "NodePorts on loopback addresses are served for TCP only",
            Reason::OwnLoopback => "this is the client's own loopback address",
        })
    }
}

/// Why a connection gets an address of this node as its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Masqueraded {
    /// masqueradeAll is set, and it goes to a ClusterIP.
    All,
    /// It goes to a ClusterIP, and its source is no pod.
    OffCluster,
    /// It goes to an external address under externalTrafficPolicy Cluster.
    External,
    /// This node itself connects to an external address under externalTrafficPolicy Local.
    Own,
    /// The agent relays it, with a connection of its own.
    Relayed,
    /// In mode ipvs this node connects to an address of kube-ipvs0 from that address, which no endpoint could answer.
    OwnByIpvs,
}

impl fmt::Display for Masqueraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Masqueraded::All => "to a ClusterIP, and masqueradeAll is set",
            Masqueraded::OffCluster => "to a ClusterIP, from what is no pod",
            Masqueraded::External => "to an external address under externalTrafficPolicy Cluster",
            Masqueraded::Own => "this node's own connection to an external address",
            Masqueraded::OwnByIpvs => {
                "this node's own connection, which comes from the service address itself"
            }
            Masqueraded::Relayed => "relayed by the agent, which makes a connection of its own",
        })
    }
}

/// Where a connection may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// Address and port.
    pub address: SocketAddr,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// Why it is used.
    pub because: Used,
    /// Whether the client, by its address, is this endpoint, so that the connection is masqueraded; for a pod of
    /// unknown address: whether it is masqueraded if it is.
    pub hairpin: bool,
}

/// An endpoint that gets none of a client's connections.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unused {
    /// Why.
    pub because: LeftOut,
    /// Its address.
    pub address: IpAddr,
    /// Its port, where its slice has one for the Service port.
    pub port: Option<u16>,
}

/// What one client experiences.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The client.
    pub client: Client,
    /// What becomes of its connection.
    pub verdict: Verdict,
    /// Why it is not forwarded.
    pub reason: Option<Reason>,
    /// The traffic policy that counts: `Cluster` or `Local`.
    pub policy: Option<&'static str>,
    /// The IPVS scheduler that chooses the endpoint; `None`: chance does, by the rules.
    pub scheduler: Option<&'static str>,
    /// The share of each endpoint, in percent: of connections, or, with affinity, of clients. `None` also where that
    /// depends on connections or clients.
    pub share_percent: Option<f64>,
    /// Where it may go, sorted.
    pub endpoints: Vec<Destination>,
    /// What else the slices list, sorted.
    pub left_out: Vec<Unused>,
    /// Why it is masqueraded wherever it goes; see also [`Destination::hairpin`].
    pub masqueraded: Option<Masqueraded>,
}

/// The Service port that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Winner {
    /// The Service.
    #[serde(serialize_with = "text")]
    pub service: ObjectName,
    /// The name of its port; empty where it has none.
    pub port: Arc<str>,
    /// What the address is to it.
    pub kind: FrontendKind,
    /// How long a client is remembered after its last new connection, in seconds; `None`: not at all.
    pub affinity_seconds: Option<u32>,
    /// Who may connect; `None`: everybody.
    pub sources: Option<Arc<[IpNet]>>,
}

/// A claim that does not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Loser {
    /// The Service.
    #[serde(serialize_with = "text")]
    pub service: ObjectName,
    /// What it claims the address as.
    pub kind: FrontendKind,
    /// Whether the claim is refused; if not, it ranks lower.
    pub refused: bool,
    /// Whether that is since the operator does not allow it; if not, the address is another Service's ClusterIP.
    pub forbidden: bool,
}

/// A Service that has the address as its ClusterIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// The Service.
    #[serde(serialize_with = "text")]
    pub service: ObjectName,
    /// Its ports, as `80/tcp`.
    pub ports: Vec<String>,
}

/// All about one address, protocol and port.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// What was asked for.
    #[serde(serialize_with = "text")]
    pub destination: Key,
    /// Who answers there.
    pub winner: Option<Winner>,
    /// Who else claims it, the best first, then those whose claims are refused.
    pub losers: Vec<Loser>,
    /// Whose ClusterIP the address is, whatever the port.
    pub cluster_ip_of: Vec<Owner>,
    /// What each client experiences.
    pub answers: Vec<Answer>,
}

impl Explanation {
    /// Whether one of the clients gets to an endpoint.
    pub fn is_served(&self) -> bool {
        self.answers.iter().any(|answer| answer.verdict == Verdict::Forwarded)
    }
}

fn text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Explains what becomes of these clients' connections to a key. `index` has the objects that `desired` was made
/// of, `own` this node's addresses.
pub fn explain(
    desired: &Desired,
    index: &Index,
    key: Key,
    own: &[IpAddr],
    clients: &[Client],
) -> Explanation {
    let mut claims = desired.claims(&key);
    let first = claims.next();
    let refused = desired.refused_claims(&key);
    let loser = |kind, service: &Arc<Service>, refused, forbidden| Loser {
        service: service.name.clone(),
        kind,
        refused,
        forbidden,
    };
    let losers = claims
        .map(|(kind, service)| loser(kind, service, false, false))
        .chain(refused.into_iter().map(|(kind, service, forbidden)| loser(kind, service, true, forbidden)))
        // An address that is two things to one Service is no contest.
        .filter(|loser| first.is_none_or(|(_, winner)| winner.name != loser.service))
        .collect();
    let frontend = desired.frontend(&key).map(|(frontend, _)| frontend);
    let served = first.zip(frontend).and_then(|((kind, service), frontend)| {
        let (port, _) = ports_at(service, desired.node(), &key).find(|(_, k)| *k == kind)?;
        Some(Served { desired, index, key, kind, service, port, frontend, own })
    });
    let answer = |client: &Client| match &served {
        _ if key.is_relayed() && client.origin != Origin::Node => {
            Answer::of(*client, Verdict::Untouched, Reason::OwnLoopback)
        }
        Some(served) => served.answer(*client),
        None => unclaimed(desired, key, own, *client),
    };
    let owner = |service: &Arc<Service>| Owner {
        service: service.name.clone(),
        ports: service.ports.iter().map(|p| format!("{}/{}", p.port, p.protocol)).collect(),
    };
    Explanation {
        destination: key,
        winner: served.as_ref().map(Served::winner),
        losers,
        cluster_ip_of: desired.cluster_ip_owners(key.address).iter().map(owner).collect(),
        answers: clients.iter().map(answer).collect(),
    }
}

/// What becomes of packets that no Service port answers.
fn unclaimed(desired: &Desired, key: Key, own: &[IpAddr], client: Client) -> Answer {
    let in_range = || desired.settings().service_cidrs.iter().any(|range| range.contains(&key.address));
    if !desired.cluster_ip_owners(key.address).is_empty() {
        Answer::of(client, Verdict::Refused, Reason::NoSuchPort)
    } else if desired.settings().ipvs.is_some()
        && !is_own(key.address, own)
        && desired.frontends().any(|(other, ..)| other.address == key.address)
    {
        Answer::of(client, Verdict::Refused, Reason::OtherPorts)
    } else if in_range() && !is_own(key.address, own) {
        Answer::of(client, Verdict::Dropped, Reason::NotAllocated)
    } else if key.protocol != Protocol::Tcp
        && key.is_relayed()
        && desired.node().node_port_addresses.contains(&key.address)
    {
        Answer::of(client, Verdict::Untouched, Reason::NotRelayed)
    } else {
        Answer::of(client, Verdict::Untouched, Reason::NotOurs)
    }
}

impl Answer {
    /// One that does not depend on endpoints.
    fn of(client: Client, verdict: Verdict, reason: Reason) -> Answer {
        Answer {
            client,
            verdict,
            reason: Some(reason),
            policy: None,
            scheduler: None,
            share_percent: None,
            endpoints: Vec::new(),
            left_out: Vec::new(),
            masqueraded: None,
        }
    }
}

/// A key that a Service port answers.
struct Served<'a> {
    desired: &'a Desired,
    index: &'a Index,
    key: Key,
    kind: FrontendKind,
    service: &'a Arc<Service>,
    port: &'a ServicePort,
    frontend: &'a Frontend,
    own: &'a [IpAddr],
}

impl Served<'_> {
    fn winner(&self) -> Winner {
        Winner {
            service: self.service.name.clone(),
            port: self.port.name.clone(),
            kind: self.kind,
            affinity_seconds: self.service.affinity,
            sources: self.frontend.sources.clone(),
        }
    }

    fn answer(&self, client: Client) -> Answer {
        if let (Some(address), Some(sources)) = (client.address, &self.frontend.sources)
            && !sources.iter().any(|range| range.contains(&address) || self.admits_node(client, range))
        {
            return Answer::of(client, Verdict::Dropped, Reason::SourceNotAllowed);
        }
        let is_outside = !client.counts_as_pod && !client.counts_as_node;
        let (target, scope) = match &self.frontend.outside {
            Some(outside) if is_outside => (outside, Scope::Local),
            _ => (&self.frontend.inside, inside_scope(self.service, self.kind)),
        };
        let (verdict, reason) = match target {
            Target::Endpoints(_) | Target::Sticky(_) => (Verdict::Forwarded, None),
            Target::Refuse => (Verdict::Refused, Some(Reason::NoEndpoints)),
            Target::Drop => (Verdict::Dropped, Some(Reason::NoLocalEndpoints)),
        };
        // Where there is a list for outside, IPVS has that one; the tables translate for the others.
        let by_ipvs = self.frontend.outside.is_none() || is_outside;
        let ipvs = self.desired.settings().ipvs.filter(|_| by_ipvs && verdict == Verdict::Forwarded);
        let scheduler = ipvs.map(|default| self.frontend.scheduler.unwrap_or(default));
        let is_equal = scheduler.is_none_or(|it| matches!(it, Scheduler::Rr | Scheduler::Wrr));
        let used: FxHashSet<SocketAddr> = target.endpoints().map(|(_, endpoint)| endpoint).collect();
        let (endpoints, left_out) = self.endpoints(scope, &used, client);
        let forwarded = verdict == Verdict::Forwarded;
        Answer {
            client,
            verdict,
            reason,
            policy: Some(if scope == Scope::Local { "Local" } else { "Cluster" }),
            scheduler: scheduler.map(Scheduler::name),
            share_percent: (forwarded && is_equal).then(|| 100.0 / used.len() as f64),
            endpoints,
            left_out,
            masqueraded: forwarded.then(|| self.masqueraded(client)).flatten(),
        }
    }

    /// In mode ipvs this node comes from the service address, and may where one of its addresses may.
    fn admits_node(&self, client: Client, range: &IpNet) -> bool {
        let node = || self.desired.node().node_port_addresses.iter().any(|address| range.contains(address));
        self.desired.settings().ipvs.is_some() && client.counts_as_node && node()
    }

    /// The endpoints that are used, and why what else the slices list is not.
    fn endpoints(
        &self,
        scope: Scope,
        used: &FxHashSet<SocketAddr>,
        client: Client,
    ) -> (Vec<Destination>, Vec<Unused>) {
        let slices = self.index.slices_of(&self.service.name);
        let (family, name, protocol) = (self.key.family(), &self.port.name, self.port.protocol);
        let merged = merge(slices, family, name, protocol);
        let selection = Selection::new(&merged, self.desired.node());
        let (mut destinations, mut unused) = (Vec::new(), Vec::new());
        let mut leave_out = |because, address, port| unused.push(Unused { because, address, port });
        for (address, endpoint) in &merged {
            let because = match selection.judge(scope, endpoint) {
                Ok(because) if used.contains(address) => {
                    destinations.push(Destination {
                        address: *address,
                        node: endpoint.node.clone(),
                        because,
                        hairpin: self.is_hairpin(address.ip(), client),
                    });
                    continue;
                }
                Ok(_) => LeftOut::TooMany,
                Err(because) => because,
            };
            leave_out(because, address.ip(), Some(address.port()));
        }
        let mut seen: FxHashMap<SocketAddr, usize> = FxHashMap::default();
        for slice in slices {
            let mut of_port = listed(slice, name, protocol).peekable();
            if of_port.peek().is_none() {
                let because = if slice.family == family { LeftOut::NoSuchPort } else { LeftOut::OtherFamily };
                slice.endpoints.iter().for_each(|e| leave_out(because, e.address, None));
            }
            for (address, _) in of_port {
                let times = seen.entry(address).or_default();
                *times += 1;
                if slice.family != family {
                    leave_out(LeftOut::OtherFamily, address.ip(), Some(address.port()));
                } else if *times > 1 {
                    leave_out(LeftOut::Duplicate, address.ip(), Some(address.port()));
                }
            }
        }
        destinations.sort_unstable_by_key(|d| d.address);
        unused.sort_unstable();
        (destinations, unused)
    }

    fn is_hairpin(&self, endpoint: IpAddr, client: Client) -> bool {
        let may_be_it = match client.address {
            Some(address) => address == endpoint,
            None => client.origin == Origin::Pod,
        };
        may_be_it && self.desired.is_hairpin(endpoint)
    }

    /// What the rules after the translation decide, but for the hairpin.
    fn masqueraded(&self, client: Client) -> Option<Masqueraded> {
        if self.key.is_relayed() {
            return Some(Masqueraded::Relayed);
        }
        let settings = self.desired.settings();
        let detected = *settings.local_detection(self.key.family()) != LocalDetection::None;
        if !self.desired.cluster_ip_owners(self.key.address).is_empty() {
            if settings.masquerade_all {
                return Some(Masqueraded::All);
            }
            if detected && !client.counts_as_pod {
                return Some(Masqueraded::OffCluster);
            }
        }
        match self.frontend.masquerade {
            Masquerade::All => Some(Masqueraded::External),
            Masquerade::Own if client.counts_as_node => Some(Masqueraded::Own),
            Masquerade::Own | Masquerade::OffCluster => {
                let held = settings.ipvs.is_some() && !is_own(self.key.address, self.own);
                (held && client.counts_as_node).then_some(Masqueraded::OwnByIpvs)
            }
        }
    }
}
