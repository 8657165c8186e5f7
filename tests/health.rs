//! Health and metrics of the real agent, in a network namespace of its own. Needs root and iproute2, and fails
//! without.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

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

/// A network namespace with an agent; both go when it is dropped.
struct Lab {
    namespace: String,
    agent: Option<Child>,
}

impl Lab {
    fn new(name: &str) -> Lab {
        let lab = Lab { namespace: format!("sluice-{name}-{}", std::process::id()), agent: None };
        run(Command::new("ip").args(["netns", "add", &lab.namespace]));
        run(Command::new("ip").args(["-n", &lab.namespace, "link", "set", "lo", "up"]));
        lab
    }

    /// Starts the agent, with what is put before its command line.
    fn start(&mut self, before: &[&str], manifests: &Path) {
        let agent = Command::new("ip")
            .args(["netns", "exec", &self.namespace])
            .args(before)
            .args([env!("CARGO_BIN_EXE_sluice"), "run", "--hostname-override=node1", "--manifests"])
            .arg(manifests)
            .stderr(Stdio::null())
            .spawn()
            .expect("the agent starts");
        self.agent = Some(agent);
    }

    /// Status and body; `None` where nobody listens.
    fn get(&self, port: u16, path: &str) -> Option<(u16, String)> {
        let file = File::open(Path::new("/run/netns").join(&self.namespace)).expect("the namespace");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        // A thread of its own: it stays in the namespace.
        let ask = move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
            stream.write_all(request.as_bytes()).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
        };
        std::thread::spawn(ask).join().expect("no panic")
    }

    fn code(&self, port: u16, path: &str) -> Option<u16> {
        self.get(port, path).map(|(code, _)| code)
    }

    fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.get(10249, "/metrics").expect("metrics");
        let line = text.lines().find_map(|l| l.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{series} is not there")).parse().expect("a number")
    }

    fn until(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !done() {
            assert!(Instant::now() < deadline, "not within 30 s: {what}");
            sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            // Errors mean that it has ended already.
            let _ = agent.kill();
            let _ = agent.wait();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).status();
    }
}

/// One name is kube-proxy's own against the rules: a gauge that ends in `_total`.
fn promtool_finds_no_fault(metrics: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of Debian's package prometheus");
    promtool.stdin.take().expect("a pipe").write_all(metrics.as_bytes()).expect("write");
    let output = promtool.wait_with_output().expect("an end");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let found: Vec<&str> = said.lines().collect();
    assert!(
        found.iter().all(|line| line.starts_with("kubeproxy_sync_proxy_rules_no_local_endpoints_total ")),
        "{said}"
    );
    assert!(matches!(output.status.code(), Some(0 | 3)), "{said}");
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

#[test]
fn healthy_with_its_rules_and_again_after_somebody_flushed_them() {
    let directory = tempfile::tempdir().expect("a folder");
    let manifests = directory.path().join("cluster.yaml");
    std::fs::write(&manifests, OBJECTS).expect("write");
    let mut lab = Lab::new("health");
    lab.start(&[], &manifests);
    lab.until("ready", || lab.code(10256, "/readyz") == Some(200));
    assert_eq!(lab.code(10256, "/healthz"), Some(200));
    assert_eq!(lab.code(10256, "/livez"), Some(200));
    lab.until("the health check port is open", || lab.code(32000, "/") == Some(200));
    assert_eq!(lab.get(10249, "/proxyMode"), Some((200, "nftables".into())));
    assert_eq!(lab.get(10249, "/healthz"), Some((200, "ok".into())));
    assert_eq!(lab.metric("sluice_drift_repaired_total"), 0.0);
    let (code, configz) = lab.get(10249, "/configz").expect("an answer");
    assert!(code == 200 && configz.contains(r#""kubeproxy.config.k8s.io":{"#), "{configz}");
    assert!(configz.contains(r#""hostnameOverride":"node1""#), "{configz}");
    let (_, metrics) = lab.get(10249, "/metrics").expect("metrics");
    assert!(!metrics.contains("sluice_api_"), "there is no API server");
    promtool_finds_no_fault(&metrics);
    run(Command::new("ip").args(["netns", "exec", &lab.namespace, "nft", "flush", "ruleset"]));
    lab.until("the rules are repaired", || lab.metric("sluice_drift_repaired_total") == 1.0);
    assert_eq!(lab.metric("sluice_drift_detected_total"), 1.0);
    assert_eq!(lab.code(10256, "/healthz"), Some(200));
    assert_eq!(lab.metric(r#"kubeproxy_proxy_healthz_total{code="200"}"#), 2.0);
    // The Service goes, and its port with it.
    std::fs::write(&manifests, OBJECTS.replace("externalTrafficPolicy: Local", "sessionAffinity: None"))
        .expect("write");
    lab.until("the health check port is closed", || lab.code(32000, "/").is_none());
}

#[test]
fn unhealthy_and_not_ready_where_the_kernel_refuses_the_rules() {
    let directory = tempfile::tempdir().expect("a folder");
    let manifests = directory.path().join("cluster.yaml");
    std::fs::write(&manifests, OBJECTS).expect("write");
    let mut lab = Lab::new("refused");
    // Without CAP_NET_ADMIN nf_tables refuses every request, reading too.
    lab.start(&["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"], &manifests);
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
    assert!(lab.metric(r#"sluice_sync_failures_total{stage="observe"}"#) >= 1.0);
    assert_eq!(lab.metric("kubeproxy_sync_proxy_rules_service_changes_pending"), 1.0);
    assert_eq!(lab.code(32000, "/"), None, "no rules, no health check port");
}
