//! What the operator decides, validated: made from kube-proxy's flags and its configuration file, and turned, with
//! the Node object and the host's addresses, into what forwarding needs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::cluster::{Family, Index, Scheduler};
use crate::forwarding::{Claimable, LocalDetection, NodeView, Settings};

pub mod duration;
pub mod file;
pub mod merge;
pub mod reference;
mod validate;

/// A setting that makes no sense.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The field's path in the file, or the flag where that was given.
    pub field: String,
    /// What is wrong with its value, and what would be right.
    pub problem: String,
}

/// All settings that make no sense.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub struct InvalidConfig(pub Vec<Invalid>);

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [one] = &self.0[..] {
            return one.fmt(f);
        }
        write!(f, "{} settings make no sense:", self.0.len())?;
        self.0.iter().try_for_each(|invalid| write!(f, "\n  {invalid}"))
    }
}

/// `detectLocalMode` with what belongs to it: how packets of this node's pods are told from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// By source address in `clusterCIDR`; with an empty list there is no detection.
    ClusterCidr(Vec<IpNet>),
    /// By source address in the Node's `spec.podCIDRs`.
    NodeCidr,
    /// By the bridge that the packet came through.
    BridgeInterface(String),
    /// By the name of the interface that the packet came through.
    InterfaceNamePrefix(String),
}

/// One word of `nodePortAddresses`: on which addresses of the node NodePorts are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddress {
    /// The Node's primary address in each family.
    Primary,
    /// Every address of the host but loopback and link-local ones.
    All,
    /// 127.0.0.1 and ::1, by [`crate::relay`].
    Localhost,
    /// Addresses of the host in this range.
    Cidr(IpNet),
}

/// The settings of one node's agent.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The own Node's name.
    pub node_name: Arc<str>,
    /// How local pods are detected.
    pub detect_local: DetectLocal,
    /// Where NodePorts are served.
    pub node_port_addresses: Vec<NodePortAddress>,
    /// Masquerade every connection to a ClusterIP.
    pub masquerade_all: bool,
    /// Which `spec.externalIPs` count.
    pub external_ips: Claimable,
    /// Which addresses of `status.loadBalancer` count.
    pub load_balancer_ips: Claimable,
    /// The Node's primary address of its family, in place of what the Node's status says.
    pub bind_address: Option<IpAddr>,
    /// How long changes may wait to be written, in the eyes of the health check. There is no periodic comparison:
    /// somebody else's commit is seen by nf_tables' generation id.
    pub sync_period: Duration,
    /// Least time between two commits.
    pub min_sync_period: Duration,
    /// How the API server is reached.
    pub client: Client,
    /// The HTTP servers.
    pub servers: Servers,
    /// Settings of the kernel's connection tracking.
    pub conntrack: Conntrack,
    /// Drop packets of connections to Services that conntrack calls INVALID, unless conntrack is liberal.
    pub drop_invalid: bool,
    /// Mode ipvs with its settings; `None`: mode nftables.
    pub ipvs: Option<Ipvs>,
    /// The process's `oom_score_adj`, -1000 to 1000.
    pub oom_score_adj: i32,
    /// Logs.
    pub logging: Logging,
    /// Gates as given; none changes anything.
    pub feature_gates: BTreeMap<String, bool>,
    /// Decisions that the operator should find in the log, once.
    pub notices: Vec<String>,
    /// What the operator should be warned of, once.
    pub warnings: Vec<String>,
}

/// Settings of mode ipvs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ipvs {
    /// The scheduler of Services that ask for none.
    pub scheduler: Scheduler,
    /// Virtual services in these ranges are somebody else's, unless a Service asks for them.
    pub exclude_cidrs: Vec<IpNet>,
    /// Set arp_ignore and arp_announce for all devices.
    pub strict_arp: bool,
    /// How long a TCP connection without packets is remembered; `None`: as the kernel has it.
    pub tcp_timeout: Option<Duration>,
    /// The same after a FIN.
    pub tcp_fin_timeout: Option<Duration>,
    /// The same of UDP.
    pub udp_timeout: Option<Duration>,
    /// Tell what each Service port's virtual services carry.
    pub service_metrics: bool,
}

