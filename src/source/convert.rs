//! Objects into compact values, by kube-proxy's rules about what counts and the API's defaults for what is absent.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

use ipnet::IpNet;

use super::objects;
use crate::cluster::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, Family, Interner, Node, ObjectName, Protocol,
    Scheduler, Service, ServiceCidr, ServicePort, TrafficDistribution, TrafficPolicy, UnknownScheduler,
};
use crate::timestamp;

/// The label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label of a Service that another proxy serves.
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The label of headless Services' slices.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// The label of a Node with its zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// The taint of a Node that the cluster autoscaler is about to delete.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// `sessionAffinityConfig.clientIP.timeoutSeconds` where absent, and its maximum.
const AFFINITY_TIMEOUT: (u32, u32) = (10_800, 86_400);
/// The namespace of objects in files that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// What is wrong with a field, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The field's path, as `spec.ports[0].port`.
    pub field: String,
    /// The problem.
    pub problem: String,
    /// It is an address of a family that the Service does not have.
    pub wrong_family: bool,
}

impl Invalid {
    fn new(field: impl Into<String>, problem: impl Into<String>) -> Invalid {
        Invalid { field: field.into(), problem: problem.into(), wrong_family: false }
    }
}

/// What becomes of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// A value; parts of the object that make no sense are left out, each with a warning.
    Value(T, Vec<Invalid>),
    /// It is not for this proxy.
    Ignored,
    /// It makes no sense as a whole.
    Invalid(Invalid),
}

impl<T> Outcome<T> {
    /// The same of another type.
    pub fn map<U>(self, make: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Outcome::Value(value, warnings) => Outcome::Value(make(value), warnings),
            Outcome::Ignored => Outcome::Ignored,
            Outcome::Invalid(invalid) => Outcome::Invalid(invalid),
        }
    }
}

/// The namespaced name of an object.
pub fn name(metadata: &objects::Metadata, names: &mut Interner) -> ObjectName {
    let namespace = if metadata.namespace.is_empty() { DEFAULT_NAMESPACE } else { &metadata.namespace };
    ObjectName { namespace: names.intern(namespace), name: metadata.name.as_str().into() }
}

/// Converts a Service.
pub fn service(object: &objects::Service, names: &mut Interner) -> Outcome<Service> {
    if object.metadata.label(SERVICE_PROXY_NAME).is_some() {
        return Outcome::Ignored;
    }
    let mut warnings = Vec::new();
    match convert_service(object, names, &mut warnings) {
        Ok(Some(service)) => Outcome::Value(service, warnings),
        Ok(None) => Outcome::Ignored,
        Err(invalid) => Outcome::Invalid(invalid),
    }
}

