//! One file into changes.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::convert::{self, Outcome};
use super::super::objects;
use crate::cluster::{Change, Interner};

/// A file that is not YAML, or not JSON.
#[derive(Debug, thiserror::Error)]
pub enum SyntaxError {
    /// The bytes are no text.
    #[error("is not UTF-8 text: {0}")]
    Encoding(#[from] std::str::Utf8Error),
    /// YAML that cannot be read.
    #[error("{place}is not valid YAML: {message}")]
    Yaml {
        /// `line 3, column 7 ` where it is known.
        place: String,
        /// What is wrong.
        message: String,
    },
    /// JSON that cannot be read.
    #[error("is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) changes: Vec<Change>,
    pub(super) warnings: Vec<String>,
    pub(super) invalid: usize,
    pub(super) skipped: BTreeMap<String, usize>,
}

pub(super) fn parse(path: &Path, bytes: &[u8], names: &mut Interner) -> Result<Parsed, SyntaxError> {
    let text = std::str::from_utf8(bytes)?;
    let documents = if path.extension().is_some_and(|e| e == "json") {
        serde_json::Deserializer::from_str(text).into_iter().collect::<Result<Vec<Value>, _>>()?
    } else {
        yaml(text)?
    };
    let mut parsed = Parsed::default();
    for document in documents {
        take(document, None, &mut parsed, names);
    }
    Ok(parsed)
}

fn yaml(text: &str) -> Result<Vec<Value>, SyntaxError> {
    let options = serde_saphyr::options! {
        // Install manifests of real projects are larger than the default allows; the text is the operator's own.
        budget: None,
        // YAML 1.2: `n`, `on` and their like are text.
        strict_booleans: true,
        // As kubectl, which takes the last one.
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let place = error
            .location()
            .map_or_else(String::new, |l| format!("line {}, column {} ", l.line(), l.column()));
        SyntaxError::Yaml { place, message: error.to_string() }
    })
}

/// What tells an object's kind.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
}

fn take(document: Value, list_kind: Option<&Header>, parsed: &mut Parsed, names: &mut Interner) {
    let Value::Object(mut object) = document else {
        // An empty document is nothing.
        if !document.is_null() {
            parsed.invalid += 1;
            parsed.warnings.push("a document is no object; it is left out".into());
        }
        return;
    };
    if object.is_empty() {
        return;
    }
    let word = |key: &str| object.get(key).and_then(Value::as_str).map(str::to_owned);
    // The items of a ServiceList and its like need not repeat their kind.
    let kind = word("kind").or_else(|| list_kind?.kind.clone()).unwrap_or_default();
    let version = word("apiVersion").or_else(|| list_kind?.api_version.clone()).unwrap_or_default();
    if let Some(of) = kind.strip_suffix("List")
        && let Some(Value::Array(items)) = object.get_mut("items").map(Value::take)
    {
        let header = Header {
            api_version: Some(version).filter(|_| !of.is_empty()),
            kind: Some(of.to_owned()).filter(|_| !of.is_empty()),
        };
        items.into_iter().for_each(|item| take(item, Some(&header), parsed, names));
        return;
    }
    let object = Value::Object(object);
    match (version.as_str(), kind.as_str()) {
        ("v1", "Service") => typed(object, "Service", parsed, |o: &objects::Service| {
            let name = convert::name(&o.metadata, names);
            (name.to_string(), convert::service(o, names).map(|s| Change::Service(name, Some(s))))
        }),
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            typed(object, "EndpointSlice", parsed, |o: &objects::EndpointSlice| {
                let name = convert::name(&o.metadata, names);
                let outcome = convert::endpoint_slice(o, names);
                (name.to_string(), outcome.map(|s| Change::EndpointSlice(name, Some(s))))
            });
        }
        ("v1", "Node") => typed(object, "Node", parsed, |o: &objects::Node| {
            let outcome = convert::node(o, names).map(|n| Change::Node(n.name.clone(), Some(n)));
            (o.metadata.name.clone(), outcome)
        }),
        ("networking.k8s.io/v1" | "networking.k8s.io/v1beta1", "ServiceCIDR") => {
            typed(object, "ServiceCIDR", parsed, |o: &objects::ServiceCidr| {
                let outcome = convert::service_cidr(o, names);
                (o.metadata.name.clone(), outcome.map(|c| Change::ServiceCidr(c.name.clone(), Some(c))))
            });
        }
        (_, "") => {
            parsed.invalid += 1;
            parsed.warnings.push("an object has no kind; it is left out".into());
        }
        ("", "Service" | "EndpointSlice" | "Node" | "ServiceCIDR") => {
            parsed.invalid += 1;
            parsed.warnings.push(format!("a {kind} has no apiVersion; it is left out"));
        }
        ("discovery.k8s.io/v1beta1", "EndpointSlice") => {
            parsed.invalid += 1;
            let remedy = "apiVersion must be discovery.k8s.io/v1";
            parsed
                .warnings
                .push(format!("an EndpointSlice of discovery.k8s.io/v1beta1 is left out: {remedy}"));
        }
        (_, other) => *parsed.skipped.entry(other.to_owned()).or_default() += 1,
    }
}

fn typed<T: DeserializeOwned>(
    object: Value,
    kind: &str,
    parsed: &mut Parsed,
    convert: impl FnOnce(&T) -> (String, Outcome<Change>),
) {
    let at =
        |key: &str| object.get("metadata").and_then(|m| m.get(key)).and_then(Value::as_str).unwrap_or("");
    let (namespace, name) = (at("namespace").to_owned(), at("name").to_owned());
    match serde_path_to_error::deserialize::<_, T>(object) {
        Ok(object) => {
            let (name, outcome) = convert(&object);
            match outcome {
                Outcome::Value(change, warnings) => {
                    parsed.warnings.extend(warnings.iter().map(|w| format!("{kind} {name}: {w}")));
                    parsed.changes.push(change);
                }
                Outcome::Ignored => {}
                Outcome::Invalid(invalid) => {
                    parsed.invalid += 1;
                    parsed.warnings.push(format!("{kind} {name} is left out: {invalid}"));
                }
            }
        }
        Err(error) => {
            parsed.invalid += 1;
            let slash = if namespace.is_empty() { "" } else { "/" };
            let path = error.path().to_string();
            let problem =
                format!("{kind} {namespace}{slash}{name} is left out: {path}: {}", error.into_inner());
            parsed.warnings.push(problem);
        }
    }
}
