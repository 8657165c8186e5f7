//! Base chains of others that drop what they do not know. A packet has to be accepted by all of them.

use ipnet::IpNet;

use super::{Host, Severity, table_name};
use crate::dataplane::nftables::model::TABLE;
use crate::dataplane::nftables::uapi::{
    IPS_DST_NAT, NF_INET_FORWARD, NF_INET_LOCAL_IN, NF_INET_PRE_ROUTING, NFPROTO_INET,
    NFT_PAYLOAD_NETWORK_HEADER,
};
use crate::host::kube_proxy;
use crate::host::ruleset::{Chain, Hook, Part, Rule, Table};

/// What NodePorts are taken from where nothing else is known: the API server's `--service-node-port-range`.
const NODE_PORTS: (u16, u16) = (30_000, 32_767);
/// Where sluice translates in prerouting.
const PRIORITY: i32 = -101;
/// Chains call each other so deep at most (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

/// Chains in the way of every connection to a Service.
pub fn forward(host: &mut Host<'_>) {
    let pods = pod_cidrs(host);
    let mut found = Vec::new();
    for (table, chain, priority) in dropping(host, NF_INET_FORWARD) {
        if accepts(table, chain, &pods, DEPTH) {
            continue;
        }
        let what = format!(
            "chain {} of {} (hook forward, priority {priority}) drops what its rules do not accept: connections to \
             Services through this host may time out",
            chain.name,
            table_name(table)
        );
        found.push((what, remedy(table, chain)));
    }
    for (what, remedy) in found {
        host.find("forward", Severity::Warning, what, remedy);
    }
}

/// Chains in the way of what this host itself serves.
pub fn input(host: &mut Host<'_>) {
    let mut found = Vec::new();
    for (table, chain, priority) in dropping(host, NF_INET_LOCAL_IN) {
        found.push(format!(
            "chain {} of {} (hook input, priority {priority}) drops what its rules do not accept: health check ports \
             and endpoints on the host's network may not be reached",
            chain.name,
            table_name(table)
        ));
    }
    for what in found {
        let remedy = "see that its rules accept the health checks' port (10256), healthCheckNodePorts, and the ports \
                      of Pods with hostNetwork";
        host.find("input", Severity::Note, what, remedy);
    }
}

/// Rules of others that drop connections by the ports of NodePorts, where these are still to be seen.
pub fn node_ports(host: &mut Host<'_>) {
    let wanted = wanted_ports(host);
    let mut found = Vec::new();
    for (table, chain, place) in base_chains(host) {
        let (hook, effect) = match place.hook {
            // What comes later sees the port of the endpoint.
            NF_INET_PRE_ROUTING if place.priority < PRIORITY && place.kind != "nat" => {
                ("prerouting", "connections to NodePorts may time out")
            }
            NF_INET_LOCAL_IN if host.config.ipvs.is_some() => {
                ("input", "connections to NodePorts may time out: IPVS takes them behind this hook")
            }
            NF_INET_LOCAL_IN => (
                "input",
                "healthCheckNodePorts and NodePorts on localhost, which come through this hook, may not be reached; other \
                 NodePorts do not",
            ),
            _ => continue,
        };
        let Some((first, last)) = drops_ports(table, chain, &wanted, DEPTH) else { continue };
        let ports = if first == last { format!("port {first}") } else { format!("ports {first} to {last}") };
        let what = format!(
            "chain {} of {} (hook {hook}, priority {}) has a rule that drops connections to {ports}, NodePorts: {effect}",
            chain.name,
            table_name(table),
            place.priority
        );
        found.push(what);
    }
    for what in found {
        let remedy = "take the rule away, or let it drop certain sources only: a Service keeps others out by its own \
                      loadBalancerSourceRanges";
        host.find("node-ports", Severity::Warning, what, remedy);
    }
}

