//! Flags that several commands share.

use std::path::PathBuf;

use clap::Args;

use crate::config::{Config, host_name};

/// What decides about forwarding; names, values and defaults are kube-proxy's.
#[derive(Debug, Args)]
pub struct Settings {
    /// File or folder of YAML or JSON with Services, EndpointSlices, Nodes and ServiceCIDRs, in place of an API
    /// server. Files of a folder: *.yaml, *.yml, *.json.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["kubeconfig", "master"])]
    pub manifests: Option<PathBuf>,
    #[command(flatten)]
    pub api_server: super::api_server::ApiServer,
    /// Name of the own Node [default: this host's name].
    #[arg(long, visible_alias = "node-name", value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Range of pod addresses, or an IPv4 and an IPv6 range separated by a comma.
    #[arg(long, value_name = "CIDR[,CIDR]", default_value = "", hide_default_value = true)]
    pub cluster_cidr: String,
    /// How traffic of this node's pods is told from outside traffic: ClusterCIDR, NodeCIDR, BridgeInterface or
    /// InterfaceNamePrefix.
    #[arg(long, value_name = "MODE", default_value = "ClusterCIDR")]
    pub detect_local_mode: String,
    /// The bridge that pods are on, for BridgeInterface.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub pod_bridge_interface: String,
    /// What the names of pods' interfaces start with, for InterfaceNamePrefix.
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub pod_interface_name_prefix: String,
    /// Where NodePorts are served: primary, all, and ranges, separated by commas [default: primary].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Masquerade every connection to a ClusterIP.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, action = clap::ArgAction::Set)]
    pub masquerade_all: bool,
}

impl Settings {
    /// The validated configuration.
    pub fn config(&self) -> anyhow::Result<Config> {
        let name = match &self.hostname_override {
            Some(name) => name.clone(),
            None => host_name()?,
        };
        Ok(Config::new(
            &name,
            &self.detect_local_mode,
            &self.cluster_cidr,
            &self.pod_bridge_interface,
            &self.pod_interface_name_prefix,
            &self.nodeport_addresses,
            self.masquerade_all,
        )?)
    }
}
