//! Wires the tasks of `sluice run`: the source feeds a channel, one loop reconciles.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tracing::{debug, error, info, warn};

use crate::config::Config;
use crate::dataplane::{DataPlane, Look, ipvs};
use crate::log::Repeated;
use crate::netlink::AddressChanges;
use crate::reconcile::{Reconciler, Report};
use crate::source::Batch;

/// How often the kernel is asked whether somebody else changed rules; one request of some 30 µs.
const DRIFT_INTERVAL: Duration = Duration::from_millis(200);
/// Others commit all day: looking at our tables for it takes one part in so many of the time, comparing everything only
/// to be sure one part in so many.
const LOOKS: u32 = 200;
const COMPARISONS: u32 = 100;
/// However long a look takes, the next one is not later.
const LONGEST_LOOK_PAUSE: Duration = Duration::from_secs(1);
/// How often the host's addresses are looked at besides when the kernel says that they changed, and where it cannot
/// be asked to say so.
const ADDRESS_INTERVAL: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(5));
/// How often the log says that the own Node is waited for.
const NODE_INTERVAL: Duration = Duration::from_secs(10);
/// After a failed sync: the first and the longest time to the next try.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Reconciles until the source ends or a signal comes. The rules stay.
///
/// Commits are at least `min_sync_period` apart: the first change after a quiet time is written at once, those that
/// come meanwhile are written together when the period is over. What comes by `configs` replaces the reconciler's
/// configuration, and that period.
pub async fn run<D: DataPlane>(
    mut reconciler: Reconciler<D>,
    mut source: mpsc::Receiver<Batch>,
    mut min_sync_period: Duration,
    mut configs: mpsc::Receiver<Config>,
) {
    let mut terminate = match signals() {
        Ok(signals) => signals,
        Err(error) => {
            error!(%error, "cannot listen for signals");
            return;
        }
    };
    let mut drift = interval(DRIFT_INTERVAL);
    // Before the first look, so that no change falls between them.
    let mut address_changes = AddressChanges::open(ipvs::model::DEVICE)
        .inspect_err(|error| warn!(%error, "changes of the host's addresses are seen only every 5 s"))
        .ok();
    let mut addresses =
        interval(if address_changes.is_some() { ADDRESS_INTERVAL.0 } else { ADDRESS_INTERVAL.1 });
    drift.set_missed_tick_behavior(MissedTickBehavior::Delay);
    addresses.set_missed_tick_behavior(MissedTickBehavior::Delay);
    reconciler.refresh_host_addresses();
    let mut schedule = Schedule::new();
    let (mut blind, mut untended) = (Repeated::default(), Repeated::default());
    loop {
        let wake = schedule.wake(reconciler.next_retry());
        tokio::select! {
            biased;
            () = terminate.wait() => {
                info!("terminated; the rules stay in place");
                return;
            }
            batch = source.recv() => {
                let Some(batch) = batch else {
                    warn!("the source of objects ended; the rules stay in place");
                    return;
                };
                // What came meanwhile goes into the same transaction.
                for batch in std::iter::once(batch).chain(std::iter::from_fn(|| source.try_recv().ok())) {
                    schedule.complete |= batch.synced;
                    reconciler.apply(batch.changes);
                }
            }
            Some(config) = configs.recv() => {
                min_sync_period = config.min_sync_period;
                reconciler.reconfigure(config);
            }
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            _ = drift.tick(), if schedule.watches_for_drift() => {
                if tend(&mut reconciler, &mut untended) {
                    let now = Instant::now();
                    let thorough = now >= schedule.compare_again;
                    if now < schedule.look_again || reconciler.is_to_compare() {
                        continue;
                    }
                    let look = look(&mut reconciler, thorough, &mut blind);
                    schedule.looked(now);
                    if look == Look::AsLeft {
                        continue;
                    }
                    reconciler.compare(look);
                }
            }
            () = changed(&mut address_changes, &mut addresses) => {
                reconciler.refresh_host_addresses();
                if !schedule.complete || reconciler.desired().is_some() {
                    continue;
                }
            }
        }
        if schedule.complete {
            reconciler.listed();
            let missing = reconciler.missing_node();
            schedule.missing = missing.map(|what| say(what, reconciler.node_name(), schedule.missing));
        }
        if schedule.is_due() {
            let result = without_blocking_others(|| reconciler.sync());
            schedule.synced(result, min_sync_period);
        }
    }
}

/// What the loop waits for.
struct Schedule {
    /// The source has said everything once; nothing is touched before.
    complete: bool,
    /// What is missing of the Node, and when the log says it again.
    missing: Option<(Instant, &'static str)>,
    /// After a failed sync: when to try again, and how long that was from the failure.
    retry: Option<(Instant, Duration)>,
    /// The next commit may not be before this.
    not_before: Instant,
    /// Something is to be synced then.
    waiting: bool,
    /// Failed syncs in a row.
    failing: Repeated,
    /// When it is time to look again whether somebody else changed rules.
    look_again: Instant,
    /// When it is time to compare everything only to be sure that nobody did.
    compare_again: Instant,
}

impl Schedule {
    fn new() -> Schedule {
        let now = Instant::now();
        Schedule {
            complete: false,
            missing: None,
            retry: None,
            not_before: now,
            waiting: false,
            failing: Repeated::default(),
            look_again: now,
            compare_again: now,
        }
    }

