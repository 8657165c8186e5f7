//! Sources of objects. Kubernetes types stop here: what goes on is [`Change`]s of compact values.
//!
//! An object that makes no sense is left out alone, named in a warning and counted; it never stops the source or
//! touches any other object.

pub mod convert;
pub mod manifests;
pub mod objects;

use crate::cluster::Change;

/// Changes that belong together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// Whether, with these, Services and EndpointSlices have both been listed completely. Before that, nothing may
    /// be programmed.
    pub synced: bool,
}
