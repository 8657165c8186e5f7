use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::source::kubernetes::ApiStatus;

fn text() -> String {
    let metrics = Metrics::new().expect("no name is there twice");
    metrics.sync_duration[0].observe(0.002);
    metrics.network_programming[1].observe(0.3);
    metrics.healthz.with_label_values(&["200"]).inc();
    metrics.objects.with_label_values(&["service"]).set(3);
    String::from_utf8(metrics.text().unwrap()).unwrap()
}

/// Names with their types, as announced.
fn types(text: &str) -> BTreeMap<&str, &str> {
    let mut types = BTreeMap::new();
    for line in text.lines().filter_map(|l| l.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert_eq!(types.insert(name, kind), None, "{name} is announced twice");
    }
    types
}

#[test]
fn every_sample_has_help_and_type_and_is_there_once() {
    let text = text();
    let types = types(&text);
    let helps: BTreeSet<&str> = text
        .lines()
        .filter_map(|l| l.strip_prefix("# HELP "))
        .map(|l| l.split_once(' ').expect("help is not empty").0)
        .collect();
    assert_eq!(helps, types.keys().copied().collect());
    let mut seen = BTreeSet::new();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        value.parse::<f64>().unwrap();
        assert!(seen.insert(series), "{series} is there twice");
        let name = series.split('{').next().unwrap();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
            name.strip_suffix(suffix).filter(|base| types.get(base) == Some(&"histogram"))
        });
        assert!(types.contains_key(base.unwrap_or(name)), "{name} has no type");
    }
}

#[test]
fn names_types_and_labels_are_kube_proxys() {
    let text = text();
    let types = types(&text);
    for (name, kind, labels) in [
        ("kubeproxy_sync_proxy_rules_duration_seconds", "histogram", "ip_family"),
        ("kubeproxy_sync_full_proxy_rules_duration_seconds", "histogram", "ip_family"),
        ("kubeproxy_sync_partial_proxy_rules_duration_seconds", "histogram", "ip_family"),
        ("kubeproxy_network_programming_duration_seconds", "histogram", "ip_family"),
        ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "gauge", "ip_family"),
        ("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "gauge", "ip_family"),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "gauge", ""),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_total", "counter", ""),
        ("kubeproxy_sync_proxy_rules_service_changes_pending", "gauge", ""),
        ("kubeproxy_sync_proxy_rules_service_changes_total", "counter", ""),
        ("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "gauge", "ip_family traffic_policy"),
        ("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "counter", "ip_family"),
        ("kubeproxy_proxy_healthz_total", "counter", "code"),
        ("kubeproxy_proxy_livez_total", "counter", "code"),
        ("process_cpu_seconds_total", "counter", ""),
        ("process_resident_memory_bytes", "gauge", ""),
        ("process_open_fds", "gauge", ""),
        ("process_start_time_seconds", "gauge", ""),
    ] {
        assert_eq!(types.get(name), Some(&kind), "{name}");
        let series = if kind == "histogram" { format!("{name}_count") } else { name.to_owned() };
        let sample = text.lines().find(|l| {
            l.strip_prefix(&series).is_some_and(|rest| rest.starts_with(' ') || rest.starts_with('{'))
        });
        let sample = sample.unwrap_or_else(|| panic!("{name} has no sample"));
        let inner = sample.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(i, _)| i);
        let found: Vec<&str> = inner.split(',').filter_map(|l| Some(l.split_once('=')?.0)).collect();
        assert_eq!(found.join(" "), labels, "{name}");
    }
    for sample in [
        r#"kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.001"} 0"#,
        r#"kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.002"} 1"#,
        r#"kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="16.384"} 1"#,
        r#"kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv6",le="0.5"} 1"#,
        r#"kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv6",le="300"} 1"#,
        r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="external"} 0"#,
        r#"sluice_objects{kind="service"} 3"#,
    ] {
        assert!(text.lines().any(|l| l == sample), "{sample}\n{text}");
    }
    let buckets = text.matches(r#"kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4""#);
    assert_eq!(buckets.count(), 2 + 59 + 12 + 7 + 1, "with +Inf");
}

/// `deploy/METRICS.md`, made of what `/metrics` says. `make bless` writes it anew.
#[test]
fn the_page_of_metrics_is_what_is_served() {
    let metrics = Metrics::new().expect("no name is there twice");
    let status = Arc::new(ApiStatus::default());
    let took = std::time::Duration::from_millis(1);
    status.requested(&http::Method::GET, "https://192.0.2.1:6443", Some(200), took);
    metrics.watch_api(status).expect("new names");
    let port = (crate::cluster::ObjectName::new("ns", "web"), "http".into());
    metrics.watch_ipvs(move || BTreeMap::from([(port.clone(), Statistics::default())])).expect("new names");
    metrics.netlink_errors.with_label_values(&["EEXIST"]).inc();
    metrics.set_elements.with_label_values(&["IPv4", "services"]).set(1);
    metrics.set_limit.with_label_values(&["IPv4", "sticky-0"]).set(1);
    metrics.objects.with_label_values(&["service"]).set(1);
    let text = String::from_utf8(metrics.text().unwrap()).unwrap();
    let (types, mut rows) = (types(&text), String::new());
    // What has labels is not served before it has a value, and would be missing on the page.
    let named = include_str!("../metrics.rs")
        .split('"')
        .filter(|word| ["kubeproxy_", "sluice_"].iter().any(|prefix| word.starts_with(prefix)));
    for name in named {
        assert!(types.contains_key(name), "{name} has no value here");
    }
    for line in text.lines() {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) else {
            continue;
        };
        let kind = types[name];
        let series = if kind == "histogram" { format!("{name}_count") } else { name.to_owned() };
        let labels =
            text.lines().find_map(|line| line.strip_prefix(&series)?.strip_prefix('{')?.split_once('}'));
        let names =
            labels.map_or("", |(labels, _)| labels).split(',').filter_map(|l| Some(l.split_once('=')?.0));
        let labels: Vec<String> = names.map(|name| format!("`{name}`")).collect();
        rows += &format!("| `{name}` | {kind} | {} | {} |\n", labels.join(", "), help.trim_end_matches('.'));
    }
    let page = format!("{PAGE}| name | type | labels | what |\n| --- | --- | --- | --- |\n{rows}");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/METRICS.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == page, "{path} is not what is served; `make bless` if that is right");
}

const PAGE: &str = "\
# Metrics
What `/metrics` on port 10249 serves; made by `make bless` from what is served, and held against it. Names, types, labels and buckets of
`kubeproxy_*` and `rest_client_*` are kube-proxy's 1.36 (where both families are one transaction, both get the same value); of
`process_*` Prometheus'. `/configz` on the same port is the configuration in force.

Not there, since there is nothing that they could count: those of iptables, `go_*`, and what sluice has under its own name:
`kubernetes_build_info` is `sluice_build_info`; nor `kubeproxy_nftables_localhost_nodeport_rejected_packets_total` of 1.37, whose packets
no rule here has to reject. A series with `sluice_api_*` or `rest_client_*` is only there with an API server,
one with `sluice_ipvs_*` only with `ipvs.serviceMetrics`: five of them a Service port, counted since sluice began, up to seven seconds old.
`kubeproxy_sync_proxy_rules_no_local_endpoints_total` is a gauge all the same, which `promtool check metrics` remarks; it has no other
remark.

";
