//! Steps as netlink messages.

use std::net::{IpAddr, SocketAddr};

use nix::libc;

use super::model::{Key, Step, Timeouts, VirtualService, netmask};
use super::uapi::*;
use crate::netlink::{Requests, Writer};

/// Adds the message of a step about IPVS; others add none. `family` is the number of IPVS.
pub fn encode(requests: &mut Requests, family: u16, step: &Step) {
    match *step {
        Step::AddService(key, ref service) => {
            set_service(requests, family, IPVS_CMD_NEW_SERVICE, &key, service)
        }
        Step::SetService(key, ref service) => {
            set_service(requests, family, IPVS_CMD_SET_SERVICE, &key, service)
        }
        Step::DeleteService(key) => {
            requests.generic(family, IPVS_CMD_DEL_SERVICE);
            requests.nested(IPVS_CMD_ATTR_SERVICE, |w| write_key(w, &key));
        }
        Step::AddDestination(key, destination, weight) => {
            set_destination(requests, family, IPVS_CMD_NEW_DEST, &key, destination, Some(weight));
        }
        Step::SetWeight(key, destination, weight) => {
            set_destination(requests, family, IPVS_CMD_SET_DEST, &key, destination, Some(weight));
        }
        Step::DeleteDestination(key, destination) => {
            set_destination(requests, family, IPVS_CMD_DEL_DEST, &key, destination, None);
        }
        Step::SetTimeouts(Timeouts { tcp, tcp_fin, udp }) => {
            requests.generic(family, IPVS_CMD_SET_CONFIG);
            requests.host_u32(IPVS_CMD_ATTR_TIMEOUT_TCP, tcp);
            requests.host_u32(IPVS_CMD_ATTR_TIMEOUT_TCP_FIN, tcp_fin);
            requests.host_u32(IPVS_CMD_ATTR_TIMEOUT_UDP, udp);
        }
        Step::AddArpTable
        | Step::DeleteArpTable
        | Step::AddDevice
        | Step::DeleteDevice
        | Step::AddAddress(_)
        | Step::DeleteAddress(_) => {}
    }
}

fn set_service(requests: &mut Requests, family: u16, command: u8, key: &Key, service: &VirtualService) {
    requests.generic(family, command);
    requests.nested(IPVS_CMD_ATTR_SERVICE, |w| {
        write_key(w, key);
        w.string(IPVS_SVC_ATTR_SCHED_NAME, service.scheduler.name());
        // `struct ip_vs_flags`: the flags, and which of them count.
        let mut flags = [0; 8];
        flags[..4].copy_from_slice(&service.flags().to_ne_bytes());
        flags[4..].copy_from_slice(&u32::MAX.to_ne_bytes());
        w.bytes(IPVS_SVC_ATTR_FLAGS, &flags);
        w.host_u32(IPVS_SVC_ATTR_TIMEOUT, service.persistence.unwrap_or(0));
        w.host_u32(IPVS_SVC_ATTR_NETMASK, netmask(key.address));
    });
}

fn set_destination(
    requests: &mut Requests,
    family: u16,
    command: u8,
    key: &Key,
    destination: SocketAddr,
    weight: Option<u32>,
) {
    requests.generic(family, command);
    requests.nested(IPVS_CMD_ATTR_SERVICE, |w| write_key(w, key));
    requests.nested(IPVS_CMD_ATTR_DEST, |w| {
        w.host_u16(IPVS_DEST_ATTR_ADDR_FAMILY, address_family(destination.ip()));
        write_address(w, IPVS_DEST_ATTR_ADDR, destination.ip());
        w.u16(IPVS_DEST_ATTR_PORT, destination.port());
        if let Some(weight) = weight {
            w.host_u32(IPVS_DEST_ATTR_FWD_METHOD, IP_VS_CONN_F_MASQ);
            w.host_u32(IPVS_DEST_ATTR_WEIGHT, weight);
            w.host_u32(IPVS_DEST_ATTR_U_THRESH, 0);
            w.host_u32(IPVS_DEST_ATTR_L_THRESH, 0);
        }
    });
}

/// What tells a virtual service from others.
pub(super) fn write_key(w: &mut Writer, key: &Key) {
    w.host_u16(IPVS_SVC_ATTR_AF, address_family(key.address));
    w.host_u16(IPVS_SVC_ATTR_PROTOCOL, key.protocol.number().into());
    write_address(w, IPVS_SVC_ATTR_ADDR, key.address);
    w.u16(IPVS_SVC_ATTR_PORT, key.port);
}

fn address_family(address: IpAddr) -> u16 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u16
}

/// `union nf_inet_addr`.
fn write_address(w: &mut Writer, kind: u16, address: IpAddr) {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes = address.octets(),
    }
    w.bytes(kind, &bytes);
}
