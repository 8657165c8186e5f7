//! The API server as a source, against a list/watch server that misbehaves: whatever happens, the index is in the end
//! what the server's objects ask for.

#[path = "kubernetes/agent.rs"]
mod agent;
#[path = "apiserver/server.rs"]
mod apiserver;
#[path = "kubernetes/credentials.rs"]
mod credentials;
#[path = "kubernetes/events.rs"]
mod event_records;
#[path = "support/events.rs"]
#[allow(dead_code)]
mod events;
#[path = "support/lab.rs"]
#[allow(dead_code)]
mod lab;
#[path = "kubernetes/log.rs"]
mod log;
#[path = "kubernetes/metrics.rs"]
mod metrics;
#[path = "kubernetes/process.rs"]
mod process;
#[path = "kubernetes/rights.rs"]
mod rights;
#[path = "kubernetes/soak.rs"]
mod soak;

use agent::{Agent, connect, index_of, node, service, service_cidr, slice, snapshot};
use apiserver::{ApiServer, Disturbance, Kind, Refusal, recorded};
use serde_json::{Value, json};
use sluice::cluster::Index;

/// A small cluster, with objects that are not for a proxy.
fn populate(server: &ApiServer) {
    server.apply(Kind::Nodes, node(agent::NODE, "198.18.0.11"));
    server.apply(Kind::Nodes, node("node2", "198.18.0.12"));
    server.apply(Kind::ServiceCidrs, service_cidr("kubernetes", "10.96.0.0/12"));
    for n in 1..=7 {
        let name = format!("svc{n}");
        server.apply(Kind::Services, service(&name, &format!("10.96.0.{n}"), 80));
        let addresses = [format!("10.128.0.{n}"), format!("10.128.1.{n}")];
        server.apply(Kind::EndpointSlices, slice(&format!("{name}-abc"), &name, addresses));
    }
    server.apply(Kind::Services, service("headless", "None", 80));
    let mut headless = slice("headless-abc", "headless", ["10.128.0.99".to_owned()]);
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    server.apply(Kind::EndpointSlices, headless);
}

/// Writes that a source must not miss.
fn change(server: &ApiServer, n: u16) {
    server.apply(Kind::Services, service("svc1", "10.96.0.1", 8000 + n));
    let addresses = [format!("10.128.2.{}", n % 250)];
    server.apply(Kind::EndpointSlices, slice("svc2-abc", "svc2", addresses));
    let gone = format!("extra{}", n.wrapping_sub(1));
    server.delete(Kind::Services, "demo", &gone);
    server.apply(Kind::Services, service(&format!("extra{n}"), &format!("10.96.1.{}", n % 250), 80));
    let range = format!("10.{}.0.0/16", n % 250);
    server.apply(Kind::ServiceCidrs, service_cidr("more", &range));
    server.apply(Kind::Nodes, node(agent::NODE, &format!("198.18.1.{}", n % 250)));
}

/// Waits until each resource is watched once; a watch that the client left ends with the next event.
async fn all_watched(agent: &mut Agent, server: &ApiServer) {
    let watched = |_: &Agent| {
        server.disturb(Disturbance::Bookmark);
        server.watches() == 4
    };
    agent.until("four open watches", watched).await;
}