/// How the API server is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// `clientConnection.kubeconfig`; without it and without `master`: the Pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// `--master`: the server's URL, in place of the kubeconfig's.
    pub master: Option<String>,
}

/// The HTTP servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Servers {
    /// Health checks; `None`: no such server.
    pub healthz: Option<SocketAddr>,
    /// Metrics; `None`: no such server.
    pub metrics: Option<SocketAddr>,
    /// Whether an address that cannot be bound ends the process; otherwise it is tried again.
    pub bind_hard_fail: bool,
    /// `enableProfiling`.
    pub profiling: bool,
    /// `showHiddenMetricsForVersion`, as given.
    pub show_hidden_metrics_for_version: String,
}

/// Settings of the kernel's connection tracking. `None` and 0 leave what the host has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// Entries per CPU core; 0: the limit stays.
    pub max_per_core: u32,
    /// Least limit of entries, if `max_per_core` is not 0.
    pub min: u32,
    /// `nf_conntrack_tcp_timeout_established`.
    pub tcp_established_timeout: Option<Duration>,
    /// `nf_conntrack_tcp_timeout_close_wait`.
    pub tcp_close_wait_timeout: Option<Duration>,
    /// Set `nf_conntrack_tcp_be_liberal`.
    pub tcp_be_liberal: bool,
    /// `nf_conntrack_udp_timeout`.
    pub udp_timeout: Option<Duration>,
    /// `nf_conntrack_udp_timeout_stream`.
    pub udp_stream_timeout: Option<Duration>,
}

/// Logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Logging {
    /// JSON, not text.
    pub json: bool,
    /// kube-proxy's `-v`.
    pub verbosity: u32,
}

impl NodePortAddress {
    fn is_for(&self, family: Family) -> bool {
        match self {
            NodePortAddress::Primary | NodePortAddress::All | NodePortAddress::Localhost => true,
            NodePortAddress::Cidr(net) => Family::of_net(net) == family,
        }
    }
}

/// What forwarding gets to know, and what the operator should be told about how it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The node.
    pub node: NodeView,
    /// The settings for all Services.
    pub settings: Settings,
    /// Facts worth a line in the log when they are new.
    pub notices: Vec<String>,
}

impl Config {
    /// Whether another configuration needs nothing but another look at the objects: neither another data plane, nor
    /// other servers, nor another source. Settings of the kernel are not looked at.
    pub fn differs_in_traffic_only(&self, other: &Config) -> bool {
        let relays = |config: &Config| config.node_port_addresses.contains(&NodePortAddress::Localhost);
        let period = |config: &Config| config.ipvs.as_ref().map(|_| config.sync_period);
        self.node_name == other.node_name
            && self.client == other.client
            && self.servers == other.servers
            && self.ipvs == other.ipvs
            && self.oom_score_adj == other.oom_score_adj
            && self.logging == other.logging
            && relays(self) == relays(other)
            && period(self) == period(other)
    }

    /// What holds now, for the objects in the index and the host's own addresses.
    pub fn view(&self, index: &Index, host_addresses: &[IpAddr]) -> View {
        let mut notices = Vec::new();
        let node = index.node();
        let usable = |a: &&IpAddr| !a.is_loopback() && !a.is_unspecified() && !is_link_local(a);
        let primary: Vec<IpAddr> = match node {
            Some(node) => {
                if index.is_node_gone() {
                    notices.push(format!(
                        "Node {} is gone; its addresses, zone and podCIDRs stay as they were",
                        node.name
                    ));
                }
                let first = |family| node.addresses.iter().find(|a| Family::of(**a) == family);
                let primary: Vec<IpAddr> = Family::ALL.into_iter().filter_map(first).copied().collect();
                if primary.is_empty() {
                    notices.push(format!(
                        "Node {} has no address in its status; NodePorts are not served",
                        node.name
                    ));
                }
                primary
            }
            None => {
                let own: Vec<IpAddr> = host_addresses.iter().filter(usable).copied().collect();
                let list = own.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
                let list = if list.is_empty() { "none" } else { &list };
                notices.push(format!(
                    "there is no Node {:?}: NodePorts are served on this host's own addresses ({list}); zone and \
                     podCIDRs are unknown",
                    self.node_name
                ));
                own
            }
        };
        let primary = self.with_bind_address(primary);
        let mut node_port_addresses: Vec<IpAddr> = Vec::new();
        for family in Family::ALL {
            let of_family = |a: &&IpAddr| Family::of(**a) == family;
            let own = || host_addresses.iter().filter(usable).filter(of_family);
            let mut words = self.node_port_addresses.iter().filter(|word| word.is_for(family)).peekable();
            // A family that the list says nothing about has the default.
            if words.peek().is_none() {
                node_port_addresses.extend(primary.iter().filter(of_family));
            }
            for word in words {
                match word {
                    NodePortAddress::Primary => node_port_addresses.extend(primary.iter().filter(of_family)),
                    NodePortAddress::Localhost => node_port_addresses.push(family.loopback()),
                    NodePortAddress::All => node_port_addresses.extend(own()),
                    NodePortAddress::Cidr(net) => {
                        node_port_addresses.extend(own().filter(|a| net.contains(*a)))
                    }
                }
            }
        }
        node_port_addresses.sort_unstable();
        node_port_addresses.dedup();
        let settings = self.settings(index, &mut notices);
        let zone = node.and_then(|n| n.zone.clone());
        let node = NodeView { name: self.node_name.clone(), zone, node_port_addresses };
        View { node, settings, notices }
    }

