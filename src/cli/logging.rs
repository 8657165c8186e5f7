//! Logs go to stderr.

use std::io::IsTerminal;

use clap::Args;
use tracing::level_filters::LevelFilter;

/// Flags about logs; names and levels are kube-proxy's.
#[derive(Debug, Args)]
pub struct Logging {
    /// Verbosity: 0 to 3 what an operator needs, 4 and 5 each plan, 6 and more everything.
    #[arg(short = 'v', long = "v", value_name = "LEVEL", default_value_t = 0)]
    verbosity: u8,
    /// text or json.
    #[arg(long, value_name = "FORMAT", value_parser = ["text", "json"], default_value = "text")]
    logging_format: String,
}

impl Logging {
    /// Starts to log.
    pub fn start(&self) {
        let level = match self.verbosity {
            0..=3 => LevelFilter::INFO,
            4..=5 => LevelFilter::DEBUG,
            6.. => LevelFilter::TRACE,
        };
        start(level, self.logging_format == "json");
    }
}

/// Warnings only, for commands that print data.
pub fn warnings_only() {
    start(LevelFilter::WARN, false);
}

fn start(level: LevelFilter, json: bool) {
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_max_level(level);
    // A second start within one process (tests) keeps the first.
    let _ = if json { log.json().try_init() } else { log.try_init() };
}
