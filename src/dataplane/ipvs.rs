//! The IPVS data plane: virtual services and their destinations in IPVS, their addresses on the dummy device
//! kube-ipvs0; tables of nftables for what IPVS does not do.
//!
//! ```text
//!   packet ──► prerouting / output (nat)        ──► routing: the address is ──► IPVS (input, or output again):
//!              tables sluice: source ranges,        this host's, on             one destination, by the scheduler
//!              refuse, drop, accept = go on         kube-ipvs0                          │
//!                                                                                       ▼
//!                                                               postrouting (nat): tables sluice masquerade
//! ```

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustc_hash::FxHashSet;
use tracing::{debug, warn};

use self::kernel::{Kernel, Refused};
use self::model::{Step, Timeouts, VirtualService};
use self::plan::{Bounds, Plan, Whose};
use self::state::{Odd, State};
use super::nftables::model::{Element, Verdict};
use super::nftables::translation::{Host, Translation};
use super::nftables::{self, Nftables};
use super::{DataPlane, Look, Measures, OddPart};
use crate::cluster::{Family, Scheduler};
use crate::config;
use crate::forwarding::{Adopted, Changes, Desired, Frontend, Settings, Target};
use crate::netlink;

pub mod arp;
pub mod decode;
pub mod encode;
pub mod kernel;
pub mod leftovers;
pub mod memory;
pub mod model;
pub mod plan;
pub mod state;
mod text;
pub mod traffic;
mod uapi;

/// How often destinations without new connections are looked at.
const TEND: Duration = Duration::from_secs(1);

/// Why IPVS could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no IPVS.
    #[error(
        "the kernel has no IPVS: load its module on the host (modprobe ip_vs; Ubuntu has it in linux-modules-extra), \
         or use mode nftables"
    )]
    NoIpvs,
    /// The kernel has no dummy devices.
    #[error("the kernel cannot make the device kube-ipvs0: load the module on the host (modprobe dummy)")]
    NoDummy,
    /// The kernel lacks the scheduler that stands in for others.
    #[error("the kernel lacks the IPVS scheduler {0}: load its module on the host (modprobe ip_vs_{0})")]
    NoScheduler(Scheduler),
    /// A device has the name but is no dummy device.
    #[error("the device kube-ipvs0 is of kind {0:?}, not dummy: rename or delete it")]
    OtherDevice(String),
    /// The device went while it was needed.
    #[error("somebody deleted the device kube-ipvs0")]
    DeviceGone,
    /// The kernel lets only those with `CAP_NET_ADMIN` read or write IPVS.
    #[error("the kernel refuses to show or change IPVS (EPERM): this needs root, or CAP_NET_ADMIN")]
    NotPermitted,
    /// The kernel refused a step; those before it were taken.
    #[error("the kernel refused `{step}`: {errno}")]
    Refused {
        /// As `ipvsadm` has it.
        step: String,
        /// What it answered.
        #[source]
        errno: Errno,
    },
    /// The kernel could not be talked to.
    #[error(transparent)]
    Netlink(netlink::Error),
    /// The tables.
    #[error(transparent)]
    Tables(#[from] nftables::Error),
}

impl From<netlink::Error> for Error {
    fn from(error: netlink::Error) -> Error {
        match error {
            netlink::Error::Request(Errno::EPERM) => Error::NotPermitted,
            error => Error::Netlink(error),
        }
    }
}

impl From<netlink::Malformed> for Error {
    fn from(error: netlink::Malformed) -> Error {
        Error::Netlink(error.into())
    }
}

impl Error {
    /// What was read changed meanwhile.
    fn is_interrupted(&self) -> bool {
        use netlink::Error::Interrupted;
        matches!(self, Error::Netlink(Interrupted) | Error::Tables(nftables::Error::Netlink(Interrupted)))
    }

    fn refused(step: Option<&Step>, errno: Errno) -> Error {
        match errno {
            Errno::EPERM => Error::NotPermitted,
            errno => Error::Refused { step: step.map_or_else(String::new, Step::to_string), errno },
        }
    }
}

/// What was read back.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The tables.
    pub tables: nftables::plan::Observed,
    /// IPVS and its device.
    pub ipvs: kernel::Observed,
}

