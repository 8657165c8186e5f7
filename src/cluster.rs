//! What sluice keeps of a cluster: small types that hold only what forwarding needs, and the index over them.
//!
//! Values of these types make sense by construction (ports are not zero, a slice's addresses are of its
//! family); [`crate::source`] turns objects into them and refuses what does not fit.

mod index;
mod objects;
mod scheduler;

pub use index::{Dirty, Index};
pub use objects::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Family, Interner, Node, ObjectName, Protocol,
    Service, ServiceCidr, ServicePort, TrafficDistribution, TrafficPolicy,
};
pub use scheduler::{Scheduler, UnknownScheduler};
