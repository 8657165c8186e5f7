//! Health check ports: where load balancers ask whether a Service with `externalTrafficPolicy: Local` has
//! endpoints on this node. Ports, bodies and headers are kube-proxy's (`pkg/proxy/healthcheck/service_health.go`
//! of Kubernetes 1.34).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hyper::StatusCode;
use hyper::header::HeaderName;
use prometheus::IntGauge;
use rustc_hash::FxHashMap;
use serde::Serialize;
use tokio::sync::{Notify, Semaphore};
use tracing::{debug, info, warn};

use super::Status;
use crate::cluster::{Family, ObjectName};
use crate::events::{Event, Events, reasons};
use crate::forwarding::HealthCheck;
use crate::http::{self, Response, Route};
use crate::listen::{Ports, Told};

/// Connections at a time, over all health check ports.
const CONNECTIONS: usize = 512;
/// By this header some load balancers give a node its share.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The health checks of all Services: kept up to date by the reconcile loop, read by the servers.
#[derive(Debug, Default)]
pub struct ServiceChecks {
    state: Mutex<State>,
    /// Told when ports or addresses change; numbers of endpoints are read with each request.
    ports_changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    checks: FxHashMap<ObjectName, HealthCheck>,
    /// The node's addresses for NodePorts.
    addresses: Vec<IpAddr>,
    /// The uid of each Service, for events.
    uids: FxHashMap<ObjectName, Arc<str>>,
}

/// A listener: for which Service, on which address.
type Port = (ObjectName, SocketAddr);

impl ServiceChecks {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and each state by itself makes sense.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what changed; `None`: the Service has no health check (any more).
    pub fn update(&self, changes: impl IntoIterator<Item = (ObjectName, Option<HealthCheck>)>) {
        let mut state = self.state();
        let mut changed = false;
        for (name, check) in changes {
            let after = check.map(listens);
            let before = match check {
                Some(check) => state.checks.insert(name, check),
                None => {
                    state.uids.remove(&name);
                    state.checks.remove(&name)
                }
            };
            changed |= before.map(listens) != after;
        }
        if changed {
            self.ports_changed.notify_one();
        }
    }

    /// All checks, and the addresses that they are served on.
    pub fn replace(&self, checks: FxHashMap<ObjectName, HealthCheck>, addresses: &[IpAddr]) {
        let mut state = self.state();
        state.uids.retain(|name, _| checks.contains_key(name));
        (state.checks, state.addresses) = (checks, addresses.to_vec());
        drop(state);
        self.ports_changed.notify_one();
    }

    /// By what events name a Service; to be told before its health check.
    pub fn identify(&self, name: &ObjectName, uid: &Arc<str>) {
        self.state().uids.insert(name.clone(), uid.clone());
    }

    /// What should be listened on.
    fn ports(&self) -> BTreeSet<Port> {
        let state = self.state();
        let mut ports = BTreeSet::new();
        for (name, check) in &state.checks {
            let has = |a: &&IpAddr| check.endpoints[Family::of(**a) as usize].is_some();
            for address in state.addresses.iter().filter(has) {
                ports.insert((name.clone(), SocketAddr::new(*address, check.port.get())));
            }
        }
        ports
    }

    /// The answer to a load balancer.
    fn response(&self, name: &ObjectName, family: Family, healthy: bool) -> Response {
        let check = self.state().checks.get(name).copied();
        let endpoints = check.and_then(|c| c.endpoints[family as usize]).unwrap_or(0);
        let body = Body {
            service: BodyName { namespace: &name.namespace, name: &name.name },
            local_endpoints: endpoints,
            service_proxy_healthy: healthy,
        };
        let status = match endpoints {
            1.. if healthy => StatusCode::OK,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        // Strings and numbers always can be written.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        http::with_header(http::json(status, body), WEIGHT, endpoints as u64)
    }

    /// Keeps the ports open that Services ask for, and counts in `missing` those that cannot be had; ends never.
    pub async fn serve(self: Arc<Self>, status: Arc<Status>, events: Events, missing: IntGauge) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS));
        let what = |(name, address): &Port| format!("health check port {} of Service {name}", address.port());
        let mut ports = Ports::default();
        loop {
            let bind = |port: &Port| {
                let (name, address) = port;
                let route = self.clone().route(name.clone(), Family::of(address.ip()), status.clone());
                http::bind(&what(port), *address, connections.clone(), route)
            };
            let tell = |port: &Port, told: Told<'_>| {
                let (service, address) = port;
                match told {
                    Told::Opened { late: false } => {}
                    Told::Opened { late: true } => info!(%service, %address, "{} is served now", what(port)),
                    Told::Closed => debug!(%service, %address, "health check port closed"),
                    Told::Failed(error) => {
                        let uid = self.state().uids.get(service).cloned().unwrap_or_default();
                        let reason = reasons::HEALTH_CHECK_PORT;
                        let note = format!("{error}; load balancers do not send traffic to this node");
                        events.send(Event::warning(service, &uid, reason, note));
                        warn!("{error}; load balancers do not send traffic here; trying again")
                    }
                }
            };
            ports.set(self.ports(), bind, tell).await;
            missing.set(ports.missing() as i64);
            tokio::select! {
                () = self.ports_changed.notified() => {}
                () = ports.retry() => {}
            }
        }
    }

    fn route(self: Arc<Self>, name: ObjectName, family: Family, status: Arc<Status>) -> Route {
        Arc::new(move |_| self.response(&name, family, status.in_time(Instant::now())))
    }
}

/// What decides about listeners.
fn listens(check: HealthCheck) -> (u16, [bool; 2]) {
    (check.port.get(), check.endpoints.map(|e| e.is_some()))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: BodyName<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct BodyName<'a> {
    namespace: &'a str,
    name: &'a str,
}

#[cfg(test)]
mod tests;
