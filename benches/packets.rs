//! What rules cost a new TCP connection: through a node without any, with sluice's, and with the shape that kube-proxy
//! gives its own, a chain with a rule and an anonymous map for each Service. Needs root, iproute2 and nft.
//!
//! `cargo bench --bench packets`. The three nodes are there at the same time and take turns, so that what else the
//! machine does hits all of them; the ratios are of medians. Loading kube-proxy's shape takes the kernel the square of
//! its size: 50,000 Services are minutes, so that it is left out there unless `--all` is given.
//!
//! A new client of a Service with affinity is looked for in the set of each of its slots, since the kernel finds an
//! element by its whole key only, and one write remembers it: that is what it costs more than one that comes again.

#![allow(dead_code, reason = "the tests use the rest of what they share with this")]

#[path = "agent/lab.rs"]
mod lab;
#[path = "../tests/packets/netns.rs"]
mod netns;
#[path = "synthetic.rs"]
mod synthetic;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use sluice::cluster::{Change, Index, Interner};
use sluice::dataplane::DataPlane;
use sluice::dataplane::nftables::Nftables;
use sluice::forwarding::Desired;

use crate::lab::Lab;

const ENDPOINTS: u32 = 10;
/// How long a node's turn is, and how many turns it has.
const TURN: Duration = Duration::from_millis(400);
const TURNS: usize = 9;
/// Endpoints of the Services with and without affinity that are compared.
const MANY: u32 = 100;

