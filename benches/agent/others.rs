//! Other programs that write nftables rules on the same node.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sluice::cluster::Family;
use sluice::netlink::{Batch, Socket};

use crate::figures::{LONG, Setup, quantiles};
use crate::lab::reach;

/// `NFT_MSG_NEWTABLE` and `NFT_MSG_DELTABLE`.
const NEW: u8 = 0;
const DELETE: u8 = 2;
/// `NFTA_TABLE_NAME`.
const NAME: u16 = 1;

/// `nft flush ruleset`, with a table of somebody else's after it: how long until the last Service is served again, from the
/// moment that nft has ended.
pub fn repair(setup: &Setup, rounds: u32) -> Result<()> {
    let agent = setup.start()?;
    agent.synced(LONG)?;
    let mut times = Vec::new();
    for round in 0..rounds {
        // At all times between two looks of the agent.
        std::thread::sleep(Duration::from_millis(2_000 + u64::from(round) * 37));
        let rules = "flush ruleset\ntable inet admin { chain mine { accept; }; }";
        setup.lab.node.feed("nft", &["-f", "-"], rules)?;
        let flushed = Instant::now();
        times.push(setup.lab.as_client(|| reach(setup.last(), LONG, |_| true))? - flushed);
    }
    setup.lab.node.output("nft", &["list", "chain", "inet", "admin", "mine"]).context("their table")?;
    let most = times.iter().max().map_or(0.0, Duration::as_secs_f64);
    println!(
        "| all rules flushed, {} Services x {}: until the last one is served, p50 / p99 | {}, at most {:.0} ms |",
        setup.shape.services,
        setup.shape.endpoints,
        quantiles(times),
        most * 1e3
    );
    agent.terminate()
}

/// What the agent costs that has nothing to do, alone and while somebody else commits so many times a second.
pub fn neighbours(setup: &Setup, rates: &[u32], time: Duration) -> Result<()> {
    let agent = setup.start()?;
    agent.synced(LONG)?;
    std::thread::sleep(Duration::from_secs(2));
    for rate in rates {
        let done = AtomicBool::new(false);
        let cpu = std::thread::scope(|scope| {
            let committing = scope.spawn(|| setup.lab.node.enter(|| commit(*rate, &done)));
            std::thread::sleep(Duration::from_secs(1));
            let before = agent.cpu()?;
            std::thread::sleep(time);
            let cpu = agent.cpu()? - before;
            done.store(true, Ordering::Relaxed);
            committing.join().expect("no panic")?;
            Ok::<f64, anyhow::Error>(cpu)
        })?;
        println!(
            "| {rate} commits of others a second for {} s, {} Services x {}: CPU of the agent | {:.2} % of one core |",
            time.as_secs(),
            setup.shape.services,
            setup.shape.endpoints,
            cpu / time.as_secs_f64() * 100.0
        );
    }
    agent.terminate()
}

/// Makes a table and deletes it, again and again.
fn commit(rate: u32, done: &AtomicBool) -> Result<()> {
    let mut socket = Socket::open()?;
    let start = Instant::now();
    for (number, kind) in (0..).zip([NEW, DELETE].into_iter().cycle()) {
        if done.load(Ordering::Relaxed) {
            break;
        }
        if rate == 0 {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        let mut batch = Batch::new(None);
        batch.message(kind, 0, Family::Ipv4.number(), 0);
        batch.string(NAME, "other");
        batch.end();
        socket.commit(&batch)?;
        let due = start + Duration::from_secs(1) / rate * (number + 1);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(())
}
