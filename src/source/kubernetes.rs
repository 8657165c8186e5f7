//! An API server as a source: Services, EndpointSlices, the own Node and ServiceCIDRs are listed and watched.
//!
//! Each resource has a task of its own, so that a long list of one holds up none of the others. Lists come as watch
//! events where the server offers that (KEP-3157), else page by page.
//!
//! A connection that is dead but silent is noticed within a minute: HTTP/2 pings are answered by the API server itself; where
//! only HTTP/1.1 is spoken, watches are asked for with an end that comes sooner.

mod connection;
mod error;
mod outage;
mod recorder;
mod reflector;
mod request;
mod resource;
mod status;

use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, error, info};

pub use connection::Connection;
pub use error::{ConnectionError, Error};
pub use status::ApiStatus;

use super::Batch;
use crate::cluster::{Change, Interner};
use crate::events::{Event, Events};
use outage::Outages;
use recorder::Recorder;
use reflector::{Reflector, Shared, spread};
use request::Page;
use resource::Resource;

/// Objects in a page of a list.
const PAGE: usize = 500;

/// How long to wait for what.
#[derive(Clone, Debug)]
pub struct Timing {
    /// For a TCP connection.
    pub connect: Duration,
    /// For the head of an answer, and for the next bytes of a list.
    pub answer: Duration,
    /// Between pings (HTTP/2) or keepalive probes (TCP), and for their answer.
    pub ping: Duration,
    /// The least time that a watch lasts where there are pings; the most is twice that.
    pub watch: Duration,
    /// The least time that a watch lasts where there are none; the most is a quarter more.
    pub watch_blind: Duration,
    /// By how much a watch may overrun before its connection counts as dead.
    pub slack: Duration,
    /// Before the first retry; doubled after each failure.
    pub retry: Duration,
    /// The longest time between retries where nobody answers.
    pub retry_unanswered: Duration,
    /// The longest time between retries where the server refuses.
    pub retry_most: Duration,
    /// Before a resource that the server does not know is asked for again; at most twice that.
    pub absent: Duration,
    /// The least time between two writes of the same event.
    pub event_series: Duration,
    /// Before an event is sent again that nobody answered.
    pub event_retry: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            ping: Duration::from_secs(15),
            // As client-go: long enough that thousands of nodes are no load.
            watch: Duration::from_secs(300),
            watch_blind: Duration::from_secs(40),
            slack: Duration::from_secs(5),
            retry: Duration::from_millis(500),
            retry_unanswered: Duration::from_secs(4),
            retry_most: Duration::from_secs(30),
            absent: Duration::from_secs(600),
            event_series: Duration::from_secs(60),
            event_retry: Duration::from_secs(10),
        }
    }
}

impl Timing {
    /// How long the next watch is to last.
    fn lasts(&self, pings: bool) -> Duration {
        match pings {
            true => spread(self.watch, self.watch * 2),
            false => spread(self.watch_blind, self.watch_blind * 5 / 4),
        }
    }
}

/// The objects of an API server.
pub struct Kubernetes {
    connection: Connection,
    node: Arc<str>,
    timing: Timing,
    status: Arc<ApiStatus>,
    events: Events,
    recording: Option<(mpsc::Receiver<Event>, IntCounterVec)>,
}

impl Kubernetes {
    /// Asks nothing yet. `node` is the name of the own Node.
    pub fn new(connection: Connection, node: &str, timing: Timing) -> Kubernetes {
        Kubernetes {
            connection,
            node: node.into(),
            timing,
            status: Arc::default(),
            events: Events::default(),
            recording: None,
        }
    }

    /// What comes through this queue is written, and counted; what is left out of Services goes into it, too.
    pub fn recording(
        mut self,
        events: Events,
        queue: mpsc::Receiver<Event>,
        counter: IntCounterVec,
    ) -> Kubernetes {
        self.events = events;
        self.recording = Some((queue, counter));
        self
    }

    /// Objects that are left out because they make no sense are counted here, too.
    pub fn counting(mut self, invalid: IntCounter) -> Kubernetes {
        self.status = Arc::new(ApiStatus::counting(invalid));
        self
    }

    /// What can be measured of it.
    pub fn status(&self) -> Arc<ApiStatus> {
        self.status.clone()
    }

    /// Sends changes until nobody takes them any more. The API server may be away for any time: what was sent holds
    /// meanwhile.
    pub async fn run(self, changes: mpsc::Sender<Batch>) {
        let Kubernetes { connection, node, timing, status, events, recording } = self;
        info!(server = connection.current().url, node = &*node, "watching the API server");
        let outages = Outages::default();
        let shared = Arc::new(Shared { connection, timing, status, outages, changes, events });
        let mut tasks = JoinSet::new();
        if let Some((queue, counter)) = recording {
            tasks.spawn(Recorder::new(shared.clone(), node.clone(), counter).run(queue));
        }
        for resource in Resource::all(&node) {
            tasks.spawn(Reflector::new(shared.clone(), resource).run());
        }
        drop(shared);
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                // Without one of its resources the source would lie by silence: it ends as a whole.
                error!(%error, "a watch ended by a bug");
                return;
            }
        }
    }

    /// Lists everything once. Half of it would mislead, so any failure is one of the whole.
    pub async fn list(&self) -> Result<Listed, ListError> {
        let mut listed = Listed::default();
        let mut names = Interner::default();
        for resource in Resource::all(&self.node) {
            let mut token = String::new();
            loop {
                let uri = format!("{}?limit={PAGE}{}{token}", resource.path(), resource.selectors());
                let failed = |error| ListError {
                    url: self.connection.current().url.clone(),
                    resource: resource.name(),
                    remedy: Error::remedy(&error, &resource),
                    error,
                };
                let answer = match request::get(&self.connection, &uri, &self.timing, &self.status).await {
                    Err(Error::Status { code: 404, .. }) if matches!(resource, Resource::ServiceCidrs) => {
                        debug!("the API server has no servicecidrs");
                        break;
                    }
                    answer => answer.map_err(failed)?,
                };
                let text = answer.text(self.timing.answer, &self.status).await.map_err(failed)?;
                let page: Page =
                    serde_json::from_str(&text).map_err(|e| failed(Error::Garbage(e.to_string())))?;
                for raw in page.items.unwrap_or_default() {
                    let object = resource.read(raw.get(), &mut names);
                    listed.warnings.extend(object.warnings.into_iter().map(|warning| warning.text));
                    listed.changes.extend(object.change);
                }
                match page.metadata.token.filter(|t| !t.is_empty()) {
                    Some(next) => token = format!("&continue={}", request::escape(&next)),
                    None => break,
                }
            }
        }
        Ok(listed)
    }
}

/// All objects, listed once.
#[derive(Debug, Default)]
pub struct Listed {
    /// The objects.
    pub changes: Vec<Change>,
    /// What was left out because it makes no sense.
    pub warnings: Vec<String>,
}

/// Why not everything could be listed.
#[derive(Debug, thiserror::Error)]
#[error("cannot list {resource} of {url}: {error}; {remedy}")]
pub struct ListError {
    url: String,
    resource: &'static str,
    error: Error,
    remedy: String,
}
