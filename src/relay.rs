//! NodePorts on 127.0.0.1 and [::1]: a small TCP relay.
//!
//! Rules could serve them only with `route_localnet`, which opens the host's loopback-only daemons to its neighbours
//! (CVE-2020-8558). So the agent listens there itself, for packets that come in through `lo` and nothing else, and
//! connects to an endpoint that it chooses as the rules do for this node: from all endpoints, whatever
//! externalTrafficPolicy says, each with the same share, or with session affinity the one of last time. A port is open as
//! long as its Service has endpoints, so that connections are refused where the rules would refuse them.
//!
//! Connections, once made, live as long as both sides want and the agent runs: not shorter since a Service or endpoint
//! went, as with rules, but the end of the agent is theirs. There is no limit of idleness; TCP keepalive finds out who
//! is gone.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use prometheus::IntGauge;
use rustc_hash::FxHashMap;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use crate::cluster::{Family, ObjectName};
use crate::forwarding::{Key, Target};
use crate::listen::{self, Listening, Ports, Told};
use crate::metrics::Metrics;

/// Connections at a time, over all ports. Each takes two sockets and 16 KiB; more wait to be accepted.
const CONNECTIONS: usize = 2048;
/// After this time an endpoint that does not answer counts as dead.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent peer is asked after so many seconds whether it is still there, then so often, so many times.
const KEEPALIVE: (u32, u32, u32) = (60, 10, 6);
/// Only what comes in through it is from this host.
const LOOPBACK: &str = "lo";

/// The NodePorts that are relayed: told by the reconcile loop, read when a connection comes.
#[derive(Debug)]
pub struct Relay {
    state: Mutex<State>,
    changed: Notify,
    connections: Arc<Semaphore>,
    /// How many there may be.
    limit: usize,
    /// The warning that there are too many is out. It is due again once half of them have ended.
    crowded: AtomicBool,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct State {
    backends: FxHashMap<SocketAddr, Backend>,
    /// Where the client, which is this host, went before: by affinity id the endpoint, and until when that counts.
    sticky: FxHashMap<u32, (SocketAddr, Instant)>,
}

/// What is behind a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The Service.
    pub service: ObjectName,
    /// Its endpoints as this node sees them.
    pub target: Target,
}

impl Backend {
    fn has_endpoints(&self) -> bool {
        self.target.endpoints().next().is_some()
    }
}

impl Relay {
    /// One that knows of no port yet.
    pub fn new(metrics: Arc<Metrics>) -> Relay {
        Relay::with_limit(metrics, CONNECTIONS)
    }

