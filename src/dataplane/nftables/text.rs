//! The data plane as nft text: names, elements, whole tables, plans.
//!
//! Texts are made to be loaded: nft 1.0.6 and 1.1.3 take them.

mod names;
mod plan;
mod table;

pub use names::{Duration, UnknownName};
pub use plan::write_plan;
pub use table::{Table, write_delete};
