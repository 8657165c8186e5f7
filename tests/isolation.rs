//! A transaction that is refused concerns only the Services that it is refused for: whatever the data plane refuses,
//! all others are served as if those were not there.

#[path = "support/events.rs"]
#[allow(dead_code)]
mod events;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use events::{Batch, batches, canonical};
use nix::errno::Errno;
use proptest::prelude::*;
use sluice::cluster::{Change, Index, ObjectName, Service, ServicePort};
use sluice::config::{Config, merge};
use sluice::dataplane::memory::{Memory, Plane, Refused};
use sluice::dataplane::nftables::model::{Element, Step};
use sluice::dataplane::nftables::plan::{self, Observed, Plan};
use sluice::events::Events;
use sluice::forwarding::{Desired, Frontend, Settings};
use sluice::metrics::Metrics;
use sluice::reconcile::Reconciler;
use sluice::reporting::Reporting;

/// What the data plane refuses: elements of these addresses; and whether it says which.
#[derive(Debug, Default)]
struct Poison {
    addresses: BTreeSet<IpAddr>,
    unnamed: bool,
    refusals: usize,
}

impl Poison {
    fn check(&mut self, plan: &Plan) -> Result<(), Refused> {
        for (part, (_, steps)) in plan.tables.iter().enumerate() {
            for (at, step) in steps.iter().enumerate() {
                if let Step::Add(element) = step
                    && let Element::Service(key, _) | Element::AffinityId(key, _) = element
                    && self.addresses.contains(&key.address)
                {
                    self.refusals += 1;
                    let at = (!self.unnamed).then_some((part, at));
                    return Err(Refused { errno: Errno::ENFILE, step: format!("{step:?}"), at });
                }
            }
        }
        Ok(())
    }
}

struct Node {
    reconciler: Reconciler<Plane>,
    metrics: Arc<Metrics>,
    status: Arc<sluice::health::Status>,
    poison: Arc<Mutex<Poison>>,
    events: tokio::sync::mpsc::Receiver<sluice::events::Event>,
    tables: Arc<Mutex<Memory>>,
    /// All objects, without anything held back.
    index: Index,
}

impl Node {
    fn new() -> Node {
        let poison: Arc<Mutex<Poison>> = Arc::default();
        let checks = poison.clone();
        let plane = Plane::new(Box::new(move |plan| checks.lock().unwrap().check(plan)));
        let tables = plane.tables.clone();
        let merged = merge::merge(&merge::Given::default(), None).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let mut reporting = Reporting::new(metrics.clone());
        let (sender, events) = Events::queue(metrics.events.clone());
        reporting.events = sender;
        let status = reporting.status.clone();
        let reconciler = Reconciler::new(Config::new(&merged, "node1").unwrap(), plane, reporting);
        Node { reconciler, metrics, status, poison, events, tables, index: Index::new("node1") }
    }

    fn refuse(&self, addresses: &[&str]) {
        self.poison.lock().unwrap().addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
    }

    fn apply(&mut self, changes: Batch) {
        changes.iter().cloned().for_each(|change| self.index.apply(change));
        self.reconciler.apply(changes);
        self.reconciler.sync().expect("the others can be applied");
    }

    fn aside(&self) -> BTreeSet<ObjectName> {
        self.reconciler.set_aside().cloned().collect()
    }

    fn desired(&self) -> &Desired {
        self.reconciler.desired().expect("synced")
    }

    fn observed(&self) -> Observed {
        let settings: &Settings = self.desired().settings();
        self.tables.lock().unwrap().observe(|family| plan::structure(settings, family))
    }

    /// Without these Services, built anew.
    fn without(&self, names: &BTreeSet<ObjectName>) -> Desired {
        let mut index = Index::new("node1");
        for service in self.index.services().filter(|s| !names.contains(&s.name)) {
            index.apply(Change::Service(service.name.clone(), Some((**service).clone())));
            for slice in self.index.slices_of(&service.name) {
                index.apply(Change::EndpointSlice(slice.name.clone(), Some((**slice).clone())));
            }
        }
        let desired = self.desired();
        Desired::from_scratch(&index, desired.node().clone(), desired.settings().clone()).0
    }

