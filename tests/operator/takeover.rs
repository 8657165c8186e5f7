//! What kube-proxy left goes, what others have stays; and the way back.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::TcpListener;
use std::process::Command;

use super::lab::{Lab, NEW, SLUICE, WEB, testdata, text};

/// kube-proxy's chains in testdata/kube-proxy.
const CHAINS: [&str; 12] = [
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-EXT-ABCDEFGHIJKL2345",
    "KUBE-FORWARD",
    "KUBE-MARK-MASQ",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-PROXY-CANARY",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SEP-ABCDEFGHIJKL2345",
    "KUBE-SEP-BBCDEFGHIJKL2345",
    "KUBE-SERVICES",
    "KUBE-SVC-ABCDEFGHIJKL2345",
];
const PROGRAMS: [(&str, &str); 2] = [("iptables", "iptables.rules"), ("ip6tables", "ip6tables.rules")];
const VARIANTS: [&str; 2] = ["nft", "legacy"];

/// The rules of a file without kube-proxy's.
fn without_kube_proxys(rules: &str) -> String {
    let is_kube_proxys = |line: &&str| {
        let mut words = line.split(' ').map(|word| word.trim_start_matches(':'));
        words.any(|word| CHAINS.contains(&word))
    };
    rules.lines().filter(|line| !is_kube_proxys(line)).map(|line| format!("{line}\n")).collect()
}

fn load(lab: &Lab, program: &str, variant: &str, rules: &str) {
    let file = lab.folder.path().join("rules");
    fs::write(&file, rules).expect("write");
    lab.sh(&format!("{program}-{variant}-restore -c {}", file.display()));
}

/// What a program's `-save` prints by table, without its remarks; with option `-c`: with counters.
fn saved(lab: &Lab, program: &str, variant: &str, option: &str) -> Vec<String> {
    let all = lab.sh(&format!("{program}-{variant}-save {option}"));
    let mut blocks: Vec<String> = Vec::new();
    for line in all.lines().filter(|line| !line.starts_with('#')) {
        // Built-in chains are printed with counters in any case.
        let line = if option.is_empty() { line.split(" [").next().unwrap_or(line) } else { line };
        match blocks.last_mut() {
            Some(block) if !line.starts_with('*') => *block += &format!("\n{line}"),
            _ => blocks.push(line.to_owned()),
        }
    }
    blocks.sort();
    blocks
}

#[test]
fn kube_proxys_chains_go_and_all_others_stay_as_they_were() {
    let (lab, expected) = (Lab::new(), Lab::new());
    for (program, file) in PROGRAMS {
        let rules = fs::read_to_string(testdata("kube-proxy").join(file)).expect("rules");
        for variant in VARIANTS {
            load(&lab, program, variant, &rules);
            load(&expected, program, variant, &without_kube_proxys(&rules));
        }
    }
    let output = lab.sluice(&["cleanup", "--kube-proxy"]);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    for (program, _) in PROGRAMS {
        for variant in VARIANTS {
            assert_eq!(saved(&lab, program, variant, ""), saved(&expected, program, variant, ""));
            let line = format!("table nat of {program}-{variant} (9 chains, called by 3 rules)");
            assert!(said.contains(&line), "{line:?} is not in\n{said}");
        }
    }
    let again = lab.sluice(&["cleanup", "--kube-proxy"]);
    assert_eq!(text(&again.stderr), "there was nothing to remove\n");
}

#[test]
fn tables_that_are_not_there_are_not_made() {
    let lab = Lab::new();
    assert!(lab.sluice(&["cleanup", "--kube-proxy"]).status.success());
    assert_eq!(lab.sh("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names"), "");
    assert_eq!(lab.sh("nft list ruleset"), "");
}

#[test]
fn counters_of_rules_that_stay_go_on() {
    let lab = Lab::new();
    let rules = "*nat\n:PREROUTING ACCEPT [7:70]\n:POSTROUTING ACCEPT [1:10]\n:KUBE-SERVICES - [0:0]\n:ADMIN - [0:0]\n\
                 [5:50] -A PREROUTING -j KUBE-SERVICES\n[9:90] -A PREROUTING -i eth9 -j ADMIN\n[3:30] -A ADMIN -j ACCEPT\n\
                 [4:40] -A KUBE-SERVICES -d 10.96.0.1/32 -j ACCEPT\nCOMMIT\n";
    for variant in VARIANTS {
        load(&lab, "iptables", variant, rules);
    }
    assert!(lab.sluice(&["cleanup", "--kube-proxy"]).status.success());
    for variant in VARIANTS {
        let left = saved(&lab, "iptables", variant, "-c").concat();
        for line in ["[9:90] -A PREROUTING -i eth9 -j ADMIN", "[3:30] -A ADMIN -j ACCEPT"] {
            assert!(left.contains(line), "{line:?} is not in\n{left}");
        }
        assert!(!left.contains("KUBE"), "{left}");
    }
    let left = saved(&lab, "iptables", "legacy", "-c").concat();
    assert!(left.contains(":PREROUTING ACCEPT [7:70]"), "{left}");
}

