//! The data planes: how desired state becomes kernel state.
//!
//! Three nouns: the **desired** state ([`crate::forwarding::Desired`]), the **observed** state that a data plane
//! reads back, and the **plan**, an ordered, printable list of steps which takes one to the other atomically.

use std::fmt;
use std::net::IpAddr;

use nix::errno::Errno;

use crate::cluster::{Family, Scheduler};
use crate::forwarding::{Adopted, Changes, Desired, Key, Part, Settings};

pub mod ipvs;
pub mod memory;
pub mod nftables;

/// What of the desired state a plan was refused for; see [`DataPlane::fault`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// For these parts, each with what the kernel said. There may be more.
    Named(Vec<(Part, String)>),
    /// For some part of it; the kernel does not say which.
    Unnamed,
    /// For none: something else changed, or nothing can be written at all. What is there is to be observed anew.
    Elsewhere,
}

/// What the kernel says of others' changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nobody is seen to have changed anything.
    AsLeft,
    /// Nor here, but it is time to compare everything to be sure.
    Due,
    /// Somebody changed something of ours, or may have.
    Changed,
}

/// A part of a plan that the kernel refuses, where that stands for nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OddPart {
    /// The service address.
    pub address: IpAddr,
    /// The frontend; `None`: all of that address.
    pub key: Option<Key>,
    /// What the kernel said.
    pub error: String,
}

/// What can be measured of a data plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// Bytes that were sent to the kernel, and received from it.
    pub traffic: [u64; 2],
    /// INVALID packets that were dropped since the start of this process.
    pub invalid_dropped: u64,
    /// Each set's elements by family and name, and how many it takes where that is limited.
    pub sets: Vec<(Family, String, usize, Option<u32>)>,
}

/// A way to program service rules.
///
/// [`plan`](DataPlane::plan) and [`plan_changes`](DataPlane::plan_changes) expect that what they plan is applied at
/// once, where it has any steps. If it is refused, what was in place before is, and other plans may be made and applied;
/// but for IPVS, which has no transactions: there the steps before are taken, and all is to be read again.
pub trait DataPlane {
    /// What was read back.
    type Observed;
    /// What is to be done; prints as text that the data plane's own tools know.
    type Plan: fmt::Display;
    /// Why reading or applying failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Its name, as `--proxy-mode` takes it.
    fn name(&self) -> &'static str;

    /// Reads what is there and notes where it is not of the structure that `settings` ask for.
    fn observe(&mut self, settings: &Settings) -> Result<Self::Observed, Self::Error>;

    /// The endpoint lists that are there, so that the desired state can keep their order.
    fn adopt(&self, observed: &Self::Observed) -> Adopted;

    /// The whole difference between desired and observed.
    fn plan(&mut self, desired: &Desired, observed: &Self::Observed) -> Self::Plan;

    /// What a change of the desired state needs, given that the state before it is in place.
    fn plan_changes(&mut self, changes: &Changes) -> Self::Plan;

    /// How many steps a plan has; 0: there is nothing to apply.
    fn steps(&self, plan: &Self::Plan) -> usize;

    /// Applies a plan; where the kernel has transactions, wholly or not at all.
    fn apply(&mut self, plan: &Self::Plan) -> Result<(), Self::Error>;

    /// Sees to it that connections survive it when others remove all rules, as long as this lives; done with the next
    /// [`tend`](DataPlane::tend).
    fn hold(&mut self) {}

    /// Does what is to be done as time passes, by itself; called several times a second.
    fn tend(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// What a plan was refused for, that has just failed to be applied with this error.
    fn fault(&mut self, _plan: &Self::Plan, _error: &Self::Error) -> Fault {
        Fault::Elsewhere
    }

    /// What is used in place of a scheduler that the kernel was found to lack.
    fn scheduler_instead(&self, _scheduler: Scheduler) -> Option<Scheduler> {
        None
    }

    /// What of the plans applied until now the kernel refused for what it is, with all else in place; each once.
    fn odd_parts(&mut self) -> Vec<OddPart> {
        Vec::new()
    }

    /// What can be measured of it now.
    fn measures(&self) -> Measures {
        Measures::default()
    }

    /// What the kernel answered where an error is about that.
    fn errnos(&self, _error: &Self::Error) -> Vec<Errno> {
        Vec::new()
    }

    /// Whether somebody else changed what is there since it was last observed or applied. If not `thorough`, only what is
    /// plain to see counts; otherwise also that only a comparison of everything can tell.
    fn look(&mut self, thorough: bool) -> Result<Look, Self::Error>;
}
