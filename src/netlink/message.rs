//! Messages: a `struct nlmsghdr`, the header of the subsystem, attributes. nfnetlink's header (`struct nfgenmsg`) and
//! generic netlink's (`struct genlmsghdr`) have 4 bytes, rtnetlink's differ.

use std::ops::{Deref, DerefMut};

use super::attribute::{Attributes, Malformed, Writer, align};

/// `NFNL_SUBSYS_NFTABLES`.
pub const NFNL_SUBSYS_NFTABLES: u8 = 10;
/// `NFNL_SUBSYS_CTNETLINK`.
pub const NFNL_SUBSYS_CTNETLINK: u8 = 1;
/// `NFNL_SUBSYS_IPSET`.
pub const NFNL_SUBSYS_IPSET: u8 = 6;
/// `NFPROTO_IPV4`, which ipset has in all messages, whatever the family of a set.
const NFPROTO_IPV4: u8 = 2;
/// `NFNL_MSG_BATCH_BEGIN`.
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
/// `NFNL_MSG_BATCH_END`.
const NFNL_MSG_BATCH_END: u16 = 0x11;
/// `NFNL_BATCH_GENID`.
const NFNL_BATCH_GENID: u16 = 1;
/// `NLM_F_REQUEST`.
const NLM_F_REQUEST: u16 = 1;
/// `NLM_F_DUMP`.
const NLM_F_DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub const NLM_F_REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub const NLM_F_EXCL: u16 = 0x200;
/// `NLM_F_CREATE`.
pub const NLM_F_CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub const NLM_F_APPEND: u16 = 0x800;
/// `sizeof(struct nlmsghdr)`.
pub(super) const NLMSG_HDRLEN: usize = 16;
/// Both headers.
pub(super) const HEADERS: usize = NLMSG_HDRLEN + 4;

