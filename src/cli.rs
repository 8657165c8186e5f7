//! The command line. stdout is data, stderr is talk.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod api_server;
mod cleanup;
mod diff;
mod dump;
mod logging;
mod run;
mod settings;

/// A kube-proxy replacement: Kubernetes Services as nftables set elements.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, propagate_version = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent: keep this host's rules equal to what the Services ask for.
    Run(run::Run),
    /// Print the rules that a node would get, as nft text. Needs no root and touches nothing.
    Dump(dump::Dump),
    /// Compare what the rules should be with what is on this host. Exit status 0: equal, 1: they differ, 2: trouble.
    Diff(diff::Diff),
    /// Remove the rules that sluice made from this host.
    Cleanup(cleanup::Cleanup),
}

/// Runs the program. Exit status: 0, 1 for a failure (of `diff`: a difference), 2 for wrong usage (of `diff`:
/// trouble).
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(run) => run.execute(),
        Command::Dump(dump) => dump.execute(),
        Command::Diff(diff) => {
            return diff.execute().unwrap_or_else(|error| {
                eprintln!("sluice: {error:#}");
                ExitCode::from(2)
            });
        }
        Command::Cleanup(cleanup) => cleanup.execute(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever closed the pipe early (`sluice dump | head`) has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    kind == Some(std::io::ErrorKind::BrokenPipe)
}
