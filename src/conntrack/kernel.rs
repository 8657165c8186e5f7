//! Connections by ctnetlink (`linux/netfilter/nfnetlink_conntrack.h`): listing and deleting.

use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;

use super::Error;
use super::stale::{Flow, One, Scope, Stale};
use crate::cluster::Protocol;
use crate::forwarding::Key;
use crate::netlink::{self, Attribute, Malformed, Message, Request, Requests, Socket};

/// `IPCTNL_MSG_CT_GET`.
const IPCTNL_MSG_CT_GET: u8 = 1;
/// `IPCTNL_MSG_CT_DELETE`.
const IPCTNL_MSG_CT_DELETE: u8 = 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_STATUS_MASK: u16 = 26;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;

const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;

const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
/// `TCP_CONNTRACK_SYN_SENT`.
const TCP_CONNTRACK_SYN_SENT: u8 = 1;

const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// `CTA_FILTER_F_CTA_IP_SRC` and the like (`net/netfilter/nf_conntrack_netlink.c`): which parts of a tuple count.
const FILTER_IP_SRC: u32 = 1 << 0;
const FILTER_IP_DST: u32 = 1 << 1;
const FILTER_PROTO_NUM: u32 = 1 << 3;

/// `IPS_SEEN_REPLY`.
const IPS_SEEN_REPLY: u32 = 1 << 1;

/// So many deletions are sent at once.
const DELETIONS: usize = 256;
/// How often a listing is begun again whose answers were lost.
const TRIES: usize = 3;

/// What one pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Entries that the kernel listed.
    pub listed: usize,
    /// Entries that were deleted.
    pub deleted: usize,
    /// The same by family.
    pub by_family: [usize; 2],
}

/// Two sockets to the conntrack of one network namespace: while one lists, the other deletes.
#[derive(Debug)]
pub struct Conntrack {
    list: Socket,
    delete: Socket,
}

impl Conntrack {
    /// Opens the sockets in the network namespace of the calling thread. Everything needs `CAP_NET_ADMIN`.
    pub fn open() -> Result<Conntrack, Error> {
        Ok(Conntrack {
            list: Socket::open().map_err(Error::Open)?,
            delete: Socket::open().map_err(Error::Open)?,
        })
    }

    /// Deletes the stale entries, and no other: one listing for each family and protocol that has any.
    ///
    /// # Errors
    /// When entries could not be listed or deleted. What was deleted until then is gone.
    pub fn clean(&mut self, stale: &Stale) -> Result<Pass, Error> {
        let mut pass = Pass::default();
        let mut deletions = Deletions::default();
        for scope in stale.scopes() {
            let Scope { family, protocol, .. } = scope;
            let fault = |error| match error {
                Fault::Netlink(error) => Error::Dump { family, protocol, error },
                Fault::Delete(error) => error,
            };
            let before = pass.deleted;
            self.clean_scope(&scope, stale, &mut pass, &mut deletions).map_err(fault)?;
            deletions.flush(&mut self.delete, &mut pass)?;
            pass.by_family[family as usize] += pass.deleted - before;
        }
        match deletions.refused {
            Some((count, errno)) => Err(Error::Refused { count, errno }),
            None => Ok(pass),
        }
    }

    fn clean_scope(
        &mut self,
        scope: &Scope,
        stale: &Stale,
        pass: &mut Pass,
        deletions: &mut Deletions,
    ) -> Result<(), Fault> {
        let mut request = request(scope);
        let mut filtered = true;
        let mut tries = 0;
        loop {
            let (list, delete) = (&mut self.list, &mut self.delete);
            let result = list.dump(&request, |message| {
                pass.listed += 1;
                if let Some(entry) = Entry::parse(&message)?
                    && stale.covers(&entry.flow)
                {
                    deletions.push(message.family, &entry);
                    if deletions.requests.messages() >= DELETIONS {
                        deletions.flush(delete, pass)?;
                    }
                }
                Ok(())
            });
            match result {
                // Answers were lost; what was deleted does not come again.
                Err(Fault::Netlink(netlink::Error::Interrupted)) if tries < TRIES => tries += 1,
                // Some kernels know less of filters. What they are given is looked at all the same.
                Err(Fault::Netlink(netlink::Error::Request(Errno::EINVAL | Errno::EOPNOTSUPP)))
                    if filtered =>
                {
                    filtered = false;
                    request = unfiltered(scope);
                }
                result => return result,
            }
        }
    }
}