fn convert_service(
    object: &objects::Service,
    names: &mut Interner,
    warnings: &mut Vec<Invalid>,
) -> Result<Option<Service>, Invalid> {
    let spec = &object.spec;
    let kind = spec.kind.as_deref().unwrap_or("ClusterIP");
    if kind == "ExternalName" || spec.cluster_ip.as_deref() == Some("None") {
        return Ok(None);
    }
    if !matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
        let known = "ClusterIP, NodePort, LoadBalancer and ExternalName";
        return Err(Invalid::new(
            "spec.type",
            format!("{kind:?} is not a type of Service; there are {known}"),
        ));
    }
    check_name(&object.metadata)?;
    let cluster_ips = cluster_ips(spec)?;
    let has = |family| cluster_ips.iter().any(|a| Family::of(*a) == family);
    let external = kind != "ClusterIP";
    let ports = service_ports(spec, external, names, warnings)?;
    let external_ips =
        own_addresses("spec.externalIPs", spec.external_ips.iter().map(|ip| Some(&**ip)), has, warnings);
    let vip = |i: &objects::LoadBalancerIngress| i.ip_mode.as_deref().is_none_or(|mode| mode == "VIP");
    let ingress = object.status.load_balancer.ingress.iter();
    let load_balancer_ips = own_addresses(
        "status.loadBalancer.ingress",
        ingress.map(|i| i.ip.as_deref().filter(|ip| vip(i) && !ip.is_empty())),
        has,
        warnings,
    );
    let load_balancer_ips = if kind == "LoadBalancer" { load_balancer_ips } else { vec![] };
    let source_ranges = match kind {
        "LoadBalancer" => {
            ranges("spec.loadBalancerSourceRanges", &spec.load_balancer_source_ranges, warnings)?
        }
        _ => vec![],
    };
    let external_policy = policy("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref())?;
    // Without any address that outside traffic can come to, the policy has no meaning.
    let accessible = external || !spec.external_ips.is_empty();
    let external_policy = if accessible { external_policy } else { TrafficPolicy::Cluster };
    let health_check_node_port = match spec.health_check_node_port.filter(|p| *p != 0) {
        Some(port) if kind == "LoadBalancer" && external_policy == TrafficPolicy::Local => {
            Some(port_number("spec.healthCheckNodePort", Some(port))?)
        }
        _ => None,
    };
    Ok(Some(Service {
        name: name(&object.metadata, names),
        uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
        created: created(&object.metadata, warnings),
        cluster_ips,
        external_ips,
        load_balancer_ips,
        source_ranges,
        ports,
        external_policy,
        internal_policy: policy("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref())?,
        affinity: affinity(spec)?,
        health_check_node_port,
        traffic_distribution: match spec.traffic_distribution.as_deref() {
            Some("PreferClose" | "PreferSameZone") => Some(TrafficDistribution::PreferSameZone),
            Some("PreferSameNode") => Some(TrafficDistribution::PreferSameNode),
            _ => None,
        },
        scheduler: scheduler(&object.metadata, warnings),
    }))
}

/// One that does not exist is not used, and the Service has the default.
fn scheduler(metadata: &objects::Metadata, warnings: &mut Vec<Invalid>) -> Option<Scheduler> {
    let parsed = metadata.annotations.ipvs_scheduler.as_deref()?.parse();
    let warn = |error: UnknownScheduler| {
        let problem = format!("{error}; the default is used");
        warnings.push(Invalid::new("metadata.annotations[sluice/ipvs-scheduler]", problem));
    };
    parsed.map_err(warn).ok()
}

fn check_name(metadata: &objects::Metadata) -> Result<(), Invalid> {
    match metadata.name.is_empty() {
        true => Err(Invalid::new("metadata.name", "is missing")),
        false => Ok(()),
    }
}

fn cluster_ips(spec: &objects::ServiceSpec) -> Result<Vec<IpAddr>, Invalid> {
    let list: Vec<(String, &str)> = if spec.cluster_ips.is_empty() {
        spec.cluster_ip.iter().map(|ip| ("spec.clusterIP".to_owned(), &**ip)).collect()
    } else {
        let field = |i| format!("spec.clusterIPs[{i}]");
        spec.cluster_ips.iter().enumerate().map(|(i, ip)| (field(i), &**ip)).collect()
    };
    let mut addresses: Vec<IpAddr> = Vec::with_capacity(list.len());
    for (field, text) in list.iter().filter(|(_, text)| !text.is_empty()) {
        let ip = unicast(field, text, "a Service's")?;
        if addresses.iter().any(|other| Family::of(*other) == Family::of(ip)) {
            return Err(Invalid::new(
                field,
                format!("{ip} is a second {} address; there can be one", Family::of(ip)),
            ));
        }
        addresses.push(ip);
    }
    if addresses.is_empty() {
        let remedy = "no API server allocates one here: give the Service an address of the service range";
        return Err(Invalid::new("spec.clusterIP", format!("is missing; {remedy}")));
    }
    Ok(addresses)
}

fn service_ports(
    spec: &objects::ServiceSpec,
    external: bool,
    names: &mut Interner,
    warnings: &mut Vec<Invalid>,
) -> Result<Vec<ServicePort>, Invalid> {
    let mut ports: Vec<ServicePort> = Vec::with_capacity(spec.ports.len());
    for (i, port) in spec.ports.iter().enumerate() {
        let converted = || -> Result<(Protocol, NonZeroU16, Option<NonZeroU16>), Invalid> {
            let node_port = port.node_port.filter(|p| external && *p != 0);
            Ok((
                protocol(&format!("spec.ports[{i}].protocol"), port.protocol.as_deref())?,
                port_number(&format!("spec.ports[{i}].port"), port.port)?,
                node_port.map(|p| port_number(&format!("spec.ports[{i}].nodePort"), Some(p))).transpose()?,
            ))
        };
        match converted() {
            Ok((protocol, number, node_port)) => {
                let name = names.intern(port.name.as_deref().unwrap_or_default());
                if let Some(twin) = ports.iter().position(|p| p.protocol == protocol && p.port == number) {
                    let problem =
                        format!("{number}/{protocol} is spec.ports[{twin}] already; it is left out");
                    warnings.push(Invalid::new(format!("spec.ports[{i}]"), problem));
                    continue;
                }
                ports.push(ServicePort { name, protocol, port: number, node_port });
            }
            Err(invalid) => warnings.push(invalid),
        }
    }
    if ports.is_empty() {
        // Where there is one reason, it says more than that nothing is left.
        return Err(warnings
            .pop()
            .unwrap_or_else(|| Invalid::new("spec.ports", "is empty; a Service needs a port")));
    }
    Ok(ports)
}

/// Addresses of families that the Service has; others are left out with a warning.
fn own_addresses<'a>(
    field: &str,
    list: impl Iterator<Item = Option<&'a str>>,
    has: impl Fn(Family) -> bool,
    warnings: &mut Vec<Invalid>,
) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (i, text) in list.enumerate().filter_map(|(i, text)| Some((i, text?))) {
        let field = format!("{field}[{i}]");
        match unicast(&field, text, "a Service's") {
            Ok(ip) if !has(Family::of(ip)) => {
                let family = Family::of(ip);
                let problem = format!("{ip} is left out: the Service has no {family} ClusterIP");
                warnings.push(Invalid { wrong_family: true, ..Invalid::new(field, problem) });
            }
            Ok(ip) if addresses.contains(&ip) => {}
            Ok(ip) => addresses.push(ip),
            Err(invalid) => warnings.push(invalid),
        }
    }
    addresses
}