    /// What must hold after each sync.
    fn check(&self) -> Result<(), TestCaseError> {
        let (aside, desired) = (self.aside(), self.desired());
        let observed = self.observed();
        let (left, _) = plan::plan(desired, &observed);
        prop_assert!(left.is_empty(), "the tables are as desired: {}", left);
        let poisoned = &self.poison.lock().unwrap().addresses;
        for name in &aside {
            let claims = self.index.service(name).is_some_and(|s| {
                let all = [&s.cluster_ips, &s.external_ips, &s.load_balancer_ips];
                all.into_iter().flatten().any(|a| poisoned.contains(a))
            });
            prop_assert!(claims, "{} is set aside for nothing", name);
        }
        for (key, frontend, service) in self.without(&aside).frontends() {
            let is_aside = |s: &Arc<Service>| aside.contains(&s.name);
            // As it was before, one that is set aside may still have this.
            if desired.frontend(key).is_some_and(|(_, s)| is_aside(s))
                || desired.cluster_ip_owners(key.address).iter().any(is_aside)
            {
                continue;
            }
            let found = desired.frontend(key).map(|(f, s)| (endpoints(f), &s.name));
            prop_assert_eq!(found, Some((endpoints(frontend), &service.name)), "{}", key);
        }
        Ok(())
    }
}

fn endpoints(frontend: &Frontend) -> BTreeSet<std::net::SocketAddr> {
    frontend.endpoints().collect()
}

/// Time stands still but for what a test lets pass.
fn with_clock<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(test)
}

