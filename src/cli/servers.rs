//! The agent's HTTP servers.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::config::Servers;
use crate::events::{Event, Type, reasons};
use crate::health::servers;
use crate::http::{self, Route};
use crate::listen::{BindError, Listening};
use crate::reporting::Reporting;

/// Connections at a time to each of the two servers.
const CONNECTIONS: usize = 128;

/// Starts the servers. They end when the result is dropped.
pub fn start(
    config: &Servers,
    reporting: &Reporting,
    proxy_mode: &'static str,
    configz: String,
) -> anyhow::Result<JoinSet<()>> {
    let (status, metrics) = (reporting.status.clone(), reporting.metrics.clone());
    let mut tasks = JoinSet::new();
    let missing = reporting.metrics.health_check_ports_missing.clone();
    tasks.spawn(reporting.service_checks.clone().serve(status.clone(), reporting.events.clone(), missing));
    let servers: [(&str, _, Route, _); 2] = [
        (
            "--healthz-bind-address",
            config.healthz,
            servers::health(status, metrics.clone()),
            reasons::HEALTHZ_SERVER,
        ),
        (
            "--metrics-bind-address",
            config.metrics,
            servers::metrics(metrics, proxy_mode, configz),
            reasons::METRICS_SERVER,
        ),
    ];
    for (flag, address, route, reason) in servers {
        let Some(address) = address else { continue };
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        if config.bind_hard_fail {
            let server = http::bind(flag, address, connections, route)?;
            tasks.spawn(keep(server));
        } else {
            let events = reporting.events.clone();
            let failed = move |error: &BindError| {
                events.send(Event::node(Type::Warning, reason, error.to_string()));
            };
            tasks.spawn(async move {
                keep(http::bind_when_free(flag, address, connections, route, failed).await).await;
            });
        }
    }
    Ok(tasks)
}

/// Serves until the task is dropped.
async fn keep(_server: Listening) {
    std::future::pending().await
}