/// CIDRs of a list that restricts: a bad entry may not make the list wider, so if none is left the object as a
/// whole makes no sense.
fn ranges(field: &str, list: &[String], warnings: &mut Vec<Invalid>) -> Result<Vec<IpNet>, Invalid> {
    let mut ranges = Vec::with_capacity(list.len());
    let mut last = None;
    for (i, text) in list.iter().enumerate() {
        match cidr(&format!("{field}[{i}]"), text.trim()) {
            Ok(range) => ranges.push(range),
            Err(invalid) => {
                warnings.push(invalid.clone());
                last = Some(invalid);
            }
        }
    }
    match last {
        Some(invalid) if ranges.is_empty() => Err(invalid),
        _ => Ok(ranges),
    }
}

fn policy(field: &str, value: Option<&str>) -> Result<TrafficPolicy, Invalid> {
    match value {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(Invalid::new(field, format!("{other:?} is neither Cluster nor Local"))),
    }
}

fn affinity(spec: &objects::ServiceSpec) -> Result<Option<u32>, Invalid> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return Ok(None),
        Some("ClientIP") => {}
        Some(other) => {
            return Err(Invalid::new(
                "spec.sessionAffinity",
                format!("{other:?} is neither None nor ClientIP"),
            ));
        }
    }
    let (default, most) = AFFINITY_TIMEOUT;
    match spec.session_affinity_config.client_ip.timeout_seconds {
        None => Ok(Some(default)),
        Some(seconds) => match u32::try_from(seconds) {
            Ok(seconds) if (1..=most).contains(&seconds) => Ok(Some(seconds)),
            _ => Err(Invalid::new(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                format!("{seconds} is not between 1 and {most}"),
            )),
        },
    }
}

