//! Sources of objects. Kubernetes types stop here: what goes on is [`Change`]s of compact values.
//!
//! An object that makes no sense is left out alone, named in a warning and counted; it never stops the source or
//! touches any other object.

pub mod convert;
pub mod kubernetes;
pub mod manifests;
pub mod objects;
mod read;

use std::sync::Arc;

use crate::cluster::{Change, ObjectName};

/// Changes that belong together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// Whether, with these, Services and EndpointSlices have both been listed completely. Before that, nothing may
    /// be programmed.
    pub synced: bool,
}

/// Which object a change is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Id {
    Service(ObjectName),
    EndpointSlice(ObjectName),
    Node(Arc<str>),
    ServiceCidr(Arc<str>),
}

impl Id {
    /// The object of a change.
    pub(crate) fn of(change: &Change) -> Id {
        match change {
            Change::Service(name, _) => Id::Service(name.clone()),
            Change::EndpointSlice(name, _) => Id::EndpointSlice(name.clone()),
            Change::Node(name, _) => Id::Node(name.clone()),
            Change::ServiceCidr(name, _) => Id::ServiceCidr(name.clone()),
        }
    }

    /// The change that says it is gone.
    pub(crate) fn deleted(self) -> Change {
        match self {
            Id::Service(name) => Change::Service(name, None),
            Id::EndpointSlice(name) => Change::EndpointSlice(name, None),
            Id::Node(name) => Change::Node(name, None),
            Id::ServiceCidr(name) => Change::ServiceCidr(name, None),
        }
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Id::Service(name) => write!(f, "Service {name}"),
            Id::EndpointSlice(name) => write!(f, "EndpointSlice {name}"),
            Id::Node(name) => write!(f, "Node {name}"),
            Id::ServiceCidr(name) => write!(f, "ServiceCIDR {name}"),
        }
    }
}
