//! What the kernel refuses concerns only the Services that it is refused for.
//!
//! Nothing that is desired is refused by a kernel that works, so this data plane adds to the plan, for some Services,
//! what the kernel does refuse: the refusals, and what they say, are its own.

use std::sync::Arc;

use sluice::cluster::{Change, Index, ObjectName, Protocol, Service, ServicePort};
use sluice::config::{Config, merge};
use sluice::dataplane::nftables::model::{Chain, Element, Key, Step, Verdict};
use sluice::dataplane::nftables::plan::{Observed, Plan};
use sluice::dataplane::nftables::{Error, Nftables};
use sluice::dataplane::{DataPlane, Fault, Look};
use sluice::forwarding::{Adopted, Changes, Desired, Settings};
use sluice::metrics::Metrics;
use sluice::reconcile::Reconciler;
use sluice::reporting::Reporting;

use super::space::{in_new_namespace, nft, run};

/// With port 81 a Service is one element twice, with different data; with port 82 one goes to a chain that is not
/// there.
struct Spoiled(Nftables);

fn spoil(mut plan: Plan) -> Plan {
    for (_, steps) in &mut plan.tables {
        let bad = steps.iter().filter_map(|step| match step {
            Step::Add(Element::Service(key, _)) if key.port == 81 => {
                Some(Element::Service(*key, Verdict::Accept))
            }
            Step::Add(Element::Service(key, _)) if key.port == 82 => {
                let key = Key { port: 83, ..*key };
                Some(Element::Service(key, Verdict::Goto(Chain::Endpoints(4000))))
            }
            _ => None,
        });
        let bad: Vec<Element> = bad.collect();
        for bad in bad {
            let of = |step: &Step| match (step, &bad) {
                (Step::Add(Element::Service(key, _)), Element::Service(bad, _)) => key.address == bad.address,
                _ => false,
            };
            let at = steps.iter().rposition(of).unwrap();
            match bad {
                // In its place: the element by which the Service is found is the one that is refused.
                Element::Service(key, verdict) if key.port == 83 => {
                    steps[at] = Step::Add(Element::Service(Key { port: 82, ..key }, verdict));
                }
                bad => steps.insert(at + 1, Step::Add(bad)),
            }
        }
    }
    plan
}

impl DataPlane for Spoiled {
    type Observed = Observed;
    type Plan = Plan;
    type Error = Error;

    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn observe(&mut self, settings: &Settings) -> Result<Observed, Error> {
        self.0.observe(settings)
    }

    fn adopt(&self, observed: &Observed) -> Adopted {
        self.0.adopt(observed)
    }

    fn plan(&mut self, desired: &Desired, observed: &Observed) -> Plan {
        spoil(self.0.plan(desired, observed))
    }

    fn plan_changes(&mut self, changes: &Changes) -> Plan {
        spoil(self.0.plan_changes(changes))
    }

    fn steps(&self, plan: &Plan) -> usize {
        self.0.steps(plan)
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), Error> {
        self.0.apply(plan)
    }

    fn fault(&mut self, plan: &Plan, error: &Error) -> Fault {
        self.0.fault(plan, error)
    }

    fn look(&mut self, thorough: bool) -> Result<Look, Error> {
        self.0.look(thorough)
    }
}

struct Node {
    reconciler: Reconciler<Spoiled>,
    index: Index,
}

impl Node {
    fn new() -> Node {
        let merged = merge::merge(&merge::Given::default(), None).unwrap();
        let config = Config::new(&merged, "node1").unwrap();
        let reporting = Reporting::new(Arc::new(Metrics::new().unwrap()));
        let plane = Spoiled(Nftables::open().unwrap());
        Node { reconciler: Reconciler::new(config, plane, reporting), index: Index::new("node1") }
    }

    fn apply(&mut self, changes: Vec<Change>) {
        changes.iter().cloned().for_each(|change| self.index.apply(change));
        self.reconciler.apply(changes);
        self.reconciler.sync().unwrap();
    }

    fn aside(&self) -> Vec<String> {
        self.reconciler.set_aside().map(|name| name.name.to_string()).collect()
    }

