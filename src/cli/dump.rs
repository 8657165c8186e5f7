//! `sluice dump`.

use std::fmt::Write as _;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;

use clap::Args;

use super::logging;
use super::settings::Settings;
use crate::cluster::{Family, Index};
use crate::config::{self, Config, host_addresses};
use crate::dataplane::ipvs;
use crate::dataplane::nftables::model::Set;
use crate::dataplane::nftables::translation::{Host, Translation};
use crate::dataplane::nftables::{plan, text};
use crate::forwarding::{self, Desired, NodeView};
use crate::source::manifests::Manifests;

#[derive(Debug, Args)]
pub struct Dump {
    #[command(flatten)]
    pub(super) settings: Settings,
}

impl Dump {
    pub fn execute(self) -> anyhow::Result<()> {
        logging::warnings_only();
        let (desired, own) = desired(&self.settings)?;
        let mut out = String::new();
        let translation = match Translation::of(&desired) {
            Translation::Table => Translation::Table,
            Translation::Ipvs(host) => {
                let host = Host { addresses: own.into_iter().collect(), node: host.node.clone() };
                let translation = Translation::Ipvs(Arc::new(host));
                for step in ipvs::plan::from_nothing(&desired, translation.clone()) {
                    writeln!(out, "{step}")?;
                }
                translation
            }
        };
        for family in Family::ALL {
            let elements = plan::elements(&desired, &translation, family);
            let chains = plan::chains(family, &elements);
            let sets = (0..plan::sticky_sets(&chains)).map(Set::Sticky).collect();
            let structure = plan::structure(desired.settings(), family);
            let table = text::Table { structure, chains, sets, elements: elements.iter().collect() };
            table.write(&mut out, family)?;
        }
        Ok(std::io::stdout().lock().write_all(out.as_bytes())?)
    }
}

/// The configuration; what is odd about it goes to stderr.
pub fn config(settings: &Settings) -> anyhow::Result<Config> {
    for flag in ["cleanup", "init-only", "write-config-to"] {
        anyhow::ensure!(settings.flags.0.get(flag).is_none(), "--{flag} belongs to `sluice run`");
    }
    let config = settings.config(settings.file()?.as_ref())?;
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    Ok(config)
}

/// The objects of the manifests, or of the API server. A file that cannot be read is an error: half the truth would
/// mislead.
pub fn load(settings: &Settings, config: &Config) -> anyhow::Result<Index> {
    let mut index = Index::new(config.node_name.clone());
    let changes = match &settings.manifests {
        Some(path) => {
            let load = Manifests::open(path)?.load()?;
            load.warn();
            let whole = load.broken.is_empty();
            anyhow::ensure!(whole, "nothing is printed, since a file cannot be read as a whole");
            load.changes
        }
        None => super::api_server::list(&config.client, &config.node_name)?,
    };
    changes.into_iter().for_each(|change| index.apply(change));
    Ok(index)
}

/// A node and the objects that it sees.
pub struct View {
    pub index: Index,
    pub node: NodeView,
    pub settings: forwarding::Settings,
    /// All the node's addresses that are known.
    pub own: Vec<IpAddr>,
}

/// Reads everything that forwarding needs; what is odd about it goes to stderr.
pub fn view(settings: &Settings) -> anyhow::Result<View> {
    let config = config(settings)?;
    let index = load(settings, &config)?;
    let host = host_addresses();
    let (addresses, own) = match index.node() {
        // Another node's rules are asked for, as a rule: its object knows its addresses better than this host.
        Some(node) => {
            let mut own = node.addresses.clone();
            // But it does not know all, if it is this host.
            let host = host.unwrap_or_default();
            if own.iter().any(|address| host.contains(address)) {
                own.extend(host);
            }
            (node.addresses.clone(), own)
        }
        None => {
            let host = host.unwrap_or_default();
            (host.clone(), host)
        }
    };
    let config::View { node, settings, notices } = config.view(&index, &addresses);
    notices.iter().for_each(|notice| tracing::warn!("{notice}"));
    Ok(View { index, node, settings, own })
}

/// What is desired, and the node's addresses.
fn desired(settings: &Settings) -> anyhow::Result<(Desired, Vec<IpAddr>)> {
    let View { index, node, settings, own } = view(settings)?;
    let (desired, changes) = Desired::from_scratch(&index, node, settings);
    for c in &changes.conflicts {
        tracing::warn!(service = %c.loser, winner = %c.winner, "{} ({}) is not served for this Service", c.key, c.kind);
    }
    for r in &changes.refused {
        tracing::warn!(service = %r.service, "{} ({}) is not served: a flag does not allow it", r.key, r.kind);
    }
    Ok((desired, own))
}
