//! Events: what is written, how often, and that nothing waits for it.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounterVec;
use serde_json::{Value, json};
use sluice::cluster::ObjectName;
use sluice::events::{Event, Events, Type, reasons};
use sluice::source::kubernetes::{Connection, Kubernetes, Timing};

use crate::agent::{self, Agent, NODE, connect, kubeconfig, service, slice, timing};
use crate::apiserver::{ApiServer, Kind, Refusal, recorded};
use crate::log::Log;
use crate::populate;
use crate::process::{start, with_server};

fn counter() -> IntCounterVec {
    IntCounterVec::new(prometheus::Opts::new("events", "Events"), &["result"]).expect("a counter")
}

/// A source that writes events to this server.
pub async fn recording(server: &ApiServer, timing: Timing) -> (Agent, Events, IntCounterVec) {
    let connection = Connection::open(Some(&kubeconfig(server)), None, &timing).await.expect("usable");
    let counter = counter();
    let (events, queue) = Events::queue(counter.clone());
    let source = Kubernetes::new(connection, NODE, timing).recording(events.clone(), queue, counter.clone());
    (Agent::of(source), events, counter)
}

pub fn about(n: u32) -> Event {
    let (name, uid) = (ObjectName::new("demo", format!("svc{n}")), Arc::from(format!("uid-{n}")));
    Event::warning(&name, &uid, reasons::SET_ASIDE, "the kernel refused it")
}

#[tokio::test]
async fn an_event_that_comes_again_is_a_series() {
    let server = ApiServer::tls(true).await;
    let timing = Timing { event_series: Duration::from_millis(100), ..timing() };
    let (mut agent, events, counter) = recording(&server, timing).await;
    events.send(about(1));
    agent.until("the event", |_| server.events().len() == 1).await;
    let event = &server.events()[0];
    let expected = json!({
        "apiVersion": "v1", "kind": "Service", "namespace": "demo", "name": "svc1", "uid": "uid-1",
    });
    assert_eq!(event["regarding"], expected);
    let field = |name: &str| event[name].as_str().expect("a text").to_owned();
    assert_eq!(
        ["reportingController", "reportingInstance", "reason", "action", "type", "note"].map(field),
        [
            "kube-proxy",
            "kube-proxy-node1",
            "RulesRefused",
            "SyncProxyRules",
            "Warning",
            "the kernel refused it"
        ]
    );
    // Hundreds of times within the interval: not one more.
    (0..200).for_each(|_| events.send(about(1)));
    agent.until("the others are taken", |_| server.event_writes() == 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    events.send(about(1));
    agent.until("a series", |_| server.events()[0]["series"]["count"].as_u64() >= Some(2)).await;
    assert_eq!((server.events().len(), server.event_writes()), (1, 2));
    assert_eq!(counter.with_label_values(&["written"]).get(), 2);
}

#[tokio::test]
async fn too_many_events_at_once_are_dropped_and_counted() {
    let server = ApiServer::tls(true).await;
    let (mut agent, events, counter) = recording(&server, timing()).await;
    (0..100).for_each(|n| events.send(about(n)));
    let sum = || ["written", "dropped"].map(|result| counter.with_label_values(&[result]).get());
    agent.until("all are taken", |_| sum().iter().sum::<u64>() == 100).await;
    let [written, dropped] = sum();
    assert!((25..=30).contains(&written), "{written} written, {dropped} dropped");
    assert_eq!(server.events().len(), written as usize);
}

#[tokio::test]
async fn what_all_nodes_see_is_one_event() {
    let server = ApiServer::tls(true).await;
    let (mut agent, one, counter) = recording(&server, timing()).await;
    let (mut other_agent, other, other_counter) = recording(&server, timing()).await;
    one.send(about(1).everywhere());
    agent.until("the event", |_| counter.with_label_values(&["written"]).get() == 1).await;
    other.send(about(1).everywhere());
    other.send(about(2).everywhere());
    other_agent.until("the other's", |_| other_counter.with_label_values(&["written"]).get() == 1).await;
    assert_eq!(server.events().len(), 2);
}

#[tokio::test]
async fn refused_events_name_the_missing_rule_once() {
    let (log, _guard) = Log::start();
    let server = ApiServer::tls(true).await;
    server.faults().events = Some(Refusal::new(403, recorded("forbidden.json")));
    let (mut agent, events, counter) = recording(&server, timing()).await;
    events.send(Event::node(Type::Normal, reasons::STARTING, ""));
    (0..5).for_each(|n| events.send(about(n)));
    let failed = counter.with_label_values(&["failed"]);
    agent.until("all fail", |_| failed.get() == 6).await;
    let rule = r#"{apiGroups: ["events.k8s.io"], resources: ["events"], verbs: ["create", "patch"]}"#;
    let lines = log.lines("cannot write events");
    assert!(lines.len() == 1 && lines[0].contains(rule), "{lines:?}");
    server.faults().events = None;
    events.send(about(9));
    agent.until("written", |_| server.events().len() == 1).await;
    assert_eq!(log.lines("events can be written again").len(), 1);
    // The objects came all the while.
    populate(&server);
    agent.converged(&server, "in spite of it").await;
    drop(connect(&server).await);
}

/// Reason, type and note of each event, by the object.
fn told(server: &ApiServer) -> BTreeMap<String, Vec<(String, String, String)>> {
    let mut told: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for event in server.events() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = format!("{}/{}", text(&event["regarding"]["kind"]), text(&event["regarding"]["uid"]));
        let said = (text(&event["reason"]), text(&event["type"]), text(&event["note"]));
        told.entry(object).or_default().push(said);
    }
    told
}

