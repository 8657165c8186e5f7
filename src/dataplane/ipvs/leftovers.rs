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

/// How often connections that are to end are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// What there may be of an earlier run in mode ipvs.
#[derive(Debug, Default)]
pub struct Leftovers {
    looked: Looked,
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
        let result = match &mut self.looked {
            Looked::Done => return,
            Looked::NotYet => {
                Found::open().map(|found| Some(found.map_or(Looked::Done, |it| Looked::Found(it.into()))))
            }
            Looked::Found(found) => found.remove().map(|done| done.then_some(Looked::Done)),
        };
        match result {
            Ok(Some(state)) => self.looked = state,
            Ok(None) => {}
            // The rules do not need it.
            Err(error) => {
                warn!(%error, "what mode ipvs left cannot be removed; the next start tries again");
                self.looked = Looked::Done;
            }
        }
    }
}

/// Virtual services and addresses of an earlier run in mode ipvs.
#[derive(Debug)]
struct Found {
    kernel: Kernel,
    state: State,
    looked: Option<Instant>,
}

impl Found {
    /// `None` where there can be none.
    fn open() -> Result<Option<Found>, Error> {
        if !super::is_loaded() {
            return Ok(None);
        }
        Ok(Some(Found { kernel: Kernel::open()?, state: State::default(), looked: None }))
    }

    /// Takes new connections from them, and deletes those without any; to be called again until it says that none is
    /// left.
    fn remove(&mut self) -> Result<bool, Error> {
        if self.looked.is_some_and(|looked| looked.elapsed() < INTERVAL) {
            return Ok(false);
        }
        let first = self.looked.is_none();
        let mut observed = self.kernel.observe()?;
        let shared = keep_ours(&mut observed);
        let mut steps = Vec::new();
        if observed.device || !observed.services.is_empty() {
            let tables = |kept: &[IpAddr]| (nftables::plan::Plan::default(), kept.iter().copied().collect());
            let (desired, bounds) = (Desired::default(), Bounds::default());
            let plan = plan(&desired, &observed, &bounds, &mut self.state, Instant::now(), tables);
            steps.extend(plan.before.into_iter().filter(|step| *step != Step::AddDevice));
            steps.extend(plan.after);
        }
        let left = self.state.lingering.len();
        if left == 0 && observed.device && !shared {
            // Its addresses go with it.
            steps.retain(|step| !matches!(step, Step::DeleteAddress(_)));
            steps.push(Step::DeleteDevice);
        }
        if left == 0 {
            steps.retain(|step| *step != Step::AddArpTable);
            steps.extend(observed.arp.exists.then_some(Step::DeleteArpTable));
        }
        for step in &steps {
            debug!("{step}");
        }
        self.kernel.execute(&steps)?;
        if first && left > 0 {
            info!(
                "{left} virtual services of mode ipvs stay until their connections end, for 15 minutes at most"
            );
        }
        if left == 0 && !steps.is_empty() {
            info!("what mode ipvs left is removed");
        }
        self.looked = Some(Instant::now());
        Ok(left == 0)
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
