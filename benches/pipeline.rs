//! The agent's own part: index → desired state → plan → netlink bytes, at 100 to 50,000 Services x 10 endpoints.
//!
//! `cargo bench --bench pipeline`

#![allow(missing_docs, reason = "criterion's macros make public items")]

#[path = "synthetic.rs"]
mod synthetic;

use std::hint::black_box;
use std::time::Instant;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use sluice::cluster::{Family, Interner};
use sluice::dataplane::nftables::encode::encode;
use sluice::dataplane::nftables::plan::{Observed, plan, plan_changes};
use sluice::forwarding::Desired;
use synthetic::{index, node, settings};

const ENDPOINTS: u32 = 10;
const SERVICES: [u32; 4] = [100, 1_000, 10_000, 50_000];

fn absent() -> Observed {
    Family::ALL.into_iter().map(|family| (family, None)).collect()
}

/// Everything, as at the first start.
fn whole(c: &mut Criterion) {
    let mut group = c.benchmark_group("whole");
    group.sample_size(10);
    for services in SERVICES {
        let index = index(services, ENDPOINTS);
        group.bench_with_input(BenchmarkId::new("desired", services), &index, |b, index| {
            b.iter(|| Desired::from_scratch(index, node(), settings()));
        });
        let (desired, _) = Desired::from_scratch(&index, node(), settings());
        group.bench_with_input(BenchmarkId::new("plan", services), &desired, |b, desired| {
            b.iter(|| plan(desired, &absent()));
        });
        let (plan, _) = plan(&desired, &absent());
        group.bench_with_input(BenchmarkId::new("encode", services), &plan, |b, plan| {
            b.iter(|| black_box(encode(&plan.tables, None)));
        });
    }
    group.finish();
}

/// One EndpointSlice in which one of ten endpoints was replaced.
fn change(c: &mut Criterion) {
    let mut group = c.benchmark_group("one endpoint replaced");
    for services in SERVICES {
        let mut index = index(services, ENDPOINTS);
        let (mut desired, _) = Desired::from_scratch(&index, node(), settings());
        let (_, mut used) = plan(&desired, &absent());
        let mut names = Interner::default();
        let mut generation = 0;
        group.bench_function(BenchmarkId::from_parameter(services), |b| {
            b.iter_batched(
                || {
                    generation += 1;
                    synthetic::slice(&mut names, generation % services, ENDPOINTS, generation)
                },
                |change| {
                    index.apply(change);
                    let dirty = index.take_dirty();
                    let changes = desired.update(&index, dirty.services, Instant::now());
                    let plan = plan_changes(&changes, &Family::ALL, &mut used);
                    black_box(encode(&plan.tables, None))
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, whole, change);
criterion_main!(benches);
