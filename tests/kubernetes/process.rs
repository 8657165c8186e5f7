//! The real agent on an API server, in a network namespace of its own. Needs root and iproute2, and fails without.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use serde_json::json;

use crate::agent::{NODE, node, service};
use crate::apiserver::{ApiServer, Kind};
use crate::populate;

/// A network namespace with an agent; both go when it is dropped.
pub struct Lab {
    namespace: String,
    folder: tempfile::TempDir,
    agent: Option<Child>,
}

impl Lab {
    pub fn new(name: &str) -> Lab {
        let namespace = format!("sluice-{name}-{}", std::process::id());
        let lab = Lab { namespace, folder: tempfile::tempdir().expect("a folder"), agent: None };
        run(Command::new("ip").args(["netns", "add", &lab.namespace]));
        run(Command::new("ip").args(["-n", &lab.namespace, "link", "set", "lo", "up"]));
        lab
    }

    /// Runs `work` on a thread in the namespace; the runtime's sockets made there belong to it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(Path::new("/run/netns").join(&self.namespace)).expect("the namespace");
        let work = || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            work()
        };
        std::thread::scope(|scope| scope.spawn(work).join()).expect("no panic")
    }

    pub fn start(&mut self, server: &ApiServer) {
        let kubeconfig = server.write_kubeconfig(self.folder.path()).expect("a kubeconfig");
        let log = File::create(self.folder.path().join("log")).expect("a log");
        let agent = Command::new("ip")
            .args(["netns", "exec", &self.namespace, env!("CARGO_BIN_EXE_sluice"), "run"])
            .args(["--hostname-override", NODE, "--kubeconfig"])
            .arg(kubeconfig)
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .expect("the agent starts");
        self.agent = Some(agent);
    }

    /// Runs another command of the program; its exit status, and what it said on stdout and stderr.
    fn call(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.namespace, env!("CARGO_BIN_EXE_sluice")])
            .args(arguments)
            .args(["--hostname-override", NODE])
            .env("KUBECONFIG", self.folder.path().join("kubeconfig"))
            .output()
            .expect("the program starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// The rules of the namespace, without counters and times.
    fn rules(&self) -> String {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.namespace, "nft", "--stateless", "list", "ruleset"])
            .output()
            .expect("nft starts");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).expect("a log")
    }

    /// The body; empty where nobody listens.
    pub fn get(&self, port: u16, path: &str) -> String {
        let ask = || {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
        };
        self.enter(ask).unwrap_or_default()
    }

    /// The value of a series, where it is there.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let text = self.get(10249, "/metrics");
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        Some(value.parse().expect("a number"))
    }

    pub fn until(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done() {
            assert!(Instant::now() < deadline, "not within 30 s: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            // Errors mean that it has ended already.
            _ = agent.kill();
            _ = agent.wait();
        }
        _ = Command::new("ip").args(["netns", "del", &self.namespace]).status();
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

#[test]
fn the_first_sync_waits_for_the_node_and_metrics_tell_of_the_server() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut lab = Lab::new("node");
    // Until the listener is made, the runtime is on the thread that entered the namespace.
    let mut server = lab.enter(|| runtime.block_on(ApiServer::tls(true)));
    populate(&server);
    server.delete(Kind::Nodes, "", NODE);
    let mut bad = service("bad", "10.96.0.99", 80);
    bad["spec"]["ports"] = json!("none");
    server.apply(Kind::Services, bad);
    lab.start(&server);

    let waiting =
        |part: &str| lab.log().lines().any(|l| l.contains("waiting for the own Node") && l.contains(part));
    lab.until("the log says that there is no Node", || waiting("there is no such Node") && waiting(NODE));
    let pending =
        "[+] services listed\n[+] endpointslices listed\n[-] node known\n[-] first sync done\nnot ready\n";
    assert_eq!(lab.get(10256, "/readyz"), pending);

    let mut bare = node(NODE, "198.18.0.11");
    bare["status"] = json!({});
    server.apply(Kind::Nodes, bare);
    lab.until("the log says that it has no address", || waiting("no address"));
    assert_eq!(lab.get(10256, "/readyz"), pending);
    assert_eq!(
        lab.metric("kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}"),
        Some(0.0)
    );

    server.apply(Kind::Nodes, node(NODE, "198.18.0.11"));
    lab.until("synced", || lab.get(10256, "/readyz").ends_with("first sync done\nready\n"));

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
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut lab = Lab::new("outage");
    let mut server = lab.enter(|| runtime.block_on(ApiServer::tls(true)));
    populate(&server);
    lab.start(&server);
    lab.until("synced", || lab.get(10256, "/readyz").ends_with("\nready\n"));
    // The current context of KUBECONFIG, as with kubectl.
    let (status, dumped, said) = lab.call(&["dump"]);
    assert!(status == Some(0) && dumped.contains("10.96.0.7 . tcp . 80"), "{dumped}{said}");
    assert_eq!(lab.call(&["diff"]).0, Some(0));
    let (status, told, said) = lab.call(&["explain", "10.96.0.7:80", "--from", "10.128.0.1"]);
    assert!(status == Some(0) && told.contains("demo/svc7") && told.contains("10.128.1.7:"), "{told}{said}");

    let before = lab.rules();
    runtime.block_on(server.go_down());
    server.apply(Kind::Services, service("svc7", "10.96.0.7", 8088));
    lab.until("the outage is told", || lab.log().contains("the API server does not serve"));
    assert_eq!(lab.rules(), before, "rules stay as they are meanwhile");
    let (status, _, said) = lab.call(&["diff"]);
    assert!(
        status == Some(2) && said.contains(&server.url()) && said.contains("check that"),
        "{status:?} {said}"
    );

    lab.enter(|| runtime.block_on(async { server.come_up() }));
    lab.until("what changed meanwhile is there", || lab.rules().contains("10.96.0.7 . tcp . 8088"));
    assert_eq!(lab.call(&["diff"]).0, Some(0));
    server.apply(Kind::Services, service("svc7", "10.96.0.7", 8089));
    lab.until("the change is there", || lab.call(&["diff"]).0 == Some(0) && lab.rules().contains("8089"));
    // Without the agent somebody else's change stays.
    if let Some(agent) = &mut lab.agent {
        agent.kill().expect("it runs");
        agent.wait().expect("it ends");
    }
    run(Command::new("ip").args([
        "netns",
        "exec",
        &lab.namespace,
        "nft",
        "flush",
        "map",
        "ip",
        "sluice",
        "services",
    ]));
    let (status, differences, _) = lab.call(&["diff"]);
    assert!(status == Some(1) && differences.contains("10.96.0.7 . tcp . 8089"), "{differences}");
}