fn created(metadata: &objects::Metadata, warnings: &mut Vec<Invalid>) -> i64 {
    let Some(text) = &metadata.creation_timestamp else { return 0 };
    timestamp::parse(text).map(|(seconds, _)| seconds).unwrap_or_else(|| {
        let problem =
            format!("{text:?} is not a time such as 2024-01-31T12:00:00Z; the object counts as old");
        warnings.push(Invalid::new("metadata.creationTimestamp", problem));
        0
    })
}

/// Converts an EndpointSlice.
pub fn endpoint_slice(object: &objects::EndpointSlice, names: &mut Interner) -> Outcome<EndpointSlice> {
    let service = object.metadata.label(SERVICE_NAME).filter(|name| !name.is_empty());
    let Some(service) = service.filter(|_| object.metadata.label(HEADLESS).is_none()) else {
        return Outcome::Ignored;
    };
    if object.metadata.name.is_empty() {
        return Outcome::Invalid(Invalid::new("metadata.name", "is missing"));
    }
    let family = match object.address_type.as_str() {
        "IPv4" => Family::Ipv4,
        "IPv6" => Family::Ipv6,
        "FQDN" => return Outcome::Ignored,
        other => {
            let problem = format!("{other:?} is not an address type; there are IPv4, IPv6 and FQDN");
            return Outcome::Invalid(Invalid::new("addressType", problem));
        }
    };
    let mut warnings = Vec::new();
    let ports = object.ports.iter().enumerate().filter_map(|(i, port)| {
        // A port without a number stands for all ports, which no rule can mean.
        let number = Some(port.port?);
        let converted = protocol(&format!("ports[{i}].protocol"), port.protocol.as_deref())
            .and_then(|protocol| Ok((protocol, port_number(&format!("ports[{i}].port"), number)?)));
        match converted {
            Ok((protocol, number)) => {
                let name = names.intern(port.name.as_deref().unwrap_or_default());
                Some(EndpointPort { name, protocol, port: number })
            }
            Err(invalid) => {
                warnings.push(invalid);
                None
            }
        }
    });
    let ports = ports.collect();
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    for (i, object) in object.endpoints.iter().enumerate() {
        match endpoint(object, i, family, names) {
            Ok(endpoint) => endpoints.push(endpoint),
            Err(invalid) => warnings.push(invalid),
        }
    }
    let name = name(&object.metadata, names);
    // Only measured: what makes no sense there is not worth a warning.
    let trigger = &object.metadata.annotations.last_change_trigger_time;
    let triggered = trigger.as_deref().and_then(timestamp::parse_system_time);
    let service = names.intern(service);
    Outcome::Value(EndpointSlice { name, service, family, ports, endpoints, triggered }, warnings)
}

fn endpoint(
    object: &objects::Endpoint,
    index: usize,
    family: Family,
    names: &mut Interner,
) -> Result<Endpoint, Invalid> {
    let field = || format!("endpoints[{index}].addresses[0]");
    // The API defines that proxies use the first address only.
    let Some(first) = object.addresses.first() else {
        return Err(Invalid::new(format!("endpoints[{index}].addresses"), "is empty"));
    };
    let address = unicast(&field(), first, "an endpoint's")?;
    if Family::of(address) != family {
        return Err(Invalid::new(field(), format!("{address} is not of the slice's addressType {family}")));
    }
    let conditions = object.conditions;
    let ready = conditions.ready.unwrap_or(true);
    let mut hints = |list: &[objects::Named]| -> Option<Box<[Arc<str>]>> {
        (!list.is_empty()).then(|| list.iter().map(|hint| names.intern(&hint.name)).collect())
    };
    let (zone_hints, node_hints) = match &object.hints {
        Some(object) => (hints(&object.for_zones), hints(&object.for_nodes)),
        None => (None, None),
    };
    let mut intern =
        |name: &Option<String>| name.as_deref().filter(|n| !n.is_empty()).map(|n| names.intern(n));
    Ok(Endpoint {
        address,
        conditions: Conditions {
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
        },
        node: intern(&object.node_name),
        zone: intern(&object.zone),
        zone_hints,
        node_hints,
    })
}

