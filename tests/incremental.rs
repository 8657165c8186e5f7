//! The property that matters most: after any sequence of events the tables are what they would be if they had
//! been built from the final objects, and a plan from a state to itself is empty.

#[path = "support/events.rs"]
mod events;

use std::time::{Duration, Instant};

use events::{batches, canonical, node, settings, start};
use proptest::prelude::*;
use sluice::cluster::{Family, Index};
use sluice::dataplane::memory::Memory;
use sluice::dataplane::nftables::plan::{self, Observed};
use sluice::forwarding::Desired;

/// Time passes between batches: slots of session affinity rest and wake.
fn clock() -> impl Iterator<Item = Instant> {
    let start = Instant::now();
    (0..).map(move |n| start + Duration::from_secs(2 * n))
}

/// Everything built anew from the objects in the index.
fn from_scratch(index: &Index) -> Observed {
    let (desired, _) = Desired::from_scratch(index, node(), settings());
    let mut memory = Memory::default();
    let (plan, _) = plan::plan(&desired, &memory.observe(|f| plan::structure(&settings(), f)));
    memory.apply(&plan).expect("a first load");
    memory.observe(|f| plan::structure(&settings(), f))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn incremental_equals_from_scratch(batches in batches(1..40)) {
        let (mut index, mut desired) = start();
        let mut memory = Memory::default();
        let structure = |f| plan::structure(&settings(), f);
        let (first, mut used) = plan::plan(&desired, &memory.observe(structure));
        memory.apply(&first).expect("a first load");
        for (batch, now) in batches.into_iter().zip(clock()) {
            for change in batch {
                index.apply(change);
            }
            let dirty = index.take_dirty();
            let changes = desired.update(&index, dirty.services, now);
            let plan = plan::plan_changes(&changes, &Family::ALL, &mut used);
            prop_assert_eq!(plan.is_empty(), changes.is_empty());
            if let Err(refused) = memory.apply(&plan) {
                return Err(TestCaseError::fail(format!("{refused}\n{plan}")));
            }
            let observed = memory.observe(structure);
            let (again, whole) = plan::plan(&desired, &observed);
            prop_assert!(again.is_empty(), "nothing is left to do: {}", again);
            prop_assert_eq!(&used, &whole, "chains are counted right");
        }
        prop_assert_eq!(canonical(memory.observe(structure)), canonical(from_scratch(&index)));
    }

    #[test]
    fn a_restart_writes_nothing(batches in batches(1..25)) {
        let (mut index, mut desired) = start();
        let mut memory = Memory::default();
        let structure = |f| plan::structure(&settings(), f);
        let (first, mut used) = plan::plan(&desired, &memory.observe(structure));
        memory.apply(&first).expect("a first load");
        for batch in batches {
            batch.into_iter().for_each(|change| index.apply(change));
            let dirty = index.take_dirty();
            let changes = desired.update(&index, dirty.services, Instant::now());
            memory.apply(&plan::plan_changes(&changes, &Family::ALL, &mut used)).expect("a change");
        }
        let observed = memory.observe(structure);
        let (adopted, _) = Desired::adopting(&index, node(), settings(), plan::adopt(&observed), Instant::now());
        let (plan, _) = plan::plan(&adopted, &observed);
        prop_assert!(plan.is_empty(), "{}", plan);
    }
}
