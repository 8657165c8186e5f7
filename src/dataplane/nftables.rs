//! The nftables data plane: services are set elements, the rules are constant.
//!
//! `rules/README.md` draws a packet's way through the tables.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustc_hash::{FxHashMap, FxHashSet};
use tracing::{debug, warn};

use self::element::{Decoded, Sticky};
use self::encode::{Refused, commit};
use self::model::{Chain, Set, Step};
use self::plan::{Observed, ObservedTable, Plan, Usage};
use self::translation::Translation;
use super::ipvs::leftovers::Leftovers;
use super::{DataPlane, Fault, Measures};
use crate::cluster::Family;
use crate::forwarding::{Adopted, Changes, Desired, SetChange, Settings};
use crate::netlink::{self, Socket};

mod carry;
pub mod decode;
pub mod element;
pub mod encode;
pub mod expression;
pub mod fault;
mod hold;
pub mod lookup;
pub mod model;
pub mod plan;
pub mod schema;
pub mod text;
pub mod translation;
pub(crate) mod uapi;

/// With more endpoints than this they are looked up one by one instead of dumped: a dump costs the square of the
/// set's size, since each 32 KiB of an answer walk it from its start (6.18: 2 ms for 10,000 elements, 0.28 s for
/// 100,000, 28 s for a million); a look-up 1 µs.
const MOST_DUMPED: u32 = 40_000;

/// Above this many elements that can only be dumped a table is made anew rather than compared.
const MOST_COMPARED: u32 = 250_000;

/// How long after somebody else's commit every element is compared.
const VERIFY: Duration = Duration::from_secs(60);

/// How often tables are read again that changed while they were read.
const TRIES: usize = 10;

/// Time until then. After a large load the kernel resizes its hash tables for some milliseconds.
const PAUSE: Duration = Duration::from_millis(10);

/// How often the kernel is asked what it counted: clients of session affinity, INVALID packets.
const COUNTS: Duration = Duration::from_secs(5);

/// How often it is tried to have the table that holds connections, while another process has it.
const HOLD: Duration = Duration::from_secs(60);

/// Why rules could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel lets only those with `CAP_NET_ADMIN` read or write rules.
    #[error("the kernel refuses to show or change rules (EPERM): this needs root, or CAP_NET_ADMIN")]
    NotPermitted,
    /// The kernel could not be talked to.
    #[error(transparent)]
    Netlink(netlink::Error),
    /// The kernel refused steps of a plan; nothing was changed.
    #[error("{}{}", .0.first().map_or_else(String::new, Refused::to_string), more(.0))]
    Refused(Vec<Refused>),
}

impl From<netlink::Error> for Error {
    fn from(error: netlink::Error) -> Error {
        let permitted = |r: &netlink::Refusal| r.errno != Errno::EPERM;
        match &error {
            netlink::Error::Request(Errno::EPERM) | netlink::Error::Send { errno: Errno::EPERM, .. } => {
                Error::NotPermitted
            }
            netlink::Error::Refused(refusals) if !refusals.iter().all(permitted) => Error::NotPermitted,
            _ => Error::Netlink(error),
        }
    }
}

fn more(refused: &[Refused]) -> String {
    match refused.len() {
        0 | 1 => String::new(),
        n => format!(" (and {} more)", n - 1),
    }
}

