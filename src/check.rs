//! What of this host stands in the way of Services: features that the kernel lacks, settings, rules of others, another
//! proxy. Each finding says what to do. Nothing is changed.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::cluster::{Family, Index};
use crate::config::Config;
use crate::forwarding::Desired;
use crate::host::ruleset::{self, Table};
use crate::host::xtables;
use crate::netlink::Socket;

mod api;
mod filters;
mod kernel;
mod proxies;
mod settings;
mod translations;
mod watch;

pub use watch::watch;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Services do not work.
    Problem,
    /// Some connections may fail.
    Warning,
    /// Worth knowing; does not count for the exit status.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Problem => "problem",
            Severity::Warning => "warning",
            Severity::Note => "note",
        })
    }
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The check, one of [`CHECKS`].
    pub check: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, with the object's name.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

/// What was checked, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether nothing was found but notes.
    pub healthy: bool,
    /// The checks that were made.
    pub checks: Vec<&'static str>,
    /// The worst first.
    pub findings: Vec<Finding>,
}

/// The cluster's objects and what this node makes of them.
#[derive(Debug)]
pub struct Cluster {
    /// The objects.
    pub index: Index,
    /// What they come to.
    pub desired: Desired,
}

/// What the checks look at.
pub(crate) struct Host<'a> {
    config: &'a Config,
    /// `None`: no source was given.
    cluster: Option<&'a Cluster>,
    /// The API server's address, where one is configured and it is an address.
    api: Option<IpAddr>,
    /// Rules of nf_tables and iptables-legacy, where they can be read.
    tables: Vec<Table>,
    rules_known: bool,
    found: Vec<Finding>,
}

type Check = fn(&mut Host<'_>);

/// The checks by name, in the order in which they are made.
const CHECKS: [(&str, Check); 14] = [
    ("kernel", kernel::features),
    ("conntrack", kernel::conntrack),
    ("invalid-packets", kernel::invalid_packets),
    ("ipvs", kernel::ipvs),
    ("settings", settings::sysctls),
    ("leftovers", proxies::leftovers),
    ("kube-proxy", proxies::kube_proxy),
    ("other-proxies", proxies::others),
    ("forward", filters::forward),
    ("input", filters::input),
    ("node-ports", filters::node_ports),
    ("translations", translations::foreign),
    ("br-netfilter", settings::bridges),
    ("api-server", api::through_itself),
];

/// Makes all checks in the network namespace of the calling thread. They need `CAP_NET_ADMIN`; what cannot be looked at
/// is a finding, too.
pub fn check(config: &Config, cluster: Option<&Cluster>, api: Option<IpAddr>) -> Report {
    let mut host = Host { config, cluster, api, tables: Vec::new(), rules_known: true, found: Vec::new() };
    host.read_rules();
    CHECKS.iter().for_each(|(_, check)| check(&mut host));
    let needs_rules = ["leftovers", "forward", "input", "node-ports", "translations"];
    let made = |name: &&str| match *name {
        "ipvs" => config.ipvs.is_some(),
        name => host.rules_known || !needs_rules.contains(&name),
    };
    let checks = CHECKS.iter().map(|(name, _)| *name).filter(made).collect();
    let mut report = Report { healthy: true, checks, findings: Vec::new() };
    report.extend(host.found);
    report
}

/// Rules of others that drop Services' packets: a firewall may come at any time.
fn dropping(config: &Config) -> Vec<Finding> {
    let mut host =
        Host { config, cluster: None, api: None, tables: Vec::new(), rules_known: true, found: Vec::new() };
    host.read_rules();
    host.found.clear();
    filters::forward(&mut host);
    filters::node_ports(&mut host);
    host.found
}

impl Report {
    /// Adds what was found elsewhere.
    pub fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.findings.extend(findings);
        self.findings.sort_by_key(|finding| finding.severity);
        self.healthy = self.findings.iter().all(|finding| finding.severity == Severity::Note);
    }
}

impl Host<'_> {
    fn find(
        &mut self,
        check: &'static str,
        severity: Severity,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.found.push(Finding { check, severity, what: what.into(), remedy: remedy.into() });
    }

    fn read_rules(&mut self) {
        match Socket::open().and_then(|mut socket| ruleset::read(&mut socket)) {
            Ok(rules) => self.tables = rules.tables,
            Err(error) => {
                self.rules_known = false;
                self.find(
                    "kernel",
                    Severity::Problem,
                    format!("the rules of nf_tables cannot be read: {error}"),
                    "run this as root, or with CAP_NET_ADMIN; the kernel needs CONFIG_NF_TABLES",
                );
            }
        }
        for family in Family::ALL {
            match xtables::read(family) {
                Ok(tables) => self.tables.extend(tables.iter().map(Table::from)),
                Err(error) => {
                    self.find("leftovers", Severity::Warning, error.to_string(), "run this as root");
                }
            }
        }
    }

    /// Families whose Services this node is to serve; without a source all that the kernel has.
    fn families(&self) -> Vec<Family> {
        let Some(cluster) = self.cluster else { return Family::ALL.to_vec() };
        let served = |family| cluster.desired.cluster_ips().any(|address| Family::of(address) == family);
        Family::ALL.into_iter().filter(|family| served(*family)).collect()
    }
}

/// As nft and iptables say it.
fn table_name(table: &Table) -> String {
    let family = match table.family {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => "of another family",
    };
    match (table.legacy, family) {
        (false, _) => format!("table {family} {}", table.name),
        (true, "ip6") => format!("table {} of ip6tables-legacy", table.name),
        (true, _) => format!("table {} of iptables-legacy", table.name),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{}: {}: {}", finding.severity, finding.check, finding.what)?;
            writeln!(f, "  remedy: {}", finding.remedy)?;
        }
        let clean = |check: &&&str| self.findings.iter().all(|finding| finding.check != **check);
        let clean: Vec<&str> = self.checks.iter().filter(clean).copied().collect();
        writeln!(f, "nothing found by: {}", clean.join(", "))
    }
}
