//! The objects of the cluster, as a directory of manifests or in an API server.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::agent::{Source, merge};
use crate::apiserver::{ApiServer, Kind};
use crate::netns::Namespace;
use crate::server::runtime;

/// The ClusterIPs of the service that tells when a change is in effect.
pub const SENTINEL: [&str; 2] = ["10.96.255.254", "fd00:10:96::fffe"];
/// Its ports are from here on.
const SENTINEL_PORT: u16 = 4711;

/// The objects, and where they are written to.
pub struct Cluster {
    directory: PathBuf,
    server: Option<Server>,
    objects: Vec<Value>,
    sentinel: u16,
}

/// An API server, and what was written to it.
struct Server {
    server: ApiServer,
    written: Vec<Value>,
}

/// What tells that a change is in effect.
#[derive(Clone, Debug)]
pub struct Sentinel {
    /// The service's port.
    pub port: u16,
    /// Its endpoint in each family.
    pub endpoints: [String; 2],
}

impl Cluster {
    /// Three nodes, the service CIDRs, and the sentinel. An API server listens on `node`'s loopback address; its
    /// kubeconfig is in the directory.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(directory: &Path, source: Source, node: &Namespace) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let server = match source {
            Source::Manifests => None,
            Source::ApiServer => {
                // A socket belongs to the namespace of the thread that makes it.
                let server = node.enter(|| Ok(runtime().block_on(ApiServer::tls(true))))?;
                server.faults().token = Some(String::from("secret"));
                server.write_kubeconfig(directory)?;
                Some(Server { server, written: Vec::new() })
            }
        };
        let mut cluster = Self { directory: directory.to_owned(), server, objects: Vec::new(), sentinel: 0 };
        cluster.reset();
        Ok(cluster)
    }

    /// Where the manifests or the kubeconfig are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Back to the objects of [`Cluster::new`].
    pub fn reset(&mut self) {
        self.objects = base();
    }

    /// Applies an object as server-side apply does for the only manager of its fields: what it gave before and
    /// does not give now goes. `status` has a subresource of its own and stays when it is not given.
    ///
    /// # Errors
    /// On an object without kind or name.
    pub fn apply(&mut self, namespace: &str, object: &Value) -> Result<()> {
        let object = complete(namespace, object)?;
        match self.find(&identity(&object)) {
            Some(old) => {
                let status = old.get("status").cloned();
                *old = object;
                if let (Some(status), Some(map)) = (status, old.as_object_mut()) {
                    map.entry("status").or_insert(status);
                }
            }
            None => self.objects.push(object),
        }
        Ok(())
    }

    /// Changes an object by a JSON merge patch (RFC 7396).
    ///
    /// # Errors
    /// When there is no such object.
    pub fn patch(&mut self, namespace: &str, kind: &str, name: &str, patch: &Value) -> Result<()> {
        let object = self
            .find(&named(namespace, kind, name))
            .with_context(|| format!("patch: there is no {kind} {name}"))?;
        merge(object, patch);
        Ok(())
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// When there is no such object.
    pub fn delete(&mut self, namespace: &str, kind: &str, name: &str) -> Result<()> {
        let identity_to_go = named(namespace, kind, name);
        let before = self.objects.len();
        self.objects.retain(|object| identity(object) != identity_to_go);
        if self.objects.len() == before {
            bail!("delete: there is no {kind} {name}");
        }
        Ok(())
    }

    /// Writes everything with the sentinel's next port and endpoints, and returns these.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&mut self) -> Result<Sentinel> {
        // An IPv6 range has room to give every write an address of its own: what an agent left in the kernel a
        // hundred writes ago is not taken for the last one.
        self.sentinel = self.sentinel.wrapping_add(1);
        let number = self.sentinel;
        let endpoints = [format!("10.128.1.{}", 100 + number % 100), format!("fd00:10:128:1::5:{number:x}")];
        for (index, endpoint) in endpoints.iter().enumerate() {
            let slice = sentinel_slice(index, endpoint);
            self.apply("sentinel", &slice)?;
        }
        // An API server tells of Services and of slices apart: each has to be seen.
        let port = SENTINEL_PORT + number % 1000;
        self.apply("sentinel", &sentinel_service(port))?;
        match &mut self.server {
            Some(server) => server.write(&self.objects),
            None => self.write_file()?,
        }
        Ok(Sentinel { port, endpoints })
    }

    /// One file replaced by a rename: the agent reads all of the change or nothing, the sentinel's included.
    fn write_file(&self) -> Result<()> {
        let mut text = String::new();
        for object in &self.objects {
            // JSON is YAML, and leaves no doubt about what is a string.
            text += &format!("---\n{}\n", serde_json::to_string_pretty(object)?);
        }
        let temporary = self.directory.join(".cluster.yaml.new");
        fs::write(&temporary, text)?;
        fs::rename(&temporary, self.directory.join("cluster.yaml"))?;
        Ok(())
    }

    fn find(&mut self, wanted: &[String; 3]) -> Option<&mut Value> {
        self.objects.iter_mut().find(|object| identity(object) == *wanted)
    }
}

