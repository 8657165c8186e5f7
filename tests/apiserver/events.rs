//! Events as kube-apiserver takes them: `ValidateEventCreate` of events.k8s.io/v1.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Events by namespace and name, with how often each was written.
#[derive(Debug, Default)]
pub struct Events {
    events: BTreeMap<(String, String), Value>,
    pub writes: usize,
}

/// `/apis/events.k8s.io/v1/namespaces/NAMESPACE/events[/NAME]`.
pub fn of_path(path: &str) -> Option<(&str, Option<&str>)> {
    let rest = path.strip_prefix("/apis/events.k8s.io/v1/namespaces/")?;
    let (namespace, rest) = rest.split_once("/events")?;
    match rest {
        "" => Some((namespace, None)),
        name => Some((namespace, Some(name.strip_prefix('/')?))),
    }
}

impl Events {
    pub fn all(&self) -> Vec<Value> {
        self.events.values().cloned().collect()
    }

    /// The status and body that the server answers.
    pub fn write(
        &mut self,
        method: &str,
        namespace: &str,
        name: Option<&str>,
        kind: &str,
        body: Value,
    ) -> (u16, Value) {
        self.writes += 1;
        let refused = |code: u16, reason: &str, message: String| {
            (
                code,
                json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}),
            )
        };
        match (method, name) {
            ("POST", None) => {
                if let Some(problem) = problem(namespace, kind, &body) {
                    return refused(422, "Invalid", problem);
                }
                let name = text(&body["metadata"]["name"]).to_owned();
                let key = (namespace.to_owned(), name);
                if self.events.contains_key(&key) {
                    return refused(409, "AlreadyExists", format!("events {:?} already exists", key.1));
                }
                self.events.insert(key, body.clone());
                (201, body)
            }
            ("PATCH", Some(name)) => match self.events.get_mut(&(namespace.to_owned(), name.to_owned())) {
                Some(event) if kind == "application/merge-patch+json" => {
                    event["series"] = body["series"].clone();
                    let series = &event["series"];
                    if !series["count"].is_u64() || !is_micro_time(&series["lastObservedTime"]) {
                        return refused(422, "Invalid", format!("series: {series}"));
                    }
                    (200, event.clone())
                }
                Some(_) => refused(415, "UnsupportedMediaType", kind.to_owned()),
                None => refused(404, "NotFound", format!("events {name:?} not found")),
            },
            _ => refused(405, "MethodNotAllowed", method.to_owned()),
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// `2006-01-02T15:04:05.000000Z`, with just so many digits.
fn is_micro_time(value: &Value) -> bool {
    let text = text(value);
    text.len() == 27 && text.ends_with('Z') && text.as_bytes().get(19) == Some(&b'.')
}

fn problem(namespace: &str, kind: &str, event: &Value) -> Option<String> {
    let short = |field: &str, most: usize| {
        let length = text(&event[field]).len();
        (length == 0 || length > most).then(|| format!("{field}: must have 1 to {most} characters"))
    };
    let name = text(&event["metadata"]["name"]);
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let regarding = &event["regarding"];
    let own = text(&regarding["namespace"]);
    let checks = [
        (kind != "application/json").then(|| format!("Content-Type {kind}")),
        (event["apiVersion"] != "events.k8s.io/v1" || event["kind"] != "Event")
            .then(|| "not an Event".to_owned()),
        (text(&event["metadata"]["namespace"]) != namespace).then(|| "metadata.namespace".to_owned()),
        (name.is_empty() || name.len() > 253 || !name.bytes().all(plain))
            .then(|| format!("metadata.name: {name}")),
        (!is_micro_time(&event["eventTime"])).then(|| format!("eventTime: {}", event["eventTime"])),
        short("reportingController", 253),
        short("reportingInstance", 128),
        short("action", 128),
        short("reason", 128),
        (!matches!(text(&event["type"]), "Normal" | "Warning")).then(|| "type".to_owned()),
        (text(&event["note"]).len() > 1024).then(|| "note: too long".to_owned()),
        // What is in no namespace has its events in this one.
        (own != namespace && !(own.is_empty() && namespace == "default"))
            .then(|| format!("regarding.namespace {own:?} does not match {namespace:?}")),
    ];
    checks.into_iter().flatten().next()
}
