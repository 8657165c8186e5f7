//! The IPVS data plane against a kernel that has IPVS: `make vm` runs this in an emulated machine, as root; each test has a
//! network namespace of its own.

#[path = "ipvs/agent.rs"]
mod agent;
#[path = "ipvs/entries.rs"]
mod entries;
#[path = "support/events.rs"]
mod events;
#[path = "ipvs/incremental.rs"]
mod incremental;
#[path = "ipvs/schedulers.rs"]
mod schedulers;
#[path = "kernel/space.rs"]
#[allow(dead_code, reason = "the tests of nftables use the rest")]
mod space;
#[path = "ipvs/world.rs"]
mod world;
