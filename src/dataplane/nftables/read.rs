//! Reads a table: its structure, its elements, and of one that is to be replaced what is worth keeping.

use tracing::debug;

use super::element::{Decoded, Sticky};
use super::model::{Set, Structure};
use super::plan::{self, ObservedTable};
use super::{MOST_COMPARED, carry, decode, lookup, schema};
use crate::cluster::Family;
use crate::forwarding::Settings;
use crate::netlink::{Error, Socket};

/// With more endpoints than this they are looked up one by one instead of dumped: a dump costs the square of the
/// set's size, since each 32 KiB of an answer walk it from its start (6.18: 2 ms for 10,000 elements, 0.28 s for
/// 100,000, 28 s for a million); a look-up 1 µs.
const MOST_DUMPED: u32 = 40_000;

/// What was read of a table.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// What there is.
    pub(super) table: ObservedTable,
    /// Who sticks to what, where the table is to be replaced.
    pub(super) clients: Vec<Sticky>,
    /// Whether the kernel counts elements (6.18).
    pub(super) counts: bool,
    /// Whether it is a table of the other mode.
    pub(super) other_mode: bool,
}

/// Reads the table of a family; `None` where there is none.
pub(super) fn table(socket: &mut Socket, family: Family, settings: &Settings) -> Result<Option<Read>, Error> {
    let Some(found) = decode::observe(socket, family)? else { return Ok(None) };
    let chains: Vec<_> = found.dynamic_chains().collect();
    let sets: Vec<_> = found.dynamic_sets().collect();
    let structure = plan::structure(settings, family);
    let mut table = ObservedTable {
        difference: found.difference(family, &structure, &chains, &sets),
        chains: chains.iter().copied().collect(),
        sticky_sets: sets.len() as u32,
        ..ObservedTable::default()
    };
    // Slots are counted from 0; with a gap the table is somebody else's work.
    if (0..table.sticky_sets).any(|k| !sets.contains(&Set::Sticky(k))) {
        table.difference.get_or_insert_with(|| "a set sticky-K is missing".into());
    }
    let counts = found.count(Set::Endpoints).is_some();
    if table.difference.is_none() {
        elements(socket, family, &structure, &found, &mut table)?;
    }
    let mut clients = Vec::new();
    if table.difference.is_some() {
        match replaced(socket, family, &structure, &found, &mut table) {
            Ok(found) => clients = found,
            Err(error @ Error::Interrupted) => return Err(error),
            Err(error) => {
                debug!(%family, %error, "of the table that is replaced nothing can be kept");
                table.elements.clear();
            }
        }
    }
    let other_mode = found.has(family, Set::IpvsAddresses) != structure.ipvs;
    Ok(Some(Read { table, clients, counts, other_mode }))
}

/// Reads what is worth knowing of a table that is to be replaced: what was served, and who sticks to what. It may be
/// anybody's work; what makes no sense is no reason to fail.
fn replaced(
    socket: &mut Socket,
    family: Family,
    structure: &Structure,
    found: &decode::Observed,
    table: &mut ObservedTable,
) -> Result<Vec<Sticky>, Error> {
    if table.elements.is_empty() {
        elements(socket, family, structure, found, table)?;
    }
    carry::read(socket, family, found)
}

/// Reads what is in the sets that are as they should be, unless that takes too long.
fn elements(
    socket: &mut Socket,
    family: Family,
    structure: &Structure,
    found: &decode::Observed,
    table: &mut ObservedTable,
) -> Result<(), Error> {
    let large = |set: Set, most: u32| found.count(set).filter(|count| *count > most);
    let sets = schema::sets(structure).filter(|set| *set != Set::Endpoints).chain([Set::Endpoints]);
    for set in sets.filter(|set| found.has(family, *set)) {
        if let Some(count) = large(set, MOST_DUMPED).filter(|_| set == Set::Endpoints)
            && let Some(endpoints) = lookup::endpoints(socket, family, &table.elements, count)?
        {
            table.elements.extend(endpoints);
            continue;
        }
        if let Some(count) = large(set, MOST_COMPARED) {
            let difference = format!("{count} elements in set {set}: sooner made anew than compared");
            table.difference.get_or_insert(difference);
            return Ok(());
        }
        let (elements, difference) = (&mut table.elements, &mut table.difference);
        decode::elements(socket, family, set, |decoded| match decoded {
            Decoded::Element(element) => {
                elements.insert(element);
            }
            Decoded::Unknown(key) => {
                difference.get_or_insert_with(|| format!("set {set} has an element that is not ours: {key}"));
            }
            Decoded::Sticky(_) | Decoded::Start(_) | Decoded::End(_) => {}
        })?;
    }
    Ok(())
}
