//! One file into changes.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::super::objects;
use super::super::read::Kind;
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

impl Parsed {
    fn leave_out(&mut self, what: String) {
        self.invalid += 1;
        self.warnings.push(what);
    }
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

/// An object's `apiVersion` and `kind`.
struct Header {
    version: String,
    kind: String,
}

fn take(document: Value, list_of: Option<&Header>, parsed: &mut Parsed, names: &mut Interner) {
    let Value::Object(mut object) = document else {
        // An empty document is nothing.
        if !document.is_null() {
            parsed.leave_out("a document is no object; it is left out".into());
        }
        return;
    };
    if object.is_empty() {
        return;
    }
    let word = |key: &str| object.get(key).and_then(Value::as_str).map(str::to_owned);
    // The items of a ServiceList and its like need not repeat their kind.
    let kind = word("kind").or_else(|| Some(list_of?.kind.clone())).unwrap_or_default();
    let version = word("apiVersion").or_else(|| Some(list_of?.version.clone())).unwrap_or_default();
    if let Some(of) = kind.strip_suffix("List")
        && let Some(Value::Array(items)) = object.get_mut("items").map(Value::take)
    {
        let header = Header { version, kind: of.to_owned() };
        let list_of = Some(&header).filter(|_| !of.is_empty());
        items.into_iter().for_each(|item| take(item, list_of, parsed, names));
        return;
    }
    let known = match (version.as_str(), kind.as_str()) {
        ("v1", "Service") => Kind::Service,
        ("discovery.k8s.io/v1", "EndpointSlice") => Kind::EndpointSlice,
        ("v1", "Node") => Kind::Node,
        ("networking.k8s.io/v1" | "networking.k8s.io/v1beta1", "ServiceCIDR") => Kind::ServiceCidr,
        (_, "") => return parsed.leave_out("an object has no kind; it is left out".into()),
        ("", "Service" | "EndpointSlice" | "Node" | "ServiceCIDR") => {
            return parsed.leave_out(format!("a {kind} has no apiVersion; it is left out"));
        }
        ("discovery.k8s.io/v1beta1", "EndpointSlice") => {
            let remedy = "apiVersion must be discovery.k8s.io/v1";
            let what = format!("an EndpointSlice of discovery.k8s.io/v1beta1 is left out: {remedy}");
            return parsed.leave_out(what);
        }
        (_, other) => return *parsed.skipped.entry(other.to_owned()).or_default() += 1,
    };
    let bare = bare_metadata(&object);
    let read = known.read(Value::Object(object), || bare, names);
    parsed.warnings.extend(read.warnings);
    parsed.changes.extend(read.change);
    parsed.invalid += usize::from(read.skipped);
}

/// As much of the metadata as names an object that cannot be read as a whole.
fn bare_metadata(object: &Map<String, Value>) -> objects::Metadata {
    let metadata = object.get("metadata");
    let at = |key: &str| metadata.and_then(|m| m.get(key)).and_then(Value::as_str).unwrap_or("").to_owned();
    objects::Metadata { name: at("name"), namespace: at("namespace"), ..objects::Metadata::default() }
}
