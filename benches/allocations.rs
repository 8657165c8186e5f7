//! How often memory is asked for, and how much, between the index and the netlink bytes. Counts do not depend on the
//! machine.
//!
//! `cargo bench --bench allocations`

#[path = "synthetic.rs"]
mod synthetic;

use std::hint::black_box;
use std::time::Instant;

use allocation_counter::{AllocationInfo, measure};
use sluice::cluster::{Change, Family, Index, Interner};
use sluice::dataplane::nftables::encode::encode;
use sluice::dataplane::nftables::plan::{Observed, Usage, plan, plan_changes};
use sluice::forwarding::{Changes, Desired};

const ENDPOINTS: u32 = 10;
const SERVICES: [u32; 3] = [1_000, 10_000, 50_000];

fn main() {
    println!("| Services x {ENDPOINTS} | what | allocations | KiB in all | KiB at once, at most |");
    println!("| --- | --- | --- | --- | --- |");
    for services in SERVICES {
        let mut index = synthetic::index(services, ENDPOINTS);
        index.take_dirty();
        let mut desired = Desired::default();
        row(services, "desired state", || {
            desired = Desired::from_scratch(&index, synthetic::node(), synthetic::settings()).0;
        });
        let absent: Observed = Family::ALL.into_iter().map(|family| (family, None)).collect();
        let mut planned = Default::default();
        row(services, "plan", || planned = plan(&desired, &absent));
        let (whole, mut used) = planned;
        row(services, "encoding", || _ = black_box(encode(&whole.tables, None)));
        drop(whole);
        let mut names = Interner::default();
        for (what, change) in [
            ("an endpoint replaced", synthetic::slice(&mut names, services / 2, ENDPOINTS, 1)),
            ("a slice that says the same", synthetic::slice(&mut names, services / 2, ENDPOINTS, 1)),
            ("a Service added, no slice yet", synthetic::service(&mut names, services)),
            ("its slice added", synthetic::slice(&mut names, services, ENDPOINTS, 0)),
        ] {
            row(services, what, || apply(&mut index, &mut desired, &mut used, change));
        }
    }
}

/// From the event to the bytes of a transaction.
fn apply(index: &mut Index, desired: &mut Desired, used: &mut Usage, change: Change) {
    index.apply(change);
    let dirty = index.take_dirty();
    let changes: Changes = desired.update(index, dirty.services, Instant::now());
    let plan = plan_changes(&changes, &Family::ALL, used);
    black_box(encode(&plan.tables, None));
    index.settle();
}

fn row(services: u32, what: &str, work: impl FnOnce()) {
    let AllocationInfo { count_total, bytes_total, bytes_max, .. } = measure(work);
    println!("| {services} | {what} | {count_total} | {} | {} |", bytes_total >> 10, bytes_max >> 10);
}
