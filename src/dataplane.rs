//! The data planes: how desired state becomes kernel state.
//!
//! Three nouns: the **desired** state ([`crate::forwarding::Desired`]), the **observed** state that a data plane
//! reads back, and the **plan**, an ordered, printable list of steps which takes one to the other atomically.

use std::fmt;

use crate::forwarding::{Adopted, Changes, Desired, Settings};

pub mod ipvs;
pub mod memory;
pub mod nftables;

/// A way to program service rules.
///
/// [`plan`](DataPlane::plan) and [`plan_changes`](DataPlane::plan_changes) expect that what they plan is applied
/// at once; when that fails, the state is to be observed anew.
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

    /// Applies a plan, wholly or not at all.
    fn apply(&mut self, plan: &Self::Plan) -> Result<(), Self::Error>;

    /// Does what is to be done as time passes, by itself; called several times a second.
    fn tend(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Whether somebody else may have changed what is there since it was last observed or applied.
    fn disturbed(&mut self) -> Result<bool, Self::Error>;
}