    /// When there is something to do even if nothing happens; at the latest then, where all is well so far.
    fn wake(&self, latest: Option<Instant>) -> Option<Instant> {
        match (self.missing, self.retry) {
            (Some((say_again, _)), _) => Some(say_again),
            (None, Some((at, _))) => Some(at),
            (None, None) if self.waiting => Some(self.not_before),
            (None, None) => latest,
        }
    }

    /// Rules that were never written, or not as they should be, need not be watched.
    fn watches_for_drift(&self) -> bool {
        self.complete && self.missing.is_none() && self.retry.is_none()
    }

    /// Whether a sync may be done now; remembers if one is to be done later.
    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        if !self.complete || self.missing.is_some() || self.retry.is_some_and(|(at, _)| now < at) {
            return false;
        }
        self.waiting = now < self.not_before;
        !self.waiting
    }

    /// Looking whether somebody else changed rules took from `start` until now.
    fn looked(&mut self, start: Instant) {
        self.look_again = Instant::now() + (start.elapsed() * LOOKS).min(LONGEST_LOOK_PAUSE);
    }

    fn synced<E: std::error::Error>(&mut self, result: Result<Report, E>, min_sync_period: Duration) {
        match result {
            Ok(report) => {
                self.retry = None;
                if let Some(times) = self.failing.ended() {
                    info!(failures = times, "syncs work again");
                }
                if report.steps > 0 {
                    self.not_before = Instant::now() + min_sync_period;
                }
                if report.full {
                    // Putting right what others change all the time may take a quarter of the time.
                    self.look_again = Instant::now() + report.elapsed * 3;
                    self.compare_again = Instant::now() + report.elapsed * COMPARISONS;
                }
            }
            Err(error) => {
                let wait = self.retry.map_or(RETRY.0, |(_, wait)| (wait * 2).min(RETRY.1));
                self.retry = Some((Instant::now() + wait, wait));
                let retry_ms = wait.as_millis() as u64;
                match self.failing.again(&error) {
                    Some(failures) => error!(%error, failures, retry_ms, "sync failed"),
                    None => debug!(%error, retry_ms, "sync failed"),
                }
            }
        }
    }
}

/// Says what of the Node is missing, if that is new or it is time to; returns what was said and when to say it again.
fn say(missing: &'static str, node: &str, said: Option<(Instant, &'static str)>) -> (Instant, &'static str) {
    match said.filter(|(next, what)| *what == missing && Instant::now() < *next) {
        Some(said) => said,
        None => {
            info!(node, "waiting for the own Node before any rules are written: {missing}");
            (Instant::now() + NODE_INTERVAL, missing)
        }
    }
}

/// Waits until the host's addresses changed or it is time to look.
async fn changed(changes: &mut Option<AddressChanges>, looks: &mut Interval) {
    let told = async {
        match changes {
            Some(changes) => changes.changed().await,
            None => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        result = told => result,
        _ = looks.tick() => return,
    };
    if let Err(error) = result {
        warn!(%error, "changes of the host's addresses are seen only every 5 s from now on");
        *changes = None;
        *looks = interval(ADDRESS_INTERVAL.1);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
}

/// A sync may take long; where the runtime has other threads, its other tasks move there.
fn without_blocking_others<T>(work: impl FnOnce() -> T) -> T {
    match tokio::runtime::Handle::current().runtime_flavor() {
        tokio::runtime::RuntimeFlavor::CurrentThread => work(),
        _ => tokio::task::block_in_place(work),
    }
}

/// Whether what time brings went well; if not, everything is to be compared.
fn tend<D: DataPlane>(reconciler: &mut Reconciler<D>, untended: &mut Repeated) -> bool {
    match without_blocking_others(|| reconciler.tend()) {
        Ok(()) => {
            if let Some(times) = untended.ended() {
                info!(times, "endpoints that went are looked after again");
            }
            true
        }
        Err(error) => {
            if let Some(times) = untended.again(&error) {
                warn!(%error, times, "endpoints that went could not be looked after");
            }
            false
        }
    }
}

fn look<D: DataPlane>(reconciler: &mut Reconciler<D>, thorough: bool, blind: &mut Repeated) -> Look {
    match reconciler.look(thorough) {
        Ok(look) => {
            if blind.ended().is_some() {
                info!("the kernel says again whether rules changed");
            }
            if look == Look::Changed {
                debug!("somebody else changed rules; comparing");
            }
            look
        }
        Err(error) => {
            if let Some(times) = blind.again(&error) {
                warn!(%error, times, "cannot ask the kernel whether rules changed");
            }
            Look::AsLeft
        }
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

fn signals() -> std::io::Result<Signals> {
    use tokio::signal::unix::{SignalKind, signal};
    Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
}

impl Signals {
    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests;
