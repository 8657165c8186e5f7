//! The format of `testdata/cases`; the README there explains it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::ipv6;
use crate::probe::{Outcome, Source, Target};
use crate::topology::{PodNetwork, is_node_address};

/// One case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Unique among all cases.
    pub name: String,
    /// Changes of the agent's configuration.
    #[serde(default)]
    pub config: Map<String, Value>,
    /// How the node reaches its pods.
    #[serde(default)]
    pub topology: Pods,
    /// The objects to begin with.
    pub manifests: Vec<Value>,
    /// Rules that an administrator has on the node, loaded before the first flow.
    #[serde(default)]
    pub nft: String,
    /// Connections.
    #[serde(default)]
    pub flows: Vec<Flow>,
    /// Counters of such rules, after the flows.
    #[serde(default)]
    pub counters: Vec<Counter>,
    /// HTTP requests.
    #[serde(default)]
    pub http: Vec<Http>,
    /// Conntrack entries.
    #[serde(default)]
    pub conntrack_gone: Vec<Conntrack>,
    /// Changes, one after the other, each with its own checks.
    #[serde(default)]
    pub steps: Vec<Step>,
}

/// A change and what is so after it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Step {
    /// Objects to apply.
    pub apply: Vec<Value>,
    /// Objects to change by a merge patch.
    pub patch: Vec<Patch>,
    /// Objects to delete.
    pub delete: Vec<Name>,
    /// End the agent and start it again.
    pub restart_proxy: bool,
    /// Seconds to wait when the change is in effect.
    pub sleep: f64,
    /// Rules that an administrator loads when the change is in effect.
    pub nft: String,
    /// Connections.
    pub flows: Vec<Flow>,
    /// Counters of such rules, after the flows.
    pub counters: Vec<Counter>,
    /// HTTP requests.
    pub http: Vec<Http>,
    /// Conntrack entries.
    pub conntrack_gone: Vec<Conntrack>,
}

/// How the node reaches its pods.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pods {
    /// By the bridge `cni0` instead of a routed link each.
    pub bridge: bool,
    /// Bridged packets pass the IP hooks (`net.bridge.bridge-nf-call-iptables`).
    pub call_iptables: bool,
}

impl Pods {
    /// The same as the topology takes it.
    pub fn network(self) -> PodNetwork {
        if self.bridge {
            PodNetwork::Bridge { call_iptables: self.call_iptables }
        } else {
            PodNetwork::Routed
        }
    }
}

/// A named counter of an administrator's table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counter {
    /// Family and table, `inet admin`.
    pub table: String,
    /// The counter's name.
    pub name: String,
    /// Whether it counted packets since the last time it was looked at.
    pub counted: bool,
}

/// A merge patch of one object.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    /// The object's kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// RFC 7396.
    pub patch: Value,
}

/// One object.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Name {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// Connections from one client to one address.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// The client, `NAME` or `NAME@SOURCE`.
    pub from: String,
    /// The address, port and protocol.
    #[serde(deserialize_with = "parsed")]
    pub to: Target,
    /// How many.
    #[serde(default = "default_tries")]
    pub tries: usize,
    /// One after the other.
    #[serde(default)]
    pub sequential: bool,
    /// Only the number of different endpoints was recorded. For readers.
    #[serde(default, rename = "sticky")]
    pub _sticky: bool,
    /// One socket for this and later flows of this name.
    pub session: Option<String>,
    /// What has to happen.
    pub expect: Expect,
    /// What kube-proxy did, where that is wrong. For readers.
    #[serde(rename = "recorded")]
    pub _recorded: Option<Expect>,
}

fn default_tries() -> usize {
    40
}

fn parsed<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Target, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

/// An HTTP request.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// The client.
    pub from: String,
    /// `http://ADDRESS:PORT/PATH`.
    pub url: String,
    /// `code` (a status, or `refused`), `weight` (the endpoint weight header), and fields of a JSON body.
    pub expect: Map<String, Value>,
}

/// Whether a conntrack entry is there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conntrack {
    /// `tcp` or `udp`.
    pub proto: String,
    /// The original destination.
    pub dst: String,
    /// The original destination port.
    pub port: Option<u16>,
    /// The source of replies: the endpoint.
    pub reply_src: String,
    /// What has to be so.
    pub expect: Gone,
    /// What kube-proxy did, where that is wrong. For readers.
    #[serde(rename = "recorded")]
    pub _recorded: Option<Gone>,
}

/// Whether an entry has gone.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gone {
    /// It has.
    pub gone: bool,
}

