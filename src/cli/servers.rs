//! Flags of the agent's HTTP servers, and their start.

use std::sync::Arc;

use clap::Args;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::warn;

use crate::config::bind_address;
use crate::health::servers;
use crate::http::{Route, Server};
use crate::reporting::Reporting;

/// Connections at a time to each of the two servers.
const CONNECTIONS: usize = 128;

/// Where health and metrics are served; names and defaults are kube-proxy's.
#[derive(Debug, Args)]
pub struct Servers {
    /// Address and port of /healthz, /livez and /readyz; port 10256 where none is given; 0.0.0.0 and [::] mean all
    /// addresses of both families; empty: none.
    #[arg(long, value_name = "ADDRESS[:PORT]", default_value = "0.0.0.0:10256")]
    healthz_bind_address: String,
    /// Deprecated: port for a --healthz-bind-address without one; 0: none.
    #[arg(long, value_name = "PORT", hide = true)]
    healthz_port: Option<u16>,
    /// Address and port of /metrics and /proxyMode; port 10249 where none is given; empty: none.
    #[arg(long, value_name = "ADDRESS[:PORT]", default_value = "127.0.0.1:10249")]
    metrics_bind_address: String,
    /// Deprecated: port for a --metrics-bind-address without one; 0: none.
    #[arg(long, value_name = "PORT", hide = true)]
    metrics_port: Option<u16>,
    /// End when one of these addresses cannot be had, instead of trying again every 5 seconds.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", hide_default_value = true, action = clap::ArgAction::Set)]
    bind_address_hard_fail: bool,
}

impl Servers {
    /// Starts the servers. They end when the result is dropped.
    pub fn start(&self, reporting: &Reporting, proxy_mode: &'static str) -> anyhow::Result<JoinSet<()>> {
        let (status, metrics) = (reporting.status.clone(), reporting.metrics.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(reporting.service_checks.clone().serve(status.clone()));
        let servers: [(&str, &str, Option<u16>, u16, Route); 2] = [
            (
                "--healthz-bind-address",
                &self.healthz_bind_address,
                self.healthz_port,
                10256,
                servers::health(status, metrics.clone()),
            ),
            (
                "--metrics-bind-address",
                &self.metrics_bind_address,
                self.metrics_port,
                10249,
                servers::metrics(metrics, proxy_mode),
            ),
        ];
        for (flag, text, port, default_port, route) in servers {
            if port.is_some() {
                let old = flag.replace("bind-address", "port");
                warn!("{old} is deprecated; give the port with {flag}");
            }
            let Some(address) = bind_address(flag, text, port.unwrap_or(default_port))? else { continue };
            let connections = Arc::new(Semaphore::new(CONNECTIONS));
            if self.bind_address_hard_fail {
                let server = Server::bind(flag, address, connections, route)?;
                tasks.spawn(keep(server));
            } else {
                tasks.spawn(async move {
                    keep(Server::bind_when_free(flag, address, connections, route).await).await;
                });
            }
        }
        Ok(tasks)
    }
}

/// Serves until the task is dropped.
async fn keep(_server: Server) {
    std::future::pending().await
}
