//! The command line. stdout is data, stderr is talk.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

mod api_server;
mod check;
mod cleanup;
mod diff;
mod dump;
mod explain;
mod flags;
mod logging;
mod reload;
mod run;
mod servers;
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
    /// Say which Service answers at an address, with which endpoints, and why. Needs no root and touches nothing.
    Explain(explain::Explain),
    /// Say what of this host stands in the way of Services, and what to do. Exit status 0: nothing but notes, 1:
    /// problems or warnings, 2: trouble. Changes nothing.
    Check(check::Check),
    /// Remove the rules that sluice made from this host, and on demand those that kube-proxy left.
    Cleanup(cleanup::Cleanup),
}

impl Command {
    /// kube-proxy's flags, where the command has them.
    fn settings(&self) -> Option<&settings::Settings> {
        match self {
            Command::Run(run) => Some(&run.settings),
            Command::Dump(dump) => Some(&dump.settings),
            Command::Diff(diff) => Some(&diff.settings),
            Command::Explain(explain) => Some(&explain.settings),
            Command::Check(check) => Some(&check.settings),
            Command::Cleanup(_) => None,
        }
    }
}

/// Runs the program. Exit status: 0, 1 for a failure (of `diff`: a difference; of `explain`: nobody answers; of
/// `check`: something was found), 2 for wrong usage (of these three: or trouble).
pub fn main() -> ExitCode {
    let command = parse(std::env::args_os()).unwrap_or_else(|error| error.exit()).command;
    if command.settings().is_some_and(|settings| settings.flags.0.is_on("version")) {
        println!("sluice {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    let result = match command {
        Command::Run(run) => run.execute(),
        Command::Dump(dump) => dump.execute(),
        Command::Diff(diff) => return status(diff.execute()),
        Command::Explain(explain) => return status(explain.execute()),
        Command::Check(check) => return status(check.execute()),
        Command::Cleanup(cleanup) => cleanup.execute(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever closed the pipe early (`sluice dump | head`) has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice: {}", in_full(&error));
            ExitCode::FAILURE
        }
    }
}

/// The exit status of commands whose 1 is an answer.
fn status(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("sluice: {}", in_full(&error));
        ExitCode::from(2)
    })
}

/// An error with its causes, each said once: many say their cause themselves.
fn in_full(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let colon = if text.is_empty() { "" } else { ": " };
            text.extend([colon, &cause]);
        }
    }
    text
}

/// The name under which the program is `sluice run`, so that a DaemonSet needs only another image.
const KUBE_PROXY: &str = "kube-proxy";

/// Reads a command line.
fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut arguments = arguments.into_iter();
    let program = arguments.next().unwrap_or_else(|| "sluice".into());
    let mut command = command();
    let is_kube_proxy = Path::new(&program).file_name().is_some_and(|name| name == KUBE_PROXY);
    if is_kube_proxy {
        command = command.mut_subcommand("run", |run| run.override_usage("kube-proxy [OPTIONS]"));
    }
    let run = is_kube_proxy.then(|| OsString::from("run"));
    let arguments = arguments.map(with_dashes);
    let matches = command.try_get_matches_from(std::iter::once(program).chain(run).chain(arguments))?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if let Command::Run(run) = &mut cli.command {
        run.settings.takeover.get_or_insert(is_kube_proxy);
    }
    Ok(cli)
}

/// The command line as clap knows it: what man pages and completions are made of.
pub fn command() -> clap::Command {
    // These take the command line of `run`, so that a DaemonSet's can be used as it is; what has no effect on them does not
    // fill their help.
    let mut command = Cli::command();
    for name in ["dump", "diff", "explain", "check"] {
        command = command.mut_subcommand(name, |c| c.mut_args(flags::hide_what_forwarding_does_not_need));
    }
    command
}

/// As in kube-proxy, the name of a flag may be written with underscores.
fn with_dashes(argument: OsString) -> OsString {
    match argument.to_str() {
        Some(text) if text.starts_with("--") => {
            let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
            (name.replace('_', "-") + value).into()
        }
        _ => argument,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    kind == Some(std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests;
