//! Session affinity over a table that is made anew: who sticks to what is read from the old one, as far as that is made
//! as this version makes it, and goes into the new one in the same transaction.

use rustc_hash::{FxHashMap, FxHashSet};

use super::decode::{self, Observed};
use super::element::{Decoded, Sticky};
use super::model::{Set, Step};
use super::plan::Plan;
use crate::cluster::Family;
use crate::forwarding::Desired;
use crate::netlink::{Error, Socket};

/// Reads the clients of a table that is to be replaced.
pub(super) fn read(socket: &mut Socket, family: Family, found: &Observed) -> Result<Vec<Sticky>, Error> {
    let mut clients = Vec::new();
    for set in found.dynamic_sets().filter(|set| found.has(family, *set)) {
        decode::elements(socket, family, set, |decoded| {
            if let Decoded::Sticky(client) = decoded {
                clients.push(client);
            }
        })?;
    }
    Ok(clients)
}

/// The clients whose slot still leads to an endpoint; those of others begin anew.
pub(super) fn living(clients: Vec<(Family, Vec<Sticky>)>, desired: &Desired) -> Vec<(Family, Vec<Sticky>)> {
    let live: FxHashMap<u32, FxHashSet<u32>> = desired
        .stickies()
        .map(|sticky| (sticky.id, sticky.live.iter().map(|(slot, _)| *slot).collect()))
        .collect();
    let lives = |client: &Sticky| {
        client.expires > 0 && live.get(&client.id).is_some_and(|slots| slots.contains(&client.slot))
    };
    let of_family = |(family, mut clients): (Family, Vec<Sticky>)| {
        clients.retain(lives);
        (family, clients)
    };
    clients.into_iter().map(of_family).collect()
}

/// Those that a plan makes room for: clients of tables that it makes anew, in sets that it makes.
pub(super) fn fitting(mut clients: Vec<(Family, Vec<Sticky>)>, plan: &Plan) -> Vec<(Family, Vec<Sticky>)> {
    for (family, clients) in &mut clients {
        let steps = plan.tables.iter().filter(|(f, _)| f == family).flat_map(|(_, steps)| steps);
        let mut made = false;
        let mut slots = FxHashSet::default();
        for step in steps {
            match step {
                Step::CreateTable(_) => made = true,
                Step::AddSet(Set::Sticky(slot)) => {
                    slots.insert(*slot);
                }
                _ => {}
            }
        }
        clients.retain(|client| made && slots.contains(&client.slot));
    }
    clients.retain(|(_, clients)| !clients.is_empty());
    clients
}
