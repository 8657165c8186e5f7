//! A transaction that the kernel refuses: narrowed down to the Services that it is refused for, which are set aside,
//! so that all others are served.
//!
//! A Service set aside is held by the index at what it was when its rules were last in place, or left out. It is
//! tried again when it changes, and from time to time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::time::Instant as Clock;
use tracing::{debug, info, warn};

use super::Reconciler;
use crate::cluster::ObjectName;
use crate::dataplane::{DataPlane, Fault};
use crate::events::{Event, reasons};
use crate::forwarding::{Changes, Desired};

/// How often the Services are left out that the kernel names, before they are looked for by halves.
const ROUNDS: usize = 8;
/// The first and the longest time to the next try of a Service that was set aside.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Services that are newly to be set aside, with what the kernel said.
type Refused = BTreeMap<ObjectName, String>;

/// The Services that are set aside.
#[derive(Debug, Default)]
pub(super) struct Aside {
    services: BTreeMap<ObjectName, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    retry: Clock,
    wait: Duration,
    /// What the kernel said.
    reason: String,
}

impl Aside {
    /// The Services that are set aside, sorted.
    pub(super) fn names(&self) -> impl ExactSizeIterator<Item = &ObjectName> {
        self.services.keys()
    }

    /// When one is to be tried again.
    pub(super) fn next_retry(&self) -> Option<Clock> {
        self.services.values().map(|waiting| waiting.retry).min()
    }

    fn due(&self, now: Clock) -> Vec<ObjectName> {
        self.services.iter().filter(|(_, w)| w.retry <= now).map(|(name, _)| name.clone()).collect()
    }
}

impl<D: DataPlane> Reconciler<D> {
    /// Lets those be tried again that changed or whose time has come; the latter are added to what is worked out.
    pub(super) fn release(&mut self, worked_out: &mut Vec<ObjectName>) {
        let due = self.aside.due(Clock::now());
        for name in worked_out.iter().chain(&due) {
            self.index.release(name);
        }
        worked_out.extend(due);
        worked_out.sort_unstable();
        worked_out.dedup();
    }

    /// Applies what is desired; without `observed`, what changed. Whatever the kernel refuses goes back to what it
    /// was, and `changes` with it. Gives the number of steps.
    pub(super) fn apply_or_isolate(
        &mut self,
        desired: &mut Desired,
        changes: &mut Changes,
        observed: Option<&D::Observed>,
    ) -> Result<usize, D::Error> {
        let mut refused = BTreeMap::new();
        let result = self.narrow(desired, changes, observed, &mut refused);
        match result {
            Ok(_) => self.note_refused(refused),
            Err(_) => self.index.release_all(),
        }
        result
    }

    /// Holds what the kernel names, until it refuses nothing.
    fn narrow(
        &mut self,
        desired: &mut Desired,
        changes: &mut Changes,
        observed: Option<&D::Observed>,
        refused: &mut Refused,
    ) -> Result<usize, D::Error> {
        let mut round = 0;
        loop {
            let (plan, error) = match self.attempt(desired, changes, observed) {
                Ok(steps) => return Ok(steps),
                Err(failed) => failed,
            };
            let named = match self.plane.fault(&plan, &error) {
                Fault::Elsewhere => return Err(error),
                Fault::Named(parts) if round < ROUNDS => parts,
                Fault::Named(_) | Fault::Unnamed => {
                    debug!(%error, "looking for the Services at fault by halves");
                    return self.halve(desired, changes, observed, refused);
                }
            };
            round += 1;
            let mut held = BTreeSet::new();
            for (part, why) in named {
                for name in desired.who_asks_for(part) {
                    if held.contains(&name) || self.index.hold(&name) {
                        refused.entry(name.clone()).or_insert_with(|| why.clone());
                        held.insert(name);
                    }
                }
            }
            if held.is_empty() {
                return Err(error);
            }
            changes.extend(desired.update(&self.index, held, Instant::now()));
        }
    }

