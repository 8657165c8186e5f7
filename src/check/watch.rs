//! The agent's own look for firewalls that drop Services' packets: at the start and as long as it runs.

use std::collections::BTreeSet;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::dropping;
use crate::config::Config;
use crate::events::{Event, Events, Type, reasons};

/// How often others' base chains are looked at.
const INTERVAL: Duration = Duration::from_secs(10);

/// Says what is found when it is new, in the log and in an event of the Node, and how much there is now, by check. Does not
/// end.
pub async fn watch(config: Config, gauges: [(&'static str, IntGauge); 2], events: Events) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known: BTreeSet<String> = BTreeSet::new();
    loop {
        ticks.tick().await;
        let config = config.clone();
        let Ok(findings) = tokio::task::spawn_blocking(move || dropping(&config)).await else { return };
        for finding in findings.iter().filter(|finding| !known.contains(&finding.what)) {
            let note = format!("{}. Remedy: {}", finding.what, finding.remedy);
            warn!("{note}");
            events.send(Event::node(Type::Warning, reasons::FIREWALL, note));
        }
        for (check, gauge) in &gauges {
            gauge.set(findings.iter().filter(|finding| finding.check == *check).count() as i64);
        }
        let now: BTreeSet<String> = findings.into_iter().map(|finding| finding.what).collect();
        if now.is_empty() && !known.is_empty() {
            info!("no chain of others drops Services' packets any more");
        }
        known = now;
    }
}
