//! What the kernel counts: clients of session affinity, and INVALID packets that were dropped.

use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::decode;
use super::model::{Chain, Set};
use super::plan::Usage;
use crate::cluster::Family;
use crate::netlink::{Error, Socket};

/// How often the kernel is asked.
const INTERVAL: Duration = Duration::from_secs(5);

/// What the kernel had counted when it was last asked.
#[derive(Debug)]
pub(super) struct Counts {
    at: Instant,
    /// Clients in each set of session affinity.
    clients: FxHashMap<(Family, Set), usize>,
    /// INVALID packets dropped since the start of this process.
    invalid_dropped: u64,
    /// What each table's counter said of them.
    invalid_counters: FxHashMap<Family, u64>,
}

impl Counts {
    pub(super) fn new() -> Counts {
        Counts {
            at: Instant::now(),
            clients: FxHashMap::default(),
            invalid_dropped: 0,
            invalid_counters: FxHashMap::default(),
        }
    }

    /// Clients in a set of session affinity.
    pub(super) fn clients(&self, family: Family, set: Set) -> usize {
        self.clients.get(&(family, set)).copied().unwrap_or(0)
    }

    /// INVALID packets dropped since the start of this process.
    pub(super) fn invalid_dropped(&self) -> u64 {
        self.invalid_dropped
    }

    /// The clients are those of tables that may not be there any more.
    pub(super) fn forget_clients(&mut self) {
        self.clients.clear();
    }

    /// A table was made anew: its counter begins at 0.
    pub(super) fn begin_anew(&mut self, family: Family) {
        self.invalid_counters.remove(&family);
    }

    /// Asks the kernel, if it was not asked just now.
    pub(super) fn update(
        &mut self,
        socket: &mut Socket,
        families: &[Family],
        used: &Usage,
        drop_invalid: bool,
    ) -> Result<(), Error> {
        if self.at.elapsed() < INTERVAL {
            return Ok(());
        }
        self.at = Instant::now();
        self.forget_clients();
        for family in families.iter().copied() {
            if drop_invalid {
                self.count_invalid(socket, family)?;
            }
            let (_, sets) = used.parts(family);
            if sets.is_empty() {
                continue;
            }
            let Some(found) = decode::observe(socket, family)? else { continue };
            let counts = sets.into_iter().filter_map(|set| Some(((family, set), found.count(set)? as usize)));
            self.clients.extend(counts);
        }
        Ok(())
    }

    fn count_invalid(&mut self, socket: &mut Socket, family: Family) -> Result<(), Error> {
        let now = decode::counted(socket, family, Chain::DropInvalid)?.unwrap_or(0);
        let before = self.invalid_counters.insert(family, now).unwrap_or(0);
        // A counter that says less is of a table that was made anew.
        self.invalid_dropped += if now < before { now } else { now - before };
        Ok(())
    }
}
