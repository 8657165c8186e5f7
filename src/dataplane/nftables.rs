//! The nftables data plane: services are set elements, the rules are constant.
//!
//! `rules/README.md` draws a packet's way through the tables.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustc_hash::FxHashSet;
use tracing::{debug, warn};

use self::count::Counts;
use self::element::Sticky;
use self::encode::commit;
pub use self::error::Error;
use self::hold::Hold;
use self::model::{Set, Step};
use self::plan::{Observed, Plan, Usage};
use self::read::Read;
use self::translation::Translation;
use super::ipvs::leftovers::Leftovers;
use super::{DataPlane, Fault, Look, Measures};
use crate::cluster::Family;
use crate::forwarding::{Adopted, Changes, Desired, SetChange, Settings};
use crate::netlink::{self, Socket};

mod carry;
mod count;
pub mod decode;
pub mod element;
pub mod encode;
mod error;
pub mod expression;
pub mod fault;
mod hold;
pub mod lookup;
pub mod model;
pub mod plan;
mod read;
pub mod schema;
pub mod text;
pub mod translation;
pub(crate) mod uapi;

/// Above this many elements that can only be dumped a table is made anew rather than compared.
const MOST_COMPARED: u32 = 250_000;

/// How long after somebody else's commit every element is compared.
const VERIFY: Duration = Duration::from_secs(60);

/// How often tables are read again that changed while they were read.
pub(super) const TRIES: usize = 10;

/// Time until then. After a large load the kernel resizes its hash tables for some milliseconds.
pub(super) const PAUSE: Duration = Duration::from_millis(10);

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
    /// What the kernel counted.
    counted: Counts,
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
    /// Whose tables are of the other mode, until they are replaced.
    other_mode: Vec<Family>,
    /// What mode ipvs left.
    leftovers: Leftovers,
    hold: Hold,
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
            counted: Counts::new(),
            generation: None,
            unverified: None,
            settings: Settings::default(),
            clients: Vec::new(),
            counts: false,
            other_mode: Vec::new(),
            leftovers: Leftovers::default(),
            hold: Hold::default(),
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

    /// While a commit ends, the kernel takes the old table's base chains out one after the other, and the new one's run already:
    /// a packet that the one leaves to IPVS may meet a chain of the other that refuses what is not translated. Where it is
    /// dropped instead the client sends it again, and meets only the new table.
    fn leave_other_mode(&mut self, plan: &Plan) {
        let replaced = |family: &Family| {
            plan.tables.iter().any(|(of, steps)| of == family && steps.first() == Some(&Step::DestroyTable))
        };
        let families: Vec<Family> = self.other_mode.iter().copied().filter(replaced).collect();
        if families.is_empty() {
            return;
        }
        match self.socket.commit(&encode::drop_instead_of_refusing(&families)) {
            Ok(()) => self.also_committed(1),
            Err(error) => debug!(%error, "the other mode's tables refuse until they are replaced"),
        }
        self.other_mode.clear();
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
            self.counted.forget_clients();
            self.clients.clear();
            self.other_mode.clear();
            for family in self.families.clone() {
                match read::table(&mut self.socket, family, settings) {
                    Ok(found) => {
                        let table = found.map(|Read { table, clients, counts, other_mode }| {
                            self.counts = counts;
                            self.clients.push((family, clients));
                            self.other_mode.extend(other_mode.then_some(family));
                            table
                        });
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
        self.leave_other_mode(plan);
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
                    self.counted.begin_anew(*family);
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
        self.hold.ask();
    }

    fn tend(&mut self) -> Result<(), Error> {
        self.leftovers.remove();
        self.tend_tables()
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
                let clients = self.counted.clients(family, set);
                sets.push((family, set.to_string(), clients, Some(limit)));
            }
        }
        Measures { traffic: self.socket.traffic(), invalid_dropped: self.counted.invalid_dropped(), sets }
    }

    fn errnos(&self, error: &Error) -> Vec<Errno> {
        error.errnos()
    }

    fn look(&mut self, thorough: bool) -> Result<Look, Error> {
        let now = self.socket.generation()?;
        if Some(now) == self.generation {
            return Ok(self.unless_to_be_verified(thorough));
        }
        // Other agents commit all day. Structure and counts say nearly always that it was not about us.
        for family in self.families.clone() {
            if !self.is_as_left(family, thorough)? {
                return Ok(Look::Changed);
            }
        }
        // Without counts a commit is done with only after a thorough look.
        if (thorough || self.counts) && self.socket.generation()? == now {
            self.generation = Some(now);
        }
        self.unverified.get_or_insert_with(Instant::now);
        Ok(self.unless_to_be_verified(thorough))
    }
}

fn makes_table(steps: &[Step]) -> bool {
    matches!(steps, [Step::CreateTable(_), ..] | [Step::DestroyTable, Step::CreateTable(_), ..])
}

impl Nftables {
    /// What both modes do as time passes: makes the table that holds connections, takes over what the kernel counted.
    pub(super) fn tend_tables(&mut self) -> Result<(), Error> {
        if self.hold.make(&mut self.socket) {
            // Nobody else wrote if that was the only commit.
            let now = self.socket.generation().ok();
            if now.is_some() && now == self.generation.map(|g| g.wrapping_add(1)) {
                self.generation = now;
            }
        }
        let Nftables { socket, families, used, settings, .. } = self;
        match self.counted.update(socket, families, used, settings.drop_invalid) {
            // Others wrote meanwhile; the next time will do.
            Err(netlink::Error::Interrupted) => Ok(()),
            result => Ok(result?),
        }
    }

    /// An element that was replaced by another does not show in the counts: after commits of others everything is
    /// compared once in a while, unless that means to dump a large table.
    fn unless_to_be_verified(&self, thorough: bool) -> Look {
        let large = |family: &Family| {
            !self.counts && self.used.elements(*family, Set::Endpoints) > MOST_COMPARED as usize
        };
        let due = self.unverified.is_some_and(|since| since.elapsed() >= VERIFY);
        if thorough && due && !self.families.iter().any(large) { Look::Due } else { Look::AsLeft }
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