/// What ended a listing.
enum Fault {
    Netlink(netlink::Error),
    Delete(Error),
}

impl From<netlink::Error> for Fault {
    fn from(error: netlink::Error) -> Fault {
        Fault::Netlink(error)
    }
}

impl From<Malformed> for Fault {
    fn from(error: Malformed) -> Fault {
        Fault::Netlink(error.into())
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Delete(error)
    }
}

fn unfiltered(scope: &Scope) -> Request {
    Request::dump_conntrack(IPCTNL_MSG_CT_GET, scope.family.number())
}

/// Asks for the entries of a scope. A kernel before 5.8 takes no notice of `CTA_FILTER`, nor one before 5.15 of
/// `CTA_STATUS`: they list more.
fn request(scope: &Scope) -> Request {
    let mut request = unfiltered(scope);
    // Not so in IPv6: there the kernel (5.8 to 6.18 at least) compares the wrong way around and leaves out what
    // it is asked for.
    let only = |one: One| one.get().and_then(|a| if let IpAddr::V4(a) = a { Some(a) } else { None });
    let original = only(scope.destination);
    let reply = only(scope.reply_source);
    request.nested(CTA_TUPLE_ORIG, |w| {
        if let Some(address) = original {
            w.nested(CTA_TUPLE_IP, |w| w.bytes(CTA_IP_V4_DST, &address.octets()));
        }
        w.nested(CTA_TUPLE_PROTO, |w| w.u8(CTA_PROTO_NUM, scope.protocol.number()));
    });
    if let Some(address) = reply {
        request.nested(CTA_TUPLE_REPLY, |w| {
            w.nested(CTA_TUPLE_IP, |w| w.bytes(CTA_IP_V4_SRC, &address.octets()));
        });
    }
    request.nested(CTA_FILTER, |w| {
        let flags = FILTER_PROTO_NUM | original.map_or(0, |_| FILTER_IP_DST);
        w.bytes(CTA_FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
        let flags = reply.map_or(0, |_| FILTER_IP_SRC);
        w.bytes(CTA_FILTER_REPLY_FLAGS, &flags.to_ne_bytes());
    });
    if scope.protocol == Protocol::Tcp {
        // Those without an answer.
        request.u32(CTA_STATUS, 0);
        request.u32(CTA_STATUS_MASK, IPS_SEEN_REPLY);
    }
    request
}

/// An entry, with what names it to the kernel.
#[derive(Debug)]
struct Entry<'a> {
    flow: Flow,
    original: &'a [u8],
    zone: Option<&'a [u8]>,
    id: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Reads an entry; `None` where it is of no protocol that a Service can have.
    fn parse(message: &Message<'a>) -> Result<Option<Entry<'a>>, Malformed> {
        let (mut original, mut reply, mut zone, mut id, mut info) = (None, None, None, None, None);
        for attribute in message.attributes() {
            let attribute = attribute?;
            match attribute.kind {
                CTA_TUPLE_ORIG => original = Some(attribute),
                CTA_TUPLE_REPLY => reply = Some(attribute),
                CTA_ZONE => zone = Some(attribute.value),
                CTA_ID => id = Some(attribute.value),
                CTA_PROTOINFO => info = Some(attribute),
                _ => {}
            }
        }
        let (Some(original), Some(reply), Some(id)) = (original, reply, id) else {
            return Err(Malformed("a connection without its tuples and id"));
        };
        let Some(tuple) = Tuple::parse(original)? else { return Ok(None) };
        let Some(protocol) = Protocol::from_number(tuple.protocol) else { return Ok(None) };
        let Some(answer) = Tuple::parse(reply)? else { return Ok(None) };
        let half_open = match info {
            Some(info) if protocol == Protocol::Tcp => tcp_state(info)? == Some(TCP_CONNTRACK_SYN_SENT),
            _ => false,
        };
        let flow = Flow {
            destination: Key { address: tuple.destination, protocol, port: tuple.destination_port },
            source: tuple.source,
            reply_source: SocketAddr::new(answer.source, answer.source_port),
            half_open,
        };
        Ok(Some(Entry { flow, original: original.value, zone, id }))
    }
}

fn tcp_state(info: Attribute<'_>) -> Result<Option<u8>, Malformed> {
    let [_, tcp] = info.nested().table::<2>()?;
    const { assert!(CTA_PROTOINFO_TCP == 1 && CTA_PROTOINFO_TCP_STATE == 1) };
    let Some(tcp) = tcp else { return Ok(None) };
    let [_, state] = tcp.nested().table::<2>()?;
    state.map(|state| state.u8()).transpose()
}

struct Tuple {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
}

impl Tuple {
    /// `None` where the protocol has no ports.
    fn parse(tuple: Attribute<'_>) -> Result<Option<Tuple>, Malformed> {
        let [_, ip, proto] = tuple.nested().table::<3>()?;
        let (Some(ip), Some(proto)) = (ip, proto) else {
            return Err(Malformed("a tuple without its addresses or protocol"));
        };
        let (mut source, mut destination) = (None, None);
        for attribute in ip.nested() {
            let attribute = attribute?;
            match attribute.kind {
                CTA_IP_V4_SRC | CTA_IP_V6_SRC => source = address(attribute.value),
                CTA_IP_V4_DST | CTA_IP_V6_DST => destination = address(attribute.value),
                _ => {}
            }
        }
        let [_, protocol, source_port, destination_port] = proto.nested().table::<4>()?;
        const { assert!(CTA_PROTO_NUM == 1 && CTA_PROTO_SRC_PORT == 2 && CTA_PROTO_DST_PORT == 3) };
        let (Some(source), Some(destination), Some(protocol)) = (source, destination, protocol) else {
            return Err(Malformed("a tuple without an address or its protocol"));
        };
        let (Some(source_port), Some(destination_port)) = (source_port, destination_port) else {
            return Ok(None);
        };
        Ok(Some(Tuple {
            source,
            destination,
            protocol: protocol.u8()?,
            source_port: source_port.u16()?,
            destination_port: destination_port.u16()?,
        }))
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|b| IpAddr::from(*b)),
        16 => bytes.first_chunk::<16>().map(|b| IpAddr::from(*b)),
        _ => None,
    }
}

