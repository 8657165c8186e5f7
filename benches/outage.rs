//! How long until the agent notices that the API server is gone, and that it is back, with the times that are the
//! defaults: `cargo bench --bench outage -- [SECONDS]`, the length of the outage (600). Nothing here is busy: the
//! times are those of timers.

#[path = "../tests/kubernetes/agent.rs"]
#[allow(dead_code)]
mod agent;
#[path = "../tests/apiserver/server.rs"]
#[allow(dead_code, unused_imports)]
mod apiserver;

use std::time::{Duration, Instant};

use agent::{Agent, NODE, kubeconfig, node, service, slice};
use apiserver::{ApiServer, Kind};
use sluice::source::kubernetes::{Connection, Kubernetes, Timing};

async fn start(server: &ApiServer) -> Agent {
    server.apply(Kind::Nodes, node(NODE, "198.18.0.11"));
    server.apply(Kind::Services, service("web", "10.96.0.1", 80));
    server.apply(Kind::EndpointSlices, slice("web-abc", "web", ["10.128.0.1".to_owned()]));
    let timing = Timing::default();
    let connection = Connection::open(Some(&kubeconfig(server)), None, &timing).await.expect("a kubeconfig");
    let mut agent = Agent::of(Kubernetes::new(connection, NODE, timing));
    agent.converged(server, "at the start").await;
    agent
}

/// From a write during silence until the agent has it.
async fn silence(http2: bool) -> Duration {
    let server = ApiServer::tls(http2).await;
    let mut agent = start(&server).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    server.go_silent();
    let start = Instant::now();
    server.apply(Kind::Services, service("web", "10.96.0.1", 81));
    agent.converged(&server, "after silence").await;
    start.elapsed()
}

/// From the server's return until the agent has what was written meanwhile.
async fn outage(lasts: Duration) -> Duration {
    let mut server = ApiServer::tls(true).await;
    let mut agent = start(&server).await;
    server.go_down().await;
    server.apply(Kind::Services, service("web", "10.96.0.1", 81));
    tokio::time::sleep(lasts).await;
    server.come_up();
    let start = Instant::now();
    agent.converged(&server, "after the outage").await;
    start.elapsed()
}

#[tokio::main]
async fn main() {
    let seconds = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(600);
    let outage = tokio::spawn(outage(Duration::from_secs(seconds)));
    let (h2, h1) = tokio::join!(silence(true), silence(false));
    println!("a connection that is dead but silent is replaced: HTTP/2 {h2:.1?}, HTTP/1.1 {h1:.1?}");
    let back = outage.await.expect("no panic");
    println!("after an outage of {seconds} s a change made meanwhile is there in {back:.1?}");
}