async fn follows(server: ApiServer, http2: bool) {
    server.faults().token = Some("secret".to_owned());
    populate(&server);
    let mut agent = Agent::start(&server).await;
    agent.converged(&server, "at the start").await;
    assert_eq!(agent.index.counts(), (7, 7, 14));
    assert!(agent.index.node().is_some());
    change(&server, 1);
    agent.converged(&server, "after changes").await;
    server.delete(Kind::Services, "demo", "svc3");
    server.delete(Kind::EndpointSlices, "demo", "svc3-abc");
    server.delete(Kind::Nodes, "", agent::NODE);
    server.delete(Kind::ServiceCidrs, "", "kubernetes");
    agent.converged(&server, "after deletions").await;
    assert!(agent.index.is_node_gone() && agent.index.node().is_some(), "it is as it was last");
    let asked = server.asked();
    assert!(asked.iter().all(|a| a.http2 == http2));
    let of = |kind| asked.iter().find(|a| a.kind == kind).expect("was asked for").query.clone();
    assert_eq!(of(Kind::Services)["labelSelector"], "!service.kubernetes.io/service-proxy-name");
    assert_eq!(of(Kind::Services)["fieldSelector"], "spec.clusterIP!=None");
    assert_eq!(of(Kind::EndpointSlices)["labelSelector"], "!service.kubernetes.io/headless");
    assert_eq!(of(Kind::Nodes)["fieldSelector"], "metadata.name=node1");
    assert_eq!(of(Kind::Services)["sendInitialEvents"], "true");
    assert_eq!(agent.lists().into_values().collect::<Vec<_>>(), [1, 1, 1, 1]);
    assert!(agent.status.since_contact().is_some());
}

#[tokio::test]
async fn follows_over_http2() {
    follows(ApiServer::tls(true).await, true).await;
}

#[tokio::test]
async fn follows_over_http1() {
    follows(ApiServer::tls(false).await, false).await;
}

#[tokio::test]
async fn follows_without_tls() {
    follows(ApiServer::plain().await, false).await;
}

#[tokio::test]
async fn every_disturbance_of_a_watch_is_survived() {
    let server = ApiServer::tls(true).await;
    populate(&server);
    let mut agent = Agent::start(&server).await;
    agent.converged(&server, "at the start").await;
    let disturbances = [
        Disturbance::Cut,
        Disturbance::End,
        Disturbance::HalfLine,
        Disturbance::HalfLineEnd,
        Disturbance::Garbage,
        Disturbance::NoText,
        Disturbance::Expired,
        Disturbance::InternalError,
        Disturbance::Bookmark,
    ];
    for (n, disturbance) in (10..).zip(disturbances) {
        all_watched(&mut agent, &server).await;
        let before = server.asked().len();
        let quiet = matches!(disturbance, Disturbance::Bookmark);
        server.disturb(disturbance.clone());
        agent.until("watches again", |_| quiet || server.asked().len() >= before + 4).await;
        change(&server, n);
        agent.converged(&server, &format!("after {disturbance:?}")).await;
        // And with the change in the midst of it.
        all_watched(&mut agent, &server).await;
        change(&server, n + 100);
        server.disturb(disturbance.clone());
        change(&server, n + 200);
        agent.converged(&server, &format!("around {disturbance:?}")).await;
    }
}

#[tokio::test]
async fn what_was_deleted_meanwhile_goes() {
    for streaming in [true, false] {
        let mut server = ApiServer::tls(true).await;
        if !streaming {
            server.faults().no_streaming =
                Some(Refusal::new(422, recorded("sendinitialevents-refused.json")));
        }
        populate(&server);
        let mut agent = Agent::start(&server).await;
        agent.converged(&server, "at the start").await;
        server.go_down().await;
        server.delete(Kind::Services, "demo", "svc4");
        server.delete(Kind::EndpointSlices, "demo", "svc5-abc");
        server.delete(Kind::Nodes, "", agent::NODE);
        server.delete(Kind::ServiceCidrs, "", "kubernetes");
        server.store(|store| store.compact());
        server.come_up();
        agent.converged(&server, "after an outage with deletions").await;
        assert_eq!(agent.index.counts().0, 6);
        assert_eq!(agent.lists()["services"], 2, "the log was compacted");
    }
}

