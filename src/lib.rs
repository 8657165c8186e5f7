//! sluice programs the service rules of a Kubernetes node.
//!
//! ```text
//!  source            cluster             forwarding           dataplane              kernel
//!  kubernetes  ──►  compact index  ──►   desired state  ──►   plan = desired  ──►   one atomic
//!  manifests        of small types,      per service port     minus observed        transaction
//!                   dirty services       (pure functions)     (printable value)     (netlink)
//!                                                                  ▲ observed: read back at start
//! ```
//!
//! Kubernetes types stop in [`source`]; nothing past [`cluster`] knows where an object came from,
//! nothing before [`dataplane`] knows what an nftables set is, and only [`netlink`] talks to the kernel.

pub mod app;
pub mod check;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod conntrack;
pub mod dataplane;
pub mod events;
pub mod forwarding;
pub mod health;
pub mod host;
pub mod http;
pub mod listen;
pub mod log;
pub mod metrics;
pub mod netlink;
pub mod reconcile;
pub mod relay;
pub mod reporting;
pub mod source;
pub mod sysctl;
pub mod takeover;
pub mod timestamp;
