//! The source under test, feeding an index, and what that index must be.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sluice::cluster::Index;
use sluice::source::Batch;
use sluice::source::kubernetes::{ApiStatus, Connection, Kubernetes, Timing};
use sluice::source::manifests::Manifests;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::apiserver::ApiServer;

pub const NODE: &str = "node1";
/// Longer than anything takes on the slowest machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(90);

/// As the default, in miniature.
pub fn timing() -> Timing {
    Timing {
        connect: Duration::from_secs(2),
        answer: Duration::from_secs(3),
        ping: Duration::from_millis(500),
        watch: Duration::from_secs(300),
        watch_blind: Duration::from_secs(2),
        slack: Duration::from_secs(1),
        retry: Duration::from_millis(50),
        retry_unanswered: Duration::from_millis(400),
        retry_most: Duration::from_secs(1),
        absent: Duration::from_secs(1),
        event_series: Duration::from_secs(60),
        event_retry: Duration::from_millis(100),
    }
}

/// Writes a kubeconfig with a CA file and a token file.
pub fn kubeconfig(server: &ApiServer) -> PathBuf {
    let folder = tempfile::tempdir().expect("a folder");
    let config = server.write_kubeconfig(folder.path()).expect("a kubeconfig");
    // The files are read again from time to time.
    _ = folder.keep();
    config
}

/// Connects by a kubeconfig.
pub async fn connect(server: &ApiServer) -> Kubernetes {
    connect_by(&kubeconfig(server)).await
}

/// Connects by this kubeconfig.
pub async fn connect_by(kubeconfig: &Path) -> Kubernetes {
    let connection = Connection::open(Some(kubeconfig), None, &timing()).await.expect("a usable kubeconfig");
    Kubernetes::new(connection, NODE, timing())
}

pub struct Agent {
    pub index: Index,
    pub status: Arc<ApiStatus>,
    pub synced: bool,
    pub batches: Vec<Batch>,
    keep: bool,
    changes: mpsc::Receiver<Batch>,
    task: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agent {
    pub async fn start(server: &ApiServer) -> Agent {
        Agent::of(connect(server).await)
    }

    pub fn of(source: Kubernetes) -> Agent {
        let (sender, changes) = mpsc::channel(64);
        let status = source.status();
        let task = tokio::spawn(source.run(sender));
        let index = Index::new(NODE);
        Agent { index, status, synced: false, batches: vec![], keep: false, changes, task }
    }

    /// Keeps batches from now on, for who wants them one by one.
    pub fn keep_batches(&mut self) {
        self.keep = true;
    }

    fn take(&mut self, batch: Batch) {
        self.synced |= batch.synced;
        if self.keep {
            self.batches.push(batch.clone());
        }
        batch.changes.into_iter().for_each(|change| self.index.apply(change));
    }

    /// Takes what has come.
    pub fn take_all(&mut self) {
        while let Ok(batch) = self.changes.try_recv() {
            self.take(batch);
        }
    }

    /// Takes changes until the condition holds.
    pub async fn until(&mut self, what: &str, condition: impl Fn(&Agent) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            self.take_all();
            if condition(self) {
                return;
            }
            assert!(Instant::now() < end, "never: {what}\n{}", snapshot(&self.index));
            if let Ok(batch) = timeout(Duration::from_millis(20), self.changes.recv()).await {
                let batch = batch.expect("the source never ends by itself");
                self.take(batch);
            }
        }
    }

    /// Waits until the index is what the server's objects ask for.
    pub async fn converged(&mut self, server: &ApiServer, when: &str) {
        let expected = snapshot(&expected(server));
        let end = Instant::now() + PATIENCE;
        while !self.synced || snapshot(&self.index) != expected {
            let now = snapshot(&self.index);
            assert!(Instant::now() < end, "{when}: the index is not\n{expected}but\n{now}");
            if let Ok(Some(batch)) = timeout(Duration::from_millis(100), self.changes.recv()).await {
                self.take(batch);
            }
            self.take_all();
        }
    }

    pub fn restarts(&self) -> BTreeMap<&'static str, u64> {
        self.status.restarts().collect()
    }

    pub fn lists(&self) -> BTreeMap<&'static str, u64> {
        self.status.lists().collect()
    }
}

/// The index over the server's objects, by way of a file.
pub fn expected(server: &ApiServer) -> Index {
    let objects: Vec<Value> = server.store(|store| store.objects().cloned().collect());
    index_of(&objects)
}

/// Writes objects to a file of this folder.
pub fn write_manifests(folder: &Path, objects: &[Value]) -> PathBuf {
    let path = folder.join("objects.json");
    let list = json!({"kind": "List", "apiVersion": "v1", "items": objects});
    std::fs::write(&path, list.to_string()).expect("a file");
    path
}

pub fn index_of(objects: &[Value]) -> Index {
    let folder = tempfile::tempdir().expect("a folder");
    let path = write_manifests(folder.path(), objects);
    let load = Manifests::open(&path).and_then(|mut m| m.load()).expect("a readable file");
    assert!(load.broken.is_empty(), "{:?}", load.broken);
    let mut index = Index::new(NODE);
    load.changes.into_iter().for_each(|change| index.apply(change));
    index
}

/// An index as text, in order.
pub fn snapshot(index: &Index) -> String {
    let mut services: Vec<_> = index.services().collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = String::new();
    for service in services {
        _ = writeln!(text, "{service:?}");
        let mut slices: Vec<_> = index.slices_of(&service.name).iter().collect();
        slices.sort_by(|a, b| a.name.cmp(&b.name));
        for slice in slices {
            _ = writeln!(text, "  {slice:?}");
        }
    }
    let ranges: Vec<_> = index.service_cidrs().collect();
    _ = writeln!(
        text,
        "{:?} {ranges:?} {:?}",
        index.node().filter(|_| !index.is_node_gone()),
        index.counts()
    );
    text
}

pub fn service(name: &str, ip: &str, port: u16) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "demo", "creationTimestamp": "2026-11-25T17:01:23Z"},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip],
                 "ports": [{"name": "http", "port": port, "protocol": "TCP", "targetPort": 8080}]},
        "status": {"loadBalancer": {}},
    })
}

pub fn slice(name: &str, service: &str, addresses: impl IntoIterator<Item = String>) -> Value {
    let endpoint = |address| {
        json!({"addresses": [address], "nodeName": NODE,
               "conditions": {"ready": true, "serving": true, "terminating": false}})
    };
    json!({
        "metadata": {"name": name, "namespace": "demo", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": addresses.into_iter().map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

pub fn node(name: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "z1"}},
        "spec": {"podCIDR": "10.128.0.0/24", "podCIDRs": ["10.128.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    })
}

pub fn service_cidr(name: &str, range: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"cidrs": [range]}})
}
