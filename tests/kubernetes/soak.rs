//! Thousands of random events among random faults: what was followed change by change is in the end what would be
//! built from the server's objects at once.

use std::time::{Duration, Instant};

use serde_json::json;
use sluice::cluster::{Family, Index};
use sluice::dataplane::memory::Memory;
use sluice::dataplane::nftables::plan::{self, Observed};
use sluice::forwarding::Desired;

use crate::agent::{self, Agent, expected, node, service, service_cidr, slice};
use crate::apiserver::{ApiServer, Disturbance, Kind, Refusal, recorded};
use crate::events::{canonical, settings};

const EVENTS: u32 = 10_000;
/// A fault comes after so many events, on average.
const FAULT_EVERY: u32 = 60;

/// xorshift32: the same events in each run.
struct Random(u32);

impl Random {
    fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % end
    }
}

fn write(server: &ApiServer, random: &mut Random) {
    let n = random.below(20);
    let name = format!("svc{n}");
    match random.below(20) {
        0..=4 => {
            // Addresses collide, and some objects make no sense or are not for a proxy.
            let ip = format!("10.96.0.{}", random.below(12));
            let mut object = service(&name, &ip, 80 + random.below(3) as u16);
            match random.below(12) {
                0 => object["spec"]["clusterIP"] = json!("None"),
                1 => object["spec"]["ports"] = json!(7),
                2 => {
                    object["metadata"]["labels"] =
                        json!({"service.kubernetes.io/service-proxy-name": "other"});
                }
                _ => {}
            }
            server.apply(Kind::Services, object);
        }
        5 => server.delete(Kind::Services, "demo", &name),
        6..=14 => {
            let slice_name = format!("slice{}", random.below(40));
            let count = random.below(6);
            let addresses =
                (0..count).map(|_| format!("10.128.0.{}", 1 + random.below(30))).collect::<Vec<_>>();
            let mut object = slice(&slice_name, &name, addresses);
            if random.below(15) == 0 {
                object["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
            }
            server.apply(Kind::EndpointSlices, object);
        }
        15 | 16 => {
            server.delete(Kind::EndpointSlices, "demo", &format!("slice{}", random.below(40)));
        }
        17 => server.apply(Kind::Nodes, node(agent::NODE, &format!("198.18.0.{}", 1 + random.below(9)))),
        18 if random.below(4) == 0 => server.delete(Kind::Nodes, "", agent::NODE),
        _ => {
            let range = format!("10.{}.0.0/16", 96 + random.below(9));
            server.apply(Kind::ServiceCidrs, service_cidr(&format!("range{}", random.below(3)), &range));
        }
    }
}

async fn fault(server: &mut ApiServer, random: &mut Random) {
    let kind = Kind::ALL[random.below(4) as usize];
    match random.below(14) {
        0 | 1 => server.disturb(Disturbance::Cut),
        2 => server.disturb(Disturbance::End),
        3 => server.disturb(Disturbance::HalfLine),
        4 => server.disturb(Disturbance::Garbage),
        5 => server.disturb(Disturbance::Expired),
        6 => server.disturb(Disturbance::InternalError),
        7 => {
            server.go_down().await;
            server.come_up();
        }
        8 => {
            server.go_down().await;
            server.store(|store| store.compact());
            server.come_up();
        }
        9 => server.go_silent(),
        10 => {
            let refusal = Refusal::new(500, "{}");
            server.faults().next.entry(kind).or_default().extend([refusal.clone(), refusal]);
            server.disturb(Disturbance::Cut);
        }
        11 => {
            server
                .faults()
                .next
                .entry(kind)
                .or_default()
                .push_back(Refusal::new(403, recorded("forbidden.json")));
            server.disturb(Disturbance::Expired);
        }
        12 => {
            let refused = Refusal::new(422, recorded("sendinitialevents-refused.json"));
            server.faults().no_streaming = Some(refused);
            server.faults().page = Some(1 + random.below(7) as usize);
        }
        _ => server.disturb(Disturbance::Bookmark),
    }
}

fn tables(index: &Index) -> Observed {
    let structure = |f| plan::structure(&settings(), f);
    let (desired, _) = Desired::from_scratch(index, crate::events::node(), settings());
    let mut memory = Memory::default();
    let (plan, _) = plan::plan(&desired, &memory.observe(structure));
    memory.apply(&plan).expect("a first load");
    memory.observe(structure)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_events_among_faults() {
    let mut server = ApiServer::tls(true).await;
    let mut random = Random(2_463_534_242);
    (0..50).for_each(|_| write(&server, &mut random));
    let mut agent = Agent::start(&server).await;
    agent.keep_batches();
    let mut faults = 0;
    for _ in 0..EVENTS {
        write(&server, &mut random);
        if random.below(FAULT_EVERY) == 0 {
            fault(&mut server, &mut random).await;
            faults += 1;
            // Some faults show only if they are given time to, others only if they are not.
            if random.below(2) == 0 {
                tokio::time::sleep(Duration::from_millis(u64::from(random.below(300)))).await;
            }
        }
        agent.take_all();
        tokio::task::yield_now().await;
    }
    assert!(faults > 100);
    agent.converged(&server, "after all").await;
    assert!(agent.restarts().values().all(|n| *n > 10), "the faults were felt: {:?}", agent.restarts());

    // Every batch one by one through the incremental path.
    let structure = |f| plan::structure(&settings(), f);
    let (mut index, mut memory) = (Index::new(agent::NODE), Memory::default());
    let (mut desired, _) = Desired::from_scratch(&index, crate::events::node(), settings());
    let (first, mut used) = plan::plan(&desired, &memory.observe(structure));
    memory.apply(&first).expect("a first load");
    for batch in std::mem::take(&mut agent.batches) {
        batch.changes.into_iter().for_each(|change| index.apply(change));
        let dirty = index.take_dirty().services;
        let changes = desired.update(&index, dirty, Instant::now());
        let plan = plan::plan_changes(&changes, &Family::ALL, &mut used);
        memory.apply(&plan).unwrap_or_else(|refused| panic!("{refused}\n{plan}"));
    }
    assert_eq!(canonical(memory.observe(structure)), canonical(tables(&expected(&server))));
}
