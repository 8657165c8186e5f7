//! The thread that deletes stale entries, beside the loop that writes rules.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::Error;
use super::kernel::Conntrack;
use super::stale::{Known, Stale};
use crate::forwarding::{Changes, Desired};
use crate::log::{Repeated, STEADY};
use crate::metrics::Metrics;

/// After a pass, its duration times this is waited: listing takes at most a fifth of one core.
const PAUSE: u32 = 4;
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// After a failed pass: the first and the longest time to the next.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// So many failures in a row, and what was to be deleted is forgotten.
const FAILURES: u32 = 5;

/// Deletes stale entries in a thread of its own. What is handed over while a pass runs goes into the next. When
/// dropped it finishes what it was given, trying once.
#[derive(Debug)]
pub struct Cleaner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Endpoints that may have connections and that the kernel's rules do not tell of: those that drained when
    /// the desired state was dropped, and those of a change that failed.
    known: Known,
    /// Whether everything was compared once.
    compared: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    pending: Stale,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work; `None`: there is none and there will be none.
    fn next(&self) -> Option<Stale> {
        let mut state = self.lock();
        loop {
            if !state.pending.is_empty() {
                return Some(std::mem::take(&mut state.pending));
            }
            // Nothing waits that what came back could cancel.
            state.pending = Stale::default();
            if state.stop {
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits so long, unless the end is near; says whether it is.
    fn pause(&self, length: Duration) -> bool {
        let until = Instant::now() + length;
        let mut state = self.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if state.stop || left.is_zero() {
                return state.stop;
            }
            state = self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Cleaner {
    /// Starts the thread, in the network namespace of the calling one.
    ///
    /// # Errors
    /// When there is no socket or no thread.
    pub fn start(metrics: Option<Arc<Metrics>>) -> Result<Cleaner, Error> {
        let conntrack = Conntrack::open()?;
        let shared = Arc::new(Shared::default());
        let run = {
            let shared = shared.clone();
            move || run(&shared, conntrack, metrics.as_deref())
        };
        let thread =
            std::thread::Builder::new().name("conntrack".into()).spawn(run).map_err(Error::Thread)?;
        Ok(Cleaner { shared, thread: Some(thread), known: Known::default(), compared: false })
    }

    /// Takes over what a change made stale. To be called when its rules are in place: before, a packet could
    /// make the same entry again.
    pub fn applied(&mut self, changes: &Changes) {
        let stale = match std::mem::replace(&mut self.compared, true) {
            true => Stale::new(changes, &self.known),
            false => Stale::first(changes),
        };
        self.known = Known::default();
        self.shared.lock().pending.merge(stale);
        self.shared.wake.notify_one();
    }

    /// The rules of a change may not be in place. What it took away is remembered until everything is compared.
    pub fn failed(&mut self, changes: &Changes) {
        for (key, (before, _)) in &changes.frontends {
            if let Some(before) = before {
                self.known.entry(*key).or_default().push(before.serving().collect());
            }
        }
    }

    /// The desired state is about to be dropped. What drains is remembered until everything is compared.
    pub fn forget(&mut self, desired: &Desired) {
        for (key, frontend, _) in desired.frontends() {
            if let Some(draining) = &frontend.draining {
                self.known.entry(*key).or_default().push(draining.clone());
            }
        }
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // An Err is a panic, which has been printed.
            let _ = thread.join();
        }
    }
}

/// Its errors have counts, so that they are never the same.
const MAY_STAY: &str = "stale connections may stay";

fn run(shared: &Shared, mut conntrack: Conntrack, metrics: Option<&Metrics>) {
    // Failures in a row after which the work is still to be done.
    let mut failures = 0;
    let (mut failing, mut given_up) = (Repeated::default(), Repeated::default());
    while let Some(mut stale) = shared.next() {
        let start = Instant::now();
        let result = conntrack.clean(&stale);
        let elapsed = start.elapsed();
        let elapsed_ms = elapsed.as_secs_f64() * 1e3;
        if let Err(error) = &result
            && let Some(times) = failing.again(&MAY_STAY)
        {
            warn!(%error, times, "{MAY_STAY}");
        }
        let pause = match result {
            Ok(pass) => {
                failures = 0;
                failing.ended();
                if let Some(metrics) = metrics {
                    for (family, deleted) in pass.by_family.into_iter().enumerate() {
                        metrics.conntrack_duration[family].observe(elapsed.as_secs_f64());
                        metrics.conntrack_deleted[family].inc_by(deleted as u64);
                    }
                }
                if pass.deleted > 0 {
                    info!(
                        target: STEADY,
                        deleted = pass.deleted,
                        listed = pass.listed,
                        elapsed_ms,
                        "stale connections deleted"
                    );
                } else {
                    debug!(listed = pass.listed, elapsed_ms, "no stale connections");
                }
                (elapsed * PAUSE).min(LONGEST_PAUSE)
            }
            // The entries are there to stay; what could be deleted is.
            Err(Error::Refused { .. }) => {
                failures = 0;
                (elapsed * PAUSE).min(LONGEST_PAUSE)
            }
            Err(error) => {
                failures += 1;
                let pause = RETRY.0.saturating_mul(1 << failures.min(5)).min(RETRY.1);
                if failures < FAILURES {
                    let mut state = shared.lock();
                    stale.merge(std::mem::take(&mut state.pending));
                    state.pending = stale;
                } else {
                    failures = 0;
                    if let Some(times) = given_up.again(&MAY_STAY) {
                        warn!(%error, times, "stale connections stay: given up after {FAILURES} tries");
                    }
                }
                pause
            }
        };
        if shared.pause(pause) && failures > 0 {
            return;
        }
    }
}