/// The ports of this host that Services have.
fn wanted_ports(host: &Host<'_>) -> Vec<(u16, u16)> {
    let Some(cluster) = host.cluster else { return vec![NODE_PORTS] };
    let node = &cluster.desired.node().node_port_addresses;
    let keys = cluster.desired.frontends().map(|(key, ..)| key).filter(|key| node.contains(&key.address));
    let checks = cluster.index.services().filter_map(|service| service.health_check_node_port.map(u16::from));
    let mut ports: Vec<u16> = keys.map(|key| key.port).chain(checks).collect();
    ports.sort_unstable();
    ports.dedup();
    ports.into_iter().map(|port| (port, port)).collect()
}

/// The first and the last of these ports for which a chain, or one that it calls, drops whatever comes, wherever it comes
/// from.
fn drops_ports(table: &Table, chain: &Chain, wanted: &[(u16, u16)], depth: usize) -> Option<(u16, u16)> {
    let mut wanted = wanted.to_vec();
    for rule in &chain.rules {
        let asks = rule.destination_ports();
        let here = match &asks {
            None => wanted.clone(),
            Some(ranges) => overlap(&wanted, ranges),
        };
        let named = (here.first(), here.last());
        let (Some((first, _)), Some((_, last))) = named else { continue };
        match rule.parts.last() {
            // A chain that drops all that it does not know is another finding.
            Some(Part::Drop | Part::Reject) if asks.is_some() && !is_narrow(rule) => {
                return Some((*first, *last));
            }
            Some(Part::Jump(to)) if depth > 0 && !is_narrow(rule) => {
                let called = table.chains.iter().find(|chain| chain.name == *to)?;
                // What is called for these ports may drop without asking again.
                let drops_all = |rule: &Rule| matches!(rule.essence()[..], [Part::Drop | Part::Reject]);
                if asks.is_some() && called.rules.first().is_some_and(drops_all) {
                    return Some((*first, *last));
                }
                if let Some(found) = drops_ports(table, called, &here, depth - 1) {
                    return Some(found);
                }
            }
            // Accepted for all: later rules do not see these ports.
            Some(Part::Accept) if asks.is_some() && rule.essence().len() <= MOST_OF_PORTS => {
                let accepted = asks.unwrap_or_default();
                wanted.retain(|range| overlap(&[*range], &accepted) != [*range]);
            }
            _ => {}
        }
    }
    None
}

/// Most expressions of a rule that asks for protocol and ports only: two of the protocol, three of a range, the verdict.
const MOST_OF_PORTS: usize = 6;

/// Whether a rule is for some sources only, or asks for what is not understood here.
fn is_narrow(rule: &Rule) -> bool {
    rule.parts.iter().any(|part| {
        matches!(part, Part::Load(NFT_PAYLOAD_NETWORK_HEADER, 12 | 8, _) | Part::In(_))
            || matches!(part, Part::Other(name) if matches!(&**name, "set" | "limit" | "recent" | "connlimit" | "lookup"))
    })
}

/// What two lists of ranges have in common, sorted.
fn overlap(some: &[(u16, u16)], others: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let both = some.iter().flat_map(|(first, last)| {
        others.iter().map(move |(other_first, other_last)| (*first.max(other_first), *last.min(other_last)))
    });
    let mut both: Vec<(u16, u16)> = both.filter(|(first, last)| first <= last).collect();
    both.sort_unstable();
    both
}

/// Base chains of others for IPv4 or IPv6 packets.
fn base_chains<'a>(host: &'a Host<'_>) -> impl Iterator<Item = (&'a Table, &'a Chain, &'a Hook)> {
    let families = host.families();
    let ours = |table: &Table| !table.legacy && matches!(&*table.name, TABLE | kube_proxy::TABLE);
    let is_for = move |table: &Table| {
        table.family == NFPROTO_INET || families.iter().any(|family| family.number() == table.family)
    };
    let tables = host.tables.iter().filter(move |table| is_for(table) && !ours(table));
    tables.flat_map(|table| {
        table.chains.iter().filter_map(move |chain| Some((table, chain, chain.hook.as_ref()?)))
    })
}

