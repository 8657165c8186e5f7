//! Logs go to stderr.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, registry};

use crate::config::Logging;
use crate::log::STEADY;

/// Starts to log.
pub fn start(logging: Logging) {
    start_at(targets(logging.verbosity), logging.json);
}

/// Levels are kube-proxy's: 0 what an operator needs, 2 each sync, 4 each plan, from 6 on everything.
fn targets(verbosity: u32) -> Targets {
    let level = match verbosity {
        0..=3 => LevelFilter::INFO,
        4..=5 => LevelFilter::DEBUG,
        6.. => LevelFilter::TRACE,
    };
    let steady = if verbosity < 2 { LevelFilter::OFF } else { level };
    Targets::new().with_default(level).with_target(STEADY, steady)
}

/// Warnings only, for commands that print data.
pub fn warnings_only() {
    start_at(Targets::new().with_default(LevelFilter::WARN), false);
}

fn start_at(targets: Targets, json: bool) {
    // Colours are not built in; asking for them on a terminal is a panic, or a line of complaint.
    let log = fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    let log = registry().with(targets).with((!json).then_some(log));
    // With the message among the fields, as kube-proxy's; a span's fields would be in the way.
    let json = json.then(|| {
        let log = fmt::layer().json().flatten_event(true).with_current_span(false).with_span_list(false);
        log.with_writer(std::io::stderr).with_ansi(false).with_target(false)
    });
    // A second start within one process (tests) keeps the first.
    let _ = log.with(json).try_init();
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn levels_are_kube_proxys() {
        for verbosity in 0..=10 {
            let shows = |target: &str, level| targets(verbosity).would_enable(target, &level);
            assert!(shows("sluice::app", Level::ERROR) && shows("sluice::app", Level::INFO), "{verbosity}");
            assert_eq!(shows(STEADY, Level::INFO), verbosity >= 2, "{verbosity}");
            assert_eq!(shows("sluice::app", Level::DEBUG), verbosity >= 4, "{verbosity}");
            assert_eq!(shows("sluice::app", Level::TRACE), verbosity >= 6, "{verbosity}");
        }
    }
}
