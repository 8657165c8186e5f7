//! IPVS schedulers: how a virtual service chooses among its endpoints.

use std::fmt;
use std::str::FromStr;

/// The schedulers that the kernel has, each a module `ip_vs_NAME` (Linux 4.15 and later have all but mh, 4.18).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheduler {
    /// Round robin.
    #[default]
    Rr,
    /// Weighted round robin.
    Wrr,
    /// Least connections.
    Lc,
    /// Weighted least connections.
    Wlc,
    /// By a hash of the client's address.
    Sh,
    /// By a hash of the service's address.
    Dh,
    /// By a consistent hash of the client's address and port (Maglev).
    Mh,
    /// Shortest expected delay.
    Sed,
    /// Never queue.
    Nq,
    /// Locality-based least connections.
    Lblc,
    /// The same with replication.
    Lblcr,
    /// The endpoint of the highest weight: the first.
    Fo,
    /// The first endpoint until it is full.
    Ovf,
}

use Scheduler::{Dh, Fo, Lblc, Lblcr, Lc, Mh, Nq, Ovf, Rr, Sed, Sh, Wlc, Wrr};

const NAMES: [(Scheduler, &str); 13] = [
    (Rr, "rr"),
    (Wrr, "wrr"),
    (Lc, "lc"),
    (Wlc, "wlc"),
    (Sh, "sh"),
    (Dh, "dh"),
    (Mh, "mh"),
    (Sed, "sed"),
    (Nq, "nq"),
    (Lblc, "lblc"),
    (Lblcr, "lblcr"),
    (Fo, "fo"),
    (Ovf, "ovf"),
];

impl Scheduler {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Scheduler> {
        NAMES.into_iter().map(|(scheduler, _)| scheduler)
    }

    /// The kernel's name.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(scheduler, _)| *scheduler == self).map_or("", |(_, name)| name)
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that no scheduler has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no IPVS scheduler; there are rr, wrr, lc, wlc, sh, dh, mh, sed, nq, lblc, lblcr, fo and ovf"
)]
pub struct UnknownScheduler(String);

impl FromStr for Scheduler {
    type Err = UnknownScheduler;

    fn from_str(text: &str) -> Result<Scheduler, UnknownScheduler> {
        let found = NAMES.iter().find(|(_, name)| *name == text);
        found.map(|(scheduler, _)| *scheduler).ok_or_else(|| UnknownScheduler(text.to_owned()))
    }
}
