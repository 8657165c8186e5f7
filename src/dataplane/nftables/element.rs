//! Elements of sets as the kernel has them: keys and data in registers' layout, every part padded to 4 bytes.
//! Addresses and ports are in network order; indices and ids in host order, as the expressions load them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::cluster::{Family, Protocol};
use crate::netlink::{Attribute, Malformed, Writer};

use super::expression::{decode_verdict, encode_verdict};
use super::model::{Element, Key, Set, Verdict};
use super::uapi::*;

/// Longest element as it is written, in bytes: two IPv6 keys of 36 bytes, or a key and a verdict, with headers.
pub(super) const MAX_LENGTH: usize = 256;

/// A key or data under construction: at most two addresses and three words.
struct Bytes {
    bytes: [u8; 48],
    length: usize,
}

impl Bytes {
    fn new() -> Bytes {
        Bytes { bytes: [0; 48], length: 0 }
    }

    fn push(mut self, part: &[u8]) -> Bytes {
        let end = self.length + part.len();
        if let Some(room) = self.bytes.get_mut(self.length..end) {
            room.copy_from_slice(part);
        }
        self.length = end.next_multiple_of(4).min(self.bytes.len());
        self
    }

    fn address(self, address: IpAddr) -> Bytes {
        match address {
            IpAddr::V4(address) => self.push(&address.octets()),
            IpAddr::V6(address) => self.push(&address.octets()),
        }
    }

    fn port(self, port: u16) -> Bytes {
        self.push(&port.to_be_bytes())
    }

    fn number(self, number: u32) -> Bytes {
        self.push(&number.to_ne_bytes())
    }

    fn key(self, key: &Key) -> Bytes {
        self.address(key.address).push(&[key.protocol.number()]).port(key.port)
    }

    fn write(&self, writer: &mut Writer, kind: u16) {
        let bytes = self.bytes.get(..self.length).unwrap_or_default();
        writer.nested(kind, |w| w.bytes(NFTA_DATA_VALUE, bytes));
    }
}

/// Writes an element into a list; to delete it its key is enough.
pub(crate) fn encode(writer: &mut Writer, element: &Element, with_data: bool) {
    let new = Bytes::new;
    match element {
        Element::PodCidr(net) | Element::ServiceCidr(net) => encode_interval(writer, net),
        Element::ClusterIp(address) | Element::IpvsAddress(address) => plain(writer, new().address(*address)),
        Element::Hairpin(address) => plain(writer, new().address(*address).address(*address)),
        Element::Special(key)
        | Element::Restricted(key)
        | Element::MasqueradeAll(key)
        | Element::MasqueradeOwn(key)
        | Element::Serving(key) => plain(writer, new().key(key)),
        Element::Service(key, verdict) | Element::LocalService(key, verdict) => {
            to_verdict(writer, new().key(key), with_data, *verdict);
        }
        Element::Slot(id, index, verdict) | Element::Choice(id, index, verdict) => {
            to_verdict(writer, new().number(*id).number(*index), with_data, *verdict);
        }
        Element::Endpoint(key, index, endpoint) => {
            let data = new().address(endpoint.ip()).port(endpoint.port());
            to_data(writer, new().key(key).number(*index), with_data, data);
        }
        Element::AffinityId(key, id) | Element::LocalAffinityId(key, id) => {
            to_data(writer, new().key(key), with_data, new().number(*id));
        }
        Element::AllowedSource(key, net) => writer.nested(NFTA_LIST_ELEM, |w| {
            let end = |address| new().address(key.address).port(key.port).address(address);
            end(net.network()).write(w, NFTA_SET_ELEM_KEY);
            end(net.broadcast()).write(w, NFTA_SET_ELEM_KEY_END);
        }),
    }
}

fn plain(writer: &mut Writer, key: Bytes) {
    writer.nested(NFTA_LIST_ELEM, |w| key.write(w, NFTA_SET_ELEM_KEY));
}

fn to_data(writer: &mut Writer, key: Bytes, with_data: bool, data: Bytes) {
    writer.nested(NFTA_LIST_ELEM, |w| {
        key.write(w, NFTA_SET_ELEM_KEY);
        if with_data {
            data.write(w, NFTA_SET_ELEM_DATA);
        }
    });
}

fn to_verdict(writer: &mut Writer, key: Bytes, with_data: bool, verdict: Verdict) {
    writer.nested(NFTA_LIST_ELEM, |w| {
        key.write(w, NFTA_SET_ELEM_KEY);
        if with_data {
            encode_verdict(w, NFTA_SET_ELEM_DATA, verdict);
        }
    });
}

/// Writes a client of a `sticky-K` set with the time that it has left.
pub(super) fn encode_client(writer: &mut Writer, client: &Sticky) {
    writer.nested(NFTA_LIST_ELEM, |w| {
        Bytes::new().address(client.client).number(client.id).write(w, NFTA_SET_ELEM_KEY);
        w.u64(NFTA_SET_ELEM_TIMEOUT, client.timeout);
        w.u64(NFTA_SET_ELEM_EXPIRATION, client.expires);
    });
}

