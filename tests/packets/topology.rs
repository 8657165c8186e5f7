//! A node, its pods, an outside client and the rest of the cluster, out of network namespaces.
//!
//! ```text
//!            ext 198.18.0.100 .101          remote: node2 198.18.0.12, node3 .13, gateway .1,
//!             │   198.18.1.100               │      their pods 10.128.1.0/24, 10.128.2.0/24
//!             └──────────────┬───────────────┘
//!                          (lan)
//!                            │
//!             node 198.18.0.11, 198.18.1.11, runs the agent and forwards
//!             ┌──────────────┼──────────────┐
//!           pod1           pod2           pod3
//!       10.128.0.64/26  .128/26        .192/26
//! ```

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};

use crate::netns::{Namespace, NamespaceSet};
use crate::server::Servers;

/// Ports that pods and the other nodes answer on.
pub const POD_PORTS: [u16; 6] = [8080, 8081, 8443, 9090, 5353, 7070];
/// The port that nodes answer on, for endpoints with the host's network.
pub const NODE_PORT: u16 = 9999;
/// Every address of the node.
pub const NODE_ADDRESSES: [&str; 5] =
    ["198.18.0.11", "198.18.1.11", "fd00:198:18::11", "10.128.0.1", "fd00:10:128::1"];

/// How the node reaches its pods.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PodNetwork {
    /// A routed link a pod, named after it.
    Routed,
    /// All pods on the bridge `cni0`.
    Bridge {
        /// `net.bridge.bridge-nf-call-iptables` and its IPv6 sibling: bridged packets pass the IP hooks.
        call_iptables: bool,
    },
}

/// The namespaces and the servers in them; all go when it is dropped.
#[derive(Debug)]
pub struct Topology {
    /// The node under test.
    pub node: Namespace,
    /// A client outside the cluster.
    pub ext: Namespace,
    /// The node's pods.
    pub pods: [Namespace; 3],
    /// The other nodes, their pods and the default gateway.
    pub remote: Namespace,
    // Servers end before their namespaces go.
    servers: Vec<Servers>,
    _namespaces: NamespaceSet,
}

impl Topology {
    /// Builds everything and starts the servers.
    ///
    /// # Errors
    /// Without root, iproute2, or what the kernel needs.
    pub fn build(pod_network: PodNetwork) -> Result<Self> {
        let roles = ["node", "ext", "pod1", "pod2", "pod3", "remote", "lan"];
        let (namespaces, [node, ext, pod1, pod2, pod3, remote, lan]) = NamespaceSet::create(roles)?;
        let pods = [pod1, pod2, pod3];
        for namespace in [&node, &ext, &pods[0], &pods[1], &pods[2], &remote, &lan] {
            prepare(namespace)?;
        }
        lan.sysctl(&[
            ("net/bridge/bridge-nf-call-iptables", "0"),
            ("net/bridge/bridge-nf-call-ip6tables", "0"),
        ])?;
        lan.ip(&lan_links(&node, &ext, &remote))?;
        node.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        node.ip(NODE_LINKS)?;
        ext.ip(EXT_LINKS)?;
        remote.ip(REMOTE_LINKS)?;
        match pod_network {
            PodNetwork::Routed => routed_pods(&node, &pods)?,
            PodNetwork::Bridge { call_iptables } => bridged_pods(&node, &pods, call_iptables)?,
        }
        let mut servers = Vec::new();
        for namespace in [&pods[0], &pods[1], &pods[2], &remote] {
            servers.push(Servers::start(namespace, &POD_PORTS)?);
        }
        for namespace in [&node, &remote] {
            servers.push(Servers::start(namespace, &[NODE_PORT])?);
        }
        Ok(Self { node, ext, pods, remote, servers, _namespaces: namespaces })
    }

