//! The real agent on an API server.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::agent::{NODE, node, service};
use crate::apiserver::{ApiServer, Kind};
use crate::lab::{Lab, SLUICE, text};
use crate::populate;

/// Loopback and nothing else, and there the small cluster's API server, which lives as long as the runtime.
pub fn with_server() -> (tokio::runtime::Runtime, Lab, ApiServer) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let lab = Lab::bare();
    // Until the listener is made, the runtime is on the thread that entered the namespace.
    let server = lab.enter(|| runtime.block_on(ApiServer::tls(true)));
    populate(&server);
    (runtime, lab, server)
}

/// Starts the agent on the server.
pub fn start(lab: &mut Lab, server: &ApiServer) {
    let kubeconfig = server.write_kubeconfig(lab.folder.path()).expect("a kubeconfig");
    lab.follow(&kubeconfig, &[]);
}

/// Runs another command of the program; its exit status, and what it said on stdout and stderr.
pub fn call(lab: &Lab, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = lab.command(SLUICE);
    command.args(arguments).args(["--hostname-override", NODE]);
    let output = command.env("KUBECONFIG", lab.folder.path().join("kubeconfig")).output();
    let output = output.expect("the program starts");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The rules of the namespace, without counters and times.
fn rules(lab: &Lab) -> String {
    lab.sh("nft --stateless list ruleset")
}

#[test]
fn the_first_sync_waits_for_the_node_and_metrics_tell_of_the_server() {
    let (runtime, mut lab, mut server) = with_server();
    server.delete(Kind::Nodes, "", NODE);
    let mut bad = service("bad", "10.96.0.99", 80);
    bad["spec"]["ports"] = json!("none");
    server.apply(Kind::Services, bad);
    start(&mut lab, &server);

    let waiting =
        |part: &str| lab.logged().lines().any(|l| l.contains("waiting for the own Node") && l.contains(part));
    lab.until("the log says that there is no Node", || waiting("there is no such Node") && waiting(NODE));
    let pending =
        "[+] services listed\n[+] endpointslices listed\n[-] node known\n[-] first sync done\nnot ready\n";
    assert_eq!(lab.body(10256, "/readyz"), pending);

    let mut bare = node(NODE, "198.18.0.11");
    bare["status"] = json!({});
    server.apply(Kind::Nodes, bare);
    lab.until("the log says that it has no address", || waiting("no address"));
    assert_eq!(lab.body(10256, "/readyz"), pending);
    assert_eq!(
        lab.metric("kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}"),
        Some(0.0)
    );

    server.apply(Kind::Nodes, node(NODE, "198.18.0.11"));
    lab.until("synced", || lab.body(10256, "/readyz").ends_with("first sync done\nready\n"));

    let contact = || lab.metric("sluice_api_last_contact_timestamp_seconds").expect("a time");
    let at = contact();
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_secs_f64();
    assert!(at > now - 60.0 && at < now + 1.0, "{at}, {now}");
    assert_eq!(lab.metric("sluice_api_skipped_objects_total"), Some(1.0));
    assert_eq!(lab.metric("sluice_invalid_objects_total"), Some(1.0), "it counts for any source");
    assert_eq!(lab.metric(r#"sluice_api_lists_total{resource="services"}"#), Some(1.0));
    let restarts =
        |resource| lab.metric(&format!("sluice_api_watch_restarts_total{{resource=\"{resource}\"}}"));
    assert_eq!(restarts("services"), Some(0.0));
    runtime.block_on(server.go_down());
    lab.until("restarts are counted", || restarts("services") > Some(0.0) && restarts("nodes") > Some(0.0));
}

#[test]
fn an_outage_changes_no_rules_and_commands_ask_the_same_server() {
    let (runtime, mut lab, mut server) = with_server();
    start(&mut lab, &server);
    lab.until("synced", || lab.body(10256, "/readyz").ends_with("\nready\n"));
    // The current context of KUBECONFIG, as with kubectl.
    let (status, dumped, said) = call(&lab, &["dump"]);
    assert!(status == Some(0) && dumped.contains("10.96.0.7 . tcp . 80"), "{dumped}{said}");
    assert_eq!(call(&lab, &["diff"]).0, Some(0));
    let (status, told, said) = call(&lab, &["explain", "10.96.0.7:80", "--from", "10.128.0.1"]);
    assert!(status == Some(0) && told.contains("demo/svc7") && told.contains("10.128.1.7:"), "{told}{said}");

    let before = rules(&lab);
    runtime.block_on(server.go_down());
    server.apply(Kind::Services, service("svc7", "10.96.0.7", 8088));
    lab.until("the outage is told", || lab.logged().contains("the API server does not serve"));
    assert_eq!(rules(&lab), before, "rules stay as they are meanwhile");
    let (status, _, said) = call(&lab, &["diff"]);
    assert!(
        status == Some(2) && said.contains(&server.url()) && said.contains("check that"),
        "{status:?} {said}"
    );

    lab.enter(|| runtime.block_on(async { server.come_up() }));
    lab.until("what changed meanwhile is there", || rules(&lab).contains("10.96.0.7 . tcp . 8088"));
    assert_eq!(call(&lab, &["diff"]).0, Some(0));
    server.apply(Kind::Services, service("svc7", "10.96.0.7", 8089));
    lab.until("the change is there", || call(&lab, &["diff"]).0 == Some(0) && rules(&lab).contains("8089"));
    // Without the agent somebody else's change stays.
    lab.end(Signal::SIGKILL);
    lab.sh("nft flush map ip sluice services");
    let (status, differences, _) = call(&lab, &["diff"]);
    assert!(status == Some(1) && differences.contains("10.96.0.7 . tcp . 8089"), "{differences}");
}
