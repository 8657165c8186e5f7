//! The table itself.

use super::Kind::{Bool, Duration, Float, Gates, Int, List, Structure, Text, VModules};
use super::Topic::{Conntrack, Iptables, Ipvs, Logs, Objects, Process, Servers, Sync, Traffic, Windows};
use super::Verdict::{Honoured, Partly, Silent, Warned};
use super::{Entry, Kind, Topic, Verdict};

const fn entry(
    field: &'static str,
    flag: &'static str,
    kind: Kind,
    verdict: Verdict,
    topic: Topic,
    text: &'static str,
) -> Entry {
    Entry { field, flag, kind, verdict, topic, deprecated: false, text }
}

const fn deprecated(entry: Entry) -> Entry {
    Entry { deprecated: true, ..entry }
}

/// All of it, in the order of the help.
#[rustfmt::skip]
pub static TABLE: &[Entry] = &[
    entry("clientConnection.kubeconfig", "kubeconfig", Text, Honoured, Objects, "Path of a kubeconfig file that says how to reach the API server; without it the Pod's service account does."),
    entry("", "master", Text, Honoured, Objects, "URL of the API server, in place of the kubeconfig's; counts beside --config, too."),
    entry("clientConnection.acceptContentTypes", "", Text, Warned, Objects, "Objects are asked for as JSON."),
    entry("clientConnection.contentType", "kube-api-content-type", Text, Warned, Objects, "Objects are asked for as JSON."),
    entry("clientConnection.qps", "kube-api-qps", Float, Silent, Objects, "There are four watches and a few events, nothing to slow down."),
    entry("clientConnection.burst", "kube-api-burst", Int, Silent, Objects, "See qps."),
    entry("configSyncPeriod", "config-sync-period", Duration, Silent, Objects, "Changes come by watch; there is no second list to compare with."),
    entry("hostnameOverride", "hostname-override", Text, Honoured, Objects, "Name of the own Node; without it this host's name, in lower case. The flag counts beside --config, too."),

    entry("mode", "proxy-mode", Text, Partly, Traffic, "\"nftables\" or \"ipvs\"; \"\" and \"iptables\" mean nftables here, too, with a line in the log."),
    entry("clusterCIDR", "cluster-cidr", Text, Honoured, Traffic, "Ranges of pod addresses, separated by commas. kube-proxy takes one of each family; here there may be more."),
    entry("detectLocalMode", "detect-local-mode", Text, Honoured, Traffic, "How traffic of this node's pods is told from outside traffic: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix."),
    entry("detectLocal.bridgeInterface", "pod-bridge-interface", Text, Honoured, Traffic, "The bridge that pods are on, for BridgeInterface."),
    entry("detectLocal.interfaceNamePrefix", "pod-interface-name-prefix", Text, Honoured, Traffic, "What the names of pods' interfaces start with, for InterfaceNamePrefix."),
    entry("nodePortAddresses", "nodeport-addresses", List, Honoured, Traffic, "Where NodePorts are served: primary, localhost, all, ranges, in any mix; empty: primary. localhost is 127.0.0.1 and [::1], for TCP only; all and ranges have no loopback addresses."),
    entry("bindAddress", "bind-address", Text, Honoured, Traffic, "The Node's primary address, in place of what its object says; nothing is bound to it. Its family is that of the servers' default addresses."),
    entry("iptables.masqueradeAll", "masquerade-all", Bool, Honoured, Traffic, "Masquerade every connection to a ClusterIP. This field does nothing where mode is nftables; the flag always counts."),
    entry("nftables.masqueradeAll", "", Bool, Honoured, Traffic, "Masquerade every connection to a ClusterIP; set by --masquerade-all, too."),
    entry("nftables.masqueradeBit", "", Int, Silent, Traffic, "No bit of the mark is used; it is checked only."),

    entry("nftables.syncPeriod", "", Duration, Silent, Sync, "Rules that somebody else changed are found and repaired at any period; /healthz and /livez turn 503 when a change has waited for 60 s, whatever this says."),
    entry("nftables.minSyncPeriod", "", Duration, Honoured, Sync, "Least time between two writes; changes meanwhile are written together. 0, the default here (kube-proxy: 1s): at once."),
    entry("iptables.syncPeriod", "iptables-sync-period", Duration, Silent, Sync, "No effect. The flag sets nftables.syncPeriod, as in kube-proxy."),
    entry("iptables.minSyncPeriod", "iptables-min-sync-period", Duration, Partly, Sync, "Least time between two writes; changes meanwhile are written together. The flag sets nftables.minSyncPeriod, as in kube-proxy; this field does nothing."),

    entry("healthzBindAddress", "healthz-bind-address", Text, Honoured, Servers, "Where /healthz, /livez and /readyz are served; a port may be left out."),
    entry("metricsBindAddress", "metrics-bind-address", Text, Honoured, Servers, "Where /metrics, /proxyMode, /configz and /healthz are served; a port may be left out; an empty flag: nowhere."),
    entry("bindAddressHardFail", "bind-address-hard-fail", Bool, Honoured, Servers, "End when an address cannot be bound, instead of trying again."),
    entry("enableProfiling", "profiling", Bool, Warned, Servers, "There are no profiles to fetch."),
    entry("showHiddenMetricsForVersion", "show-hidden-metrics-for-version", Text, Silent, Servers, "No metric is hidden."),
    deprecated(entry("", "healthz-port", Int, Honoured, Servers, "Port of --healthz-bind-address where that has none; 0: no such server.")),
    deprecated(entry("", "metrics-port", Int, Honoured, Servers, "Port of --metrics-bind-address where that has none; 0: no such server.")),

    entry("conntrack.maxPerCore", "conntrack-max-per-core", Int, Honoured, Conntrack, "Least limit of tracked connections per CPU core of the host, up to 1,048,576 in all; 0: the host's limit stays. The limit is never lowered."),
    entry("conntrack.min", "conntrack-min", Int, Honoured, Conntrack, "Least limit of tracked connections, whatever --conntrack-max-per-core says (unless 0)."),
    entry("conntrack.tcpEstablishedTimeout", "conntrack-tcp-timeout-established", Duration, Honoured, Conntrack, "Time without packets after which an established TCP connection is forgotten; 0: the host's setting stays."),
    entry("conntrack.tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait", Duration, Honoured, Conntrack, "The same for TCP connections in CLOSE_WAIT; 0: the host's setting stays."),
    entry("conntrack.tcpBeLiberal", "conntrack-tcp-be-liberal", Bool, Honoured, Conntrack, "Set nf_conntrack_tcp_be_liberal."),
    entry("conntrack.udpTimeout", "conntrack-udp-timeout", Duration, Honoured, Conntrack, "The same for UDP with no answer; 0: the host's setting stays."),
    entry("conntrack.udpStreamTimeout", "conntrack-udp-timeout-stream", Duration, Honoured, Conntrack, "The same for UDP with an answer; 0: the host's setting stays."),

    entry("logging.format", "logging-format", Text, Honoured, Logs, "text or json. Flags about logs count beside --config, too."),
    entry("logging.verbosity", "v", Int, Partly, Logs, "0 and 1: what an operator needs; 2 and 3: each sync, too; 4 and 5: each plan; 6 and more: everything."),
    entry("logging.flushFrequency", "log-flush-frequency", Duration, Silent, Logs, "Lines are written at once."),
    entry("logging.vmodule", "vmodule", VModules, Silent, Logs, "These are names of Go files."),
    entry("logging.options", "", Structure, Silent, Logs, "Options of Go's log writers."),
    entry("", "log-json-info-buffer-size", Text, Silent, Logs, "See logging.options."),
    entry("", "log-json-split-stream", Bool, Silent, Logs, "See logging.options."),
    entry("", "log-text-info-buffer-size", Text, Silent, Logs, "See logging.options."),
    entry("", "log-text-split-stream", Bool, Silent, Logs, "See logging.options."),

    entry("", "config", Text, Honoured, Process, "Path of a KubeProxyConfiguration file; flags with a field in it are then ignored, but for --hostname-override and those about logs. Changes take effect by themselves, with the rules in place all the while; content that makes no sense changes nothing."),
    entry("", "write-config-to", Text, Honoured, Process, "Write the configuration with all defaults to this file and exit."),
    entry("", "cleanup", Bool, Honoured, Process, "Remove the rules and exit, as `sluice cleanup` does; under the name kube-proxy and with --takeover also what kube-proxy left."),
    entry("", "init-only", Bool, Honoured, Process, "Set what of the kernel needs more than CAP_NET_ADMIN (conntrack, forwarding), and exit: for a privileged init container. Without the flag it is tried, too, and one warning says what could not be set."),
    entry("", "version", Bool, Honoured, Process, "Print the version and exit."),
    entry("oomScoreAdj", "oom-score-adj", Int, Honoured, Process, "oom_score_adj of this process, -1000 to 1000; best effort."),
    entry("featureGates", "feature-gates", Gates, Partly, Process, "No gate changes anything; those that are unknown here are named at start."),
    deprecated(entry("", "boot-id-file", Text, Silent, Process, "Nothing reads it, in kube-proxy neither.")),
    deprecated(entry("", "machine-id-file", Text, Silent, Process, "Nothing reads it, in kube-proxy neither.")),
    deprecated(entry("portRange", "", Text, Silent, Process, "Nothing uses it since mode userspace is gone.")),

    entry("iptables.masqueradeBit", "iptables-masquerade-bit", Int, Silent, Iptables, "No bit of the mark is used; it is checked only."),
    entry("iptables.localhostNodePorts", "iptables-localhost-nodeports", Bool, Silent, Iptables, "NodePorts are served on loopback addresses only where nodePortAddresses says localhost."),

    entry("ipvs.syncPeriod", "ipvs-sync-period", Duration, Partly, Ipvs, "How often everything is compared with the kernel, since IPVS does not tell of changes."),
    entry("ipvs.minSyncPeriod", "ipvs-min-sync-period", Duration, Honoured, Ipvs, "Least time between two syncs that wrote something."),
    entry("ipvs.scheduler", "ipvs-scheduler", Text, Honoured, Ipvs, "rr, wrr, lc, wlc, sh, dh, mh, sed, nq, lblc, lblcr, fo or ovf; \"\" is rr. A Service chooses another by its annotation sluice/ipvs-scheduler."),
    entry("ipvs.excludeCIDRs", "ipvs-exclude-cidrs", List, Honoured, Ipvs, "Virtual services in these ranges that sluice did not make are left alone, those of kube-proxy's mode ipvs, too. All others' are anyway."),
    entry("ipvs.strictARP", "ipvs-strict-arp", Bool, Honoured, Ipvs, "Set net.ipv4.conf.all.arp_ignore to 1 and arp_announce to 2."),
    entry("ipvs.tcpTimeout", "ipvs-tcp-timeout", Duration, Honoured, Ipvs, "How long IPVS remembers a TCP connection without packets; 0: as the kernel has it."),
    entry("ipvs.tcpFinTimeout", "ipvs-tcpfin-timeout", Duration, Honoured, Ipvs, "The same after a FIN; 0: as the kernel has it."),
    entry("ipvs.serviceMetrics", "ipvs-service-metrics", Bool, Honoured, Ipvs, "sluice's own: metrics sluice_ipvs_* by Service port (connections, packets, bytes), read from IPVS when they are asked for."),
    entry("ipvs.udpTimeout", "ipvs-udp-timeout", Duration, Honoured, Ipvs, "The same of UDP; 0: as the kernel has it."),

    entry("winkernel.networkName", "network-name", Text, Warned, Windows, "For Windows only."),
    entry("winkernel.sourceVip", "source-vip", Text, Warned, Windows, "For Windows only."),
    entry("winkernel.enableDSR", "enable-dsr", Bool, Warned, Windows, "For Windows only."),
    entry("winkernel.rootHnsEndpointName", "root-hnsendpoint-name", Text, Warned, Windows, "For Windows only."),
    entry("winkernel.forwardHealthCheckVIP", "forward-healthcheck-vip", Bool, Warned, Windows, "For Windows only."),
    entry("windowsRunAsService", "windows-service", Bool, Warned, Windows, "For Windows only."),
];
