//! An in-memory data plane: nftables tables that take the same steps as the kernel's and refuse what the kernel
//! refuses. For tests and benches.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use rustc_hash::{FxHashMap, FxHashSet};

use super::nftables::fault;
use super::nftables::model::{Chain, Element, Set, Step, Structure, Verdict};
use super::nftables::plan::{self, Observed, ObservedTable, Plan, Usage, counted_chain, sticky_sets};
use super::{DataPlane, Fault, Look};
use crate::cluster::Family;
use crate::forwarding::{Adopted, Changes, Desired, Settings};

/// Tables in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    tables: BTreeMap<Family, Table>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    structure: Structure,
    chains: FxHashSet<Chain>,
    sticky_sets: u32,
    /// By the element without its data: a set has a key once.
    elements: FxHashMap<Element, Element>,
}

/// A step that the kernel would refuse.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{step}: {errno}")]
pub struct Refused {
    /// The error that the kernel would answer.
    pub errno: Errno,
    /// The step.
    pub step: String,
    /// Where in the plan it is; `None` where the transaction is refused as a whole.
    pub at: Option<(usize, usize)>,
}

impl Memory {
    /// Applies a plan, wholly or not at all.
    pub fn apply(&mut self, plan: &Plan) -> Result<(), Refused> {
        let mut tables = self.tables.clone();
        for (part, (family, steps)) in plan.tables.iter().enumerate() {
            for (at, step) in steps.iter().enumerate() {
                let refused = |errno| Refused { errno, step: format!("{step:?}"), at: Some((part, at)) };
                take(&mut tables, *family, step).map_err(refused)?;
            }
        }
        self.tables = tables;
        Ok(())
    }

    /// What is there; `structure` says what the constant part of a family's table should be.
    pub fn observe(&self, structure: impl Fn(Family) -> Structure) -> Observed {
        let read = |family: Family| {
            let table = self.tables.get(&family)?;
            let differs = table.structure != structure(family);
            Some(ObservedTable {
                difference: differs.then(|| "another structure".into()),
                chains: table.chains.clone(),
                sticky_sets: table.sticky_sets,
                elements: table.elements.values().cloned().collect(),
            })
        };
        Family::ALL.into_iter().map(|family| (family, read(family))).collect()
    }
}

/// Looks at a plan before it is applied, and may refuse it.
pub type Check = Box<dyn FnMut(&Plan) -> Result<(), Refused> + Send>;

/// The tables as a data plane.
pub struct Plane {
    /// The tables, for others to look at.
    pub tables: Arc<Mutex<Memory>>,
    check: Check,
    used: Usage,
    planned: Usage,
}

impl Plane {
    /// No tables yet; refuses what `check` does and what the kernel would.
    pub fn new(check: Check) -> Plane {
        Plane { tables: Arc::default(), check, used: Usage::default(), planned: Usage::default() }
    }

    fn tables(&self) -> MutexGuard<'_, Memory> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DataPlane for Plane {
    type Observed = Observed;
    type Plan = Plan;
    type Error = Refused;

    fn name(&self) -> &'static str {
        "memory"
    }

    fn observe(&mut self, settings: &Settings) -> Result<Observed, Refused> {
        Ok(self.tables().observe(|family| plan::structure(settings, family)))
    }

    fn adopt(&self, observed: &Observed) -> Adopted {
        plan::adopt(observed)
    }

    fn plan(&mut self, desired: &Desired, observed: &Observed) -> Plan {
        let (plan, planned) = plan::plan(desired, observed);
        self.used = if plan.is_empty() { planned.clone() } else { plan::usage(observed) };
        self.planned = planned;
        plan
    }

    fn plan_changes(&mut self, changes: &Changes) -> Plan {
        self.planned.clone_from(&self.used);
        plan::plan_changes(changes, &Family::ALL, &mut self.planned)
    }

    fn steps(&self, plan: &Plan) -> usize {
        plan.len()
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), Refused> {
        (self.check)(plan)?;
        self.tables().apply(plan)?;
        self.used.clone_from(&self.planned);
        Ok(())
    }

    fn fault(&mut self, plan: &Plan, refused: &Refused) -> Fault {
        let Some(at) = refused.at else { return Fault::Unnamed };
        let parts = fault::parts(plan, at);
        if parts.is_empty() {
            return Fault::Elsewhere;
        }
        Fault::Named(parts.into_iter().map(|part| (part, refused.to_string())).collect())
    }

    fn look(&mut self, _thorough: bool) -> Result<Look, Refused> {
        Ok(Look::AsLeft)
    }
}

fn take(tables: &mut BTreeMap<Family, Table>, family: Family, step: &Step) -> Result<(), Errno> {
    match step {
        Step::DestroyTable => {
            tables.remove(&family);
            return Ok(());
        }
        Step::CreateTable(structure) => {
            if tables.contains_key(&family) {
                return Err(Errno::EEXIST);
            }
            tables.insert(family, Table { structure: structure.clone(), ..Table::default() });
            return Ok(());
        }
        _ => {}
    }
    let table = tables.get_mut(&family).ok_or(Errno::ENOENT)?;
    match step {
        Step::AddSet(Set::Sticky(k)) if *k == table.sticky_sets => {
            table.sticky_sets += 1;
            Ok(())
        }
        Step::AddSet(_) => Err(Errno::EEXIST),
        Step::DeleteSet(Set::Sticky(k)) => {
            if sticky_sets(&table.chains) > *k {
                return Err(Errno::EBUSY);
            }
            // Sets are deleted from the middle, too; what counts is that none is left.
            table.sticky_sets.checked_sub(1).map(|n| table.sticky_sets = n).ok_or(Errno::ENOENT)
        }
        Step::DeleteSet(_) => Err(Errno::ENOENT),
        Step::AddChain(chain) => {
            if sticky_sets([chain]) > table.sticky_sets {
                return Err(Errno::ENOENT);
            }
            table.chains.insert(*chain).then_some(()).ok_or(Errno::EEXIST)
        }
        Step::DeleteChain(chain) => {
            if table.elements.values().any(|e| counted_chain(e) == Some(*chain)) {
                return Err(Errno::EBUSY);
            }
            table.chains.remove(chain).then_some(()).ok_or(Errno::ENOENT)
        }
        Step::Add(element) => {
            if counted_chain(element).is_some_and(|c| !table.chains.contains(&c)) {
                return Err(Errno::ENOENT);
            }
            match table.elements.insert(without_data(element), element.clone()) {
                Some(_) => Err(Errno::EEXIST),
                None => Ok(()),
            }
        }
        Step::Delete(element) => {
            table.elements.remove(&without_data(element)).map(|_| ()).ok_or(Errno::ENOENT)
        }
        Step::DestroyTable | Step::CreateTable(_) => Ok(()),
    }
}

/// The element as its set tells it apart from others.
fn without_data(element: &Element) -> Element {
    match element {
        Element::Service(key, _) => Element::Service(*key, Verdict::Drop),
        Element::LocalService(key, _) => Element::LocalService(*key, Verdict::Drop),
        Element::Endpoint(key, index, _) => {
            Element::Endpoint(*key, *index, std::net::SocketAddr::new(key.address, 0))
        }
        Element::AffinityId(key, _) => Element::AffinityId(*key, 0),
        Element::LocalAffinityId(key, _) => Element::LocalAffinityId(*key, 0),
        Element::Slot(id, slot, _) => Element::Slot(*id, *slot, Verdict::Drop),
        Element::Choice(id, index, _) => Element::Choice(*id, *index, Verdict::Drop),
        other => other.clone(),
    }
}
