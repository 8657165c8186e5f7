//! What mode ipvs left, for mode nftables to remove: its connections may go on to their end.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use rustc_hash::FxHashSet;
use tracing::{debug, info, warn};

use super::Error;
use super::kernel::{Kernel, Observed};
use super::model::{DEVICE, Step};
use super::plan::{Bounds, plan};
use super::state::State;
use crate::dataplane::nftables;
use crate::forwarding::Desired;
use crate::log::Repeated;

/// How often connections that are to end are looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(60);

/// What there may be of an earlier run in mode ipvs.
#[derive(Debug, Default)]
pub struct Leftovers {
    looked: Looked,
    /// Not before this.
    next: Option<Instant>,
    failing: Repeated,
}

#[derive(Debug, Default)]
enum Looked {
    #[default]
    NotYet,
    Found(Box<Found>),
    Done,
}

impl Leftovers {
    /// Removes them, as far as that goes in each call: once there is nothing left, a call does nothing. Looks in the network
    /// namespace of the calling thread; does not have the kernel load IPVS.
    pub fn remove(&mut self) {
        if matches!(self.looked, Looked::Done) || self.next.is_some_and(|next| Instant::now() < next) {
            return;
        }
        let wait = match self.try_to_remove() {
            Ok(()) => INTERVAL,
            // The rules do not need it. What was done by then is to be seen.
            Err(error) => {
                self.looked = Looked::NotYet;
                if let Some(times) = self.failing.again(&error) {
                    warn!(%error, times, "what mode ipvs left cannot be removed; trying again every minute");
                }
                AGAIN
            }
        };
        self.next = Some(Instant::now() + wait);
    }

    fn try_to_remove(&mut self) -> Result<(), Error> {
        match &mut self.looked {
            Looked::Done => {}
            Looked::NotYet if !super::is_loaded() => self.looked = Looked::Done,
            Looked::NotYet => self.looked = Looked::Found(Box::new(Found::take()?)),
            Looked::Found(found) => found.tend()?,
        }
        if let Looked::Found(found) = &mut self.looked
            && found.state.lingering.is_empty()
        {
            found.finish()?;
            self.looked = Looked::Done;
        }
        Ok(())
    }
}

/// Virtual services and addresses of an earlier run in mode ipvs.
#[derive(Debug)]
struct Found {
    kernel: Kernel,
    state: State,
}

impl Found {
    /// Takes new connections from them, and deletes those without any.
    fn take() -> Result<Found, Error> {
        let (mut kernel, mut state) = (Kernel::open()?, State::default());
        let mut observed = kernel.observe()?;
        keep_ours(&mut observed);
        let tables = |kept: &[IpAddr]| (nftables::plan::Plan::default(), kept.iter().copied().collect());
        let (desired, bounds) = (Desired::default(), Bounds::default());
        let plan = plan(&desired, &observed, &bounds, &mut state, Instant::now(), tables);
        let mut steps: Vec<Step> = plan.before.into_iter().chain(plan.after).collect();
        // What is not there is not made any more, but for what stays meanwhile.
        steps.retain(|step| match step {
            Step::AddDevice => false,
            Step::AddAddress(_) | Step::DeleteAddress(_) => observed.device,
            Step::AddArpTable => observed.device && !state.lingering.is_empty(),
            _ => true,
        });
        let mut found = Found { kernel, state };
        found.execute(&steps)?;
        let left = found.state.lingering.len();
        if left > 0 {
            info!(
                "{left} virtual services of mode ipvs stay until their connections end, for 15 minutes at most"
            );
        }
        Ok(found)
    }

    /// Deletes those whose connections have ended.
    fn tend(&mut self) -> Result<(), Error> {
        let Found { kernel, state } = self;
        let (mut steps, gone) = state.tend(Instant::now(), |key| kernel.destinations(key))?;
        if self.kernel.device()?.is_some() {
            let kept: FxHashSet<IpAddr> = self.state.kept.iter().map(|key| key.address).collect();
            let gone: FxHashSet<IpAddr> = gone.into_iter().map(|(address, _)| address).collect();
            steps.extend(gone.difference(&kept).copied().map(Step::DeleteAddress));
        }
        self.execute(&steps)
    }

    /// Deletes the device, unless others use it, and the table for ARP.
    fn finish(&mut self) -> Result<(), Error> {
        let mut observed = self.kernel.observe()?;
        let shared = keep_ours(&mut observed);
        let device = (observed.device && !shared).then_some(Step::DeleteDevice);
        let steps: Vec<Step> =
            device.into_iter().chain(observed.arp.exists.then_some(Step::DeleteArpTable)).collect();
        self.execute(&steps)?;
        if !steps.is_empty() {
            info!("what mode ipvs left is removed");
        }
        Ok(())
    }

    fn execute(&mut self, steps: &[Step]) -> Result<(), Error> {
        steps.iter().for_each(|step| debug!("{step}"));
        self.kernel.execute(steps).map(drop)
    }
}

/// Leaves out what others made; says whether they use the device.
fn keep_ours(observed: &mut Observed) -> bool {
    let foreign = observed.services.iter().filter(|(_, service)| !service.is_ours());
    let foreign: FxHashSet<IpAddr> = foreign.map(|(key, _)| key.address).collect();
    observed.services.retain(|_, service| service.is_ours());
    let shared = !observed.held.is_disjoint(&foreign);
    if shared {
        let ours: FxHashSet<IpAddr> = observed.services.keys().map(|key| key.address).collect();
        observed.held.retain(|address| ours.contains(address) && !foreign.contains(address));
        observed.arp.addresses.retain(|address| !foreign.contains(address));
        debug!("somebody else's virtual services use addresses of {DEVICE}");
    }
    shared
}