    fn with_bind_address(&self, mut primary: Vec<IpAddr>) -> Vec<IpAddr> {
        if let Some(own) = self.bind_address {
            primary.retain(|a| Family::of(*a) != Family::of(own));
            primary.push(own);
        }
        primary
    }

    fn settings(&self, index: &Index, notices: &mut Vec<String>) -> Settings {
        let (detection, pod_cidrs) = match &self.detect_local {
            DetectLocal::ClusterCidr(cidrs) => (LocalDetection::Cidr, cidrs.clone()),
            DetectLocal::NodeCidr => {
                let cidrs = index.node().map_or_else(Vec::new, |n| n.pod_cidrs.clone());
                (LocalDetection::Cidr, cidrs)
            }
            DetectLocal::BridgeInterface(name) => (LocalDetection::Bridge(name.clone()), vec![]),
            DetectLocal::InterfaceNamePrefix(prefix) => {
                (LocalDetection::InterfacePrefix(prefix.clone()), vec![])
            }
        };
        let of_family = |family| match detection {
            LocalDetection::Cidr if !pod_cidrs.iter().any(|c| Family::of_net(c) == family) => {
                LocalDetection::None
            }
            _ => detection.clone(),
        };
        let local_detection = Family::ALL.map(of_family);
        if local_detection.iter().all(|d| *d == LocalDetection::None) {
            let remedy = match self.detect_local {
                DetectLocal::NodeCidr => "the Node has no spec.podCIDRs",
                _ => "set clusterCIDR (--cluster-cidr), or detectLocalMode",
            };
            notices.push(format!(
                "pods cannot be told from outside clients ({remedy}): connections from outside to a ClusterIP keep \
                 their source address and may fail"
            ));
        }
        let service_cidrs: Vec<IpNet> = index.service_cidrs().collect();
        if service_cidrs.is_empty() {
            notices.push(
                "there is no ServiceCIDR: packets to service addresses that no Service has are not dropped"
                    .into(),
            );
        }
        Settings {
            local_detection,
            pod_cidrs,
            service_cidrs,
            masquerade_all: self.masquerade_all,
            drop_invalid: self.drop_invalid && !self.conntrack.tcp_be_liberal,
            external_ips: self.external_ips.clone(),
            load_balancer_ips: self.load_balancer_ips.clone(),
            ipvs: self.ipvs.as_ref().map(|ipvs| ipvs.scheduler),
        }
    }
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The addresses of this host's interfaces, sorted; loopback and link-local ones, too, but not those that are there for
/// the sake of IPVS.
pub fn host_addresses() -> std::io::Result<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
        .map_err(std::io::Error::from)?
        .filter(|interface| interface.interface_name != crate::dataplane::ipvs::model::DEVICE)
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// This host's name, as kube-proxy makes a Node name of it: lower-case.
pub fn host_name() -> std::io::Result<String> {
    Ok(nix::unistd::gethostname()?.to_string_lossy().to_lowercase())
}

#[cfg(test)]
mod tests;
