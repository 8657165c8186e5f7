//! What kube-proxy's mode ipvs left, beside virtual services of others. Debian's kernels have IPVS:
//! `tests/vm/tests --only 'operator --ignored ipvs::' bookworm`.

use super::lab::{Lab, NEW, WEB, text};
use super::sysctl::value;

/// kube-proxy's, and a balancer's.
fn leave(lab: &Lab) {
    for line in [
        "ip link add kube-ipvs0 type dummy",
        "ip address add 10.96.0.80/32 dev kube-ipvs0",
        "ip address add 10.96.0.81/32 dev kube-ipvs0",
        "ipvsadm -A -t 10.96.0.80:80 -s rr && ipvsadm -a -t 10.96.0.80:80 -r 198.18.0.2:8080 -m",
        "ipvsadm -A -t 10.96.0.81:80 -s rr",
        "ipvsadm -A -t 198.18.0.1:30080 -s rr && ipvsadm -a -t 198.18.0.1:30080 -r 198.18.0.2:8080 -m",
        "ipset create KUBE-CLUSTER-IP hash:ip,port && ipset add KUBE-CLUSTER-IP 10.96.0.80,tcp:80",
        "ipset create KUBE-6-CLUSTER-IP hash:ip,port family inet6",
        "ipset create KUBE-SRC-ABCDEFGHIJKL2345 hash:ip",
        "ipset create mine hash:ip",
        "iptables-legacy -t nat -N KUBE-SERVICES && \
         iptables-legacy -t nat -A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT",
        "ipvsadm -A -t 198.18.0.90:6443 -s wlc && ipvsadm -a -t 198.18.0.90:6443 -r 198.18.0.7:6443 -m -w 3",
    ] {
        lab.sh(line);
    }
}

fn assert_only_others_are_left(lab: &Lab) {
    let left = lab.sh("ipvsadm -Sn");
    assert!(
        left.contains("-A -t 198.18.0.90:6443 -s wlc") && left.contains("198.18.0.7:6443 -m -w 3"),
        "{left}"
    );
    assert_eq!(left.matches("-A ").count(), 1, "{left}");
    assert!(!lab.sh("ip link").contains("kube-ipvs0"));
    assert_eq!(lab.sh("ipset list -n | sort"), "KUBE-SRC-ABCDEFGHIJKL2345\nmine\n");
}