/// nft's user data of an element whose interval ends where the addresses end: `NFTNL_UDATA_SET_ELEM_FLAGS`
/// with `SET_ELEM_F_INTERVAL_OPEN`. Without it nft 1.0.6 lists a single address.
fn open_interval() -> [u8; 6] {
    let [a, b, c, d] = 1u32.to_ne_bytes();
    [1, 4, a, b, c, d]
}

/// An interval is two elements: its first address, and the first one after it with a flag. One that ends with the
/// last address of all has no second.
fn encode_interval(writer: &mut Writer, net: &IpNet) {
    let end = next(net.broadcast());
    writer.nested(NFTA_LIST_ELEM, |w| {
        Bytes::new().address(net.network()).write(w, NFTA_SET_ELEM_KEY);
        if end.is_none() {
            w.bytes(NFTA_SET_ELEM_USERDATA, &open_interval());
        }
    });
    if let Some(end) = end {
        writer.nested(NFTA_LIST_ELEM, |w| {
            w.u32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
            Bytes::new().address(end).write(w, NFTA_SET_ELEM_KEY);
        });
    }
}

/// The address after this one.
fn next(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits().checked_add(1)?).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits().checked_add(1)?).into(),
    })
}

/// The address before this one; before the first it is the first.
pub(super) fn previous(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits().saturating_sub(1)).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits().saturating_sub(1)).into(),
    }
}

/// What the kernel has in a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// An element that sluice can have written.
    Element(Element),
    /// A client in `sticky-K`.
    Sticky(Sticky),
    /// The start of an interval in `pod-cidrs` or `service-cidrs`.
    Start(IpAddr),
    /// The address after an interval there.
    End(IpAddr),
    /// Anything else, with its key in hexadecimal.
    Unknown(String),
}

/// A client that a service port's slot remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sticky {
    /// The slot, K of `sticky-K`.
    pub slot: u32,
    /// The client.
    pub client: IpAddr,
    /// The service port's id.
    pub id: u32,
    /// Milliseconds that it lives from its last packet.
    pub timeout: u64,
    /// Milliseconds that it still has.
    pub expires: u64,
}

/// Reads one element of a list.
pub(super) fn decode(family: Family, set: Set, attribute: Attribute<'_>) -> Result<Decoded, Malformed> {
    let attributes: Attributes<'_> = attribute.nested().table()?;
    Ok(decode_attributes(family, set, &attributes)?.unwrap_or_else(|| {
        let key = attributes[usize::from(NFTA_SET_ELEM_KEY)].map_or(&[][..], |key| key.value);
        let key = key.get(4..).unwrap_or_default();
        Decoded::Unknown(key.iter().map(|byte| format!("{byte:02x}")).collect())
    }))
}

type Attributes<'a> = [Option<Attribute<'a>>; 12];

fn decode_attributes(family: Family, set: Set, a: &Attributes<'_>) -> Result<Option<Decoded>, Malformed> {
    let get = |kind: u16| a.get(usize::from(kind)).copied().flatten();
    let value = |kind: u16| -> Result<Option<&[u8]>, Malformed> {
        let Some(attribute) = get(kind) else { return Ok(None) };
        let [_, value] = attribute.nested().table()?;
        Ok(value.map(|value| value.value))
    };
    let number = |kind: u16| get(kind).map(|n| n.u64()).transpose();
    let flags = get(NFTA_SET_ELEM_FLAGS).map(|flags| flags.u32()).transpose()?.unwrap_or(0);
    let Some(key) = value(NFTA_SET_ELEM_KEY)? else { return Ok(None) };
    let interval = matches!(set, Set::PodCidrs | Set::ServiceCidrs);
    if flags & !NFT_SET_ELEM_INTERVAL_END != 0 || flags != 0 && !interval {
        return Ok(None);
    }
    let verdict = || match get(NFTA_SET_ELEM_DATA) {
        Some(data) => decode_verdict(data),
        None => Ok(None),
    };
    let key = Parts { family, rest: key };
    Ok(match set {
        Set::PodCidrs | Set::ServiceCidrs if flags == 0 => key.single().map(Decoded::Start),
        Set::PodCidrs | Set::ServiceCidrs => key.single().map(Decoded::End),
        Set::ClusterIps => key.single().map(|address| Decoded::Element(Element::ClusterIp(address))),
        Set::IpvsAddresses => key.single().map(|address| Decoded::Element(Element::IpvsAddress(address))),
        Set::Special => key.only_key().map(|key| Decoded::Element(Element::Special(key))),
        Set::Restricted => key.only_key().map(|key| Decoded::Element(Element::Restricted(key))),
        Set::MasqueradeAll => key.only_key().map(|key| Decoded::Element(Element::MasqueradeAll(key))),
        Set::MasqueradeOwn => key.only_key().map(|key| Decoded::Element(Element::MasqueradeOwn(key))),
        Set::Serving => key.only_key().map(|key| Decoded::Element(Element::Serving(key))),
        Set::Services => both(key.only_key(), verdict()?, Element::Service),
        Set::LocalServices => both(key.only_key(), verdict()?, Element::LocalService),
        Set::Slots => both(key.numbers(), verdict()?, |(id, k), v| Element::Slot(id, k, v)),
        Set::Choices => both(key.numbers(), verdict()?, |(id, k), v| Element::Choice(id, k, v)),
        Set::Hairpin => key.pair().map(|address| Decoded::Element(Element::Hairpin(address))),
        Set::Endpoints => {
            let data = value(NFTA_SET_ELEM_DATA)?.and_then(|data| Parts { family, rest: data }.endpoint());
            both(key.indexed(), data, |(key, index), endpoint| Element::Endpoint(key, index, endpoint))
        }
        Set::AffinityIds => {
            let data = value(NFTA_SET_ELEM_DATA)?.and_then(|data| Parts { family, rest: data }.only_number());
            both(key.only_key(), data, Element::AffinityId)
        }
        Set::LocalAffinityIds => {
            let data = value(NFTA_SET_ELEM_DATA)?.and_then(|data| Parts { family, rest: data }.only_number());
            both(key.only_key(), data, Element::LocalAffinityId)
        }
        Set::AllowedSources(protocol) => {
            let end = value(NFTA_SET_ELEM_KEY_END)?.map_or(key, |end| Parts { family, rest: end });
            allowed_source(protocol, key, end)
        }
        Set::Sticky(slot) => key.client().map_or(Ok(None), |(client, id)| {
            let timeout =
                number(NFTA_SET_ELEM_TIMEOUT)?.unwrap_or(u64::from(super::schema::STICKY_TIMEOUT) * 1000);
            let expires = number(NFTA_SET_ELEM_EXPIRATION)?.unwrap_or(timeout);
            Ok(Some(Decoded::Sticky(Sticky { slot, client, id, timeout, expires })))
        })?,
    })
}

