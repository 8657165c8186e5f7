//! Health: whether the rules are what the cluster asks for, whether this node should get traffic at all, and
//! what is still missing after the start.
//!
//! `/healthz` and `/livez` mean what they mean with kube-proxy (`pkg/proxy/healthcheck/proxy_health.go` of
//! Kubernetes 1.34), `/healthz` besides that turns 503 as soon as rules are known not to be what they should be:
//!
//! | | `/healthz` | `/livez` | health check ports |
//! | --- | --- | --- | --- |
//! | a change waits for longer than [`HEALTH_TIMEOUT`] | 503 | 503 | 503 |
//! | the last sync failed, or the rules cannot be checked | 503 | | |
//! | the Node is being deleted, or has gone | 503 | | |
//!
//! A failure that a retry mends at once is no reason to restart the agent or to drain the node, so the others
//! wait for it.

pub mod servers;
pub mod services;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hyper::StatusCode;
use serde::Serialize;

use crate::cluster::Node;
use crate::http::{self, Response};
use crate::timestamp;

/// How long a change may wait for its rules: kube-proxy's twice the sync period, with its default of 30 s.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(60);

/// What the agent is at, shared between the reconcile loop and the servers.
#[derive(Debug, Default)]
pub struct Status {
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    listed: bool,
    node: NodeState,
    /// The first sync waits for the own Node.
    node_missing: bool,
    last_synced: Option<SystemTime>,
    /// The oldest change that is not in rules.
    waiting_since: Option<Instant>,
    sync_failed: bool,
    check_failed: bool,
    /// Another program changed our rules, and they are not put right yet.
    drifted: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum NodeState {
    /// It has not been seen. Then nothing speaks against this node.
    #[default]
    Unknown,
    Eligible,
    /// It is being deleted, or was.
    Leaving,
}

impl Status {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and each state by itself makes sense.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Services and EndpointSlices have been listed: from now on their rules are waited for.
    pub fn listed(&self, now: Instant) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.listed, true) && !state.node_missing {
            state.waiting_since = Some(now);
        }
    }

    /// Whether the first sync waits for the own Node.
    pub fn wait_for_node(&self, missing: bool) {
        self.state().node_missing = missing;
    }

    /// What is known of the own Node.
    pub fn set_node(&self, node: Option<&Node>) {
        let mut state = self.state();
        state.node = match node {
            None if state.node == NodeState::Unknown => NodeState::Unknown,
            Some(node) if !node.deleting => NodeState::Eligible,
            _ => NodeState::Leaving,
        };
    }

    /// A change came that has to become rules, or a sync starts. Before everything is listed and the Node is known
    /// nothing becomes rules, however long that takes: a restart would not help.
    pub fn queued(&self, now: Instant) {
        let mut state = self.state();
        if state.listed && !state.node_missing {
            state.waiting_since.get_or_insert(now);
        }
    }

    /// All changes so far are in rules.
    pub fn synced(&self, now: SystemTime) {
        let mut state = self.state();
        state.last_synced = Some(now);
        state.waiting_since = None;
        state.sync_failed = false;
        state.drifted = false;
    }

    /// Whether rules have been written since the start.
    pub fn has_synced(&self) -> bool {
        self.state().last_synced.is_some()
    }

    /// A sync failed.
    pub fn sync_failed(&self, now: Instant) {
        let mut state = self.state();
        state.sync_failed = true;
        state.waiting_since.get_or_insert(now);
    }

    /// Rules of ours were found changed by another program.
    pub fn drifted(&self) {
        self.state().drifted = true;
    }

    /// Whether it could be found out if another program changed rules.
    pub fn checked(&self, known: bool) {
        self.state().check_failed = !known;
    }

    /// Whether no change waits for too long: what kube-proxy calls healthy.
    pub fn in_time(&self, now: Instant) -> bool {
        self.state().in_time(now)
    }

    /// The response of `/healthz`.
    pub fn healthz(&self, now: Instant, time: SystemTime) -> Response {
        let state = *self.state();
        let eligible = state.node != NodeState::Leaving;
        let healthy = state.in_time(now) && !state.sync_failed && !state.check_failed;
        state.response(healthy, healthy && eligible, Some(eligible), time)
    }

    /// The response of `/livez`.
    pub fn livez(&self, now: Instant, time: SystemTime) -> Response {
        let state = *self.state();
        let healthy = state.in_time(now);
        state.response(healthy, healthy, None, time)
    }

    /// The response of `/readyz`: a line for each thing that is waited for.
    pub fn readyz(&self) -> Response {
        let state = *self.state();
        let mut checks = vec![
            ("services listed", state.listed),
            ("endpointslices listed", state.listed),
            // Without an API server there may be no Node; then its absence is known after listing.
            ("node known", !state.node_missing && (state.node != NodeState::Unknown || state.listed)),
            ("first sync done", state.last_synced.is_some()),
        ];
        if state.drifted {
            checks.push(("rules as they were before another program changed them", false));
        }
        let mut body: String = checks
            .iter()
            .map(|(what, done)| format!("[{}] {what}\n", if *done { "+" } else { "-" }))
            .collect();
        let ready = checks.iter().all(|(_, done)| *done);
        body.push_str(if ready { "ready\n" } else { "not ready\n" });
        http::text(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
    }
}

impl State {
    fn in_time(&self, now: Instant) -> bool {
        self.waiting_since.is_none_or(|since| now.saturating_duration_since(since) < HEALTH_TIMEOUT)
    }

    fn response(&self, healthy: bool, ok: bool, node_eligible: Option<bool>, time: SystemTime) -> Response {
        // Go's zero time: never.
        let synced = self.last_synced.map_or_else(|| "0001-01-01T00:00:00Z".into(), timestamp::format);
        let current_time = timestamp::format(time);
        let body = Body {
            // As with kube-proxy, where it once was the time of the last periodic sync.
            last_updated: if ok { &current_time } else { &synced },
            current_time: &current_time,
            node_eligible,
            healthy,
            // Both families are programmed in one transaction.
            status: self.last_synced.map(|_| {
                let family = FamilyBody { last_updated: &synced, healthy };
                Families { ipv4: family, ipv6: family }
            }),
        };
        let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        // Strings and booleans always can be written.
        http::json(status, serde_json::to_vec(&body).unwrap_or_default())
    }
}

/// The body of `/healthz` and `/livez`; names and order of the fields are kube-proxy's.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    last_updated: &'a str,
    current_time: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Families<'a>>,
}

#[derive(Serialize)]
struct Families<'a> {
    #[serde(rename = "IPv4")]
    ipv4: FamilyBody<'a>,
    #[serde(rename = "IPv6")]
    ipv6: FamilyBody<'a>,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody<'a> {
    last_updated: &'a str,
    healthy: bool,
}

#[cfg(test)]
mod tests;
