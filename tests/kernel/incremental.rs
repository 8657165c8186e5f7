//! The property of tests/incremental.rs with the kernel in the data plane's place: what is read back after any
//! sequence of events is what the final objects ask for, and a restart writes nothing.

use std::time::Instant;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use sluice::cluster::{Family, Index};
use sluice::dataplane::DataPlane;
use sluice::dataplane::nftables::Nftables;
use sluice::dataplane::nftables::plan::{self, Observed};
use sluice::forwarding::Desired;

use super::events::{batches, canonical, node, settings, start};
use super::space::in_new_namespace;

/// The tables that a first load of the final objects makes.
fn from_scratch(index: &Index) -> Observed {
    let (desired, _) = Desired::from_scratch(index, node(), settings());
    let mut memory = sluice::dataplane::memory::Memory::default();
    let structure = |family| plan::structure(&settings(), family);
    let (plan, _) = plan::plan(&desired, &memory.observe(structure));
    memory.apply(&plan).unwrap();
    memory.observe(structure)
}

#[test]
fn incremental_equals_from_scratch_in_the_kernel() {
    in_new_namespace(|| {
        let config = ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() };
        let run = |batches: Vec<super::events::Batch>| {
            let mut plane = Nftables::open().unwrap();
            plane.cleanup().unwrap();
            let (mut index, mut desired) = start();
            let observed = plane.observe(&settings()).unwrap();
            let first = plane.plan(&desired, &observed);
            plane.apply(&first).unwrap();
            for batch in batches {
                batch.into_iter().for_each(|change| index.apply(change));
                let dirty = index.take_dirty();
                let changes = desired.update(&index, dirty.services, Instant::now());
                let plan = plane.plan_changes(&changes);
                if let Err(error) = plane.apply(&plan) {
                    return Err(TestCaseError::fail(format!("{error}\n{plan}")));
                }
                prop_assert!(!plane.disturbed().unwrap(), "nobody else was here");
            }
            // A new agent, which knows nothing but what is there.
            let mut restarted = Nftables::open().unwrap();
            let observed = restarted.observe(&settings()).unwrap();
            let adopted = restarted.adopt(&observed);
            let (adopted, _) = Desired::adopting(&index, node(), settings(), adopted, Instant::now());
            let plan = restarted.plan(&adopted, &observed);
            prop_assert!(plan.is_empty(), "a restart writes nothing: {}", plan);
            for family in Family::ALL {
                let difference = observed.get(&family).and_then(|t| t.as_ref()?.difference.clone());
                prop_assert_eq!(difference, None);
            }
            prop_assert_eq!(canonical(observed), canonical(from_scratch(&index)));
            Ok(())
        };
        TestRunner::new(config).run(&batches(1..30), run).unwrap();
    });
}
