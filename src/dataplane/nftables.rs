//! The nftables data plane: services are set elements, the rules are constant.
//!
//! `rules/README.md` draws a packet's way through the tables.

pub mod decode;
pub mod element;
pub mod encode;
pub mod expression;
pub mod model;
pub mod schema;
pub mod text;
mod uapi;
