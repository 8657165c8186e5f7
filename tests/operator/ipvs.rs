//! What kube-proxy's mode ipvs left, beside virtual services of others. Debian's kernels have IPVS:
//! `tests/vm/tests --only 'operator --ignored ipvs::' bookworm`.

use super::lab::{Lab, NEW, WEB, text};

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
