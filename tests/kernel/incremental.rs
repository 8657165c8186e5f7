//! The property of tests/incremental.rs with the kernel in the data plane's place: what is read back after any
//! sequence of events is what the final objects ask for, and a restart writes nothing.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use sluice::cluster::{Family, Index};
use sluice::dataplane::nftables::Nftables;
use sluice::dataplane::nftables::plan::{self, Observed};
use sluice::dataplane::{DataPlane, Look};
use sluice::forwarding::Desired;

use super::events::{Batch, Universe, batch, batches, canonical, node, settings, start};
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

/// A node's rules, kept up to date change by change.
struct Incremental {
    plane: Nftables,
    index: Index,
    desired: Desired,
}

impl Incremental {
    /// Nothing, in a table of its own.
    fn start() -> Incremental {
        let mut plane = Nftables::open().unwrap();
        plane.cleanup().unwrap();
        let (index, desired) = start();
        let observed = plane.observe(&settings()).unwrap();
        let first = plane.plan(&desired, &observed);
        plane.apply(&first).unwrap();
        Incremental { plane, index, desired }
    }

    fn apply(&mut self, batch: Batch) -> Result<(), TestCaseError> {
        batch.into_iter().for_each(|change| self.index.apply(change));
        let dirty = self.index.take_dirty();
        let changes = self.desired.update(&self.index, dirty.services, Instant::now());
        let plan = self.plane.plan_changes(&changes);
        if !plan.is_empty()
            && let Err(error) = self.plane.apply(&plan)
        {
            return Err(TestCaseError::fail(format!("{error}\n{plan}")));
        }
        prop_assert_eq!(self.plane.look(true).unwrap(), Look::AsLeft, "nobody else was here");
        Ok(())
    }

    /// What a new agent finds, which knows nothing but what is there, is what the objects ask for.
    fn is_as_from_scratch(&self) -> Result<(), TestCaseError> {
        let mut restarted = Nftables::open().unwrap();
        let observed = restarted.observe(&settings()).unwrap();
        let adopted = restarted.adopt(&observed);
        let (adopted, _) = Desired::adopting(&self.index, node(), settings(), adopted, Instant::now());
        let plan = restarted.plan(&adopted, &observed);
        prop_assert!(plan.is_empty(), "a restart writes nothing: {}", plan);
        for family in Family::ALL {
            let difference = observed.get(&family).and_then(|t| t.as_ref()?.difference.clone());
            prop_assert_eq!(difference, None);
        }
        prop_assert_eq!(canonical(observed), canonical(from_scratch(&self.index)));
        Ok(())
    }
}

#[test]
fn incremental_equals_from_scratch_in_the_kernel() {
    in_new_namespace(|| {
        let config = ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() };
        let run = |batches: Vec<Batch>| {
            let mut rules = Incremental::start();
            batches.into_iter().try_for_each(|batch| rules.apply(batch))?;
            rules.is_as_from_scratch()
        };
        TestRunner::new(config).run(&batches(1..30), run).unwrap();
    });
}

/// As many Services as there is an address for, so that tables are large and each still collides with others.
const LARGE: Universe = Universe {
    services: 200,
    slices: 250,
    cluster_ips: 180,
    external: 60,
    node_ports: 100,
    pods: 120,
    endpoints: 12,
};

/// How many events come between two looks at the kernel.
const LOOK_EVERY: usize = 1_000;

/// One long life of an agent: 10,000 events, or as many as `SLUICE_EVENTS` says (`make soak`). Each run has other
/// events, those of `SLUICE_SEED` where that is set.
#[test]
fn ten_thousand_events_on_200_services() {
    let number = |variable: &str| std::env::var(variable).ok().map(|text| text.parse::<u64>().unwrap());
    let events = number("SLUICE_EVENTS").unwrap_or(10_000) as usize;
    let seed = number("SLUICE_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        u64::from(now.subsec_nanos())
    });
    in_new_namespace(move || {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
        let strategy = batch(LARGE);
        let mut rules = Incremental::start();
        let (mut count, mut looks) = (0, 0);
        while count < events {
            let batch = strategy.new_tree(&mut runner).unwrap().current();
            count += batch.len();
            let look = count / LOOK_EVERY > looks || count >= events;
            let result =
                rules.apply(batch).and_then(|()| if look { rules.is_as_from_scratch() } else { Ok(()) });
            if let Err(error) = result {
                panic!("SLUICE_SEED={seed}, by event {count}: {error}");
            }
            looks = count / LOOK_EVERY;
        }
        let (services, slices, endpoints) = rules.index.counts();
        println!(
            "SLUICE_SEED={seed}: {count} events; {services} services, {slices} slices, {endpoints} endpoints"
        );
        assert!(services > 100 && slices > 100, "the events were many and of use");
    });
}
