//! Base chains of others that drop what they do not know. A packet has to be accepted by all of them.

use ipnet::IpNet;

use super::{Host, Severity, table_name};
use crate::dataplane::nftables::model::TABLE;
use crate::dataplane::nftables::uapi::{IPS_DST_NAT, NFPROTO_INET, NFT_PAYLOAD_NETWORK_HEADER};
use crate::host::kube_proxy;
use crate::host::ruleset::{Chain, Part, Rule, Table};

/// `NF_INET_LOCAL_IN` and `NF_INET_FORWARD` of `linux/netfilter.h`.
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
/// Chains call each other so deep at most (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

/// Chains in the way of every connection to a Service.
pub fn forward(host: &mut Host<'_>) {
    let pods = pod_cidrs(host);
    let mut found = Vec::new();
    for (table, chain, priority) in dropping(host, FORWARD) {
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
    for (table, chain, priority) in dropping(host, INPUT) {
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

/// Base chains of others for IPv4 or IPv6 packets at a hook that drop whatever no rule accepts, with their priority.
fn dropping<'a>(host: &'a Host<'_>, hook: u32) -> impl Iterator<Item = (&'a Table, &'a Chain, i32)> {
    let families = host.families();
    let ours = |table: &Table| !table.legacy && matches!(&*table.name, TABLE | kube_proxy::TABLE);
    let is_for = move |table: &Table| {
        table.family == NFPROTO_INET || families.iter().any(|family| family.number() == table.family)
    };
    let tables = host.tables.iter().filter(move |table| is_for(table) && !ours(table));
    tables.flat_map(move |table| {
        let chains = table.chains.iter().filter_map(move |chain| {
            let place = chain.hook.as_ref().filter(|place| place.hook == hook)?;
            let refuses = |rule: &Rule| matches!(rule.essence()[..], [Part::Drop | Part::Reject]);
            let refuses_rest = chain.rules.iter().any(refuses);
            (place.drops || refuses_rest).then_some((table, chain, place.priority))
        });
        chains.collect::<Vec<_>>()
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
