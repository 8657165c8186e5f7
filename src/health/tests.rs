use http_body_util::BodyExt;
use serde_json::Value;

use super::*;
use crate::cluster::Interner;
use crate::source::{convert, objects};

async fn taken(response: Response) -> (u16, String) {
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, String::from_utf8(bytes.to_vec()).unwrap())
}

fn at(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(second)
}

fn codes(status: &Status, now: Instant) -> (u16, u16, bool) {
    let time = at(100);
    (
        status.healthz(now, time).status().as_u16(),
        status.livez(now, time).status().as_u16(),
        status.in_time(now),
    )
}

#[test]
fn a_change_that_waits_too_long_is_unhealthy() {
    let (status, start) = (Status::default(), Instant::now());
    status.queued(start);
    assert_eq!(codes(&status, start + HEALTH_TIMEOUT * 9), (200, 200, true), "not everything is listed");
    status.listed(start);
    assert_eq!(codes(&status, start + HEALTH_TIMEOUT), (503, 503, false), "the first rules are waited for");
    status.synced(at(40));
    assert_eq!(codes(&status, start + HEALTH_TIMEOUT * 9), (200, 200, true), "nothing came since");
    status.queued(start);
    // A later change does not make the first one younger.
    status.queued(start + HEALTH_TIMEOUT / 2);
    let late = start + HEALTH_TIMEOUT;
    assert_eq!(codes(&status, late - Duration::from_millis(1)), (200, 200, true));
    assert_eq!(codes(&status, late), (503, 503, false));
    status.synced(at(50));
    assert_eq!(codes(&status, late + HEALTH_TIMEOUT), (200, 200, true));
}

#[test]
fn a_failure_shows_at_once_in_healthz_and_late_in_livez() {
    let (status, start) = (Status::default(), Instant::now());
    status.synced(at(50));
    status.sync_failed(start);
    assert_eq!(codes(&status, start), (503, 200, true));
    assert_eq!(codes(&status, start + HEALTH_TIMEOUT), (503, 503, false));
    status.synced(at(51));
    assert_eq!(codes(&status, start), (200, 200, true));
    status.checked(false);
    assert_eq!(codes(&status, start), (503, 200, true));
    status.checked(true);
    assert_eq!(codes(&status, start), (200, 200, true));
}

#[test]
fn a_node_that_leaves_is_not_eligible() {
    let (status, now) = (Status::default(), Instant::now());
    let node = |deleting| Node { deleting, ..Node::default() };
    status.set_node(None);
    assert_eq!(codes(&status, now), (200, 200, true), "there may be no Node");
    status.set_node(Some(&node(false)));
    assert_eq!(codes(&status, now), (200, 200, true));
    status.set_node(Some(&node(true)));
    assert_eq!(codes(&status, now), (503, 200, true));
    status.set_node(Some(&node(false)));
    assert_eq!(codes(&status, now), (200, 200, true));
    status.set_node(None);
    assert_eq!(codes(&status, now), (503, 200, true), "it was there");
}

#[tokio::test]
async fn bodies_are_kube_proxys() {
    let (status, now) = (Status::default(), Instant::now());
    let (_, body) = taken(status.healthz(now, at(100))).await;
    assert_eq!(
        body,
        r#"{"lastUpdated":"1970-01-01T00:01:40.000000000Z","currentTime":"1970-01-01T00:01:40.000000000Z","nodeEligible":true,"healthy":true}"#
    );
    status.synced(at(50));
    status.sync_failed(now);
    let (code, body) = taken(status.healthz(now, at(100))).await;
    assert_eq!(code, 503);
    assert_eq!(
        body,
        concat!(
            r#"{"lastUpdated":"1970-01-01T00:00:50.000000000Z","currentTime":"1970-01-01T00:01:40.000000000Z","nodeEligible":true,"healthy":false,"#,
            r#""status":{"IPv4":{"lastUpdated":"1970-01-01T00:00:50.000000000Z","healthy":false},"IPv6":{"lastUpdated":"1970-01-01T00:00:50.000000000Z","healthy":false}}}"#
        )
    );
    let response = status.livez(now, at(100));
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    let body: Value = serde_json::from_str(&taken(response).await.1).unwrap();
    assert_eq!(body.get("nodeEligible"), None);
}

#[tokio::test]
async fn readyz_lists_what_is_pending() {
    let status = Status::default();
    let (code, body) = taken(status.readyz()).await;
    assert_eq!(code, 503);
    assert_eq!(
        body,
        "[-] services listed\n[-] endpointslices listed\n[-] node known\n[-] first sync done\nnot ready\n"
    );
    status.listed(Instant::now());
    status.sync_failed(Instant::now());
    let (code, body) = taken(status.readyz()).await;
    assert_eq!(code, 503);
    assert!(body.contains("[+] services listed\n") && body.contains("[-] first sync done\n"), "{body}");
    status.synced(at(1));
    assert_eq!(taken(status.readyz()).await.0, 200);
    status.sync_failed(Instant::now());
    assert_eq!(taken(status.readyz()).await.0, 200, "ready once, ready for good");
}

#[test]
fn deletion_and_the_autoscalers_taint_are_read_from_the_node() {
    let deleting = |json: &str| {
        let object: objects::Node = serde_json::from_str(json).unwrap();
        match convert::node(&object, &mut Interner::default()) {
            convert::Outcome::Value(node, warnings) if warnings.is_empty() => node.deleting,
            other => panic!("{other:?}"),
        }
    };
    assert!(!deleting(r#"{"metadata": {"name": "n"}, "spec": {"unschedulable": true, "taints": null}}"#));
    assert!(!deleting(
        r#"{"metadata": {"name": "n"}, "spec": {"taints": [{"key": "other", "value": "x"}]}}"#
    ));
    let taint = r#"{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}"#;
    assert!(deleting(&format!(r#"{{"metadata": {{"name": "n"}}, "spec": {{"taints": [{taint}]}}}}"#)));
    assert!(deleting(r#"{"metadata": {"name": "n", "deletionTimestamp": "2024-01-01T00:00:00Z"}}"#));
}
