//! What operators are told through the API server: events (events.k8s.io/v1), as kube-proxy writes them, and ours.
//!
//! ```text
//!   whoever notices ──► Events::send ──► queue ──► Recorder ──► the API server
//!                       (never waits)              (source::kubernetes)
//! ```
//!
//! An event says what a log line says, where the owner of the object finds it. Without an API server there are only
//! the log lines.

use std::sync::Arc;

use prometheus::IntCounterVec;
use tokio::sync::mpsc;

use crate::cluster::ObjectName;

/// As many events may wait to be written; more are dropped, and counted.
const QUEUE: usize = 256;

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Regarding {
    /// The own Node.
    Node,
    /// A Service.
    Service {
        /// Its name.
        name: ObjectName,
        /// `metadata.uid`; empty where it is not known.
        uid: Arc<str>,
    },
}

/// Whether somebody has to do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// `Normal`.
    Normal,
    /// `Warning`.
    Warning,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// To whom.
    pub regarding: Regarding,
    /// Type.
    pub kind: Type,
    /// `reason`, in CamelCase, for programs.
    pub reason: &'static str,
    /// `action`: what was being done.
    pub action: &'static str,
    /// `note`, for people.
    pub note: String,
    /// Each node sees the same: one event is enough.
    pub everywhere: bool,
}

impl Event {
    /// A warning about a Service.
    pub fn warning(
        name: &ObjectName,
        uid: &Arc<str>,
        (reason, action): (&'static str, &'static str),
        note: impl Into<String>,
    ) -> Event {
        let regarding = Regarding::Service { name: name.clone(), uid: uid.clone() };
        Event { regarding, kind: Type::Warning, reason, action, note: note.into(), everywhere: false }
    }

    /// The same, where each node sees it.
    pub fn everywhere(self) -> Event {
        Event { everywhere: true, ..self }
    }

    /// About the own Node.
    pub fn node(
        kind: Type,
        (reason, action): (&'static str, &'static str),
        note: impl Into<String>,
    ) -> Event {
        Event { regarding: Regarding::Node, kind, reason, action, note: note.into(), everywhere: false }
    }
}

/// Reason and action of each event.
pub mod reasons {
    /// The agent starts.
    pub const STARTING: (&str, &str) = ("Starting", "StartKubeProxy");
    /// The health server's address cannot be had.
    pub const HEALTHZ_SERVER: (&str, &str) = ("FailedToStartProxierHealthcheck", "StartKubeProxy");
    /// The metrics server's address cannot be had.
    pub const METRICS_SERVER: (&str, &str) = ("FailedToStartMetricServer", "StartKubeProxy");
    /// Settings of the kernel are read-only here.
    pub const READ_ONLY_SYSCTLS: (&str, &str) = ("readOnlySysFS", "StartKubeProxy");
    /// Ours: the kernel refuses a setting for another reason.
    pub const SYSCTLS: (&str, &str) = ("SettingsRefused", "StartKubeProxy");
    /// A health check port cannot be had.
    pub const HEALTH_CHECK_PORT: (&str, &str) = ("FailedToStartServiceHealthcheck", "Listen");
    /// An address of a family that the Service does not have.
    pub const WRONG_FAMILY: (&str, &str) = ("KubeProxyIncorrectIPVersion", "GatherEndpoints");
    /// Ours: a part of a Service, or all of it, makes no sense and is left out.
    pub const UNUSABLE: (&str, &str) = ("UnusableField", "ReadService");
    /// Ours: another Service has the address and port.
    pub const ADDRESS_TAKEN: (&str, &str) = ("AddressTaken", "ClaimAddress");
    /// Ours: the operator does not let Services have the address.
    pub const ADDRESS_NOT_ALLOWED: (&str, &str) = ("AddressNotAllowed", "ClaimAddress");
    /// Ours: more endpoints than can be used.
    pub const TOO_MANY_ENDPOINTS: (&str, &str) = ("TooManyEndpoints", "GatherEndpoints");
    /// Ours: the kernel lacks an IPVS scheduler.
    pub const SCHEDULER_MISSING: (&str, &str) = ("SchedulerMissing", "SyncProxyRules");
    /// Ours: another program's rules drop Services' packets.
    pub const FIREWALL: (&str, &str) = ("FirewallDropsServices", "CheckHost");
    /// Ours: the kernel refuses the rules of a Service.
    pub const SET_ASIDE: (&str, &str) = ("RulesRefused", "SyncProxyRules");
}

/// Where events are given.
#[derive(Clone, Debug, Default)]
pub struct Events {
    queue: Option<(mpsc::Sender<Event>, IntCounterVec)>,
}

impl Events {
    /// A queue, and its end for a recorder. What is dropped is counted as `dropped`.
    pub fn queue(counter: IntCounterVec) -> (Events, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Events { queue: Some((sender, counter)) }, receiver)
    }

    /// Hands an event over; never waits.
    pub fn send(&self, event: Event) {
        if let Some((sender, counter)) = &self.queue
            && sender.try_send(event).is_err()
        {
            counter.with_label_values(&["dropped"]).inc();
        }
    }
}
