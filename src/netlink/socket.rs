//! A netlink socket to nfnetlink, generic netlink or rtnetlink. It belongs to the network namespace that its thread was in when it was opened.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockopt, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::{setsockopt_impl, sockopt_impl};

use super::attribute::{Attributes, align};
use super::message::{Batch, HEADERS, Header, Message, Messages, NLMSG_HDRLEN, Request, Requests};
use super::{Error, Malformed, Refusal};

sockopt_impl!(
    /// Refusals carry a text and the place of the attribute at fault.
    ExtendedAck,
    SetOnly,
    libc::SOL_NETLINK,
    libc::NETLINK_EXT_ACK,
    bool
);
sockopt_impl!(
    /// Refusals do not repeat the message that they are about.
    CapAck,
    SetOnly,
    libc::SOL_NETLINK,
    libc::NETLINK_CAP_ACK,
    bool
);

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_MULTI: u16 = 0x2;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSGERR_ATTR_OFFS: u16 = 2;

/// What the kernel keeps of the send buffer for itself (`netlink_sendmsg` refuses `len > sk_sndbuf - 32`).
const SEND_RESERVE: usize = 32;
/// Bytes of one answer: the kernel makes dump answers as large as this, up to 32 KiB (6.18).
const RECEIVE_LENGTH: usize = 64 * 1024;
/// Seconds to wait for an answer. The kernel has it ready before `send` returns, so that this is reached only
/// when it had no memory for the answer.
const RECEIVE_TIMEOUT: i64 = 10;
/// Requests are numbered from here; the messages of a batch from 0.
const REQUEST_SEQUENCE: u32 = 1 << 31;

/// How large the socket's buffers should be, in bytes. The kernel doubles them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// `SO_SNDBUF`: bounds a batch, which is sent at once.
    pub send: usize,
    /// `SO_RCVBUF`: bounds the refusals of one batch.
    pub receive: usize,
}

impl Default for Capacities {
    /// More than any table needs (1,100,000 elements are 52 MB); memory is taken only while a batch is sent.
    fn default() -> Capacities {
        Capacities { send: 1 << 30, receive: 8 << 20 }
    }
}

/// A netlink socket.
#[derive(Debug)]
pub struct Socket {
    descriptor: OwnedFd,
    sequence: u32,
    send_capacity: usize,
    buffer: Vec<u8>,
    /// Bytes so far.
    sent: u64,
    received: u64,
}

impl Socket {
    /// Opens a socket to nfnetlink in the network namespace of the calling thread. Needs no privilege; changing rules needs
    /// `CAP_NET_ADMIN` in the user namespace that owns the network namespace.
    pub fn open() -> Result<Socket, Error> {
        Socket::with_capacities(Capacities::default())
    }

    /// Opens a socket to nfnetlink with buffers of these sizes, or of what the kernel allows where it allows less.
    pub fn with_capacities(capacities: Capacities) -> Result<Socket, Error> {
        Socket::to(SockProtocol::NetlinkNetFilter, capacities)
    }

    /// Opens a socket to generic netlink in the network namespace of the calling thread.
    pub fn open_generic() -> Result<Socket, Error> {
        Socket::to(SockProtocol::NetlinkGeneric, Capacities::default())
    }

    /// Opens a socket to rtnetlink in the network namespace of the calling thread.
    pub fn open_route() -> Result<Socket, Error> {
        Socket::to(SockProtocol::NetlinkRoute, Capacities::default())
    }

