//! `sluice dump`.

use std::io::Write;

use clap::Args;

use super::logging;
use super::settings::Settings;
use crate::cluster::{Family, Index};
use crate::config::{Config, View, host_addresses};
use crate::dataplane::nftables::model::Set;
use crate::dataplane::nftables::{plan, text};
use crate::forwarding::Desired;
use crate::source::manifests::Manifests;

#[derive(Debug, Args)]
pub struct Dump {
    #[command(flatten)]
    pub(super) settings: Settings,
}

impl Dump {
    pub fn execute(self) -> anyhow::Result<()> {
        logging::warnings_only();
        let desired = desired(&self.settings)?;
        let mut out = String::new();
        for family in Family::ALL {
            let elements = plan::elements(&desired, family);
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

fn desired(settings: &Settings) -> anyhow::Result<Desired> {
    let config = config(settings)?;
    let index = load(settings, &config)?;
    let addresses = match index.node() {
        // Another node's rules are asked for, as a rule: its object knows its addresses better than this host.
        Some(node) => node.addresses.clone(),
        None => host_addresses().unwrap_or_default(),
    };
    let View { node, settings, notices } = config.view(&index, &addresses);
    notices.iter().for_each(|notice| tracing::warn!("{notice}"));
    let (desired, changes) = Desired::from_scratch(&index, node, settings);
    for c in &changes.conflicts {
        tracing::warn!(service = %c.loser, winner = %c.winner, "{} ({}) is not served for this Service", c.key, c.kind);
    }
    Ok(desired)
}
