//! Each condition is made, found, and gone after the remedy. A host without any is healthy.

use std::fs;

use serde_json::Value;

use super::lab::{Lab, SLUICE, testdata, text};

/// A node on which nothing is wrong.
fn node() -> Lab {
    let lab = Lab::new();
    lab.sh("echo 1 >/proc/sys/net/ipv4/ip_forward");
    lab
}

/// What `check` prints about the lab's objects as JSON: findings that count, and whether the exit status fits.
fn check(lab: &Lab, more: &[&str]) -> Vec<(String, String, String, String)> {
    let manifests = format!("--manifests={}", lab.manifests().display());
    let line =
        ["check", "--format=json", "--hostname-override=node1", "--cluster-cidr=10.128.0.0/16", &manifests];
    let output = lab.sluice(&[&line, more].concat());
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}\n{}", text(&output.stdout), text(&output.stderr)));
    let word = |finding: &Value, key: &str| finding[key].as_str().expect("text").to_owned();
    let findings = report["findings"].as_array().expect("a list").iter();
    let findings: Vec<_> = findings
        .map(|f| (word(f, "check"), word(f, "severity"), word(f, "what"), word(f, "remedy")))
        .filter(|(check, severity, ..)| {
            !matches!(&**check, "settings" | "invalid-packets") || severity != "note"
        })
        .collect();
    let healthy = findings.iter().all(|(_, severity, ..)| severity == "note");
    assert_eq!(report["healthy"], Value::Bool(healthy));
    assert_eq!(output.status.code(), Some(if healthy { 0 } else { 1 }));
    findings
}

/// The one finding.
fn only(lab: &Lab, more: &[&str]) -> (String, String, String, String) {
    let mut findings = check(lab, more);
    assert_eq!(findings.len(), 1, "{findings:#?}");
    findings.remove(0)
}

fn assert_found(lab: &Lab, name: &str, severity: &str, what: &str) -> String {
    let found = only(lab, &[]);
    assert_eq!((&*found.0, &*found.1), (name, severity), "{found:?}");
    assert!(found.2.contains(what), "{what:?} is not in {:?}", found.2);
    found.3
}

