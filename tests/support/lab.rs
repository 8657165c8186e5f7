//! The program in a network namespace of its own, as the only thing there or on a node with a host's address, a route and a
//! server. Needs root and iproute2, and fails without.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Two Services with the lab's server as their endpoint.
pub const OBJECTS: &str = r#"
{kind: Node, apiVersion: v1, metadata: {name: node1},
 status: {addresses: [{type: InternalIP, address: 198.18.0.1}]}}
---
{kind: Service, apiVersion: v1, metadata: {name: web},
 spec: {type: NodePort, clusterIP: 10.96.0.80, ports: [{name: t, port: 80, nodePort: 30080}]}}
---
{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1,
 metadata: {name: web1, labels: {kubernetes.io/service-name: web}}, addressType: IPv4,
 ports: [{name: t, port: 8080}], endpoints: [{addresses: [198.18.0.2], nodeName: node1}]}
---
{kind: Service, apiVersion: v1, metadata: {name: new},
 spec: {clusterIP: 10.96.0.81, ports: [{name: t, port: 80}]}}
---
{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1,
 metadata: {name: new1, labels: {kubernetes.io/service-name: new}}, addressType: IPv4,
 ports: [{name: t, port: 8080}], endpoints: [{addresses: [198.18.0.2], nodeName: node1}]}
"#;

/// One more, for a server that a test has at 198.18.0.2:9090.
pub const ECHO: &str = r#"---
{kind: Service, apiVersion: v1, metadata: {name: echo},
 spec: {clusterIP: 10.96.0.82, ports: [{name: t, port: 80}]}}
---
{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1,
 metadata: {name: echo1, labels: {kubernetes.io/service-name: echo}}, addressType: IPv4,
 ports: [{name: t, port: 9090}], endpoints: [{addresses: [198.18.0.2], nodeName: node1}]}
"#;

/// The program.
pub const SLUICE: &str = env!("CARGO_BIN_EXE_sluice");
/// Where the Services are.
pub const WEB: &str = "10.96.0.80:80";
pub const NEW: &str = "10.96.0.81:80";
/// What the lab's server is.
const SERVER: &str = "198.18.0.2:8080";

