//! End to end: a list/watch server over TLS, the agent as a process of its own, the kernel, and connections through
//! a node in a network namespace. Needs root and iproute2.
//!
//! `cargo bench --bench agent`, or with the names of some sections: `-- sizes variants bursts rollout churn lives others`.
//! Numbers are numbers of Services in place of the usual ones; `--quick` takes little of each. Times are from the server's write to what is seen outside: the commit as
//! `nft monitor` sees it, and the first connection. They include the server, whose share of the two cores is as large
//! as the agent's; so is the client's, who tries to connect all the time. CPU is the agent's alone, with what the
//! kernel does for it: it hardly depends on what else the machine does.
//!
//! What was tried and did not help:
//! - Larger reads for dumps: the kernel answers in 32 KiB at most (`netlink_dump`), whatever the buffer.
//! - Look-ups of more than 32 elements at once: 32, 256 and 1,000 take the same 1 µs an element (6.18), and 256
//!   answers do not fit the receive buffer that a user namespace has.
//!
//! Profile of a rolling restart (`perf record -e cpu-clock`, 10,000 x 10): 38 % of the agent's CPU is the thread that
//! lists conntrack after each change, nearly all of it the kernel's locks around each of its buckets; it is limited
//! to a fifth of a core (`conntrack::cleaner`). TLS, HTTP/2 and JSON are 29 %, desired state, plan and commit 33 %.
//! Of a first start at 100,000 x 10 (7 s of CPU) 29 % is the kernel looking for places in hash tables that it makes
//! larger meanwhile. Seen once in eight runs and not explained: the first connection after 6 s as always, and the commit
//! returned after 13 s.

#![allow(dead_code, reason = "the tests use the rest of what they share with this")]

mod commits;
mod figures;
mod lab;
#[path = "../../tests/packets/netns.rs"]
mod netns;
#[path = "../objects.rs"]
mod objects;
mod others;
mod process;
mod scenarios;
mod server;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use crate::figures::Setup;
use crate::objects::Shape;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|it| it != "--bench").collect();
    // `cargo test --benches` runs it too; it is no test.
    if arguments.iter().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    netns::remove_stale();
    let quick = arguments.iter().any(|it| it == "--quick");
    let given: Vec<u32> = arguments.iter().filter_map(|it| it.parse().ok()).collect();
    let is_section = |it: &&str| !it.starts_with("--") && it.parse::<u32>().is_err();
    let sections: Vec<&str> = arguments.iter().map(String::as_str).filter(is_section).collect();
    let wanted = |section: &str| sections.is_empty() || sections.contains(&section);
    let run = || -> Result<()> {
        if wanted("sizes") {
            sizes(&given, quick)?;
        }
        if wanted("variants") {
            variants(quick)?;
        }
        if wanted("bursts") {
            scenarios::bursts(&Setup::new(plain(base(quick)))?)?;
        }
        if wanted("rollout") {
            scenarios::rollout(base(quick), if quick { 50 } else { 500 })?;
        }
        if wanted("churn") {
            let time = Duration::from_secs(if quick { 3 } else { 60 });
            scenarios::churn(&Setup::new(plain(base(quick)))?, time)?;
        }
        if wanted("lives") {
            scenarios::lives(&Setup::new(plain(base(quick)))?, if quick { 20 } else { 4_000 })?;
        }
        if wanted("others") {
            others(quick)?;
        }
        Ok(())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Services where the size is not what is measured.
fn base(quick: bool) -> u32 {
    if quick { 1_000 } else { 10_000 }
}

fn plain(services: u32) -> Shape {
    Shape { services, endpoints: 10, ..Shape::default() }
}

/// The whole curve.
fn sizes(given: &[u32], quick: bool) -> Result<()> {
    figures::head("Services x 10");
    let sizes = match given {
        [] if quick => &[100, 1_000],
        [] => &[100, 1_000, 10_000, 50_000, 100_000][..],
        given => given,
    };
    for services in sizes {
        figures::row(&services.to_string(), plain(*services), quick)?;
    }
    Ok(())
}

/// Others flush the rules, and commit their own.
fn others(quick: bool) -> Result<()> {
    println!("\n| other programs on the node | |\n| --- | --- |");
    for services in if quick { &[1_000][..] } else { &[1_000, 10_000] } {
        others::repair(&Setup::new(plain(*services))?, if quick { 3 } else { 15 })?;
    }
    let time = Duration::from_secs(if quick { 5 } else { 40 });
    others::neighbours(&Setup::new(plain(base(quick)))?, &[0, 50], time)
}

/// The same with more to each Service.
fn variants(quick: bool) -> Result<()> {
    let plain = plain(base(quick));
    figures::head(&format!("{} Services x 10", plain.services));
    let balanced = Shape { load_balancer: true, ..plain };
    figures::row("LoadBalancer: ClusterIP, two node addresses, one address", balanced, quick)?;
    figures::row("dual stack", Shape { dual_stack: true, ..plain }, quick)?;
    figures::row("100 with session affinity", Shape { affinity: 100, ..plain }, quick)
}