#[tokio::test]
async fn nothing_is_synced_before_everything_is_listed() {
    for missing in [Kind::Services, Kind::EndpointSlices, Kind::Nodes] {
        let server = ApiServer::tls(true).await;
        populate(&server);
        server.faults().always.insert(missing, Refusal::new(500, "{}"));
        let mut agent = Agent::start(&server).await;
        let tries = || server.asked().iter().filter(|a| a.kind == missing).count();
        agent
            .until("several tries, and the others listed", |a| {
                tries() > 4 && a.lists().values().sum::<u64>() == 3
            })
            .await;
        assert!(!agent.synced && !agent.status.synced(), "{missing:?} was not listed");
        server.faults().always.clear();
        agent.until("synced", |a| a.synced).await;
        assert_eq!(agent.index.counts(), (7, 7, 14), "complete when it is said to be");
    }
}

#[tokio::test]
async fn a_node_that_does_not_exist_is_an_answer() {
    let server = ApiServer::plain().await;
    server.apply(Kind::Services, service("svc1", "10.96.0.1", 80));
    let mut agent = Agent::start(&server).await;
    agent.converged(&server, "without a Node").await;
    server.apply(Kind::Nodes, node(agent::NODE, "198.18.0.11"));
    agent.converged(&server, "with the Node").await;
    assert!(agent.index.node().is_some());
}

#[tokio::test]
async fn servers_without_streaming_lists_are_listed() {
    // The answer of servers without the feature, and of those that refuse the parameter as such.
    for refusal in [recorded("sendinitialevents-refused.json"), "{}".to_owned()] {
        let server = ApiServer::tls(true).await;
        server.faults().no_streaming = Some(Refusal::new(if refusal.len() > 2 { 422 } else { 400 }, refusal));
        server.faults().page = Some(3);
        server.faults().expired_tokens = 2;
        populate(&server);
        let mut agent = Agent::start(&server).await;
        agent.converged(&server, "page by page").await;
        let streamed = server
            .asked()
            .iter()
            .filter(|a| a.kind == Kind::Services && a.query.contains_key("sendInitialEvents"))
            .count();
        assert_eq!(streamed, 1, "refused once, not asked again");
        assert!(server.asked().iter().any(|a| a.query.contains_key("continue")));
        change(&server, 1);
        agent.converged(&server, "after changes").await;
    }
}

#[tokio::test]
async fn servers_that_ignore_streaming_lists_are_listed() {
    let server = ApiServer::plain().await;
    server.faults().ignores_streaming = true;
    populate(&server);
    let mut agent = Agent::start(&server).await;
    agent.converged(&server, "although no list ended").await;
}

#[tokio::test]
async fn half_a_list_is_no_list() {
    let server = ApiServer::tls(true).await;
    server.faults().no_streaming = Some(Refusal::new(422, recorded("sendinitialevents-refused.json")));
    server.faults().half_lists = true;
    populate(&server);
    let mut agent = Agent::start(&server).await;
    let lists = || server.asked().iter().filter(|a| !a.query.contains_key("watch")).count();
    agent.until("several tries", |_| lists() > 12).await;
    assert!(!agent.synced);
    server.faults().half_lists = false;
    agent.converged(&server, "with whole lists").await;
}

