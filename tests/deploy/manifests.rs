//! Manifests, and the chart that they come from.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::chart::{self, Rendering, all_objects, all_values, object, objects, render, root, text, values};

const HEADER: &str = "# Rendered from deploy/chart with testdata/deploy/";

/// `make bless` writes deploy/manifests anew.
#[test]
fn the_manifests_are_what_the_chart_renders() {
    let files = ["manifests.yaml", "monitoring.yaml"].map(values);
    let rendered = render(&files);
    let folder = root().join("deploy/manifests");
    let mut expected = BTreeSet::new();
    for (values, folder, names) in [
        ("manifests.yaml", folder.clone(), ["rbac.yaml", "configmap.yaml", "daemonset.yaml"]),
        (
            "monitoring.yaml",
            folder.join("monitoring"),
            ["podmonitor.yaml", "prometheusrule.yaml", "dashboard.yaml"],
        ),
    ] {
        let rendering = &rendered[&chart::values(values)];
        for name in names {
            let text = format!("{HEADER}{values} (`make bless`).\n{}", rendering[name]);
            let path = folder.join(name);
            if std::env::var_os("BLESS").is_some() {
                fs::create_dir_all(&folder).expect("a folder");
                fs::write(&path, &text).expect("it can be written");
            }
            let recorded = fs::read_to_string(&path).unwrap_or_default();
            assert!(recorded == text, "{} is stale (`make bless` if that is right)", path.display());
            expected.insert(path);
        }
    }
    // No template is forgotten.
    let rendered = rendered[&values("manifests.yaml")].iter().filter(|(name, text)| {
        name.ends_with(".yaml") && !text.trim().is_empty() && !expected.contains(&folder.join(name))
    });
    assert_eq!(rendered.map(|(name, _)| name).collect::<Vec<_>>(), Vec::<&String>::new());
    let found = [folder.clone(), folder.join("monitoring")]
        .iter()
        .flat_map(|folder| fs::read_dir(folder).expect("a folder"))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
        .collect();
    assert_eq!(expected, found, "nothing else is in the folder");
}

/// For versions of Kubernetes from the oldest that the chart allows to the newest.
#[test]
fn every_rendering_fits_the_schemas() {
    let mut all: Vec<String> = Vec::new();
    for (_, rendering) in render(&all_values()) {
        all.extend(all_objects(&rendering).iter().map(Value::to_string));
    }
    let output = chart::chart("validate", &[], &all.join("\n---\n"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let checks: usize = text(&output.stdout).trim().parse().expect("a number");
    assert!(checks >= 50, "{checks} checks of {} objects", all.len());
    // And it would say so if something did not.
    let wrong = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "date": {}});
    let output = chart::chart("validate", &[], &wrong.to_string());
    assert!(text(&output.stderr).contains("date"), "{output:?}");
}

#[test]
fn helm_finds_nothing_wrong_with_the_chart() {
    let output = chart::chart("lint", &all_values(), "");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn values_that_make_no_sense_are_refused_and_named() {
    let folder = tempfile::tempdir().expect("a folder");
    for (values, word) in [
        ("{}", "apiServer.host"),
        ("{apiServer: {host: 'https://192.0.2.1'}}", "/apiServer/host"),
        ("{apiServer: {host: a}, clusterCidr: 10.0.0.0/8}", "clusterCidr"),
        ("{apiServer: {host: a}, mode: iptables}", "/mode"),
    ] {
        let file = folder.path().join("values.yaml");
        fs::write(&file, values).expect("write");
        let output = chart::chart("render", &[file], "");
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(word), "{values}: {said}");
    }
}

