//! A network namespace with a node's addresses, and a data plane in it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice::cluster::{Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Family, Index, ObjectName};
use sluice::cluster::{Protocol, Scheduler, Service, ServicePort};
use sluice::config::{self, Config, merge};
use sluice::dataplane::DataPlane;
use sluice::dataplane::ipvs::Ipvs;
use sluice::dataplane::ipvs::plan::Plan;
use sluice::events::{Event, Events};
use sluice::forwarding::{Desired, Settings};
use sluice::metrics::Metrics;
use sluice::reconcile::Reconciler;
use sluice::reporting::Reporting;

use super::events::{node, settings};
use super::space::{in_new_namespace, run};

/// The settings of mode ipvs.
pub fn ipvs_settings() -> Settings {
    Settings { ipvs: Some(Scheduler::Rr), ..settings() }
}

/// A data plane in the namespace of the calling thread.
pub fn plane() -> Ipvs {
    plane_with(config::Ipvs::default())
}

/// The same with another configuration.
pub fn plane_with(config: config::Ipvs) -> Ipvs {
    Ipvs::open(config, Duration::from_secs(3600)).expect("IPVS: `make vm` has a kernel with it")
}

/// Runs a test in a namespace with the node's addresses.
pub fn on_node<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    in_new_namespace(|| {
        run("ip", &["link", "set", "lo", "up"], "");
        run("ip", &["link", "add", "lan", "type", "dummy"], "");
        let ipv6 = std::path::Path::new("/proc/thread-self/net/if_inet6").exists();
        for address in ["198.18.0.11/24", "fd00:198:18::11/64"].into_iter().take(1 + usize::from(ipv6)) {
            run("ip", &["address", "add", address, "dev", "lan", "nodad"], "");
        }
        run("ip", &["link", "set", "lan", "up"], "");
        test()
    })
}

/// A node's agent, without the loop around it.
pub struct Agent {
    pub plane: Ipvs,
    pub index: Index,
    pub desired: Desired,
}

impl Agent {
    /// Starts with these objects: everything is compared. Gives what was to be done.
    pub fn start(mut plane: Ipvs, objects: Vec<Change>) -> (Agent, Plan) {
        let mut index = Index::new("node1");
        objects.into_iter().for_each(|change| index.apply(change));
        index.take_dirty();
        let (desired, plan) = full_sync(&mut plane, &index);
        (Agent { plane, index, desired }, plan)
    }

    /// Compares everything again.
    pub fn resync(&mut self) -> Plan {
        let (desired, plan) = full_sync(&mut self.plane, &self.index);
        self.desired = desired;
        plan
    }

    /// Takes changes in.
    pub fn change(&mut self, changes: impl IntoIterator<Item = Change>) -> Plan {
        changes.into_iter().for_each(|change| self.index.apply(change));
        let dirty = self.index.take_dirty();
        let changes = self.desired.update(&self.index, dirty.services, Instant::now());
        let plan = self.plane.plan_changes(&changes);
        self.plane.apply(&plan).unwrap_or_else(|error| panic!("{error}\n{plan}"));
        plan
    }
}

fn full_sync(plane: &mut Ipvs, index: &Index) -> (Desired, Plan) {
    let observed = plane.observe(&ipvs_settings()).unwrap();
    let adopted = plane.adopt(&observed);
    let (desired, _) = Desired::adopting(index, node(), ipvs_settings(), adopted, Instant::now());
    let plan = plane.plan(&desired, &observed);
    plane.apply(&plan).unwrap_or_else(|error| panic!("{error}\n{plan}"));
    (desired, plan)
}

/// An agent's loop: takes changes in, and gives the events.
pub fn syncing() -> impl FnMut(Vec<Change>) -> Vec<Event> {
    let metrics = Arc::new(Metrics::new().unwrap());
    let (sender, mut events) = Events::queue(metrics.events.clone());
    let mut reporting = Reporting::new(metrics);
    reporting.events = sender;
    let merged = merge::merge(&merge::Given::default(), None).unwrap();
    let mut config = Config::new(&merged, "node1").unwrap();
    config.ipvs = Some(config::Ipvs::default());
    let mut agent = Reconciler::new(config, plane(), reporting);
    move |changes| {
        agent.apply(changes);
        agent.sync().unwrap();
        std::iter::from_fn(|| events.try_recv().ok()).collect()
    }
}

/// The name of the Service that the tests have.
fn name() -> ObjectName {
    ObjectName::new("ns", "web")
}

/// A Service on 10.96.0.10:80, NodePort 30080.
pub fn service(edit: impl FnOnce(&mut Service)) -> Change {
    let ports = vec![ServicePort {
        name: "".into(),
        protocol: Protocol::Tcp,
        port: 80.try_into().unwrap(),
        node_port: 30080.try_into().ok(),
    }];
    let mut service = Service::new(name(), vec!["10.96.0.10".parse().unwrap()], ports);
    edit(&mut service);
    Change::Service(name(), Some(service))
}

/// It is deleted.
pub fn no_service() -> Change {
    Change::Service(name(), None)
}

/// Its endpoints, ready, on port 8080.
pub fn endpoints(addresses: &[&str]) -> Change {
    let endpoint = |address: &&str| Endpoint {
        address: address.parse().unwrap(),
        conditions: Conditions::READY,
        node: Some("node1".into()),
        zone: None,
        zone_hints: None,
        node_hints: None,
    };
    let port = EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 8080.try_into().unwrap() };
    let slice = EndpointSlice {
        name: ObjectName::new("ns", "web-1"),
        service: "web".into(),
        family: Family::Ipv4,
        ports: vec![port],
        endpoints: addresses.iter().map(endpoint).collect(),
        triggered: None,
    };
    Change::EndpointSlice(ObjectName::new("ns", "web-1"), Some(slice))
}

/// What `ipvsadm -S` prints of one virtual service, or of all, sorted. Where other tests' namespaces change meanwhile the
/// kernel may give some twice, or leave some out.
pub fn entries(of: &str) -> Vec<String> {
    let read = || {
        let all = run("ipvsadm", &["-S", "-n"], "");
        let mut lines: Vec<String> =
            all.lines().filter(|line| line.contains(of)).map(|line| line.trim().to_owned()).collect();
        lines.sort();
        lines.dedup();
        lines
    };
    let mut last = read();
    loop {
        let now = read();
        if now == last {
            return now;
        }
        last = now;
    }
}
