//! What else is on this host: rules of other programs, and what kube-proxy left. Nothing here knows what a Service
//! is, and nothing is changed but by [`kube_proxy::remove`].

pub mod ipset;
pub mod kube_proxy;
pub mod ruleset;
pub mod xtables;