/// Converts a Node.
pub fn node(object: &objects::Node, names: &mut Interner) -> Outcome<Node> {
    if object.metadata.name.is_empty() {
        return Outcome::Invalid(Invalid::new("metadata.name", "is missing"));
    }
    let mut warnings = Vec::new();
    let mut addresses = Vec::new();
    // As kube-proxy picks a Node's addresses: internal ones before external ones.
    for kind in ["InternalIP", "ExternalIP"] {
        for (i, entry) in object.status.addresses.iter().enumerate().filter(|(_, a)| a.kind == kind) {
            match address(&format!("status.addresses[{i}].address"), &entry.address) {
                Ok(ip) => addresses.push(ip),
                Err(invalid) => warnings.push(invalid),
            }
        }
    }
    let spec = &object.spec;
    let list = if spec.pod_cidrs.is_empty() { spec.pod_cidr.as_slice() } else { &spec.pod_cidrs };
    let mut pod_cidrs = Vec::new();
    for (i, text) in list.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        match cidr(&format!("spec.podCIDRs[{i}]"), text) {
            Ok(range) => pod_cidrs.push(range),
            Err(invalid) => warnings.push(invalid),
        }
    }
    let zone = object.metadata.label(ZONE).filter(|zone| !zone.is_empty()).map(|zone| names.intern(zone));
    let deleting =
        object.metadata.deletion_timestamp.is_some() || spec.taints.iter().any(|t| t.key == TO_BE_DELETED);
    let name = names.intern(&object.metadata.name);
    Outcome::Value(Node { name, addresses, pod_cidrs, zone, deleting }, warnings)
}

/// Converts a ServiceCIDR.
pub fn service_cidr(object: &objects::ServiceCidr, names: &mut Interner) -> Outcome<ServiceCidr> {
    if object.metadata.name.is_empty() {
        return Outcome::Invalid(Invalid::new("metadata.name", "is missing"));
    }
    let mut warnings = Vec::new();
    match ranges("spec.cidrs", &object.spec.cidrs, &mut warnings) {
        Ok(cidrs) => {
            Outcome::Value(ServiceCidr { name: names.intern(&object.metadata.name), cidrs }, warnings)
        }
        Err(invalid) => Outcome::Invalid(invalid),
    }
}

/// An address of one host, whose it is: not one of every host's own (127.0.0.0/8, ::1), of many, or of none.
fn unicast(field: &str, text: &str, whose: &str) -> Result<IpAddr, Invalid> {
    let address = address(field, text)?;
    let broadcast = address == IpAddr::from([255; 4]);
    match address.is_unspecified() || address.is_loopback() || address.is_multicast() || broadcast {
        true => Err(Invalid::new(field, format!("{address} cannot be {whose} address"))),
        false => Ok(address),
    }
}

/// An address. One of IPv4 that is written as IPv6 (`::ffff:10.0.0.1`) is the IPv4 address.
fn address(field: &str, text: &str) -> Result<IpAddr, Invalid> {
    IpAddr::from_str(text)
        .map(|ip| ip.to_canonical())
        .map_err(|_| Invalid::new(field, format!("{text:?} is not an IP address")))
}

fn cidr(field: &str, text: &str) -> Result<IpNet, Invalid> {
    let invalid = || Invalid::new(field, format!("{text:?} is not a CIDR such as 10.0.0.0/8"));
    IpNet::from_str(text).map(|net| net.trunc()).map_err(|_| invalid())
}

fn port_number(field: &str, number: Option<i64>) -> Result<NonZeroU16, Invalid> {
    let Some(number) = number else { return Err(Invalid::new(field, "is missing")) };
    let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
    port.ok_or_else(|| Invalid::new(field, format!("{number} is not a port; ports are 1 to 65535")))
}

fn protocol(field: &str, name: Option<&str>) -> Result<Protocol, Invalid> {
    match name {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => {
            Err(Invalid::new(field, format!("{other:?} is not a protocol; there are TCP, UDP and SCTP")))
        }
    }
}
