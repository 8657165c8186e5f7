//! The kernel's part, in a network namespace of its own; needs root.
//!
//! `cargo bench --bench kernel`. A plain program that prints figures: one load is one measurement.

#[path = "synthetic.rs"]
mod synthetic;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use sluice::cluster::Interner;
use sluice::dataplane::DataPlane;
use sluice::dataplane::nftables::Nftables;
use sluice::forwarding::Desired;
use synthetic::{index, node, settings};

const ENDPOINTS: u32 = 10;
const SERVICES: [u32; 3] = [1_000, 10_000, 50_000];
const CHANGES: u32 = 500;

fn main() -> ExitCode {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        eprintln!("a network namespace of its own is needed, and so is root: {error}");
        return ExitCode::FAILURE;
    }
    println!(
        "| services x {ENDPOINTS} | first load | restart: read back and compared | endpoint replaced p50 / p99 | service added p50 / p99 | resident |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for services in SERVICES {
        match measure(services) {
            Ok(row) => println!("{row}"),
            Err(error) => {
                eprintln!("{services} services: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn measure(services: u32) -> Result<String, Box<dyn std::error::Error>> {
    let mut index = index(services, ENDPOINTS);
    let mut plane = Nftables::open()?;
    let observed = plane.observe(&settings())?;
    let (mut desired, _) = Desired::from_scratch(&index, node(), settings());
    let plan = plane.plan(&desired, &observed);
    let start = Instant::now();
    plane.apply(&plan)?;
    let load = start.elapsed();
    drop((plan, observed));
    let mut names = Interner::default();
    let mut replaced = Vec::new();
    for generation in 1..=CHANGES {
        let change = synthetic::slice(&mut names, generation % services, ENDPOINTS, generation);
        replaced.push(synthetic::change(&mut index, &mut desired, &mut plane, change)?);
    }
    let mut added = Vec::new();
    for number in services..services + CHANGES / 5 {
        index.apply(synthetic::slice(&mut names, number, ENDPOINTS, 0));
        index.take_dirty();
        let change = synthetic::service(&mut names, number);
        added.push(synthetic::change(&mut index, &mut desired, &mut plane, change)?);
    }
    let resident = resident()?;
    let start = Instant::now();
    let observed = plane.observe(&settings())?;
    let plan = plane.plan(&desired, &observed);
    // Above some size a table is sooner made anew than compared; that is what a restart does there.
    let anew = observed.values().flatten().any(|table| table.difference.is_some());
    if anew {
        plane.apply(&plan)?;
    } else if !plan.is_empty() {
        return Err(format!("{} steps are left", plan.len()).into());
    }
    let restart = start.elapsed();
    plane.cleanup()?;
    Ok(format!(
        "| {services} | {load:.2?} | {restart:.2?}{} | {} | {} | {resident} MiB |",
        if anew { " (made anew)" } else { "" },
        quantiles(replaced),
        quantiles(added)
    ))
}

fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| {
        times.get((times.len() * percent / 100).min(times.len() - 1)).copied().unwrap_or_default()
    };
    format!("{:.2?} / {:.2?}", at(50), at(99))
}

/// Resident memory of this process, MiB.
fn resident() -> std::io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024)
}
