//! The data plane as nft text: names, elements, whole tables, plans.

mod names;

pub use names::{Duration, UnknownName};
