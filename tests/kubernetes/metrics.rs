//! What a running agent serves as metrics, against kube-proxy's: names, types, labels, buckets.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::agent::slice;
use crate::apiserver::Kind;
use crate::lab::promtool_finds_no_fault;
use crate::process::{start, with_server};

/// Name, type and labels of kube-proxy 1.36 in mode nftables (`pkg/proxy/metrics/metrics.go`), of its client and of the process; those
/// of NodePorts on loopback are 1.37's. Not here: iptables', and what no agent of another language than Go has.
const KUBE_PROXYS: [(&str, &str, &str); 28] = [
    ("kubeproxy_conntrack_reconciler_deleted_entries_total", "counter", "ip_family"),
    ("kubeproxy_conntrack_reconciler_sync_duration_seconds", "histogram", "ip_family"),
    ("kubeproxy_iptables_ct_state_invalid_dropped_packets_total", "counter", ""),
    ("kubeproxy_network_programming_duration_seconds", "histogram", "ip_family"),
    ("kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total", "counter", "ip_family"),
    ("kubeproxy_nftables_localhost_nodeport_listeners", "gauge", "ip_family"),
    ("kubeproxy_proxy_healthz_total", "counter", "code"),
    ("kubeproxy_proxy_livez_total", "counter", "code"),
    ("kubeproxy_sync_full_proxy_rules_duration_seconds", "histogram", "ip_family"),
    ("kubeproxy_sync_partial_proxy_rules_duration_seconds", "histogram", "ip_family"),
    ("kubeproxy_sync_proxy_rules_duration_seconds", "histogram", "ip_family"),
    ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "gauge", ""),
    ("kubeproxy_sync_proxy_rules_endpoint_changes_total", "counter", ""),
    ("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "gauge", "ip_family"),
    ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "gauge", "ip_family"),
    ("kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total", "counter", "ip_family"),
    ("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "counter", "ip_family"),
    ("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "gauge", "ip_family traffic_policy"),
    ("kubeproxy_sync_proxy_rules_service_changes_pending", "gauge", ""),
    ("kubeproxy_sync_proxy_rules_service_changes_total", "counter", ""),
    ("process_cpu_seconds_total", "counter", ""),
    ("process_max_fds", "gauge", ""),
    ("process_open_fds", "gauge", ""),
    ("process_resident_memory_bytes", "gauge", ""),
    ("process_start_time_seconds", "gauge", ""),
    ("process_virtual_memory_bytes", "gauge", ""),
    ("rest_client_request_duration_seconds", "histogram", "host verb"),
    ("rest_client_requests_total", "counter", "code host method"),
];

/// The bounds of a histogram with the first label value that comes.
fn bounds(text: &str, name: &str) -> Vec<f64> {
    let mut found: Vec<f64> = Vec::new();
    for line in text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix("_bucket{")) {
        let (_, bound) = line.split_once("le=\"").expect("a bound");
        let bound = bound.split('"').next().expect("its end");
        let bound = bound.parse().expect("a number");
        if found.last().is_some_and(|last| *last >= bound) {
            break;
        }
        found.push(bound);
    }
    assert_eq!(found.pop(), Some(f64::INFINITY), "{name}");
    found
}

#[test]
fn a_running_agent_has_kube_proxys_metrics() {
    let (_runtime, mut lab, server) = with_server();
    start(&mut lab, &server);
    lab.ready();
    assert_eq!((lab.code(10256, "/healthz"), lab.code(10256, "/livez")), (Some(200), Some(200)));
    // Somebody changed a pod more than a second ago.
    let at = sluice::timestamp::format_micros(std::time::SystemTime::now());
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let mut changed = slice("svc1-abc", "svc1", ["10.128.5.1".to_owned()]);
    changed["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": at});
    server.apply(Kind::EndpointSlices, changed);
    let took = |le: &str| {
        let name = "kubeproxy_network_programming_duration_seconds_bucket";
        lab.metric(&format!("{name}{{ip_family=\"IPv4\",le=\"{le}\"}}"))
    };
    lab.until("the change is in force", || took("+Inf") == Some(1.0));
    assert_eq!((took("1"), took("60")), (Some(0.0), Some(1.0)), "in seconds from that time");
    let passes = "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"}";
    lab.until("conntrack was looked at", || lab.metric(passes) > Some(0.0));

    let text = lab.body(10249, "/metrics");
    let types: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    for (name, kind, labels) in KUBE_PROXYS {
        assert_eq!(types.get(name), Some(&kind), "{name}");
        let series = if kind == "histogram" { format!("{name}_count") } else { name.to_owned() };
        let samples = text.lines().filter_map(|line| line.strip_prefix(&series));
        let samples: Vec<&str> = samples.filter(|rest| rest.starts_with([' ', '{'])).collect();
        assert!(!samples.is_empty(), "{name} has no sample");
        for sample in samples {
            let inner = sample.split_once('}').map_or("", |(inner, _)| inner.trim_start_matches('{'));
            let found: Vec<&str> =
                inner.split(',').filter_map(|label| Some(label.split_once('=')?.0)).collect();
            assert_eq!(found.join(" "), labels, "{name}{sample}");
            let families = !labels.contains("ip_family")
                || inner.contains("ip_family=\"IPv4\"")
                || inner.contains("ip_family=\"IPv6\"");
            assert!(families, "{name}{sample}");
        }
    }
    let expected: BTreeSet<&str> = KUBE_PROXYS.iter().map(|(name, ..)| *name).collect();
    let of_kube_proxy = |name: &&str| name.starts_with("kubeproxy_") || name.starts_with("rest_client_");
    let others: Vec<&&str> = types.keys().filter(|n| of_kube_proxy(n) && !expected.contains(*n)).collect();
    assert!(others.is_empty(), "kube-proxy does not have {others:?}");

    let doubled: Vec<f64> = (0..15).map(|n| 0.001 * f64::from(1 << n)).collect();
    for name in [
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "kubeproxy_sync_full_proxy_rules_duration_seconds",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds",
        "kubeproxy_conntrack_reconciler_sync_duration_seconds",
    ] {
        assert_eq!(bounds(&text, name), doubled, "{name}");
    }
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30)).map(f64::from);
    let programming: Vec<f64> = [0.25, 0.5].into_iter().chain(seconds).collect();
    assert_eq!(bounds(&text, "kubeproxy_network_programming_duration_seconds"), programming);
    let client = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
    assert_eq!(bounds(&text, "rest_client_request_duration_seconds"), client);
    promtool_finds_no_fault(&text);
}
