//! Flags that several commands share.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::flags::Flags;
use crate::config::merge::{self, Merged};
use crate::config::{Config, host_name};

/// What decides about forwarding; names, values and defaults are kube-proxy's.
#[derive(Debug, Args)]
pub struct Settings {
    /// File or folder of YAML or JSON with Services, EndpointSlices, Nodes and ServiceCIDRs, in place of an API
    /// server. Files of a folder: *.yaml, *.yml, *.json.
    #[arg(long, value_name = "PATH", help_heading = "Where objects come from")]
    pub manifests: Option<PathBuf>,
    #[command(flatten)]
    pub flags: Flags,
}

impl Settings {
    /// Flags and file, put together.
    pub fn merged(&self) -> anyhow::Result<Merged> {
        let given = &self.flags.0;
        let Some(path) = given.text("config") else { return Ok(merge::merge(given, None)?) };
        let text = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
        merge::merge(given, Some(&text)).with_context(|| path.to_owned())
    }

    /// The validated configuration.
    pub fn config(&self) -> anyhow::Result<Config> {
        Ok(Config::new(&self.merged()?, &host_name()?)?)
    }
}