/// The tables `ip sluice` and `ip6 sluice` of one network namespace.
#[derive(Debug)]
pub struct Nftables {
    socket: Socket,
    /// Families that the kernel has.
    families: Vec<Family>,
    /// What the tables add up to as they are.
    used: Usage,
    /// The same once the plan made last is applied, where that differs.
    planned: Option<Usage>,
    /// How many clients each set of session affinity had when they were last counted.
    counted: FxHashMap<(Family, Set), usize>,
    counted_at: Instant,
    /// INVALID packets that were dropped, and what each table's counter said of that when it was last read.
    invalid_dropped: u64,
    invalid_counters: FxHashMap<Family, u64>,
    /// The generation up to which everything that happened to the rules is known.
    generation: Option<u32>,
    /// Since when others have committed, with structure and counts of our tables as before.
    unverified: Option<Instant>,
    /// What the tables were last made for.
    settings: Settings,
    /// Who sticks to what in tables that are to be replaced.
    clients: Vec<(Family, Vec<Sticky>)>,
    /// Whether the kernel counts elements (6.18), so that large tables can be read by look-ups.
    counts: bool,
    /// What mode ipvs left, once somebody has looked.
    leftovers: Looked<Leftovers>,
    /// When to make the table that holds connections, and whether that failed before; `None`: it is there, or nobody
    /// wants it.
    to_hold: Option<(Instant, bool)>,
}

/// Something to be looked for once.
#[derive(Debug)]
enum Looked<T> {
    NotYet,
    Found(T),
    Done,
}

impl Nftables {
    /// Opens a socket in the network namespace of the calling thread. Reading and writing need `CAP_NET_ADMIN` in
    /// the user namespace that owns it.
    pub fn open() -> Result<Nftables, Error> {
        Ok(Nftables {
            socket: Socket::open()?,
            families: Family::ALL.to_vec(),
            used: Usage::default(),
            planned: None,
            counted: FxHashMap::default(),
            counted_at: Instant::now(),
            invalid_dropped: 0,
            invalid_counters: FxHashMap::default(),
            generation: None,
            unverified: None,
            settings: Settings::default(),
            clients: Vec::new(),
            counts: false,
            leftovers: Looked::NotYet,
            to_hold: None,
        })
    }

    /// Removes our tables, in one transaction; says which there were.
    pub fn cleanup(&mut self) -> Result<Vec<Family>, Error> {
        let mut there = Vec::new();
        for family in Family::ALL {
            if decode::observe(&mut self.socket, family)?.is_some() {
                there.push(family);
            }
        }
        let tables: Vec<_> = there.iter().map(|family| (*family, vec![Step::DestroyTable])).collect();
        if !tables.is_empty() {
            commit(&mut self.socket, &tables, &encode::encode(&tables, None))?;
        }
        Ok(there)
    }

    /// [`DataPlane::plan`] where IPVS translates and kube-ipvs0 is to keep some addresses besides; says which it is to
    /// have.
    pub(super) fn plan_for(
        &mut self,
        desired: &Desired,
        observed: &Observed,
        translation: Translation,
        kept: &[IpAddr],
    ) -> (Plan, FxHashSet<IpAddr>) {
        let (plan, planned) = plan::plan_for(desired, observed, translation, kept);
        self.clients = carry::living(std::mem::take(&mut self.clients), desired);
        let held = planned.held().collect();
        self.intend(&plan, planned, || plan::usage(observed));
        (plan, held)
    }

    /// [`DataPlane::plan_changes`] where others begin or cease to need addresses on kube-ipvs0.
    pub(super) fn plan_keeping(&mut self, changes: &Changes, kept: &[(IpAddr, SetChange)]) -> Plan {
        self.planned = None;
        plan::plan_changes_keeping(changes, kept, &self.families, &mut self.used)
    }

    /// A family that cannot be served, for another reason than rules.
    pub(super) fn leave_out(&mut self, family: Family) {
        self.families.retain(|it| *it != family);
    }

    /// Whether anybody committed since that is not known of.
    pub(super) fn is_moved(&mut self) -> Result<bool, Error> {
        Ok(Some(self.socket.generation()?) != self.generation)
    }

    /// Somebody who is no other program wrote to other tables, so many times.
    pub(super) fn also_committed(&mut self, times: u32) {
        self.generation = self.generation.map(|generation| generation.wrapping_add(times));
    }

    /// What the tables will add up to by a plan, and do before.
    fn intend(&mut self, plan: &Plan, planned: Usage, before: impl FnOnce() -> Usage) {
        (self.used, self.planned) = if plan.is_empty() { (planned, None) } else { (before(), Some(planned)) };
    }

