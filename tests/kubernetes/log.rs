//! What an operator gets to read.

use std::io;
use std::sync::{Arc, Mutex};

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

use crate::agent::{Agent, service};
use crate::apiserver::{ApiServer, Kind, Refusal, recorded};
use crate::lab::Lab;
use crate::{change, populate};

/// The log of this thread; the runtime of these tests has no other.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic before").extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

impl Log {
    pub fn start() -> (Log, DefaultGuard) {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(log.clone())
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    pub fn lines(&self, part: &str) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.0.lock().expect("no panic before")).into_owned();
        text.lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn an_outage_is_one_line_and_its_end_another() {
    let (log, _guard) = Log::start();
    let mut server = ApiServer::tls(true).await;
    populate(&server);
    let mut agent = Agent::start(&server).await;
    agent.converged(&server, "at the start").await;
    server.go_down().await;
    agent.until("many tries", |a| a.restarts().values().all(|n| *n > 6)).await;
    assert_eq!(log.lines("does not serve").len(), 1, "{:?}", log.lines(""));
    assert!(log.lines("does not serve")[0].contains("check that the API server runs"));
    assert!(log.lines("serves again").is_empty());
    server.come_up();
    change(&server, 1);
    agent.converged(&server, "after the outage").await;
    agent.until("the end is told", |_| !log.lines("serves again").is_empty()).await;
    assert_eq!((log.lines("serves again").len(), log.lines(" WARN ").len()), (1, 1), "{:?}", log.lines(""));
    assert!(log.lines(" ERROR ").is_empty());
}

#[tokio::test]
async fn a_missing_rule_is_named() {
    let (log, _guard) = Log::start();
    let server = ApiServer::tls(true).await;
    populate(&server);
    server.faults().always.insert(Kind::EndpointSlices, Refusal::new(403, recorded("forbidden.json")));
    let mut agent = Agent::start(&server).await;
    agent.until("many tries", |a| a.restarts()["endpointslices"] > 5).await;
    let lines = log.lines("cannot list and watch endpointslices");
    let rule =
        r#"{apiGroups: ["discovery.k8s.io"], resources: ["endpointslices"], verbs: ["list", "watch"]}"#;
    assert!(lines.len() == 1 && lines[0].contains(rule), "{lines:?}");
    server.faults().always.clear();
    agent.converged(&server, "with the rule").await;
    assert_eq!(log.lines("endpointslices can be listed and watched again").len(), 1);
}

/// In a network namespace with such an address, and without rules: they would close the way to the server.
#[test]
fn an_api_server_behind_our_own_address_is_pointed_out() {
    const ADDRESS: &str = "10.96.0.1";
    let lab = Lab::bare();
    lab.sh(&format!("ip address add {ADDRESS}/32 dev lo"));
    let body = async {
        let (log, _guard) = Log::start();
        let server = ApiServer::plain_at(ADDRESS.parse().expect("an address")).await;
        populate(&server);
        server.apply(Kind::Services, service("kubernetes", ADDRESS, 443));
        let mut agent = Agent::start(&server).await;
        agent.converged(&server, "at the start").await;
        server.apply(Kind::Services, service("kubernetes", ADDRESS, 444));
        agent.converged(&server, "after a change").await;
        let lines = log.lines("the ClusterIP of Service demo/kubernetes");
        assert!(lines.len() == 1 && lines[0].contains("--master"), "{lines:?}");
    };
    lab.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(body);
    });
}

#[tokio::test]
async fn a_bad_object_is_named_once() {
    let (log, _guard) = Log::start();
    let mut server = ApiServer::tls(true).await;
    let mut bad = service("bad", "10.96.0.77", 80);
    bad["spec"]["ports"] = serde_json::json!([{"port": 70000}]);
    server.apply(Kind::Services, bad);
    populate(&server);
    let mut agent = Agent::start(&server).await;
    agent.converged(&server, "at the start").await;
    server.go_down().await;
    server.store(|store| store.compact());
    server.come_up();
    agent.until("a second list", |a| a.lists()["services"] == 2).await;
    let lines = log.lines("Service demo/bad is left out: spec.ports[0].port: 70000");
    assert_eq!(lines.len(), 1, "{:?}", log.lines(""));
}
