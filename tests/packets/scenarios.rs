//! What does not fit into a case: agents that end and start, many connections, links that come and go.

mod arp;
mod churn;
mod invalid;
mod loopback;
mod packets;
mod restart;

use anyhow::{Result, anyhow, bail};
use serde_json::{Map, Value, json};

use crate::agent::{AgentOptions, Source};
use crate::case::Case;
use crate::lab::Lab;
use crate::probe::{Client, Observation, Session, patience};
use crate::run;
use crate::server::runtime;

/// A scenario: its name, the agent's configuration, and what it does with a lab of its own.
pub struct Scenario {
    /// Unique, as cases are.
    pub name: &'static str,
    config: fn() -> Value,
    run: fn(&mut Lab) -> Result<()>,
}

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "restart-under-traffic", config: usual, run: restart::restart_under_traffic },
    Scenario { name: "rules-stay-without-agent", config: usual, run: restart::rules_stay_without_agent },
    Scenario {
        name: "affinity-over-another-structure",
        config: usual,
        run: restart::affinity_over_structure,
    },
    Scenario { name: "killed-while-objects-change", config: usual, run: churn::killed_while_objects_change },
    Scenario { name: "ruleset-flushed", config: usual, run: restart::ruleset_flushed },
    Scenario { name: "equal-shares", config: usual, run: packets::equal_shares },
    Scenario { name: "shares-of-a-thousand", config: usual, run: packets::shares_of_a_thousand },
    Scenario { name: "source-ranges-exchanged", config: usual, run: packets::source_ranges_exchanged },
    Scenario { name: "many-connections-masqueraded", config: usual, run: packets::many_masqueraded },
    Scenario { name: "affinity-flooded", config: usual, run: packets::affinity_flooded },
    Scenario { name: "syn-to-dead-endpoint", config: usual, run: packets::syn_to_dead_endpoint },
    Scenario { name: "packets-out-of-window", config: usual, run: invalid::out_of_window },
    Scenario { name: "address-that-comes-and-goes", config: all_addresses, run: packets::address_later },
    Scenario { name: "node-ports-on-loopback", config: localhost, run: loopback::served_on_loopback },
    Scenario {
        name: "loopback-closed-to-neighbours",
        config: localhost,
        run: loopback::loopback_is_closed_to_neighbours,
    },
    Scenario {
        name: "loopback-not-served-by-default",
        config: usual,
        run: loopback::loopback_is_not_served_by_default,
    },
    Scenario { name: "interface-that-comes-later", config: late_interface, run: packets::interface_later },
];

/// In mode ipvs, which needs a kernel that has it.
pub const IPVS_SCENARIOS: &[Scenario] = &[
    Scenario { name: "restart-under-traffic", config: ipvs, run: restart::restart_under_traffic },
    Scenario { name: "rules-stay-without-agent", config: ipvs, run: restart::rules_stay_without_agent },
    Scenario { name: "killed-while-objects-change", config: ipvs, run: churn::killed_while_objects_change },
    Scenario { name: "arp-is-not-answered", config: ipvs, run: arp::is_not_answered },
    Scenario { name: "packets-out-of-window", config: ipvs, run: invalid::out_of_window },
    Scenario { name: "mode-switched-and-back", config: usual, run: restart::mode_switched_and_back },
    Scenario { name: "mode-left-without-detection", config: ipvs_alone, run: restart::mode_left_by_the_node },
];

impl Scenario {
    /// Runs it, in a lab that is removed afterwards.
    ///
    /// # Errors
    /// With what went wrong and where to look.
    pub fn run(&self) -> Result<()> {
        let config: Map<String, Value> = serde_json::from_value((self.config)())?;
        let options = AgentOptions { binary: crate::binary(), source: Source::Manifests, config };
        let mut lab = Lab::start(options, crate::topology::PodNetwork::Routed)?;
        (self.run)(&mut lab).map_err(|error| anyhow!("{error:#}\n{}", lab.report()))
    }
}

fn usual() -> Value {
    json!({})
}

fn ipvs() -> Value {
    json!({"mode": "ipvs"})
}

/// Nothing tells what pods are.
fn ipvs_alone() -> Value {
    json!({"mode": "ipvs", "clusterCIDR": ""})
}

fn all_addresses() -> Value {
    json!({"nodePortAddresses": ["0.0.0.0/0", "::/0"]})
}

fn localhost() -> Value {
    json!({"nodePortAddresses": ["primary", "localhost"]})
}

fn late_interface() -> Value {
    json!({"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "late"}})
}

/// A Service with one TCP port 80 and, if given, a node port.
fn service(name: &str, cluster_ip: &str, node_port: Option<u16>) -> Value {
    let mut port = json!({"name": "t", "port": 80, "targetPort": 8080, "protocol": "TCP"});
    let mut spec = json!({"clusterIP": cluster_ip});
    if let Some(node_port) = node_port {
        port["nodePort"] = json!(node_port);
        spec["type"] = json!("NodePort");
    }
    spec["ports"] = json!([port]);
    json!({"kind": "Service", "metadata": {"name": name}, "spec": spec})
}

/// The slice of such a Service.
fn slice(service: &str, addresses: &[String]) -> Value {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|it| {
            let here = ["10.128.0.", "fd00:10:128::"].iter().any(|range| it.starts_with(range));
            let node = if here { "node1" } else { "node2" };
            json!({"addresses": [it], "nodeName": node, "conditions": {"ready": true}})
        })
        .collect();
    json!({
        "kind": "EndpointSlice",
        "metadata": {"name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        "addressType": if addresses.iter().any(|it| it.contains(':')) { "IPv6" } else { "IPv4" },
        "ports": [{"name": "t", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

/// Pods of node2, as many as asked for.
fn remote_pods(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("10.128.1.{number}")).collect()
}

fn apply(lab: &mut Lab, objects: &[Value]) -> Result<()> {
    for object in objects {
        lab.cluster.apply("scenario", object)?;
    }
    lab.settle()?;
    Ok(())
}

fn client(lab: &Lab, name: &str) -> Result<Client> {
    Ok(Client { namespace: lab.topology.namespace(name)?.clone(), source: None })
}

fn observe(lab: &Lab, from: &str, to: &str, tries: usize) -> Result<Observation> {
    runtime().block_on(client(lab, from)?.attempts(to.parse()?, tries, false, patience()))
}

fn session(lab: &Lab, from: &str, to: &str) -> Result<Session> {
    client(lab, from)?.session(to.parse()?)
}

/// The flows of a case in YAML, once.
fn check(lab: &mut Lab, flows: &str) -> Result<()> {
    let yaml = format!("name: scenario\nmanifests: []\nflows:\n{flows}\n");
    let case: Case = serde_saphyr::from_str(&yaml).map_err(|error| anyhow!("{error}"))?;
    run::run(lab, &case, 0)
}

fn ask(session: &mut Session) -> Result<String> {
    match runtime().block_on(session.ask(patience())) {
        Ok(answer) => Ok(answer.endpoint.to_string()),
        Err(outcome) => bail!("the open connection: {outcome}"),
    }
}