/// IPVS, the device kube-ipvs0 and the tables of one network namespace.
#[derive(Debug)]
pub struct Ipvs {
    tables: Nftables,
    kernel: Kernel,
    config: config::Ipvs,
    /// Timeouts that are asked for, and that the kernel takes; 0: as it has them.
    timeouts: Timeouts,
    /// IPVS does not tell of changes: everything is compared so often.
    sync_period: Duration,
    state: State,
    /// What was noted of what the kernel refused, until somebody asks.
    odd: Vec<OddPart>,
    /// The host's addresses when everything was last compared.
    host: FxHashSet<IpAddr>,
    observed: Instant,
    /// Whether the device was there when everything was last compared, or was made since.
    has_device: bool,
    tended: Instant,
}

impl Ipvs {
    /// Opens sockets in the network namespace of the calling thread; has the kernel load IPVS.
    pub fn open(config: config::Ipvs, sync_period: Duration) -> Result<Ipvs, Error> {
        let state = State { default: config.scheduler, ..State::default() };
        let (tables, kernel, now) = (Nftables::open()?, Kernel::open()?, Instant::now());
        let (odd, host) = (Vec::new(), FxHashSet::default());
        let mut ipvs = Ipvs {
            tables,
            kernel,
            timeouts: Timeouts {
                tcp: seconds(config.tcp_timeout),
                tcp_fin: seconds(config.tcp_fin_timeout),
                udp: seconds(config.udp_timeout),
            },
            config,
            sync_period,
            state,
            odd,
            host,
            observed: now,
            has_device: false,
            tended: now,
        };
        ipvs.note_written();
        Ok(ipvs)
    }

    /// Notes what was found out by the steps that were taken.
    fn note_written(&mut self) {
        self.tables.also_committed(self.kernel.take_commits());
        if !self.kernel.ipv6() && !self.state.ipv4_only {
            warn!("IPVS or this host has no IPv6; IPv4 is served");
            self.state.ipv4_only = true;
            self.tables.leave_out(Family::Ipv6);
        }
    }

    /// Takes steps; what the kernel refuses for what it is, is noted.
    fn execute(&mut self, steps: &[Step]) -> Result<Vec<Step>, Error> {
        let mut lacking = Vec::new();
        for refused in self.kernel.execute(steps)? {
            match refused {
                Refused::Lacks(step) => lacking.push(step.clone()),
                Refused::Odd(step, errno) => {
                    let (address, key) = match *step {
                        Step::AddDestination(key, destination, _) => {
                            self.state.odd.destinations.insert((key, destination));
                            (key.address, Some(key))
                        }
                        Step::AddAddress(address) => {
                            self.state.odd.addresses.insert(address);
                            (address, None)
                        }
                        Step::SetTimeouts(_) => {
                            let step = step.to_string();
                            warn!(
                                "the kernel does not take `{step}`: {errno}; its timeouts stay as they are"
                            );
                            self.timeouts = Timeouts::default();
                            continue;
                        }
                        _ => continue,
                    };
                    let error = Error::refused(Some(step), errno);
                    self.odd.push(OddPart { address, key, error: error.to_string() });
                }
            }
        }
        Ok(lacking)
    }

    /// Takes steps; where the kernel lacks a scheduler, another one is used.
    fn take(&mut self, steps: &[Step]) -> Result<(), Error> {
        let is_service = |step: &Step| matches!(step, Step::AddService(..) | Step::SetService(..));
        let (services, rest) = steps.split_at(steps.iter().rposition(is_service).map_or(0, |last| last + 1));
        let mut lacking = self.execute(services)?;
        while !lacking.is_empty() {
            let mut instead = Vec::new();
            for step in lacking {
                let (Step::AddService(key, service) | Step::SetService(key, service)) = step else {
                    continue;
                };
                self.state.lacking.insert(service.scheduler);
                let scheduler = self.state.available(service.scheduler);
                if scheduler == service.scheduler || self.state.lacking.contains(&scheduler) {
                    return Err(Error::NoScheduler(scheduler));
                }
                let service = VirtualService { scheduler, ..service };
                instead.push(match step {
                    Step::AddService(..) => Step::AddService(key, service),
                    _ => Step::SetService(key, service),
                });
            }
            lacking = self.execute(&instead)?;
        }
        self.execute(rest)?;
        Ok(())
    }
}

/// Removes what sluice, or kube-proxy, made in IPVS and on its device, whatever connections there are; says what there was.
/// Does not have the kernel load IPVS.
pub fn cleanup(whose: Whose) -> Result<Vec<String>, Error> {
    let Some((mut kernel, steps)) = left(whose)? else { return Ok(Vec::new()) };
    kernel.execute(&steps)?;
    Ok(words(&steps))
}

