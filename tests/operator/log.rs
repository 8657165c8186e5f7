//! The log, as an operator reads it, or a program.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use super::lab::{Lab, OBJECTS, SLUICE};

/// What an agent logs from its start over a changed Service to its end.
fn logged(flags: &[&str]) -> String {
    let mut lab = Lab::new();
    let mut agent = lab.command(SLUICE);
    lab.start(agent.arg("run").args(flags));
    fs::write(lab.manifests(), OBJECTS.replace("10.96.0.81", "10.96.0.82")).expect("write");
    let partial = r#"kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"}"#;
    lab.until("the change is in force", || lab.metric(partial) >= Some(1.0));
    lab.stop();
    lab.logged()
}

/// Names of the fields of each line about a sync, by what kind of sync it was.
fn fields_of_syncs(log: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    for (_, line) in log.lines().filter_map(|line| line.split_once("INFO synced ")) {
        let pairs = line.split(' ').map(|word| word.split_once('=').expect("name=value"));
        let fields: BTreeMap<&str, &str> = pairs.collect();
        found.insert(
            fields["sync"].trim_matches('"').to_owned(),
            fields.keys().map(|k| (*k).to_owned()).collect(),
        );
    }
    found
}

#[test]
fn syncs_are_lines_of_the_same_fields_as_text_and_as_json() {
    let text = fields_of_syncs(&logged(&["-v=2"]));
    assert_eq!(text.keys().collect::<Vec<_>>(), ["full", "partial"], "{text:?}");
    assert_eq!(text["full"], text["partial"]);
    assert!(text["full"].contains("elapsed_ms") && text["full"].contains("steps"), "{text:?}");

    let log = logged(&["-v=9", "--logging-format=json"]);
    let mut json = BTreeMap::new();
    for line in log.lines() {
        let object: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?} in\n{log}"));
        let object = object.as_object().expect("an object");
        let mut names: BTreeSet<String> = object.keys().cloned().collect();
        for name in ["timestamp", "level", "message"] {
            assert!(names.remove(name), "{name} is not in {line}");
        }
        if object["message"] == "synced" {
            json.insert(object["sync"].as_str().expect("a kind").to_owned(), names);
        }
    }
    assert_eq!(json, text);
    assert!(log.contains(r#""level":"DEBUG""#));
}

#[test]
fn without_v_only_the_first_sync_is_told() {
    let log = logged(&[]);
    let syncs: Vec<&str> = log.lines().filter(|line| line.contains("synced")).collect();
    assert!(matches!(syncs[..], [line] if line.contains("sync=\"full\"")), "{log}");
    assert!(!log.contains("DEBUG") && log.lines().count() < 12, "{log}");
}
