//! The rights of the ClusterRole that is deployed: enough for all that the program asks of an API server, and no more.

use std::time::Duration;

use serde_json::Value;
use sluice::source::kubernetes::Timing;

use crate::agent::timing;
use crate::apiserver::{Authorizer, Refusal, recorded};
use crate::event_records::{about, recording};
use crate::process::{call, start, with_server};

/// The ClusterRole of deploy/manifests; that the chart renders the same is another test's.
fn deployed() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/manifests/rbac.yaml");
    let text = std::fs::read_to_string(path).expect("the manifest");
    let mut objects = text.split("\n---\n").map(|text| serde_saphyr::from_str::<Value>(text).expect("YAML"));
    objects.find(|object| object["kind"] == "ClusterRole").expect("a ClusterRole")
}

#[test]
fn no_request_is_refused_and_every_right_is_used() {
    let (_runtime, mut lab, server) = with_server();
    let authorizer = Authorizer::new(&deployed());
    assert_eq!(authorizer.granted.len(), 10, "{authorizer:?}");
    server.faults().authorizer = Some(authorizer);
    // With a server that sends lists as watch events nothing would be listed.
    server.faults().no_streaming = Some(Refusal::new(422, recorded("sendinitialevents-refused.json")));
    start(&mut lab, &server);
    lab.ready();
    lab.until("the event of the start", || !server.events().is_empty());
    for command in [&["dump"][..], &["diff"], &["explain", "10.96.0.7:80"]] {
        assert_eq!(call(&lab, command).0, Some(0), "{command:?}");
    }
    let (_, found, said) = call(&lab, &["check"]);
    assert!(!found.contains("api-server: "), "{found}{said}");

    // An event that comes again after a minute is patched; here after less.
    lab.enter(|| {
        let alone = tokio::runtime::Builder::new_current_thread().enable_all().build();
        alone.expect("a runtime").block_on(async {
            let timing = Timing { event_series: Duration::from_millis(50), ..timing() };
            let (mut agent, events, _) = recording(&server, timing).await;
            let before = server.event_writes();
            events.send(about(1));
            agent.until("the event", |_| server.event_writes() > before).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            events.send(about(1));
            agent.until("a series", |_| server.event_writes() > before + 1).await;
        });
    });
    let authorizer = server.faults().authorizer.clone().expect("it was set");
    assert_eq!(authorizer.refused, Vec::<String>::new());
    let unused: Vec<_> = authorizer.granted.difference(&authorizer.used).collect();
    assert!(unused.is_empty(), "no need of {unused:?}");

    // And it would be seen if one was missing.
    let mut less = deployed();
    less["rules"].as_array_mut().expect("rules").pop();
    server.faults().authorizer = Some(Authorizer::new(&less));
    lab.stop();
    start(&mut lab, &server);
    let refused = || server.faults().authorizer.as_ref().map_or(0, |authorizer| authorizer.refused.len());
    lab.until("the refusal", || refused() > 0);
}
