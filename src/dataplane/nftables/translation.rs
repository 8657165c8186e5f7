//! Who translates the destination of packets, and so what the table holds.
//!
//! Where IPVS does, the table lets pass what IPVS serves (`accept` in `services`), refuses, restricts and masquerades.
//! It translates only for pods and this node at addresses with `externalTrafficPolicy: Local`: there they have other
//! endpoints than clients from outside, and IPVS has one list for each address and port.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::model::{Chain, Element, Key, LOCAL_OFFSET, Verdict};
use crate::forwarding::{Change, Desired, Frontend, Masquerade, Sticky, Target};

/// Who translates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Translation {
    /// The table.
    #[default]
    Table,
    /// IPVS.
    Ipvs(Arc<Host>),
}

/// What the host has of itself, without what it has for the sake of IPVS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// The addresses of its other devices.
    pub addresses: FxHashSet<IpAddr>,
    /// The addresses that NodePorts are served on.
    pub node: Vec<IpAddr>,
}

impl Translation {
    /// As the settings of a desired state ask for, where nothing else is known of the host.
    pub fn of(desired: &Desired) -> Translation {
        let node = desired.node().node_port_addresses.clone();
        match desired.settings().ipvs {
            None => Translation::Table,
            Some(_) => Translation::Ipvs(Arc::new(Host { node, ..Host::default() })),
        }
    }

    /// Whether an address of a Service is on kube-ipvs0: unless the host has it anyway.
    pub fn holds(&self, address: IpAddr) -> bool {
        match self {
            Translation::Table => false,
            Translation::Ipvs(host) => !host.addresses.contains(&address) && !host.node.contains(&address),
        }
    }

    /// The elements of one frontend.
    pub fn elements_of(&self, key: Key, frontend: &Frontend, out: &mut Vec<Element>) {
        match self {
            Translation::Table => {
                inside(key, frontend, out);
                outside(key, frontend, out);
                sources(key, frontend, &[], out);
            }
            Translation::Ipvs(host) => {
                match &frontend.outside {
                    None => out.push(Element::Service(key, left_to_ipvs(&frontend.inside))),
                    Some(outside) => {
                        inside(key, frontend, out);
                        out.push(Element::LocalService(key, left_to_ipvs(outside)));
                    }
                }
                sources(key, frontend, &host.node, out);
            }
        }
        if frontend.outside.is_some() || frontend.sources.is_some() {
            out.push(Element::Special(key));
        }
        match frontend.masquerade {
            Masquerade::OffCluster => {}
            Masquerade::All => out.push(Element::MasqueradeAll(key)),
            Masquerade::Own => out.push(Element::MasqueradeOwn(key)),
        }
    }

    /// What clients stick to by means of the table.
    pub fn stickies<'a>(&self, desired: &'a Desired) -> Vec<&'a Arc<Sticky>> {
        match self {
            Translation::Table => desired.stickies().collect(),
            Translation::Ipvs(_) => {
                let mut seen = FxHashSet::default();
                let used = desired.frontends().filter_map(|(_, frontend, _)| sticky_beside_ipvs(frontend));
                used.filter(|sticky| seen.insert(sticky.id)).collect()
            }
        }
    }
}

/// What a frontend's clients stick to without IPVS, where IPVS translates.
pub(super) fn sticky_beside_ipvs(frontend: &Frontend) -> Option<&Arc<Sticky>> {
    frontend.outside.as_ref().and(frontend.inside.sticky())
}

/// By how much the uses of an id change, and what it stood for before and after, where one of these uses has it.
#[derive(Debug, Default)]
struct StickyChange<'a> {
    fewer: usize,
    more: usize,
    before: Option<&'a Arc<Sticky>>,
    after: Option<&'a Arc<Sticky>>,
}

