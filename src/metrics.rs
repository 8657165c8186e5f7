//! Metrics: kube-proxy's names, types, labels and buckets where they apply (`pkg/proxy/metrics/metrics.go` of
//! Kubernetes 1.34), so that its dashboards and alerts go on working, and `sluice_*` for what is ours.
//!
//! Both families are programmed in one transaction; where kube-proxy has the label `ip_family`, both families
//! get the same observation. Recording costs a few atomic operations, whether anybody scrapes or not.

use std::collections::BTreeMap;
use std::sync::Arc;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Error, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::cluster::Family;
use crate::dataplane::ipvs::model::Statistics;
use crate::dataplane::ipvs::traffic::Port;
use crate::source::kubernetes::ApiStatus;

mod api;
mod ipvs;

/// The label of the family.
const FAMILY: &str = "ip_family";

/// Name and help.
type Named = (&'static str, &'static str);

// kube-proxy's names and helps.
const SYNC_DURATION: Named =
    ("kubeproxy_sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds");
const FULL_SYNC_DURATION: Named = (
    "kubeproxy_sync_full_proxy_rules_duration_seconds",
    "SyncProxyRules latency in seconds for full resyncs",
);
const PARTIAL_SYNC_DURATION: Named = (
    "kubeproxy_sync_partial_proxy_rules_duration_seconds",
    "SyncProxyRules latency in seconds for partial resyncs",
);
const LAST_SYNC: Named = (
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
    "The last time proxy rules were successfully synced",
);
const LAST_QUEUED: Named = (
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
    "The last time a sync of proxy rules was queued",
);
const NFTABLES_SYNC_FAILURES: Named =
    ("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "Cumulative proxy nftables sync failures");
const NETWORK_PROGRAMMING: Named =
    ("kubeproxy_network_programming_duration_seconds", "In Cluster Network Programming Latency in seconds");
const ENDPOINT_CHANGES: Named =
    ("kubeproxy_sync_proxy_rules_endpoint_changes_total", "Cumulative proxy rules Endpoint changes");
const ENDPOINT_CHANGES_PENDING: Named =
    ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "Pending proxy rules Endpoint changes");
const SERVICE_CHANGES: Named =
    ("kubeproxy_sync_proxy_rules_service_changes_total", "Cumulative proxy rules Service changes");
const SERVICE_CHANGES_PENDING: Named =
    ("kubeproxy_sync_proxy_rules_service_changes_pending", "Pending proxy rules Service changes");
const NO_LOCAL_ENDPOINTS: Named = (
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
    "Number of services with a Local traffic policy and no endpoints",
);
const HEALTHZ: Named = ("kubeproxy_proxy_healthz_total", "Cumulative proxy healthz HTTP status");
const LIVEZ: Named = ("kubeproxy_proxy_livez_total", "Cumulative proxy livez HTTP status");

// kube-proxy's of mode iptables.
const INVALID_DROPPED: Named = (
    "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
    "INVALID packets of connections to Services that were dropped (--conntrack-drop-invalid); read every 5 s",
);

// kube-proxy's of 1.37.
const RELAY_LISTENERS: Named =
    ("kubeproxy_nftables_localhost_nodeport_listeners", "NodePorts that are open on a loopback address");
const RELAY_FAILURES: Named = (
    "kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total",
    "NodePorts that could not be opened on a loopback address",
);

const HEALTH_CHECK_PORTS_MISSING: Named = (
    "sluice_health_check_ports_missing",
    "healthCheckNodePorts that cannot be bound, by address: load balancers send nothing to this node",
);
const RELAY_CONNECTIONS: Named =
    ("sluice_localhost_nodeport_connections", "Connections to NodePorts on loopback addresses; at most 2048");
const RELAY_DELAYED: Named = (
    "sluice_localhost_nodeport_connections_delayed_total",
    "Connections to NodePorts on loopback addresses that had to wait until others ended",
);

