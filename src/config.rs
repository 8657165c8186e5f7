//! What the operator decides, validated: made from flags (kube-proxy's names) and turned, with the Node object
//! and the host's addresses, into what forwarding needs.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::cluster::{Family, Index};
use crate::forwarding::{LocalDetection, NodeView, Settings};

/// A setting that makes no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The flag or field.
    pub field: &'static str,
    /// What is wrong with its value, and what would be right.
    pub problem: String,
}

impl Invalid {
    fn new(field: &'static str, problem: impl Into<String>) -> Invalid {
        Invalid { field, problem: problem.into() }
    }
}

/// `--detect-local-mode` with what belongs to it: how packets of this node's pods are told from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// By source address in `--cluster-cidr`; with an empty list there is no detection.
    ClusterCidr(Vec<IpNet>),
    /// By source address in the Node's `spec.podCIDRs`.
    NodeCidr,
    /// By the bridge that the packet came through.
    BridgeInterface(String),
    /// By the name of the interface that the packet came through.
    InterfaceNamePrefix(String),
}

/// One word of `--nodeport-addresses`: on which addresses of the node NodePorts are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddress {
    /// The Node's primary address in each family.
    Primary,
    /// Every address of the host but loopback and link-local ones.
    All,
    /// Addresses of the host in this range.
    Cidr(IpNet),
}

/// The settings of one node's agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The own Node's name.
    pub node_name: Arc<str>,
    /// How local pods are detected.
    pub detect_local: DetectLocal,
    /// Where NodePorts are served.
    pub node_port_addresses: Vec<NodePortAddress>,
    /// Masquerade every connection to a ClusterIP.
    pub masquerade_all: bool,
}

/// The longest interface name, in bytes (IFNAMSIZ - 1, linux/if.h).
const INTERFACE_NAME_MAX: usize = 15;

impl Config {
    /// Checks flag values as kube-proxy does.
    pub fn new(
        node_name: &str,
        detect_local_mode: &str,
        cluster_cidr: &str,
        bridge: &str,
        interface_prefix: &str,
        node_port_addresses: &[String],
        masquerade_all: bool,
    ) -> Result<Config, Invalid> {
        // As kube-proxy, which compares with a Node name that is a DNS label.
        let node_name = node_name.trim().to_lowercase();
        if node_name.is_empty() {
            return Err(Invalid::new("--hostname-override", "must not be empty; give the Node's name"));
        }
        let cluster_cidrs = cidr_pair("--cluster-cidr", cluster_cidr)?;
        let detect_local = match detect_local_mode {
            "" | "ClusterCIDR" => DetectLocal::ClusterCidr(cluster_cidrs),
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => {
                DetectLocal::BridgeInterface(interface_name("--pod-bridge-interface", bridge)?)
            }
            "InterfaceNamePrefix" => DetectLocal::InterfaceNamePrefix(interface_name(
                "--pod-interface-name-prefix",
                interface_prefix,
            )?),
            other => {
                let known = "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix";
                return Err(Invalid::new("--detect-local-mode", format!("{other:?} is none of {known}")));
            }
        };
        let words = node_port_addresses.iter().flat_map(|w| w.split(',')).map(str::trim);
        let node_port_addresses =
            words.filter(|w| !w.is_empty()).map(str::parse).collect::<Result<Vec<_>, _>>()?;
        let node_port_addresses =
            if node_port_addresses.is_empty() { vec![NodePortAddress::Primary] } else { node_port_addresses };
        Ok(Config { node_name: node_name.into(), detect_local, node_port_addresses, masquerade_all })
    }
}

/// One CIDR, or one of each family, separated by a comma.
fn cidr_pair(field: &'static str, value: &str) -> Result<Vec<IpNet>, Invalid> {
    let words = value.split(',').map(str::trim).filter(|w| !w.is_empty());
    let cidrs = words.map(|w| cidr(field, w)).collect::<Result<Vec<_>, _>>()?;
    match &cidrs[..] {
        [] | [_] => Ok(cidrs),
        [a, b] if Family::of_net(a) != Family::of_net(b) => Ok(cidrs),
        _ => Err(Invalid::new(field, format!("{value:?} must be one CIDR, or one IPv4 and one IPv6 CIDR"))),
    }
}