#[test]
fn under_the_name_kube_proxy_its_tables_go_after_the_first_commit() {
    let mut lab = Lab::new();
    lab.sh(&format!("nft -f {}", testdata("kube-proxy/nftables.nft").display()));
    let rules = fs::read_to_string(testdata("kube-proxy/iptables.rules")).expect("rules");
    VARIANTS.iter().for_each(|variant| load(&lab, "iptables", variant, &rules));
    assert_eq!(lab.connects(NEW), Err(ErrorKind::ConnectionRefused), "the table that was left refuses");
    let mut kube_proxy = lab.command(lab.named("kube-proxy"));
    lab.start(&mut kube_proxy);
    lab.until("kube-proxy's rules are gone", || lab.lines("removed what kube-proxy left") == 1);
    assert_eq!(lab.connects(NEW), Ok(()));
    assert_eq!(lab.connects(WEB), Ok(()));
    let tables = lab.sh("nft list tables");
    assert!(tables.contains("table ip sluice") && !tables.contains("kube-proxy"), "{tables}");
    for variant in VARIANTS {
        let left = saved(&lab, "iptables", variant, "").concat();
        assert!(!left.contains("KUBE-SERVICES") && left.contains("KUBE-FIREWALL"), "{left}");
    }
    assert_eq!(lab.lines("is running on this host"), 0, "{}", lab.logged());

    // The way back: kube-proxy makes its rules anew (here by nft), sluice ends and is cleaned up. At no moment is
    // there nobody to serve.
    lab.stop();
    assert_eq!(lab.connects(WEB), Ok(()));
    lab.sh(&format!("nft -f {}", testdata("kube-proxy/nftables.nft").display()));
    assert_eq!(lab.connects(WEB), Ok(()));
    assert!(lab.sluice(&["cleanup"]).status.success());
    assert_eq!(lab.sh("nft list tables | grep -c kube-proxy").trim(), "2");
    assert!(!lab.sh("nft list tables").contains("sluice"));
    assert_eq!(lab.connects(WEB), Ok(()));
}

#[test]
fn beside_a_running_kube_proxy_its_rules_stay_until_it_ends() {
    let mut lab = Lab::new();
    lab.sh(&format!("nft -f {}", testdata("kube-proxy/nftables.nft").display()));
    let program = lab.folder.path().join("other").join("kube-proxy");
    fs::create_dir(program.parent().expect("a folder")).expect("a folder");
    fs::copy("/bin/sleep", &program).expect("a program of that name");
    let mut kube_proxy = lab.command(&program).arg("1000").spawn().expect("it starts");
    let mut takeover = lab.command(SLUICE);
    lab.start(takeover.args(["run", "--takeover"]));
    let warning = format!("a kube-proxy is running on this host, process {}", kube_proxy.id());
    lab.until("the warning", || lab.lines(&warning) == 1);
    assert!(lab.sh("nft list tables").contains("kube-proxy"));
    assert!(lab.logged().contains("kubectl -n kube-system delete daemonset kube-proxy"), "{}", lab.logged());
    let output = lab.sluice(&["cleanup", "--kube-proxy"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&warning), "{}", text(&output.stderr));
    assert!(lab.sh("nft list tables").contains("kube-proxy"));
    kube_proxy.kill().expect("it runs");
    kube_proxy.wait().expect("it ended");
    lab.until("its rules are gone", || !lab.sh("nft list tables").contains("kube-proxy"));
    assert_eq!(lab.lines(&warning), 1, "said once");
}

#[test]
fn a_kube_proxy_that_only_its_port_tells_of_is_seen() {
    let lab = Lab::new();
    lab.sh(&format!("nft -f {}", testdata("kube-proxy/nftables.nft").display()));
    let listener = lab.enter(|| TcpListener::bind("127.0.0.1:10249").expect("the port"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let answer = "HTTP/1.1 200 OK\r\n\r\n# TYPE kubeproxy_x counter\nkubeproxy_x 1\n";
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let output = lab.sluice(&["cleanup", "--kube-proxy"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("it answers at 127.0.0.1:10249: its rules stay"), "{said}");
    assert!(lab.sh("nft list tables").contains("kube-proxy"));
    let output = lab.sluice(&["cleanup", "--kube-proxy", "--force"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(lab.sh("nft list tables"), "");
}

#[test]
fn without_take_over_leftovers_are_told_of() {
    let mut lab = Lab::new();
    lab.sh(&format!("nft -f {}", testdata("kube-proxy/nftables.nft").display()));
    let mut agent = lab.command(SLUICE);
    lab.start(agent.arg("run"));
    lab.until("the warning", || lab.lines("`sluice cleanup --kube-proxy` removes them") == 1);
    assert!(lab.sh("nft list tables").contains("kube-proxy"));
    lab.stop();
    // kube-proxy's own flag cleans up both.
    let mut cleanup = Command::new("ip");
    cleanup.args(["netns", "exec", &lab.namespace]).arg(lab.named("kube-proxy")).arg("--cleanup");
    let output = cleanup.output().expect("it runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(lab.sh("nft list tables"), "");
}
