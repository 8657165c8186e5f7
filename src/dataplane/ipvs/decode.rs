//! What the kernel answers about virtual services and their destinations.

use std::net::{IpAddr, SocketAddr};

use nix::libc;

use super::model::{Destination, Key, ObservedService, Statistics, Timeouts};
use super::uapi::*;
use crate::cluster::Protocol;
use crate::netlink::{Attribute, Attributes, Malformed, Message};

type Table<'a> = [Option<Attribute<'a>>; 13];

fn get<'a>(table: &Table<'a>, kind: u16) -> Result<Attribute<'a>, Malformed> {
    table.get(usize::from(kind)).copied().flatten().ok_or(Malformed("an attribute is missing"))
}

/// A virtual service; `None` for one that goes by fwmark or has another protocol, which is never sluice's.
pub fn service(message: &Message<'_>) -> Result<Option<(Key, ObservedService)>, Malformed> {
    let outer: Table<'_> = message.attributes().table()?;
    let table: Table<'_> = get(&outer, IPVS_CMD_ATTR_SERVICE)?.nested().table()?;
    let Some(key) = key(&table)? else { return Ok(None) };
    let flags = get(&table, IPVS_SVC_ATTR_FLAGS)?.value;
    let Some(flags) = flags.first_chunk::<4>() else { return Err(Malformed("flags are too short")) };
    let statistics = get(&table, IPVS_SVC_ATTR_STATS64)
        .map_or(Ok(Statistics::default()), |stats| statistics(stats.nested()))?;
    let service = ObservedService {
        scheduler: get(&table, IPVS_SVC_ATTR_SCHED_NAME).map_or(Ok(""), |name| name.string())?.to_owned(),
        flags: u32::from_ne_bytes(*flags),
        timeout: get(&table, IPVS_SVC_ATTR_TIMEOUT)?.host_u32()?,
        netmask: get(&table, IPVS_SVC_ATTR_NETMASK)?.host_u32()?,
        statistics,
        destinations: Default::default(),
    };
    Ok(Some((key, service)))
}

fn key(table: &Table<'_>) -> Result<Option<Key>, Malformed> {
    if get(table, IPVS_SVC_ATTR_FWMARK).is_ok() {
        return Ok(None);
    }
    let family = get(table, IPVS_SVC_ATTR_AF)?.host_u16()?;
    let protocol = get(table, IPVS_SVC_ATTR_PROTOCOL)?.host_u16()?;
    let Some(protocol) = u8::try_from(protocol).ok().and_then(Protocol::from_number) else { return Ok(None) };
    let address = address(family, get(table, IPVS_SVC_ATTR_ADDR)?.value)?;
    Ok(Some(Key { address, protocol, port: get(table, IPVS_SVC_ATTR_PORT)?.u16()? }))
}

/// A destination of a virtual service.
pub fn destination(message: &Message<'_>) -> Result<(SocketAddr, Destination), Malformed> {
    let outer: Table<'_> = message.attributes().table()?;
    let table: Table<'_> = get(&outer, IPVS_CMD_ATTR_DEST)?.nested().table()?;
    let number = |kind| get(&table, kind)?.host_u32();
    let family = get(&table, IPVS_DEST_ATTR_ADDR_FAMILY)?.host_u16()?;
    let address = address(family, get(&table, IPVS_DEST_ATTR_ADDR)?.value)?;
    let destination = Destination {
        weight: number(IPVS_DEST_ATTR_WEIGHT)?,
        forwarding: number(IPVS_DEST_ATTR_FWD_METHOD)? & IP_VS_CONN_F_FWD_MASK,
        active: number(IPVS_DEST_ATTR_ACTIVE_CONNS)?,
        inactive: number(IPVS_DEST_ATTR_INACT_CONNS)?,
    };
    Ok((SocketAddr::new(address, get(&table, IPVS_DEST_ATTR_PORT)?.u16()?), destination))
}

/// The timeouts of connections.
pub fn timeouts(message: &Message<'_>) -> Result<Timeouts, Malformed> {
    let table: Table<'_> = message.attributes().table()?;
    let seconds = |kind| get(&table, kind)?.host_u32();
    Ok(Timeouts {
        tcp: seconds(IPVS_CMD_ATTR_TIMEOUT_TCP)?,
        tcp_fin: seconds(IPVS_CMD_ATTR_TIMEOUT_TCP_FIN)?,
        udp: seconds(IPVS_CMD_ATTR_TIMEOUT_UDP)?,
    })
}

fn statistics(attributes: Attributes<'_>) -> Result<Statistics, Malformed> {
    let table: Table<'_> = attributes.table()?;
    let number = |kind| get(&table, kind)?.host_u64();
    Ok(Statistics {
        connections: number(IPVS_STATS_ATTR_CONNS)?,
        packets_in: number(IPVS_STATS_ATTR_INPKTS)?,
        packets_out: number(IPVS_STATS_ATTR_OUTPKTS)?,
        bytes_in: number(IPVS_STATS_ATTR_INBYTES)?,
        bytes_out: number(IPVS_STATS_ATTR_OUTBYTES)?,
    })
}

fn address(family: u16, bytes: &[u8]) -> Result<IpAddr, Malformed> {
    let address = match libc::c_int::from(family) {
        libc::AF_INET => bytes.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
        libc::AF_INET6 => bytes.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)),
        _ => None,
    };
    address.ok_or(Malformed("an address of unknown family"))
}