    /// Starts servers of SCTP, on port 8080 of each pod's own address and of the first of node2's pods.
    ///
    /// # Errors
    /// On a kernel without SCTP.
    pub fn serve_sctp(&mut self) -> Result<()> {
        let at = |addresses: [String; 2]| {
            addresses.iter().map(|it| Ok(SocketAddr::new(it.parse()?, 8080))).collect::<Result<Vec<_>>>()
        };
        for (index, pod) in self.pods.iter().enumerate() {
            let (address, _, address6, _) = pod_addresses(index);
            self.servers.push(Servers::start_sctp(pod, &at([address, address6])?)?);
        }
        let remote = ["10.128.1.1", "fd00:10:128:1::1"].map(str::to_owned);
        self.servers.push(Servers::start_sctp(&self.remote, &at(remote)?)?);
        Ok(())
    }

    /// The namespace that a case calls by this name.
    ///
    /// # Errors
    /// On an unknown name.
    pub fn namespace(&self, name: &str) -> Result<&Namespace> {
        Ok(match name {
            "host" => &self.node,
            "ext" => &self.ext,
            "pod1" => &self.pods[0],
            "pod2" => &self.pods[1],
            "pod3" => &self.pods[2],
            "remote" => &self.remote,
            _ => bail!("no client is called {name}: ext, host, pod1, pod2, pod3 and remote are"),
        })
    }
}

/// Whether the address is one of the node's.
pub fn is_node_address(address: IpAddr) -> bool {
    NODE_ADDRESSES.iter().any(|it| it.parse() == Ok(address))
}

/// Settings that have to be there before the first link: links take over the defaults.
fn prepare(namespace: &Namespace) -> Result<()> {
    namespace.sysctl(&[
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/default/send_redirects", "0"),
        ("net/ipv4/conf/default/accept_redirects", "0"),
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
        ("net/ipv6/conf/default/router_solicitations", "0"),
        // A server answers from addresses that it has only by a local route.
        ("net/ipv6/ip_nonlocal_bind", "1"),
        // A refusal that a rate limit eats looks like silence.
        ("net/ipv4/icmp_ratelimit", "0"),
        ("net/ipv4/icmp_ratemask", "0"),
        ("net/ipv6/icmp/ratelimit", "0"),
        // A ping without a raw socket.
        ("net/ipv4/ping_group_range", "0 2147483647"),
    ])?;
    let limits = [("net/ipv4/icmp_msgs_per_sec", "1000000"), ("net/ipv4/icmp_msgs_burst", "1000000")];
    // A namespace has these since 6.13; before, the machine has.
    namespace.sysctl(&limits).or_else(|_| {
        limits.iter().try_for_each(|(key, value)| Ok(std::fs::write(format!("/proc/sys/{key}"), value)?))
    })
}

fn lan_links(node: &Namespace, ext: &Namespace, remote: &Namespace) -> String {
    let mut lines = String::from("link set lo up\nlink add br0 type bridge\nlink set br0 up\n");
    for (port, namespace) in [("node", node), ("ext", ext), ("remote", remote)] {
        let peer = namespace.name();
        lines += &format!("link add {port} type veth peer name eth0 netns {peer}\n");
        lines += &format!("link set {port} master br0 up\n");
    }
    lines
}

const NODE_LINKS: &str = "\
link set lo up
link set eth0 up
address add 198.18.0.11/24 dev eth0
address add 198.18.1.11/24 dev eth0
address add fd00:198:18::11/64 dev eth0 nodad
route add default via 198.18.0.1 src 198.18.0.11
route add 10.128.1.0/24 via 198.18.0.12
route add 10.128.2.0/24 via 198.18.0.13
route add ::/0 via fd00:198:18::1 src fd00:198:18::11
route add fd00:10:128:1::/64 via fd00:198:18::12
route add fd00:10:128:2::/64 via fd00:198:18::13
";

const EXT_LINKS: &str = "\
link set lo up
link set eth0 up
address add 198.18.0.100/24 dev eth0
address add 198.18.0.101/24 dev eth0
address add 198.18.1.100/24 dev eth0
address add fd00:198:18::101/64 dev eth0 nodad
address add fd00:198:18::100/64 dev eth0 nodad
route add default via 198.18.0.11 src 198.18.0.100
route add ::/0 via fd00:198:18::11 src fd00:198:18::100
";

