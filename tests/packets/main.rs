//! Real packets through the real agent: a node, its pods and clients out of network namespaces.
//!
//! Each case of `testdata/cases` is a test of its name, `cargo test --test packets -- NAME`, and once more with the
//! prefix `api::`, where the agent has its objects from an API server and its configuration from a file. Needs root,
//! iproute2, nft and conntrack, and fails without.

mod agent;
#[path = "../apiserver/server.rs"]
#[allow(dead_code)]
mod apiserver;
mod case;
mod cluster;
#[path = "../support/events.rs"]
#[allow(dead_code)] // Other tests use the rest.
mod events;
mod ipv6;
mod ipvs_differences;
mod lab;
mod netns;
mod not_covered;
mod probe;
mod run;
mod scenarios;
mod server;
mod topology;
mod traced;
#[path = "../support/tracer.rs"]
mod tracer;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use serde_json::Value;

use crate::agent::{AgentOptions, Source};
use crate::case::Case;
use crate::lab::Lab;
use crate::not_covered::{HTTP_CHECKS, NOT_COVERED};
use crate::scenarios::{IPVS_SCENARIOS, SCENARIOS};

/// Cases run beside each other, each in a lab of its own: they mostly wait.
const THREADS: usize = 4;

/// How often failed checks are made again before they count: conntrack entries go just after the rules.
const REPEATS: usize = 12;

/// Cases of [`NOT_COVERED`] that were run, and whether they passed.
static NOT_COVERED_SEEN: Mutex<Vec<(String, bool)>> = Mutex::new(Vec::new());

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(THREADS));
    let trials = match trials() {
        Ok(trials) => trials,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    if !arguments.list {
        netns::remove_stale();
        raise_file_limit();
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    lab::close();
    if !arguments.list {
        summary();
    }
    conclusion.exit_code()
}

fn trials() -> Result<Vec<Trial>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cases");
    let cases = case::read_all(&directory)?;
    let sources = [(Source::Manifests, ""), (Source::ApiServer, "api::")];
    let each = |source: (Source, &'static str)| {
        // What is read does not depend on the family; once is enough for the other one.
        let cases = cases.iter().filter(move |(file, _)| source.1.is_empty() || !file.starts_with("v6::"));
        cases.cloned().map(move |case| (source, case))
    };
    // IPVS does not depend on where objects come from.
    let in_ipvs = cases.iter().map(|(file, case)| ipvs_trial(file, case)).collect::<Result<Vec<_>>>()?;
    let cases = sources.into_iter().flat_map(each).map(|((source, prefix), (file, case))| {
        let name = case.name.clone();
        let repeats = if is_covered(&name) { REPEATS } else { 0 };
        // With nothing to count it could not fail.
        let only_http = HTTP_CHECKS.is_some() && only_http(&case);
        // `make vm` runs these, with --include-ignored: kernels without SCTP are common.
        let sctp = file == "sctp";
        let group = format!("{prefix}{file}");
        let run = move || run_case(&case, source, repeats, sctp);
        trial(&group, &name, run).with_ignored_flag(only_http || sctp)
    });
    let scenarios = SCENARIOS.iter().map(|scenario| trial("scenarios", scenario.name, || scenario.run()));
    let traced = std::iter::once(trial("scenarios", "traced-clusters", traced::run));
    let scenarios_in_ipvs = IPVS_SCENARIOS
        .iter()
        .map(|scenario| trial("ipvs::scenarios", scenario.name, || scenario.run()).with_ignored_flag(true));
    Ok(traced.chain(scenarios).chain(scenarios_in_ipvs).chain(cases).chain(in_ipvs).collect())
}

/// The case in mode ipvs: `make vm` runs some of these, `make vm-all` all, with --include-ignored.
fn ipvs_trial(file: &str, case: &Case) -> Result<Trial> {
    let mut case = case.clone().in_ipvs();
    ipvs_differences::apply(&mut case, file.starts_with("v6::"))?;
    let mode = case.config.entry("mode").or_insert_with(|| Value::from("ipvs"));
    let ipvs = mode == "ipvs";
    let name = case.name.clone();
    let sctp = file == "sctp";
    let run = move || run_case(&case, Source::Manifests, REPEATS, sctp);
    Ok(trial(&format!("ipvs::{file}"), &name, run).with_ignored_flag(ipvs))
}

fn only_http(case: &Case) -> bool {
    let mut steps = case.steps.iter();
    case.flows.is_empty()
        && case.conntrack_gone.is_empty()
        && steps.all(|step| step.flows.is_empty() && step.conntrack_gone.is_empty())
}

fn is_covered(name: &str) -> bool {
    NOT_COVERED.iter().all(|(it, _)| *it != name)
}

fn trial(group: &str, name: &str, run: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    let short = name.to_owned();
    Trial::test(format!("{group}::{name}"), move || {
        let result = run();
        if is_covered(&short) {
            return result.map_err(|error| Failed::from(format!("{error:#}")));
        }
        let mut seen = NOT_COVERED_SEEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        seen.push((short, result.is_ok()));
        Ok(())
    })
}

fn run_case(case: &Case, source: Source, repeats: usize, sctp: bool) -> Result<()> {
    let options = AgentOptions { binary: binary(), source, config: case.config.clone() };
    // What a case changes on the node besides the agent's rules stays in a lab of its own.
    let own_lab = case.topology.bridge || changes_node(case) || sctp;
    let mut lab = if own_lab { Lab::start(options, case.topology.network())? } else { lab::take(options)? };
    if sctp {
        lab.topology.serve_sctp()?;
    }
    match run::run(&mut lab, case, repeats).and_then(|()| lab.clear()) {
        Ok(()) if own_lab => Ok(()),
        Ok(()) => {
            lab::give_back(lab);
            Ok(())
        }
        Err(error) => Err(anyhow::anyhow!("{error:#}\n{}", lab.report())),
    }
}

fn changes_node(case: &Case) -> bool {
    !case.nft.is_empty() || case.steps.iter().any(|step| !step.nft.is_empty())
}

/// The agent under test: `SLUICE` names another build of it.
fn binary() -> PathBuf {
    std::env::var_os("SLUICE").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_sluice")), PathBuf::from)
}

/// A case may hold thousands of sockets, many systems start with 1024.
fn raise_file_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Where this is refused, a case says which socket could not be made.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard.min(1 << 16), hard);
    }
}

fn summary() {
    let late = run::LATE.load(Ordering::Relaxed);
    if late > 0 {
        println!("{late} time(s) checks were right only when repeated a quarter of a second later");
    }
    let [passed, failed] = [0, 1].map(|index| run::UNCOUNTED_HTTP[index].load(Ordering::Relaxed));
    if let Some(reason) = HTTP_CHECKS.filter(|_| passed + failed > 0) {
        println!("HTTP checks not counted yet ({reason}): {passed} passed, {failed} failed");
    }
    let seen = NOT_COVERED_SEEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (name, passed) in seen.iter() {
        let reason = NOT_COVERED.iter().find(|(it, _)| it == name).map_or("", |(_, reason)| reason);
        if *passed {
            println!("NOW PASSES, remove it from not_covered.rs: {name} ({reason})");
        } else {
            println!("not covered yet: {name} ({reason})");
        }
    }
    if !seen.is_empty() {
        let passed = seen.iter().filter(|(_, passed)| *passed).count();
        println!("{} case(s) not covered yet, of which {passed} pass", seen.len());
    }
}
