//! One resource: list, watch, watch again, and list again where that is the only way.
//!
//! kube-runtime's watcher is not used, since it asks again at once and for ever where a server closes watches at once,
//! asks for ever for a version that a restored etcd does not have, has no way back from a refused streaming list, and
//! shows no bookmarks, so that a quiet cluster looks like a dead connection.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::super::read::{Object, Warning};
use super::connection::Connection;
use super::error::Error;
use super::outage::Outages;
use super::request::{self, Bookmark, Event, Page};
use super::resource::Resource;
use super::status::ApiStatus;
use super::{PAGE, Timing};
use crate::cluster::{Change, Interner};
use crate::events::{self, Events, reasons};
use crate::source::{Batch, Id};

/// After so many failures in a row a watch's version is given up.
const GIVE_UP: u32 = 4;
/// A watch that lives this long is one.
const SETTLED: Duration = Duration::from_secs(1);

/// What all reflectors share.
pub(super) struct Shared {
    pub(super) connection: Connection,
    pub(super) timing: Timing,
    pub(super) status: Arc<ApiStatus>,
    pub(super) outages: Outages,
    pub(super) changes: mpsc::Sender<Batch>,
    pub(super) events: Events,
}

/// Why a list or a watch ended early.
enum Failure {
    /// The API server, or the way to it.
    Api(Error),
    /// Nobody takes changes any more.
    Unused,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Api(error)
    }
}

/// What is asked next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    List,
    Watch(String),
}

/// Keeps one resource's objects known.
pub(super) struct Reflector {
    shared: Arc<Shared>,
    resource: Resource,
    names: Interner,
    /// The objects that the receiver has.
    known: FxHashSet<Id>,
    /// What was last said about an object, so that it is said once.
    complaints: FxHashMap<Id, u64>,
    hasher: RandomState,
    /// The newest version seen; what a later list may not fall behind.
    version: Option<String>,
    /// Whether the server is believed to send lists as watch events.
    streaming: bool,
    /// Failures in a row.
    failures: u32,
    /// Streaming lists in a row that did not come to their end.
    incomplete: u32,
    /// Whether the current watch has brought nothing yet.
    idle: bool,
    /// Whether it was told that the API server is behind an address of ours.
    circle: bool,
    /// Whether the absence of the resource was told.
    absent: bool,
}

impl Reflector {
    pub(super) fn new(shared: Arc<Shared>, resource: Resource) -> Reflector {
        Reflector {
            shared,
            resource,
            names: Interner::default(),
            known: FxHashSet::default(),
            complaints: FxHashMap::default(),
            hasher: RandomState::new(),
            version: None,
            streaming: true,
            failures: 0,
            incomplete: 0,
            idle: true,
            circle: false,
            absent: false,
        }
    }

    /// Runs until nobody takes changes any more.
    pub(super) async fn run(mut self) {
        let mut next = Next::List;
        loop {
            self.idle = true;
            let result = match &next {
                Next::List if self.streaming => self.watch(None).await,
                Next::List => self.list().await.map(Next::Watch),
                Next::Watch(version) => self.watch(Some(version.clone())).await,
            };
            next = match result {
                Ok(next) => next,
                Err(Failure::Unused) => return,
                Err(Failure::Api(error)) => {
                    self.shared.status.restarted(&self.resource);
                    match self.after(error, next).await {
                        Some(next) => next,
                        None => return,
                    }
                }
            };
        }
    }