    fn read(&mut self, family: Family, settings: &Settings) -> Result<Option<ObservedTable>, netlink::Error> {
        let Some(found) = decode::observe(&mut self.socket, family)? else { return Ok(None) };
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
        self.counts = found.count(Set::Endpoints).is_some();
        if table.difference.is_none() {
            self.read_elements(family, &structure, &found, &mut table)?;
            if table.difference.is_none() {
                return Ok(Some(table));
            }
        }
        match self.read_replaced(family, &structure, &found, &mut table) {
            Ok(()) => {}
            Err(error @ netlink::Error::Interrupted) => return Err(error),
            Err(error) => {
                debug!(%family, %error, "of the table that is replaced nothing can be kept");
                table.elements.clear();
            }
        }
        Ok(Some(table))
    }

    /// Reads what is worth knowing of a table that is to be replaced: what was served, and who sticks to what. It may be
    /// anybody's work; what makes no sense is no reason to fail.
    fn read_replaced(
        &mut self,
        family: Family,
        structure: &model::Structure,
        found: &decode::Observed,
        table: &mut ObservedTable,
    ) -> Result<(), netlink::Error> {
        if table.elements.is_empty() {
            self.read_elements(family, structure, found, table)?;
        }
        let clients = carry::read(&mut self.socket, family, found)?;
        self.clients.push((family, clients));
        Ok(())
    }

    /// Reads what is in the sets that are as they should be, unless that takes too long.
    fn read_elements(
        &mut self,
        family: Family,
        structure: &model::Structure,
        found: &decode::Observed,
        table: &mut ObservedTable,
    ) -> Result<(), netlink::Error> {
        let large = |set: Set, most: u32| found.count(set).filter(|count| *count > most);
        let sets = schema::sets(structure).filter(|set| *set != Set::Endpoints).chain([Set::Endpoints]);
        for set in sets.filter(|set| found.has(family, *set)) {
            if let Some(count) = large(set, MOST_DUMPED).filter(|_| set == Set::Endpoints)
                && let Some(endpoints) = lookup::endpoints(&mut self.socket, family, &table.elements, count)?
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
            decode::elements(&mut self.socket, family, set, |decoded| match decoded {
                Decoded::Element(element) => {
                    elements.insert(element);
                }
                Decoded::Unknown(key) => {
                    difference
                        .get_or_insert_with(|| format!("set {set} has an element that is not ours: {key}"));
                }
                Decoded::Sticky(_) | Decoded::Start(_) | Decoded::End(_) => {}
            })?;
        }
        Ok(())
    }

    /// Applies tables that do not fit the socket's buffer: what can be done only for tables that are new.
    fn commit_split(&mut self, plan: &Plan) -> Result<usize, Error> {
        let capacity = self.socket.send_capacity();
        let mut tables = plan.tables.clone();
        let destroy: Vec<_> = tables
            .iter_mut()
            .filter(|(_, steps)| steps.first() == Some(&Step::DestroyTable))
            .map(|(family, steps)| (*family, vec![steps.remove(0)]))
            .collect();
        let mut commits = 0;
        if !destroy.is_empty() {
            warn!(
                capacity,
                "the socket buffer is too small to replace a table at once: services pause meanwhile"
            );
            commit(&mut self.socket, &destroy, &encode::encode(&destroy, None))?;
            commits += 1;
        }
        for batch in encode::split(&tables, capacity) {
            if let Err(error) = commit(&mut self.socket, &tables, &batch) {
                // Half a table would look like somebody's work at the next try.
                let undo: Vec<_> = tables.iter().map(|(f, _)| (*f, vec![Step::DestroyTable])).collect();
                let _ = commit(&mut self.socket, &undo, &encode::encode(&undo, None));
                return Err(error);
            }
            commits += 1;
        }
        Ok(commits)
    }

