//! The property of tests/incremental.rs in mode ipvs, and what takes the place of atomicity there: a service that works
//! before a change and after it works after each step.

#[path = "support/events.rs"]
mod events;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Instant;

use events::{Batch, batches, canonical, node, settings, start};
use proptest::prelude::*;
use sluice::cluster::{Family, Index, Scheduler};
use sluice::dataplane::ipvs::memory::Memory;
use sluice::dataplane::ipvs::model::{Key, Step};
use sluice::dataplane::ipvs::plan::{self, Bounds, Plan};
use sluice::dataplane::ipvs::state::State;
use sluice::dataplane::memory;
use sluice::dataplane::nftables::model::{Element, Verdict};
use sluice::dataplane::nftables::plan::{self as tables, Usage};
use sluice::dataplane::nftables::translation::Translation;
use sluice::forwarding::{Changes, Desired, Settings};

fn ipvs_settings() -> Settings {
    Settings { ipvs: Some(Scheduler::Rr), ..settings() }
}

/// One node's kernel and agent.
#[derive(Default)]
struct Host {
    ipvs: Memory,
    tables: memory::Memory,
    state: State,
    used: Usage,
}

impl Host {
    fn observe(&self) -> tables::Observed {
        self.tables.observe(|family| tables::structure(&ipvs_settings(), family))
    }

    /// Where new connections to a key go, as tables and IPVS are now; only where IPVS decides.
    fn served(&self) -> BTreeMap<Key, BTreeSet<SocketAddr>> {
        let observed = self.observe();
        let elements = observed.values().flatten().flat_map(|table| &table.elements);
        let passing = elements.filter_map(|element| match element {
            Element::Service(key, Verdict::Accept) | Element::LocalService(key, Verdict::Accept) => {
                Some(*key)
            }
            _ => None,
        });
        let on_host = |key: &Key| {
            node().node_port_addresses.contains(&key.address)
                || self.ipvs.observed.held.contains(&key.address)
        };
        let open = |key: &Key| -> BTreeSet<SocketAddr> {
            let service = self.ipvs.observed.services.get(key).filter(|_| on_host(key));
            let destinations = service.into_iter().flat_map(|service| &service.destinations);
            destinations.filter(|(_, d)| d.weight > 0).map(|(address, _)| *address).collect()
        };
        passing.map(|key| (key, open(&key))).filter(|(_, to)| !to.is_empty()).collect()
    }

    fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        self.ipvs.take(step).map_err(|errno| TestCaseError::fail(format!("{step}: {errno}")))
    }

    /// Applies a plan; what works before and after works meanwhile.
    fn apply(&mut self, plan: &Plan) -> Result<(), TestCaseError> {
        let before = self.served();
        let mut meanwhile = Vec::new();
        for step in &plan.before {
            self.take(step)?;
            meanwhile.push((step.to_string(), self.served()));
        }
        self.tables
            .apply(&plan.tables)
            .map_err(|refused| TestCaseError::fail(format!("{refused}\n{plan}")))?;
        meanwhile.push(("tables".to_owned(), self.served()));
        for step in &plan.after {
            self.take(step)?;
            meanwhile.push((step.to_string(), self.served()));
        }
        for key in self.served().keys().filter(|key| before.contains_key(key)) {
            for (step, served) in &meanwhile {
                prop_assert!(served.contains_key(key), "{} is gone after {}\n{}", key, step, plan);
            }
        }
        Ok(())
    }

    fn plan(&mut self, desired: &Desired) -> Plan {
        let observed = self.observe();
        let passing = self.served().into_keys().collect();
        let bounds = Bounds { passing, ..Bounds::default() };
        let used = &mut self.used;
        let tables = |kept: &[_]| {
            let (plan, now_used) = tables::plan_for(desired, &observed, Translation::of(desired), kept);
            *used = now_used;
            (plan, used.held().collect())
        };
        plan::plan(desired, &self.ipvs.observed, &bounds, &mut self.state, Instant::now(), tables)
    }

    fn change(&mut self, changes: &Changes) -> Result<(), TestCaseError> {
        let used = &mut self.used;
        let tables = |kept: &[_]| tables::plan_changes_keeping(changes, kept, &Family::ALL, used);
        let plan = plan::plan_changes(changes, &mut self.state, Instant::now(), tables);
        self.apply(&plan)
    }

    /// No connection is left anywhere.
    fn tend(&mut self) -> Result<(), TestCaseError> {
        let services = &self.ipvs.observed.services;
        let there = |key: &Key| Ok::<_, Infallible>(services[key].destinations.clone());
        let Ok((mut after, kept)) = self.state.tend(Instant::now(), there);
        let changes = Changes::default();
        let tables = tables::plan_changes_keeping(&changes, &kept, &Family::ALL, &mut self.used);
        let (_, addresses) = plan::addresses(&tables);
        after.extend(addresses.into_iter().map(Step::DeleteAddress));
        self.apply(&Plan { before: Vec::new(), tables, after })
    }
}

fn from_scratch(index: &Index) -> Host {
    let (desired, _) = Desired::from_scratch(index, node(), ipvs_settings());
    let mut host = Host::default();
    let plan = host.plan(&desired);
    host.apply(&plan).expect("a first load");
    host
}

/// A host after these events, and what is desired for it.
fn after(batches: Vec<Batch>, tend: impl Fn(usize) -> bool) -> Result<(Host, Index), TestCaseError> {
    let (mut index, _) = start();
    let (mut desired, _) = Desired::from_scratch(&index, node(), ipvs_settings());
    let mut host = Host::default();
    let first = host.plan(&desired);
    host.apply(&first)?;
    for (n, batch) in batches.into_iter().enumerate() {
        batch.into_iter().for_each(|change| index.apply(change));
        let dirty = index.take_dirty();
        let changes = desired.update(&index, dirty.services, Instant::now());
        host.change(&changes)?;
        if tend(n) {
            host.tend()?;
        }
        // What only waits for the end of its connections, idle as it is by now, is no difference either: a comparison would
        // blame others for it.
        let again = host.plan(&desired);
        prop_assert!(again.is_empty(), "left to do: {}", again);
    }
    host.tend()?;
    Ok((host, index))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn incremental_equals_from_scratch(batches in batches(1..30), every in 1..5usize) {
        let (host, index) = after(batches, |n| n % every == 0)?;
        let scratch = from_scratch(&index);
        prop_assert_eq!(&host.ipvs.observed, &scratch.ipvs.observed);
        prop_assert_eq!(canonical(host.observe()), canonical(scratch.observe()));
    }

    #[test]
    fn a_restart_writes_nothing(batches in batches(1..20)) {
        let (mut host, index) = after(batches, |_| false)?;
        host.state = State::default();
        let adopted = tables::adopt(&host.observe());
        let (desired, _) = Desired::adopting(&index, node(), ipvs_settings(), adopted, Instant::now());
        let plan = host.plan(&desired);
        prop_assert_eq!(plan.len(), 0, "{}", plan);
    }
}
