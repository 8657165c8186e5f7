//! The data planes: how desired state becomes kernel state. See [`nftables`].

pub mod memory;
pub mod nftables;
