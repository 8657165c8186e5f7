//! 200,000 connections, 5,000 of them stale: how long a pass takes and how much memory. Needs root; works in a
//! network namespace of its own, whose entries go with it. `nf_conntrack_max` must allow so many.
//!
//! `cargo bench --bench conntrack`. Prints figures; there is nothing to compare with itself.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use nix::libc;
use nix::sched::{CloneFlags, unshare};
use sluice::cluster::Protocol;
use sluice::conntrack::Stale;
use sluice::conntrack::kernel::Conntrack;
use sluice::forwarding::{Changes, Frontend, Key, Masquerade, Target};
use sluice::netlink::message::NLM_F_CREATE;
use sluice::netlink::{Requests, Socket, Writer};

const ENTRIES: u32 = 200_000;
/// One endpoint in so many goes: 5,000 entries.
const ENDPOINTS: u32 = 40;
const SERVICES: u32 = 100;
const ROUNDS: usize = 5;

fn main() {
    // `cargo test --benches` runs it too; it is no test.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: run this as root");
    println!("{ENTRIES} UDP connections of {SERVICES} services with {ENDPOINTS} endpoints each");
    let start = Instant::now();
    fill(0..ENTRIES);
    println!("filled in {:.2} s, memory {} KiB", start.elapsed().as_secs_f64(), memory());
    let endpoints = |gone: u32| (gone..ENDPOINTS).map(endpoint).collect::<Vec<_>>();
    let stale = |services: u32, after: &dyn Fn() -> Option<Frontend>| {
        let mut changes = Changes::default();
        for service in 0..services {
            changes.frontends.insert(frontend_key(service), (Some(frontend(endpoints(0))), after()));
        }
        Stale::new(&changes, &Default::default())
    };
    let mut conntrack = Conntrack::open().expect("sockets");
    let one_gone = || Some(frontend(endpoints(1)));
    // An endpoint of a service without connections gone, too: the kernel cannot narrow the listing.
    let mut all = stale(SERVICES, &one_gone);
    all.merge(at(SERVICES, frontend(endpoints(1)), Some(frontend(endpoints(2)))));
    for (name, stale, restore) in [
        ("one endpoint of every service gone", stale(SERVICES, &one_gone), true),
        ("the same, nothing left to delete", stale(SERVICES, &one_gone), false),
        ("the same with all UDP entries listed", all, true),
        ("one endpoint of one service gone", stale(1, &one_gone), true),
    ] {
        let mut times = Vec::new();
        let mut last = Default::default();
        for _ in 0..ROUNDS {
            if restore {
                fill(0..ENTRIES);
            } else {
                conntrack.clean(&stale).expect("a pass");
            }
            let start = Instant::now();
            last = conntrack.clean(&stale).expect("a pass");
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let (median, worst) = (times[ROUNDS / 2], times[ROUNDS - 1]);
        println!("{name}: {last:?}, median {median:.0} ms, worst {worst:.0} ms, memory {} KiB", memory());
    }
}

fn at(service: u32, before: Frontend, after: Option<Frontend>) -> Stale {
    let mut changes = Changes::default();
    changes.frontends.insert(frontend_key(service), (Some(before), after));
    Stale::new(&changes, &Default::default())
}

fn frontend_key(service: u32) -> Key {
    Key { address: IpAddr::from((0x0a60_0000 + service).to_be_bytes()), protocol: Protocol::Udp, port: 53 }
}

fn endpoint(number: u32) -> SocketAddr {
    SocketAddr::new(IpAddr::from((0x0a80_0001 + number).to_be_bytes()), 5353)
}

fn frontend(endpoints: Vec<SocketAddr>) -> Frontend {
    let inside = Target::Endpoints(endpoints.into_iter().collect());
    Frontend {
        inside,
        outside: None,
        masquerade: Masquerade::OffCluster,
        sources: None,
        draining: None,
        scheduler: None,
    }
}

/// Makes entries by `IPCTNL_MSG_CT_NEW`; those that are there stay.
fn fill(numbers: std::ops::Range<u32>) {
    const IPCTNL_MSG_CT_NEW: u8 = 0;
    const CTA_TUPLE_ORIG: u16 = 1;
    const CTA_TUPLE_REPLY: u16 = 2;
    const CTA_STATUS: u16 = 3;
    const CTA_TIMEOUT: u16 = 7;
    const IPS_CONFIRMED_SEEN_REPLY_DNAT: u32 = 1 << 3 | 1 << 1 | 1 << 8;
    let tuple = |w: &mut Writer, source: SocketAddr, destination: SocketAddr| {
        w.nested(1, |w| {
            for (kind, address) in [(1, source), (2, destination)] {
                if let IpAddr::V4(address) = address.ip() {
                    w.bytes(kind, &address.octets());
                }
            }
        });
        w.nested(2, |w| {
            w.u8(1, Protocol::Udp.number());
            w.u16(2, source.port());
            w.u16(3, destination.port());
        });
    };
    let mut socket = Socket::open().expect("a socket");
    let mut requests = Requests::default();
    for number in numbers {
        let key = frontend_key(number % SERVICES);
        let client = SocketAddr::new(
            IpAddr::from((0x0a81_0000 + number / 50_000).to_be_bytes()),
            10_000 + (number % 50_000) as u16,
        );
        let endpoint = endpoint(number / SERVICES % ENDPOINTS);
        requests.message(IPCTNL_MSG_CT_NEW, NLM_F_CREATE, libc::NFPROTO_IPV4 as u8);
        requests.nested(CTA_TUPLE_ORIG, |w| tuple(w, client, SocketAddr::new(key.address, key.port)));
        requests.nested(CTA_TUPLE_REPLY, |w| tuple(w, endpoint, client));
        requests.u32(CTA_STATUS, IPS_CONFIRMED_SEEN_REPLY_DNAT);
        requests.u32(CTA_TIMEOUT, 600);
        if requests.messages() == 1000 {
            let refused = socket.execute(&mut requests).expect("entries are made");
            assert!(refused.is_empty(), "{:?}", refused[0]);
            requests.clear();
        }
    }
    let refused = socket.execute(&mut requests).expect("entries are made");
    assert!(refused.is_empty());
}

/// `VmHWM` of this process: the most that it ever had, in KiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
