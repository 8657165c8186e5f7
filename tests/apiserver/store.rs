//! Objects as JSON with versions, and the log of what happened to them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A resource that the server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Services,
    EndpointSlices,
    Nodes,
    ServiceCidrs,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Services, Kind::EndpointSlices, Kind::Nodes, Kind::ServiceCidrs];

    /// `apiVersion`, `kind` and path.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Kind::Services => ("v1", "Service", "/api/v1/services"),
            Kind::EndpointSlices => {
                ("discovery.k8s.io/v1", "EndpointSlice", "/apis/discovery.k8s.io/v1/endpointslices")
            }
            Kind::Nodes => ("v1", "Node", "/api/v1/nodes"),
            Kind::ServiceCidrs => {
                ("networking.k8s.io/v1", "ServiceCIDR", "/apis/networking.k8s.io/v1/servicecidrs")
            }
        }
    }

    pub fn of_path(path: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.names().2 == path)
    }
}

/// One write.
#[derive(Clone, Debug)]
struct Write {
    version: u64,
    kind: Kind,
    before: Option<Value>,
    after: Option<Value>,
}

/// What is asked for, as the query says.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    pub labels: Option<String>,
    pub fields: Option<String>,
}

impl Selector {
    /// The few forms that a proxy uses; another is a bug of the test or of the client.
    fn matches(&self, object: &Value) -> bool {
        let labels = self.labels.as_deref().unwrap_or_default().split(',').filter(|term| !term.is_empty());
        let fields = self.fields.as_deref().unwrap_or_default().split(',').filter(|term| !term.is_empty());
        let mut all = true;
        for term in labels {
            let key = term.strip_prefix('!').expect("a label selector of the form !key");
            all &= object["metadata"]["labels"].get(key).is_none();
        }
        for term in fields {
            let (path, equal, value) = match term.split_once("!=") {
                Some((path, value)) => (path, false, value),
                None => {
                    term.split_once('=').map(|(path, value)| (path, true, value)).expect("a field selector")
                }
            };
            let pointer = format!("/{}", path.replace('.', "/"));
            let found = object.pointer(&pointer).and_then(Value::as_str).unwrap_or_default();
            all &= (found == value) == equal;
        }
        all
    }
}

/// All objects, and every write since the log was last compacted.
#[derive(Debug)]
pub struct Store {
    version: u64,
    objects: BTreeMap<(Kind, String, String), Value>,
    log: Vec<Write>,
    /// The newest version from which no watch can start any more.
    compacted: u64,
}

impl Default for Store {
    fn default() -> Store {
        Store { version: 100, objects: BTreeMap::new(), log: Vec::new(), compacted: 0 }
    }
}

fn key(kind: Kind, object: &Value) -> (Kind, String, String) {
    let word = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    (kind, word("namespace"), word("name"))
}

impl Store {
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Creates or replaces an object.
    pub fn apply(&mut self, kind: Kind, mut object: Value) {
        self.version += 1;
        let (api_version, name, _) = kind.names();
        object["apiVersion"] = json!(api_version);
        object["kind"] = json!(name);
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let before = self.objects.insert(key(kind, &object), object.clone());
        self.log.push(Write { version: self.version, kind, before, after: Some(object) });
    }

    /// Deletes an object, if it is there.
    pub fn delete(&mut self, kind: Kind, namespace: &str, name: &str) {
        let Some(before) = self.objects.remove(&(kind, namespace.to_owned(), name.to_owned())) else {
            return;
        };
        self.version += 1;
        self.log.push(Write { version: self.version, kind, before: Some(before), after: None });
    }

    /// Forgets the log: watches from before now are refused.
    pub fn compact(&mut self) {
        self.log.clear();
        self.compacted = self.version;
    }

    /// Goes back to a low version, as etcd does that was restored from a backup; the objects stay.
    pub fn restore(&mut self, version: u64) {
        self.log.clear();
        self.version = version;
        self.compacted = version;
        for object in self.objects.values_mut() {
            object["metadata"]["resourceVersion"] = json!(version.to_string());
        }
    }

    /// Every object, in the order of names.
    pub fn objects(&self) -> impl Iterator<Item = &Value> {
        self.objects.values()
    }

    /// The objects of a list.
    pub fn list(&self, kind: Kind, selector: &Selector) -> Vec<Value> {
        let of_kind = self.objects.iter().filter(|((k, ..), _)| *k == kind);
        of_kind.map(|(_, object)| object.clone()).filter(|object| selector.matches(object)).collect()
    }

    /// A page: up to `limit` objects from the one at `start`, and where the next page starts.
    pub fn page(
        &self,
        kind: Kind,
        selector: &Selector,
        start: usize,
        limit: usize,
    ) -> (Value, Option<usize>) {
        let all = self.list(kind, selector);
        let next = (start + limit < all.len()).then_some(start + limit);
        // As real lists: the items name neither kind nor apiVersion.
        let items = all.into_iter().skip(start).take(limit).map(|mut object| {
            if let Some(fields) = object.as_object_mut() {
                fields.remove("kind");
                fields.remove("apiVersion");
            }
            object
        });
        let (api_version, name, _) = kind.names();
        let mut list = json!({
            "kind": format!("{name}List"),
            "apiVersion": api_version,
            "metadata": {"resourceVersion": self.version.to_string()},
            "items": items.collect::<Vec<_>>(),
        });
        if let Some(next) = next {
            list["metadata"]["continue"] = json!(format!("{}/{next}==", self.version));
        }
        (list, next)
    }

    /// The events after a version; `None` if the log no longer reaches back so far.
    pub fn since(&self, kind: Kind, selector: &Selector, version: u64) -> Option<Vec<Value>> {
        if version < self.compacted {
            return None;
        }
        let writes = self.log.iter().filter(|w| w.kind == kind && w.version > version);
        Some(writes.filter_map(|write| event(write, selector)).collect())
    }

    /// A bookmark of the current version, as real ones look: with the kind's required fields empty.
    pub fn bookmark(&self, kind: Kind, ends_initial: bool) -> Value {
        let (api_version, name, _) = kind.names();
        let mut metadata = json!({"resourceVersion": self.version.to_string()});
        if ends_initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let mut object = json!({"kind": name, "apiVersion": api_version, "metadata": metadata});
        if kind == Kind::EndpointSlices {
            object["addressType"] = json!("");
            object["endpoints"] = Value::Null;
            object["ports"] = Value::Null;
        }
        json!({"type": "BOOKMARK", "object": object})
    }
}

/// What a watcher with this selector sees of a write.
fn event(write: &Write, selector: &Selector) -> Option<Value> {
    let was = write.before.as_ref().filter(|object| selector.matches(object));
    let is = write.after.as_ref().filter(|object| selector.matches(object));
    let (kind, object) = match (was, is) {
        (None, None) => return None,
        (None, Some(object)) => ("ADDED", object.clone()),
        (Some(_), Some(object)) => ("MODIFIED", object.clone()),
        (Some(object), None) => {
            let mut object = object.clone();
            object["metadata"]["resourceVersion"] = json!(write.version.to_string());
            ("DELETED", object)
        }
    };
    Some(json!({"type": kind, "object": object}))
}