/// What has to become of a flow.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "ExpectText")]
pub struct Expect {
    /// All of these, and nothing else.
    pub outcomes: BTreeSet<Outcome>,
    /// Exactly these answer.
    pub endpoints: Option<BTreeSet<SocketAddr>>,
    /// What they see.
    pub source: Option<SourceText>,
    /// So many different endpoints answer.
    pub distinct: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ExpectText {
    Outcome(String),
    Full(ExpectFields),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectFields {
    outcome: Option<String>,
    endpoints: Option<BTreeSet<SocketAddr>>,
    source: Option<SourceText>,
    distinct: Option<usize>,
}

/// One source for all endpoints, or one for each.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum SourceText {
    /// `kept`, `node` or an address.
    All(String),
    /// The same by endpoint.
    Each(BTreeMap<SocketAddr, String>),
}

impl SourceText {
    /// What this endpoint has to see.
    ///
    /// # Errors
    /// On a word that is none of the three.
    pub fn of(&self, endpoint: SocketAddr) -> Result<Option<Source>> {
        let text = match self {
            Self::All(text) => Some(text),
            Self::Each(map) => map.get(&endpoint),
        };
        text.map(|text| match text.as_str() {
            "kept" => Ok(Source::Kept),
            "node" => Ok(Source::Node),
            _ => text.parse().map(Source::Other).map_err(|_| anyhow!("{text}: not kept, node or an address")),
        })
        .transpose()
    }
}

impl Case {
    /// The same in mode ipvs. There this node comes from the service address, which endpoints must not see: where they see
    /// its own address otherwise, they see an address of the node.
    pub fn in_ipvs(mut self) -> Self {
        let steps = self.steps.iter_mut().flat_map(|step| &mut step.flows);
        for flow in self.flows.iter_mut().chain(steps) {
            if flow.from == "host" && !is_node_address(flow.to.address.ip()) {
                let texts: Vec<&mut String> = match &mut flow.expect.source {
                    None => continue,
                    Some(SourceText::All(text)) => vec![text],
                    Some(SourceText::Each(map)) => map.values_mut().collect(),
                };
                texts.into_iter().filter(|text| *text == "kept").for_each(|text| *text = "node".into());
            }
        }
        self
    }
}

impl Expect {
    /// Nothing but this, whoever answers.
    pub fn only(outcome: Outcome) -> Self {
        Self { outcomes: BTreeSet::from([outcome]), endpoints: None, source: None, distinct: None }
    }
}

impl TryFrom<ExpectText> for Expect {
    type Error = anyhow::Error;

    fn try_from(text: ExpectText) -> Result<Self> {
        let fields = match text {
            ExpectText::Full(fields) => fields,
            ExpectText::Outcome(outcome) => {
                ExpectFields { outcome: Some(outcome), endpoints: None, source: None, distinct: None }
            }
        };
        let outcomes = fields.outcome.as_deref().unwrap_or("connect").split('+').map(outcome);
        Ok(Self {
            outcomes: outcomes.collect::<Result<_>>()?,
            endpoints: fields.endpoints,
            source: fields.source,
            distinct: fields.distinct,
        })
    }
}

fn outcome(word: &str) -> Result<Outcome> {
    Ok(match word {
        "connect" => Outcome::Connect,
        "refused" => Outcome::Refused,
        "timeout" => Outcome::Timeout,
        "unreachable" => Outcome::Unreachable,
        "reset" => Outcome::Reset,
        "closed" => Outcome::Closed,
        _ => bail!("{word}: not an outcome"),
    })
}

/// Reads all cases below a directory, as `(file name without ending, case)`; then those that can be said in IPv6, with the
/// file name `v6::...`.
///
/// # Errors
/// On a file that does not have the format, or a name that is there twice.
pub fn read_all(directory: &Path) -> Result<Vec<(String, Case)>> {
    let mut paths: Vec<_> = fs::read_dir(directory)
        .with_context(|| format!("read {}", directory.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    paths.retain(|path| path.extension().is_some_and(|it| it == "yaml"));
    paths.sort();
    let (mut cases, mut in_both) = (Vec::new(), Vec::new());
    let mut names = BTreeSet::new();
    for path in paths {
        let text = fs::read_to_string(&path)?;
        let file: Vec<Value> =
            serde_saphyr::from_str_with_options(&text, serde_saphyr::options! { strict_booleans: true })
                .map_err(|e| anyhow!("{}: {e}", path.display()))?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for value in file {
            let read = |value: &Value| {
                Case::deserialize(value).map_err(|e| anyhow!("{}: {e} in {value}", path.display()))
            };
            let case = read(&value)?;
            if !names.insert(case.name.clone()) {
                bail!("{}: the name {} is there twice", path.display(), case.name);
            }
            cases.push((stem.clone(), case));
            // SCTP has a case of its own for IPv6: servers are on few addresses.
            if stem != "sctp"
                && let Some(in_ipv6) = ipv6::translated(&value)
            {
                in_both.push((format!("v6::{stem}"), read(&in_ipv6)?));
            }
        }
    }
    cases.append(&mut in_both);
    Ok(cases)
}