/// Writes both headers, the second as it is; the length is patched by [`end`].
fn begin(writer: &mut Writer, kind: u16, flags: u16, sequence: u32, second: &[u8]) -> usize {
    let start = writer.bytes.len();
    let mut header = [0; NLMSG_HDRLEN];
    header[4..6].copy_from_slice(&kind.to_ne_bytes());
    header[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
    header[8..12].copy_from_slice(&sequence.to_ne_bytes());
    writer.bytes.extend_from_slice(&header);
    writer.bytes.extend_from_slice(second);
    start
}

/// `struct nfgenmsg`.
fn nfgenmsg(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// `struct genlmsghdr`; no family that is asked here has more than one version.
fn genlmsghdr(command: u8) -> [u8; 4] {
    [command, 1, 0, 0]
}

fn end(writer: &mut Writer, start: usize) {
    let length = (writer.bytes.len() - start) as u32;
    writer.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}

fn nftables(kind: u8) -> u16 {
    u16::from_be_bytes([NFNL_SUBSYS_NFTABLES, kind])
}

fn conntrack(kind: u8) -> u16 {
    u16::from_be_bytes([NFNL_SUBSYS_CTNETLINK, kind])
}

fn ipset(kind: u8) -> u16 {
    u16::from_be_bytes([NFNL_SUBSYS_IPSET, kind])
}

/// A request for one answer or for a dump. Attributes are written through the [`Writer`] that it derefs to.
#[derive(Clone, Debug)]
pub struct Request {
    writer: Writer,
}

impl Request {
    /// A request for one object of nf_tables: message type (`NFT_MSG_*`) and family (`NFPROTO_*`).
    pub fn get(kind: u8, family: u8) -> Request {
        Request::new(nftables(kind), family, 0)
    }

    /// A request for all objects.
    pub fn dump(kind: u8, family: u8) -> Request {
        Request::new(nftables(kind), family, NLM_F_DUMP)
    }

    /// A request for all connections of a family: message type `IPCTNL_MSG_CT_*`.
    pub fn dump_conntrack(kind: u8, family: u8) -> Request {
        Request::new(conntrack(kind), family, NLM_F_DUMP)
    }

    /// A request for all sets of ipset: message type `IPSET_CMD_*`.
    pub fn dump_ipset(kind: u8) -> Request {
        Request::new(ipset(kind), NFPROTO_IPV4, NLM_F_DUMP)
    }

    /// A request to a family of generic netlink, by its number, for one object.
    pub fn get_generic(family: u16, command: u8) -> Request {
        Request::with_header(family, 0, &genlmsghdr(command))
    }

    /// A request to a family of generic netlink for all objects.
    pub fn dump_generic(family: u16, command: u8) -> Request {
        Request::with_header(family, NLM_F_DUMP, &genlmsghdr(command))
    }

    /// A request to rtnetlink for one object: message type `RTM_*` and its header.
    pub fn get_route(kind: u16, header: &[u8]) -> Request {
        Request::with_header(kind, 0, header)
    }

    /// A request to rtnetlink for all objects.
    pub fn dump_route(kind: u16, header: &[u8]) -> Request {
        Request::with_header(kind, NLM_F_DUMP, header)
    }

    /// A request for one answer of conntrack's: message type `IPCTNL_MSG_CT_*`.
    pub fn get_conntrack(kind: u8, family: u8) -> Request {
        Request::new(conntrack(kind), family, 0)
    }

    fn new(kind: u16, family: u8, flags: u16) -> Request {
        Request::with_header(kind, flags, &nfgenmsg(family, 0))
    }

    fn with_header(kind: u16, flags: u16, header: &[u8]) -> Request {
        let mut writer = Writer::default();
        begin(&mut writer, kind, flags, 0, header);
        Request { writer }
    }

    /// The bytes to send under a sequence number.
    pub(super) fn finish(&self, sequence: u32) -> Vec<u8> {
        let mut writer = self.writer.clone();
        end(&mut writer, 0);
        writer.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        writer.bytes
    }
}

impl Deref for Request {
    type Target = Writer;

    fn deref(&self) -> &Writer {
        &self.writer
    }
}

impl DerefMut for Request {
    fn deref_mut(&mut self) -> &mut Writer {
        &mut self.writer
    }
}

/// Messages that are sent together; the kernel does each by itself, whatever becomes of the others.
/// Attributes of the message begun last are written through the [`Writer`] that it derefs to.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    pub(super) writer: Writer,
    open: usize,
    messages: usize,
}

impl Requests {
    /// Begins a message to conntrack (`IPCTNL_MSG_CT_*`, `NLM_F_*`, `NFPROTO_*`).
    pub fn message(&mut self, kind: u8, flags: u16, family: u8) {
        self.begin(conntrack(kind), flags, &nfgenmsg(family, 0));
    }

    /// Begins a message to ipset (`IPSET_CMD_*`).
    pub fn ipset(&mut self, kind: u8) {
        self.begin(ipset(kind), 0, &nfgenmsg(NFPROTO_IPV4, 0));
    }

    /// Begins a message to a family of generic netlink, by its number.
    pub fn generic(&mut self, family: u16, command: u8) {
        self.begin(family, 0, &genlmsghdr(command));
    }

    /// Begins a message to rtnetlink (`RTM_*`, `NLM_F_*`) with its header.
    pub fn route(&mut self, kind: u16, flags: u16, header: &[u8]) {
        self.begin(kind, flags, header);
    }

    fn begin(&mut self, kind: u16, flags: u16, header: &[u8]) {
        self.end();
        self.messages += 1;
        let sequence = self.messages as u32;
        self.open = begin(&mut self.writer, kind, flags, sequence, header);
    }

    /// Number of messages.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Takes all messages out; the memory stays.
    pub fn clear(&mut self) {
        self.writer.bytes.clear();
        self.writer.too_long = false;
        (self.open, self.messages) = (0, 0);
    }

    pub(super) fn end(&mut self) {
        if self.messages > 0 {
            end(&mut self.writer, self.open);
        }
    }
}

impl Deref for Requests {
    type Target = Writer;

    fn deref(&self) -> &Writer {
        &self.writer
    }
}

impl DerefMut for Requests {
    fn deref_mut(&mut self) -> &mut Writer {
        &mut self.writer
    }
}

/// A batch of nf_tables messages: the kernel applies all of it or nothing. Attributes of the message begun last
/// are written through the [`Writer`] that it derefs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub(super) writer: Writer,
    /// Where each message starts; its index is its sequence number less one, the batch's begin having 0.
    starts: Vec<usize>,
    /// What each message is about, as the caller numbers it.
    objects: Vec<u32>,
    open: usize,
    ended: bool,
}