#[test]
fn a_host_with_nothing_in_the_way_is_healthy() {
    let mut lab = node();
    assert_eq!(check(&lab, &[]), []);
    // Nor are sluice's own rules.
    let mut agent = lab.command(SLUICE);
    lab.start(agent.arg("run"));
    assert_eq!(check(&lab, &[]), []);
    let output = lab.sluice(&["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    let said = text(&output.stdout);
    assert!(said.contains("nothing found by: kernel, conntrack, settings, leftovers, kube-proxy"), "{said}");
    assert!(said.contains("note: api-server: no Services are known"), "{said}");
}

#[test]
fn the_kernel_is_tried_without_the_right_to_make_namespaces_too() {
    let mut lab = node();
    let mut agent = lab.command(SLUICE);
    lab.start(agent.arg("run"));
    let before = lab.sh("nft list ruleset");
    let manifests = lab.manifests();
    let check = |rights: &str| {
        let output = lab
            .command("setpriv")
            .args([&format!("--bounding-set={rights}"), &format!("--inh-caps={rights}")])
            .args([SLUICE, "check", "--hostname-override=node1", "--manifests"])
            .arg(&manifests)
            .output()
            .expect("setpriv runs");
        (output.status.code(), text(&output.stdout))
    };
    assert_eq!(check("-sys_admin").0, Some(0), "{}", check("-sys_admin").1);
    assert_eq!(lab.sh("nft list ruleset"), before);
    let (code, said) = check("-net_admin,-sys_admin");
    assert_eq!(code, Some(1));
    assert!(said.contains("problem: kernel: the rules of nf_tables cannot be read"), "{said}");
    let clean = said.lines().last().expect("a line");
    assert!(!clean.contains("forward") && !clean.contains("leftovers"), "{clean}");
}

#[test]
fn leftovers_and_a_running_kube_proxy() {
    let lab = node();
    lab.sh(&format!("nft -f {}", testdata("kube-proxy/nftables.nft").display()));
    lab.sh(&format!("iptables-nft-restore {}", testdata("kube-proxy/iptables.rules").display()));
    lab.sh(&format!("iptables-legacy-restore {}", testdata("kube-proxy/iptables.rules").display()));
    let findings = check(&lab, &[]);
    assert_eq!(findings.len(), 8, "two tables and three each of iptables: {findings:#?}");
    assert!(findings.iter().all(|f| f.0 == "leftovers" && f.1 == "problem"), "{findings:#?}");
    assert!(findings[0].3.contains("sluice cleanup --kube-proxy"), "{findings:#?}");
    assert!(lab.sluice(&["cleanup", "--kube-proxy"]).status.success());
    assert_eq!(check(&lab, &[]), []);
    let program = lab.folder.path().join("kube-proxy");
    fs::copy("/bin/sleep", &program).expect("a program of that name");
    let mut kube_proxy = lab.command(&program).arg("1000").spawn().expect("it starts");
    let pid = format!("a kube-proxy is running on this host, process {}", kube_proxy.id());
    // `ip` becomes the program.
    lab.until("the process has its name", || !check(&lab, &[]).is_empty());
    let remedy = assert_found(&lab, "kube-proxy", "problem", &pid);
    assert!(remedy.contains("delete daemonset kube-proxy"), "{remedy}");
    kube_proxy.kill().expect("it runs");
    kube_proxy.wait().expect("it ended");
    assert_eq!(check(&lab, &[]), []);
}

/// This machine's kernel has IPVS, or it has not: what `check` says must fit.
#[test]
fn mode_ipvs_needs_ipvs() {
    let lab = node();
    let has =
        lab.sh("modprobe ip_vs 2>/dev/null; test -e /proc/net/ip_vs && echo yes || echo no").trim() == "yes";
    let found = check(&lab, &["--proxy-mode=ipvs"]);
    match has {
        true => assert_eq!(found, []),
        false => {
            assert_eq!((found.len(), &*found[0].0, &*found[0].1), (1, "ipvs", "problem"), "{found:?}");
            assert!(found[0].2.contains("the kernel has no IPVS"), "{found:?}");
        }
    }
}

#[test]
fn devices_of_other_proxies() {
    let lab = node();
    for (device, severity) in
        [("kube-dummy-if", "problem"), ("bpfin.cali", "problem"), ("cilium_host", "note")]
    {
        lab.sh(&format!("ip link add {device} type bridge"));
        assert_found(&lab, "other-proxies", severity, " is ");
        lab.sh(&format!("ip link del {device}"));
    }
}

#[test]
fn forward_chains_that_drop_and_their_remedies() {
    let lab = node();
    for (policy, flush, what) in [
        (
            "iptables-nft -P FORWARD DROP",
            "nft delete table ip filter",
            "chain FORWARD of table ip filter (hook forward",
        ),
        (
            "iptables-legacy -P FORWARD DROP",
            "iptables-legacy -F; iptables-legacy -P FORWARD ACCEPT",
            "chain FORWARD of table filter of iptables-legacy (hook forward, priority 0)",
        ),
    ] {
        lab.sh(policy);
        let remedy = assert_found(&lab, "forward", "warning", what);
        // What stands before the comma is to be run as it is.
        let command = remedy.split(", ").next().expect("a command");
        let variant =
            if policy.contains("nft") { command.replace("iptables", "iptables-nft") } else { command.into() };
        lab.sh(&variant);
        assert_eq!(check(&lab, &[]), [], "after {variant}");
        lab.sh(flush);
    }
    lab.sh("nft 'add table inet fw; add chain inet fw fd { type filter hook forward priority 10; policy drop; }'");
    let remedy =
        assert_found(&lab, "forward", "warning", "chain fd of table inet fw (hook forward, priority 10)");
    lab.sh("nft add rule inet fw fd tcp dport 22 accept");
    assert_found(&lab, "forward", "warning", "chain fd of table inet fw");
    lab.sh(remedy.split(", ").next().expect("a command"));
    assert_eq!(check(&lab, &[]), []);
    lab.sh("nft flush ruleset");
    // A last rule that refuses, as firewalld has it; and pods that are accepted, as flannel does it.
    lab.sh(
        "nft 'add table inet firewalld; add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; };
         add chain inet firewalld pods; add rule inet firewalld filter_FORWARD ct state established accept;
         add rule inet firewalld filter_FORWARD jump pods; add rule inet firewalld filter_FORWARD reject'",
    );
    let remedy = assert_found(&lab, "forward", "warning", "chain filter_FORWARD of table inet firewalld");
    assert!(remedy.contains("firewall-cmd --permanent --zone=trusted"), "{remedy}");
    lab.sh("nft add rule inet firewalld pods ip saddr 10.128.0.0/16 counter accept");
    assert_eq!(check(&lab, &[]), []);
}

#[test]
fn a_running_agent_tells_of_a_firewall_that_drops() {
    let mut lab = node();
    lab.sh("iptables-nft -P FORWARD DROP");
    let mut agent = lab.command(SLUICE);
    lab.start(agent.args(["run", "--cluster-cidr=10.128.0.0/16"]));
    let told =
        |lines| lab.lines("chain FORWARD of table ip filter (hook forward, priority 0) drops") == lines;
    let drops = |what: &str, number: &str| {
        let (_, metrics) = lab.get(10249, "/metrics").expect("metrics");
        metrics.contains(&format!("\nsluice_{what}_drops {number}\n"))
    };
    lab.until("it is told", || told(1) && drops("forward", "1"));
    lab.sh("iptables-nft -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT");
    lab.sh("iptables-nft -A INPUT -p tcp --dport 30000:32767 -m conntrack --ctstate NEW -j DROP");
    lab.until("it is over", || drops("forward", "0"));
    lab.until("the other is told", || drops("node_port", "1"));
    assert!(told(1), "once");
    assert_eq!(lab.lines("drops connections to ports 30000 to 32767, NodePorts"), 1);
}

#[test]
fn an_input_chain_that_drops_is_a_note() {
    let lab = node();
    lab.sh("nft 'add table ip fw; add chain ip fw in { type filter hook input priority 0; policy drop; }'");
    assert_found(&lab, "input", "note", "chain in of table ip fw (hook input, priority 0)");
    let output = lab.sluice(&["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
}

#[test]
fn rules_that_drop_node_ports() {
    let lab = node();
    let table = "add table inet fw; add chain inet fw in { type filter hook input priority 0; };
        add chain inet fw pre { type filter hook prerouting priority raw; }; add chain inet fw late { type filter hook \
        prerouting priority 0; }; add chain inet fw no";
    for (rule, found) in [
        ("in tcp dport 30000-32767 ct state new drop", true),
        ("in iifname eth0 tcp dport 30080 counter reject", true),
        ("in tcp dport { 22, 30000-32767 } drop", true),
        ("in tcp dport 30000-32767 jump no; add rule inet fw no drop", true),
        ("in jump no; add rule inet fw no tcp dport 30000-32767 drop", true),
        ("pre tcp dport 30000-32767 drop", true),
        // Another port, other sources, a hook behind the translation, what was accepted before.
        ("in tcp dport 31000-32767 drop", false),
        ("in ip saddr 198.18.0.9 tcp dport 30000-32767 drop", false),
        ("late tcp dport 30000-32767 drop", false),
        ("in tcp dport 30000-32767 accept; add rule inet fw in tcp dport 1024-65535 drop", false),
    ] {
        lab.sh(&format!("nft '{table}; add rule inet fw {rule}'"));
        if found {
            let hook = if rule.starts_with("pre") { "hook prerouting" } else { "hook input" };
            let remedy = assert_found(&lab, "node-ports", "warning", hook);
            assert!(remedy.contains("certain sources only"), "{remedy}");
        } else {
            assert_eq!(check(&lab, &[]), [], "{rule}");
        }
        lab.sh("nft delete table inet fw");
    }
    for variant in ["nft", "legacy"] {
        for ports in ["--dport 30000:32767", "-m multiport --dports 22,30000:32767"] {
            let rule = format!("INPUT -p tcp {ports} -m conntrack --ctstate NEW -j DROP");
            lab.sh(&format!("iptables-{variant} -A {rule}"));
            assert_found(&lab, "node-ports", "warning", "hook input, priority 0");
            lab.sh(&format!("iptables-{variant} -D {rule}"));
        }
        assert_eq!(check(&lab, &[]), []);
    }
}

#[test]
fn others_translations_of_our_addresses() {
    let lab = node();
    let chain = "add table ip other; add chain ip other pre { type nat hook prerouting priority";
    lab.sh(&format!(
        "nft '{chain} -150; }}; add rule ip other pre ip daddr 10.96.0.80 tcp dport 80 dnat to 198.18.0.7'"
    ));
    assert_found(
        &lab,
        "translations",
        "warning",
        "translates 10.96.0.80:80, at priority -150, before sluice's",
    );
    lab.sh("nft delete table ip other");
    lab.sh(&format!(
        "nft '{chain} -100; }}; add chain ip other to; add rule ip other to dnat to 198.18.0.7;
         add rule ip other pre ip daddr 10.96.0.0/24 jump to; add rule ip other pre ip daddr 10.97.0.1 jump to'"
    ));
    assert_found(&lab, "translations", "warning", "at priority -100, after sluice's");
    lab.sh("nft delete table ip other");
    for variant in ["nft", "legacy"] {
        let rule = "PREROUTING -d 10.96.0.81/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 198.18.0.7";
        lab.sh(&format!("iptables-{variant} -t nat -A {rule}"));
        assert_found(&lab, "translations", "warning", "translates 10.96.0.81:80");
        lab.sh(&format!("iptables-{variant} -t nat -D {rule}"));
        // Another port, another address: none of ours.
        lab.sh(&format!("iptables-{variant} -t nat -A {}", rule.replace("--dport 80", "--dport 81")));
        lab.sh(&format!("iptables-{variant} -t nat -A {}", rule.replace(".81/32", ".99/32")));
        assert_eq!(check(&lab, &[]), []);
        // A host port that is a NodePort of ours.
        lab.sh(&format!("iptables-{variant} -t nat -N CNI-HOSTPORT-DNAT"));
        lab.sh(&format!(
            "iptables-{variant} -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT"
        ));
        let rule = "CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 30080 -j DNAT --to-destination 10.128.0.9:80";
        lab.sh(&format!("iptables-{variant} -t nat -A {rule}"));
        assert_found(&lab, "translations", "warning", "translates NodePort 198.18.0.1:30080");
        lab.sh(&format!("iptables-{variant} -t nat -F"));
    }
}

#[test]
fn a_liberal_conntrack_is_proposed() {
    let lab = node();
    let said = |more: &[&str]| text(&lab.sluice(&[&["check"], more].concat()).stdout);
    let note = "note: invalid-packets: net.netfilter.nf_conntrack_tcp_be_liberal is 0";
    let unasked = said(&[]);
    assert!(unasked.contains(note) && unasked.contains("set conntrack.tcpBeLiberal"), "{unasked}");
    for flag in ["--conntrack-drop-invalid", "--conntrack-tcp-be-liberal"] {
        assert!(!said(&[flag]).contains("invalid-packets: "), "{flag}");
    }
    lab.sh("echo 1 >/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal");
    assert!(!said(&[]).contains("invalid-packets: "));
}

#[test]
fn settings_that_break_services() {
    let lab = node();
    lab.sh("echo 0 >/proc/sys/net/ipv4/ip_forward");
    let remedy = assert_found(&lab, "settings", "problem", "net.ipv4.ip_forward is 0");
    assert!(remedy.contains("sysctl -w net.ipv4.ip_forward=1"), "{remedy}");
    assert!(lab.sluice(&["run", "--init-only"]).status.success());
    assert_eq!(check(&lab, &[]), []);
    lab.sh("ip link add cni0 type bridge && ip address add 10.128.0.1/24 dev cni0 && ip link set cni0 up");
    lab.sh("echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables");
    let remedy = assert_found(&lab, "br-netfilter", "warning", "pods are on bridge cni0");
    assert!(remedy.contains("sysctl -w net.bridge.bridge-nf-call-iptables=1"), "{remedy}");
    lab.sh("echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables");
    assert_eq!(check(&lab, &[]), []);
}

#[test]
fn an_api_server_behind_its_own_service_or_out_of_reach() {
    let lab = node();
    let kubeconfig = |server: &str| {
        let path = lab.folder.path().join("kubeconfig");
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c, user: u}}}}],
              clusters: [{{name: c, cluster: {{server: '{server}'}}}}], users: [{{name: u, user: {{token: t}}}}]}}"
        );
        fs::write(&path, text).expect("write");
        format!("--kubeconfig={}", path.display())
    };
    let found = only(&lab, &[&kubeconfig("https://10.96.0.80:443")]);
    assert_eq!((&*found.0, &*found.1), ("api-server", "problem"), "{found:?}");
    assert!(found.2.contains("10.96.0.80 is the ClusterIP of Service default/web"), "{found:?}");
    assert_eq!(check(&lab, &[&kubeconfig("https://198.18.0.1:6443")]), []);
    let output = lab.sluice(&["check", &kubeconfig("https://198.18.0.1:6443")]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    assert!(said.contains("problem: api-server: the objects cannot be listed"), "{said}");
}
