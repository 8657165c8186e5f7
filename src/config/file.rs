//! KubeProxyConfiguration, `kubeproxy.config.k8s.io/v1alpha1`: its fields, how it is read, and its defaults.
//!
//! Source: k8s.io/kube-proxy config/v1alpha1 and k8s.io/component-base config and logs/api.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::duration::{GoDuration, NanosOrDuration};
use super::reference;

/// The only apiVersion.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// The only kind.
pub const KIND: &str = "KubeProxyConfiguration";

/// A section: one struct of the file, whose absent fields have Go's zero value.
macro_rules! section {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        ///
        /// Fields are as in the file; `reference` says what each does here.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        #[allow(missing_docs, reason = "the table in `reference` documents each field, for operators too")]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }
    };
}

section!(
    /// The whole file.
    KubeProxyConfiguration {
        api_version: String,
        kind: String,
        feature_gates: BTreeMap<String, bool>,
        client_connection: ClientConnection,
        logging: Logging,
        hostname_override: String,
        bind_address: String,
        healthz_bind_address: String,
        metrics_bind_address: String,
        bind_address_hard_fail: bool,
        enable_profiling: bool,
        show_hidden_metrics_for_version: String,
        mode: String,
        iptables: Iptables,
        ipvs: Ipvs,
        nftables: Nftables,
        winkernel: Winkernel,
        detect_local_mode: String,
        detect_local: DetectLocal,
        #[serde(rename = "clusterCIDR")]
        cluster_cidr: String,
        node_port_addresses: Vec<String>,
        oom_score_adj: Option<i32>,
        conntrack: Conntrack,
        config_sync_period: GoDuration,
        port_range: String,
        windows_run_as_service: bool,
    }
);

section!(
    /// How the API server is reached.
    ClientConnection {
        kubeconfig: String,
        accept_content_types: String,
        content_type: String,
        qps: f32,
        burst: i32,
    }
);

section!(
    /// LoggingConfiguration of component-base.
    Logging {
        format: String,
        flush_frequency: NanosOrDuration,
        verbosity: u32,
        vmodule: Vec<VModule>,
        options: serde_json::Map<String, Value>,
    }
);

section!(
    /// The verbosity of some source files.
    VModule {
        file_pattern: String,
        verbosity: u32,
    }
);

section!(
    /// For mode iptables.
    Iptables {
        masquerade_bit: Option<i32>,
        masquerade_all: bool,
        localhost_node_ports: Option<bool>,
        sync_period: GoDuration,
        min_sync_period: GoDuration,
    }
);

section!(
    /// For mode ipvs.
    Ipvs {
        sync_period: GoDuration,
        min_sync_period: GoDuration,
        scheduler: String,
        #[serde(rename = "excludeCIDRs")]
        exclude_cidrs: Vec<String>,
        #[serde(rename = "strictARP")]
        strict_arp: bool,
        tcp_timeout: GoDuration,
        tcp_fin_timeout: GoDuration,
        udp_timeout: GoDuration,
        service_metrics: bool,
    }
);

section!(
    /// For mode nftables.
    Nftables {
        masquerade_bit: Option<i32>,
        masquerade_all: bool,
        sync_period: GoDuration,
        min_sync_period: GoDuration,
    }
);

section!(
    /// For Windows.
    Winkernel {
        network_name: String,
        source_vip: String,
        #[serde(rename = "enableDSR")]
        enable_dsr: bool,
        root_hns_endpoint_name: String,
        #[serde(rename = "forwardHealthCheckVIP")]
        forward_health_check_vip: bool,
    }
);

section!(
    /// What belongs to detectLocalMode.
    DetectLocal {
        bridge_interface: String,
        interface_name_prefix: String,
    }
);