/// The agent reads the settings of every rendering by the container's own command line, and has nothing to complain of.
#[test]
fn the_agent_understands_what_is_rendered() {
    let folder = tempfile::tempdir().expect("a folder");
    let (config, written) = (folder.path().join("config.conf"), folder.path().join("written.yaml"));
    for (values, rendering) in render(&all_values()) {
        let map = object(&objects(&rendering["configmap.yaml"]), "ConfigMap");
        fs::write(&config, map["data"]["config.conf"].as_str().expect("a text")).expect("write");
        let pod = pod(&rendering);
        let containers = [&pod["initContainers"], &pod["containers"]];
        for container in containers.into_iter().filter_map(Value::as_array).flatten() {
            let command = container["command"].as_array().expect("a command").iter();
            let mut command = command.map(|word| {
                let word = word.as_str().expect("a word").replace("$(NODE_NAME)", "node1");
                word.replace("/etc/sluice/config.conf", config.to_str().expect("UTF-8"))
            });
            assert_eq!(command.next().as_deref(), Some("/usr/local/bin/sluice"));
            let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
                .args(command)
                .arg(format!("--write-config-to={}", written.display()))
                .output()
                .expect("sluice runs");
            assert!(output.status.success(), "{values:?}: {}", text(&output.stderr));
            let wrote = format!("wrote {}\n", written.display());
            assert_eq!(text(&output.stderr), wrote, "{values:?}: nothing else is said");
        }
        let config = object(&objects(&fs::read_to_string(&written).expect("it was written")), CONFIGURATION);
        let everything = values.ends_with("everything.yaml");
        let verbosity = if everything { 5 } else { 2 };
        assert_eq!(config["logging"]["verbosity"], verbosity, "config wins over the chart's own values");
        let kubeconfig = if pod["volumes"][0]["projected"]["sources"][1].is_null() {
            ""
        } else {
            "/etc/sluice/kubeconfig.conf"
        };
        assert_eq!(config["clientConnection"]["kubeconfig"], kubeconfig, "{values:?}");
        let monitored = values.ends_with("monitoring.yaml");
        let metrics = match (everything, monitored) {
            (true, _) => "0.0.0.0:9999",
            (_, true) => "0.0.0.0:10249",
            _ => "127.0.0.1:10249",
        };
        assert_eq!(config["metricsBindAddress"], metrics, "{values:?}");
    }
}

/// The agent gets one right and can write nothing; the init container may do everything, and ends.
#[test]
fn no_more_rights_than_are_needed() {
    for (values, rendering) in render(&all_values()) {
        let pod = pod(&rendering);
        assert_eq!(pod["hostNetwork"], true);
        assert_eq!(pod["hostPID"].as_bool().unwrap_or_default(), values.ends_with("everything.yaml"));
        assert!(pod["hostIPC"].is_null());
        assert_eq!(pod["securityContext"], json!({"seccompProfile": {"type": "RuntimeDefault"}}));
        let volumes = pod["volumes"].as_array().expect("volumes");
        let sources =
            volumes.iter().map(|volume| volume["projected"]["sources"].as_array().expect("sources"));
        for source in sources.flatten() {
            assert_eq!(source.as_object().expect("a source").keys().collect::<Vec<_>>(), ["configMap"]);
        }
        let containers = pod["containers"].as_array().expect("containers");
        assert_eq!(containers.len(), 1);
        let expected = json!({
            "runAsUser": 0,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
        });
        assert_eq!(containers[0]["securityContext"], expected, "{values:?}");
        for container in pod["initContainers"].as_array().into_iter().flatten() {
            assert!(container["command"].to_string().contains("--init-only"));
            assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        }
        for object in all_objects(&rendering).iter().filter(|object| object["kind"] == "ClusterRole") {
            let words = |value: &Value| -> Vec<String> {
                let words = value.as_array().expect("a list").iter();
                words.map(|word| word.as_str().expect("a word").to_owned()).collect()
            };
            for rule in object["rules"].as_array().expect("rules") {
                let rule = ["apiGroups", "resources", "verbs"].map(|part| words(&rule[part]).join(" "));
                let allowed = [
                    ["", "services nodes", "list watch"],
                    ["discovery.k8s.io", "endpointslices", "list watch"],
                    ["networking.k8s.io", "servicecidrs", "list watch"],
                    ["events.k8s.io", "events", "create patch"],
                ];
                assert!(allowed.iter().any(|allowed| rule == *allowed), "{rule:?}");
            }
        }
    }
}

const CONFIGURATION: &str = "KubeProxyConfiguration";

/// The Pod of a DaemonSet.
fn pod(rendering: &Rendering) -> Value {
    object(&all_objects(rendering), "DaemonSet")["spec"]["template"]["spec"].clone()
}