impl Server {
    /// Deletes and applies what is not as it was written last; the sentinel comes after everything else of its kind.
    fn write(&mut self, objects: &[Value]) {
        self.server.store(|store| {
            for old in &self.written {
                let [kind, namespace, name] = identity(old);
                if let Some(kind) = resource(&kind).filter(|_| !contains(objects, old)) {
                    store.delete(kind, &namespace, &name);
                }
            }
            let changed = objects.iter().filter(|object| !self.written.contains(object));
            let (sentinel, others): (Vec<_>, Vec<_>) =
                changed.partition(|object| object["metadata"]["namespace"] == "sentinel");
            for object in others.into_iter().chain(sentinel) {
                let kind = object["kind"].as_str().and_then(resource);
                // The agent asks for no other kinds, and the file source skips them.
                if let Some(kind) = kind {
                    store.apply(kind, object.clone());
                }
            }
        });
        self.written = objects.to_vec();
    }
}

fn resource(kind: &str) -> Option<Kind> {
    Some(match kind {
        "Service" => Kind::Services,
        "EndpointSlice" => Kind::EndpointSlices,
        "Node" => Kind::Nodes,
        "ServiceCIDR" => Kind::ServiceCidrs,
        _ => return None,
    })
}

fn contains(objects: &[Value], wanted: &Value) -> bool {
    let wanted = identity(wanted);
    objects.iter().any(|object| identity(object) == wanted)
}

fn named(namespace: &str, kind: &str, name: &str) -> [String; 3] {
    let namespace = if has_namespace(kind) { namespace } else { "" };
    [kind.to_owned(), namespace.to_owned(), name.to_owned()]
}

fn identity(object: &Value) -> [String; 3] {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    [text(&object["kind"]), text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"])]
}

fn has_namespace(kind: &str) -> bool {
    !matches!(kind, "Node" | "ServiceCIDR")
}

/// Adds what the cases leave out: the API version and the namespace.
fn complete(namespace: &str, object: &Value) -> Result<Value> {
    let kind = object["kind"].as_str().context("an object without kind")?;
    if !object["metadata"]["name"].is_string() {
        bail!("a {kind} without a name");
    }
    let version = match kind {
        "EndpointSlice" => "discovery.k8s.io/v1",
        "ServiceCIDR" => "networking.k8s.io/v1",
        _ => "v1",
    };
    let mut complete = object.clone();
    if let Some(map) = complete.as_object_mut() {
        map.entry("apiVersion").or_insert_with(|| json!(version));
    }
    if let Some(metadata) = complete["metadata"].as_object_mut().filter(|_| has_namespace(kind)) {
        metadata.entry("namespace").or_insert_with(|| json!(namespace));
    }
    Ok(complete)
}

fn base() -> Vec<Value> {
    let mut objects = vec![json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/12", "fd00:10:96::/112"]},
    })];
    for (number, zone) in [(1, "zone-a"), (2, "zone-a"), (3, "zone-b")] {
        let index = number - 1;
        // Pods of node1 are in fd00:10:128::/64, those of node2 in fd00:10:128:1::/64.
        let group = if index == 0 { String::new() } else { format!(":{index}") };
        objects.push(json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": format!("node{number}"), "labels": {"topology.kubernetes.io/zone": zone}},
            "spec": {
                "podCIDR": format!("10.128.{index}.0/24"),
                "podCIDRs": [format!("10.128.{index}.0/24"), format!("fd00:10:128{group}::/64")],
            },
            "status": {"addresses": [
                {"type": "InternalIP", "address": format!("198.18.0.1{number}")},
                {"type": "InternalIP", "address": format!("fd00:198:18::1{number}")},
            ]},
        }));
    }
    objects
}

fn sentinel_service(port: u16) -> Value {
    json!({
        "kind": "Service",
        "metadata": {"name": "sentinel"},
        "spec": {
            "clusterIP": SENTINEL[0],
            "clusterIPs": SENTINEL,
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"name": "t", "port": port, "targetPort": 7070, "protocol": "TCP"}],
        },
    })
}

fn sentinel_slice(index: usize, endpoint: &str) -> Value {
    let family = ["IPv4", "IPv6"][index];
    json!({
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("sentinel-{}", family.to_lowercase()),
            "labels": {"kubernetes.io/service-name": "sentinel"},
        },
        "addressType": family,
        "ports": [{"name": "t", "port": 7070, "protocol": "TCP"}],
        "endpoints": [{
            "addresses": [endpoint], "nodeName": "node2", "zone": "zone-a", "conditions": {"ready": true},
        }],
    })
}