/// What [`cleanup`] would remove.
pub fn leftovers(whose: Whose) -> Result<Vec<String>, Error> {
    Ok(left(whose)?.map_or_else(Vec::new, |(_, steps)| words(&steps)))
}

fn left(whose: Whose) -> Result<Option<(Kernel, Vec<Step>)>, Error> {
    if !is_loaded() {
        return Ok(None);
    }
    let mut kernel = Kernel::open()?;
    let steps = plan::cleanup(&kernel.observe()?, whose);
    Ok(Some((kernel, steps)))
}

fn words(steps: &[Step]) -> Vec<String> {
    let services = steps.iter().filter(|step| matches!(step, Step::DeleteService(_))).count();
    let mut words = Vec::new();
    if services > 0 {
        words.push(format!("{services} virtual services of IPVS"));
    }
    if steps.contains(&Step::DeleteDevice) {
        words.push(format!("the device {}", model::DEVICE));
    }
    words
}

/// Whether the kernel has IPVS, the device and these schedulers. With `alone` they are made, in a network namespace that
/// is for that.
///
/// # Errors
/// With what it lacks.
pub fn probe(schedulers: &[Scheduler], alone: bool) -> Result<(), Error> {
    let mut kernel = Kernel::open()?;
    if !alone {
        return Ok(());
    }
    kernel.execute(&[Step::AddArpTable, Step::AddDevice])?;
    for (port, scheduler) in (1..).zip(schedulers) {
        let address = std::net::Ipv4Addr::new(198, 18, 0, 1).into();
        let key = model::Key { address, protocol: crate::cluster::Protocol::Tcp, port };
        let service = VirtualService { scheduler: *scheduler, persistence: None };
        if !kernel.execute(&[Step::AddService(key, service)])?.is_empty() {
            return Err(Error::NoScheduler(*scheduler));
        }
    }
    Ok(())
}

/// Whether the kernel has IPVS in use or ready.
fn is_loaded() -> bool {
    std::path::Path::new("/proc/thread-self/net/ip_vs").exists()
}

fn seconds(time: Option<Duration>) -> u32 {
    time.map_or(0, |time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1))
}

/// The keys that the tables let pass to IPVS.
fn passing(tables: &nftables::plan::Observed) -> FxHashSet<model::Key> {
    let elements = tables.values().flatten().flat_map(|table| &table.elements);
    let passing = elements.filter_map(|element| match element {
        Element::Service(key, Verdict::Accept) | Element::LocalService(key, Verdict::Accept) => Some(*key),
        _ => None,
    });
    passing.collect()
}

impl DataPlane for Ipvs {
    type Observed = Observed;
    type Plan = Plan;
    type Error = Error;