/// Base chains of others for IPv4 or IPv6 packets at a hook that drop whatever no rule accepts, with their priority.
fn dropping<'a>(host: &'a Host<'_>, hook: u32) -> impl Iterator<Item = (&'a Table, &'a Chain, i32)> {
    let at_hook = base_chains(host).filter(move |(_, _, place)| place.hook == hook);
    at_hook.filter_map(|(table, chain, place)| {
        let refuses = |rule: &Rule| matches!(rule.essence()[..], [Part::Drop | Part::Reject]);
        let refuses_rest = chain.rules.iter().any(refuses);
        (place.drops || refuses_rest).then_some((table, chain, place.priority))
    })
}

fn pod_cidrs(host: &Host<'_>) -> Vec<IpNet> {
    let known = host.cluster.map(|cluster| cluster.desired.settings().pod_cidrs.clone());
    match (known, &host.config.detect_local) {
        (Some(cidrs), _) if !cidrs.is_empty() => cidrs,
        (_, crate::config::DetectLocal::ClusterCidr(cidrs)) => cidrs.clone(),
        _ => Vec::new(),
    }
}

/// Whether a chain, or one that it calls in any case, accepts translated connections, or those of pods.
fn accepts(table: &Table, chain: &Chain, pods: &[IpNet], depth: usize) -> bool {
    chain.rules.iter().any(|rule| {
        let called = |name: &str| table.chains.iter().find(|chain| chain.name == name);
        match rule.parts.last() {
            Some(Part::Accept) => accepts_translated(rule) || accepts_pods(rule, pods),
            Some(Part::Jump(name)) if depth > 0 => {
                rule.essence().len() == 1
                    && called(name).is_some_and(|chain| accepts(table, chain, pods, depth - 1))
            }
            _ => false,
        }
    })
}

fn accepts_translated(rule: &Rule) -> bool {
    let status = IPS_DST_NAT.to_ne_bytes();
    match rule.essence()[..] {
        [Part::Translated, Part::Accept] => true,
        [Part::LoadStatus, Part::Mask(mask), Part::Compare(..), Part::Accept] => *mask == status,
        _ => false,
    }
}

/// Whether the rule's one condition is that source or destination is a pod's.
fn accepts_pods(rule: &Rule, pods: &[IpNet]) -> bool {
    let value = match rule.essence()[..] {
        [
            Part::Load(NFT_PAYLOAD_NETWORK_HEADER, 12 | 16 | 8 | 24, _),
            Part::Compare(true, value),
            Part::Accept,
        ]
        | [
            Part::Load(NFT_PAYLOAD_NETWORK_HEADER, 12 | 16 | 8 | 24, _),
            Part::Mask(_),
            Part::Compare(true, value),
            Part::Accept,
        ] => value,
        _ => return false,
    };
    pods.iter().any(|net| match net {
        IpNet::V4(net) => net.network().octets().starts_with(value),
        IpNet::V6(net) => net.network().octets().starts_with(value),
    })
}

fn remedy(table: &Table, chain: &Chain) -> String {
    let program = if table.family == 10 { "ip6tables" } else { "iptables" };
    if table.name == "firewalld" {
        return "put the pods' range into the trusted zone: firewall-cmd --permanent --zone=trusted \
                --add-source=POD-CIDR && firewall-cmd --reload"
            .into();
    }
    if table.legacy || table.name == "filter" && chain.name == "FORWARD" {
        let variant = if table.legacy { "-legacy" } else { "" };
        return format!(
            "{program}{variant} -I FORWARD -m conntrack --ctstate DNAT -j ACCEPT, where it lasts; beside Docker in \
             chain DOCKER-USER, which Docker keeps"
        );
    }
    let family = table_name(table);
    let family = family.trim_start_matches("table ");
    format!("nft insert rule {family} {} ct status dnat accept, where it lasts", chain.name)
}