    /// Holds all Services that may be to blame, then lets them in again, half by half: each half that the kernel takes
    /// is in place at once.
    fn halve(
        &mut self,
        desired: &mut Desired,
        changes: &mut Changes,
        observed: Option<&D::Observed>,
        refused: &mut Refused,
    ) -> Result<usize, D::Error> {
        let mut suspects = self.index.changed();
        suspects.retain(|name| !refused.contains_key(name));
        let mut steps = self.fall_back(desired, changes, &mut suspects, observed)?;
        let mut parts = vec![suspects];
        while let Some(mut part) = parts.pop() {
            part.iter().for_each(|name| self.index.release(name));
            let mut tried = desired.update(&self.index, part.iter().cloned(), Instant::now());
            let result = self.attempt(desired, &tried, None);
            let result = match result {
                Ok(steps) => Ok(steps),
                Err((plan, error)) if matches!(self.plane.fault(&plan, &error), Fault::Elsewhere) => {
                    Err(error)
                }
                Err((_, error)) => {
                    let alone = part.clone();
                    // It may be about another Service, that gets what this one gives up.
                    part.extend(winners(desired, &tried).into_iter().filter(|name| !alone.contains(name)));
                    let result = self.fall_back(desired, &mut tried, &mut part, None);
                    match &alone[..] {
                        [one] if part.len() == 1 => _ = refused.insert(one.clone(), error.to_string()),
                        [one] => {
                            part.retain(|name| name != one);
                            parts.extend([part, alone]);
                        }
                        _ => {
                            let half = part.split_off(part.len() / 2);
                            parts.extend([half, part]);
                        }
                    }
                    result
                }
            };
            changes.extend(tried);
            steps += result?;
        }
        Ok(steps)
    }

    /// Holds these Services, and applies what that makes of the changes. Where even what they were before is refused,
    /// or its endpoints in another order, they are left out; where that does not help, so are those that get or keep
    /// frontends by the change, and `names` has them, too.
    fn fall_back(
        &mut self,
        desired: &mut Desired,
        changes: &mut Changes,
        names: &mut Vec<ObjectName>,
        observed: Option<&D::Observed>,
    ) -> Result<usize, D::Error> {
        loop {
            let mut differs = false;
            names.iter().for_each(|name| differs |= self.index.hold(name));
            changes.extend(desired.update(&self.index, names.iter().cloned(), Instant::now()));
            let error = match self.attempt(desired, changes, observed) {
                Ok(steps) => break Ok(steps),
                Err((_, error)) => error,
            };
            if !differs {
                let more = winners(desired, changes);
                if more.is_empty() {
                    break Err(error);
                }
                names.extend(more);
                names.sort_unstable();
                names.dedup();
            }
        }
    }

    /// Plans and applies once.
    fn attempt(
        &mut self,
        desired: &Desired,
        changes: &Changes,
        observed: Option<&D::Observed>,
    ) -> Result<usize, (D::Plan, D::Error)> {
        let plan = match observed {
            Some(observed) => self.plane.plan(desired, observed),
            None => self.plane.plan_changes(changes),
        };
        let steps = self.plane.steps(&plan);
        if steps == 0 {
            return Ok(0);
        }
        if observed.is_some() {
            self.found_drift();
        }
        let start = Instant::now();
        let result = self.plane.apply(&plan);
        self.reporting.metrics.commit_duration.observe(start.elapsed().as_secs_f64());
        match result {
            Ok(()) => Ok(steps),
            Err(error) => {
                self.reporting.errors(&self.plane.errnos(&error));
                self.reporting.refused();
                Err((plan, error))
            }
        }
    }

    /// Keeps account of who is set aside; said once, as long as the reason is the same.
    fn note_refused(&mut self, refused: Refused) {
        let now = Clock::now();
        self.aside.services.retain(|name, _| {
            let stays = refused.contains_key(name) || self.index.is_held(name);
            if !stays {
                info!(service = %name, "served again as it should be");
            }
            stays
        });
        for (name, reason) in refused {
            let before = self.aside.services.get(&name);
            let wait = before.map_or(RETRY.0, |before| (before.wait * 2).min(RETRY.1));
            if before.is_some_and(|before| before.reason == reason) {
                debug!(service = %name, reason, retry_s = wait.as_secs(), "still set aside");
            } else {
                let rules = match self.index.service(&name) {
                    Some(_) => "its rules stay as they were before its last change",
                    None => "it has no rules",
                };
                warn!(service = %name, "set aside, {rules}: {reason}; tried again when it changes, and from time to time");
                if let Some(service) = self.index.newest(&name) {
                    let note = format!(
                        "{reason}; {rules}. It is tried again when it changes, and from time to time."
                    );
                    self.reporting.events.send(Event::warning(&name, &service.uid, reasons::SET_ASIDE, note));
                }
            }
            self.aside.services.insert(name, Waiting { retry: now + wait, wait, reason });
        }
        self.reporting.metrics.services_set_aside.set(self.aside.services.len() as i64);
    }
}

/// The Services that have a frontend after a change that they had not, or not so, before.
fn winners(desired: &Desired, changes: &Changes) -> BTreeSet<ObjectName> {
    let winners = changes.frontends.keys().filter_map(|key| Some(desired.frontend(key)?.1));
    winners.map(|service| service.name.clone()).collect()
}
