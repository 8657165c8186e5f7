//! NodePorts on loopback addresses. Reports: CVE-2020-8558, kubernetes/kubernetes#92315, #90259, #138427.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::json;

use super::{apply, ask, observe, service, session, slice};
use crate::lab::Lab;
use crate::probe::{Outcome, Source, slowness};

const PORTS: [&str; 2] = ["127.0.0.1:32300/tcp", "[::1]:32300/tcp"];
const ENDPOINTS: [&str; 2] = ["10.128.1.1:8080", "[fd00:10:128:1::1]:8080"];
/// A daemon of the node that listens on all its addresses.
const DAEMON: &str = "127.0.0.1:9999/tcp";
const NODE_PORT: &str = "127.0.0.1:32300/tcp";

/// With the word `localhost` both families are served to this host, by TCP only, from all endpoints though the policy
/// is Local and there is none here. Ports close with their Service, connections stay.
pub fn served_on_loopback(lab: &mut Lab) -> Result<()> {
    apply(lab, &objects())?;
    for (port, endpoint) in PORTS.iter().zip(ENDPOINTS) {
        until(lab, port, Outcome::Connect)?;
        let seen = observe(lab, "host", port, 50)?;
        let all_here = seen.endpoints.keys().map(ToString::to_string).eq([endpoint.to_owned()]);
        let from_node = seen.sources.values().flatten().all(|(source, _)| *source == Source::Node);
        if seen.outcomes.len() != 1 || !all_here || !from_node {
            bail!("{port}: {seen}");
        }
        let udp = port.replace("tcp", "udp");
        let seen = observe(lab, "host", &udp, 3)?;
        if seen.outcomes.keys().ne([&Outcome::Refused]) {
            bail!("{udp}: {seen}");
        }
    }
    // Where there is a node port address, the policy holds for it.
    let seen = observe(lab, "ext", "198.18.0.11:32300/tcp", 3)?;
    if seen.outcomes.keys().ne([&Outcome::Timeout]) {
        bail!("from outside: {seen}");
    }
    let log = lab.log_text();
    let said = "UDP and SCTP ones are not served there";
    if log.matches(said).count() != 1 {
        bail!("not said once: {said}\n{log}");
    }
    let mut open = [session(lab, "host", PORTS[0])?, session(lab, "host", PORTS[1])?];
    for session in &mut open {
        ask(session)?;
    }
    apply(lab, &[service("other", "10.96.230.9", Some(32309)), slice("other", &[])])?;
    until(lab, "127.0.0.1:32309/tcp", Outcome::Refused)?;
    apply(lab, &[slice("other", &super::remote_pods(2))])?;
    until(lab, "127.0.0.1:32309/tcp", Outcome::Connect)?;
    lab.cluster.delete("scenario", "Service", "a")?;
    lab.settle()?;
    for port in PORTS {
        until(lab, port, Outcome::Refused)?;
    }
    for session in &mut open {
        ask(session)?;
    }
    lab.restart_agent()?;
    lab.settle()?;
    until(lab, "127.0.0.1:32309/tcp", Outcome::Connect)
}

/// What a neighbour sends to 127.0.0.1 over the wire reaches no NodePort, even if another program opened the host's
/// loopback addresses; this one does not.
pub fn loopback_is_closed_to_neighbours(lab: &mut Lab) -> Result<()> {
    apply(lab, &objects())?;
    until(lab, PORTS[0], Outcome::Connect)?;
    closed_to_neighbours(lab)
}

/// Unless it is asked for, nobody listens there, for whatever Services claim.
pub fn loopback_is_not_served_by_default(lab: &mut Lab) -> Result<()> {
    let mut all = objects();
    all[0]["spec"]["type"] = json!("LoadBalancer");
    all[0]["spec"]["externalIPs"] = json!(["127.0.0.1"]);
    all[0]["status"] = json!({"loadBalancer": {"ingress": [{"ip": "::1"}]}});
    apply(lab, &all)?;
    for port in PORTS.into_iter().chain(["127.0.0.1:80/tcp", "[::1]:80/tcp"]) {
        let seen = observe(lab, "host", port, 3)?;
        if seen.outcomes.keys().ne([&Outcome::Refused]) {
            bail!("{port}: {seen}");
        }
    }
    closed_to_neighbours(lab)
}

fn closed_to_neighbours(lab: &mut Lab) -> Result<()> {
    let opened = ["all", "default", "eth0", "lo", "pod1"];
    for interface in opened {
        let path = format!("/proc/sys/net/ipv4/conf/{interface}/route_localnet");
        let value = lab.topology.node.enter(|| Ok(fs::read_to_string(&path)?))?;
        if value.trim() != "0" {
            bail!("{path} is {value}");
        }
    }
    // The neighbour has no loopback address itself, and takes answers from one.
    let neighbour = &lab.topology.ext;
    neighbour.sysctl(&[("net/ipv4/conf/all/route_localnet", "1")])?;
    neighbour.ip("address delete 127.0.0.1/8 dev lo\n\
         route add 127.0.0.1 via 198.18.0.11 src 198.18.0.100\n")?;
    let reached = |lab: &Lab| -> Result<[bool; 2]> {
        let one = |to| anyhow::Ok(!observe(lab, "ext", to, 2)?.outcomes.contains_key(&Outcome::Timeout));
        Ok([one(DAEMON)?, one(NODE_PORT)?])
    };
    if reached(lab)? != [false, false] {
        bail!("the neighbour reaches 127.0.0.1: daemon, NodePort: {:?}", reached(lab)?);
    }
    // Now the way is open, as the daemon shows.
    lab.topology.node.sysctl(&[("net/ipv4/conf/all/route_localnet", "1")])?;
    let [daemon, node_port] =
        [DAEMON, NODE_PORT].map(|to| observe(lab, "ext", to, 2).map(|seen| seen.endpoints.len()));
    match (daemon?, node_port?) {
        (1, 0) => Ok(()),
        counts => bail!("with route_localnet, endpoints that answered, daemon and NodePort: {counts:?}"),
    }
}

fn objects() -> Vec<serde_json::Value> {
    let mut a = service("a", "10.96.230.1", Some(32300));
    a["spec"]["clusterIPs"] = json!(["10.96.230.1", "fd00:10:96::2301"]);
    a["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
    a["spec"]["externalTrafficPolicy"] = json!("Local");
    if let Some(ports) = a["spec"]["ports"].as_array_mut() {
        ports
            .push(json!({"name": "u", "port": 80, "targetPort": 8080, "protocol": "UDP", "nodePort": 32300}));
    }
    let slices = ENDPOINTS.iter().zip(["IPv4", "IPv6"]).map(|(endpoint, family)| {
        let address = endpoint.rsplit_once(':').map_or("", |(address, _)| address);
        let mut slice = slice("a", &[address.trim_matches(['[', ']']).to_owned()]);
        slice["metadata"]["name"] = json!(format!("a-{}", family.to_lowercase()));
        slice["addressType"] = json!(family);
        slice["ports"] = json!([
            {"name": "t", "port": 8080, "protocol": "TCP"}, {"name": "u", "port": 8080, "protocol": "UDP"},
        ]);
        slice
    });
    std::iter::once(a).chain(slices).collect()
}

/// Ports are opened and closed just after the rules.
fn until(lab: &Lab, port: &str, wanted: Outcome) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10) * slowness();
    loop {
        let seen = observe(lab, "host", port, 1)?;
        if seen.outcomes.contains_key(&wanted) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{port} does not come to {wanted}: {seen}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}