fn main() -> ExitCode {
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    // `cargo test --benches` runs it too; it is no test.
    if has("--test") {
        return ExitCode::SUCCESS;
    }
    netns::remove_stale();
    let sizes: &[u32] = if has("--quick") { &[10, 1_000] } else { &[10, 1_000, 10_000, 50_000] };
    let run = || -> Result<()> {
        println!(
            "| Services x {ENDPOINTS} | direct: connections a second, latency p50 / p99 | sluice | kube-proxy's shape |"
        );
        println!("| --- | --- | --- | --- |");
        for services in sizes {
            row(*services, has("--all") || *services <= 10_000)?;
        }
        affinity()
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn row(services: u32, with_peer: bool) -> Result<()> {
    let direct = Lab::build()?;
    // Conntrack works only where a rule asks for it.
    direct.node.feed(
        "nft",
        &["-f", "-"],
        "table ip direct { chain c { type nat hook prerouting priority -100; }; }",
    )?;
    let ours = Lab::build()?;
    ours.node.enter(|| load(&synthetic::index(services, ENDPOINTS)))?;
    let peer = if with_peer { Some(Lab::build()?) } else { None };
    if let Some(peer) = &peer {
        peer.node.feed("nft", &["-f", "-"], &peer_rules(services))?;
    }
    let endpoint = move |i: u32| (Ipv4Addr::from(0x0a80_0000 + i % (services * ENDPOINTS)), 8080);
    let service = move |i: u32| (Ipv4Addr::from(0x0a60_0001 + i * 7_919 % services), 80);
    let mut times: [Vec<Vec<Duration>>; 3] = Default::default();
    for _ in 0..TURNS {
        times[0].push(turn(&direct, endpoint, false)?);
        times[1].push(turn(&ours, service, false)?);
        if let Some(peer) = &peer {
            times[2].push(turn(peer, service, false)?);
        }
    }
    let [direct, ours, peer] = times.map(Figures::of);
    let against = |figures: &Figures| {
        let ratio = figures.median.as_secs_f64() / direct.median.as_secs_f64();
        format!("{} ({ratio:.2} of direct)", figures.text())
    };
    let peer = if with_peer { against(&peer) } else { "not loaded".to_owned() };
    println!("| {services} | {} | {} | {peer} |", direct.text(), against(&ours));
    Ok(())
}

/// Two Services with many endpoints, one with affinity: clients that come again, and clients that are new.
fn affinity() -> Result<()> {
    let lab = Lab::build()?;
    let mut names = Interner::default();
    let mut index = Index::new("node-1");
    for number in 0..2 {
        let mut change = synthetic::service(&mut names, number);
        if let Change::Service(_, Some(service)) = &mut change {
            service.affinity = (number == 1).then_some(10_800);
        }
        index.apply(change);
        index.apply(synthetic::slice(&mut names, number, MANY, 0));
    }
    index.take_dirty();
    lab.node.enter(|| load(&index))?;
    lab.many_clients()?;
    let to = |number: u32| move |_| (Ipv4Addr::from(0x0a60_0001 + number), 80);
    let mut times: [Vec<Vec<Duration>>; 4] = Default::default();
    for _ in 0..TURNS {
        times[0].push(turn(&lab, to(0), false)?);
        times[1].push(turn(&lab, to(1), false)?);
        times[2].push(turn(&lab, to(0), true)?);
        times[3].push(turn(&lab, to(1), true)?);
    }
    let [plain, sticky, plain_new, sticky_new] = times.map(Figures::of);
    let ratio = |a: &Figures, b: &Figures| a.median.as_secs_f64() / b.median.as_secs_f64();
    println!("\n| {MANY} endpoints | plain | with affinity |\n| --- | --- | --- |");
    println!(
        "| a client that comes again | {} | {} ({:.2} of plain) |",
        plain.text(),
        sticky.text(),
        ratio(&sticky, &plain)
    );
    let new = ratio(&sticky_new, &plain_new);
    println!("| a new client each time | {} | {} ({new:.2} of plain) |", plain_new.text(), sticky_new.text());
    Ok(())
}

fn load(index: &Index) -> Result<()> {
    let mut plane = Nftables::open()?;
    let observed = plane.observe(&synthetic::settings())?;
    let (desired, _) = Desired::from_scratch(index, synthetic::node(), synthetic::settings());
    let plan = plane.plan(&desired, &observed);
    Ok(plane.apply(&plan)?)
}

/// As kube-proxy's tables are made, as far as a packet from outside to a ClusterIP goes.
fn peer_rules(services: u32) -> String {
    let mut text = String::from("table ip peer {\n");
    for service in 0..services {
        _ = write!(
            text,
            "chain service-{service} {{ ip saddr != 10.128.0.0/9 meta mark set 0x4000\n meta l4proto tcp dnat to numgen random mod {ENDPOINTS} map {{ "
        );
        for i in 0..ENDPOINTS {
            let address = Ipv4Addr::from(0x0a80_0000 + service * ENDPOINTS + i);
            _ = write!(text, "{i} : {address} . 8080, ");
        }
        text.push_str("}; }\n");
    }
    text.push_str("map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = { ");
    for service in 0..services {
        let address = Ipv4Addr::from(0x0a60_0001 + service);
        _ = write!(text, "{address} . tcp . 80 : goto service-{service}, ");
    }
    text.push_str(
        "}; }\nchain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }\n\
         chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }\n\
         chain nat-postrouting { type nat hook postrouting priority srcnat; meta mark & 0x4000 != 0 masquerade; }\n}\n",
    );
    text
}

/// Connects as often as a turn allows; how long each took.
fn turn(lab: &Lab, to: impl Fn(u32) -> (Ipv4Addr, u16) + Send, new_clients: bool) -> Result<Vec<Duration>> {
    lab.as_client(move || {
        let mut times = Vec::new();
        let end = Instant::now() + TURN;
        // Turns do not begin with the same addresses.
        let mut i =
            (std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.subsec_micros()) % 60_000;
        while Instant::now() < end {
            i += 1;
            times.push(once(to(i), new_clients.then(|| Ipv4Addr::from(0xc613_0000 + i % 65_000)))?);
        }
        Ok(times)
    })
}

/// Connects and closes with a reset, so that no port is kept.
fn once((address, port): (Ipv4Addr, u16), from: Option<Ipv4Addr>) -> Result<Duration> {
    use std::os::fd::AsRawFd;
    let start = Instant::now();
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    if let Some(from) = from {
        bind(socket.as_raw_fd(), &SockaddrIn::from(std::net::SocketAddrV4::new(from, 0)))?;
    }
    let to = std::net::SocketAddrV4::new(address, port);
    connect(socket.as_raw_fd(), &SockaddrIn::from(to))
        .with_context(|| format!("{}", SocketAddr::from(to)))?;
    Ok(start.elapsed())
}

struct Figures {
    rate: f64,
    median: Duration,
    worst: Duration,
}

impl Figures {
    /// Of the turns' medians, which other work on the machine moves less than it moves means.
    fn of(turns: Vec<Vec<Duration>>) -> Figures {
        let mut rates: Vec<f64> = turns.iter().map(|t| t.len() as f64 / TURN.as_secs_f64()).collect();
        rates.sort_by(f64::total_cmp);
        let quantile = |percent: usize| {
            let of_turn = |turn: &Vec<Duration>| {
                let mut turn = turn.clone();
                turn.sort_unstable();
                turn.get(turn.len() * percent / 100).copied().unwrap_or_default()
            };
            let mut all: Vec<Duration> = turns.iter().map(of_turn).collect();
            all.sort_unstable();
            all.get(all.len() / 2).copied().unwrap_or_default()
        };
        let rate = rates.get(rates.len() / 2).copied().unwrap_or_default();
        Figures { rate, median: quantile(50), worst: quantile(99) }
    }

    fn text(&self) -> String {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        format!("{:.0}/s, {:.0} / {:.0} µs", self.rate, micros(self.median), micros(self.worst))
    }
}
