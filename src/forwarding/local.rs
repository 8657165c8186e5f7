//! What a node's own endpoints mean to load balancers and operators: health check ports, and Services that want
//! local endpoints and have none.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use super::endpoints::{categorize, merge};
use super::{Categories, NodeView};
use crate::cluster::{EndpointSlice, Family, Service, TrafficPolicy};

/// The health check that a load balancer makes for a Service with `externalTrafficPolicy: Local`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: NonZeroU16,
    /// The number of ready endpoints on this node in IPv4 and in IPv6; `None` for a family that the Service lacks.
    pub endpoints: [Option<usize>; 2],
}

/// What one Service's local endpoints amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// The health check, where the Service has one.
    pub health_check: Option<HealthCheck>,
    /// By family: ports with `internalTrafficPolicy: Local` that have endpoints, but none on this node.
    pub without_internal: [u32; 2],
    /// The same of `externalTrafficPolicy: Local`.
    pub without_external: [u32; 2],
}

/// Works it out for one Service; free for Services that have no Local policy.
pub fn local(service: &Service, slices: &[Arc<EndpointSlice>], node: &NodeView) -> Local {
    let internal = service.internal_policy == TrafficPolicy::Local;
    let external = service.external_policy == TrafficPolicy::Local;
    let mut local = Local::default();
    if !internal && !external {
        return local;
    }
    let families = Family::ALL.map(|f| service.cluster_ips.iter().any(|a| Family::of(*a) == f));
    local.health_check = service.health_check_node_port.map(|port| HealthCheck {
        port,
        endpoints: Family::ALL.map(|f| families[f as usize].then(|| ready(slices, f, node))),
    });
    for family in Family::ALL.into_iter().filter(|f| families[*f as usize]) {
        for port in &service.ports {
            let endpoints = merge(slices, family, &port.name, port.protocol);
            let Categories { local: here, any, .. } = categorize(&endpoints, node);
            if any && here.is_empty() {
                local.without_internal[family as usize] += u32::from(internal);
                local.without_external[family as usize] += u32::from(external);
            }
        }
    }
    local
}

/// As kube-proxy counts for health checks: addresses, whatever their ports, and only ready ones, not those that
/// still serve while they terminate: the load balancer is to send new connections elsewhere.
fn ready(slices: &[Arc<EndpointSlice>], family: Family, node: &NodeView) -> usize {
    let slices = slices.iter().filter(|s| s.family == family && !s.ports.is_empty());
    let endpoints = slices.flat_map(|s| &s.endpoints);
    let ready = endpoints.filter(|e| e.conditions.ready && node.is_local(e)).map(|e| e.address);
    ready.collect::<FxHashSet<IpAddr>>().len()
}
