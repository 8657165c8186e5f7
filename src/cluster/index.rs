//! The index: all objects by name, slices by Service, and which Services a change touched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::objects::{Change, Endpoint, EndpointSlice, Family, Node, ObjectName, Service, ServiceCidr};

/// All objects of the cluster that matter to one node, fed with [`Change`]s from any source, in any order: a
/// slice may come before its Service and outlive it.
#[derive(Debug, Default)]
pub struct Index {
    node_name: Arc<str>,
    services: FxHashMap<ObjectName, Arc<Service>>,
    slices: FxHashMap<ObjectName, Arc<EndpointSlice>>,
    slices_of: FxHashMap<ObjectName, Vec<Arc<EndpointSlice>>>,
    /// How many endpoints all slices have together; counted along, since every sync tells it.
    endpoint_count: usize,
    node: Option<Node>,
    /// It is as it was last, and there no longer.
    node_gone: bool,
    service_cidrs: BTreeMap<Arc<str>, ServiceCidr>,
    dirty: Dirty,
    /// Services that changed since [`Index::settle`], as they were then.
    before: FxHashMap<ObjectName, Version>,
    /// Services that are shown as they once were.
    held: FxHashMap<ObjectName, Version>,
}

/// A Service with its slices at one time.
#[derive(Clone, Debug, Default)]
struct Version {
    service: Option<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
}

/// What changed since [`Index::take_dirty`] was last called.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services of which any part changed: the object or one of its slices.
    pub services: FxHashSet<ObjectName>,
    /// The own Node changed: every Service may forward differently.
    pub node: bool,
    /// The service address ranges changed.
    pub service_cidrs: bool,
    /// When the changes of slices happened, where the slices say so.
    pub triggers: Vec<(Family, SystemTime)>,
}

impl Dirty {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.node && !self.service_cidrs
    }
}

impl Index {
    /// An empty index for the node of this name; other Nodes are not kept.
    pub fn new(node_name: impl Into<Arc<str>>) -> Index {
        Index { node_name: node_name.into(), ..Index::default() }
    }

