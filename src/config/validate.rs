//! From the file's form to [`Config`]; everything that makes no sense is found at once.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use super::duration::GoDuration;
use super::file::KubeProxyConfiguration;
use super::merge::Merged;
use super::{
    Client, Config, Conntrack, DetectLocal, Invalid, InvalidConfig, Ipvs, Logging, NodePortAddress, Servers,
};
use crate::cluster::{Scheduler, UnknownScheduler};
use crate::forwarding::Claimable;

/// The longest interface name, in bytes (IFNAMSIZ - 1, linux/if.h).
const INTERFACE_NAME_MAX: usize = 15;

/// Gates around Services and logs that kube-proxy 1.36 and 1.37 know. What they turn on is here by itself, or has no
/// counterpart that an operator could miss.
const KNOWN_GATES: [&str; 13] = [
    "AllAlpha",
    "AllBeta",
    "ComponentFlagz",
    "ComponentStatusz",
    "ContextualLogging",
    "KubeProxyIPVS",
    "LoggingAlphaOptions",
    "LoggingBetaOptions",
    "MultiCIDRServiceAllocator",
    "NFTablesNetlink",
    "NFTablesProxyMode",
    "PreferSameTrafficDistribution",
    "WatchListClient",
];

impl Config {
    /// Checks a configuration as kube-proxy does, and takes over what has an effect here. `host_name` is the Node's
    /// name where none is set.
    ///
    /// # Errors
    /// With every setting that makes no sense.
    pub fn new(merged: &Merged, host_name: &str) -> Result<Config, InvalidConfig> {
        let c = &merged.configuration;
        let mut problems = Problems { merged, found: Vec::new() };
        let mut warnings = merged.warnings.clone();
        let mut notices: Vec<String> = mode(c, &mut problems).into_iter().collect();
        warnings.extend(gates(c));
        let (sync_period, min_sync_period) = match c.mode.as_str() {
            "ipvs" => (c.ipvs.sync_period, c.ipvs.min_sync_period),
            _ => (c.nftables.sync_period, c.nftables.min_sync_period),
        };
        let config = Config {
            node_name: node_name(c, host_name, &mut problems).into(),
            detect_local: detect_local(c, &mut problems),
            node_port_addresses: node_port_addresses(c, &mut problems, &mut notices, &mut warnings),
            masquerade_all: c.nftables.masquerade_all || (c.mode != "nftables" && c.iptables.masquerade_all),
            // Sluice's own flags have these and drop_invalid; kube-proxy has no such settings.
            external_ips: Claimable::All,
            load_balancer_ips: Claimable::All,
            bind_address: bind_address(c, &mut problems),
            sync_period: sync_period.length().unwrap_or_default(),
            min_sync_period: min_sync_period.length().unwrap_or_default(),
            client: Client {
                kubeconfig: Some(&c.client_connection.kubeconfig).filter(|k| !k.is_empty()).map(Into::into),
                master: merged.master.clone(),
            },
            servers: Servers {
                healthz: server("healthzBindAddress", &c.healthz_bind_address, &mut problems),
                metrics: server("metricsBindAddress", &c.metrics_bind_address, &mut problems),
                bind_hard_fail: c.bind_address_hard_fail,
                profiling: c.enable_profiling,
                show_hidden_metrics_for_version: c.show_hidden_metrics_for_version.clone(),
            },
            conntrack: conntrack(c, &mut problems),
            drop_invalid: false,
            ipvs: ipvs(c, &mut problems),
            oom_score_adj: c.oom_score_adj.unwrap_or_default(),
            logging: logging(c, &mut problems),
            feature_gates: c.feature_gates.clone(),
            notices,
            warnings,
        };
        periods_and_ranges(c, &mut problems);
        match problems.found {
            found if found.is_empty() => Ok(config),
            found => Err(InvalidConfig(found)),
        }
    }
}

/// What was found so far.
struct Problems<'a> {
    merged: &'a Merged,
    found: Vec<Invalid>,
}

impl Problems<'_> {
    fn add(&mut self, field: &str, problem: impl Into<String>) {
        let invalid = Invalid { field: self.merged.name(field), problem: problem.into() };
        // One flag may set two fields.
        if !self.found.contains(&invalid) {
            self.found.push(invalid);
        }
    }

    fn check(&mut self, right: bool, field: &str, problem: &str) {
        if !right {
            self.add(field, problem);
        }
    }
}

fn mode(c: &KubeProxyConfiguration, problems: &mut Problems<'_>) -> Option<String> {
    match c.mode.as_str() {
        "nftables" | "ipvs" => None,
        "" => Some("no mode is set: services are served with nftables".into()),
        "iptables" => Some("mode iptables is not offered: services are served with nftables".into()),
        other => {
            problems.add("mode", format!("{other:?} is none of nftables, iptables, ipvs"));
            None
        }
    }
}

fn gates(c: &KubeProxyConfiguration) -> Option<String> {
    let unknown: Vec<&str> =
        c.feature_gates.keys().map(String::as_str).filter(|gate| !KNOWN_GATES.contains(gate)).collect();
    (!unknown.is_empty()).then(|| format!("feature gates that are unknown here: {}", unknown.join(", ")))
}

