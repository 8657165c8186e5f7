//! What forwarding needs to know of the node it runs on.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::service::FrontendKind;
use crate::cluster::{Endpoint, Family, Protocol, Scheduler};

/// An address, protocol and port that packets are sent to: the key of most sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Destination address.
    pub address: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

impl std::fmt::Display for Key {
    /// As `10.96.0.10:80/tcp` or `[fd00::10]:80/tcp`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.address, self.port), self.protocol)
    }
}

impl Key {
    /// Whether the agent relays its connections: the kernel translates no packet from a loopback address to elsewhere,
    /// unless the host's loopback addresses are opened to its neighbours (`route_localnet`).
    pub fn is_relayed(&self) -> bool {
        self.address.is_loopback()
    }

    /// The family, and so the table, that the key belongs to.
    pub fn family(&self) -> Family {
        Family::of(self.address)
    }
}

/// How the node tells its own pods' packets from others.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum LocalDetection {
    /// No way to tell: nothing counts as a pod, and nothing is masqueraded for being off-cluster.
    #[default]
    None,
    /// Source address in set `pod-cidrs`.
    Cidr,
    /// Received through this bridge.
    Bridge(String),
    /// Received through an interface whose name starts like this.
    InterfacePrefix(String),
}

/// The node as forwarding sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Its name; endpoints with this `nodeName` are local.
    pub name: Arc<str>,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// The addresses on which NodePorts are served. Loopback ones are not in rules: [`crate::relay`] serves them.
    pub node_port_addresses: Vec<IpAddr>,
}

impl NodeView {
    /// Whether an endpoint is on this node.
    pub fn is_local(&self, endpoint: &Endpoint) -> bool {
        endpoint.node.as_deref().is_some_and(|n| *n == *self.name)
    }
}

/// Which addresses Services may claim of those that nobody allocates to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Claimable {
    /// Every address, as with kube-proxy.
    #[default]
    All,
    /// Addresses in these ranges; without any: none.
    Within(Vec<IpNet>),
}

impl Claimable {
    fn has(&self, address: &IpAddr) -> bool {
        match self {
            Claimable::All => true,
            Claimable::Within(ranges) => ranges.iter().any(|range| range.contains(address)),
        }
    }
}

impl std::str::FromStr for Claimable {
    type Err = String;

    /// `all`, `none`, or ranges separated by commas.
    fn from_str(text: &str) -> Result<Claimable, String> {
        let range = |word: &str| {
            let word = word.trim();
            word.parse().map_err(|_| format!("{word:?} is no range such as 203.0.113.0/24, nor all or none"))
        };
        match text.trim() {
            "all" => Ok(Claimable::All),
            "none" => Ok(Claimable::Within(Vec::new())),
            ranges => Ok(Claimable::Within(ranges.split(',').map(range).collect::<Result<_, _>>()?)),
        }
    }
}

/// What is the same for every Service: the ranges of the cluster and how pods are told from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Local detection in IPv4 and in IPv6.
    pub local_detection: [LocalDetection; 2],
    /// Ranges of pod addresses, where local detection is by address.
    pub pod_cidrs: Vec<IpNet>,
    /// Ranges of service addresses.
    pub service_cidrs: Vec<IpNet>,
    /// Masquerade every connection to a ClusterIP.
    pub masquerade_all: bool,
    /// Drop what conntrack calls INVALID of connections to Services.
    pub drop_invalid: bool,
    /// Which `spec.externalIPs` count.
    pub external_ips: Claimable,
    /// Which addresses of `status.loadBalancer` count.
    pub load_balancer_ips: Claimable,
    /// Set where IPVS translates: the scheduler of Services that ask for none.
    pub ipvs: Option<Scheduler>,
}

impl Settings {
    /// Whether the operator lets Services have this address as what they claim it for.
    pub fn allows(&self, address: &IpAddr, kind: FrontendKind) -> bool {
        match kind {
            FrontendKind::ClusterIp | FrontendKind::NodePort => true,
            FrontendKind::LoadBalancer => self.load_balancer_ips.has(address),
            FrontendKind::ExternalIp => self.external_ips.has(address),
        }
    }

    /// Local detection of a family.
    pub fn local_detection(&self, family: Family) -> &LocalDetection {
        &self.local_detection[family as usize]
    }
}