async fn pass(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

fn service(name: &str, address: &str, port: u16) -> Change {
    let name = ObjectName::new("ns", name);
    let port = ServicePort {
        name: "".into(),
        protocol: sluice::cluster::Protocol::Tcp,
        port: port.try_into().unwrap(),
        node_port: None,
    };
    let service = Service::new(name.clone(), vec![address.parse().unwrap()], vec![port]);
    Change::Service(name, Some(service))
}

fn names(names: &[&str]) -> BTreeSet<ObjectName> {
    names.iter().map(|n| ObjectName::new("ns", *n)).collect()
}

const POISONS: [&str; 8] = [
    "10.96.0.0",
    "10.96.0.1",
    "10.96.0.3",
    "fd00:10:96::1",
    "fd00:10:96::2",
    "203.0.113.0",
    "203.0.113.1",
    "fd00:203::1",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_set_of_refused_services_never_hinders_the_others(
        batches in batches(1..25),
        poison in prop::sample::subsequence(POISONS.to_vec(), 0..=3),
        unnamed: bool,
        from in 0..10usize,
        full in 0..4usize,
    ) {
        with_clock(async {
            let mut node = Node::new();
            node.poison.lock().unwrap().unnamed = unnamed;
            for (n, batch) in batches.into_iter().enumerate() {
                if n == from {
                    node.refuse(&poison);
                }
                if n % 4 == full {
                    node.reconciler.compare(sluice::dataplane::Look::Changed);
                }
                node.apply(batch);
                node.check()?;
                pass(n as u64 % 7).await;
            }
            node.refuse(&[]);
            pass(1000).await;
            node.apply(vec![]);
            prop_assert!(node.aside().is_empty(), "all are tried again: {:?}", node.aside());
            node.check()?;
            let mut memory = Memory::default();
            let whole = node.without(&BTreeSet::new());
            let structure = |family| plan::structure(whole.settings(), family);
            let (plan, _) = plan::plan(&whole, &memory.observe(structure));
            memory.apply(&plan).expect("a first load");
            prop_assert_eq!(canonical(node.observed()), canonical(memory.observe(structure)));
            Ok(())
        })?;
    }
}

#[test]
fn what_is_refused_keeps_its_old_rules_and_is_tried_again() {
    with_clock(async {
        let mut node = Node::new();
        node.refuse(&["10.96.0.9"]);
        node.apply(vec![service("a", "10.96.0.1", 80), service("b", "10.96.0.2", 80)]);
        assert!(node.aside().is_empty());
        // In one sync a bad change and a good one; the bad one is of a Service that has rules.
        node.apply(vec![service("a", "10.96.0.9", 80), service("b", "10.96.0.2", 81)]);
        assert_eq!(node.aside(), names(&["a"]));
        let keys = |node: &Node| {
            let mut keys: Vec<_> = node.desired().frontends().map(|(k, ..)| k.to_string()).collect();
            keys.sort();
            keys
        };
        assert_eq!(keys(&node), ["10.96.0.1:80/tcp", "10.96.0.2:81/tcp"]);
        assert_eq!(node.metrics.services_set_aside.get(), 1);
        let event = node.events.try_recv().expect("an event");
        assert_eq!((event.reason, event.kind), ("RulesRefused", sluice::events::Type::Warning));
        let refused = "10.96.0.9, protocol: Tcp, port: 80";
        assert!(
            event.note.contains(refused) && event.note.contains("its rules stay as they were"),
            "{event:?}"
        );
        // The node as a whole is well.
        let healthz = node.status.healthz(std::time::Instant::now(), std::time::SystemTime::now());
        assert_eq!(healthz.status().as_u16(), 200);
        // Tried after 1 s, 2 s, 4 s ... and not meanwhile.
        for wait in [1, 2, 4, 8] {
            let due = node.reconciler.next_retry().expect("it is to be tried again");
            assert_eq!(due - tokio::time::Instant::now(), Duration::from_secs(wait));
            let before = node.poison.lock().unwrap().refusals;
            node.apply(vec![service("b", "10.96.0.2", 80 + wait as u16)]);
            assert_eq!(node.poison.lock().unwrap().refusals, before, "others do not touch it");
            pass(wait).await;
            node.apply(vec![]);
            assert_eq!(node.poison.lock().unwrap().refusals, before + 1);
        }
        assert!(node.events.try_recv().is_err(), "it is said once");
        // At once when it changes.
        node.apply(vec![service("a", "10.96.0.7", 80)]);
        assert!(node.aside().is_empty() && node.reconciler.next_retry().is_none());
        assert_eq!(keys(&node), ["10.96.0.2:88/tcp", "10.96.0.7:80/tcp"]);
        // Deleted while it is set aside.
        node.apply(vec![service("c", "10.96.0.9", 80)]);
        assert_eq!(node.aside(), names(&["c"]));
        node.apply(vec![Change::Service(ObjectName::new("ns", "c"), None)]);
        assert!(node.aside().is_empty());
    });
}

#[test]
fn many_refused_at_once_are_all_found() {
    for unnamed in [false, true] {
        with_clock(async {
            let mut node = Node::new();
            node.poison.lock().unwrap().unnamed = unnamed;
            let bad = |n: u16| n % 10 == 3;
            let address = |n: u16| format!("10.96.{}.{}", n / 250, n % 250);
            let poison: Vec<String> = (0..300).filter(|n| bad(*n)).map(address).collect();
            node.refuse(&poison.iter().map(String::as_str).collect::<Vec<_>>());
            node.apply((0..300).map(|n| service(&format!("s{n:03}"), &address(n), 80)).collect());
            let expected: BTreeSet<_> =
                (0..300).filter(|n| bad(*n)).map(|n| ObjectName::new("ns", format!("s{n:03}"))).collect();
            assert_eq!(node.aside(), expected);
            assert_eq!(node.desired().frontends().count(), 270);
            node.check().unwrap();
        });
    }
}