    fn to(protocol: SockProtocol, capacities: Capacities) -> Result<Socket, Error> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let descriptor =
            socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).map_err(Error::Open)?;
        bind(descriptor.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(Error::Bind)?;
        let option = |option| move |errno| Error::Option { option, errno };
        setsockopt(&descriptor, ExtendedAck, &true).map_err(option("NETLINK_EXT_ACK"))?;
        setsockopt(&descriptor, CapAck, &true).map_err(option("NETLINK_CAP_ACK"))?;
        let timeout = TimeVal::seconds(RECEIVE_TIMEOUT);
        setsockopt(&descriptor, sockopt::ReceiveTimeout, &timeout).map_err(option("SO_RCVTIMEO"))?;
        // The forced sizes need CAP_NET_ADMIN in the first user namespace; the others are cut to
        // net.core.wmem_max and rmem_max without an error.
        if setsockopt(&descriptor, sockopt::SndBufForce, &capacities.send).is_err() {
            setsockopt(&descriptor, sockopt::SndBuf, &capacities.send).map_err(option("SO_SNDBUF"))?;
        }
        if setsockopt(&descriptor, sockopt::RcvBufForce, &capacities.receive).is_err() {
            setsockopt(&descriptor, sockopt::RcvBuf, &capacities.receive).map_err(option("SO_RCVBUF"))?;
        }
        let reached = getsockopt(&descriptor, sockopt::SndBuf).map_err(option("SO_SNDBUF"))?;
        Ok(Socket {
            descriptor,
            sequence: REQUEST_SEQUENCE,
            send_capacity: reached.saturating_sub(SEND_RESERVE),
            buffer: vec![0; RECEIVE_LENGTH],
            sent: 0,
            received: 0,
        })
    }

    /// Bytes of the largest batch that can be sent. In a user namespace this is little: a first load has to be
    /// split there.
    pub fn send_capacity(&self) -> usize {
        self.send_capacity
    }

    /// Bytes that were sent to the kernel and received from it.
    pub fn traffic(&self) -> [u64; 2] {
        [self.sent, self.received]
    }

    /// Applies a batch, all or nothing.
    ///
    /// No message asks for an acknowledgement: the kernel runs the whole transaction inside the `send` and has
    /// queued every refusal when it returns, so that an empty queue means success. With one acknowledgement a
    /// message, the default receive buffer would overflow after some 250.
    pub fn commit(&mut self, batch: &Batch) -> Result<(), Error> {
        if batch.writer.too_long {
            return Err(Error::AttributeTooLong);
        }
        self.forget_answers()?;
        self.send(batch.as_bytes())?;
        let (refusals, lost) = self.refusals(batch.messages())?;
        if refusals.iter().any(|r| r.message.is_none() && r.errno == Errno::ERESTART) {
            return Err(Error::Stale);
        }
        match lost {
            _ if !refusals.is_empty() => Err(Error::Refused(refusals)),
            Some(errno) => Err(Error::Receive(errno)),
            None => Ok(()),
        }
    }

    /// Sends requests that are done each by itself; says which the kernel refused. As with [`commit`], all is
    /// done when `send` returns.
    ///
    /// [`commit`]: Socket::commit
    pub fn execute(&mut self, requests: &mut Requests) -> Result<Vec<Refusal>, Error> {
        requests.end();
        if requests.messages() == 0 {
            return Ok(Vec::new());
        }
        if requests.writer.too_long {
            return Err(Error::AttributeTooLong);
        }
        self.forget_answers()?;
        self.send(&requests.writer.bytes)?;
        match self.refusals(requests.messages())? {
            (_, Some(errno)) => Err(Error::Receive(errno)),
            (refusals, None) => Ok(refusals),
        }
    }

    /// What was refused of the messages just sent, and the error when refusals were lost.
    fn refusals(&mut self, messages: usize) -> Result<(Vec<Refusal>, Option<Errno>), Error> {
        let mut refusals = Vec::new();
        let mut lost = None;
        loop {
            let length = match self.receive(MsgFlags::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(Error::Receive(Errno::EAGAIN)) => break,
                Err(Error::Receive(errno @ Errno::ENOBUFS)) => {
                    lost = Some(errno);
                    continue;
                }
                Err(error) => return Err(error),
            };
            for header in Messages(self.buffer.get(..length).unwrap_or_default()) {
                let header = header?;
                if header.kind == NLMSG_ERROR {
                    refusals.extend(refusal(&header, messages)?);
                }
            }
        }
        Ok((refusals, lost))
    }

    /// Asks for one object. The answer goes to `read`.
    pub fn request<T>(
        &mut self,
        request: &Request,
        read: impl FnOnce(Message<'_>) -> Result<T, Malformed>,
    ) -> Result<T, Error> {
        let sequence = self.ask(request)?;
        loop {
            let length = self.receive(MsgFlags::empty())?;
            for header in Messages(self.buffer.get(..length).unwrap_or_default()) {
                let header = header?;
                if header.sequence != sequence {
                    continue;
                }
                return match header.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        Err(Error::Request(errno(&header)?.unwrap_or(Errno::ENODATA)))
                    }
                    _ => Ok(read(Message::of(&header)?)?),
                };
            }
        }
    }

    /// Asks for as many objects as this with one request; each has an answer of its own, which goes to `read`. The
    /// first one that is not there ends it ([`Error::Request`] with `ENOENT`).
    pub fn request_each<E: From<Error>>(
        &mut self,
        request: &Request,
        mut count: usize,
        mut read: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sequence = self.ask(request)?;
        while count > 0 {
            let length = self.receive(MsgFlags::empty())?;
            for header in Messages(self.buffer.get(..length).unwrap_or_default()) {
                let header = header.map_err(Error::from)?;
                if header.sequence != sequence {
                    continue;
                }
                if matches!(header.kind, NLMSG_ERROR | NLMSG_DONE) {
                    let errno = errno(&header).map_err(Error::from)?;
                    return Err(Error::Request(errno.unwrap_or(Errno::ENODATA)).into());
                }
                read(Message::of(&header).map_err(Error::from)?)?;
                count = count.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// Asks for all objects; each is given to `read` as it comes. [`Error::Interrupted`] means that what was
    /// read belongs to no single moment and is to be thrown away. When `read` fails the rest is skipped.
    pub fn dump<E: From<Error>>(
        &mut self,
        request: &Request,
        mut read: impl FnMut(Message<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sequence = self.ask(request)?;
        let mut interrupted = false;
        let mut result = Ok(());
        // A dump is read to its end whatever happens, or the kernel would refuse the next one (EBUSY).
        loop {
            let length = match self.receive(MsgFlags::empty()) {
                Ok(length) => length,
                Err(Error::Receive(Errno::ENOBUFS)) => {
                    interrupted = true;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            for header in Messages(self.buffer.get(..length).unwrap_or_default()) {
                let header = header.map_err(Error::from)?;
                if header.sequence != sequence {
                    continue;
                }
                interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
                let last = match header.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        match errno(&header).map_err(Error::from)? {
                            Some(Errno::EINTR) => interrupted = true,
                            Some(errno) => result = result.and(Err(Error::Request(errno).into())),
                            None => {}
                        }
                        true
                    }
                    _ => {
                        if !interrupted && result.is_ok() {
                            result =
                                Message::of(&header).map_err(|e| Error::from(e).into()).and_then(&mut read);
                        }
                        header.flags & NLM_F_MULTI == 0
                    }
                };
                if last {
                    return if interrupted { Err(Error::Interrupted.into()) } else { result };
                }
            }
        }
    }

    /// The generation of the namespace's ruleset: it rises by one with every commit, whoever made it.
    /// Costs 10 to 30 µs (6.18).
    pub fn generation(&mut self) -> Result<u32, Error> {
        const NFTA_GEN_ID: usize = 1;
        self.request(&Request::get(libc::NFT_MSG_GETGEN as u8, 0), |message| {
            let attributes = message.attributes().table::<2>()?;
            attributes[NFTA_GEN_ID].ok_or(Malformed("a generation without its number"))?.u32()
        })
    }

    fn ask(&mut self, request: &Request) -> Result<u32, Error> {
        self.forget_answers()?;
        self.sequence = self.sequence.wrapping_add(1) | REQUEST_SEQUENCE;
        self.send(&request.finish(self.sequence))?;
        Ok(self.sequence)
    }

    /// Answers to something that failed half-way are of no interest to what comes next.
    fn forget_answers(&mut self) -> Result<(), Error> {
        loop {
            match self.receive(MsgFlags::MSG_DONTWAIT) {
                Err(Error::Receive(Errno::EAGAIN)) => return Ok(()),
                Ok(_) | Err(Error::Truncated { .. } | Error::Receive(Errno::ENOBUFS)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let length = bytes.len();
        if length > self.send_capacity {
            return Err(Error::TooLong { length, capacity: self.send_capacity });
        }
        loop {
            match send(self.descriptor.as_raw_fd(), bytes, MsgFlags::empty()) {
                Ok(_) => {
                    self.sent += length as u64;
                    return Ok(());
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::Send { length, errno }),
            }
        }
    }

    fn receive(&mut self, flags: MsgFlags) -> Result<usize, Error> {
        // With MSG_TRUNC the kernel returns the real length of what it cut off.
        let flags = flags | MsgFlags::MSG_TRUNC;
        loop {
            match recv(self.descriptor.as_raw_fd(), &mut self.buffer, flags) {
                Ok(length) if length > self.buffer.len() => {
                    return Err(Error::Truncated { length, capacity: self.buffer.len() });
                }
                Ok(length) => {
                    self.received += length as u64;
                    return Ok(length);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::Receive(errno)),
            }
        }
    }
}

/// The errno of an `NLMSG_ERROR` or `NLMSG_DONE`; `None` for an acknowledgement.
fn errno(header: &Header<'_>) -> Result<Option<Errno>, Malformed> {
    match header.payload.first_chunk::<4>() {
        Some(bytes) => {
            let code = i32::from_ne_bytes(*bytes);
            Ok((code < 0).then(|| Errno::from_raw(code.wrapping_neg())))
        }
        // The end of a dump may come without a code.
        None if header.kind == NLMSG_DONE => Ok(None),
        None => Err(Malformed("an error without its code")),
    }
}

/// Reads a `struct nlmsgerr`; `messages` is how many the batch has, which are numbered from 1.
fn refusal(header: &Header<'_>, messages: usize) -> Result<Option<Refusal>, Malformed> {
    let Some(errno) = errno(header)? else { return Ok(None) };
    let index = (header.sequence as usize).checked_sub(1).filter(|index| *index < messages);
    let mut refusal = Refusal { errno, message: index, offset: None, text: None };
    if header.flags & NLM_F_ACK_TLVS != 0 {
        let original = match header.payload.get(4..8) {
            Some(&[a, b, c, d]) if header.flags & NLM_F_CAPPED == 0 => {
                u32::from_ne_bytes([a, b, c, d]) as usize
            }
            _ => NLMSG_HDRLEN,
        };
        let attributes = header.payload.get(4 + align(original)..).unwrap_or_default();
        for attribute in Attributes::new(attributes) {
            let attribute = attribute?;
            match attribute.kind {
                NLMSGERR_ATTR_MSG => refusal.text = Some(attribute.string()?.to_owned()),
                NLMSGERR_ATTR_OFFS => {
                    let offset = attribute.value.first_chunk::<4>().map(|b| u32::from_ne_bytes(*b) as usize);
                    refusal.offset = offset.filter(|offset| *offset >= HEADERS);
                }
                _ => {}
            }
        }
    }
    Ok(Some(refusal))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn error(flags: u16, payload: &[u8]) -> Header<'_> {
        Header { kind: NLMSG_ERROR, flags, sequence: 3, payload }
    }

    #[test]
    fn a_refusal_names_message_place_and_text() {
        let mut payload = (-17i32).to_ne_bytes().to_vec();
        payload.extend_from_slice(&[0; NLMSG_HDRLEN]);
        payload.extend_from_slice(&[8, 0, 1, 0, b'n', b'o', b'!', 0, 8, 0, 2, 0, 44, 0, 0, 0]);
        let refusal = refusal(&error(NLM_F_CAPPED | NLM_F_ACK_TLVS, &payload), 5).unwrap().unwrap();
        assert_eq!((refusal.errno, refusal.message, refusal.offset), (Errno::EEXIST, Some(2), Some(44)));
        assert_eq!(refusal.text.as_deref(), Some("no!"));
    }

    #[test]
    fn a_refusal_that_is_about_no_message_is_about_the_batch() {
        let payload = (-40i32).to_ne_bytes();
        assert_eq!(refusal(&error(0, &payload), 2).unwrap().unwrap().message, None);
        assert_eq!(refusal(&error(0, &[0; 4]), 2).unwrap(), None);
        assert!(refusal(&error(0, &[0; 3]), 2).is_err());
    }

    proptest! {
        #[test]
        fn reading_any_refusal_ends(payload: Vec<u8>, flags: u16) {
            let _ = refusal(&error(flags, &payload), 5);
        }
    }
}
