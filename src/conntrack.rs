//! Deletes the connections that outlived the rules which made them.
//!
//! Conntrack remembers where each flow goes, and no packet of a flow that it knows reaches the rules. A TCP
//! connection to an endpoint that is gone ends by itself. A UDP flow or an SCTP association does not as long as
//! its sender goes on: its entry has to be deleted for the next packet to find the new state.
//!
//! ```text
//!   Changes ──► Stale: which entries go ──► Cleaner's thread ──► one dump a family and protocol ──► deletes
//!              (pure)                       (after the commit)   (filtered by the kernel)
//! ```
//!
//! An entry whose original destination is, or just was, a frontend is stale
//! - when its reply source is an endpoint that the frontend had and that no longer serves for it. One that
//!   terminates but serves keeps its flows;
//! - when it is not translated, and the frontend just came to be or got its first endpoint: the flow is older;
//! - when its source is no longer among the load-balancer source ranges;
//! - of TCP, only the first of these, and only while the client's SYN has no answer (`SYN_SENT`): each SYN that
//!   it sends again would keep the entry alive.

mod cleaner;
pub mod kernel;
pub mod stale;

use nix::errno::Errno;

pub use cleaner::Cleaner;
pub use stale::{Flow, Stale};

use crate::cluster::{Family, Protocol};
use crate::netlink;

/// Why stale entries could not be deleted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket to conntrack.
    #[error("cannot talk to conntrack: {0}")]
    Open(#[source] netlink::Error),
    /// The thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
    /// The entries could not be listed.
    #[error("cannot list the {protocol} connections of {family}: {error}")]
    Dump {
        /// Of this family.
        family: Family,
        /// Of this protocol.
        protocol: Protocol,
        /// What happened.
        #[source]
        error: netlink::Error,
    },
    /// Deletions could not be sent, or their refusals not be received.
    #[error("cannot delete connections: {0}")]
    Delete(#[source] netlink::Error),
    /// The kernel refused to delete entries that are there.
    #[error("the kernel refused to delete {count} connections, the first with {errno}")]
    Refused {
        /// How many.
        count: usize,
        /// What it answered to the first: `EBUSY` where a flow table has taken the flow over.
        #[source]
        errno: Errno,
    },
}