    /// Takes one change in. An object that equals the one already there marks nothing dirty.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Service(name, service) => self.apply_service(name, service),
            Change::EndpointSlice(name, slice) => self.apply_slice(name, slice),
            Change::Node(name, node) if name == self.node_name => self.apply_node(node),
            Change::Node(..) => {}
            Change::ServiceCidr(name, cidr) => {
                if self.service_cidrs.get(&name) != cidr.as_ref() {
                    match cidr {
                        Some(cidr) => self.service_cidrs.insert(name, cidr),
                        None => self.service_cidrs.remove(&name),
                    };
                    self.dirty.service_cidrs = true;
                }
            }
        }
    }

    fn apply_node(&mut self, node: Option<Node>) {
        let gone = node.is_none();
        let differs =
            if gone { self.node.is_some() && !self.node_gone } else { self.node_gone || node != self.node };
        if differs {
            self.node = node.or_else(|| self.node.take());
            self.node_gone = gone;
            self.dirty.node = true;
        }
    }

    fn apply_service(&mut self, name: ObjectName, service: Option<Service>) {
        if self.services.get(&name).map(Arc::as_ref) == service.as_ref() {
            return;
        }
        self.note(&name);
        match service {
            Some(service) => self.services.insert(name.clone(), Arc::new(service)),
            None => self.services.remove(&name),
        };
        self.dirty.services.insert(name);
    }

    fn apply_slice(&mut self, name: ObjectName, slice: Option<EndpointSlice>) {
        if self.slices.get(&name).map(Arc::as_ref) == slice.as_ref() {
            return;
        }
        // The label that names the Service may have changed: the slice leaves its old Service first.
        if let Some(old) = self.slices.remove(&name) {
            self.endpoint_count -= old.endpoints.len();
            let owner = ObjectName { namespace: name.namespace.clone(), name: old.service.clone() };
            self.note(&owner);
            if let Some(slices) = self.slices_of.get_mut(&owner) {
                slices.retain(|s| s.name != name);
                if slices.is_empty() {
                    self.slices_of.remove(&owner);
                }
            }
            self.dirty.services.insert(owner);
        }
        if let Some(slice) = slice {
            let owner = ObjectName { namespace: name.namespace.clone(), name: slice.service.clone() };
            self.note(&owner);
            if let Some(at) = slice.triggered {
                self.dirty.triggers.push((slice.family, at));
            }
            self.endpoint_count += slice.endpoints.len();
            let slice = Arc::new(slice);
            self.slices_of.entry(owner.clone()).or_default().push(slice.clone());
            self.slices.insert(name, slice);
            self.dirty.services.insert(owner);
        }
    }

    /// Whether anything changed since the last [`take_dirty`](Index::take_dirty).
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// What changed since the last call.
    pub fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    /// Remembers what a Service was before it changed.
    fn note(&mut self, name: &ObjectName) {
        if !self.before.contains_key(name) {
            let slices = self.slices_of.get(name).cloned().unwrap_or_default();
            self.before.insert(name.clone(), Version { service: self.services.get(name).cloned(), slices });
        }
    }

    /// All that changed so far is in rules: to this a Service goes back that is held.
    pub fn settle(&mut self) {
        // A first list leaves it large.
        self.before = FxHashMap::default();
    }

    /// The Services that changed since then, in no order.
    pub fn changed(&self) -> Vec<ObjectName> {
        self.before.keys().cloned().collect()
    }

    /// Shows a Service as it was before its last change, or, where that did not change it, as if it were not there.
    /// Says whether anything is different now.
    pub fn hold(&mut self, name: &ObjectName) -> bool {
        let version = match self.held.get(name) {
            Some(version) if version.service.is_none() => return false,
            Some(_) => Version::default(),
            None => self.before.get(name).cloned().unwrap_or_default(),
        };
        self.held.insert(name.clone(), version);
        true
    }

    /// Shows a Service as it is, until it is held again.
    pub fn release(&mut self, name: &ObjectName) {
        if let Some(version) = self.held.remove(name) {
            self.before.insert(name.clone(), version);
        }
    }

    /// Shows all Services as they are.
    pub fn release_all(&mut self) {
        self.before.extend(std::mem::take(&mut self.held));
    }

    /// Whether a Service is shown as it once was.
    pub fn is_held(&self, name: &ObjectName) -> bool {
        self.held.contains_key(name)
    }

    /// The Service of this name.
    pub fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        match self.held.get(name) {
            Some(version) => version.service.as_ref(),
            None => self.services.get(name),
        }
    }

    /// The Service of this name as it is, held or not.
    pub fn newest(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// The names of all Services as they are, in no order.
    pub fn names(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys()
    }

    /// All Services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        let newest = self.services.values().filter(|s| !self.is_held(&s.name));
        newest.chain(self.held.values().filter_map(|version| version.service.as_ref()))
    }

    /// The slices of a Service, in no order.
    pub fn slices_of(&self, service: &ObjectName) -> &[Arc<EndpointSlice>] {
        match self.held.get(service) {
            Some(version) => &version.slices,
            None => self.slices_of.get(service).map_or(&[], Vec::as_slice),
        }
    }

    /// Every endpoint of every slice, in no order.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.slices.values().flat_map(|slice| &slice.endpoints)
    }

    /// The own Node. One that is gone is as it was last: without what it says, NodePorts would open on all the host's
    /// addresses, and pods could no longer be told from others.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Whether the own Node was there and is gone.
    pub fn is_node_gone(&self) -> bool {
        self.node_gone
    }

    /// The own node's name.
    pub fn node_name(&self) -> &Arc<str> {
        &self.node_name
    }

    /// Every range from which ClusterIPs are allocated.
    pub fn service_cidrs(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.service_cidrs.values().flat_map(|c| c.cidrs.iter().copied())
    }

    /// How many Services, slices and endpoints there are.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.services.len(), self.slices.len(), self.endpoint_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(name: &str, service: &str) -> EndpointSlice {
        EndpointSlice {
            name: ObjectName::new("ns", name),
            service: service.into(),
            family: Family::Ipv4,
            ports: vec![],
            endpoints: vec![],
            triggered: None,
        }
    }

    fn dirty(names: &[&str]) -> Dirty {
        Dirty { services: names.iter().map(|n| ObjectName::new("ns", *n)).collect(), ..Dirty::default() }
    }

    #[test]
    fn a_relabelled_slice_leaves_its_old_service() {
        let mut index = Index::new("node1");
        let name = ObjectName::new("ns", "s1");
        index.apply(Change::EndpointSlice(name.clone(), Some(slice("s1", "a"))));
        assert_eq!(index.take_dirty(), dirty(&["a"]));
        index.apply(Change::EndpointSlice(name.clone(), Some(slice("s1", "b"))));
        assert_eq!(index.take_dirty(), dirty(&["a", "b"]));
        assert!(index.slices_of(&ObjectName::new("ns", "a")).is_empty());
        assert_eq!(index.slices_of(&ObjectName::new("ns", "b")).len(), 1);
        index.apply(Change::EndpointSlice(name, None));
        assert_eq!(index.take_dirty(), dirty(&["b"]));
        assert_eq!(index.counts(), (0, 0, 0));
    }

    #[test]
    fn a_held_service_stays_what_it_was() {
        let mut index = Index::new("node1");
        let service = ObjectName::new("ns", "a");
        let slices = |index: &Index| {
            index
                .slices_of(&ObjectName::new("ns", "a"))
                .iter()
                .map(|s| s.name.name.to_string())
                .collect::<Vec<_>>()
        };
        let name = |n: &str| ObjectName::new("ns", n);
        index.apply(Change::Service(service.clone(), Some(Service::new(service.clone(), vec![], vec![]))));
        index.apply(Change::EndpointSlice(name("s1"), Some(slice("s1", "a"))));
        index.settle();
        index.apply(Change::EndpointSlice(name("s2"), Some(slice("s2", "a"))));
        index.apply(Change::EndpointSlice(name("s1"), None));
        assert_eq!(slices(&index), ["s2"]);
        assert!(index.hold(&service));
        assert_eq!(slices(&index), ["s1"], "as it was when it was settled");
        index.settle();
        index.apply(Change::EndpointSlice(name("s3"), Some(slice("s3", "a"))));
        assert_eq!(slices(&index), ["s1"], "changes do not show");
        index.release(&service);
        assert_eq!(slices(&index), ["s2", "s3"]);
        assert!(index.hold(&service));
        assert_eq!(slices(&index), ["s1"], "it was never settled otherwise");
        assert!(
            index.hold(&service) && index.service(&service).is_none() && index.services().next().is_none()
        );
        assert!(!index.hold(&service), "there is nothing left to take");
        index.release(&service);
        assert!(index.service(&service).is_some());
    }

    #[test]
    fn what_is_already_there_marks_nothing() {
        let mut index = Index::new("node1");
        let name = ObjectName::new("ns", "s1");
        index.apply(Change::EndpointSlice(name.clone(), Some(slice("s1", "a"))));
        index.take_dirty();
        index.apply(Change::EndpointSlice(name, Some(slice("s1", "a"))));
        index.apply(Change::Service(ObjectName::new("ns", "gone"), None));
        index.apply(Change::Node("node2".into(), Some(Node::default())));
        assert!(index.take_dirty().is_empty());
    }

    #[test]
    fn a_node_that_is_gone_is_as_it_was_last() {
        let mut index = Index::new("node1");
        let mut apply = |node: Option<Node>| {
            index.apply(Change::Node("node1".into(), node));
            let zone = index.node().map(|node| node.zone.clone().unwrap_or_default().to_string());
            (index.take_dirty().node, zone, index.is_node_gone())
        };
        let node = |zone: &str| Some(Node { zone: Some(zone.into()), ..Node::default() });
        assert_eq!(apply(None), (false, None, false), "there was none");
        assert_eq!(apply(node("a")), (true, Some("a".into()), false));
        assert_eq!(apply(None), (true, Some("a".into()), true));
        assert_eq!(apply(None), (false, Some("a".into()), true));
        assert_eq!(apply(node("a")), (true, Some("a".into()), false));
        assert_eq!(apply(node("b")), (true, Some("b".into()), false));
    }
}
