//! Writes events to the API server: as few as will do, and never in anybody's way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;
use prometheus::IntCounterVec;
use rustc_hash::{FxHashMap, FxHasher};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::error::Error;
use super::reflector::Shared;
use super::request;
use crate::events::{Event, Regarding, Type};
use crate::timestamp;

/// kube-proxy's: what looks for its events goes on finding them.
const CONTROLLER: &str = "kube-proxy";
/// So many events at once, then one in this time.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(5);
/// The same again within this time belongs to the series of the first.
const SERIES: Duration = Duration::from_secs(30 * 60);
/// Series that are remembered.
const MOST_SERIES: usize = 1024;
/// How often an event is tried where nobody answers.
const TRIES: u32 = 3;
/// What the API server takes: bytes of a note, and of what the name begins with.
const LONGEST_NOTE: usize = 1024;
const LONGEST_NAME: usize = 200;

/// What makes two events the same.
type Key = (Regarding, &'static str, &'static str, u64);

struct Series {
    namespace: String,
    name: String,
    /// Times it happened.
    count: u32,
    last: Instant,
    written: Instant,
}

/// Writes what comes through a queue.
pub(super) struct Recorder {
    shared: Arc<Shared>,
    node: Arc<str>,
    counter: IntCounterVec,
    series: FxHashMap<Key, Series>,
    order: VecDeque<Key>,
    tokens: u32,
    refilled: Instant,
    failing: bool,
}

impl Recorder {
    pub(super) fn new(shared: Arc<Shared>, node: Arc<str>, counter: IntCounterVec) -> Recorder {
        let now = Instant::now();
        Recorder {
            shared,
            node,
            counter,
            series: FxHashMap::default(),
            order: VecDeque::new(),
            tokens: BURST,
            refilled: now,
            failing: false,
        }
    }

    /// Runs until nobody sends events any more.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.take(event).await,
                    None => return,
                },
                () = self.shared.changes.closed() => return,
            }
        }
    }

    async fn take(&mut self, event: Event) {
        let now = Instant::now();
        let key = (event.regarding.clone(), event.reason, event.action, hash(&event.note));
        if let Some(series) = self.series.get_mut(&key).filter(|s| now - s.last < SERIES) {
            series.count += 1;
            series.last = now;
            if now - series.written < self.shared.timing.event_series || !self.has_token(now) {
                return;
            }
            return self.continue_series(&key).await;
        }
        if !self.has_token(now) {
            self.counter.with_label_values(&["dropped"]).inc();
            return debug!(?event, "too many events; dropped");
        }
        let (namespace, name) = (namespace(&event).to_owned(), self.name(&event));
        let body = self.body(&event, &namespace, &name);
        let uri = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        if !self.write(Method::POST, &uri, &body).await {
            return;
        }
        let series = Series { namespace, name, count: 1, last: now, written: now };
        if self.series.insert(key.clone(), series).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > MOST_SERIES
            && let Some(oldest) = self.order.pop_front()
        {
            self.series.remove(&oldest);
        }
    }

    async fn continue_series(&mut self, key: &Key) {
        let Some(series) = self.series.get_mut(key) else { return };
        series.written = Instant::now();
        let (namespace, name) = (&series.namespace, &series.name);
        let uri = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events/{name}");
        let at = timestamp::format_micros(SystemTime::now());
        let body = json!({"series": {"count": series.count, "lastObservedTime": at}});
        self.write(Method::PATCH, &uri, &body).await;
    }

    /// Sends until it is answered, or a few times; says whether there is such an event now.
    async fn write(&mut self, method: Method, uri: &str, body: &Value) -> bool {
        let Shared { connection, timing, status, .. } = &*self.shared;
        for tries in 1.. {
            match request::send(connection, method.clone(), uri, body, timing, status).await {
                Ok(()) => {
                    if std::mem::take(&mut self.failing) {
                        info!("events can be written again");
                    }
                    self.counter.with_label_values(&["written"]).inc();
                    return true;
                }
                // Another node, or this one before it was started anew, has said the same.
                Err(Error::Status { code: 409, .. }) => return true,
                // The namespace is about to go, or the event of a series went.
                Err(Error::Status { code: 404, .. }) => break,
                Err(error) if error.is_unanswered() && tries < TRIES => sleep(timing.event_retry).await,
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        let remedy = match error.code() {
                            Some(403) => {
                                "; the ClusterRole needs the rule {apiGroups: [\"events.k8s.io\"], resources: \
                                 [\"events\"], verbs: [\"create\", \"patch\"]}"
                            }
                            _ => "",
                        };
                        warn!("cannot write events: {error}{remedy}; what they say is in this log");
                    }
                    break;
                }
            }
        }
        self.counter.with_label_values(&["failed"]).inc();
        false
    }

    fn has_token(&mut self, now: Instant) -> bool {
        let gained = ((now - self.refilled).as_secs() / REFILL.as_secs()) as u32;
        self.refilled += REFILL * gained;
        self.tokens = (self.tokens + gained).min(BURST);
        let has = self.tokens > 0;
        self.tokens -= u32::from(has);
        has
    }

    fn name(&self, event: &Event) -> String {
        let object = match &event.regarding {
            Regarding::Node => &self.node,
            Regarding::Service { name, .. } => &name.name,
        };
        let object: String = object.chars().take(LONGEST_NAME).collect();
        let suffix = match event.everywhere {
            // The same on all nodes, so that there is one.
            true => hash(&(&event.regarding, event.reason, event.action, &event.note)),
            false => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64,
        };
        format!("{object}.{suffix:016x}")
    }

    fn body(&self, event: &Event, namespace: &str, name: &str) -> Value {
        let regarding = match &event.regarding {
            // As with kube-proxy, which does not know it: kubectl describe looks for the name there.
            Regarding::Node => json!({"kind": "Node", "name": self.node, "uid": self.node}),
            Regarding::Service { name, uid } => {
                let uid = if uid.is_empty() { name.to_string() } else { uid.to_string() };
                json!({"apiVersion": "v1", "kind": "Service", "namespace": name.namespace, "name": name.name, "uid": uid})
            }
        };
        let end =
            (0..=LONGEST_NOTE.min(event.note.len())).rev().find(|end| event.note.is_char_boundary(*end));
        let note = event.note.get(..end.unwrap_or(0)).unwrap_or_default();
        json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"namespace": namespace, "name": name},
            "eventTime": timestamp::format_micros(SystemTime::now()),
            "reportingController": CONTROLLER,
            "reportingInstance": format!("{CONTROLLER}-{}", self.node).chars().take(128).collect::<String>(),
            "action": event.action,
            "reason": event.reason,
            "regarding": regarding,
            "type": match event.kind { Type::Normal => "Normal", Type::Warning => "Warning" },
            "note": note,
        })
    }
}

/// Events about what is in no namespace are in this one.
fn namespace(event: &Event) -> &str {
    match &event.regarding {
        Regarding::Node => "default",
        Regarding::Service { name, .. } => &name.namespace,
    }
}

/// The same in each process.
fn hash(value: &impl std::hash::Hash) -> u64 {
    use std::hash::Hasher;
    let mut hasher = FxHasher::default();
    value.hash(&mut hasher);
    hasher.finish()
}