impl Batch {
    /// An empty batch. With a generation the kernel refuses it when another commit came first.
    pub fn new(generation: Option<u32>) -> Batch {
        Batch::with_capacity(generation, 4096)
    }

    /// An empty batch that holds this many bytes before it must grow.
    pub fn with_capacity(generation: Option<u32>, bytes: usize) -> Batch {
        let mut writer = Writer { bytes: Vec::with_capacity(bytes), too_long: false };
        let resource = u16::from(NFNL_SUBSYS_NFTABLES);
        let open = begin(&mut writer, NFNL_MSG_BATCH_BEGIN, 0, 0, &nfgenmsg(0, resource));
        if let Some(generation) = generation {
            writer.u32(NFNL_BATCH_GENID, generation);
        }
        end(&mut writer, open);
        Batch { writer, starts: Vec::new(), objects: Vec::new(), open, ended: false }
    }

    /// Begins a message (`NFT_MSG_*`, `NLM_F_*`, `NFPROTO_*`) about an object that the caller has a number for.
    pub fn message(&mut self, kind: u8, flags: u16, family: u8, object: u32) {
        end(&mut self.writer, self.open);
        self.starts.push(self.writer.len());
        self.objects.push(object);
        let sequence = self.starts.len() as u32;
        self.open = begin(&mut self.writer, nftables(kind), flags, sequence, &nfgenmsg(family, 0));
    }

    /// Ends the batch; it takes no further message.
    pub fn end(&mut self) {
        if !self.ended {
            end(&mut self.writer, self.open);
            let sequence = self.starts.len() as u32 + 1;
            let header = nfgenmsg(0, u16::from(NFNL_SUBSYS_NFTABLES));
            self.open = begin(&mut self.writer, NFNL_MSG_BATCH_END, 0, sequence, &header);
            end(&mut self.writer, self.open);
            self.ended = true;
        }
    }

    /// Whether it has no message.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Number of messages.
    pub fn messages(&self) -> usize {
        self.starts.len()
    }

    /// The object that a message is about.
    pub fn object(&self, message: usize) -> Option<u32> {
        self.objects.get(message).copied()
    }

    /// A message's bytes, headers included.
    pub fn message_bytes(&self, message: usize) -> Option<&[u8]> {
        let start = *self.starts.get(message)?;
        self.writer.bytes.get(start..)?.get(..length(self.writer.bytes.get(start..)?)?)
    }

    /// The batch as it is sent; complete after [`Batch::end`].
    pub fn as_bytes(&self) -> &[u8] {
        &self.writer.bytes
    }
}

impl Deref for Batch {
    type Target = Writer;

    fn deref(&self) -> &Writer {
        &self.writer
    }
}

impl DerefMut for Batch {
    fn deref_mut(&mut self) -> &mut Writer {
        &mut self.writer
    }
}

fn length(bytes: &[u8]) -> Option<usize> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize)
}