    fn name(&self) -> &'static str {
        "ipvs"
    }

    fn observe(&mut self, settings: &Settings) -> Result<Observed, Error> {
        let tables = self.tables.observe(settings)?;
        let mut tries = 1..nftables::TRIES;
        let ipvs = loop {
            match self.kernel.observe() {
                // The host's addresses change while they are read, or a set is being resized.
                Err(error) if error.is_interrupted() && tries.next().is_some() => {
                    std::thread::sleep(nftables::PAUSE);
                }
                result => break result?,
            }
        };
        self.observed = Instant::now();
        self.has_device = ipvs.device;
        Ok(Observed { tables, ipvs })
    }

    fn adopt(&self, observed: &Observed) -> Adopted {
        let mut adopted = self.tables.adopt(&observed.tables);
        for (key, service) in observed.ipvs.services.iter().filter(|(_, service)| service.is_ours()) {
            let list: Vec<_> =
                service.destinations.iter().filter(|(_, d)| d.weight > 0).map(|(a, _)| *a).collect();
            if list.is_empty() {
                continue;
            }
            let target = Target::Endpoints(list.into());
            let frontend = adopted.frontends.entry(*key).or_insert_with(Frontend::refusing);
            match frontend.inside {
                Target::Endpoints(_) => frontend.outside = Some(target),
                _ => frontend.inside = target,
            }
        }
        adopted
    }

    fn plan(&mut self, desired: &Desired, observed: &Observed) -> Plan {
        let bounds = Bounds {
            exclude: &self.config.exclude_cidrs,
            timeouts: self.timeouts,
            passing: passing(&observed.tables),
            replacing: observed.tables.values().flatten().any(|table| table.difference.is_some()),
        };
        let node = desired.node().node_port_addresses.clone();
        if self.host != observed.ipvs.host {
            self.host.clone_from(&observed.ipvs.host);
            self.state.odd = Odd::default();
        }
        let host = Host { addresses: observed.ipvs.host.clone(), node };
        let tables = &mut self.tables;
        let plan_tables = |kept: &[IpAddr]| {
            tables.plan_for(desired, &observed.tables, Translation::Ipvs(Arc::new(host)), kept)
        };
        plan::plan(desired, &observed.ipvs, &bounds, &mut self.state, Instant::now(), plan_tables)
    }

    fn plan_changes(&mut self, changes: &Changes) -> Plan {
        let tables = &mut self.tables;
        plan::plan_changes(changes, &mut self.state, Instant::now(), |kept| {
            tables.plan_keeping(changes, kept)
        })
    }

    fn steps(&self, plan: &Plan) -> usize {
        plan.len()
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), Error> {
        debug!("\n{plan}");
        let result = self.take(&plan.before);
        self.note_written();
        result?;
        self.has_device |= plan.before.contains(&Step::AddDevice);
        self.apply_tables(&plan.tables)?;
        let result = self.execute(&plan.after).map(drop);
        self.note_written();
        result
    }

    fn odd_parts(&mut self) -> Vec<OddPart> {
        std::mem::take(&mut self.odd)
    }

    fn scheduler_instead(&self, scheduler: Scheduler) -> Option<Scheduler> {
        self.state.lacking.contains(&scheduler).then(|| self.state.available(scheduler))
    }

    fn measures(&self) -> Measures {
        let mut measures = self.tables.measures();
        for (sum, bytes) in measures.traffic.iter_mut().zip(self.kernel.traffic()) {
            *sum += bytes;
        }
        measures
    }

    fn errnos(&self, error: &Error) -> Vec<Errno> {
        match error {
            Error::NotPermitted => vec![Errno::EPERM],
            Error::Refused { errno, .. } => vec![*errno],
            Error::Netlink(error) => error.errnos(),
            Error::Tables(error) => error.errnos(),
            Error::NoIpvs
            | Error::NoDummy
            | Error::NoScheduler(_)
            | Error::OtherDevice(_)
            | Error::DeviceGone => Vec::new(),
        }
    }

    fn look(&mut self, thorough: bool) -> Result<Look, Error> {
        if self.has_device && self.kernel.device()?.is_none() {
            return Ok(Look::Changed);
        }
        if self.tables.is_moved()? && !self.kernel.guards_arp()? {
            return Ok(Look::Changed);
        }
        Ok(match self.tables.look(thorough)? {
            // IPVS does not tell of changes.
            Look::AsLeft if thorough && self.observed.elapsed() >= self.sync_period => Look::Due,
            look => look,
        })
    }

    fn hold(&mut self) {
        self.tables.hold();
    }

    fn tend(&mut self) -> Result<(), Error> {
        self.tables.tend_tables()?;
        if self.state.terminating.is_empty() || self.tended.elapsed() < TEND {
            return Ok(());
        }
        let start = Instant::now();
        self.look_after_terminating()?;
        // However many there are, looking at them takes at most a twentieth of the time.
        self.tended = Instant::now() + start.elapsed() * 20;
        Ok(())
    }
}

impl Ipvs {
    fn apply_tables(&mut self, plan: &nftables::plan::Plan) -> Result<(), Error> {
        if plan.is_empty() {
            return Ok(());
        }
        // The steps before may have shown that there is no IPv6.
        let left_out = |family: &Family| *family == Family::Ipv6 && self.state.ipv4_only;
        if !plan.tables.iter().any(|(family, _)| left_out(family)) {
            return Ok(self.tables.apply(plan)?);
        }
        let tables = plan.tables.iter().filter(|(family, _)| !left_out(family)).cloned().collect();
        Ok(self.tables.apply(&nftables::plan::Plan { tables })?)
    }

    /// Deletes destinations without new connections that have none left, whenever that was done last.
    pub fn look_after_terminating(&mut self) -> Result<(), Error> {
        let start = Instant::now();
        let Ipvs { state, kernel, .. } = self;
        let (mut steps, kept) = state.tend(start, |key| kernel.destinations(key))?;
        let tables = self.tables.plan_keeping(&Changes::default(), &kept);
        let (_, addresses) = plan::addresses(&tables);
        steps.extend(addresses.into_iter().map(Step::DeleteAddress));
        self.apply(&Plan { before: Vec::new(), tables, after: steps })
    }
}
