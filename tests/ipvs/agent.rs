//! Connections through IPVS while endpoints go and agents end; the program itself, killed at any moment.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

use super::space::run;
use super::world::{Agent, endpoints, entries, no_service, on_node, plane, service};

/// A pod on 10.128.0.1 that echoes on port 8080, behind a veth device of the calling thread's namespace.
fn pod() {
    let (tell_thread, thread) = mpsc::channel();
    let (tell_wired, wired) = mpsc::channel();
    let (tell_ready, ready) = mpsc::channel();
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        tell_thread.send(gettid()).unwrap();
        wired.recv().unwrap();
        run("ip", &["address", "add", "10.128.0.1/24", "dev", "eth0"], "");
        run("ip", &["link", "set", "eth0", "up"], "");
        run("ip", &["route", "add", "default", "via", "10.128.0.254"], "");
        let listener = TcpListener::bind("0.0.0.0:8080").unwrap();
        tell_ready.send(()).unwrap();
        for mut connection in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = connection.read(&mut buffer) {
                    connection.write_all(&buffer[..length]).unwrap();
                }
            });
        }
    });
    let thread = thread.recv().unwrap().to_string();
    run("ip", &["link", "add", "pod1", "type", "veth", "peer", "name", "eth0"], "");
    run("ip", &["link", "set", "eth0", "netns", &thread], "");
    run("ip", &["address", "add", "10.128.0.254/24", "dev", "pod1"], "");
    run("ip", &["link", "set", "pod1", "up"], "");
    tell_wired.send(()).unwrap();
    ready.recv().unwrap();
}

fn connect() -> TcpStream {
    let address = "10.96.0.10:80".parse().unwrap();
    let connection =
        TcpStream::connect_timeout(&address, Duration::from_secs(10)).expect("the service answers");
    connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    connection
}

fn echoes(connection: &mut TcpStream) {
    let mut answer = [0; 4];
    connection.write_all(b"ping").unwrap();
    connection.read_exact(&mut answer).expect("the connection goes on");
    assert_eq!(&answer, b"ping");
}

fn allow_masquerade() {
    std::fs::write("/proc/sys/net/ipv4/vs/conntrack", "1").unwrap();
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
}

#[test]
fn an_endpoint_that_went_keeps_its_connections_through_a_restart_and_comes_back() {
    on_node(|| {
        pod();
        let (mut agent, _) = Agent::start(plane(), vec![service(|_| {}), endpoints(&["10.128.0.1"])]);
        allow_masquerade();
        let mut connection = connect();
        echoes(&mut connection);
        agent.change([endpoints(&["10.128.0.2"])]);
        agent.plane.look_after_terminating().unwrap();
        let draining = [
            "-A -t 10.96.0.10:80 -s rr -b flag-3",
            "-a -t 10.96.0.10:80 -r 10.128.0.1:8080 -m -w 0",
            "-a -t 10.96.0.10:80 -r 10.128.0.2:8080 -m -w 1",
        ];
        assert_eq!(entries("-t 10.96.0.10:80"), draining);
        assert_eq!(entries("-t 198.18.0.11:30080").len(), 2, "where it had no connection it went at once");
        echoes(&mut connection);
        drop(agent);

        let objects = || vec![service(|_| {}), endpoints(&["10.128.0.2"])];
        let (mut agent, plan) = Agent::start(plane(), objects());
        assert!(plan.is_empty(), "a restart changes nothing: {plan}");
        agent.plane.look_after_terminating().unwrap();
        assert_eq!(entries("-t 10.96.0.10:80"), draining);

        agent.change([no_service()]);
        agent.plane.look_after_terminating().unwrap();
        let lingering = [draining[0], draining[1]];
        assert_eq!(entries(""), lingering, "without its Service, too");
        assert!(agent.resync().is_empty());
        echoes(&mut connection);
        let refused = TcpStream::connect_timeout(&"10.96.0.10:80".parse().unwrap(), Duration::from_secs(10));
        assert_eq!(refused.map(drop).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);

        agent.change([service(|_| {}), endpoints(&["10.128.0.1"])]);
        assert_eq!(entries("-a -t 10.96.0.10:80"), ["-a -t 10.96.0.10:80 -r 10.128.0.1:8080 -m -w 1"]);
        echoes(&mut connection);
        let mut another = connect();
        echoes(&mut another);
        lingering::reset(another);

        agent.change([no_service()]);
        lingering::reset(connection);
        let deadline = Instant::now() + Duration::from_secs(200);
        while !entries("").is_empty() {
            assert!(Instant::now() < deadline, "{:?}", entries(""));
            std::thread::sleep(Duration::from_secs(1));
            agent.plane.look_after_terminating().unwrap();
        }
        assert!(
            !run("ip", &["address"], "").contains("10.96.0.10"),
            "the address went with the last connection"
        );
        assert!(agent.resync().is_empty());
    });
}

/// Closes connections by a reset, so that nothing is remembered for minutes.
mod lingering {
    use std::net::TcpStream;

    use nix::libc::linger;
    use nix::sys::socket::{setsockopt, sockopt};

    pub fn reset(connection: TcpStream) {
        setsockopt(&connection, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 }).unwrap();
    }
}

fn manifests(count: usize, pod: usize) -> String {
    let mut yaml = String::from(
        "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\nstatus: {addresses: [{type: InternalIP, address: 198.18.0.11}]}\n",
    );
    for n in 0..count {
        write!(
            yaml,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: ns}}\nspec: {{clusterIP: 10.96.{}.{}, ports: [{{port: 80}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s{n}, namespace: ns, labels: {{kubernetes.io/service-name: s{n}}}}}\n\
             addressType: IPv4\nports: [{{name: \"\", port: 8080}}]\nendpoints: [{{addresses: [10.128.{}.{}]}}, {{addresses: [10.128.{pod}.1]}}]\n",
            n / 200, n % 200 + 1, n / 200, n % 200 + 1
        )
        .unwrap();
    }
    yaml
}

fn sluice(command: &str, folder: &std::path::Path) -> Command {
    let mut sluice = Command::new(env!("CARGO_BIN_EXE_sluice"));
    sluice.arg(command).arg("--manifests").arg(folder).args(["--proxy-mode", "ipvs", "--node-name", "node1"]);
    sluice.args(["--cluster-cidr", "10.128.0.0/16", "--metrics-bind-address=", "--healthz-bind-address="]);
    sluice.stderr(Stdio::null()).stdout(Stdio::piped());
    sluice
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(180);
    while !done() {
        assert!(Instant::now() < deadline, "{what} does not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn an_agent_that_is_killed_at_any_moment_leaves_what_the_next_one_puts_right() {
    on_node(|| {
        let folder = tempfile::tempdir().unwrap();
        let write = |pod| std::fs::write(folder.path().join("all.yaml"), manifests(150, pod)).unwrap();
        let services =
            || run("ipvsadm", &["-S", "-n"], "").lines().filter(|line| line.starts_with("-A")).count();
        let equal = || sluice("diff", folder.path()).status().unwrap().success();
        // Killed as early as there is something, and some way further.
        for (pod, at) in [(200, 1), (201, 20), (202, 150)] {
            write(pod);
            let agent = sluice("run", folder.path()).spawn().unwrap();
            wait_for("a part", || services() >= at);
            kill(agent);
        }
        write(203);
        let agent = sluice("run", folder.path()).spawn().unwrap();
        wait_for("all of it", equal);
        assert_eq!(services(), 150);
        kill(agent);
        assert!(equal(), "what is there stays");
    });
}