    /// What to do after a failure, when it is time to do it.
    async fn after(&mut self, error: Error, next: Next) -> Option<Next> {
        if next == Next::List && self.streaming && error.is_refusal() {
            debug!(resource = self.resource.name(), %error, "no streaming lists here; listing");
            self.streaming = false;
            return Some(Next::List);
        }
        if error == Error::Incomplete {
            // Servers that do not know the parameter may ignore it, and proxies may hold events back.
            self.incomplete += 1;
            self.streaming = self.incomplete < 2;
        }
        if error.code() == Some(404) && matches!(self.resource, Resource::ServiceCidrs) {
            return self.absent().await;
        }
        // What was seen since the request tells where to go on.
        let next = match (&next, &self.version) {
            (Next::Watch(_), Some(version)) => Next::Watch(version.clone()),
            _ => next,
        };
        let listing = next == Next::List;
        self.failures = self.failures.saturating_add(1);
        // One cut of a stream that worked is nothing; if it cannot be had again it is an outage.
        if self.failures > 1 || listing && !error.is_expired() {
            self.shared.outages.failed(&self.shared.connection.current().url, &self.resource, &error);
        }
        let stuck = self.failures >= GIVE_UP && !error.is_unanswered();
        let next = if error.is_expired() || stuck { Next::List } else { next };
        if listing && error.is_expired() || stuck {
            // Newer than what an etcd restored from a backup has: any version will do.
            self.version = None;
        }
        let wait = self.wait(&error);
        debug!(resource = self.resource.name(), %error, wait_ms = wait.as_millis() as u64, ?next, "again");
        tokio::select! {
            () = sleep(wait) => {}
            () = self.shared.changes.closed() => return None,
        }
        // Not knowing who we are, and not knowing who they are, may both be mended by now.
        if error.code() == Some(401) || error.is_unanswered() && self.failures > 1 {
            self.shared.connection.renew().await;
        }
        Some(next)
    }

    fn wait(&self, error: &Error) -> Duration {
        let timing = &self.shared.timing;
        // Nobody is burdened by a knock at a closed door, so it is soon noticed when it opens.
        let most = if error.is_unanswered() { timing.retry_unanswered } else { timing.retry_most };
        let wait = timing.retry.saturating_mul(1 << (self.failures.max(1) - 1).min(16)).min(most);
        let wait = spread(wait / 2, wait);
        match error {
            Error::Status { retry_after: Some(least), .. } => {
                // A minute at most: the header is a hint, and an hour without news is a broken node.
                wait.max(spread(*least, *least + *least / 4)).min(Duration::from_secs(60).max(wait))
            }
            _ => wait,
        }
    }

    /// The server does not know the resource: there are none.
    async fn absent(&mut self) -> Option<Next> {
        if !std::mem::replace(&mut self.absent, true) {
            info!("the API server has no {}; going on without", self.resource.name());
        }
        if self.finish(FxHashSet::default()).await.is_err() {
            return None;
        }
        tokio::select! {
            // It may be upgraded.
            () = sleep(spread(self.shared.timing.absent, self.shared.timing.absent * 2)) => Some(Next::List),
            () = self.shared.changes.closed() => None,
        }
    }

    fn well(&mut self) {
        self.failures = 0;
        self.shared.outages.well(&self.shared.connection.current().url, &self.resource);
    }

    /// Lists page by page; the version to watch from.
    async fn list(&mut self) -> Result<String, Failure> {
        // A first list may come from the server's cache, as every informer's does: thousands of nodes that start at
        // once do not read etcd. After a failure it is read from there, in pages.
        let consistent = format!("limit={PAGE}");
        let how = match &self.version {
            Some(version) => format!("resourceVersion={version}&resourceVersionMatch=NotOlderThan"),
            None if self.failures == 0 => "resourceVersion=0&resourceVersionMatch=NotOlderThan".to_owned(),
            None => consistent.clone(),
        };
        let shared = self.shared.clone();
        let mut seen = FxHashSet::default();
        let mut token: Option<String> = None;
        loop {
            let query = match &token {
                Some(token) => format!("{consistent}&continue={}", request::escape(token)),
                None => how.clone(),
            };
            let uri = format!("{}?{query}{}", self.resource.path(), self.resource.selectors());
            let Shared { connection, timing, status, .. } = &*shared;
            let answer = request::get(connection, &uri, timing, status).await?;
            let text = answer.text(timing.answer, status).await?;
            let page: Page =
                serde_json::from_str(&text).map_err(|e| Error::Garbage(format!("a list: {e}")))?;
            let mut changes = Vec::new();
            for raw in page.items.unwrap_or_default() {
                let object = self.resource.read(raw.get(), &mut self.names);
                seen.insert(object.id.clone());
                self.take(object, &mut changes);
            }
            self.send(changes).await?;
            token = page.metadata.token.filter(|t| !t.is_empty());
            if token.is_none() {
                let version = page.metadata.resource_version.filter(|v| !v.is_empty());
                let version = version.ok_or_else(|| Error::Garbage("a list without a version".to_owned()))?;
                self.version = Some(version.clone());
                self.finish(seen).await?;
                return Ok(version);
            }
        }
    }

