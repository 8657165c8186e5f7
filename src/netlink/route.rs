//! rtnetlink: a device by its name, and its addresses (`linux/rtnetlink.h`, `linux/if_link.h`, `linux/if_addr.h`).

use std::net::IpAddr;

use nix::errno::Errno;
use nix::libc;

use super::message::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use super::{Attribute, Error, Malformed, Refusal, Request, Requests, Socket};

/// `struct ifinfomsg`: family, padding, type (2), index (4), flags (4), change (4).
type InterfaceHeader = [u8; 16];
/// `struct ifaddrmsg`: family, length of the prefix, flags, scope, index (4).
type AddressHeader = [u8; 8];

/// `IFLA_IFNAME`.
const IFLA_IFNAME: u16 = 3;
/// `IFLA_LINKINFO`.
const IFLA_LINKINFO: u16 = 18;
/// `IFLA_INFO_KIND`.
const IFLA_INFO_KIND: u16 = 1;
/// `IFA_ADDRESS`.
const IFA_ADDRESS: u16 = 1;
/// `IFA_LOCAL`.
const IFA_LOCAL: u16 = 2;
/// `IFA_F_NODAD`: nobody else has it, do not ask.
const IFA_F_NODAD: u8 = 2;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its kind, as `dummy`; empty where it has none.
    pub kind: String,
}

/// The device of this name, if there is one. Needs no privilege.
pub fn device(socket: &mut Socket, name: &str) -> Result<Option<Device>, Error> {
    let mut request = Request::get_route(libc::RTM_GETLINK, &InterfaceHeader::default());
    request.string(IFLA_IFNAME, name);
    let device = socket.request(&request, |message| {
        let (header, attributes) = message.with_header::<16>()?;
        let index = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
        let mut kind = String::new();
        for attribute in attributes {
            let attribute = attribute?;
            if attribute.kind == IFLA_LINKINFO {
                let [_, info]: [Option<Attribute<'_>>; 2] = attribute.nested().table()?;
                kind = info.map_or(Ok(""), |info| info.string())?.to_owned();
            }
        }
        Ok(Device { index, kind })
    });
    match device {
        Err(Error::Request(Errno::ENODEV)) => Ok(None),
        result => result.map(Some),
    }
}

/// Makes a dummy device; it stays down, which does not keep its addresses from being this host's. `EOPNOTSUPP`: the
/// kernel lacks the module `dummy`. Needs `CAP_NET_ADMIN`.
pub fn add_dummy(socket: &mut Socket, name: &str) -> Result<(), Error> {
    let mut requests = Requests::default();
    requests.route(libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &InterfaceHeader::default());
    requests.string(IFLA_IFNAME, name);
    requests.nested(IFLA_LINKINFO, |w| w.string(IFLA_INFO_KIND, "dummy"));
    all(socket.execute(&mut requests)?)
}

/// Deletes a device and its addresses.
pub fn delete_device(socket: &mut Socket, device: &Device) -> Result<(), Error> {
    let mut header = InterfaceHeader::default();
    header[4..8].copy_from_slice(&device.index.to_ne_bytes());
    let mut requests = Requests::default();
    requests.route(libc::RTM_DELLINK, 0, &header);
    all(socket.execute(&mut requests)?)
}

fn all(refusals: Vec<Refusal>) -> Result<(), Error> {
    refusals.first().map_or(Ok(()), |refusal| Err(Error::Request(refusal.errno)))
}

/// Every address of the network namespace with the index of its device, in no order.
pub fn addresses(socket: &mut Socket, mut visit: impl FnMut(u32, IpAddr)) -> Result<(), Error> {
    let request = Request::dump_route(libc::RTM_GETADDR, &AddressHeader::default());
    socket.dump(&request, |message| -> Result<(), Error> {
        let (header, attributes) = message.with_header::<8>()?;
        let [_, peer, own]: [Option<Attribute<'_>>; 3] = attributes.table()?;
        let value = own.or(peer).ok_or(Malformed("an address without its value"))?.value;
        let address = match (libc::c_int::from(header[0]), value.len()) {
            (libc::AF_INET, 4) => value.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
            (libc::AF_INET6, 16) => value.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)),
            _ => None,
        };
        if let Some(address) = address {
            visit(u32::from_ne_bytes([header[4], header[5], header[6], header[7]]), address);
        }
        Ok(())
    })
}

/// Adds the request that gives a device an address, which may be there already.
pub fn add_address(requests: &mut Requests, device: u32, address: IpAddr) {
    change_address(requests, libc::RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, device, address);
}

/// Adds the request that takes an address from a device; `EADDRNOTAVAIL` where it is not there.
pub fn delete_address(requests: &mut Requests, device: u32, address: IpAddr) {
    change_address(requests, libc::RTM_DELADDR, 0, device, address);
}

fn change_address(requests: &mut Requests, kind: u16, flags: u16, device: u32, address: IpAddr) {
    let (family, prefix, address_flags) = match address {
        IpAddr::V4(_) => (libc::AF_INET, 32, 0),
        IpAddr::V6(_) => (libc::AF_INET6, 128, IFA_F_NODAD),
    };
    let [a, b, c, d] = device.to_ne_bytes();
    requests.route(kind, flags, &[family as u8, prefix, address_flags, libc::RT_SCOPE_UNIVERSE, a, b, c, d]);
    let mut put = |kind| match address {
        IpAddr::V4(address) => requests.bytes(kind, &address.octets()),
        IpAddr::V6(address) => requests.bytes(kind, &address.octets()),
    };
    put(IFA_LOCAL);
    put(IFA_ADDRESS);
}