fn both<K, D>(key: Option<K>, data: Option<D>, make: impl FnOnce(K, D) -> Element) -> Option<Decoded> {
    Some(Decoded::Element(make(key?, data?)))
}

fn allowed_source(protocol: Protocol, start: Parts<'_>, end: Parts<'_>) -> Option<Decoded> {
    let (address, port, first) = start.source()?;
    let (same_address, same_port, last) = end.source()?;
    let net = network(first, last)?;
    (address == same_address && port == same_port)
        .then_some(Decoded::Element(Element::AllowedSource(Key { address, protocol, port }, net)))
}

/// The network from one address to another, both included; `None` where that is not one network.
pub(super) fn network(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let length = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros() as u8,
        (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits() ^ last.to_bits()).leading_zeros() as u8,
        _ => return None,
    };
    let net = IpNet::new(first, length).ok()?;
    (net.network() == first && net.broadcast() == last).then_some(net)
}

/// Takes a key apart. Every reading answers `None` where the bytes are too few, too many or make no sense.
#[derive(Clone, Copy)]
struct Parts<'a> {
    family: Family,
    rest: &'a [u8],
}

impl Parts<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let part = self.rest.first_chunk::<N>()?;
        let padding = self.rest.get(N..N.next_multiple_of(4))?;
        self.rest = self.rest.get(N.next_multiple_of(4)..)?;
        padding.iter().all(|byte| *byte == 0).then_some(*part)
    }

    fn end<T>(self, value: T) -> Option<T> {
        self.rest.is_empty().then_some(value)
    }

    fn address(&mut self) -> Option<IpAddr> {
        Some(match self.family {
            Family::Ipv4 => IpAddr::from(self.take::<4>()?),
            Family::Ipv6 => IpAddr::from(self.take::<16>()?),
        })
    }

    fn port(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take()?))
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.take()?))
    }

    fn key(&mut self) -> Option<Key> {
        let address = self.address()?;
        let [protocol] = self.take()?;
        Some(Key { address, protocol: Protocol::from_number(protocol)?, port: self.port()? })
    }

    fn single(mut self) -> Option<IpAddr> {
        let address = self.address()?;
        self.end(address)
    }

    fn pair(mut self) -> Option<IpAddr> {
        let (one, two) = (self.address()?, self.address()?);
        self.end(one).filter(|_| one == two)
    }

    fn only_key(mut self) -> Option<Key> {
        let key = self.key()?;
        self.end(key)
    }

    fn only_number(mut self) -> Option<u32> {
        let number = self.number()?;
        self.end(number)
    }

    fn numbers(mut self) -> Option<(u32, u32)> {
        let numbers = (self.number()?, self.number()?);
        self.end(numbers)
    }

    fn indexed(mut self) -> Option<(Key, u32)> {
        let indexed = (self.key()?, self.number()?);
        self.end(indexed)
    }

    fn endpoint(mut self) -> Option<SocketAddr> {
        let endpoint = SocketAddr::new(self.address()?, self.port()?);
        self.end(endpoint)
    }

    fn source(mut self) -> Option<(IpAddr, u16, IpAddr)> {
        let source = (self.address()?, self.port()?, self.address()?);
        self.end(source)
    }

    fn client(mut self) -> Option<(IpAddr, u32)> {
        let client = (self.address()?, self.number()?);
        self.end(client)
    }
}

#[cfg(test)]
mod tests;
