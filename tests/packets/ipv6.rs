//! Cases of IPv4 said over again in IPv6: each address of the topology has a counterpart there.

use std::fmt::Write;
use std::net::Ipv4Addr;

use serde_json::{Map, Value};

/// The case in IPv6. `None` where it is about both families, or about an address that has no counterpart.
pub fn translated(case: &Value) -> Option<Value> {
    let text = case.to_string();
    let has_none = ["fd00:", "IPv6", "IPv4\"]", "::/0", "198.18.1.", "\"bridge\":true"];
    if has_none.iter().any(|it| text.contains(it)) {
        return None;
    }
    Some(value(case))
}

fn value(it: &Value) -> Value {
    match it {
        Value::String(text) => Value::String(in_text(text)),
        Value::Array(items) => items.iter().map(value).collect(),
        Value::Object(map) => {
            map.iter().map(|(key, it)| (in_text(key), value(it))).collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

/// Addresses and prefixes wherever they are; with a port they get brackets.
pub fn in_text(text: &str) -> String {
    if text == "IPv4" {
        return String::from("IPv6");
    }
    let is_part = |c: char| c.is_ascii_digit() || c == '.';
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let length = rest[start..].find(|c| !is_part(c)).unwrap_or(rest.len() - start);
        let (before, word, after) = (&rest[..start], &rest[start..start + length], &rest[start + length..]);
        out += before;
        rest = after;
        let Ok(address) = word.parse::<Ipv4Addr>() else {
            out += word;
            continue;
        };
        let prefix = after.strip_prefix('/').and_then(|it| {
            let digits = it.find(|c: char| !c.is_ascii_digit()).unwrap_or(it.len());
            Some((it[..digits].parse::<u8>().ok()?, &it[digits..]))
        });
        // Writing to a String does not fail.
        let _ = match prefix {
            Some((length, after)) => {
                rest = after;
                out.write_str(&network(address, length))
            }
            None if after.starts_with(':') => write!(out, "[{}]", of(address)),
            None => out.write_str(&of(address)),
        };
    }
    // An administrator's rules.
    (out + rest).replace("ip daddr", "ip6 daddr").replace("ip saddr", "ip6 saddr")
}

/// The counterpart in the network that tests/packets/topology.rs builds.
fn of(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    match (a, b, c) {
        (198, 18, 0) => format!("fd00:198:18::{d}"),
        // Pods of the node have 64 addresses each there.
        (10, 128, 0) if d >= 64 => format!("fd00:10:128::{}:{:x}", d / 64, d % 64),
        (10, 128, _) if c > 0 => format!("fd00:10:128:{c}::{d:x}"),
        (10, 96..=111, _) => format!("fd00:10:96::{:x}", u16::from_be_bytes([c, d])),
        // Nobody's: they leave by the default route.
        _ => format!("fd00:{a}:{b}::{c:x}:{d:x}"),
    }
}

fn network(address: Ipv4Addr, prefix: u8) -> String {
    match (address.octets(), prefix) {
        (_, 0) => String::from("::/0"),
        ([10, 128, 0, 0], 16) => String::from("fd00:10:128::/48"),
        ([10, 128, 0, 0], 24) => String::from("fd00:10:128::/64"),
        ([198, 18, 0, 0], 24) => String::from("fd00:198:18::/64"),
        ([a, 0, 0, 0], 8) => format!("fd00:{a}::/32"),
        _ => format!("{}/{}", of(address), 96 + prefix),
    }
}