/// One message as it was received, or as it lies in a batch.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The type within its subsystem: of nfnetlink `NFT_MSG_*`, of rtnetlink `RTM_*`.
    pub kind: u8,
    /// `NFPROTO_*`; of generic netlink the command.
    pub family: u8,
    payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads a whole message.
    pub fn parse(bytes: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let header = Header::parse(bytes)?;
        Message::of(&header)
    }

    pub(super) fn of(header: &Header<'a>) -> Result<Message<'a>, Malformed> {
        let [family, _, _, _, ..] = header.payload else {
            return Err(Malformed("a message without the header of its subsystem"));
        };
        let [_, kind] = header.kind.to_be_bytes();
        Ok(Message { kind, family: *family, payload: header.payload })
    }

    /// Its attributes, after a header of 4 bytes.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes::new(self.payload.get(4..).unwrap_or_default())
    }

    /// A header of another length, and the attributes after it.
    pub fn with_header<const N: usize>(&self) -> Result<(&'a [u8; N], Attributes<'a>), Malformed> {
        let Some((header, attributes)) = self.payload.split_first_chunk() else {
            return Err(Malformed("a message shorter than its headers"));
        };
        Ok((header, Attributes::new(attributes)))
    }
}

/// A `struct nlmsghdr` and what it heads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

impl<'a> Header<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Header<'a>, Malformed> {
        let Some(header) = bytes.first_chunk::<NLMSG_HDRLEN>() else {
            return Err(Malformed("a message shorter than its header"));
        };
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let Some(payload) = bytes.get(NLMSG_HDRLEN..word(0) as usize) else {
            return Err(Malformed("a message length out of bounds"));
        };
        Ok(Header {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: word(8),
            payload,
        })
    }
}

/// The messages of one datagram. After a malformed one there are no more.
pub(super) struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Header<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.0);
        let header = Header::parse(bytes);
        if let Ok(header) = &header {
            self.0 = bytes.get(align(NLMSG_HDRLEN + header.payload.len())..).unwrap_or_default();
        }
        Some(header)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_batch_is_framed_and_its_messages_are_found_again() {
        let mut batch = Batch::new(Some(7));
        batch.message(0, NLM_F_CREATE, 2, 40);
        batch.string(1, "sluice");
        batch.message(12, NLM_F_CREATE, 2, 41);
        batch.u32(1, 5);
        batch.end();
        let headers: Vec<_> = Messages(batch.as_bytes()).map(Result::unwrap).collect();
        let kinds: Vec<_> = headers.iter().map(|h| (h.kind, h.flags, h.sequence)).collect();
        assert_eq!(kinds, [(0x10, 1, 0), (0xa00, 0x401, 1), (0xa0c, 0x401, 2), (0x11, 1, 3)]);
        assert_eq!(headers[0].payload, [0, 0, 0, 10, 8, 0, 1, 0, 0, 0, 0, 7]);
        assert_eq!(batch.object(1), Some(41));
        let message = Message::parse(batch.message_bytes(1).unwrap()).unwrap();
        assert_eq!((message.kind, message.family), (12, 2));
        assert_eq!(message.attributes().next().unwrap().unwrap().u32(), Ok(5));
        assert!(batch.message_bytes(2).is_none() && batch.object(2).is_none());
    }

    #[test]
    fn requests_are_framed_one_after_another_and_can_be_cleared() {
        let mut requests = Requests::default();
        for round in 0..2 {
            requests.message(2, 0, 2);
            requests.u32(12, round);
            requests.message(2, 0, 10);
            requests.encoded(1, &[8, 0, 1, 0, 10, 96, 0, 1]);
            requests.end();
            let headers: Vec<_> = Messages(&requests.writer.bytes).map(Result::unwrap).collect();
            let kinds: Vec<_> = headers.iter().map(|h| (h.kind, h.sequence, h.payload.len())).collect();
            assert_eq!(kinds, [(0x102, 1, 12), (0x102, 2, 16)]);
            assert_eq!(requests.messages(), 2);
            let tuple = Message::of(&headers[1]).unwrap().attributes().next().unwrap().unwrap();
            assert_eq!(tuple.nested().next().unwrap().unwrap().value, [10, 96, 0, 1]);
            requests.clear();
        }
        assert_eq!((requests.messages(), requests.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn reading_any_bytes_ends(bytes: Vec<u8>) {
            for header in Messages(&bytes).flatten() {
                let _ = Message::of(&header).map(|message| message.attributes().count());
            }
            let _ = Message::parse(&bytes);
        }
    }
}
