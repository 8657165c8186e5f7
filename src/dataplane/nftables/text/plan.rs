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

#[cfg(test)]
mod tests {
    use super::super::super::model::{Chain, Key, Set, Verdict};
    use super::*;
    use crate::cluster::Protocol;

    fn key(host: u8) -> Key {
        Key { address: [10, 96, 0, host].into(), protocol: Protocol::Tcp, port: 80 }
    }

    #[test]
    fn elements_of_a_set_that_follow_each_other_share_a_command() {
        let endpoint = |host, index| Element::Endpoint(key(host), index, "10.1.2.3:8080".parse().unwrap());
        let steps = [
            Step::AddSet(Set::Sticky(0)),
            Step::AddChain(Chain::Endpoints(2)),
            Step::Delete(Element::Service(key(1), Verdict::Drop)),
            Step::Add(Element::Service(key(1), Verdict::Goto(Chain::Endpoints(2)))),
            Step::Add(endpoint(1, 0)),
            Step::Add(endpoint(1, 1)),
            Step::Add(Element::PodCidr("10.0.0.0/8".parse().unwrap())),
            Step::DeleteChain(Chain::Local(1)),
            Step::DeleteSet(Set::Sticky(1)),
        ];
        let mut text = String::new();
        write_plan(&mut text, Family::Ipv4, &steps).unwrap();
        let expected = "\
add set ip sluice sticky-0 { typeof ip saddr . meta priority; size 262144; flags dynamic,timeout; timeout 3h; }
add chain ip sluice endpoints-2
add rule ip sluice endpoints-2 dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoints
add rule ip sluice endpoints-2 drop
delete element ip sluice services { 10.96.0.1 . tcp . 80 : drop }
add element ip sluice services { 10.96.0.1 . tcp . 80 : goto endpoints-2 }
add element ip sluice endpoints { 10.96.0.1 . tcp . 80 . 0 : 10.1.2.3 . 8080, 10.96.0.1 . tcp . 80 . 1 : 10.1.2.3 . 8080 }
add element ip sluice pod-cidrs { 10.0.0.0/8 }
flush chain ip sluice local-1
delete chain ip sluice local-1
delete set ip sluice sticky-1
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_table_prints_the_same_whatever_the_order() {
        let elements: Vec<Element> =
            [3, 1, 2].map(|host| Element::Service(key(host), Verdict::Drop)).into_iter().collect();
        let table = |elements: Vec<_>, chains: Vec<Chain>| {
            let mut text = String::new();
            Table { elements, chains, ..Table::default() }.write(&mut text, Family::Ipv4).unwrap();
            text
        };
        let one = table(elements.iter().collect(), vec![Chain::Endpoints(10), Chain::Endpoints(9)]);
        let other = table(elements.iter().rev().collect(), vec![Chain::Endpoints(9), Chain::Endpoints(10)]);
        assert_eq!(one, other);
        assert!(one.starts_with("add table ip sluice\ndelete table ip sluice\ntable ip sluice {\n"), "{one}");
        assert_eq!(one.matches("elements =").count(), 1);
    }
}