/// What clients stick to beside IPVS, before and after a change of frontends; `uses` counts frontends by id.
pub(super) fn sticky_changes<'a>(
    frontends: impl Iterator<Item = &'a Change<Frontend>>,
    uses: &mut FxHashMap<u32, usize>,
) -> Vec<Change<Arc<Sticky>>> {
    let mut touched: FxHashMap<u32, StickyChange<'a>> = FxHashMap::default();
    for (before, after) in frontends {
        if let Some(sticky) = before.as_ref().and_then(sticky_beside_ipvs) {
            let change = touched.entry(sticky.id).or_default();
            (change.fewer, change.before) = (change.fewer + 1, Some(sticky));
        }
        if let Some(sticky) = after.as_ref().and_then(sticky_beside_ipvs) {
            let change = touched.entry(sticky.id).or_default();
            (change.more, change.after) = (change.more + 1, Some(sticky));
        }
    }
    let mut changes = Vec::new();
    for (id, StickyChange { fewer, more, before, after }) in touched {
        let count = uses.entry(id).or_default();
        let was = *count;
        *count = (was + more).saturating_sub(fewer);
        let is = *count;
        if is == 0 {
            uses.remove(&id);
        }
        // Where what it stands for changes, every frontend that uses it changes.
        let old = if was == 0 { None } else { before.or(after) };
        let new = if is == 0 { None } else { after.or(before) };
        if old != new {
            changes.push((old.cloned(), new.cloned()));
        }
    }
    changes
}

/// For everybody, or where there is a list for outside, for pods and this node.
fn inside(key: Key, frontend: &Frontend, out: &mut Vec<Element>) {
    out.push(Element::Service(key, verdict(&frontend.inside, Chain::Endpoints, Chain::Sticky)));
    out.extend(frontend.inside.endpoints().map(|(i, e)| Element::Endpoint(key, i, e)));
    if let Target::Sticky(sticky) = &frontend.inside {
        out.push(Element::AffinityId(key, sticky.id));
    }
}

fn outside(key: Key, frontend: &Frontend, out: &mut Vec<Element>) {
    let Some(outside) = &frontend.outside else { return };
    out.push(Element::LocalService(key, verdict(outside, Chain::Local, Chain::StickyLocal)));
    if let Target::Sticky(sticky) = outside {
        out.push(Element::LocalAffinityId(key, sticky.id));
        // Both have the slots of the same Service port; what is listed inside is there already.
        let inside: FxHashSet<u32> = frontend.inside.endpoints().map(|(slot, _)| slot).collect();
        let only_outside = outside.endpoints().filter(|(slot, _)| !inside.contains(slot));
        out.extend(only_outside.map(|(slot, e)| Element::Endpoint(key, slot, e)));
    } else {
        out.extend(outside.endpoints().map(|(i, e)| Element::Endpoint(key, LOCAL_OFFSET + i, e)));
    }
}

/// Who may connect at all. This node's own connections to an address of kube-ipvs0 come from that address: it may
/// connect where one of `node`'s addresses may.
fn sources(key: Key, frontend: &Frontend, node: &[IpAddr], out: &mut Vec<Element>) {
    let Some(sources) = &frontend.sources else { return };
    out.push(Element::Restricted(key));
    out.extend(sources.iter().map(|source| Element::AllowedSource(key, *source)));
    let allowed = |address: &IpAddr| sources.iter().any(|source| source.contains(address));
    if !allowed(&key.address) && node.iter().any(allowed) {
        out.push(Element::AllowedSource(key, IpNet::from(key.address)));
    }
}

/// What the table does with packets that IPVS serves, refuses or drops.
fn left_to_ipvs(target: &Target) -> Verdict {
    match target {
        Target::Endpoints(_) | Target::Sticky(_) => Verdict::Accept,
        Target::Refuse => Verdict::Goto(Chain::NoEndpoints),
        Target::Drop => Verdict::Drop,
    }
}

fn verdict(target: &Target, plain: fn(u32) -> Chain, sticky: fn(u32, u32) -> Chain) -> Verdict {
    match target {
        // At most MAX_ENDPOINTS, so it fits.
        Target::Endpoints(endpoints) => Verdict::Goto(plain(endpoints.len() as u32)),
        Target::Sticky(s) => Verdict::Goto(sticky(slots(s), s.live.len() as u32)),
        Target::Refuse => Verdict::Goto(Chain::NoEndpoints),
        Target::Drop => Verdict::Drop,
    }
}

/// How many slots a client is looked for in.
fn slots(sticky: &Sticky) -> u32 {
    sticky.live.last().map_or(0, |(slot, _)| slot + 1)
}