/// Deletions that wait to be sent.
#[derive(Default)]
struct Deletions {
    requests: Requests,
    refused: Option<(usize, Errno)>,
}

impl Deletions {
    /// By the original tuple and the zone, which name the entry, and by its id: should the same tuple be another
    /// connection by now, that one stays (but where it took the very memory of the old one).
    fn push(&mut self, family: u8, entry: &Entry<'_>) {
        let requests = &mut self.requests;
        requests.message(IPCTNL_MSG_CT_DELETE, 0, family);
        requests.encoded(CTA_TUPLE_ORIG, entry.original);
        if let Some(zone) = entry.zone {
            requests.bytes(CTA_ZONE, zone);
        }
        requests.bytes(CTA_ID, entry.id);
    }

    fn flush(&mut self, socket: &mut Socket, pass: &mut Pass) -> Result<(), Error> {
        if self.requests.messages() == 0 {
            return Ok(());
        }
        let refusals = socket.execute(&mut self.requests).map_err(Error::Delete)?;
        pass.deleted += self.requests.messages().saturating_sub(refusals.len());
        self.requests.clear();
        // What is not there any more has gone by itself.
        for refusal in refusals.iter().filter(|refusal| refusal.errno != Errno::ENOENT) {
            let (count, _) = self.refused.get_or_insert((0, refusal.errno));
            *count += 1;
        }
        Ok(())
    }
}
