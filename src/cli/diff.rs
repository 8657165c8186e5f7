//! `sluice diff`.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::logging;
use super::settings::Settings;
use crate::config::{View, host_addresses};
use crate::dataplane::DataPlane;
use crate::dataplane::nftables::Nftables;
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
        let View { node, settings, notices } = config.view(&index, &host_addresses()?);
        notices.iter().for_each(|notice| tracing::warn!("{notice}"));
        let mut plane = Nftables::open()?;
        let observed = plane.observe(&settings)?;
        let (desired, _) =
            Desired::adopting(&index, node, settings, plane.adopt(&observed), std::time::Instant::now());
        let plan = plane.plan(&desired, &observed);
        for (family, table) in &observed {
            if let Some(difference) = table.as_ref().and_then(|t| t.difference.as_ref()) {
                eprintln!("the {family} table is of another structure: {difference}");
            }
        }
        write!(std::io::stdout().lock(), "{plan}")?;
        Ok(if plan.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
