//! Encoding 10,000 services of 10 endpoints each for the kernel, and reading such elements back.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluice::cluster::{Family, Protocol};
use sluice::dataplane::nftables::encode::encode;
use sluice::dataplane::nftables::model::{Chain, Element, Key, Step, Structure, Verdict};

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;

fn steps() -> Vec<Step> {
    let address = |network: u32, n: u32| Ipv4Addr::from_bits((network << 24) + n);
    let key = |n| Key { address: address(10, n).into(), protocol: Protocol::Tcp, port: 80 };
    let mut steps =
        vec![Step::CreateTable(Structure::default()), Step::AddChain(Chain::Endpoints(ENDPOINTS))];
    let verdict = Verdict::Goto(Chain::Endpoints(ENDPOINTS));
    steps.extend((0..SERVICES).map(|n| Step::Add(Element::ClusterIp(key(n).address))));
    steps.extend((0..SERVICES).map(|n| Step::Add(Element::Service(key(n), verdict))));
    steps.extend((0..SERVICES).flat_map(|n| {
        (0..ENDPOINTS).map(move |index| {
            let endpoint = SocketAddr::new(address(11, n * ENDPOINTS + index).into(), 8080);
            Step::Add(Element::Endpoint(key(n), index, endpoint))
        })
    }));
    steps
}

fn bench(c: &mut Criterion) {
    let plan = [(Family::Ipv4, steps())];
    let mut group = c.benchmark_group("nftables");
    group.throughput(Throughput::Elements(u64::from(SERVICES * (ENDPOINTS + 2))));
    group.bench_function("encode 10,000 services x 10 endpoints", |b| {
        b.iter(|| encode(black_box(&plan), None))
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