section!(
    /// Settings of the kernel's connection tracking.
    Conntrack {
        max_per_core: Option<i32>,
        min: Option<i32>,
        tcp_established_timeout: Option<GoDuration>,
        tcp_close_wait_timeout: Option<GoDuration>,
        tcp_be_liberal: bool,
        udp_timeout: GoDuration,
        udp_stream_timeout: GoDuration,
    }
);

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Not YAML (nor JSON).
    #[error("{0}")]
    Syntax(String),
    /// Not a mapping.
    #[error("this is not a {KIND}: it must be a mapping with apiVersion {API_VERSION} and kind {KIND}")]
    NotAMapping,
    /// Another kind of object.
    #[error("{field} is {found:?}, it must be {expected:?}")]
    OtherKind {
        /// apiVersion or kind.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A value of the wrong type.
    #[error("{path}: {problem}")]
    Type {
        /// The field.
        path: String,
        /// What is expected.
        problem: String,
    },
}

/// What a file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// Its values, with no defaults filled in.
    pub configuration: KubeProxyConfiguration,
    /// What a strict reader refuses, and kube-proxy reads over: unknown fields and a key that is there twice.
    pub strict_errors: Vec<String>,
}

/// Reads a file's text: strictly, and where that fails, as kube-proxy does, leniently.
///
/// # Errors
/// On anything that is no KubeProxyConfiguration, and on values of the wrong type.
pub fn decode(text: &str) -> Result<Decoded, FileError> {
    let mut strict_errors = Vec::new();
    let value = match yaml(text, serde_saphyr::DuplicateKeyPolicy::Error) {
        Ok(value) => value,
        Err(serde_saphyr::Error::DuplicateMappingKey { key, location }) => {
            let key = key.unwrap_or_default();
            strict_errors
                .push(format!("{key} is there twice (line {}), the last one counts", location.line()));
            yaml(text, serde_saphyr::DuplicateKeyPolicy::LastWins).map_err(syntax)?
        }
        Err(error) => return Err(syntax(error)),
    };
    let Value::Object(mut object) = value else { return Err(FileError::NotAMapping) };
    for (field, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        let found = object.get(field).and_then(Value::as_str).unwrap_or_default();
        if found != expected {
            return Err(FileError::OtherKind { field, found: found.into(), expected });
        }
    }
    let mut unknown = Vec::new();
    tidy(&mut object, "", &mut unknown)?;
    strict_errors.extend(unknown.iter().map(|path| format!("unknown field {path}")));
    Ok(Decoded { configuration: from_value(Value::Object(object))?, strict_errors })
}