    /// Watches from a version, or from nothing with all objects as events first.
    async fn watch(&mut self, version: Option<String>) -> Result<Next, Failure> {
        let shared = self.shared.clone();
        let Shared { connection, timing, status, .. } = &*shared;
        let mut seen = version.is_none().then(FxHashSet::default);
        let lasts = timing.lasts(status.pings());
        let uri = self.watch_uri(version.as_deref(), lasts);
        let start = Instant::now();
        let mut answer = request::get(connection, &uri, timing, status).await?;
        loop {
            let idle = match &seen {
                Some(_) => timing.answer,
                // After a failure it is well when it stays open for a moment, even if nothing happens.
                None if self.failures > 0 => SETTLED,
                // The server ends it before that: whatever is silent for longer is dead.
                None => lasts + timing.slack,
            };
            let lines = match answer.lines(idle, status).await {
                Ok(Some(lines)) => lines,
                Ok(None) => break,
                Err(Error::Silent(_)) if seen.is_some() => return Err(Error::Incomplete.into()),
                Err(Error::Silent(_)) if self.failures > 0 => {
                    self.well();
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            self.take_lines(&lines, &mut seen).await?;
        }
        let Some(version) = self.version.clone().filter(|_| seen.is_none()) else {
            return Err(Error::Incomplete.into());
        };
        if start.elapsed() < SETTLED {
            // No server ends watches that soon unless something is wrong.
            if self.idle {
                return Err(Error::Closed.into());
            }
            sleep(spread(timing.retry / 2, timing.retry)).await;
        }
        Ok(Next::Watch(version))
    }

    fn watch_uri(&self, version: Option<&str>, lasts: Duration) -> String {
        let version = match (version, &self.version) {
            (Some(version), _) => format!("resourceVersion={version}"),
            (None, Some(version)) => {
                format!("resourceVersion={version}&resourceVersionMatch=NotOlderThan&sendInitialEvents=true")
            }
            (None, None) => "resourceVersionMatch=NotOlderThan&sendInitialEvents=true".to_owned(),
        };
        let (path, selectors) = (self.resource.path(), self.resource.selectors());
        let seconds = lasts.as_secs().max(1);
        format!("{path}?watch=1&allowWatchBookmarks=true&timeoutSeconds={seconds}&{version}{selectors}")
    }

    /// Takes complete lines in; `seen` is there until all initial events have come.
    async fn take_lines(&mut self, lines: &str, seen: &mut Option<FxHashSet<Id>>) -> Result<(), Failure> {
        let mut changes = Vec::new();
        for line in lines.lines().filter(|line| !line.is_empty()) {
            match self.event(line, seen.as_mut(), &mut changes) {
                Ok(false) => {}
                Ok(true) => {
                    self.send(std::mem::take(&mut changes)).await?;
                    self.finish(seen.take().unwrap_or_default()).await?;
                }
                Err(error) => {
                    // What came before it holds.
                    self.send(changes).await?;
                    return Err(error.into());
                }
            }
        }
        self.send(changes).await?;
        self.idle = false;
        if seen.is_none() {
            self.well();
        }
        Ok(())
    }

    /// Takes one event in; whether it ends the initial ones.
    fn event(
        &mut self,
        line: &str,
        seen: Option<&mut FxHashSet<Id>>,
        changes: &mut Vec<Change>,
    ) -> Result<bool, Error> {
        let event: Event =
            serde_json::from_str(line).map_err(|e| Error::Garbage(format!("an event: {e}")))?;
        match &*event.kind {
            "BOOKMARK" => {
                let bookmark = Bookmark::parse(event.object)?;
                let ends = seen.is_some() && bookmark.ends_initial();
                if ends || seen.is_none() {
                    self.version = Some(bookmark.version());
                }
                return Ok(ends);
            }
            "ERROR" => return Err(request::refusal(event.object.get(), 500, None)),
            "ADDED" | "MODIFIED" | "DELETED" => {}
            other => return Err(Error::Garbage(format!("an event of type {other:?}"))),
        }
        let mut object = self.resource.read(event.object.get(), &mut self.names);
        if event.kind == "DELETED" {
            (object.change, object.skipped) = (None, false);
            object.warnings.clear();
        }
        match seen {
            // The order of initial events says nothing about versions.
            Some(seen) if event.kind == "DELETED" => _ = seen.remove(&object.id),
            Some(seen) => _ = seen.insert(object.id.clone()),
            None if object.version.is_empty() => {}
            None => self.version = Some(std::mem::take(&mut object.version)),
        }
        self.take(object, changes);
        Ok(false)
    }

    /// Takes an object in.
    fn take(&mut self, object: Object, changes: &mut Vec<Change>) {
        let Object { id, uid, change, warnings, skipped, .. } = object;
        if skipped {
            self.shared.status.skip();
        }
        if warnings.is_empty() {
            self.complaints.remove(&id);
        } else {
            let said = self.hasher.hash_one(&warnings);
            // The same after each list would be noise.
            if self.complaints.insert(id.clone(), said) != Some(said) {
                warnings.iter().for_each(|warning| self.complain(&id, &uid, warning));
            }
        }
        match change {
            Some(change) => {
                self.warn_of_circle(&change);
                self.known.insert(id);
                changes.push(change);
            }
            None if self.known.remove(&id) => changes.push(id.deleted()),
            None => {}
        }
    }

    fn complain(&self, id: &Id, uid: &str, warning: &Warning) {
        warn!("{}", warning.text);
        if let Id::Service(name) = id {
            let what = if warning.wrong_family { reasons::WRONG_FAMILY } else { reasons::UNUSABLE };
            self.shared
                .events
                .send(events::Event::warning(name, &uid.into(), what, &*warning.text).everywhere());
        }
    }

    /// The API server behind an address that this very program makes work: after a restart of the node there would
    /// be no way to it.
    fn warn_of_circle(&mut self, change: &Change) {
        let Change::Service(name, Some(service)) = change else { return };
        let Some(host) =
            self.shared.connection.current().host.filter(|host| service.cluster_ips.contains(host))
        else {
            return;
        };
        if !std::mem::replace(&mut self.circle, true) {
            warn!(
                "the API server is reached at {host}, the ClusterIP of Service {name}, which works only while the \
                 rules do: give the control plane's own address, with --master=https://HOST:6443, a kubeconfig, or \
                 the environment variables KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT of the pod"
            );
        }
    }

    /// A complete list has come: what is not in it is gone.
    async fn finish(&mut self, seen: FxHashSet<Id>) -> Result<(), Failure> {
        let gone: Vec<Change> = self.known.extract_if(|id| !seen.contains(id)).map(Id::deleted).collect();
        self.complaints.retain(|id, _| seen.contains(id));
        self.send(gone).await?;
        self.well();
        // Others may follow any time; only who completes the picture says so, after all that belongs to it.
        if self.shared.status.listed(&self.resource) {
            let batch = Batch { changes: vec![], synced: true };
            self.shared.changes.send(batch).await.map_err(|_| Failure::Unused)?;
        }
        Ok(())
    }

    async fn send(&self, changes: Vec<Change>) -> Result<(), Failure> {
        if changes.is_empty() {
            return Ok(());
        }
        let batch = Batch { changes, synced: self.shared.status.synced() };
        self.shared.changes.send(batch).await.map_err(|_| Failure::Unused)
    }
}

/// A random time between two, so that nodes that failed together do not come back together.
pub(super) fn spread(least: Duration, most: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    let share = (random >> 11) as f64 / (1_u64 << 53) as f64;
    least + most.saturating_sub(least).mul_f64(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_spread_within_bounds() {
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(3));
        let times: Vec<_> = (0..100).map(|_| spread(least, most)).collect();
        assert!(times.iter().all(|t| (least..=most).contains(t)));
        assert!(times.iter().any(|t| *t != times[0]));
        assert_eq!(spread(most, least), most);
    }
}
