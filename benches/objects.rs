//! Kubernetes objects of a synthetic cluster, as `kubectl get` shows them: with all the fields that a proxy skips.

#![allow(dead_code, reason = "each bench uses its part")]

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// The node that the rules are for.
pub const NODE: &str = "node-1";

/// What each Service is like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// How many Services.
    pub services: u32,
    /// Endpoints of each.
    pub endpoints: u32,
    /// With NodePort and load-balancer address.
    pub load_balancer: bool,
    /// IPv6 as well, with as many endpoints.
    pub dual_stack: bool,
    /// The first so many have session affinity.
    pub affinity: u32,
}

/// The first endpoints that Services have; each has its own.
pub const FIRST_ENDPOINT: u32 = 0x0a80_0001;

/// The ClusterIP of a Service.
pub fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0001 + number)
}

fn uid(number: u32) -> String {
    format!("5d0fba1c-0b5a-4a37-9c1e-{number:012}")
}

/// The IPv6 address that goes with an IPv4 one.
fn six(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("fd00:{a:x}:{b:x}::{:x}", u16::from_be_bytes([c, d]) | 1 << 15)
}

/// The Service of this number.
pub fn service(shape: Shape, number: u32) -> Value {
    let ip = cluster_ip(number);
    let mut ips = vec![ip.to_string()];
    let mut families = vec!["IPv4"];
    if shape.dual_stack {
        ips.push(six(ip));
        families.push("IPv6");
    }
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "creationTimestamp": "2026-11-25T17:01:23Z", "name": format!("service-{number}"),
            "namespace": "default", "resourceVersion": (1000 + number).to_string(), "uid": uid(number),
        },
        "spec": {
            "clusterIP": ips[0], "clusterIPs": ips, "internalTrafficPolicy": "Cluster", "ipFamilies": families,
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
            "selector": {"app": format!("service-{number}")}, "sessionAffinity": "None", "type": "ClusterIP",
        },
        "status": {"loadBalancer": {}},
    });
    if number < shape.affinity {
        service["spec"]["sessionAffinity"] = json!("ClientIP");
        service["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10800}});
    }
    if shape.load_balancer {
        let address = Ipv4Addr::from(0xcb00_7100 + number);
        service["spec"]["type"] = json!("LoadBalancer");
        service["spec"]["externalTrafficPolicy"] = json!("Cluster");
        service["spec"]["ports"][0]["nodePort"] = json!(20_000 + number);
        service["status"] =
            json!({"loadBalancer": {"ingress": [{"ip": address.to_string(), "ipMode": "VIP"}]}});
    }
    service
}

/// The addresses that a Service has at first.
pub fn addresses(shape: Shape, number: u32) -> Vec<Ipv4Addr> {
    (0..shape.endpoints).map(|i| Ipv4Addr::from(FIRST_ENDPOINT + number * shape.endpoints + i)).collect()
}

/// A slice of a Service; `part` tells its slices apart.
pub fn slice(number: u32, part: u32, addresses: &[Ipv4Addr], ipv6: bool) -> Value {
    let endpoint = |(i, address): (usize, &Ipv4Addr)| {
        let text = if ipv6 { six(*address) } else { address.to_string() };
        let zone = ["zone-a", "zone-b", "zone-c"][i % 3];
        json!({
            "addresses": [text],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{}", 2 + (number as usize + i) % 100),
            "targetRef": {"kind": "Pod", "name": format!("service-{number}-7d4b9c-{i:05}"), "namespace": "default",
                          "uid": uid(number)},
            "zone": zone,
        })
    };
    let (family, suffix) = if ipv6 { ("IPv6", "six") } else { ("IPv4", "abcde") };
    json!({
        "addressType": family,
        "apiVersion": "discovery.k8s.io/v1",
        "endpoints": addresses.iter().enumerate().map(endpoint).collect::<Vec<_>>(),
        "kind": "EndpointSlice",
        "metadata": {
            "creationTimestamp": "2026-11-25T17:01:23Z", "generateName": format!("service-{number}-"),
            "generation": 3,
            "labels": {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": format!("service-{number}"),
            },
            "name": format!("service-{number}-{suffix}{part}"), "namespace": "default",
            "ownerReferences": [{
                "apiVersion": "v1", "blockOwnerDeletion": true, "controller": true, "kind": "Service",
                "name": format!("service-{number}"), "uid": uid(number),
            }],
            "resourceVersion": (1000 + number).to_string(), "uid": uid(number),
        },
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

/// The slices of a Service at first.
pub fn slices(shape: Shape, number: u32) -> Vec<Value> {
    let addresses = addresses(shape, number);
    // As the controller does: at most 100 endpoints a slice.
    let parts = || addresses.chunks(100).enumerate();
    let mut slices: Vec<Value> =
        parts().map(|(part, some)| slice(number, part as u32, some, false)).collect();
    if shape.dual_stack {
        slices.extend(parts().map(|(part, some)| slice(number, part as u32, some, true)));
    }
    slices
}

/// The node, with two addresses.
pub fn node() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE, "resourceVersion": "999", "labels": {"topology.kubernetes.io/zone": "zone-a"}},
        "spec": {"podCIDR": "10.255.0.0/24", "podCIDRs": ["10.255.0.0/24"]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "198.18.0.1"}, {"type": "ExternalIP", "address": "198.18.1.1"},
        ]},
    })
}

/// YAML as `kubectl get -o yaml` writes it.
pub fn yaml(value: &Value) -> String {
    let mut out = String::new();
    write_yaml(&mut out, value, 0);
    out
}

fn write_yaml(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                // The first key of an item stands beside its dash.
                let before = if out.ends_with("- ") { 0 } else { indent };
                _ = write!(out, "{:before$}{key}:", "");
                match value {
                    Value::Object(map) if !map.is_empty() => {
                        out.push('\n');
                        write_yaml(out, value, indent + 2);
                    }
                    Value::Array(items) if !items.is_empty() => {
                        out.push('\n');
                        write_yaml(out, value, indent);
                    }
                    scalar => _ = writeln!(out, " {}", text(scalar)),
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                _ = write!(out, "{:indent$}- ", "");
                write_yaml(out, item, indent + 2);
            }
        }
        scalar => _ = writeln!(out, "{}", text(scalar)),
    }
}

/// A value that fits a line: quoted where it would not be text otherwise.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) if text.bytes().all(|b| b.is_ascii_digit()) || text.ends_with('Z') => {
            format!("{text:?}")
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
