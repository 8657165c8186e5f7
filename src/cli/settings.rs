//! Flags that several commands share.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::flags::Flags;
use crate::config::merge::{self, Merged};
use crate::config::{Config, host_name};
use crate::forwarding::Claimable;

/// The command line of an agent, which other commands take as it is: `takeover` and `hold_connections` count in `run` alone.
/// Names, values and defaults are kube-proxy's, where it has them.
#[derive(Debug, Args)]
pub struct Settings {
    /// Remove what kube-proxy left, once the rules are in place, unless a kube-proxy is running. On by itself under
    /// the name kube-proxy.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Process"
    )]
    pub takeover: Option<bool>,
    /// Established connections survive it when somebody flushes all nftables rules: a table inet sluice-hold, which
    /// nobody else can change, keeps the kernel tracking and translating them. nft 1.0.6 and older print garbage
    /// for its flag as JSON (sometimes nothing, or what is no JSON), on which programs that read `nft -j list ruleset`, as
    /// podman, may fail; 1.1.3 is fine.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        help_heading = "Process"
    )]
    pub hold_connections: Option<bool>,
    /// File or folder of YAML or JSON with Services, EndpointSlices, Nodes and ServiceCIDRs, in place of an API
    /// server. Files of a folder: *.yaml, *.yml, *.json.
    #[arg(long, value_name = "PATH", help_heading = "Where objects come from")]
    pub manifests: Option<PathBuf>,
    /// Which spec.externalIPs Services may have: all, none, or ranges separated by commas. Whoever may make Services may
    /// name any address there and gets the pods' connections to it (CVE-2020-8554).
    #[arg(long, value_name = "RANGES", default_value = "all", help_heading = "How traffic is forwarded")]
    pub allowed_external_ips: Claimable,
    /// The same of addresses in status.loadBalancer, which take the right to write a Service's status.
    #[arg(long, value_name = "RANGES", default_value = "all", help_heading = "How traffic is forwarded")]
    pub allowed_load_balancer_ips: Claimable,
    /// Drop packets of connections to Services that conntrack calls INVALID (a TCP segment out of the window): they go
    /// untranslated, and whom they reach answers with a reset. Does nothing with --conntrack-tcp-be-liberal, the usual
    /// remedy, which has no such packets. The metric kubeproxy_iptables_ct_state_invalid_dropped_packets_total counts.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        hide_default_value = true,
        help_heading = "Connection tracking"
    )]
    pub conntrack_drop_invalid: bool,
    #[command(flatten)]
    pub flags: Flags,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// A configuration file as it was read.
#[derive(Clone, Debug)]
pub struct File {
    pub path: PathBuf,
    pub text: String,
}

impl Settings {
    /// The file of `--config`.
    pub fn file(&self) -> anyhow::Result<Option<File>> {
        let Some(path) = self.flags.0.text("config").map(PathBuf::from) else { return Ok(None) };
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(Some(File { path, text }))
    }

    /// Flags and file, put together.
    pub fn merged(&self, file: Option<&File>) -> anyhow::Result<Merged> {
        let text = file.map(|file| file.text.as_str());
        let merged = merge::merge(&self.flags.0, text);
        match file {
            Some(file) => merged.with_context(|| file.path.display().to_string()),
            None => Ok(merged?),
        }
    }

    /// The validated configuration.
    pub fn config(&self, file: Option<&File>) -> anyhow::Result<Config> {
        let mut config = Config::new(&self.merged(file)?, &host_name()?)?;
        if self.conntrack_drop_invalid && config.conntrack.tcp_be_liberal {
            let notice = "conntrack is liberal (tcpBeLiberal): --conntrack-drop-invalid does nothing";
            config.notices.push(notice.into());
        }
        Ok(Config {
            drop_invalid: self.conntrack_drop_invalid,
            external_ips: self.allowed_external_ips.clone(),
            load_balancer_ips: self.allowed_load_balancer_ips.clone(),
            ..config
        })
    }
}