fn cidr(field: &'static str, word: &str) -> Result<IpNet, Invalid> {
    let example = "an address and a prefix length such as 10.128.0.0/16";
    IpNet::from_str(word)
        .map(|net| net.trunc())
        .map_err(|_| Invalid::new(field, format!("{word:?} is not a CIDR; it must be {example}")))
}

fn interface_name(field: &'static str, name: &str) -> Result<String, Invalid> {
    let name = name.trim();
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '"' | '*' | '\\');
    match name.len() {
        0 => Err(Invalid::new(field, "must be set with this --detect-local-mode")),
        1..=INTERFACE_NAME_MAX if !name.contains(odd) => Ok(name.into()),
        _ => Err(Invalid::new(
            field,
            format!("{name:?} is not an interface name: at most {INTERFACE_NAME_MAX} bytes, no blanks, no /"),
        )),
    }
}

impl NodePortAddress {
    fn is_for(&self, family: Family) -> bool {
        match self {
            NodePortAddress::Primary | NodePortAddress::All => true,
            NodePortAddress::Cidr(net) => Family::of_net(net) == family,
        }
    }
}

impl FromStr for NodePortAddress {
    type Err = Invalid;

    fn from_str(word: &str) -> Result<NodePortAddress, Invalid> {
        match word {
            "primary" => Ok(NodePortAddress::Primary),
            "all" => Ok(NodePortAddress::All),
            "localhost" => Err(Invalid::new(
                "--nodeport-addresses",
                "\"localhost\" is not offered: NodePorts are not served on loopback addresses; leave it out",
            )),
            word => cidr("--nodeport-addresses", word).map(NodePortAddress::Cidr),
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
    /// What holds now, for the objects in the index and the host's own addresses.
    pub fn view(&self, index: &Index, host_addresses: &[IpAddr]) -> View {
        let mut notices = Vec::new();
        let node = index.node();
        let usable = |a: &&IpAddr| !a.is_loopback() && !a.is_unspecified() && !is_link_local(a);
        let primary: Vec<IpAddr> = match node {
            Some(node) => {
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
                _ => "set --cluster-cidr, or --detect-local-mode",
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
        let masquerade_all = self.masquerade_all;
        Settings { local_detection, pod_cidrs, service_cidrs, masquerade_all }
    }
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// The addresses of this host's interfaces, sorted; loopback and link-local ones, too.
pub fn host_addresses() -> std::io::Result<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
        .map_err(std::io::Error::from)?
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

/// An address to listen on, with `port` where it names none. `None`, do not listen: an empty text, or port 0 as the
/// deprecated flags have it.
pub fn bind_address(field: &'static str, text: &str, port: u16) -> Result<Option<SocketAddr>, Invalid> {
    let text = text.trim();
    if text.is_empty() || port == 0 {
        return Ok(None);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return match address.port() {
            0 => Err(Invalid::new(field, format!("{text:?}: ports are 1 to 65535; leave it empty for none"))),
            _ => Ok(Some(address)),
        };
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let invalid =
        |_| Invalid::new(field, format!("{text:?} is not an address such as 0.0.0.0:{port} or [::]:{port}"));
    bare.parse::<IpAddr>().map(|ip| Some(SocketAddr::new(ip, port))).map_err(invalid)
}

/// This host's name, as kube-proxy makes a Node name of it: lower-case.
pub fn host_name() -> std::io::Result<String> {
    Ok(nix::unistd::gethostname()?.to_string_lossy().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Change, Node};

    fn config(
        mode: &str,
        cidr: &str,
        bridge: &str,
        prefix: &str,
        addresses: &[&str],
    ) -> Result<Config, Invalid> {
        let addresses: Vec<String> = addresses.iter().map(|a| a.to_string()).collect();
        Config::new("node1", mode, cidr, bridge, prefix, &addresses, false)
    }

    #[test]
    fn bad_values_name_the_flag() {
        for (result, flag) in [
            (config("", "10.0.0.0", "", "", &[]), "--cluster-cidr"),
            (config("", "10.0.0.0/8,10.1.0.0/16", "", "", &[]), "--cluster-cidr"),
            (config("", "10.0.0.0/8,fd00::/8,10.1.0.0/16", "", "", &[]), "--cluster-cidr"),
            (config("Magic", "", "", "", &[]), "--detect-local-mode"),
            (config("BridgeInterface", "", "", "", &[]), "--pod-bridge-interface"),
            (config("BridgeInterface", "", "a-name-of-16-byte", "", &[]), "--pod-bridge-interface"),
            (config("InterfaceNamePrefix", "", "", "a b", &[]), "--pod-interface-name-prefix"),
            (config("", "", "", "", &["nowhere"]), "--nodeport-addresses"),
            (config("", "", "", "", &["localhost"]), "--nodeport-addresses"),
        ] {
            assert_eq!(result.unwrap_err().field, flag);
        }
    }

    #[test]
    fn a_bind_address_may_lack_its_port() {
        let parse =
            |text, port| bind_address("--healthz-bind-address", text, port).map(|a| a.map(|a| a.to_string()));
        for (text, port, expected) in [
            ("0.0.0.0", 10256, Some("0.0.0.0:10256")),
            ("0.0.0.0:1", 10256, Some("0.0.0.0:1")),
            ("::", 10256, Some("[::]:10256")),
            ("[::1]", 10256, Some("[::1]:10256")),
            ("[::1]:2", 10256, Some("[::1]:2")),
            ("", 10256, None),
            ("127.0.0.1:3", 0, None),
        ] {
            assert_eq!(parse(text, port), Ok(expected.map(Into::into)), "{text}");
        }
        for bad in ["host", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", ":10256", "[10.0.0.1:5", "[::1]x"] {
            assert_eq!(parse(bad, 10256).unwrap_err().field, "--healthz-bind-address", "{bad}");
        }
    }

    #[test]
    fn node_ports_are_on_the_primary_addresses_unless_told_otherwise() {
        let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<IpAddr>>();
        let host = parse(&["127.0.0.1", "10.0.0.1", "10.0.0.2", "192.168.0.1", "::1", "fe80::1", "fd00::1"]);
        let mut index = Index::new("node1");
        let at = |index: &Index, words: &[&str]| {
            config("", "10.1.0.0/16", "", "", words).unwrap().view(index, &host).node.node_port_addresses
        };
        assert_eq!(at(&index, &[]), parse(&["10.0.0.1", "10.0.0.2", "192.168.0.1", "fd00::1"]), "no Node");
        index.apply(Change::Node(
            "node1".into(),
            Some(Node {
                name: "node1".into(),
                addresses: parse(&["10.0.0.2", "10.0.0.1", "fd00::1"]),
                ..Node::default()
            }),
        ));
        assert_eq!(at(&index, &[]), parse(&["10.0.0.2", "fd00::1"]));
        assert_eq!(at(&index, &["primary,192.168.0.0/16"]), parse(&["10.0.0.2", "192.168.0.1", "fd00::1"]));
        assert_eq!(at(&index, &["0.0.0.0/0"]), parse(&["10.0.0.1", "10.0.0.2", "192.168.0.1", "fd00::1"]));
        assert_eq!(at(&index, &["127.0.0.0/8"]), parse(&["fd00::1"]), "never on loopback");
    }

    #[test]
    fn a_family_without_a_cidr_has_no_local_detection() {
        let index = Index::new("node1");
        let view = config("", "10.1.0.0/16", "", "", &[]).unwrap().view(&index, &[]);
        assert_eq!(view.settings.local_detection, [LocalDetection::Cidr, LocalDetection::None]);
        let view = config("", "", "", "", &[]).unwrap().view(&index, &[]);
        assert_eq!(view.settings.local_detection, [LocalDetection::None, LocalDetection::None]);
        assert!(view.notices.iter().any(|n| n.contains("--cluster-cidr")), "{:?}", view.notices);
    }
}