/// A network namespace; it goes when this is dropped, with the program.
pub struct Lab {
    pub namespace: String,
    pub folder: tempfile::TempDir,
    agent: Option<Child>,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// Loopback and nothing else.
    pub fn bare() -> Lab {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("sluice-lab-{}-{number}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &namespace]));
        let lab = Lab { namespace, folder: tempfile::tempdir().expect("a folder"), agent: None };
        run(Command::new("ip").args(["-n", &lab.namespace, "link", "set", "lo", "up"]));
        lab
    }

    /// A node with address 198.18.0.1, a default route, and a server.
    pub fn new() -> Lab {
        let lab = Lab::bare();
        for line in [
            "ip link add up0 type veth peer name up1",
            "ip link set up0 up",
            "ip link set up1 up",
            "ip address add 198.18.0.1/24 dev up0",
            "ip address add 198.18.0.2/32 dev lo",
            "ip route add default via 198.18.0.9 dev up0",
        ] {
            lab.sh(line);
        }
        let listener = lab.enter(|| TcpListener::bind(SERVER).expect("the server's address"));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that went is no concern of the server's.
                let _ = stream.and_then(|mut stream| stream.write_all(b"hello"));
            }
        });
        fs::write(lab.manifests(), OBJECTS).expect("write");
        lab
    }

    pub fn manifests(&self) -> PathBuf {
        self.folder.path().join("cluster.yaml")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// A program in the namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program.as_ref());
        command
    }

    /// Runs a line of sh in the namespace; it must succeed.
    pub fn sh(&self, line: &str) -> String {
        let output = self.command("sh").args(["-c", line]).output().expect("sh");
        let (out, errors) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{line}: {}\n{errors}\n{out}", output.status);
        out
    }

    /// Runs sluice to its end.
    pub fn sluice(&self, arguments: &[&str]) -> Output {
        self.command(SLUICE).args(arguments).output().expect("sluice runs")
    }

    /// The program under another name.
    pub fn named(&self, name: &str) -> PathBuf {
        let program = self.folder.path().join(name);
        if !program.exists() {
            std::os::unix::fs::symlink(SLUICE, &program).expect("a link");
        }
        program
    }

    /// Starts the agent on the lab's objects and waits until its rules are in place.
    pub fn start(&mut self, command: &mut Command) {
        self.spawn(command.args(["--hostname-override=node1", "--manifests"]).arg(self.manifests()));
        self.ready();
    }

    /// Starts the agent as node1 on an API server.
    pub fn follow(&mut self, kubeconfig: &Path, flags: &[&str]) {
        let mut agent = self.command(SLUICE);
        agent.args(["run", "--hostname-override=node1", "--kubeconfig"]).arg(kubeconfig).args(flags);
        self.spawn(&mut agent);
    }

    /// Waits until the rules are in place.
    pub fn ready(&self) {
        self.until("ready", || self.code(10256, "/readyz") == Some(200));
    }

    /// Starts the agent.
    pub fn spawn(&mut self, command: &mut Command) {
        let log = File::options().create(true).append(true).open(self.log()).expect("a log");
        self.agent = Some(command.stderr(log).stdout(Stdio::null()).spawn().expect("the agent starts"));
    }

    /// Whether the agent is still the process that was started.
    pub fn is_running(&mut self) -> bool {
        self.agent.as_mut().is_some_and(|agent| agent.try_wait().expect("its state").is_none())
    }

    /// Ends the agent as a node does.
    pub fn stop(&mut self) {
        self.end(Signal::SIGTERM);
    }

    /// Ends the agent by a signal.
    pub fn end(&mut self, signal: Signal) {
        let mut agent = self.agent.take().expect("an agent");
        kill(Pid::from_raw(agent.id() as i32), signal).expect("it runs");
        agent.wait().expect("it ends");
        let logged = self.logged();
        assert!(!logged.contains("panicked at"), "{logged}");
    }

    /// What the agent has logged.
    pub fn logged(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Lines of the log with this in them.
    pub fn lines(&self, with: &str) -> usize {
        self.logged().lines().filter(|line| line.contains(with)).count()
    }

    /// Runs something on a thread in the namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(Path::new("/run/netns").join(&self.namespace)).expect("the namespace");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                work()
            });
            thread.join().expect("no panic")
        })
    }

    /// Whether the lab's server answers at an address, from the node itself.
    pub fn connects(&self, address: &str) -> Result<(), ErrorKind> {
        let address: SocketAddr = address.parse().expect("an address");
        self.enter(|| {
            let mut stream =
                TcpStream::connect_timeout(&address, Duration::from_secs(2)).map_err(|e| e.kind())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map_err(|e| e.kind())?;
            assert_eq!(answer, "hello");
            Ok(())
        })
    }

    /// Status of an answer on loopback; `None` where nobody listens.
    pub fn code(&self, port: u16, path: &str) -> Option<u16> {
        self.get(port, path).map(|(code, _)| code)
    }

    /// Status and body.
    pub fn get(&self, port: u16, path: &str) -> Option<(u16, String)> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        self.enter(move || {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
            stream.write_all(request.as_bytes()).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
        })
    }

    /// The body; empty where nobody listens.
    pub fn body(&self, port: u16, path: &str) -> String {
        self.get(port, path).map(|(_, body)| body).unwrap_or_default()
    }

    /// The value of a series of the agent's metrics, where it is there.
    pub fn metric(&self, series: &str) -> Option<f64> {
        let text = self.body(10249, "/metrics");
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        Some(value.parse().expect("a number"))
    }

    pub fn until(&self, what: &str, done: impl Fn() -> bool) {
        // An emulated machine is slower.
        let slowness =
            std::env::var("SLUICE_TEST_SLOWNESS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
        let deadline = Instant::now() + Duration::from_secs(60) * slowness;
        while !done() {
            if Instant::now() >= deadline {
                let connections = self.sh("ss -Htani; conntrack -L 2>/dev/null; nft list tables");
                panic!("not in time: {what}\n{}\n{connections}", self.logged());
            }
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

/// Runs a program; it must succeed.
pub fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A file of the project's testdata.
pub fn testdata(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(path)
}

/// `promtool check metrics`. One name is kube-proxy's own against the rules: a gauge that ends in `_total`.
pub fn promtool_finds_no_fault(metrics: &str) {
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
