//! The agent's own look for firewalls that drop Services' packets: at the start and as long as it runs.

use std::collections::BTreeSet;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::forward_chains;
use crate::config::Config;

/// How often others' base chains are looked at.
const INTERVAL: Duration = Duration::from_secs(10);

/// Says what is found when it is new, and how much there is now. Does not end.
pub async fn watch(config: Config, found: IntGauge) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known: BTreeSet<String> = BTreeSet::new();
    loop {
        ticks.tick().await;
        let config = config.clone();
        let Ok(findings) = tokio::task::spawn_blocking(move || forward_chains(&config)).await else { return };
        for finding in findings.iter().filter(|finding| !known.contains(&finding.what)) {
            warn!("{}. Remedy: {}", finding.what, finding.remedy);
        }
        let now: BTreeSet<String> = findings.into_iter().map(|finding| finding.what).collect();
        if now.is_empty() && !known.is_empty() {
            info!("no chain of others drops what goes through this host any more");
        }
        found.set(now.len() as i64);
        known = now;
    }
}
