//! Every field of KubeProxyConfiguration and every flag of kube-proxy 1.36, with what becomes of it here.
//!
//! One table: the command line is built from it, values that do nothing are found by it, and
//! `deploy/CONFIGURATION.md` is printed from it.

use serde_json::Value;

use super::duration::GoDuration;
use super::file::KubeProxyConfiguration;

mod page;
mod table;

pub use page::page;
pub use table::TABLE;

/// One field, one flag, or a field and its flag.
#[derive(Debug)]
pub struct Entry {
    /// Path in the file; empty for a flag without a field.
    pub field: &'static str,
    /// Name without dashes; empty for a field without a flag.
    pub flag: &'static str,
    /// What kind of value it has.
    pub kind: Kind,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Heading in the help.
    pub topic: Topic,
    /// Whether upstream calls it deprecated.
    pub deprecated: bool,
    /// One sentence for the help and the page.
    pub text: &'static str,
}

/// Kinds of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// true or false; the flag alone is true.
    Bool,
    /// 32 bits, signed.
    Int,
    /// A number.
    Float,
    /// Text.
    Text,
    /// A Go duration.
    Duration,
    /// Texts, in a flag separated by commas.
    List,
    /// Names with true or false, in a flag `A=true,B=false`.
    Gates,
    /// Patterns of file names with a verbosity, in a flag `a=1,b=2`.
    VModules,
    /// A structure; it has no flag.
    Structure,
}

/// What becomes of a field or flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Does what it does in kube-proxy.
    Honoured,
    /// Does part of it, or something near; the text says what.
    Partly,
    /// Does nothing; a value other than the default is named at start.
    Warned,
    /// Does nothing, and nothing is lost.
    Silent,
}

/// Headings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Where objects come from.
    Objects,
    /// What decides about forwarding.
    Traffic,
    /// When rules are written.
    Sync,
    /// HTTP servers.
    Servers,
    /// Connection tracking.
    Conntrack,
    /// Logs.
    Logs,
    /// The process.
    Process,
    /// Mode iptables.
    Iptables,
    /// Mode ipvs.
    Ipvs,
    /// Windows.
    Windows,
}

impl Topic {
    /// The heading.
    pub fn heading(self) -> &'static str {
        match self {
            Topic::Objects => "Where objects come from",
            Topic::Traffic => "Traffic",
            Topic::Sync => "When rules are written",
            Topic::Servers => "HTTP servers",
            Topic::Conntrack => "Connection tracking",
            Topic::Logs => "Logs",
            Topic::Process => "Process",
            Topic::Iptables => "Mode iptables",
            Topic::Ipvs => "Mode ipvs",
            Topic::Windows => "Windows",
        }
    }
}

impl Entry {
    /// What `--help` shows: what does something.
    pub fn is_hidden(&self) -> bool {
        self.deprecated || matches!(self.verdict, Verdict::Warned | Verdict::Silent)
    }

    /// The field's default as JSON; null for a flag without a field.
    pub fn default(&self, defaulted: &Value) -> Value {
        get(defaulted, self.field).cloned().unwrap_or(Value::Null)
    }

    /// What holds without the flag.
    pub fn flag_default(&self, defaulted: &Value) -> Value {
        let also = ALSO.iter().find(|(flag, _)| *flag == self.flag).map(|(_, field)| *field);
        get(defaulted, also.unwrap_or(self.field)).cloned().unwrap_or(Value::Null)
    }
}

/// Other fields that a flag sets: kube-proxy's flags know one setting for all modes.
pub const ALSO: [(&str, &str); 3] = [
    ("masquerade-all", "nftables.masqueradeAll"),
    ("iptables-sync-period", "nftables.syncPeriod"),
    ("iptables-min-sync-period", "nftables.minSyncPeriod"),
];

/// The entry of a field.
pub fn by_field(path: &str) -> Option<&'static Entry> {
    TABLE.iter().find(|entry| entry.field == path && !path.is_empty())
}

/// The entry of a flag.
pub fn by_flag(flag: &str) -> Option<&'static Entry> {
    TABLE.iter().find(|entry| entry.flag == flag && !flag.is_empty())
}

/// What the format has at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A value, or a structure that is not looked into.
    Field,
    /// A section.
    Section,
    /// Nothing.
    Unknown,
}

pub(super) fn shape(path: &str) -> Shape {
    if matches!(path, "apiVersion" | "kind") || by_field(path).is_some() {
        return Shape::Field;
    }
    let inside = |entry: &Entry| entry.field.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
    if TABLE.iter().any(inside) { Shape::Section } else { Shape::Unknown }
}

/// The value at a path.
pub(super) fn get<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, key| value.get(key))
}

/// Sets the value at a path, whose sections must be there.
pub(super) fn set(value: &mut Value, path: &str, new: Value) {
    let mut place = value;
    for key in path.split('.') {
        let Value::Object(object) = place else { return };
        place = object.entry(key).or_insert(Value::Null);
    }
    *place = new;
}

/// Fields with a value that is not the default and does nothing.
pub(super) fn ignored_fields(configuration: &KubeProxyConfiguration) -> Vec<&'static str> {
    let json = |c: &KubeProxyConfiguration| serde_json::to_value(c).unwrap_or_default();
    let (now, defaulted) = (json(configuration), json(&KubeProxyConfiguration::defaulted()));
    let entries = TABLE.iter().filter(|entry| entry.verdict == Verdict::Warned && !entry.field.is_empty());
    entries
        .filter(|entry| get(&now, entry.field) != get(&defaulted, entry.field))
        .map(|entry| entry.field)
        .collect()
}

