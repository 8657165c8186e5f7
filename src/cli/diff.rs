//! `sluice diff`.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::logging;
use super::settings::Settings;
use crate::cluster::Index;
use crate::config::{View, host_addresses};
use crate::dataplane::DataPlane;
use crate::dataplane::ipvs::Ipvs;
use crate::dataplane::nftables::{Nftables, plan};
use crate::forwarding::Desired;

#[derive(Debug, Args)]
pub struct Diff {
    #[command(flatten)]
    pub(super) settings: Settings,
}

impl Diff {
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        logging::warnings_only();
        let config = super::dump::config(&self.settings)?;
        let index = super::dump::load(&self.settings, &config)?;
        let view = config.view(&index, &host_addresses()?);
        view.notices.iter().for_each(|notice| tracing::warn!("{notice}"));
        match config.ipvs {
            None => compare(Nftables::open()?, &index, view, |observed| observed),
            Some(ipvs) => {
                compare(Ipvs::open(ipvs, config.sync_period)?, &index, view, |observed| &observed.tables)
            }
        }
    }
}

fn compare<D: DataPlane>(
    mut plane: D,
    index: &Index,
    View { node, settings, .. }: View,
    tables: impl FnOnce(&D::Observed) -> &plan::Observed,
) -> anyhow::Result<ExitCode> {
    let observed = plane.observe(&settings)?;
    let (desired, _) =
        Desired::adopting(index, node, settings, plane.adopt(&observed), std::time::Instant::now());
    let plan = plane.plan(&desired, &observed);
    for (family, table) in tables(&observed) {
        if let Some(difference) = table.as_ref().and_then(|t| t.difference.as_ref()) {
            eprintln!("the {family} table is of another structure: {difference}");
        }
    }
    write!(std::io::stdout().lock(), "{plan}")?;
    Ok(if plane.steps(&plan) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
