//! Health and metrics of the real agent.

use std::fs;

use super::lab::{Lab, SLUICE, promtool_finds_no_fault};

const OBJECTS: &str = r#"
{kind: Node, apiVersion: v1, metadata: {name: node1},
 status: {addresses: [{type: InternalIP, address: 127.0.0.1}]}}
---
{kind: Service, apiVersion: v1, metadata: {name: a},
 spec: {type: LoadBalancer, clusterIP: 10.96.0.1, externalTrafficPolicy: Local, healthCheckNodePort: 32000,
        ports: [{name: t, port: 80, nodePort: 30080}]}}
---
{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1,
 metadata: {name: a1, labels: {kubernetes.io/service-name: a}}, addressType: IPv4,
 ports: [{name: t, port: 80}], endpoints: [{addresses: [10.128.0.5], nodeName: node1}]}
"#;

#[test]
fn healthy_with_its_rules_and_again_after_somebody_flushed_them() {
    let mut lab = Lab::bare();
    fs::write(lab.manifests(), OBJECTS).expect("write");
    let mut agent = lab.command(SLUICE);
    lab.start(agent.arg("run"));
    assert_eq!(lab.code(10256, "/healthz"), Some(200));
    assert_eq!(lab.code(10256, "/livez"), Some(200));
    lab.until("the health check port is open", || lab.code(32000, "/") == Some(200));
    assert_eq!(lab.get(10249, "/proxyMode"), Some((200, "nftables".into())));
    assert_eq!(lab.get(10249, "/healthz"), Some((200, "ok".into())));
    assert_eq!(lab.metric("sluice_drift_repaired_total"), Some(0.0));
    let (code, configz) = lab.get(10249, "/configz").expect("an answer");
    assert!(code == 200 && configz.contains(r#""kubeproxy.config.k8s.io":{"#), "{configz}");
    assert!(configz.contains(r#""hostnameOverride":"node1""#), "{configz}");
    let (_, metrics) = lab.get(10249, "/metrics").expect("metrics");
    assert!(!metrics.contains("sluice_api_"), "there is no API server");
    promtool_finds_no_fault(&metrics);
    lab.sh("nft flush ruleset");
    lab.until("the rules are repaired", || lab.metric("sluice_drift_repaired_total") == Some(1.0));
    assert_eq!(lab.metric("sluice_drift_detected_total"), Some(1.0));
    assert_eq!(lab.code(10256, "/healthz"), Some(200));
    assert_eq!(lab.metric(r#"kubeproxy_proxy_healthz_total{code="200"}"#), Some(2.0));
    // The Service goes, and its port with it.
    fs::write(lab.manifests(), OBJECTS.replace("externalTrafficPolicy: Local", "sessionAffinity: None"))
        .expect("write");
    lab.until("the health check port is closed", || lab.code(32000, "/").is_none());
}

#[test]
fn unhealthy_and_not_ready_where_the_kernel_refuses_the_rules() {
    let mut lab = Lab::bare();
    fs::write(lab.manifests(), OBJECTS).expect("write");
    // Without CAP_NET_ADMIN nf_tables refuses every request, reading too.
    let mut agent = lab.command("setpriv");
    agent.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", SLUICE, "run"]);
    lab.spawn(agent.args(["--hostname-override=node1", "--manifests"]).arg(lab.manifests()));
    lab.until("the first failure", || lab.code(10256, "/healthz") == Some(503));
    let (code, pending) = lab.get(10256, "/readyz").expect("an answer");
    assert_eq!(code, 503);
    assert!(
        pending.contains("[+] services listed\n[+] endpointslices listed\n[+] node known\n"),
        "{pending}"
    );
    assert!(pending.contains("[-] first sync done\n"), "{pending}");
    // Ending the agent would not help; that it waits for too long is found out later.
    assert_eq!(lab.code(10256, "/livez"), Some(200));
    assert!(lab.metric(r#"sluice_sync_failures_total{stage="observe"}"#) >= Some(1.0));
    assert_eq!(lab.metric("kubeproxy_sync_proxy_rules_service_changes_pending"), Some(1.0));
    assert_eq!(lab.code(32000, "/"), None, "no rules, no health check port");
}