#[test]
fn the_agent_tells_of_services_and_of_itself() {
    let (_runtime, mut lab, server) = with_server();
    let with = |name: &str, ip: &str, uid: &str, spec: Value| {
        let mut object = service(name, ip, 80);
        object["metadata"]["uid"] = json!(uid);
        object["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:00:{uid}Z"));
        spec.as_object().expect("fields").iter().for_each(|(key, value)| object["spec"][key] = value.clone());
        server.apply(Kind::Services, object);
    };
    // Both want the same address and port; the first is older.
    with("first", "10.96.0.51", "01", json!({"externalIPs": ["203.0.113.5"]}));
    with("second", "10.96.0.52", "02", json!({"externalIPs": ["203.0.113.5"]}));
    with("family", "10.96.0.53", "03", json!({"externalIPs": ["2001:db8::5"]}));
    let ranges = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/8", "10.0.0.0/99"]});
    with("ranges", "10.96.0.54", "04", ranges);
    with("ports", "10.96.0.55", "05", json!({"ports": [{"port": 70000}]}));
    let checked =
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32077});
    with("checked", "10.96.0.56", "06", checked);
    server.apply(Kind::EndpointSlices, slice("checked-1", "checked", ["10.128.0.9".to_owned()]));
    server.apply(Kind::Nodes, agent::node(NODE, "127.0.0.1"));
    // Somebody has the ports already.
    let taken =
        lab.enter(|| [32077, 10249].map(|port| TcpListener::bind(("127.0.0.1", port)).expect("free")));
    lab.sh("nft 'add table inet fw; add chain inet fw fd { type filter hook forward priority 10; policy drop; }'");
    start(&mut lab, &server);

    let has = |object: &str, reason: &str, part: &str| {
        let told = told(&server);
        let list = told.get(object).map_or(&[][..], Vec::as_slice);
        list.iter().any(|(r, kind, note)| r == reason && kind == "Warning" && note.contains(part))
    };
    lab.until("all is told", || {
        has("Service/02", "AddressTaken", "203.0.113.5:80/tcp (externalIP) is not served")
            && has("Service/03", "KubeProxyIncorrectIPVersion", "2001:db8::5")
            && has("Service/04", "UnusableField", "spec.loadBalancerSourceRanges[1]")
            && has("Service/05", "UnusableField", "spec.ports[0].port: 70000")
            && has("Service/06", "FailedToStartServiceHealthcheck", "32077")
            && has("Node/node1", "FailedToStartMetricServer", "10249")
            && has(
                "Node/node1",
                "FirewallDropsServices",
                "chain fd of table inet fw (hook forward, priority 10)",
            )
            && told(&server).contains_key("Node/node1")
    });
    let node = &told(&server)["Node/node1"];
    assert!(node.contains(&("Starting".into(), "Normal".into(), String::new())), "{node:?}");
    assert!(!told(&server).contains_key("Service/01"), "it has its address");
    drop(taken);
    lab.until("metrics are served", || lab.metric("sluice_events_total{result=\"written\"}") >= Some(7.0));
    let failed = lab.metric("sluice_events_total{result=\"failed\"}");
    assert_eq!(failed, Some(0.0), "{}", lab.logged());
}
