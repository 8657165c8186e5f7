//! Logs go to stderr.

use tracing::level_filters::LevelFilter;

use crate::config::Logging;

/// Starts to log. Levels are kube-proxy's: 0 to 3 what an operator needs, 4 and 5 each plan, then everything.
pub fn start(logging: Logging) {
    let level = match logging.verbosity {
        0..=3 => LevelFilter::INFO,
        4..=5 => LevelFilter::DEBUG,
        6.. => LevelFilter::TRACE,
    };
    start_at(level, logging.json);
}

/// Warnings only, for commands that print data.
pub fn warnings_only() {
    start_at(LevelFilter::WARN, false);
}

fn start_at(level: LevelFilter, json: bool) {
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        // Colours are not built in; asking for them on a terminal is a panic, or a line of complaint.
        .with_ansi(false)
        .with_target(false)
        .with_max_level(level);
    // A second start within one process (tests) keeps the first.
    let _ = if json { log.json().try_init() } else { log.try_init() };
}