fn node_name(c: &KubeProxyConfiguration, host_name: &str, problems: &mut Problems<'_>) -> String {
    let name = if c.hostname_override.is_empty() { host_name } else { &c.hostname_override };
    // As kube-proxy, which compares with a Node name that is a DNS label.
    let name = name.trim().to_lowercase();
    problems.check(!name.is_empty(), "hostnameOverride", "must not be empty; give the Node's name");
    name
}

fn detect_local(c: &KubeProxyConfiguration, problems: &mut Problems<'_>) -> DetectLocal {
    let cluster_cidrs = cluster_cidrs(&c.cluster_cidr, problems);
    match c.detect_local_mode.as_str() {
        "ClusterCIDR" => DetectLocal::ClusterCidr(cluster_cidrs),
        "NodeCIDR" => DetectLocal::NodeCidr,
        "BridgeInterface" => {
            let (field, name) = ("detectLocal.bridgeInterface", c.detect_local.bridge_interface.trim());
            interface_name(field, name, problems);
            DetectLocal::BridgeInterface(name.into())
        }
        "InterfaceNamePrefix" => {
            let (field, name) =
                ("detectLocal.interfaceNamePrefix", c.detect_local.interface_name_prefix.trim());
            interface_name(field, name, problems);
            DetectLocal::InterfaceNamePrefix(name.into())
        }
        other => {
            let known = "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix";
            problems.add("detectLocalMode", format!("{other:?} is none of {known}"));
            DetectLocal::ClusterCidr(cluster_cidrs)
        }
    }
}

/// CIDRs separated by commas. kube-proxy takes one of each family; clusters that have grown have more.
fn cluster_cidrs(value: &str, problems: &mut Problems<'_>) -> Vec<IpNet> {
    let words = value.split(',').map(str::trim).filter(|w| !w.is_empty());
    words.filter_map(|w| cidr("clusterCIDR", w, problems)).collect()
}

fn cidr(field: &str, word: &str, problems: &mut Problems<'_>) -> Option<IpNet> {
    let net = IpNet::from_str(word).map(|net| net.trunc()).ok();
    if net.is_none() {
        let example = "an address and a prefix length such as 10.128.0.0/16";
        problems.add(field, format!("{word:?} is not a CIDR; it must be {example}"));
    }
    net
}

fn interface_name(field: &str, name: &str, problems: &mut Problems<'_>) {
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '"' | '*' | '\\');
    match name.len() {
        0 => problems.add(field, "must be set with this detectLocalMode"),
        1..=INTERFACE_NAME_MAX if !name.contains(odd) => {}
        _ => problems.add(
            field,
            format!("{name:?} is not an interface name: at most {INTERFACE_NAME_MAX} bytes, no blanks, no /"),
        ),
    }
}

fn node_port_addresses(
    c: &KubeProxyConfiguration,
    problems: &mut Problems<'_>,
    notices: &mut Vec<String>,
    warnings: &mut Vec<String>,
) -> Vec<NodePortAddress> {
    let mut addresses = Vec::new();
    for (i, word) in c.node_port_addresses.iter().enumerate() {
        match word.trim() {
            "primary" => addresses.push(NodePortAddress::Primary),
            "all" => addresses.push(NodePortAddress::All),
            "localhost" => addresses.push(NodePortAddress::Localhost),
            word => {
                let net = cidr(&format!("nodePortAddresses[{i}]"), word, problems);
                addresses.extend(net.map(NodePortAddress::Cidr));
            }
        }
    }
    let in_loopback =
        |a: &NodePortAddress| matches!(a, NodePortAddress::Cidr(net) if net.addr().is_loopback());
    if addresses.iter().any(in_loopback) {
        warnings.push(
            "nodePortAddresses: ranges give no NodePorts on loopback addresses; the word localhost does, for TCP"
                .into(),
        );
    }
    if addresses.contains(&NodePortAddress::Localhost) {
        notices.push(
            "nodePortAddresses: localhost serves TCP NodePorts on 127.0.0.1 and [::1]; UDP and SCTP ones are not \
             served there"
                .into(),
        );
    }
    if addresses.is_empty() {
        addresses.push(NodePortAddress::Primary);
    }
    addresses
}

fn bind_address(c: &KubeProxyConfiguration, problems: &mut Problems<'_>) -> Option<IpAddr> {
    match c.bind_address.parse::<IpAddr>() {
        Ok(address) => Some(address).filter(|a| !a.is_unspecified()),
        Err(_) => {
            problems.add("bindAddress", format!("{:?} is not an IP address", c.bind_address));
            None
        }
    }
}

/// `IP:port`, or nothing.
fn server(field: &str, value: &str, problems: &mut Problems<'_>) -> Option<SocketAddr> {
    if value.is_empty() {
        return None;
    }
    match value.parse::<SocketAddr>() {
        Ok(address) if address.port() > 0 => Some(address),
        _ => {
            let right =
                "it must be an IP address and a port from 1 to 65535, such as 127.0.0.1:10249 or [::1]:10249";
            problems.add(field, format!("{value:?}: {right}"));
            None
        }
    }
}

