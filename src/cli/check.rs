//! `sluice check`.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;

use super::api_server;
use super::logging;
use super::settings::{Format, Settings};
use crate::check::{self, Cluster, Finding, Severity};
use crate::config::{Config, View, host_addresses};
use crate::forwarding::Desired;

#[derive(Debug, Args)]
pub struct Check {
    /// Text for people, or JSON for programs: healthy, checks, findings with check, severity, what and remedy.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    #[command(flatten)]
    pub(super) settings: Settings,
}

impl Check {
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        logging::warnings_only();
        let config = super::dump::config(&self.settings)?;
        let mut own = Vec::new();
        let cluster = self.cluster(&config, &mut own)?;
        let api = match self.settings.manifests {
            Some(_) => config.client.kubeconfig.is_some() || config.client.master.is_some(),
            None => true,
        };
        let api = if api { api_server::address(&config.client) } else { None };
        let mut report = check::check(&config, cluster.as_ref(), api);
        report.extend(own);
        let text = match self.format {
            Format::Text => report.to_string(),
            Format::Json => serde_json::to_string_pretty(&report)? + "\n",
        };
        // The status says what was asked even if nobody reads on.
        match std::io::stdout().lock().write_all(text.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
        Ok(if report.healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The objects, where a source is given and can be read; what is in the way of that is a finding.
    fn cluster(&self, config: &Config, findings: &mut Vec<Finding>) -> anyhow::Result<Option<Cluster>> {
        let mut find = |severity, what: String, remedy: &str| {
            findings.push(Finding { check: "api-server", severity, what, remedy: remedy.into() });
        };
        if self.settings.manifests.is_none() && !api_server::is_configured(&config.client) {
            find(
                Severity::Note,
                "no Services are known: what concerns their addresses was not checked".into(),
                "give --kubeconfig, --config or --manifests",
            );
            return Ok(None);
        }
        let index = match super::dump::load(&self.settings, config) {
            Ok(index) => index,
            Err(error) if self.settings.manifests.is_none() => {
                find(
                    Severity::Problem,
                    format!("the objects cannot be listed: {error:#}"),
                    "see that the address is right and reached from this host, and that the user may list services, \
                     endpointslices, nodes and servicecidrs (ClusterRole system:node-proxier)",
                );
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let View { node, settings, .. } = config.view(&index, &host_addresses()?);
        let (desired, _) = Desired::from_scratch(&index, node, settings);
        Ok(Some(Cluster { index, desired }))
    }
}
