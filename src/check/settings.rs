//! Settings of the kernel.

use std::fs;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

use super::{Host, Severity};
use crate::cluster::Family;
use crate::config::DetectLocal;
use crate::sysctl::{self, IPV4_FORWARD, IPV6_FORWARD, IPVS_CONNTRACK, MAX, Setting};

const COUNT: &str = "net.netfilter.nf_conntrack_count";

/// What the configuration asks for, forwarding for every family with Services, and whether conntrack has room.
pub fn sysctls(host: &mut Host<'_>) {
    let mut wanted = sysctl::wanted(host.config, sysctl::cpus());
    if host.cluster.is_some()
        && host.families().contains(&Family::Ipv6)
        && wanted.iter().all(|s| s.name != IPV6_FORWARD)
    {
        wanted.push(Setting { name: IPV6_FORWARD, value: 1, at_least: true });
    }
    for (Setting { name, value, .. }, now) in sysctl::differing(&wanted) {
        let broken = match name {
            IPV4_FORWARD | IPV6_FORWARD => Some("packets for pods are not forwarded"),
            // Without IPVS it is not there; that is found elsewhere.
            IPVS_CONNTRACK if now.is_ok() => {
                Some("nothing is masqueraded in mode ipvs, and answers go astray")
            }
            _ => None,
        };
        let is = match now {
            Ok(now) => format!("{name} is {now}, not {value}"),
            Err(error) => format!("{name} cannot be read: {error}"),
        };
        let remedy = format!(
            "sysctl -w {name}={value} on the host, or `sluice run --init-only` in a privileged init container"
        );
        match broken {
            Some(what) => host.find("settings", Severity::Problem, format!("{is}: {what}"), remedy),
            None => host.find("settings", Severity::Note, is, remedy),
        }
    }
    if let (Ok(count), Ok(max)) = (sysctl::read(COUNT), sysctl::read(MAX))
        && count > max / 10 * 9
    {
        host.find(
            "settings",
            Severity::Warning,
            format!("{count} of {max} tracked connections are in use: beyond that new ones are dropped"),
            format!("sysctl -w {MAX}={}, or a larger conntrack.maxPerCore or conntrack.min", max * 2),
        );
    }
}

/// Pods on one bridge that reach each other through a Service: the answers must come by the host's translation.
pub fn bridges(host: &mut Host<'_>) {
    for bridge in pod_bridges(host) {
        for (family, name) in [
            (Family::Ipv4, "net.bridge.bridge-nf-call-iptables"),
            (Family::Ipv6, "net.bridge.bridge-nf-call-ip6tables"),
        ] {
            if !host.families().contains(&family) || sysctl::read(name).is_ok_and(|value| value == 1) {
                continue;
            }
            host.find(
                "br-netfilter",
                Severity::Warning,
                format!(
                    "pods are on bridge {bridge} and {name} is not 1: where a pod reaches another of this host through a \
                     Service, the answer goes past the translation and the connection fails"
                ),
                format!("modprobe br_netfilter && sysctl -w {name}=1"),
            );
        }
    }
}

/// The configured bridge, or those with an address out of the pods' ranges.
fn pod_bridges(host: &Host<'_>) -> Vec<String> {
    let is_bridge = |name: &str| fs::exists(format!("/sys/class/net/{name}/bridge")).unwrap_or_default();
    let cidrs = match &host.config.detect_local {
        DetectLocal::BridgeInterface(name) => {
            return Some(name.clone()).filter(|name| is_bridge(name)).into_iter().collect();
        }
        DetectLocal::ClusterCidr(cidrs) => cidrs.clone(),
        _ => host.cluster.and_then(|c| c.index.node()).map(|node| node.pod_cidrs.clone()).unwrap_or_default(),
    };
    let mut bridges = Vec::new();
    for interface in getifaddrs().into_iter().flatten() {
        let address = interface.address.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        });
        let of_pods = address.is_some_and(|address| cidrs.iter().any(|cidr| cidr.contains(&address)));
        if of_pods && is_bridge(&interface.interface_name) && !bridges.contains(&interface.interface_name) {
            bridges.push(interface.interface_name);
        }
    }
    bridges
}