fn yaml(text: &str, duplicate_keys: serde_saphyr::DuplicateKeyPolicy) -> Result<Value, serde_saphyr::Error> {
    // As kube-proxy's reader, which knows YAML 1.1: `yes` and `on` are booleans.
    let options = serde_saphyr::options! {
        strict_booleans: false,
        duplicate_keys: duplicate_keys,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
}

fn syntax(error: serde_saphyr::Error) -> FileError {
    FileError::Syntax(error.to_string())
}

/// Drops nulls, which are Go's zero values, and collects the paths that the format does not have.
fn tidy(
    object: &mut serde_json::Map<String, Value>,
    above: &str,
    unknown: &mut Vec<String>,
) -> Result<(), FileError> {
    let mut dropped = Vec::new();
    for (key, value) in object.iter_mut() {
        let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
        match (reference::shape(&path), value) {
            (reference::Shape::Unknown, _) => {
                unknown.push(path);
                dropped.push(key.clone());
            }
            (_, Value::Null) => dropped.push(key.clone()),
            (reference::Shape::Section, Value::Object(inner)) => tidy(inner, &path, unknown)?,
            // Serde would take a list for a struct.
            (reference::Shape::Section, _) => {
                return Err(FileError::Type { path, problem: "it must be a mapping".into() });
            }
            (reference::Shape::Field, _) => {}
        }
    }
    dropped.iter().for_each(|key| drop(object.remove(key)));
    Ok(())
}

/// The configuration in a JSON value.
pub(super) fn from_value(value: Value) -> Result<KubeProxyConfiguration, FileError> {
    serde_path_to_error::deserialize(value).map_err(|error| FileError::Type {
        path: error.path().to_string(),
        problem: error.into_inner().to_string(),
    })
}

fn or<T: Default + PartialEq>(field: &mut T, default: T) {
    if *field == T::default() {
        *field = default;
    }
}

/// Ports of the health and of the metrics server (pkg/cluster/ports).
pub const HEALTHZ_PORT: u16 = 10256;
/// See [`HEALTHZ_PORT`].
pub const METRICS_PORT: u16 = 10249;

impl KubeProxyConfiguration {
    /// Fills in defaults: those of kube-proxy 1.36, but for `minSyncPeriod` of nftables and ipvs, which is 0 here: a
    /// change costs one small transaction, so there is nothing to save by waiting.
    pub fn set_defaults(&mut self) {
        let minute = 60;
        or(&mut self.api_version, API_VERSION.into());
        or(&mut self.kind, KIND.into());
        or(&mut self.bind_address, "0.0.0.0".into());
        let v4 = self.bind_address.parse::<IpAddr>().is_ok_and(|a| a.is_ipv4());
        let (any, loopback) = if v4 { ("0.0.0.0", "127.0.0.1") } else { ("::", "::1") };
        or(&mut self.healthz_bind_address, any.into());
        or(&mut self.metrics_bind_address, loopback.into());
        self.healthz_bind_address = with_port(&self.healthz_bind_address, HEALTHZ_PORT);
        self.metrics_bind_address = with_port(&self.metrics_bind_address, METRICS_PORT);
        self.oom_score_adj.get_or_insert(-999);
        self.iptables.masquerade_bit.get_or_insert(14);
        self.iptables.localhost_node_ports.get_or_insert(true);
        or(&mut self.iptables.sync_period, GoDuration::from_secs(30));
        or(&mut self.iptables.min_sync_period, GoDuration::from_secs(1));
        or(&mut self.ipvs.sync_period, GoDuration::from_secs(30));
        self.nftables.masquerade_bit.get_or_insert(14);
        or(&mut self.nftables.sync_period, GoDuration::from_secs(30));
        self.conntrack.max_per_core.get_or_insert(32 * 1024);
        self.conntrack.min.get_or_insert(128 * 1024);
        self.conntrack.tcp_established_timeout.get_or_insert(GoDuration::from_secs(24 * 60 * minute));
        self.conntrack.tcp_close_wait_timeout.get_or_insert(GoDuration::from_secs(60 * minute));
        or(&mut self.config_sync_period, GoDuration::from_secs(15 * minute));
        or(&mut self.client_connection.content_type, "application/vnd.kubernetes.protobuf".into());
        or(&mut self.client_connection.qps, 5.0);
        or(&mut self.client_connection.burst, 10);
        or(&mut self.detect_local_mode, "ClusterCIDR".into());
        or(&mut self.logging.format, "text".into());
        or(&mut self.logging.flush_frequency, NanosOrDuration(GoDuration::from_secs(5)));
    }

    /// The defaults of everything.
    pub fn defaulted() -> KubeProxyConfiguration {
        let mut configuration = KubeProxyConfiguration::default();
        configuration.set_defaults();
        configuration
    }

    /// As YAML, keys sorted.
    ///
    /// # Errors
    /// None that is known: all keys are text.
    pub fn to_yaml(&self) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        Ok(serde_saphyr::to_string(&serde_json::to_value(self)?)?)
    }
}

/// `ADDRESS:PORT` of an address that has no port; all else as it is.
pub(super) fn with_port(address: &str, port: u16) -> String {
    match address.parse::<IpAddr>() {
        Ok(ip) => std::net::SocketAddr::new(ip, port).to_string(),
        Err(_) => address.into(),
    }
}
