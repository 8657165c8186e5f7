//! A whole table as nft lists it.

use std::collections::BTreeMap;
use std::fmt;

use crate::cluster::Family;

use super::super::model::{Chain, Element, Set, Structure};
use super::super::schema;

/// What a table consists of. Prints as a file for `nft -f` that replaces the table, whether it is there or not.
///
/// The order of the text depends only on what there is, not on the order of these lists.
#[derive(Clone, Debug, Default)]
pub struct Table<'a> {
    /// What its constant part depends on.
    pub structure: Structure,
    /// Chains and sets that are there only when needed: `endpoints-N`, `sticky-K` and their like.
    pub chains: Vec<Chain>,
    /// `sticky-K`.
    pub sets: Vec<Set>,
    /// All elements, of any sets, in any order.
    pub elements: Vec<&'a Element>,
}

/// Writes the lines that delete a table if there is one.
pub fn write_delete(out: &mut impl fmt::Write, family: Family) -> fmt::Result {
    // nft 1.0.6 has no `destroy` on kernels before 6.3; adding first makes deleting possible everywhere.
    let table = schema::table_name(family);
    writeln!(out, "add table {table}\ndelete table {table}")
}

impl Table<'_> {
    /// Writes the table of a family, deleting what may be there.
    pub fn write(&self, out: &mut impl fmt::Write, family: Family) -> fmt::Result {
        write_delete(out, family)?;
        self.write_new(out, family)
    }

    /// Writes the table of a family as a listing has it.
    pub fn write_new(&self, out: &mut impl fmt::Write, family: Family) -> fmt::Result {
        writeln!(out, "table {} {{\n\tcomment \"{}\"", schema::table_name(family), schema::COMMENT)?;
        let mut elements: BTreeMap<Set, Vec<&Element>> = BTreeMap::new();
        for element in &self.elements {
            elements.entry(element.set()).or_default().push(element);
        }
        let mut dynamic_sets = self.sets.clone();
        dynamic_sets.sort_unstable();
        dynamic_sets.dedup();
        for set in schema::sets(&self.structure).chain(dynamic_sets) {
            let mut elements = elements.remove(&set).unwrap_or_default();
            elements.sort_unstable();
            elements.dedup();
            write_set(out, family, set, &elements)?;
        }
        let mut dynamic_chains = self.chains.clone();
        dynamic_chains.sort_unstable();
        dynamic_chains.dedup();
        for chain in schema::chains(&self.structure).chain(dynamic_chains) {
            write_chain(out, family, chain, &self.structure)?;
        }
        writeln!(out, "}}")
    }
}

fn write_set(out: &mut impl fmt::Write, family: Family, set: Set, elements: &[&Element]) -> fmt::Result {
    writeln!(out, "\n\t{} {set} {{", schema::set_keyword(set))?;
    for line in schema::set_text(family, set) {
        writeln!(out, "\t\t{line}")?;
    }
    for (index, element) in elements.iter().enumerate() {
        let before = if index == 0 { "\t\telements = { " } else { ",\n\t\t\t     " };
        write!(out, "{before}{element}")?;
    }
    if !elements.is_empty() {
        writeln!(out, " }}")?;
    }
    writeln!(out, "\t}}")
}

fn write_chain(
    out: &mut impl fmt::Write,
    family: Family,
    chain: Chain,
    structure: &Structure,
) -> fmt::Result {
    writeln!(out, "\n\tchain {chain} {{")?;
    if let Some(hook) = schema::hook(chain) {
        writeln!(out, "\t\t{}", hook.text)?;
    }
    for rule in schema::rules(family, chain, structure) {
        writeln!(out, "\t\t{rule}")?;
    }
    writeln!(out, "\t}}")
}
