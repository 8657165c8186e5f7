//! One file into changes, object by object: what is in memory besides the text is one object, or one document of
//! YAML that only the general reader can read.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::super::objects;
use super::super::read::{Kind, Object};
use super::block::Block;
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
    let mut parsed = Parsed::default();
    if path.extension().is_some_and(|e| e == "json") {
        for document in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
            take(document?, None, &mut parsed, names);
        }
        return Ok(parsed);
    }
    for (lines_before, text) in documents(text) {
        let block = Block::document(text).and_then(|block| match block {
            None => Ok(None),
            Some(block) => block.entries().map(|entries| Some((block, entries))),
        });
        match block {
            Ok(None) => {}
            Ok(Some((block, entries))) => known(block, entries, None, &mut parsed, names),
            Err(_) => {
                for document in yaml(text, lines_before)? {
                    take(&document, None, &mut parsed, names);
                }
            }
        }
    }
    Ok(parsed)
}

/// The documents of a YAML file, each with the number of lines before it: what lines `---` part. Where there are
/// directives or explicit ends the whole file is one piece, and the general reader's.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut at, mut first, mut count) = (0, 0, 0, 0);
    for line in text.split_inclusive('\n') {
        if line.starts_with(['%', '\u{feff}']) || line.starts_with("...") {
            return vec![(0, text)];
        }
        if line.trim_end() == "---" {
            documents.push((first, &text[start..at]));
            (start, first) = (at + line.len(), count + 1);
        }
        at += line.len();
        count += 1;
    }
    documents.push((first, &text[start..]));
    documents
}

fn yaml(text: &str, lines_before: usize) -> Result<Vec<Value>, SyntaxError> {
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
        let place = error.location().map_or_else(String::new, |l| {
            format!("line {}, column {} ", lines_before as u64 + l.line(), l.column())
        });
        SyntaxError::Yaml { place, message: error.to_string() }
    })
}

/// An object's `apiVersion` and `kind`.
struct Header {
    version: String,
    kind: String,
}

/// What tells what an object is. Words that are none count as absent.
pub(super) struct Entries<'a, R> {
    pub(super) version: Option<&'a str>,
    pub(super) kind: Option<&'a str>,
    pub(super) items: Option<Vec<R>>,
}

/// An object as it stands in a file.
trait Raw<'a>: Copy {
    /// Nothing of what is no object, or an object that takes more care.
    fn entries(self) -> Option<Entries<'a, Self>>;

    /// Reads it, as what its kind says.
    fn read(self, kind: Kind, names: &mut Interner) -> Object;

    /// All of it.
    fn value(self) -> Value;
}

impl<'a> Raw<'a> for &'a RawValue {
    fn entries(self) -> Option<Entries<'a, Self>> {
        #[derive(Deserialize)]
        struct Borrowed<'a> {
            #[serde(rename = "apiVersion")]
            version: Option<&'a str>,
            kind: Option<&'a str>,
            #[serde(borrow)]
            items: Option<&'a RawValue>,
        }
        if !self.get().starts_with('{') {
            return None;
        }
        let Borrowed { version, kind, items } = serde_json::from_str(self.get()).ok()?;
        let items = items.and_then(|items| serde_json::from_str(items.get()).ok());
        Some(Entries { version, kind, items })
    }

    fn read(self, kind: Kind, names: &mut Interner) -> Object {
        kind.read(&mut serde_json::Deserializer::from_str(self.get()), Default::default, names)
    }

    fn value(self) -> Value {
        // A raw value has been read once, so that it is good.
        serde_json::from_str(self.get()).unwrap_or_default()
    }
}

impl<'a> Raw<'a> for Block<'a> {
    fn entries(self) -> Option<Entries<'a, Self>> {
        Block::entries(self).ok()
    }

    fn read(self, kind: Kind, names: &mut Interner) -> Object {
        kind.read(self, Default::default, names)
    }

    fn value(self) -> Value {
        Value::deserialize(self).unwrap_or_default()
    }
}

impl<'a> Raw<'a> for &'a Value {
    fn entries(self) -> Option<Entries<'a, Self>> {
        let object = self.as_object()?;
        let word = |key: &str| object.get(key).and_then(Value::as_str);
        let items = object.get("items").and_then(Value::as_array).map(|items| items.iter().collect());
        Some(Entries { version: word("apiVersion"), kind: word("kind"), items })
    }

    fn read(self, kind: Kind, names: &mut Interner) -> Object {
        kind.read(self, || bare_metadata(self), names)
    }

    fn value(self) -> Value {
        self.clone()
    }
}

fn take<'a, R: Raw<'a>>(raw: R, list_of: Option<&Header>, parsed: &mut Parsed, names: &mut Interner) {
    if let Some(entries) = raw.entries() {
        return known(raw, entries, list_of, parsed, names);
    }
    match raw.value() {
        // An empty document is nothing.
        Value::Null => {}
        object @ Value::Object(_) => take(&object, list_of, parsed, names),
        _ => parsed.leave_out("a document is no object; it is left out".into()),
    }
}

fn known<'a, R: Raw<'a>>(
    raw: R,
    entries: Entries<'a, R>,
    list_of: Option<&Header>,
    parsed: &mut Parsed,
    names: &mut Interner,
) {
    // The items of a ServiceList and its like need not repeat their kind.
    let kind = entries.kind.or(list_of.map(|list| &*list.kind)).unwrap_or_default();
    let version = entries.version.or(list_of.map(|list| &*list.version)).unwrap_or_default();
    if let (Some(of), Some(items)) = (kind.strip_suffix("List"), entries.items) {
        let header = Header { version: version.to_owned(), kind: of.to_owned() };
        let list_of = Some(&header).filter(|_| !of.is_empty());
        items.into_iter().for_each(|item| take(item, list_of, parsed, names));
        return;
    }
    let kind = match (version, kind) {
        ("v1", "Service") => Kind::Service,
        ("discovery.k8s.io/v1", "EndpointSlice") => Kind::EndpointSlice,
        ("v1", "Node") => Kind::Node,
        ("networking.k8s.io/v1" | "networking.k8s.io/v1beta1", "ServiceCIDR") => Kind::ServiceCidr,
        (_, "") if raw.value().as_object().is_some_and(serde_json::Map::is_empty) => return,
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
    let mut read = raw.read(kind, names);
    if read.skipped {
        // Once more, with more care: a key that is there twice counts as kubectl counts it, and what is wrong is named.
        read = (&raw.value()).read(kind, names);
    }
    parsed.warnings.extend(read.warnings.into_iter().map(|warning| warning.text));
    parsed.changes.extend(read.change);
    parsed.invalid += usize::from(read.skipped);
}

/// As much of the metadata as names an object that cannot be read as a whole.
fn bare_metadata(object: &Value) -> objects::Metadata {
    let metadata = object.get("metadata");
    let at = |key: &str| metadata.and_then(|m| m.get(key)).and_then(Value::as_str).unwrap_or("").to_owned();
    objects::Metadata { name: at("name"), namespace: at("namespace"), ..objects::Metadata::default() }
}

#[cfg(test)]
mod tests;
