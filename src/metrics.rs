//! Metrics: kube-proxy's names, types, labels and buckets where they apply (`pkg/proxy/metrics/metrics.go` of
//! Kubernetes 1.34), so that its dashboards and alerts go on working, and `sluice_*` for what is ours.
//!
//! Both families are programmed in one transaction; where kube-proxy has the label `ip_family`, both families
//! get the same observation. Recording costs a few atomic operations, whether anybody scrapes or not.

use prometheus::core::Collector;
use prometheus::{
    Encoder, Error, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::cluster::Family;

/// The label of the family.
const FAMILY: &str = "ip_family";

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
    /// Steps that a sync applied.
    pub sync_steps: Histogram,
    /// Syncs that failed, by stage.
    pub failures: IntCounterVec,
    /// Times that another program changed nftables rules, its own or ours.
    pub foreign_changes: IntCounter,
    /// Comparisons after such a change that found our rules not as they should be.
    pub drift_detected: IntCounter,
    /// Those that were put right.
    pub drift_repaired: IntCounter,
    /// Objects that were left out because they make no sense.
    pub invalid_objects: IntCounter,
    /// Objects that are known, by kind.
    pub objects: IntGaugeVec,
}

impl Metrics {
    /// All metrics, at zero. Fails only where two have the same name.
    pub fn new() -> Result<Metrics, Error> {
        let registry = Registry::new();
        let r = &registry;
        let no_local = no_local_endpoints(r)?;
        let metrics = Metrics {
            sync_duration: sync_histogram(r, "kubeproxy_sync_proxy_rules_duration_seconds", "")?,
            full_sync_duration: sync_histogram(
                r,
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                " for full resyncs",
            )?,
            partial_sync_duration: sync_histogram(
                r,
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                " for partial resyncs",
            )?,
            last_sync: gauges(
                r,
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "The last time proxy rules were successfully synced",
            )?,
            last_queued: gauges(
                r,
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "The last time a sync of proxy rules was queued",
            )?,
            sync_failures: by_family(
                registered(
                    r,
                    IntCounterVec::new(
                        Opts::new(
                            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
                            "Cumulative proxy nftables sync failures",
                        ),
                        &[FAMILY],
                    ),
                )?,
                |vec, family| vec.with_label_values(&[family]),
            ),
            network_programming: histograms(
                r,
                "kubeproxy_network_programming_duration_seconds",
                "In Cluster Network Programming Latency in seconds",
                network_programming_buckets(),
            )?,
            endpoint_changes: counter(
                r,
                "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                "Cumulative proxy rules Endpoint changes",
            )?,
            endpoint_changes_pending: gauge(
                r,
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "Pending proxy rules Endpoint changes",
            )?,
            service_changes: counter(
                r,
                "kubeproxy_sync_proxy_rules_service_changes_total",
                "Cumulative proxy rules Service changes",
            )?,
            service_changes_pending: gauge(
                r,
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "Pending proxy rules Service changes",
            )?,
            no_local_internal: by_family(no_local.clone(), |vec, f| vec.with_label_values(&[f, "internal"])),
            no_local_external: by_family(no_local, |vec, f| vec.with_label_values(&[f, "external"])),
            healthz: codes(r, "kubeproxy_proxy_healthz_total", "Cumulative proxy healthz HTTP status")?,
            livez: codes(r, "kubeproxy_proxy_livez_total", "Cumulative proxy livez HTTP status")?,
            sync_steps: registered(
                r,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "sluice_sync_steps",
                        "Steps (elements, chains, sets, tables) that a sync wrote; 0: nothing had to be written",
                    )
                    .buckets([vec![0.0], prometheus::exponential_buckets(1.0, 4.0, 11)?].concat()),
                ),
            )?,
            failures: registered(
                r,
                IntCounterVec::new(
                    Opts::new("sluice_sync_failures_total", "Syncs that failed, by stage: observe or apply"),
                    &["stage"],
                ),
            )?,
            foreign_changes: counter(
                r,
                "sluice_foreign_changes_total",
                "Times that another program was seen to have changed nftables rules, its own or ours",
            )?,
            drift_detected: counter(
                r,
                "sluice_drift_detected_total",
                "Comparisons that found rules of ours changed by another program",
            )?,
            drift_repaired: counter(
                r,
                "sluice_drift_repaired_total",
                "Rules changed by another program that were put right, in one transaction each time",
            )?,
            invalid_objects: counter(
                r,
                "sluice_invalid_objects_total",
                "Objects that were left out because they make no sense, each time they were read",
            )?,
            objects: registered(
                r,
                IntGaugeVec::new(Opts::new("sluice_objects", "Objects that are known, by kind"), &["kind"]),
            )?,
            registry: registry.clone(),
        };
        build_info(r)?;
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        for stage in ["observe", "apply"] {
            metrics.failures.with_label_values(&[stage]);
        }
        Ok(metrics)
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

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, Error> {
    registered(registry, IntCounter::new(name, help))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, Error> {
    registered(registry, IntGauge::new(name, help))
}

fn gauges(registry: &Registry, name: &str, help: &str) -> Result<[Gauge; 2], Error> {
    let vec = registered(registry, GaugeVec::new(Opts::new(name, help), &[FAMILY]))?;
    Ok(by_family(vec, |vec, family| vec.with_label_values(&[family])))
}

fn codes(registry: &Registry, name: &str, help: &str) -> Result<IntCounterVec, Error> {
    let vec = registered(registry, IntCounterVec::new(Opts::new(name, help), &["code"]))?;
    for code in ["200", "503"] {
        vec.with_label_values(&[code]);
    }
    Ok(vec)
}

fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: Vec<f64>,
) -> Result<[Histogram; 2], Error> {
    let opts = HistogramOpts::new(name, help).buckets(buckets);
    let vec = registered(registry, HistogramVec::new(opts, &[FAMILY]))?;
    Ok(by_family(vec, |vec, family| vec.with_label_values(&[family])))
}

fn sync_histogram(registry: &Registry, name: &str, what: &str) -> Result<[Histogram; 2], Error> {
    let buckets = prometheus::exponential_buckets(0.001, 2.0, 15)?;
    histograms(registry, name, &format!("SyncProxyRules latency in seconds{what}"), buckets)
}

/// 0.25 and 0.5, each second to 59, every five to 115, every thirty to 300.
fn network_programming_buckets() -> Vec<f64> {
    let seconds = (1..=59).chain((60..=115).step_by(5)).chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(seconds.map(f64::from)).collect()
}

fn no_local_endpoints(registry: &Registry) -> Result<IntGaugeVec, Error> {
    let opts = Opts::new(
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "Number of services with a Local traffic policy and no endpoints",
    );
    registered(registry, IntGaugeVec::new(opts, &[FAMILY, "traffic_policy"]))
}

fn build_info(registry: &Registry) -> Result<(), Error> {
    let opts = Opts::new("sluice_build_info", "1, labelled with the version of sluice");
    let info = registered(registry, IntGaugeVec::new(opts, &["version"]))?;
    info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    Ok(())
}

#[cfg(test)]
mod tests;
