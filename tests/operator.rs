//! The program as operators meet it: taking over from kube-proxy, the host's settings, rights, checks, health. The real binary in
//! network namespaces of its own. Needs root, iproute2, nftables and both variants of iptables, and fails without.

#[path = "apiserver/server.rs"]
#[allow(dead_code)]
mod apiserver;
#[path = "operator/check.rs"]
mod check;
#[path = "operator/drift.rs"]
mod drift;
#[path = "operator/health.rs"]
mod health;
#[path = "operator/ipvs.rs"]
mod ipvs;
#[path = "support/lab.rs"]
#[allow(dead_code)]
mod lab;
#[path = "operator/log.rs"]
mod log;
#[path = "operator/reload.rs"]
mod reload;
#[path = "operator/replay.rs"]
mod replay;
#[path = "operator/rights.rs"]
mod rights;
#[path = "operator/sysctl.rs"]
mod sysctl;
#[path = "operator/takeover.rs"]
mod takeover;
