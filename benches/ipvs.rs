//! IPVS's part, with ipvsadm's figures beside ours; needs root, ipvsadm and a kernel with IPVS.
//!
//! `benches/ipvs` builds it and runs it under Debian's kernel in an emulated machine: compare the columns, not with
//! other machines.

#[path = "synthetic.rs"]
mod synthetic;

use std::error::Error;
use std::io::Write;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use sluice::cluster::{Interner, Scheduler};
use sluice::config;
use sluice::dataplane::DataPlane;
use sluice::dataplane::ipvs::Ipvs;
use sluice::dataplane::ipvs::kernel::Kernel;
use sluice::dataplane::ipvs::plan::from_nothing;
use sluice::dataplane::nftables::translation::Translation;
use sluice::forwarding::{Desired, Settings};
use synthetic::{index, node};

const ENDPOINTS: u32 = 10;
const SERVICES: [u32; 2] = [1_000, 10_000];
const CHANGES: u32 = 50;

fn main() -> ExitCode {
    println!(
        "| services x {ENDPOINTS} | load: all | of it IPVS | ipvsadm -R | restart: read back and compared | endpoint replaced, p50 | ipvsadm -a, -d, p50 | counts of all read |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
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

fn settings() -> Settings {
    Settings { ipvs: Some(Scheduler::Rr), ..synthetic::settings() }
}

/// Without any address of its own a host takes all others for broadcast addresses, which IPVS refuses.
fn new_namespace() -> Result<(), Box<dyn Error>> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    if status.success() { Ok(()) } else { Err(format!("ip: {status}").into()) }
}

fn measure(services: u32) -> Result<String, Box<dyn Error>> {
    new_namespace()?;
    let mut index = index(services, ENDPOINTS);
    let open = || Ipvs::open(config::Ipvs::default(), Duration::from_secs(3600));
    let mut plane = open()?;
    let observed = plane.observe(&settings())?;
    let (mut desired, _) = Desired::from_scratch(&index, node(), settings());
    let lines: String = from_nothing(&desired, Translation::of(&desired))
        .iter()
        .map(|step| format!("{step}\n"))
        .filter(|line| line.starts_with('-'))
        .collect();
    let plan = plane.plan(&desired, &observed);
    let start = Instant::now();
    plane.apply(&plan)?;
    let load = start.elapsed();
    let mut names = Interner::default();
    let mut replaced = Vec::new();
    for generation in 1..=CHANGES {
        let change = synthetic::slice(&mut names, generation % services, ENDPOINTS, generation);
        replaced.push(synthetic::change(&mut index, &mut desired, &mut plane, change)?);
    }
    plane.look_after_terminating()?;
    let start = Instant::now();
    let mut restarted = open()?;
    let observed = restarted.observe(&settings())?;
    let plan = restarted.plan(&desired, &observed);
    let restart = start.elapsed();
    if !plan.is_empty() {
        return Err(format!("{} steps are left", plan.len()).into());
    }
    let start = Instant::now();
    let counted = Kernel::open()?.services()?.len();
    let counts = start.elapsed();
    if counted != services as usize {
        return Err(format!("{counted} virtual services").into());
    }
    // The same entries without addresses and tables, by both programs.
    new_namespace()?;
    let mut kernel = Kernel::open()?;
    let steps = from_nothing(&desired, Translation::of(&desired));
    let steps: Vec<_> = steps.into_iter().filter(|step| step.to_string().starts_with('-')).collect();
    let start = Instant::now();
    if !kernel.execute(&steps)?.is_empty() {
        return Err("the kernel refuses some".into());
    }
    let only = start.elapsed();
    new_namespace()?;
    let start = Instant::now();
    ipvsadm(&["-R"], &lines)?;
    let theirs = start.elapsed();
    let mut one = Vec::new();
    for _ in 0..CHANGES {
        let start = Instant::now();
        ipvsadm(&["-a", "-t", "10.96.0.1:80", "-r", "10.250.0.1:80", "-m"], "")?;
        ipvsadm(&["-d", "-t", "10.96.0.1:80", "-r", "10.250.0.1:80"], "")?;
        one.push(start.elapsed());
    }
    let (ours, one) = (median(replaced), median(one));
    Ok(format!(
        "| {services} | {load:.2?} | {only:.2?} | {theirs:.2?} | {restart:.2?} | {ours:.2?} | {one:.2?} | {counts:.2?} |"
    ))
}

fn ipvsadm(arguments: &[&str], input: &str) -> Result<(), Box<dyn Error>> {
    let mut child = Command::new("ipvsadm").args(arguments).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().ok_or("no pipe")?.write_all(input.as_bytes())?;
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(format!("ipvsadm {arguments:?}: {status}").into()) }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
