//! Service addresses that the node has only for the sake of IPVS do not speak ARP.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{apply, check, remote_pods, service, slice};
use crate::lab::Lab;
use crate::netns::Namespace;
use crate::probe::slowness;

const VIP: &str = "198.18.0.200";
const CLUSTER_IP: &str = "10.96.226.1";

/// Nobody answers for a ClusterIP, and for a load balancer's address whoever announces it, alone: another node, and
/// then this one. What is deleted by somebody comes back at once.
pub fn is_not_answered(lab: &mut Lab) -> Result<()> {
    let mut balanced = service("a", CLUSTER_IP, None);
    balanced["spec"]["type"] = json!("LoadBalancer");
    balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": VIP}]}});
    apply(lab, &[balanced, slice("a", &remote_pods(2))])?;
    let sysctl = lab.topology.node.output("sysctl", &["-n", "net.ipv4.conf.all.arp_ignore"])?;
    if sysctl.trim() != "0" {
        bail!("net.ipv4.conf.all.arp_ignore is {sysctl}");
    }
    let (node, other) = (mac(&lab.topology.node)?, mac(&lab.topology.remote)?);
    answer(lab, "198.18.0.11", &[&node])?;
    answer(lab, CLUSTER_IP, &[])?;
    answer(lab, VIP, &[])?;
    lab.topology.remote.ip(&format!("address add {VIP}/32 dev eth0\n"))?;
    answer(lab, VIP, &[&other])?;
    lab.topology.remote.ip(&format!("address delete {VIP}/32 dev eth0\n"))?;
    lab.topology.node.ip(&format!("address add {VIP}/32 dev eth0\n"))?;
    until(|| answers(lab, VIP), &[&node])?;
    let flows = format!(
        "- {{from: ext, to: '{VIP}:80/tcp', expect: {{endpoints: ['10.128.1.1:8080', '10.128.1.2:8080'], source: node}}}}"
    );
    check(lab, &flows)?;
    lab.topology.node.ip(&format!("address delete {VIP}/32 dev eth0\n"))?;
    until(|| answers(lab, VIP), &[])?;
    lab.topology.node.output("nft", &["delete", "table", "arp", "sluice"])?;
    until(|| answers(lab, CLUSTER_IP), &[])?;
    if !lab.log_text().contains("another program had changed or removed rules") {
        bail!("the agent did not miss its table for ARP");
    }
    Ok(())
}

fn mac(namespace: &Namespace) -> Result<String> {
    let link = namespace.output("ip", &["-o", "link", "show", "dev", "eth0"])?;
    let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    Ok(mac.context("a hardware address")?.to_owned())
}

/// The hardware addresses that answer requests of the outside client.
fn answers(lab: &Lab, address: &str) -> Result<BTreeSet<String>> {
    // It ends with status 1 where nobody answers.
    let line = format!("busybox arping -b -c 4 -w {} -I eth0 {address} || true", 2 * slowness().min(3));
    let said = lab.topology.ext.output("sh", &["-c", &line])?;
    let macs = said.lines().filter_map(|line| line.split_once('[')?.1.split_once(']'));
    Ok(macs.map(|(mac, _)| mac.to_owned()).collect())
}

fn answer(lab: &Lab, address: &str, wanted: &[&str]) -> Result<()> {
    let macs = answers(lab, address)?;
    if macs.iter().ne(wanted) {
        bail!("for {address} answered {macs:?}, not {wanted:?}");
    }
    Ok(())
}

fn until(answers: impl Fn() -> Result<BTreeSet<String>>, wanted: &[&str]) -> Result<()> {
    let begun = Instant::now();
    loop {
        let macs = answers()?;
        if macs.iter().eq(wanted) {
            return Ok(());
        }
        if begun.elapsed() > Duration::from_secs(2) * slowness() {
            bail!("{macs:?} answer, not {wanted:?}");
        }
        thread::sleep(Duration::from_millis(100));
    }
}