    /// A family that the kernel lacks is left out from now on. Says whether there was one.
    fn drop_missing_family(&mut self, plan: &Plan, error: &Error) -> bool {
        let Error::Refused(refused) = error else { return false };
        let missing = refused.iter().find_map(|r| {
            let (family, steps) = plan.tables.get(r.step?.0)?;
            let of_table = matches!(steps.get(r.step?.1)?, Step::DestroyTable | Step::CreateTable(_));
            let lacks = matches!(r.errno, Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EPFNOSUPPORT);
            (of_table && lacks).then_some((*family, r))
        });
        let Some((family, reason)) = missing.filter(|_| self.families.len() > 1) else { return false };
        warn!(%family, %reason, "the kernel has no rules for this family; the other one is served");
        self.families.retain(|f| *f != family);
        true
    }
}

impl DataPlane for Nftables {
    type Observed = Observed;
    type Plan = Plan;
    type Error = Error;

    fn name(&self) -> &'static str {
        "nftables"
    }

    fn observe(&mut self, settings: &Settings) -> Result<Observed, Error> {
        self.settings = settings.clone();
        let mut last: Option<Observed> = None;
        for _ in 0..TRIES {
            let before = self.socket.generation()?;
            let mut observed = Observed::new();
            let mut interrupted = false;
            self.counted.clear();
            self.clients.clear();
            for family in self.families.clone() {
                match self.read(family, settings) {
                    Ok(table) => {
                        observed.insert(family, table);
                    }
                    // A set that was listed went meanwhile.
                    Err(netlink::Error::Interrupted | netlink::Error::Request(Errno::ENOENT)) => {
                        interrupted = true
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            if !interrupted {
                let after = self.socket.generation()?;
                // Where others commit all the time, two readings that agree have to do, until all is compared again.
                if after == before || last.as_ref() == Some(&observed) {
                    self.generation = Some(after);
                    self.unverified = (after != before).then(Instant::now);
                    return Ok(observed);
                }
                last = Some(observed);
            }
            debug!("rules changed while they were read; reading again");
            std::thread::sleep(PAUSE);
        }
        Err(netlink::Error::Interrupted.into())
    }

    fn adopt(&self, observed: &Observed) -> Adopted {
        plan::adopt(observed)
    }

    fn plan(&mut self, desired: &Desired, observed: &Observed) -> Plan {
        let (plan, planned) = plan::plan(desired, observed);
        self.clients = carry::living(std::mem::take(&mut self.clients), desired);
        self.intend(&plan, planned, || plan::usage(observed));
        plan
    }

    fn plan_changes(&mut self, changes: &Changes) -> Plan {
        let mut planned = self.used.clone();
        let plan = plan::plan_changes(changes, &self.families, &mut planned);
        self.planned = Some(planned);
        plan
    }

    fn steps(&self, plan: &Plan) -> usize {
        plan.len()
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), Error> {
        debug!("\n{plan}");
        let clients = carry::fitting(std::mem::take(&mut self.clients), plan);
        let batch = encode::encode_with_clients(&plan.tables, &clients, None);
        let first_load = plan.tables.iter().all(|(_, steps)| makes_table(steps));
        let result = if first_load && batch.as_bytes().len() > self.socket.send_capacity() {
            self.commit_split(plan)
        } else {
            commit(&mut self.socket, &plan.tables, &batch).map(|()| 1)
        };
        match result {
            Ok(commits) => {
                // Every commit moves the generation by one. If it moved by more, somebody else wrote, too.
                let now = self.socket.generation()?;
                let expected = self.generation.map(|g| g.wrapping_add(commits as u32));
                self.generation = Some(now).filter(|now| Some(*now) == expected);
                for (family, _) in plan.tables.iter().filter(|(_, steps)| makes_table(steps)) {
                    self.invalid_counters.remove(family);
                }
                if let Some(planned) = self.planned.take() {
                    self.used = planned;
                }
                Ok(())
            }
            Err(error) if !clients.is_empty() => {
                warn!(%error, "clients of session affinity could not be carried over and begin anew");
                self.apply(plan)
            }
            Err(error) if self.drop_missing_family(plan, &error) => {
                let tables = plan.tables.iter().filter(|(f, _)| self.families.contains(f)).cloned().collect();
                self.apply(&Plan { tables })
            }
            Err(error) => Err(error),
        }
    }

    fn fault(&mut self, plan: &Plan, error: &Error) -> Fault {
        let Error::Refused(refused) = error else { return Fault::Elsewhere };
        // What somebody else did to our tables is no Service's fault. Those that are made anew do not depend on it.
        let kept = plan.tables.iter().filter(|(_, steps)| !makes_table(steps));
        let kept: Vec<Family> = kept.map(|(family, _)| *family).collect();
        if self.socket.generation().ok() != self.generation
            && kept.into_iter().any(|family| !matches!(self.is_as_left(family, true), Ok(true)))
        {
            return Fault::Elsewhere;
        }
        if refused.iter().any(|r| r.step.is_none()) {
            return Fault::Unnamed;
        }
        let named = refused.iter().filter_map(|r| Some((fault::parts(plan, r.step?), r.to_string())));
        let named: Vec<_> =
            named.flat_map(|(parts, why)| parts.into_iter().map(move |part| (part, why.clone()))).collect();
        if named.is_empty() { Fault::Elsewhere } else { Fault::Named(named) }
    }

    fn hold(&mut self) {
        self.to_hold = Some((Instant::now(), false));
    }

    fn tend(&mut self) -> Result<(), Error> {
        self.make_hold();
        self.remove_leftovers();
        self.count()
    }

    fn measures(&self) -> Measures {
        let mut sets = Vec::new();
        for family in self.families.iter().copied() {
            let structure = plan::structure(&self.settings, family);
            for set in schema::sets(&structure) {
                sets.push((family, set.to_string(), self.used.elements(family, set), None));
            }
            for set in self.used.parts(family).1 {
                let limit = schema::definition(family, set).size;
                let clients = self.counted.get(&(family, set)).copied().unwrap_or(0);
                sets.push((family, set.to_string(), clients, Some(limit)));
            }
        }
        Measures { traffic: self.socket.traffic(), invalid_dropped: self.invalid_dropped, sets }
    }

    fn errnos(&self, error: &Error) -> Vec<Errno> {
        match error {
            Error::NotPermitted => vec![Errno::EPERM],
            Error::Refused(refused) => refused.iter().map(|r| r.errno).collect(),
            Error::Netlink(netlink::Error::Refused(refused)) => refused.iter().map(|r| r.errno).collect(),
            Error::Netlink(
                netlink::Error::Send { errno, .. }
                | netlink::Error::Receive(errno)
                | netlink::Error::Request(errno)
                | netlink::Error::Option { errno, .. }
                | netlink::Error::Open(errno)
                | netlink::Error::Bind(errno),
            ) => vec![*errno],
            Error::Netlink(_) => Vec::new(),
        }
    }

    fn disturbed(&mut self, thorough: bool) -> Result<bool, Error> {
        let now = self.socket.generation()?;
        if Some(now) == self.generation {
            return Ok(thorough && self.is_to_be_verified());
        }
        // Other agents commit all day. Structure and counts say nearly always that it was not about us.
        for family in self.families.clone() {
            if !self.is_as_left(family, thorough)? {
                return Ok(true);
            }
        }
        // Without counts a commit is done with only after a thorough look.
        if (thorough || self.counts) && self.socket.generation()? == now {
            self.generation = Some(now);
        }
        self.unverified.get_or_insert_with(Instant::now);
        Ok(thorough && self.is_to_be_verified())
    }
}

fn makes_table(steps: &[Step]) -> bool {
    matches!(steps, [Step::CreateTable(_), ..] | [Step::DestroyTable, Step::CreateTable(_), ..])
}

impl Nftables {
    /// Makes the table that holds connections, if that is asked for and not done.
    pub(super) fn make_hold(&mut self) {
        let Some((_, failed)) = self.to_hold.filter(|(at, _)| Instant::now() >= *at) else { return };
        match self.socket.commit(&hold::batch()) {
            Ok(()) => {
                self.to_hold = None;
                // Nobody else wrote if that was the only commit.
                let now = self.socket.generation().ok();
                if now.is_some() && now == self.generation.map(|g| g.wrapping_add(1)) {
                    self.generation = now;
                }
            }
            // Another agent has it, which is about to end; or the kernel has no such tables.
            Err(error) => {
                if !failed {
                    warn!(%error, "connections are not held, should somebody flush all rules; trying again");
                }
                self.to_hold = Some((Instant::now() + HOLD, true));
            }
        }
    }

    /// Removes what mode ipvs left; as far as that goes, in each call.
    fn remove_leftovers(&mut self) {
        let result = match &mut self.leftovers {
            Looked::Done => return,
            Looked::NotYet => {
                Leftovers::open().map(|found| found.map_or(Looked::Done, Looked::Found)).map(Some)
            }
            Looked::Found(leftovers) => leftovers.remove().map(|done| done.then_some(Looked::Done)),
        };
        match result {
            Ok(Some(state)) => self.leftovers = state,
            Ok(None) => {}
            // The rules do not need it.
            Err(error) => {
                warn!(%error, "what mode ipvs left cannot be removed; the next start tries again");
                self.leftovers = Looked::Done;
            }
        }
    }

    /// Takes over what the kernel counted, now and then.
    pub(super) fn count(&mut self) -> Result<(), Error> {
        if self.counted_at.elapsed() < COUNTS {
            return Ok(());
        }
        self.counted_at = Instant::now();
        if self.settings.drop_invalid {
            self.count_invalid()?;
        }
        self.count_clients()
    }

    fn count_invalid(&mut self) -> Result<(), Error> {
        for family in self.families.iter().copied() {
            let now = decode::counted(&mut self.socket, family, Chain::DropInvalid)?.unwrap_or(0);
            let before = self.invalid_counters.insert(family, now).unwrap_or(0);
            // A counter that says less is of a table that was made anew.
            self.invalid_dropped += if now < before { now } else { now - before };
        }
        Ok(())
    }

    fn count_clients(&mut self) -> Result<(), Error> {
        self.counted.clear();
        for family in self.families.clone() {
            let (_, sets) = self.used.parts(family);
            if sets.is_empty() {
                continue;
            }
            let Some(found) = decode::observe(&mut self.socket, family)? else { continue };
            let counts = sets.into_iter().filter_map(|set| Some(((family, set), found.count(set)? as usize)));
            self.counted.extend(counts);
        }
        Ok(())
    }

    /// An element that was replaced by another does not show in the counts: after commits of others everything is
    /// compared once in a while, unless that means to dump a large table.
    fn is_to_be_verified(&self) -> bool {
        let large = |family: &Family| {
            !self.counts && self.used.elements(*family, Set::Endpoints) > MOST_COMPARED as usize
        };
        self.unverified.is_some_and(|since| since.elapsed() >= VERIFY) && !self.families.iter().any(large)
    }

    /// Whether a table has the structure and as many elements as it should. Where the kernel does not count them
    /// (before 6.18) a small table is not trusted by a thorough look.
    fn is_as_left(&mut self, family: Family, thorough: bool) -> Result<bool, Error> {
        let Some(found) = decode::observe(&mut self.socket, family)? else { return Ok(false) };
        let (chains, sets) = self.used.parts(family);
        let structure = plan::structure(&self.settings, family);
        if found.difference(family, &structure, &chains, &sets).is_some() {
            return Ok(false);
        }
        Ok(schema::sets(&structure).all(|set| {
            let expected = self.used.elements(family, set);
            match found.count(set) {
                Some(count) => count as usize == expected,
                None if matches!(set, Set::PodCidrs | Set::ServiceCidrs) => true,
                None => !thorough || expected > MOST_COMPARED as usize,
            }
        }))
    }
}
