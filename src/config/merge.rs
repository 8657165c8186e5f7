//! Flags and file become one defaulted configuration, with kube-proxy's precedence.

use std::net::IpAddr;

use serde_json::Value;

use super::file::{self, Decoded, FileError, HEALTHZ_PORT, KubeProxyConfiguration, METRICS_PORT};
use super::reference::{self, ALSO, Entry, Kind, Topic};

/// The flags that were given, each once.
#[derive(Clone, Debug, Default)]
pub struct Given(Vec<(&'static Entry, Value)>);

impl Given {
    /// Takes one occurrence of a flag, in the order of the command line.
    pub fn add(&mut self, entry: &'static Entry, value: Value) {
        match self.0.iter_mut().find(|(e, _)| e.flag == entry.flag) {
            Some((_, old)) => Kind::again(old, value),
            None => self.0.push((entry, value)),
        }
    }

    /// The value of a flag, by its name without dashes.
    pub fn get(&self, flag: &str) -> Option<&Value> {
        self.0.iter().find(|(e, _)| e.flag == flag).map(|(_, value)| value)
    }

    /// The text of a flag, where it is given and not empty.
    pub fn text(&self, flag: &str) -> Option<&str> {
        self.get(flag).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    /// Whether a flag without a field is on.
    pub fn is_on(&self, flag: &str) -> bool {
        self.get(flag) == Some(&Value::Bool(true))
    }

    /// The given flag that sets a field.
    fn setting(&self, field: &str) -> Option<&'static str> {
        let also = |flag: &str| ALSO.iter().any(|(f, path)| *f == flag && *path == field);
        self.0.iter().map(|(e, _)| e).find(|e| e.field == field || also(e.flag)).map(|e| e.flag)
    }
}

/// Flags and file, put together.
#[derive(Clone, Debug)]
pub struct Merged {
    /// What holds, with all defaults.
    pub configuration: KubeProxyConfiguration,
    /// `--master`.
    pub master: Option<String>,
    /// What the operator should be warned of once.
    pub warnings: Vec<String>,
    /// The flags that count, for messages about their values.
    given: Given,
    /// Whether there is a file.
    has_file: bool,
}

/// Puts flags and the text of a file together.
///
/// # Errors
/// On a file that is no configuration, and on a flag whose number does not fit its field.
pub fn merge(given: &Given, file: Option<&str>) -> Result<Merged, FileError> {
    let mut warnings = Vec::new();
    let (counting, mut configuration) = match file {
        Some(text) => {
            let Decoded { mut configuration, strict_errors } = file::decode(text)?;
            if !strict_errors.is_empty() {
                warnings
                    .push(format!("the configuration file is read leniently: {}", strict_errors.join("; ")));
            }
            configuration.set_defaults();
            let (counting, ignored): (Vec<_>, Vec<_>) =
                given.0.iter().cloned().partition(|(entry, _)| counts_beside_file(entry));
            if !ignored.is_empty() {
                let names: Vec<_> = ignored.iter().map(|(e, _)| format!("--{}", e.flag)).collect();
                warnings.push(format!("ignored, since there is a --config: {}", names.join(", ")));
            }
            (Given(counting), configuration)
        }
        None => (given.clone(), without_file(given)),
    };
    configuration = overlay(configuration, &counting)?;
    let ignored = reference::ignored_fields(&configuration);
    if !ignored.is_empty() {
        let name = |field: &&str| match counting.setting(field) {
            Some(flag) => format!("--{flag}"),
            None => (*field).to_owned(),
        };
        let names: Vec<_> = ignored.iter().map(name).collect();
        warnings.push(format!("has no effect here: {}", names.join(", ")));
    }
    let master = given.text("master").map(str::to_owned);
    Ok(Merged { configuration, master, warnings, given: counting, has_file: file.is_some() })
}

/// Flags that kube-proxy minds although there is a file.
fn counts_beside_file(entry: &Entry) -> bool {
    let has_field = !entry.field.is_empty() || matches!(entry.flag, "healthz-port" | "metrics-port");
    !has_field || entry.topic == Topic::Logs || entry.flag == "hostname-override"
}

/// What the flags are laid over, when there is no file. Defaults that follow from the bind address do.
fn without_file(given: &Given) -> KubeProxyConfiguration {
    let bind_address = given.text("bind-address").unwrap_or_default().to_owned();
    let mut configuration = KubeProxyConfiguration { bind_address, ..KubeProxyConfiguration::default() };
    configuration.set_defaults();
    for (flag, address, port) in [
        ("healthz-port", &mut configuration.healthz_bind_address, HEALTHZ_PORT),
        ("metrics-port", &mut configuration.metrics_bind_address, METRICS_PORT),
    ] {
        if let Some(other) = given.get(flag) {
            *address = address.replace(&format!(":{port}"), &format!(":{other}"));
        }
    }
    configuration
}

fn overlay(
    configuration: KubeProxyConfiguration,
    given: &Given,
) -> Result<KubeProxyConfiguration, FileError> {
    let mut value = serde_json::to_value(configuration)
        .map_err(|e| FileError::Type { path: String::new(), problem: e.to_string() })?;
    for (entry, new) in given.0.iter().filter(|(entry, _)| !entry.field.is_empty()) {
        reference::set(&mut value, entry.field, with_server_port(entry, new, given));
        for (_, field) in ALSO.iter().filter(|(flag, _)| *flag == entry.flag) {
            reference::set(&mut value, field, new.clone());
        }
    }
    for (flag, field) in [("healthz-port", "healthzBindAddress"), ("metrics-port", "metricsBindAddress")] {
        if given.get(flag).and_then(Value::as_i64) == Some(0) {
            reference::set(&mut value, field, "".into());
        }
    }
    file::from_value(value)
}

/// A server's address may lack its port.
fn with_server_port(entry: &Entry, new: &Value, given: &Given) -> Value {
    let (port_flag, default) = match entry.flag {
        "healthz-bind-address" => ("healthz-port", HEALTHZ_PORT),
        "metrics-bind-address" => ("metrics-port", METRICS_PORT),
        _ => return new.clone(),
    };
    let address = new.as_str().unwrap_or_default();
    let port = given.get(port_flag).map_or_else(|| default.to_string(), Value::to_string);
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => format!("{ip}:{port}").into(),
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}").into(),
        Err(_) => address.into(),
    }
}

impl Merged {
    /// A field's name for the operator: the flag, where that is what was given or could be.
    pub(super) fn name(&self, field: &str) -> String {
        let bare = field.split('[').next().unwrap_or(field);
        let possible =
            || reference::by_field(bare).map(|e| e.flag).filter(|f| !self.has_file && !f.is_empty());
        self.given
            .setting(bare)
            .or_else(possible)
            .map_or_else(|| field.to_owned(), |flag| format!("--{flag}"))
    }
}