#[test]
#[ignore = "needs IPVS: see above"]
fn kube_proxys_virtual_services_go_and_others_stay() {
    let lab = Lab::new();
    leave(&lab);
    let manifests = format!("--manifests={}", lab.manifests().display());
    let check = lab.sluice(&["check", &manifests]);
    let said = text(&check.stdout);
    assert_eq!(check.status.code(), Some(1), "{said}");
    assert!(said.contains("problem: leftovers: kube-proxy's 3 virtual services of IPVS"), "{said}");
    assert!(said.contains("problem: leftovers: kube-proxy's the device kube-ipvs0"), "{said}");
    assert!(said.contains("problem: leftovers: kube-proxy's 2 ipsets"), "{said}");
    let output = lab.sluice(&["cleanup", "--kube-proxy"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_only_others_are_left(&lab);
}

#[test]
#[ignore = "needs IPVS: see above"]
fn after_the_first_commit_the_tables_serve_instead() {
    let mut lab = Lab::new();
    leave(&lab);
    assert_eq!(lab.connects(WEB), Ok(()), "kube-proxy's virtual service");
    let mut kube_proxy = lab.command(lab.named("kube-proxy"));
    lab.start(&mut kube_proxy);
    lab.until("kube-proxy's rules are gone", || lab.lines("removed what kube-proxy left") == 1);
    assert_only_others_are_left(&lab);
    assert_eq!(lab.connects(WEB), Ok(()));
    assert_eq!(lab.connects(NEW), Ok(()));
}

#[test]
#[ignore = "needs IPVS: see above"]
fn check_tries_what_mode_ipvs_needs() {
    let lab = Lab::new();
    let manifests = format!("--manifests={}", lab.manifests().display());
    let line = ["check", "--proxy-mode=ipvs", "--hostname-override=node1", &manifests];
    let said = text(&lab.sluice(&line).stdout);
    assert!(!said.contains(": ipvs: "), "{said}");
}

const VS: [&str; 3] =
    ["net.ipv4.vs.conntrack", "net.ipv4.vs.expire_nodest_conn", "net.ipv4.vs.expire_quiescent_template"];
const ARP: [&str; 2] = ["net.ipv4.conf.all.arp_ignore", "net.ipv4.conf.all.arp_announce"];
const REUSE: &str = "net.ipv4.vs.conn_reuse_mode";

fn agent(lab: &Lab, flags: &str, before: &str) -> std::process::Command {
    let line = format!("{before} exec {} run --proxy-mode=ipvs {flags} \"$@\"", env!("CARGO_BIN_EXE_sluice"));
    let mut command = lab.command("sh");
    command.args(["-c", &line, "sh"]);
    command
}

#[test]
#[ignore = "needs IPVS: see above"]
fn settings_and_timeouts_are_kube_proxys() {
    let mut lab = Lab::new();
    let reuse = value(&lab, REUSE);
    let mut usual = agent(&lab, "", "");
    lab.start(&mut usual);
    assert_eq!(VS.map(|name| value(&lab, name)), [1, 1, 1]);
    assert_eq!(ARP.map(|name| value(&lab, name)), [0, 0]);
    assert_eq!(value(&lab, REUSE), reuse);
    assert!(lab.sh("ipvsadm -L --timeout").contains("900 120 300"), "the kernel's");
    lab.stop();
    let flags = "--ipvs-strict-arp --ipvs-tcp-timeout=10m --ipvs-tcpfin-timeout=31s --ipvs-udp-timeout=62s";
    let mut asked = agent(&lab, flags, "");
    lab.start(&mut asked);
    assert_eq!(ARP.map(|name| value(&lab, name)), [1, 2]);
    assert!(lab.sh("ipvsadm -L --timeout").contains("600 31 62"));
}

#[test]
#[ignore = "needs IPVS: see above"]
fn settings_that_cannot_be_set_are_named_and_services_served() {
    let mut lab = Lab::new();
    let read_only = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys &&";
    let mut command = agent(&lab, "--ipvs-strict-arp", read_only);
    lab.start(&mut command);
    let log = lab.logged();
    let warning = log.lines().find(|line| line.contains("could not be set")).expect("a warning");
    for name in VS.iter().chain(&ARP) {
        assert!(warning.contains(&format!("{name}=")), "{name}: {warning}");
    }
    assert!(warning.contains("sluice run --init-only"), "{warning}");
    assert_eq!(VS.map(|name| value(&lab, name)), [0, 0, 0]);
    let check = ["check", "--proxy-mode=ipvs", "--hostname-override=node1", "--manifests"];
    let said = text(&lab.sluice(&[&check[..], &[&lab.manifests().to_string_lossy()]].concat()).stdout);
    assert!(
        said.contains("problem: settings: net.ipv4.vs.conntrack is 0, not 1: nothing is masqueraded"),
        "{said}"
    );
}

#[test]
#[ignore = "needs IPVS: see above"]
fn what_service_ports_carry_is_measured_where_that_is_asked_for() {
    let mut lab = Lab::new();
    let mut command = agent(&lab, "", "");
    lab.start(&mut command);
    let metrics = |lab: &Lab| lab.get(10249, "/metrics").map(|(_, body)| body).unwrap_or_default();
    // No connection yet: the kernel's counts are up to two seconds old, so that the next agent would take it for its own.
    assert!(!metrics(&lab).contains("sluice_ipvs_"), "it is opt-in");
    lab.stop();
    let mut command = agent(&lab, "--ipvs-service-metrics", "");
    lab.start(&mut command);
    let of = |name: &str, service: &str, more: &str| -> Option<u64> {
        let series = format!(
            "sluice_ipvs_{name}{{{more}service_name=\"{service}\",service_namespace=\"default\",service_port=\"t\"}} "
        );
        metrics(&lab).lines().find_map(|line| line.strip_prefix(&series)?.parse().ok())
    };
    lab.until("the series", || of("connections_total", "web", "") == Some(0));
    (0..3).for_each(|_| assert_eq!(lab.connects(WEB), Ok(())));
    assert_eq!(lab.connects("198.18.0.1:30080"), Ok(()), "by the NodePort");
    lab.until("counted", || of("connections_total", "web", "") == Some(4));
    assert_eq!(of("connections_total", "new", ""), Some(0));
    for direction in ["in", "out"] {
        let label = format!("direction=\"{direction}\",");
        let (packets, bytes) = (of("packets_total", "web", &label), of("bytes_total", "web", &label));
        // At least SYN, ACK, FIN of each, with headers of 40 bytes and more.
        assert!(packets >= Some(4 * 2) && bytes >= packets.map(|count| count * 40), "{packets:?} {bytes:?}");
    }
}