const NFTABLES_CLEANUP_FAILURES: Named = (
    "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
    "Cumulative proxy nftables cleanup failures",
);
const CONNTRACK_DURATION: Named = (
    "kubeproxy_conntrack_reconciler_sync_duration_seconds",
    "ReconcileConntrackFlowsLatency latency in seconds",
);
const CONNTRACK_DELETED: Named = (
    "kubeproxy_conntrack_reconciler_deleted_entries_total",
    "Cumulative conntrack flows deleted by conntrack reconciler",
);

// Ours.
const SYNC_STEPS: Named = (
    "sluice_sync_steps",
    "Steps (elements, chains, sets, tables) that a sync wrote; 0: nothing had to be written",
);
const COMMIT_DURATION: Named =
    ("sluice_commit_duration_seconds", "Seconds that the kernel took for a transaction, refused ones too");
const NETLINK_BYTES: Named = (
    "sluice_netlink_bytes_total",
    "Bytes exchanged with the kernel about rules, by direction: sent or received",
);
const NETLINK_ERRORS: Named =
    ("sluice_netlink_errors_total", "Errors that the kernel answered about rules, by errno");
const SET_ELEMENTS: Named = (
    "sluice_set_elements",
    "Elements of each set; those of session affinity (sticky-K) are counted every 5 s, from kernel 6.18 on",
);
const SET_LIMIT: Named = ("sluice_set_limit", "Elements that a set takes, where that is limited");
const SYNC_FAILURES: Named = ("sluice_sync_failures_total", "Syncs that failed, by stage: observe or apply");
const REFUSED_TRANSACTIONS: Named = (
    "sluice_refused_transactions_total",
    "Transactions that the kernel refused; each was tried again without the Services that it was refused for",
);
const SET_ASIDE: Named = (
    "sluice_services_set_aside",
    "Services that are not served as they should be, since the kernel refuses their rules",
);
const FOREIGN_CHANGES: Named = (
    "sluice_foreign_changes_total",
    "Times that another program was seen to have changed nftables rules, its own or ours",
);
const DRIFT_DETECTED: Named =
    ("sluice_drift_detected_total", "Comparisons that found rules of ours changed by another program");
const DRIFT_REPAIRED: Named = (
    "sluice_drift_repaired_total",
    "Rules changed by another program that were put right, in one transaction each time",
);
const FORWARD_DROPS: Named = (
    "sluice_forward_drops",
    "Base chains of other programs that drop packets which go through this host, Services' among them",
);
const NODE_PORT_DROPS: Named = (
    "sluice_node_port_drops",
    "Base chains of other programs with rules that drop connections by the ports of NodePorts",
);
const INVALID_OBJECTS: Named = (
    "sluice_invalid_objects_total",
    "Objects that were left out because they make no sense, each time they were read",
);
const REFUSED_CLAIMS: Named = (
    "sluice_refused_claims_total",
    "Addresses and ports that a Service claims and does not get: they are another's, or a flag does not allow them",
);
const EVENTS: Named = (
    "sluice_events_total",
    "Events for the API server: written, failed, or dropped since there were too many at once",
);
const OBJECTS: Named = ("sluice_objects", "Objects that are known, by kind");
const IPVS_CONNECTIONS: Named = (
    "sluice_ipvs_connections_total",
    "Connections through IPVS by Service port, with ipvs.serviceMetrics; not those that the tables translate",
);
const IPVS_PACKETS: Named = (
    "sluice_ipvs_packets_total",
    "Packets through IPVS by Service port and direction (in: from clients), with ipvs.serviceMetrics",
);
const IPVS_BYTES: Named = (
    "sluice_ipvs_bytes_total",
    "Bytes through IPVS by Service port and direction (in: from clients), with ipvs.serviceMetrics",
);
const API_LAST_CONTACT: Named = (
    "sluice_api_last_contact_timestamp_seconds",
    "When the API server last sent anything, in seconds since the epoch; 0: never",
);
const API_SILENCE: Named = (
    "sluice_api_seconds_since_last_contact",
    "Seconds since the API server last sent anything; -1: it never did",
);
const API_WATCH_RESTARTS: Named = (
    "sluice_api_watch_restarts_total",
    "Watches that ended before their time or could not be started, by resource",
);
const API_LISTS: Named = (
    "sluice_api_lists_total",
    "Complete lists that were received, by resource; the first is no sign of trouble",
);
const API_SKIPPED: Named = (
    "sluice_api_skipped_objects_total",
    "Objects of the API server that were left out because they make no sense",
);
const BUILD_INFO: Named = ("sluice_build_info", "1, labelled with the version of sluice");

