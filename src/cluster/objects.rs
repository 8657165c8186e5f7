//! The compact objects. See [`crate::cluster`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;
use rustc_hash::FxHashSet;
use serde::Serialize;

use super::Scheduler;

/// An IP family. Everything a service does is done once in each family it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Both families, in the order in which they are always handled.
    pub const ALL: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// The number that netlink has for it: `NFPROTO_*` (linux/netfilter.h), which equals `AF_*`.
    pub fn number(self) -> u8 {
        match self {
            Family::Ipv4 => 2,
            Family::Ipv6 => 10,
        }
    }

    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }

    /// 127.0.0.1 or ::1.
    pub fn loopback(self) -> IpAddr {
        match self {
            Family::Ipv4 => Ipv4Addr::LOCALHOST.into(),
            Family::Ipv6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// The family of a network.
    pub fn of_net(net: &IpNet) -> Family {
        Family::of(net.addr())
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        })
    }
}

/// A transport protocol of a Service port; the value is its IANA protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[repr(u8)]
pub enum Protocol {
    /// TCP, the default.
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// SCTP.
    Sctp = 132,
}

impl Protocol {
    /// All protocols that a Service can name.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// The IANA protocol number, as in the IP header.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The protocol with this IANA number.
    pub fn from_number(number: u8) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|p| p.number() == number)
    }
}

impl fmt::Display for Protocol {
    /// The lower-case name, as nft prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// Namespace and name of an object; prints as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// Builds a name from its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> ObjectName {
        ObjectName { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `externalTrafficPolicy` or `internalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Every endpoint in the cluster.
    #[default]
    Cluster,
    /// Only endpoints on the node that the packet reached.
    Local,
}

/// `spec.trafficDistribution`. The choice itself arrives as hints in the slices; this is kept for display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficDistribution {
    /// `PreferClose` and its newer name `PreferSameZone`.
    PreferSameZone,
    /// `PreferSameNode`.
    PreferSameNode,
}

/// A Service that a proxy serves: neither headless, nor ExternalName, nor another proxy's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ObjectName,
    /// `metadata.uid`, for events; empty in files.
    pub uid: Arc<str>,
    /// `metadata.creationTimestamp` in seconds since the epoch; where two Services claim the same address and
    /// port the older wins. Files often lack it: 0, and then the name decides.
    pub created: i64,
    /// `spec.clusterIPs`, one or one of each family.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`, of families that the Service has.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` with ipMode VIP, of families that the Service has.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`; empty: everybody. A family without a range is not restricted.
    pub source_ranges: Vec<IpNet>,
    /// Its ports, at least one.
    pub ports: Vec<ServicePort>,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// ClientIP affinity with its timeout in seconds (1 to 86400), or none.
    pub affinity: Option<u32>,
    /// `spec.healthCheckNodePort`, only with a load balancer and `externalTrafficPolicy: Local`.
    pub health_check_node_port: Option<NonZeroU16>,
    /// `spec.trafficDistribution`.
    pub traffic_distribution: Option<TrafficDistribution>,
    /// Annotation `sluice/ipvs-scheduler`, for mode ipvs.
    pub scheduler: Option<Scheduler>,
}

impl Service {
    /// A Service of type ClusterIP, everything else as the API's defaults have it.
    pub fn new(name: ObjectName, cluster_ips: Vec<IpAddr>, ports: Vec<ServicePort>) -> Service {
        Service {
            name,
            uid: "".into(),
            created: 0,
            cluster_ips,
            external_ips: vec![],
            load_balancer_ips: vec![],
            source_ranges: vec![],
            ports,
            external_policy: TrafficPolicy::Cluster,
            internal_policy: TrafficPolicy::Cluster,
            affinity: None,
            health_check_node_port: None,
            traffic_distribution: None,
            scheduler: None,
        }
    }
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`, empty where the only port has none; slices are matched by it.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub port: NonZeroU16,
    /// `nodePort`, where one is allocated.
    pub node_port: Option<NonZeroU16>,
}

/// An EndpointSlice of a Service, of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its name.
    pub name: ObjectName,
    /// The Service it belongs to (label `kubernetes.io/service-name`), in the same namespace.
    pub service: Arc<str>,
    /// `addressType`.
    pub family: Family,
    /// Ports, those without a number left out.
    pub ports: Vec<EndpointPort>,
    /// Endpoints; each address is of [`EndpointSlice::family`].
    pub endpoints: Vec<Endpoint>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`: when what it tells of happened.
    pub triggered: Option<SystemTime>,
}

/// One port of a slice: the port that the endpoints listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// `name`, as in the Service port.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub port: NonZeroU16,
}

/// An endpoint's conditions, with the API's meaning of absent values already applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// `ready` (absent: true).
    pub ready: bool,
    /// `serving` (absent: as ready).
    pub serving: bool,
    /// `terminating` (absent: false).
    pub terminating: bool,
}

impl Conditions {
    /// Of an endpoint that takes connections.
    pub const READY: Conditions = Conditions { ready: true, serving: true, terminating: false };
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The first of `addresses`; the API says that the others are ignored by proxies.
    pub address: IpAddr,
    /// Its conditions.
    pub conditions: Conditions,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// `hints.forZones[].name`; `None` where the endpoint has no zone hints.
    pub zone_hints: Option<Box<[Arc<str>]>>,
    /// `hints.forNodes[].name`; `None` where the endpoint has no node hints.
    pub node_hints: Option<Box<[Arc<str>]>>,
}

impl Endpoint {
    /// A ready endpoint, of which nothing else is known.
    pub fn ready(address: IpAddr) -> Endpoint {
        let conditions = Conditions::READY;
        Endpoint { address, conditions, node: None, zone: None, zone_hints: None, node_hints: None }
    }
}

/// A Node; only the own node's is of interest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Arc<str>,
    /// `status.addresses` of type InternalIP then ExternalIP, in the order of the object.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Whether it is being deleted: it has a deletion timestamp or the taint `ToBeDeletedByClusterAutoscaler`.
    pub deleting: bool,
}

/// A ServiceCIDR: addresses from which ClusterIPs are allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Its name.
    pub name: Arc<str>,
    /// `spec.cidrs`.
    pub cidrs: Vec<IpNet>,
}

/// One change of the cluster, from whatever source; `None` deletes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A Service came, changed or went.
    Service(ObjectName, Option<Service>),
    /// An EndpointSlice came, changed or went.
    EndpointSlice(ObjectName, Option<EndpointSlice>),
    /// A Node came, changed or went.
    Node(Arc<str>, Option<Node>),
    /// A ServiceCIDR came, changed or went.
    ServiceCidr(Arc<str>, Option<ServiceCidr>),
}

/// Keeps one copy of each name that recurs: namespaces, nodes, zones, port names.
#[derive(Debug, Default)]
pub struct Interner {
    names: FxHashSet<Arc<str>>,
}

impl Interner {
    /// The shared copy of `name`.
    pub fn intern(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        // Names of what is gone would pile up under churn: drop them when the table is about to grow.
        if self.names.len() == self.names.capacity() && self.names.len() >= 1024 {
            self.names.retain(|n| Arc::strong_count(n) > 1);
        }
        let shared: Arc<str> = name.into();
        self.names.insert(shared.clone());
        shared
    }
}