/// A time where 0 leaves what the host has.
fn timeout(field: &str, value: GoDuration, problems: &mut Problems<'_>) -> Option<Duration> {
    problems.check(value >= GoDuration::ZERO, field, "must be greater than or equal to 0");
    value.length().filter(|length| !length.is_zero())
}

fn count(field: &str, value: Option<i32>, problems: &mut Problems<'_>) -> u32 {
    u32::try_from(value.unwrap_or_default()).unwrap_or_else(|_| {
        problems.add(field, "must be greater than or equal to 0");
        0
    })
}

fn conntrack(c: &KubeProxyConfiguration, problems: &mut Problems<'_>) -> Conntrack {
    let c = &c.conntrack;
    let mut time = |field: &str, value| timeout(&format!("conntrack.{field}"), value, problems);
    let tcp_established_timeout =
        time("tcpEstablishedTimeout", c.tcp_established_timeout.unwrap_or_default());
    let tcp_close_wait_timeout = time("tcpCloseWaitTimeout", c.tcp_close_wait_timeout.unwrap_or_default());
    let udp_timeout = time("udpTimeout", c.udp_timeout);
    let udp_stream_timeout = time("udpStreamTimeout", c.udp_stream_timeout);
    Conntrack {
        max_per_core: count("conntrack.maxPerCore", c.max_per_core, problems),
        min: count("conntrack.min", c.min, problems),
        tcp_established_timeout,
        tcp_close_wait_timeout,
        tcp_be_liberal: c.tcp_be_liberal,
        udp_timeout,
        udp_stream_timeout,
    }
}

/// The settings of mode ipvs; in other modes they are not looked at.
fn ipvs(c: &KubeProxyConfiguration, problems: &mut Problems<'_>) -> Option<Ipvs> {
    if c.mode != "ipvs" {
        return None;
    }
    let c = &c.ipvs;
    let scheduler = match c.scheduler.as_str() {
        "" => Scheduler::default(),
        name => name.parse().unwrap_or_else(|error: UnknownScheduler| {
            problems.add("ipvs.scheduler", error.to_string());
            Scheduler::default()
        }),
    };
    let cidrs = c.exclude_cidrs.iter().enumerate();
    let exclude_cidrs =
        cidrs.filter_map(|(i, word)| cidr(&format!("ipvs.excludeCIDRs[{i}]"), word, problems)).collect();
    Some(Ipvs {
        scheduler,
        exclude_cidrs,
        strict_arp: c.strict_arp,
        tcp_timeout: timeout("ipvs.tcpTimeout", c.tcp_timeout, problems),
        tcp_fin_timeout: timeout("ipvs.tcpFinTimeout", c.tcp_fin_timeout, problems),
        udp_timeout: timeout("ipvs.udpTimeout", c.udp_timeout, problems),
        service_metrics: c.service_metrics,
    })
}

fn logging(c: &KubeProxyConfiguration, problems: &mut Problems<'_>) -> Logging {
    let known = matches!(c.logging.format.as_str(), "text" | "json");
    if !known {
        problems.add("logging.format", format!("{:?} is neither text nor json", c.logging.format));
    }
    Logging { json: c.logging.format == "json", verbosity: c.logging.verbosity }
}

fn periods_and_ranges(c: &KubeProxyConfiguration, problems: &mut Problems<'_>) {
    let (iptables, ipvs, nftables) = (&c.iptables, &c.ipvs, &c.nftables);
    // Periods of mode iptables do nothing here; flags set those of nftables, too.
    for (section, sync, least, checked) in [
        ("nftables", nftables.sync_period, nftables.min_sync_period, true),
        ("ipvs", ipvs.sync_period, ipvs.min_sync_period, c.mode == "ipvs"),
    ] {
        let (sync_field, least_field) = (format!("{section}.syncPeriod"), format!("{section}.minSyncPeriod"));
        if checked {
            problems.check(sync > GoDuration::ZERO, &sync_field, "must be greater than 0");
            problems.check(least >= GoDuration::ZERO, &least_field, "must be greater than or equal to 0");
            // A syncPeriod that is not positive is wrong by itself.
            let problem = format!("must be less than or equal to syncPeriod ({sync})");
            problems.check(sync <= GoDuration::ZERO || sync >= least, &least_field, &problem);
        }
    }
    for (field, bit) in [
        ("iptables.masqueradeBit", iptables.masquerade_bit),
        ("nftables.masqueradeBit", nftables.masquerade_bit),
    ] {
        problems.check(bit.is_none_or(|b| (0..=31).contains(&b)), field, "must be within 0 to 31");
    }
    let oom = c.oom_score_adj.unwrap_or_default();
    problems.check((-1000..=1000).contains(&oom), "oomScoreAdj", "must be within -1000 to 1000");
    problems.check(c.config_sync_period > GoDuration::ZERO, "configSyncPeriod", "must be greater than 0");
    let burst = c.client_connection.burst;
    problems.check(burst >= 0, "clientConnection.burst", "must be greater than or equal to 0");
}