#[tokio::test]
async fn refusals_are_survived() {
    let server = ApiServer::tls(true).await;
    populate(&server);
    let mut slow = Refusal::new(429, r#"{"kind":"Status","reason":"TooManyRequests","code":429}"#);
    slow.retry_after = Some(1);
    let refusals = [
        Refusal::new(401, recorded("unauthorized.json")),
        Refusal::new(403, recorded("forbidden.json")),
        Refusal::new(500, r#"{"kind":"Status","reason":"InternalError","code":500,"message":"etcd"}"#),
        Refusal::new(502, "<html>bad gateway</html>"),
        slow,
    ];
    for kind in [Kind::Services, Kind::EndpointSlices] {
        server.faults().next.insert(kind, refusals.iter().cloned().collect());
    }
    let mut agent = Agent::start(&server).await;
    agent.converged(&server, "after refusals at the start").await;
    assert_eq!((agent.restarts()["services"], agent.restarts()["endpointslices"]), (5, 5));
    server.faults().next.insert(Kind::Services, refusals.iter().cloned().collect());
    server.disturb(Disturbance::Cut);
    change(&server, 1);
    agent.converged(&server, "after refusals in between").await;
}

#[tokio::test]
async fn watches_that_are_closed_at_once_do_no_harm() {
    let server = ApiServer::tls(true).await;
    server.faults().no_streaming = Some(Refusal::new(422, recorded("sendinitialevents-refused.json")));
    server.faults().closes_watches = true;
    populate(&server);
    let mut agent = Agent::start(&server).await;
    agent.until("lists instead of watches", |a| a.lists()["services"] > 1).await;
    change(&server, 1);
    agent.converged(&server, "by lists alone").await;
    server.faults().closes_watches = false;
    change(&server, 2);
    agent.converged(&server, "by watches again").await;
}

#[tokio::test]
async fn silence_is_noticed() {
    for server in [ApiServer::tls(true).await, ApiServer::tls(false).await] {
        populate(&server);
        let mut agent = Agent::start(&server).await;
        agent.converged(&server, "at the start").await;
        all_watched(&mut agent, &server).await;
        server.go_silent();
        change(&server, 1);
        agent.converged(&server, "after silence").await;
    }
}

#[tokio::test]
async fn a_restored_etcd_is_listed_anew() {
    let mut server = ApiServer::tls(true).await;
    populate(&server);
    let mut agent = Agent::start(&server).await;
    agent.converged(&server, "at the start").await;
    server.go_down().await;
    server.store(|store| store.restore(20));
    server.delete(Kind::Services, "demo", "svc6");
    server.come_up();
    agent.converged(&server, "with lower versions").await;
    change(&server, 1);
    agent.converged(&server, "and followed from there").await;
}

#[tokio::test]
async fn large_objects_pass() {
    let server = ApiServer::tls(true).await;
    populate(&server);
    let mut agent = Agent::start(&server).await;
    agent.converged(&server, "at the start").await;
    let mut large = service("large", "10.96.2.1", 80);
    large["metadata"]["annotations"] = json!({"note": "x".repeat(1 << 20)});
    server.apply(Kind::Services, large);
    let addresses = (0..1000).map(|n| format!("10.129.{}.{}", n / 250, n % 250 + 1));
    server.apply(Kind::EndpointSlices, slice("large-abc", "large", addresses));
    agent.converged(&server, "with large objects").await;
    assert_eq!(agent.index.counts(), (8, 8, 1014));
}

#[tokio::test]
async fn bad_objects_harm_nobody_else() {
    let server = ApiServer::tls(true).await;
    populate(&server);
    let bad = || {
        let mut bad = service("svc1", "10.96.0.1", 80);
        bad["spec"]["ports"] = json!("none");
        bad
    };
    server.apply(Kind::Services, bad());
    server.apply(Kind::EndpointSlices, {
        let mut bad = slice("svc2-abc", "svc2", []);
        bad["endpoints"] = json!(5);
        bad
    });
    let mut agent = Agent::start(&server).await;
    agent.converged(&server, "with bad objects in the list").await;
    assert_eq!((agent.index.counts().0, agent.status.skipped()), (6, 2));
    server.apply(Kind::Services, service("svc1", "10.96.0.1", 81));
    agent.converged(&server, "mended").await;
    assert_eq!(agent.index.counts().0, 7);
    server.apply(Kind::Services, bad());
    change(&server, 0);
    server.apply(Kind::Services, bad());
    agent.converged(&server, "gone bad").await;
    assert!(agent.index.services().all(|s| &*s.name.name != "svc1"), "what turned bad is gone");
    assert_eq!(agent.lists()["services"], 1, "the watch went on");
}

#[tokio::test]
async fn servers_without_service_cidrs_are_fine() {
    let server = ApiServer::tls(true).await;
    populate(&server);
    server.faults().always.insert(Kind::ServiceCidrs, Refusal::new(404, "404 page not found\n"));
    let mut agent = Agent::start(&server).await;
    agent.until("synced", |a| a.synced && a.index.counts() == (7, 7, 14)).await;
    assert_eq!(agent.index.service_cidrs().count(), 0);
    // An upgrade brings them.
    server.faults().always.clear();
    agent.converged(&server, "after the upgrade").await;
    assert_eq!(agent.index.service_cidrs().count(), 1);
}

/// The last state of each object that recorded events tell of.
fn final_objects(lines: &str) -> Vec<Value> {
    let mut objects = std::collections::BTreeMap::new();
    for line in lines.lines() {
        let event: Value = serde_json::from_str(line).expect("an event");
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        match event["type"].as_str() {
            Some("ADDED" | "MODIFIED") => _ = objects.insert(name, event["object"].clone()),
            Some("DELETED") => _ = objects.remove(&name),
            _ => {}
        }
    }
    objects.into_values().collect()
}

#[tokio::test]
async fn a_real_server_is_understood() {
    let server = ApiServer::tls(true).await;
    let mut all = Vec::new();
    for (kind, name) in [(Kind::Services, "services"), (Kind::EndpointSlices, "endpointslices")] {
        let initial = recorded(&format!("{name}-initial.jsonl"));
        let changes = recorded(&format!("{name}-changes.jsonl"));
        all.extend(final_objects(&(initial.clone() + &changes)));
        // After the list the stream stays open: the changes come in it.
        server.faults().replay.insert(kind, (initial + &changes, String::new()));
    }
    for (kind, name) in [(Kind::Nodes, "nodes"), (Kind::ServiceCidrs, "servicecidrs")] {
        let list: Value = serde_json::from_str(&recorded(&format!("{name}.json"))).expect("JSON");
        for item in list["items"].as_array().expect("items") {
            server.apply(kind, item.clone());
        }
    }
    all.extend(server.store(|store| store.objects().cloned().collect::<Vec<_>>()));
    let expected = snapshot(&index_of(&all));
    assert!(expected.contains("10.102.225.38"), "{expected}");
    let mut agent = Agent::start(&server).await;
    agent.until("all recorded events", |a| a.synced && snapshot(&a.index) == expected).await;
}

#[tokio::test]
async fn everything_can_be_listed_once() {
    let server = ApiServer::tls(true).await;
    populate(&server);
    server.faults().page = Some(3);
    let source = connect(&server).await;
    let listed = source.list().await.expect("a list");
    let mut index = Index::new(agent::NODE);
    listed.changes.into_iter().for_each(|change| index.apply(change));
    assert_eq!(snapshot(&index), snapshot(&agent::expected(&server)));
    server.faults().always.insert(Kind::EndpointSlices, Refusal::new(403, recorded("forbidden.json")));
    let error = source.list().await.expect_err("no half truth").to_string();
    assert!(error.contains("403 Forbidden") && error.contains("discovery.k8s.io"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn dump_says_the_same_of_a_server_and_of_files() {
    let server = ApiServer::tls(true).await;
    server.faults().token = Some("secret".to_owned());
    populate(&server);
    let objects: Vec<Value> = server.store(|store| store.objects().cloned().collect());
    let folder = tempfile::tempdir().expect("a folder");
    let files = agent::write_manifests(folder.path(), &objects);
    let dump = |flag: &str, path: std::path::PathBuf| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.args(["dump", "--hostname-override", agent::NODE, flag]).arg(path);
        tokio::task::block_in_place(|| command.output()).expect("sluice runs")
    };
    let of_server = dump("--kubeconfig", agent::kubeconfig(&server));
    let of_files = dump("--manifests", files);
    assert!(of_server.status.success() && of_files.status.success(), "{of_server:?}");
    assert!(!of_server.stdout.is_empty() && of_server.stdout == of_files.stdout, "{of_server:?}");
    server.faults().token = Some("another".to_owned());
    let refused = dump("--kubeconfig", agent::kubeconfig(&server));
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && refused.stdout.is_empty() && told.contains("401"), "{told}");
}
