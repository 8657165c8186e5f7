//! The meaning of Services, as pure functions over plain values: which addresses a Service answers on, which
//! endpoints each gets from inside and from outside, what is masqueraded, refused or dropped.
//!
//! [`service::forward`] is one Service by itself; [`Desired`] is all of them together, with the order in which
//! two Services that claim the same address and port win, and knows what a change changed.

mod affinity;
mod changes;
mod desired;
mod endpoints;
pub mod explain;
mod local;
mod node;
mod service;
#[cfg(test)]
mod tests;

pub use affinity::Sticky;
pub use changes::{Adopted, Change, Changes, Conflict, Part, Refused, SetChange};
pub use desired::Desired;
pub use endpoints::{Categories, LeftOut, Usable, Used, arrange, categorize};
pub use explain::explain;
pub use local::{HealthCheck, Local, local};
pub use node::{Claimable, Key, LocalDetection, NodeView, Settings};
pub use service::{Claim, Forwarding, Frontend, FrontendKind, MAX_ENDPOINTS, Masquerade, Target};
