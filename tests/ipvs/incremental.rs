//! What is read back of the kernel after any sequence of events is what the final objects ask for, and a restart writes
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use sluice::cluster::Family;
use sluice::dataplane::DataPlane;
use sluice::dataplane::ipvs::Observed;
use sluice::dataplane::ipvs::memory::Memory;
use sluice::dataplane::ipvs::plan::from_nothing;
use sluice::dataplane::memory;
use sluice::dataplane::nftables::plan as tables;
use sluice::dataplane::nftables::translation::Translation;
use sluice::forwarding::Desired;

use super::events::{Batch, batches, canonical, node};
use super::space::run;
use super::world::{Agent, ipvs_settings, on_node, plane};

/// Scheduler, flags, timeout and destinations of each virtual service; the device's addresses.
type Entries = (BTreeMap<String, (String, u32, u32, BTreeSet<(SocketAddr, u32)>)>, BTreeSet<IpAddr>);

fn entries(observed: &sluice::dataplane::ipvs::kernel::Observed) -> Entries {
    let services = observed.services.iter().map(|(key, service)| {
        let destinations = service.destinations.iter().map(|(address, d)| (*address, d.weight)).collect();
        let timeout = if service.flags & 1 != 0 { service.timeout } else { 0 };
        (key.to_string(), (service.scheduler.clone(), service.flags, timeout, destinations))
    });
    (services.collect(), observed.held.iter().copied().collect())
}

#[test]
fn incremental_equals_from_scratch_and_a_restart_writes_nothing() {
    on_node(|| {
        let cases = if std::env::var_os("SLUICE_TEST_SHORT").is_some() { 12 } else { 50 };
        let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
        let test = |batches: Vec<Batch>| {
            run("ipvsadm", &["-C"], "");
            let (mut agent, _) = Agent::start(plane(), Vec::new());
            for batch in batches {
                agent.change(batch);
            }
            agent.plane.look_after_terminating().unwrap();
            let index = agent.index;
            // A new agent, which knows nothing but what is there.
            let mut restarted = plane();
            let Observed { tables: observed_tables, ipvs } = restarted.observe(&ipvs_settings()).unwrap();
            let observed = Observed { tables: observed_tables, ipvs };
            let adopted = restarted.adopt(&observed);
            let now = std::time::Instant::now();
            let (desired, _) = Desired::adopting(&index, node(), ipvs_settings(), adopted, now);
            let plan = restarted.plan(&desired, &observed);
            prop_assert!(plan.is_empty(), "a restart writes nothing: {}", plan);
            let (desired, _) = Desired::from_scratch(&index, node(), ipvs_settings());
            let mut ipvs = Memory::default();
            for step in from_nothing(&desired, Translation::of(&desired)) {
                ipvs.take(&step).unwrap();
            }
            prop_assert_eq!(entries(&observed.ipvs), entries(&ipvs.observed));
            let mut memory = memory::Memory::default();
            let structure = |family: Family| tables::structure(&ipvs_settings(), family);
            memory.apply(&tables::plan(&desired, &memory.observe(structure)).0).unwrap();
            prop_assert_eq!(canonical(observed.tables), canonical(memory.observe(structure)));
            Ok(())
        };
        TestRunner::new(config).run(&batches(1..15), test).unwrap();
    });
}
