//! A plan as nft commands.

use std::fmt;

use crate::cluster::Family;

use super::super::model::{Element, Step};
use super::super::schema;
use super::table::{Table, write_delete};

/// Writes the commands that do what the steps do, one a line; elements of one set that follow each other share a
/// command. The text is for people: nft 1.0.6 cannot add the rule of `endpoints-N` to a table that is there
/// already ("conflicting protocols specified: ip vs. th").
pub fn write_plan(out: &mut impl fmt::Write, family: Family, steps: &[Step]) -> fmt::Result {
    let table = schema::table_name(family);
    let mut rest = steps;
    while let Some((step, after)) = rest.split_first() {
        rest = after;
        match step {
            Step::DestroyTable => write_delete(out, family)?,
            Step::CreateTable(structure) => {
                Table { structure: structure.clone(), ..Table::default() }.write_new(out, family)?;
            }
            Step::AddSet(set) => {
                let lines = schema::set_text(family, *set).join("; ");
                writeln!(out, "add {} {table} {set} {{ {lines}; }}", schema::set_keyword(*set))?;
            }
            Step::DeleteSet(set) => writeln!(out, "delete {} {table} {set}", schema::set_keyword(*set))?,
            Step::AddChain(chain) => {
                writeln!(out, "add chain {table} {chain}")?;
                for rule in schema::rules(family, *chain, &Default::default()) {
                    writeln!(out, "add rule {table} {chain} {rule}")?;
                }
            }
            Step::DeleteChain(chain) => {
                writeln!(out, "flush chain {table} {chain}\ndelete chain {table} {chain}")?;
            }
            Step::Add(element) => {
                let same = |step: &Step| matches!(step, Step::Add(e) if e.set() == element.set());
                let (elements, others) = rest.split_at(rest.iter().take_while(|s| same(s)).count());
                rest = others;
                write_elements(out, "add", family, element, elements)?;
            }
            Step::Delete(element) => {
                let same = |step: &Step| matches!(step, Step::Delete(e) if e.set() == element.set());
                let (elements, others) = rest.split_at(rest.iter().take_while(|s| same(s)).count());
                rest = others;
                write_elements(out, "delete", family, element, elements)?;
            }
        }
    }
    Ok(())
}

fn write_elements(
    out: &mut impl fmt::Write,
    verb: &str,
    family: Family,
    first: &Element,
    more: &[Step],
) -> fmt::Result {
    write!(out, "{verb} element {} {} {{ {first}", schema::table_name(family), first.set())?;
    for step in more {
        if let Step::Add(element) | Step::Delete(element) = step {
            write!(out, ", {element}")?;
        }
    }
    writeln!(out, " }}")
}