    /// That the kernel has all Services but these, and nothing of these.
    fn check(&self, missing: &[String]) {
        let mut plane = Nftables::open().unwrap();
        let (settings, view) = {
            let desired = self.reconciler.desired().unwrap();
            (desired.settings().clone(), desired.node().clone())
        };
        let mut index = Index::new("node1");
        for service in self.index.services().filter(|s| !missing.contains(&s.name.name.to_string())) {
            index.apply(Change::Service(service.name.clone(), Some((**service).clone())));
        }
        let observed = plane.observe(&settings).unwrap();
        let (desired, _) = Desired::from_scratch(&index, view, settings);
        let plan = plane.plan(&desired, &observed);
        assert_eq!(plan.to_string(), "", "nothing is left to do");
    }
}

/// A Service of both families, with as many addresses as there are Services.
fn service(n: u16, port: u16) -> Change {
    let name = ObjectName::new("ns", format!("s{n:04}"));
    let port = ServicePort {
        name: "".into(),
        protocol: Protocol::Tcp,
        port: port.try_into().unwrap(),
        node_port: None,
    };
    let [high, low] = n.to_be_bytes();
    let addresses = vec![[10, 96, high, low].into(), [0xfd00, 96, 0, 0, 0, 0, 0, n].into()];
    Change::Service(name.clone(), Some(Service::new(name, addresses, vec![port])))
}

fn names(of: impl IntoIterator<Item = u16>) -> Vec<String> {
    of.into_iter().map(|n| format!("s{n:04}")).collect()
}

#[test]
fn a_first_load_goes_on_without_what_is_refused() {
    in_new_namespace(|| {
        let mut node = Node::new();
        let bad = [7, 8, 500, 1999];
        let port = |n| if bad.contains(&n) { 81 + n % 2 } else { 80 };
        node.apply((0..2000).map(|n| service(n, port(n))).collect());
        assert_eq!(node.aside(), names(bad));
        node.check(&names(bad));
        // Put right, they are served at once.
        node.apply(bad.map(|n| service(n, 80)).to_vec());
        assert!(node.aside().is_empty());
        node.check(&[]);
    });
}

#[test]
fn more_than_the_kernel_names_in_a_few_tries_are_found() {
    in_new_namespace(|| {
        let mut node = Node::new();
        let bad = || (0..300).filter(|n| n % 3 == 0);
        node.apply((0..300).map(|n| service(n, if n % 3 == 0 { 81 } else { 80 })).collect());
        assert_eq!(node.aside(), names(bad()));
        node.check(&names(bad()));
    });
}

#[test]
fn a_change_that_is_refused_leaves_old_rules_and_lets_others_through() {
    in_new_namespace(|| {
        let mut node = Node::new();
        node.apply((0..20).map(|n| service(n, 80)).collect());
        node.apply(vec![service(3, 81), service(4, 90), service(5, 82), service(30, 80)]);
        assert_eq!(node.aside(), names([3, 5]));
        let has = |service: &str| nft(&["list", "map", "ip", "sluice", "services"], "").contains(service);
        assert!(has("10.96.0.3 . tcp . 80") && has("10.96.0.5 . tcp . 80"), "as it was");
        assert!(has("10.96.0.4 . tcp . 90") && !has("10.96.0.4 . tcp . 80") && has("10.96.0.30 . tcp . 80"));
        // Somebody flushes our tables: now there are no old rules for them to stay.
        run("nft", &["flush", "ruleset"], "");
        node.reconciler.compare(Look::Changed);
        node.apply(vec![]);
        assert_eq!(node.aside(), names([3, 5]));
        assert!(has("10.96.0.3 . tcp . 80") && has("10.96.0.4 . tcp . 90"));
        node.apply(vec![service(3, 90), service(5, 90)]);
        assert!(node.aside().is_empty());
        node.check(&[]);
    });
}

#[test]
fn what_somebody_else_did_is_not_blamed_on_a_service() {
    in_new_namespace(|| {
        let mut node = Node::new();
        node.apply((0..20).map(|n| service(n, 80)).collect());
        // An element is in the way of the next one of ours.
        nft(&["-f", "-"], "add element ip sluice services { 10.96.0.77 . tcp . 80 : drop }");
        node.reconciler.apply([service(77, 80)]);
        node.index.apply(service(77, 80));
        assert!(node.reconciler.sync().unwrap().full, "everything is compared");
        assert!(node.aside().is_empty());
        node.check(&[]);
    });
}
