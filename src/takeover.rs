//! Takes a node over from kube-proxy: once the own rules are in place, what kube-proxy left goes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use crate::health::Status;
use crate::host::kube_proxy::{self, Leftovers, running};

/// How often the first sync is waited for.
const FIRST_SYNC: Duration = Duration::from_millis(100);
/// How often leftovers are looked for.
const INTERVAL: Duration = Duration::from_secs(10);
/// After rules came back: the shortest and the longest time before they are removed again.
const AGAIN: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// What is to be done about leftovers.
#[derive(Clone, Copy, Debug)]
pub struct Takeover {
    /// Remove them; otherwise they are told of.
    pub remove: bool,
    /// Look in IPVS, too: not in mode ipvs, whose own it is.
    pub ipvs: bool,
    /// Where a running kube-proxy would serve its metrics.
    pub metrics: SocketAddr,
}

/// What was said and done so far.
#[derive(Debug, Default)]
struct State {
    said: Option<&'static str>,
    /// When rules were removed that others may make again, and how long to wait then.
    removed: Option<(Instant, Duration)>,
}

impl Takeover {
    /// Waits for the first sync, then looks again and again; does not end.
    pub async fn run(self, status: Arc<Status>) {
        while !status.has_synced() {
            sleep(FIRST_SYNC).await;
        }
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut state = State::default();
        loop {
            ticks.tick().await;
            let look = move || {
                self.look(&mut state);
                state
            };
            match tokio::task::spawn_blocking(look).await {
                Ok(after) => state = after,
                Err(_) => return,
            }
        }
    }

    fn look(self, state: &mut State) {
        let left = kube_proxy::find(self.ipvs);
        if left.found.is_empty() && left.errors.is_empty() {
            state.said = None;
            return;
        }
        if left.found.is_empty() {
            state.say("hidden", &format!("cannot see whether kube-proxy left rules: {}", errors(&left)));
            return;
        }
        if !self.remove {
            state.say("present", &format!(
                "kube-proxy's rules are on this host and are in the way ({}): they refuse what they do not know. If it \
                 does not run any more, `sluice cleanup --kube-proxy` removes them, as does `run --takeover`",
                list(&left)
            ));
            return;
        }
        if let Some(signs) = running::signs(self.metrics) {
            state.say(
                "running",
                &format!("{signs}: its rules stay and are in the way of these. {}", running::REMEDY),
            );
            return;
        }
        let wait = match state.removed {
            None => AGAIN.0,
            Some((at, wait)) => {
                state.say("back", &format!(
                    "kube-proxy's rules came back after they were removed: a kube-proxy is running on this host, though \
                     neither its process nor its port is seen from here. {}",
                    running::REMEDY
                ));
                if at.elapsed() < wait {
                    return;
                }
                (wait * 2).min(AGAIN.1)
            }
        };
        let left = kube_proxy::remove(self.ipvs);
        if !left.found.is_empty() {
            info!("removed what kube-proxy left: {}", list(&left));
            state.removed = Some((Instant::now(), wait));
        }
        if !left.errors.is_empty() {
            state.say("stuck", &format!("not all that kube-proxy left could be removed: {}", errors(&left)));
        }
    }
}

impl State {
    /// Says something once while it lasts.
    fn say(&mut self, about: &'static str, what: &str) {
        if self.said != Some(about) {
            warn!("{what}");
            self.said = Some(about);
        }
    }
}

fn list(left: &Leftovers) -> String {
    left.found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn errors(left: &Leftovers) -> String {
    left.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
