//! Reads the endpoints of a large table by their keys.
//!
//! A dump costs the square of a set's size (see [`decode`]), a look-up what the element costs: 1 µs of the kernel's
//! time. Which keys there can be is known from the other sets, and the kernel says how many elements there are: when
//! as many were found, those are all.
//!
//! [`decode`]: super::decode

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nix::errno::Errno;
use rustc_hash::{FxHashMap, FxHashSet};

use super::decode;
use super::model::{Chain, Element, Key, LOCAL_OFFSET, Verdict};
use crate::cluster::Family;
use crate::netlink::{Error, Socket};

/// The endpoints of a table with these other elements, if they are as many as the kernel counts.
pub fn endpoints(
    socket: &mut Socket,
    family: Family,
    others: &FxHashSet<Element>,
    count: u32,
) -> Result<Option<Vec<Element>>, Error> {
    let Some(keys) = keys(others, count) else { return Ok(None) };
    match decode::look_up(socket, family, &keys) {
        Err(Error::Request(Errno::ENOENT)) => Ok(None),
        found => Ok(Some(found?).filter(|found| found.len() == count as usize)),
    }
}

/// The keys to which rules can lead; `None` unless they are as many as there are elements. The endpoints in them are
/// of no meaning.
fn keys(others: &FxHashSet<Element>, count: u32) -> Option<FxHashSet<Element>> {
    let mut slots: FxHashMap<u32, Vec<u32>> = FxHashMap::default();
    for element in others {
        if let Element::Slot(id, slot, _) = element {
            slots.entry(*id).or_default().push(*slot);
        }
    }
    const NONE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    let count = count as usize;
    let mut keys = FxHashSet::with_capacity_and_hasher(count, Default::default());
    let mut add = |key: &Key, indices: &mut dyn Iterator<Item = u32>| {
        // What somebody else put there may say anything.
        indices.take(count + 1).all(|index| {
            keys.insert(Element::Endpoint(*key, index, NONE));
            keys.len() <= count
        })
    };
    let fit = others.iter().all(|element| match element {
        Element::Service(key, Verdict::Goto(Chain::Endpoints(n))) => add(key, &mut (0..*n)),
        Element::LocalService(key, Verdict::Goto(Chain::Local(n))) => {
            add(key, &mut (LOCAL_OFFSET..LOCAL_OFFSET.saturating_add(*n)))
        }
        Element::AffinityId(key, id) | Element::LocalAffinityId(key, id) => {
            add(key, &mut slots.get(id).into_iter().flatten().copied())
        }
        _ => true,
    });
    (fit && keys.len() == count).then_some(keys)
}