/// Everything that is measured, with the registry that it is read from.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Seconds that a sync took, by family.
    pub sync_duration: [Histogram; 2],
    /// The same, of syncs that compared everything.
    pub full_sync_duration: [Histogram; 2],
    /// The same, of syncs of what changed.
    pub partial_sync_duration: [Histogram; 2],
    /// When the last sync succeeded, in seconds since the epoch.
    pub last_sync: [Gauge; 2],
    /// When a change last asked for a sync, in seconds since the epoch.
    pub last_queued: [Gauge; 2],
    /// Syncs that failed, by family.
    pub sync_failures: [IntCounter; 2],
    /// Seconds from a change in the cluster to rules that regard it.
    pub network_programming: [Histogram; 2],
    /// Changes of EndpointSlices that came.
    pub endpoint_changes: IntCounter,
    /// Those that are not in rules yet.
    pub endpoint_changes_pending: IntGauge,
    /// Changes of Services that came.
    pub service_changes: IntCounter,
    /// Those that are not in rules yet.
    pub service_changes_pending: IntGauge,
    /// Service ports with `internalTrafficPolicy: Local` that have endpoints, but none here.
    pub no_local_internal: [IntGauge; 2],
    /// The same of `externalTrafficPolicy: Local`.
    pub no_local_external: [IntGauge; 2],
    /// Answers of `/healthz` by status code.
    pub healthz: IntCounterVec,
    /// Answers of `/livez` by status code.
    pub livez: IntCounterVec,
    /// Health check ports that cannot be bound.
    pub health_check_ports_missing: IntGauge,
    /// NodePorts that are open on a loopback address.
    pub relay_listeners: [IntGauge; 2],
    /// Those that could not be opened.
    pub relay_failures: [IntCounter; 2],
    /// Connections to NodePorts on loopback addresses.
    pub relay_connections: IntGauge,
    /// Those that had to wait, since there were too many.
    pub relay_delayed: IntCounter,
    /// Steps that a sync applied.
    pub sync_steps: Histogram,
    /// Seconds of each transaction.
    pub commit_duration: Histogram,
    /// Seconds of each pass over conntrack, by family.
    pub conntrack_duration: [Histogram; 2],
    /// Entries that were deleted from conntrack, by family.
    pub conntrack_deleted: [IntCounter; 2],
    /// INVALID packets of connections to Services that were dropped.
    pub invalid_dropped: IntCounter,
    /// Bytes sent to the kernel and received from it.
    pub netlink_bytes: [IntCounter; 2],
    /// What the kernel answered, by errno.
    pub netlink_errors: IntCounterVec,
    /// Elements of each set.
    pub set_elements: IntGaugeVec,
    /// The limits of sets.
    pub set_limit: IntGaugeVec,
    /// Syncs that failed, by stage.
    pub failures: IntCounterVec,
    /// Transactions that the kernel refused.
    pub refused_transactions: IntCounter,
    /// Services that are set aside.
    pub services_set_aside: IntGauge,
    /// Times that another program changed nftables rules, its own or ours.
    pub foreign_changes: IntCounter,
    /// Comparisons after such a change that found our rules not as they should be.
    pub drift_detected: IntCounter,
    /// Those that were put right.
    pub drift_repaired: IntCounter,
    /// Chains of others that drop what goes through this host.
    pub forward_drops: IntGauge,
    /// Chains of others that drop NodePorts.
    pub node_port_drops: IntGauge,
    /// Objects that were left out because they make no sense.
    pub invalid_objects: IntCounter,
    /// Claims of Services that were not granted.
    pub refused_claims: IntCounter,
    /// Events that were written, failed or were dropped.
    pub events: IntCounterVec,
    /// Objects that are known, by kind.
    pub objects: IntGaugeVec,
}

