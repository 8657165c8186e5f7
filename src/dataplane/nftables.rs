//! The nftables data plane: services are set elements, the rules are constant.
//!
//! `rules/README.md` draws a packet's way through the tables.

pub mod model;
pub mod plan;
pub mod text;
