//! Other programs that serve Services, and what they left.

use nix::net::if_::if_nametoindex;

use super::{Host, Severity};
use crate::host::kube_proxy::{self, running};

/// What kube-proxy left goes on refusing and translating.
pub fn leftovers(host: &mut Host<'_>) {
    let left = kube_proxy::find(host.config.ipvs.is_none());
    for leftover in left.found {
        host.find(
            "leftovers",
            Severity::Problem,
            format!("kube-proxy's {leftover} is in the way: it takes connections, or refuses what it does not know"),
            "where no kube-proxy runs any more: `sluice cleanup --kube-proxy`, or run with --takeover",
        );
    }
}

/// One that runs makes its rules again.
pub fn kube_proxy(host: &mut Host<'_>) {
    let metrics = host.config.servers.metrics.unwrap_or(running::METRICS);
    if let Some(signs) = running::signs(metrics) {
        host.find("kube-proxy", Severity::Problem, signs, running::REMEDY);
    }
}

/// Devices by which other proxies are known, and what is to be done about them.
const DEVICES: [(&str, Severity, &str, &str); 3] = [
    (
        "kube-dummy-if",
        Severity::Problem,
        "the device kube-dummy-if of kube-router's service proxy is there: it holds service addresses",
        "run kube-router with --run-service-proxy=false, and `kube-router --cleanup-config` once",
    ),
    (
        "bpfin.cali",
        Severity::Problem,
        "Calico's eBPF data plane is here, which serves Services itself",
        "set linuxDataplane to Iptables or Nftables (bpfEnabled: false), or leave Services to Calico",
    ),
    (
        "cilium_host",
        Severity::Note,
        "Cilium is here, which may serve Services itself",
        "see that `cilium status` says KubeProxyReplacement: False (kubeProxyReplacement: false)",
    ),
];

/// Proxies that are not kube-proxy.
pub fn others(host: &mut Host<'_>) {
    for (device, severity, what, remedy) in DEVICES {
        if if_nametoindex(device).is_ok() {
            host.find("other-proxies", severity, what, remedy);
        }
    }
}