impl Metrics {
    /// All metrics, at zero. Fails only where two have the same name.
    pub fn new() -> Result<Metrics, Error> {
        let registry = Registry::new();
        let r = &registry;
        let no_local = gauge_vec(r, NO_LOCAL_ENDPOINTS, &[FAMILY, "traffic_policy"])?;
        let metrics = Metrics {
            sync_duration: histograms(r, SYNC_DURATION, sync_buckets()?)?,
            full_sync_duration: histograms(r, FULL_SYNC_DURATION, sync_buckets()?)?,
            partial_sync_duration: histograms(r, PARTIAL_SYNC_DURATION, sync_buckets()?)?,
            last_sync: gauges(r, LAST_SYNC)?,
            last_queued: gauges(r, LAST_QUEUED)?,
            sync_failures: by_family(counter_vec(r, NFTABLES_SYNC_FAILURES, FAMILY)?, |vec, family| {
                vec.with_label_values(&[family])
            }),
            network_programming: histograms(r, NETWORK_PROGRAMMING, network_programming_buckets())?,
            endpoint_changes: counter(r, ENDPOINT_CHANGES)?,
            endpoint_changes_pending: gauge(r, ENDPOINT_CHANGES_PENDING)?,
            service_changes: counter(r, SERVICE_CHANGES)?,
            service_changes_pending: gauge(r, SERVICE_CHANGES_PENDING)?,
            no_local_internal: by_family(no_local.clone(), |vec, f| vec.with_label_values(&[f, "internal"])),
            no_local_external: by_family(no_local, |vec, f| vec.with_label_values(&[f, "external"])),
            healthz: counter_vec(r, HEALTHZ, "code")?,
            livez: counter_vec(r, LIVEZ, "code")?,
            health_check_ports_missing: gauge(r, HEALTH_CHECK_PORTS_MISSING)?,
            relay_listeners: by_family(gauge_vec(r, RELAY_LISTENERS, &[FAMILY])?, |vec, family| {
                vec.with_label_values(&[family])
            }),
            relay_failures: by_family(counter_vec(r, RELAY_FAILURES, FAMILY)?, |vec, family| {
                vec.with_label_values(&[family])
            }),
            relay_connections: gauge(r, RELAY_CONNECTIONS)?,
            relay_delayed: counter(r, RELAY_DELAYED)?,
            sync_steps: histogram(r, SYNC_STEPS, step_buckets()?)?,
            commit_duration: histogram(r, COMMIT_DURATION, sync_buckets()?)?,
            conntrack_duration: histograms(r, CONNTRACK_DURATION, sync_buckets()?)?,
            conntrack_deleted: by_family(counter_vec(r, CONNTRACK_DELETED, FAMILY)?, |vec, family| {
                vec.with_label_values(&[family])
            }),
            invalid_dropped: counter(r, INVALID_DROPPED)?,
            netlink_bytes: {
                let vec = counter_vec(r, NETLINK_BYTES, "direction")?;
                ["sent", "received"].map(|direction| vec.with_label_values(&[direction]))
            },
            netlink_errors: counter_vec(r, NETLINK_ERRORS, "errno")?,
            set_elements: gauge_vec(r, SET_ELEMENTS, &[FAMILY, "set"])?,
            set_limit: gauge_vec(r, SET_LIMIT, &[FAMILY, "set"])?,
            failures: counter_vec(r, SYNC_FAILURES, "stage")?,
            refused_transactions: counter(r, REFUSED_TRANSACTIONS)?,
            services_set_aside: gauge(r, SET_ASIDE)?,
            foreign_changes: counter(r, FOREIGN_CHANGES)?,
            drift_detected: counter(r, DRIFT_DETECTED)?,
            drift_repaired: counter(r, DRIFT_REPAIRED)?,
            forward_drops: gauge(r, FORWARD_DROPS)?,
            node_port_drops: gauge(r, NODE_PORT_DROPS)?,
            invalid_objects: counter(r, INVALID_OBJECTS)?,
            refused_claims: counter(r, REFUSED_CLAIMS)?,
            events: counter_vec(r, EVENTS, "result")?,
            objects: gauge_vec(r, OBJECTS, &["kind"])?,
            registry: registry.clone(),
        };
        // What is no longer needed goes in the same transaction: this stays 0.
        let cleanup_failures = counter_vec(r, NFTABLES_CLEANUP_FAILURES, FAMILY)?;
        for family in Family::ALL {
            cleanup_failures.with_label_values(&[&family.to_string()]);
        }
        gauge_vec(r, BUILD_INFO, &["version"])?.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(ProcessCollector::for_self()))?;
        // A series that is not there until something goes wrong makes alerts miss the first time.
        for code in ["200", "503"] {
            metrics.healthz.with_label_values(&[code]);
            metrics.livez.with_label_values(&[code]);
        }
        for result in ["written", "failed", "dropped"] {
            metrics.events.with_label_values(&[result]);
        }
        for stage in ["observe", "apply"] {
            metrics.failures.with_label_values(&[stage]);
        }
        Ok(metrics)
    }

    /// From now on, how the API server's watches are doing, as it is when somebody asks.
    pub fn watch_api(&self, status: Arc<ApiStatus>) -> Result<(), Error> {
        status.request_metrics().try_for_each(|metric| self.registry.register(metric))?;
        self.registry.register(Box::new(api::Api::new(status)?))
    }

    /// From now on, what IPVS carries for each Service port, as it is when somebody asks.
    pub fn watch_ipvs<F>(&self, totals: F) -> Result<(), Error>
    where
        F: Fn() -> BTreeMap<Port, Statistics> + Send + Sync + 'static,
    {
        self.registry.register(Box::new(ipvs::Ipvs::new(totals)?))
    }

    /// Everything in the text format (version 0.0.4).
    pub fn text(&self) -> Result<Vec<u8>, Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Registers what was made.
fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: Result<C, Error>,
) -> Result<C, Error> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn by_family<V, M>(vec: V, with: impl Fn(&V, &str) -> M) -> [M; 2] {
    Family::ALL.map(|family| with(&vec, &family.to_string()))
}

fn counter(registry: &Registry, (name, help): Named) -> Result<IntCounter, Error> {
    registered(registry, IntCounter::new(name, help))
}

fn counter_vec(registry: &Registry, (name, help): Named, label: &str) -> Result<IntCounterVec, Error> {
    registered(registry, IntCounterVec::new(Opts::new(name, help), &[label]))
}

fn gauge(registry: &Registry, (name, help): Named) -> Result<IntGauge, Error> {
    registered(registry, IntGauge::new(name, help))
}

fn gauge_vec(registry: &Registry, (name, help): Named, labels: &[&str]) -> Result<IntGaugeVec, Error> {
    registered(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

fn gauges(registry: &Registry, (name, help): Named) -> Result<[Gauge; 2], Error> {
    let vec = registered(registry, GaugeVec::new(Opts::new(name, help), &[FAMILY]))?;
    Ok(by_family(vec, |vec, family| vec.with_label_values(&[family])))
}

fn histogram(registry: &Registry, (name, help): Named, buckets: Vec<f64>) -> Result<Histogram, Error> {
    registered(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
}

fn histograms(registry: &Registry, (name, help): Named, buckets: Vec<f64>) -> Result<[Histogram; 2], Error> {
    let opts = HistogramOpts::new(name, help).buckets(buckets);
    let vec = registered(registry, HistogramVec::new(opts, &[FAMILY]))?;
    Ok(by_family(vec, |vec, family| vec.with_label_values(&[family])))
}

/// From 1 ms to 16.384 s, each twice the one before.
fn sync_buckets() -> Result<Vec<f64>, Error> {
    prometheus::exponential_buckets(0.001, 2.0, 15)
}

/// None, and from 1 to a million, each four times the one before.
fn step_buckets() -> Result<Vec<f64>, Error> {
    Ok([vec![0.0], prometheus::exponential_buckets(1.0, 4.0, 11)?].concat())
}

/// 0.25 and 0.5, each second to 59, every five to 115, every thirty to 300.
fn network_programming_buckets() -> Vec<f64> {
    let seconds = (1..=59).chain((60..=115).step_by(5)).chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(seconds.map(f64::from)).collect()
}

#[cfg(test)]
mod tests;