// It does not forward: what nobody translated ends here.
const REMOTE_LINKS: &str = "\
link set lo up
link set eth0 up
address add 198.18.0.12/24 dev eth0
address add 198.18.0.13/24 dev eth0
address add 198.18.0.1/24 dev eth0
address add fd00:198:18::13/64 dev eth0 nodad
address add fd00:198:18::1/64 dev eth0 nodad
address add fd00:198:18::12/64 dev eth0 nodad
route add local 10.128.1.0/24 dev lo
route add local 10.128.2.0/24 dev lo
route add default via 198.18.0.11 src 198.18.0.12
route add local fd00:10:128:1::/64 dev lo
route add local fd00:10:128:2::/64 dev lo
route add ::/0 via fd00:198:18::11 src fd00:198:18::12
";

/// The pod's own address, and the ranges that it answers for.
fn pod_addresses(index: usize) -> (String, String, String, String) {
    let network = 64 * (index + 1);
    let group = index + 1;
    (
        format!("10.128.0.{}", network + 1),
        format!("10.128.0.{network}/26"),
        format!("fd00:10:128::{group}:1"),
        format!("fd00:10:128::{group}:0/112"),
    )
}

fn routed_pods(node: &Namespace, pods: &[Namespace; 3]) -> Result<()> {
    for (index, pod) in pods.iter().enumerate() {
        let (address, range, address6, range6) = pod_addresses(index);
        let link = format!("pod{}", index + 1);
        node.ip(&format!(
            "link add {link} type veth peer name eth0 netns {}\n\
             link set {link} up\n\
             address add 10.128.0.1/32 dev {link}\n\
             address add fd00:10:128::1/128 dev {link} nodad\n\
             route add {address} dev {link} src 10.128.0.1\n\
             route add {range} via {address} dev {link} src 10.128.0.1\n\
             route add {address6} dev {link} src fd00:10:128::1\n\
             route add {range6} via {address6} dev {link} src fd00:10:128::1\n",
            pod.name()
        ))?;
        pod.ip(&format!(
            "link set lo up\nlink set eth0 up\n\
             address add {address}/32 dev eth0\n\
             address add {address6}/128 dev eth0 nodad\n\
             route add local {range} dev lo\n\
             route add local {range6} dev lo\n\
             route add 10.128.0.1 dev eth0 src {address}\n\
             route add default via 10.128.0.1 dev eth0 src {address}\n\
             route add fd00:10:128::1 dev eth0 src {address6}\n\
             route add ::/0 via fd00:10:128::1 dev eth0 src {address6}\n"
        ))?;
    }
    Ok(())
}

fn bridged_pods(node: &Namespace, pods: &[Namespace; 3], call_iptables: bool) -> Result<()> {
    let call = if call_iptables { "1" } else { "0" };
    node.sysctl(&[
        ("net/bridge/bridge-nf-call-iptables", call),
        ("net/bridge/bridge-nf-call-ip6tables", call),
    ])?;
    node.ip("link add cni0 type bridge\nlink set cni0 up\n\
             address add 10.128.0.1/24 dev cni0\n\
             address add fd00:10:128::1/64 dev cni0 nodad\n")?;
    for (index, pod) in pods.iter().enumerate() {
        let (address, range, address6, range6) = pod_addresses(index);
        let link = format!("veth{}", index + 1);
        // Hairpin mode is what bridge CNIs set: with bridged packets in the IP hooks, a pod that reaches
        // itself leaves by the port that it came in by.
        node.ip(&format!(
            "link add {link} type veth peer name eth0 netns {}\n\
             link set {link} master cni0 up\n\
             link set {link} type bridge_slave hairpin on\n",
            pod.name()
        ))?;
        pod.ip(&format!(
            "link set lo up\nlink set eth0 up\n\
             address add {address}/24 dev eth0\n\
             address add {address6}/64 dev eth0 nodad\n\
             route add local {range} dev lo\n\
             route add local {range6} dev lo\n\
             route add default via 10.128.0.1 dev eth0 src {address}\n\
             route add ::/0 via fd00:10:128::1 dev eth0 src {address6}\n"
        ))?;
    }
    Ok(())
}
