//! The dashboard and the alert rules speak of what the agent measures.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::chart::{root, text};

/// What kubernetes-mixin's dashboard for kube-proxy asks for, but for `up`, which Prometheus makes itself, and `go_goroutines`.
const MIXIN: [&str; 8] = [
    "kubeproxy_network_programming_duration_seconds_bucket",
    "kubeproxy_network_programming_duration_seconds_count",
    "kubeproxy_sync_proxy_rules_duration_seconds_bucket",
    "kubeproxy_sync_proxy_rules_duration_seconds_count",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "rest_client_request_duration_seconds_bucket",
    "rest_client_requests_total",
];

fn file(name: &str) -> String {
    fs::read_to_string(root().join("deploy/chart/files").join(name)).expect("the file is there")
}

/// The words of a text that are names of metrics.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let prefixes = ["sluice_", "kubeproxy_", "process_", "rest_client_"];
    words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix))).map(str::to_owned).collect()
}

/// What an agent without a history tells, with types.
fn types() -> BTreeMap<String, String> {
    let metrics = sluice::metrics::Metrics::new().expect("metrics");
    let text = String::from_utf8(metrics.text().expect("a text")).expect("UTF-8");
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// All of the source, but for tests: a metric with labels tells nothing before it has something to tell.
fn source(folder: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all += &source(&path);
        } else if !path.ends_with("tests.rs") {
            all += &fs::read_to_string(&path).expect("text");
        }
    }
    all
}

/// Those that no agent has.
fn unknown(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let (types, source) = (types(), source(&root().join("src")));
    let is_known = |name: &String| {
        let base = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let histogram = base.and_then(|base| types.get(base)).map(String::as_str) == Some("histogram");
        let plain = types.get(name).is_some_and(|kind| kind != "histogram");
        let literal = |name: &str| source.contains(&format!("\"{name}\""));
        let in_source = !types.contains_key(name) && (literal(name) || base.is_some_and(literal));
        histogram || plain || in_source
    };
    names.into_iter().filter(|name| !is_known(name)).collect()
}

#[test]
fn every_metric_of_the_dashboard_and_of_the_alerts_is_measured() {
    let dashboard: Value = serde_json::from_str(&file("dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let expressions: Vec<&str> = targets.map(|target| target["expr"].as_str().expect("a text")).collect();
    assert!(expressions.len() >= 20, "expressions are missing");
    let all = names(&(expressions.join("\n") + &file("alerts.yaml")));
    assert!(all.len() >= 20, "{all:?}");
    assert_eq!(unknown(all), Vec::<String>::new());
    // And it would say so if one was not.
    let wrong = ["sluice_sync_steps", "sluice_nonsense_total", "kubeproxy_proxy_healthz_total_bucket_count"];
    assert_eq!(unknown(wrong.map(str::to_owned)), wrong);
}

#[test]
fn kubernetes_mixins_dashboard_for_kube_proxy_finds_its_metrics() {
    assert_eq!(unknown(MIXIN.map(str::to_owned)), Vec::<String>::new());
}

/// `promtool check rules`, and `promtool test rules` with series that make each alert fire, or not.
#[test]
fn prometheus_takes_the_alert_rules() {
    for arguments in [["check", "deploy/chart/files/alerts.yaml"], ["test", "testdata/alerts.yaml"]] {
        let output = Command::new("promtool")
            .args([arguments[0], "rules", arguments[1]])
            .current_dir(root())
            .output()
            .expect("promtool is there");
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    }
}
