//! What sluice sends to the kernel and what it prints, held against the kernel and against nft. Needs root and the
//! programs nft, ip and conntrack; each test has a network namespace of its own.

#[path = "kernel/busy.rs"]
mod busy;
#[path = "kernel/bytecode.rs"]
mod bytecode;
#[path = "kernel/capacity.rs"]
mod capacity;
#[path = "kernel/conntrack.rs"]
mod conntrack;
#[path = "kernel/errors.rs"]
mod errors;
#[path = "support/events.rs"]
mod events;
#[path = "kernel/incremental.rs"]
mod incremental;
#[path = "kernel/isolate.rs"]
mod isolate;
#[path = "kernel/large.rs"]
mod large;
#[path = "kernel/observe.rs"]
mod observe;
#[path = "kernel/rehash.rs"]
mod rehash;
#[path = "kernel/roundtrip.rs"]
mod roundtrip;
#[path = "kernel/sample.rs"]
mod sample;
#[path = "kernel/space.rs"]
mod space;
#[allow(dead_code, reason = "the benches use the rest")]
#[path = "../benches/synthetic.rs"]
mod synthetic;
