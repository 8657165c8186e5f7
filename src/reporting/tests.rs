use super::*;
use crate::cluster::{Endpoint, EndpointPort, EndpointSlice, Protocol, Service, ServicePort, TrafficPolicy};

const REPORT: Report = Report { full: false, services: 1, steps: 3, elapsed: Duration::from_millis(3) };

fn reporting() -> Reporting {
    Reporting::new(Arc::new(Metrics::new().unwrap()))
}

fn node() -> NodeView {
    NodeView {
        name: "node1".into(),
        node_port_addresses: vec!["10.0.0.1".parse().unwrap()],
        ..NodeView::default()
    }
}

fn name() -> ObjectName {
    ObjectName::new("ns", "a")
}

fn service(external_policy: TrafficPolicy) -> Change {
    let port = ServicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80.try_into().unwrap(),
        node_port: None,
    };
    let service = Service {
        external_policy,
        health_check_node_port: 32000.try_into().ok().filter(|_| external_policy == TrafficPolicy::Local),
        ..Service::new(name(), vec!["10.96.0.1".parse().unwrap()], vec![port])
    };
    Change::Service(name(), Some(service))
}

fn slice(address: &str, on: &str, triggered: Option<SystemTime>) -> Change {
    let endpoint = Endpoint { node: Some(on.into()), ..Endpoint::ready(address.parse().unwrap()) };
    let port = EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 80.try_into().unwrap() };
    let slice = EndpointSlice {
        name: ObjectName::new("ns", "a1"),
        service: "a".into(),
        family: Family::Ipv4,
        ports: vec![port],
        endpoints: vec![endpoint],
        triggered,
    };
    Change::EndpointSlice(slice.name.clone(), Some(slice))
}

#[test]
fn changes_are_pending_until_they_are_rules() {
    let mut reporting = reporting();
    let (metrics, status) = (reporting.metrics.clone(), reporting.status.clone());
    let mut index = Index::new("node1");
    for change in [service(TrafficPolicy::Cluster), slice("10.0.0.5", "node1", None)] {
        reporting.changed(&change);
        index.apply(change);
    }
    reporting.queued(&index);
    let pending = || (metrics.service_changes_pending.get(), metrics.endpoint_changes_pending.get());
    assert_eq!(pending(), (1, 1));
    reporting.failed("apply");
    assert_eq!(pending(), (1, 1));
    assert_eq!(metrics.failures.with_label_values(&["apply"]).get(), 1);
    assert_eq!(status.healthz(Instant::now(), SystemTime::now()).status(), 503);
    reporting.synced(&REPORT, index.counts());
    assert_eq!(pending(), (0, 0));
    assert_eq!((metrics.service_changes.get(), metrics.endpoint_changes.get()), (1, 1));
    assert_eq!(status.healthz(Instant::now(), SystemTime::now()).status(), 200);
    assert_eq!(metrics.partial_sync_duration.each_ref().map(|h| h.get_sample_count()), [1, 1]);
    assert_eq!(metrics.full_sync_duration.each_ref().map(|h| h.get_sample_count()), [0, 0]);
    assert!(metrics.last_sync[0].get() >= metrics.last_queued[0].get());
}

#[test]
fn network_programming_is_measured_from_changes_since_the_start() {
    let mut reporting = reporting();
    let metrics = reporting.metrics.clone();
    let mut index = Index::new("node1");
    let before = reporting.start - Duration::from_secs(5);
    let since = reporting.start + Duration::from_nanos(1);
    index.apply(slice("10.0.0.5", "node1", Some(before)));
    index.apply(slice("10.0.0.6", "node1", Some(since)));
    index.apply(slice("10.0.0.6", "node1", Some(since)));
    reporting.triggered(index.take_dirty().triggers);
    assert_eq!(metrics.network_programming[0].get_sample_count(), 0, "not in rules yet");
    reporting.synced(&REPORT, index.counts());
    reporting.synced(&REPORT, index.counts());
    assert_eq!(metrics.network_programming.each_ref().map(|h| h.get_sample_count()), [1, 0]);
}

#[test]
fn services_without_local_endpoints_are_counted_in_and_out() {
    let mut reporting = reporting();
    let metrics = reporting.metrics.clone();
    let mut index = Index::new("node1");
    let count = || metrics.no_local_external.each_ref().map(|gauge| gauge.get());
    index.apply(service(TrafficPolicy::Local));
    index.apply(slice("10.0.0.5", "node2", None));
    reporting.worked_out(None, &index, &node());
    assert_eq!(count(), [1, 0]);
    index.apply(slice("10.0.0.5", "node1", None));
    reporting.worked_out(Some(&[name()]), &index, &node());
    assert_eq!(count(), [0, 0]);
    index.apply(slice("10.0.0.5", "node2", None));
    reporting.worked_out(Some(&[name()]), &index, &node());
    reporting.worked_out(Some(&[name()]), &index, &node());
    assert_eq!(count(), [1, 0]);
    reporting.worked_out(None, &index, &node());
    assert_eq!(count(), [1, 0]);
    index.apply(Change::Service(name(), None));
    reporting.worked_out(Some(&[name()]), &index, &node());
    assert_eq!(count(), [0, 0]);
}

#[test]
fn load_balancers_are_sent_elsewhere_while_a_service_is_set_aside() {
    let mut reporting = reporting();
    let mut index = Index::new("node1");
    let ready = |reporting: &Reporting| {
        let check = reporting.locals[&name()].health_check.unwrap();
        (check.port.get(), check.endpoints)
    };
    index.apply(service(TrafficPolicy::Local));
    index.apply(slice("10.0.0.5", "node1", None));
    index.hold(&name());
    reporting.worked_out(None, &index, &node());
    assert_eq!(ready(&reporting), (32000, [Some(0), None]), "the port is open and says 503");
    index.release(&name());
    reporting.worked_out(Some(&[name()]), &index, &node());
    assert_eq!(ready(&reporting), (32000, [Some(1), None]));
}
