//! Settings of the kernel. Those of connection tracking are of each network namespace, but for the size of its table.

use std::process::Command;

use serde_json::json;

use super::apiserver::ApiServer;
use super::lab::{Lab, SLUICE, text};

const NAMES: [&str; 5] = [
    "net.netfilter.nf_conntrack_tcp_timeout_established",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
    "net.netfilter.nf_conntrack_udp_timeout",
    "net.netfilter.nf_conntrack_udp_timeout_stream",
    "net.netfilter.nf_conntrack_tcp_be_liberal",
];
const FORWARD: [&str; 2] = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];

/// A setting's value in the lab.
pub fn value(lab: &Lab, name: &str) -> u64 {
    let file = format!("/proc/sys/{}", name.replace('.', "/"));
    lab.sh(&format!("cat {file}")).trim().parse().expect("a number")
}

#[test]
fn an_init_container_sets_what_the_configuration_says() {
    let lab = Lab::new();
    FORWARD.iter().for_each(|name| drop(lab.sh(&format!("echo 0 >/proc/sys/{}", name.replace('.', "/")))));
    let flags = [
        "run",
        "--init-only",
        "--cluster-cidr=10.128.0.0/16,fd00:10:128::/48",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=2h",
        "--conntrack-tcp-timeout-close-wait=90s",
        "--conntrack-udp-timeout=31s",
        "--conntrack-udp-timeout-stream=122s",
        "--conntrack-tcp-be-liberal",
    ];
    let output = lab.sluice(&flags);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(NAMES.map(|name| value(&lab, name)), [7200, 90, 31, 122, 1]);
    assert_eq!(FORWARD.map(|name| value(&lab, name)), [1, 1]);
    assert!(said.contains("set net.netfilter.nf_conntrack_udp_timeout=31 (it was "), "{said}");
    // Everything is as it should be: nothing is said.
    let said = text(&lab.sluice(&flags).stderr);
    assert!(!said.contains("nf_conntrack") && !said.contains("forward"), "{said}");
}

#[test]
fn zero_and_what_is_not_asked_for_leave_what_the_host_has() {
    let lab = Lab::new();
    lab.sh("echo 0 >/proc/sys/net/ipv6/conf/all/forwarding");
    let before = NAMES.map(|name| value(&lab, name));
    let output = lab.sluice(&[
        "run",
        "--init-only",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
        "--cluster-cidr=10.128.0.0/16",
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(NAMES.map(|name| value(&lab, name)), before);
    assert_eq!(value(&lab, FORWARD[1]), 0, "no IPv6 was asked for");
}

/// The agent where /proc/sys is read-only.
fn read_only(lab: &Lab) -> Command {
    let mut agent = lab.command("sh");
    let script = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"";
    agent.args(["-c", script, "sh", SLUICE, "run"]);
    agent
}

#[test]
fn what_cannot_be_set_is_an_event_at_the_node_too() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut lab = Lab::new();
    let server = lab.enter(|| runtime.block_on(ApiServer::plain()));
    let kubeconfig = server.write_kubeconfig(lab.folder.path()).expect("a kubeconfig");
    let mut agent = read_only(&lab);
    agent.args(["--hostname-override=node1", "--conntrack-min=2000000000", "--kubeconfig"]).arg(kubeconfig);
    lab.spawn(&mut agent);
    let told = || server.events().into_iter().find(|event| event["reason"] == "readOnlySysFS");
    lab.until("the event", || told().is_some());
    let event = told().expect("an event");
    assert_eq!((&event["type"], &event["action"]), (&json!("Warning"), &json!("StartKubeProxy")));
    assert_eq!((&event["regarding"]["kind"], &event["regarding"]["name"]), (&json!("Node"), &json!("node1")));
    let note = event["note"].as_str().expect("a note");
    assert!(note.contains("`sluice run --init-only`"), "{note}");
    assert!(note.contains("sysctl -w net.netfilter.nf_conntrack_max=2000000000 "), "{note}");
    assert!(note.ends_with("net.ipv4.ip_forward=1") || !note.contains("ip_forward"), "cut off: {note}");
}

#[test]
fn what_cannot_be_set_is_one_warning_with_the_remedy_and_the_agent_serves() {
    let mut lab = Lab::new();
    lab.sh("echo 0 >/proc/sys/net/ipv4/ip_forward");
    let mut agent = read_only(&lab);
    agent.args(["--conntrack-max-per-core=0", "--conntrack-udp-timeout=31s"]);
    lab.start(&mut agent);
    let logged = lab.logged();
    let warnings: Vec<&str> = logged.lines().filter(|line| line.contains("could not be set")).collect();
    let [warning] = warnings[..] else { panic!("{logged}") };
    for part in [
        "net.netfilter.nf_conntrack_udp_timeout=31 (it is 30: Read-only file system",
        "net.ipv4.ip_forward=1 (it is 0: Read-only file system",
        "`sluice run --init-only`",
        "sysctl -w net.netfilter.nf_conntrack_tcp_timeout_established=86400 ",
    ] {
        assert!(warning.contains(part), "{part:?} is not in\n{warning}");
    }
    assert_eq!(lab.connects(super::lab::WEB), Ok(()));
}

#[test]
fn the_size_of_the_table_belongs_to_the_first_namespace() {
    let lab = Lab::new();
    let output = lab.sluice(&["run", "--init-only", "--conntrack-min=2000000000"]);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("net.netfilter.nf_conntrack_max=2000000000 (it is "), "{said}");
    assert!(said.contains("net.netfilter.nf_conntrack_buckets=500000000 (it is "), "{said}");
}
