//! Which parts of the desired state a step is there for.

use std::collections::BTreeSet;

use super::model::{Element, Set, Step};
use super::plan::{Plan, counted_chain, sticky_sets};
use crate::forwarding::Part;

/// The parts that a plan would have to do without for a step not to be in it; none for steps that are there for all,
/// or that take something away.
pub fn parts(plan: &Plan, (table, step): (usize, usize)) -> Vec<Part> {
    let Some((_, steps)) = plan.tables.get(table) else { return Vec::new() };
    let of = |needs: &dyn Fn(&Element) -> bool| {
        let added = steps.iter().filter_map(|step| match step {
            Step::Add(element) if needs(element) => Some(element),
            _ => None,
        });
        added.filter_map(part).collect()
    };
    let parts: Vec<Part> = match steps.get(step) {
        Some(Step::Add(element)) => part(element).into_iter().collect(),
        // It is new, and so are all elements that go there.
        Some(Step::AddChain(chain)) => of(&|element| counted_chain(element) == Some(*chain)),
        Some(Step::AddSet(Set::Sticky(slot))) => {
            of(&|element| counted_chain(element).is_some_and(|chain| sticky_sets([&chain]) > *slot))
        }
        _ => Vec::new(),
    };
    parts.into_iter().collect::<BTreeSet<Part>>().into_iter().collect()
}

fn part(element: &Element) -> Option<Part> {
    Some(match element {
        Element::PodCidr(_) | Element::ServiceCidr(_) | Element::IpvsAddress(_) | Element::Serving(_) => {
            return None;
        }
        Element::ClusterIp(address) => Part::ClusterIp(*address),
        Element::Hairpin(address) => Part::Hairpin(*address),
        Element::Slot(id, ..) | Element::Choice(id, ..) => Part::Affinity(*id),
        Element::Service(key, _)
        | Element::Endpoint(key, ..)
        | Element::Special(key)
        | Element::Restricted(key)
        | Element::AllowedSource(key, _)
        | Element::LocalService(key, _)
        | Element::MasqueradeAll(key)
        | Element::MasqueradeOwn(key)
        | Element::AffinityId(key, _)
        | Element::LocalAffinityId(key, _) => Part::Frontend(*key),
    })
}