    /// One that has so many connections at a time.
    fn with_limit(metrics: Arc<Metrics>, limit: usize) -> Relay {
        Relay {
            state: Mutex::default(),
            changed: Notify::new(),
            connections: Arc::new(Semaphore::new(limit)),
            limit,
            crowded: AtomicBool::new(false),
            metrics,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and each state by itself makes sense.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what changed; `None`: there is no such NodePort (any more). With `all` these are the only ones there are.
    pub fn update(&self, changes: impl IntoIterator<Item = (Key, Option<Backend>)>, all: bool) {
        let mut state = self.state();
        if all {
            state.backends.clear();
        }
        for (key, backend) in changes {
            let address = SocketAddr::new(key.address, key.port);
            match backend {
                Some(backend) => state.backends.insert(address, backend),
                None => state.backends.remove(&address),
            };
        }
        drop(state);
        self.changed.notify_one();
    }

    fn ports(&self) -> BTreeSet<SocketAddr> {
        let state = self.state();
        state.backends.iter().filter(|(_, backend)| backend.has_endpoints()).map(|(port, _)| *port).collect()
    }

    /// Where a connection goes; `None` where the last endpoint has just gone.
    fn choose(&self, port: SocketAddr, random: u64) -> Option<SocketAddr> {
        let now = Instant::now();
        let State { backends, sticky: remembered } = &mut *self.state();
        let target = &backends.get(&port)?.target;
        let endpoints: Vec<SocketAddr> = target.endpoints().map(|(_, endpoint)| endpoint).collect();
        let any = || endpoints.get(usize::try_from(random % endpoints.len().max(1) as u64).ok()?).copied();
        let Some(sticky) = target.sticky() else { return any() };
        remembered.retain(|_, (_, until)| *until > now);
        let before = remembered.get(&sticky.id).map(|(endpoint, _)| *endpoint);
        let endpoint = before.filter(|before| endpoints.contains(before)).or_else(any)?;
        remembered.insert(sticky.id, (endpoint, now + Duration::from_secs(sticky.timeout.into())));
        Some(endpoint)
    }

    /// Keeps the ports open that Services ask for; ends never.
    pub async fn serve(self: Arc<Self>) {
        let mut ports: Ports<SocketAddr> = Ports::default();
        loop {
            let bind = |port: &SocketAddr| {
                let relay = self.clone();
                let port = *port;
                Listening::bind(&self.what(port), port, Some(LOOPBACK), |listener| {
                    relay.accept(listener, port)
                })
            };
            let tell = |port: &SocketAddr, told: Told<'_>| match told {
                Told::Opened { late: false } => debug!("{} is open", self.what(*port)),
                Told::Opened { late: true } => info!("{} is served now", self.what(*port)),
                Told::Closed => debug!(%port, "NodePort on a loopback address closed"),
                Told::Failed(error) => {
                    self.metrics.relay_failures[Family::of(port.ip()) as usize].inc();
                    warn!("{error}; this host does not reach the Service there; trying again")
                }
            };
            ports.set(self.ports(), bind, tell).await;
            for family in Family::ALL {
                let open = ports.open().filter(|port| Family::of(port.ip()) == family).count();
                self.metrics.relay_listeners[family as usize].set(open as i64);
            }
            tokio::select! {
                () = self.changed.notified() => {}
                () = ports.retry() => {}
            }
        }
    }

    /// A port in words.
    fn what(&self, port: SocketAddr) -> String {
        let service = self.state().backends.get(&port).map(|backend| backend.service.to_string());
        format!("NodePort {} of Service {} on loopback", port.port(), service.unwrap_or_default())
    }

    /// Takes connections until the port is closed; those that there are go on after that.
    async fn accept(self: Arc<Self>, listener: TcpListener, port: SocketAddr) {
        let random = RandomState::new();
        for number in 0u64.. {
            let client = listen::accept(&listener).await;
            let Some(permit) = self.permit().await else { return };
            let endpoint = self.choose(port, random.hash_one(number));
            tokio::spawn(async move {
                if let Err(error) = relay(client, endpoint).await {
                    debug!(%port, ?endpoint, %error, "relayed connection");
                }
                drop(permit);
            });
        }
    }

    /// Room for one more connection, as soon as there is some.
    async fn permit(&self) -> Option<Permit> {
        let permit = match self.connections.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                self.metrics.relay_delayed.inc();
                if !self.crowded.swap(true, Ordering::Relaxed) {
                    warn!(
                        "NodePorts on loopback have {} connections, the most there may be; more wait until one of them \
                         ends. Where programs of this host need so many, let them use the ClusterIP or a NodePort on \
                         the node's address",
                        self.limit
                    );
                }
                self.connections.clone().acquire_owned().await.ok()?
            }
        };
        if self.connections.available_permits() >= self.limit / 2 {
            self.crowded.store(false, Ordering::Relaxed);
        }
        self.metrics.relay_connections.inc();
        Some(Permit { _permit: permit, open: self.metrics.relay_connections.clone() })
    }
}

/// A connection's place among those that there may be.
struct Permit {
    _permit: OwnedSemaphorePermit,
    open: IntGauge,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// Copies both ways until both are closed. What ends otherwise, and what cannot be connected, ends with a reset.
async fn relay(mut client: TcpStream, endpoint: Option<SocketAddr>) -> std::io::Result<()> {
    let result = async {
        let endpoint = endpoint.ok_or(std::io::ErrorKind::ConnectionRefused)?;
        let mut server = timeout(CONNECT_TIMEOUT, TcpStream::connect(endpoint)).await??;
        for stream in [&client, &server] {
            let (idle, interval, count) = KEEPALIVE;
            setsockopt(stream, sockopt::KeepAlive, &true)?;
            setsockopt(stream, sockopt::TcpKeepIdle, &idle)?;
            setsockopt(stream, sockopt::TcpKeepInterval, &interval)?;
            setsockopt(stream, sockopt::TcpKeepCount, &count)?;
            stream.set_nodelay(true)?;
        }
        copy_bidirectional(&mut client, &mut server).await.inspect_err(|_| {
            let _ = server.set_zero_linger();
        })
    };
    let result = result.await;
    if result.is_err() {
        let _ = client.set_zero_linger();
    }
    result.map(|_| ())
}

#[cfg(test)]
mod tests;