impl Kind {
    /// The value that a flag's text stands for, as JSON for the field.
    ///
    /// # Errors
    /// With what would be right.
    pub fn parse(self, text: &str) -> Result<Value, String> {
        match self {
            Kind::Bool => go_bool(text).map(Value::Bool),
            Kind::Int => text.parse::<i32>().map(Value::from).map_err(|e| e.to_string()),
            Kind::Float => text.parse::<f32>().map(Value::from).map_err(|e| e.to_string()),
            Kind::Text | Kind::Structure => Ok(text.into()),
            Kind::Duration => {
                text.parse::<GoDuration>().map(|d| d.to_string().into()).map_err(|e| e.to_string())
            }
            Kind::VModules => words(text)
                .map(|word| {
                    let (pattern, verbosity) = word.split_once('=').ok_or("it must be PATTERN=LEVEL")?;
                    let verbosity: u32 = verbosity.parse().map_err(|_| "it must be PATTERN=LEVEL")?;
                    Ok(serde_json::json!({"filePattern": pattern, "verbosity": verbosity}))
                })
                .collect::<Result<Value, String>>(),
            Kind::List => Ok(words(text).map(Value::from).collect()),
            Kind::Gates => words(text)
                .map(|word| {
                    let (name, value) = word.split_once('=').ok_or("it must be NAME=true or NAME=false")?;
                    Ok((name.trim().to_owned(), Value::Bool(go_bool(value.trim())?)))
                })
                .collect::<Result<serde_json::Map<_, _>, String>>()
                .map(Value::Object),
        }
    }

    /// A flag that is there again: lists and gates are added, for all else the last one counts.
    pub(super) fn again(old: &mut Value, new: Value) {
        match (old, new) {
            (Value::Array(old), Value::Array(new)) => old.extend(new),
            (Value::Object(old), Value::Object(new)) => old.extend(new),
            (old, new) => *old = new,
        }
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}

/// Go's `strconv.ParseBool`.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(value: &Value, above: &str, into: &mut Vec<String>) {
        let Value::Object(object) = value else {
            into.push(above.into());
            return;
        };
        for (key, value) in object {
            let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
            match shape(&path) {
                Shape::Section => leaves(value, &path, into),
                _ => into.push(path),
            }
        }
    }

    #[test]
    fn the_table_has_the_fields_of_the_format_and_no_others() {
        let value = serde_json::to_value(KubeProxyConfiguration::defaulted()).unwrap();
        let mut fields = Vec::new();
        leaves(&value, "", &mut fields);
        fields.retain(|f| f != "apiVersion" && f != "kind");
        fields.sort();
        let mut table: Vec<&str> = TABLE.iter().map(|e| e.field).filter(|f| !f.is_empty()).collect();
        table.sort_unstable();
        assert_eq!(table, fields);
    }

    #[test]
    fn flags_are_there_once_and_fit_their_fields() {
        let value = serde_json::to_value(KubeProxyConfiguration::defaulted()).unwrap();
        for (i, entry) in TABLE.iter().enumerate() {
            assert!(!entry.flag.is_empty() || !entry.field.is_empty());
            assert!(!entry.text.is_empty() && entry.text.ends_with('.'), "{}{}", entry.flag, entry.field);
            let again = TABLE.iter().skip(i + 1).find(|e| !e.flag.is_empty() && e.flag == entry.flag);
            assert!(again.is_none(), "{}", entry.flag);
            let fits = match (entry.kind, entry.default(&value)) {
                (_, Value::Null) => entry.field.is_empty(),
                (Kind::Bool, v) => v.is_boolean(),
                (Kind::Int, v) => v.is_i64(),
                (Kind::Float, v) => v.is_f64(),
                (Kind::Text | Kind::Duration, v) => v.is_string(),
                (Kind::List | Kind::VModules, v) => v.is_array(),
                (Kind::Gates, v) => v.is_object(),
                (Kind::Structure, _) => true,
            };
            assert!(fits, "{} {} {:?}", entry.flag, entry.field, entry.kind);
        }
        for (flag, field) in ALSO {
            let entries = (by_flag(flag).unwrap(), by_field(field).unwrap());
            assert_eq!(entries.0.kind, entries.1.kind, "{flag}");
        }
    }

    #[test]
    fn values_of_flags() {
        assert_eq!(Kind::Bool.parse("T"), Ok(true.into()));
        assert!(Kind::Bool.parse("yes").is_err());
        assert_eq!(Kind::Int.parse("-998"), Ok((-998).into()));
        assert!(Kind::Int.parse("4294967296").is_err());
        assert_eq!(Kind::Duration.parse("24h"), Ok("24h0m0s".into()));
        assert!(Kind::Duration.parse("24").is_err());
        assert_eq!(Kind::List.parse("a, b,,"), Ok(serde_json::json!(["a", "b"])));
        assert_eq!(Kind::Gates.parse("A=true,B=false"), Ok(serde_json::json!({"A": true, "B": false})));
        assert!(Kind::Gates.parse("A").is_err());
    }
}
