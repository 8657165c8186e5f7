//! Netlink attributes: a type, a length, bytes or further attributes (`struct nlattr`, `linux/netlink.h`).
//!
//! Integers of nfnetlink are big endian, those of generic netlink and rtnetlink in host order, as are lengths and types.

use std::fmt::Display;
use std::io::Write;

/// `NLA_F_NESTED`: the attribute holds attributes.
const NLA_F_NESTED: u16 = 1 << 15;
/// Without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// `NLA_HDRLEN`.
const HEADER: usize = 4;

/// Length rounded up to `NLA_ALIGNTO`.
pub(super) const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// Writes attributes one after another into a buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writer {
    pub(super) bytes: Vec<u8>,
    pub(super) too_long: bool,
}

/// An attribute that is still being filled, by where it starts.
#[derive(Debug)]
#[must_use = "its length is written by Writer::close"]
pub struct Open(usize);

impl Open {
    /// Offset of the attribute in the writer's buffer.
    pub fn start(&self) -> usize {
        self.0
    }
}

impl Writer {
    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What was written so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// An attribute of bytes.
    #[inline]
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = HEADER + value.len();
        self.header(kind, length);
        self.bytes.extend_from_slice(value);
        self.pad(length);
    }

    /// An attribute of attributes that are encoded already.
    #[inline]
    pub fn encoded(&mut self, kind: u16, attributes: &[u8]) {
        self.bytes(kind | NLA_F_NESTED, attributes);
    }

    /// A string with its terminating zero.
    #[inline]
    pub fn string(&mut self, kind: u16, value: &str) {
        let length = HEADER + value.len() + 1;
        self.header(kind, length);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.pad(length);
    }

    /// What a value prints, as a string with its terminating zero.
    #[inline]
    pub fn display(&mut self, kind: u16, value: impl Display) {
        let start = self.bytes.len();
        self.header(kind, 0);
        // Writing to a Vec does not fail.
        let _ = write!(self.bytes, "{value}");
        self.bytes.push(0);
        let length = self.bytes.len() - start;
        self.patch(start, length);
        self.pad(length);
    }

    /// One byte.
    #[inline]
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    /// A big-endian 16-bit number.
    #[inline]
    pub fn u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A big-endian 32-bit number.
    #[inline]
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A big-endian 64-bit number.
    #[inline]
    pub fn u64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A 16-bit number in host order.
    #[inline]
    pub fn host_u16(&mut self, kind: u16, value: u16) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// A 32-bit number in host order.
    #[inline]
    pub fn host_u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// Starts an attribute of attributes.
    #[inline]
    pub fn open(&mut self, kind: u16) -> Open {
        let start = self.bytes.len();
        self.header(kind | NLA_F_NESTED, 0);
        Open(start)
    }

    /// Ends it. A length past 65,535 is remembered and refused when the message is to be sent.
    #[inline]
    pub fn close(&mut self, attribute: Open) {
        let length = self.bytes.len() - attribute.0;
        self.patch(attribute.0, length);
    }

    /// An attribute of the attributes that `fill` writes.
    #[inline]
    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Writer)) {
        let open = self.open(kind);
        fill(self);
        self.close(open);
    }

    #[inline]
    fn header(&mut self, kind: u16, length: usize) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.patch(start, length);
    }

    #[inline]
    fn patch(&mut self, start: usize, length: usize) {
        let Ok(length) = u16::try_from(length) else {
            self.too_long = true;
            return;
        };
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    #[inline]
    fn pad(&mut self, length: usize) {
        self.bytes.extend_from_slice(&[0; 3][..align(length) - length]);
    }
}

/// Bytes are not what their format says: a length past the end, a number of the wrong size, a name without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed netlink attribute: {0}")]
pub struct Malformed(pub &'static str);

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its type, without flags.
    pub kind: u16,
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The attributes inside.
    pub fn nested(&self) -> Attributes<'a> {
        Attributes::new(self.value)
    }

    /// The value as one byte.
    pub fn u8(&self) -> Result<u8, Malformed> {
        match self.value {
            [byte] => Ok(*byte),
            _ => Err(Malformed("an 8-bit number of another size")),
        }
    }

    /// The value as a big-endian 16-bit number.
    pub fn u16(&self) -> Result<u16, Malformed> {
        let bytes = self.value.try_into().map_err(|_| Malformed("a 16-bit number of another size"))?;
        Ok(u16::from_be_bytes(bytes))
    }

    /// The value as a big-endian 32-bit number.
    pub fn u32(&self) -> Result<u32, Malformed> {
        let bytes = self.value.try_into().map_err(|_| Malformed("a 32-bit number of another size"))?;
        Ok(u32::from_be_bytes(bytes))
    }

    /// The value as a big-endian 64-bit number.
    pub fn u64(&self) -> Result<u64, Malformed> {
        let bytes = self.value.try_into().map_err(|_| Malformed("a 64-bit number of another size"))?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// The value as a 16-bit number in host order.
    pub fn host_u16(&self) -> Result<u16, Malformed> {
        self.u16().map(|n| u16::from_ne_bytes(n.to_be_bytes()))
    }

    /// The value as a 32-bit number in host order.
    pub fn host_u32(&self) -> Result<u32, Malformed> {
        self.u32().map(|n| u32::from_ne_bytes(n.to_be_bytes()))
    }

    /// The value as a 64-bit number in host order.
    pub fn host_u64(&self) -> Result<u64, Malformed> {
        self.u64().map(|n| u64::from_ne_bytes(n.to_be_bytes()))
    }

    /// The value as a string, up to its terminating zero.
    pub fn string(&self) -> Result<&'a str, Malformed> {
        let text = self.value.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(text).map_err(|_| Malformed("a name that is not UTF-8"))
    }
}

/// Reads the attributes of a buffer in order. After a malformed one, which is an `Err`, there are no more.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The attributes in these bytes.
    pub fn new(bytes: &'a [u8]) -> Attributes<'a> {
        Attributes { rest: bytes }
    }

    /// The attributes by type, the last of each; those of type `N` and above are left out.
    pub fn table<const N: usize>(self) -> Result<[Option<Attribute<'a>>; N], Malformed> {
        let mut table = [None; N];
        for attribute in self {
            let attribute = attribute?;
            if let Some(slot) = table.get_mut(usize::from(attribute.kind)) {
                *slot = Some(attribute);
            }
        }
        Ok(table)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.rest);
        let [l0, l1, t0, t1, ..] = *rest else {
            return Some(Err(Malformed("bytes after the last attribute")));
        };
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let Some(value) = rest.get(HEADER..length) else {
            return Some(Err(Malformed("a length out of bounds")));
        };
        self.rest = rest.get(align(length)..).unwrap_or_default();
        Some(Ok(Attribute { kind: u16::from_ne_bytes([t0, t1]) & NLA_TYPE_MASK, value }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn written_attributes_are_read_back() {
        let mut writer = Writer::default();
        writer.string(1, "sluice");
        writer.u32(2, 0x0102_0304);
        writer.nested(3, |w| {
            w.u8(4, 5);
            w.u64(5, 6);
        });
        assert_eq!(writer.len() % 4, 0);
        let [_, name, number, nest] = Attributes::new(&writer.bytes).table().unwrap();
        assert_eq!(name.unwrap().string(), Ok("sluice"));
        assert_eq!(number.unwrap().u32(), Ok(0x0102_0304));
        let [.., byte, long] = nest.unwrap().nested().table::<6>().unwrap();
        assert_eq!(byte.unwrap().u8(), Ok(5));
        assert_eq!(long.unwrap().u64(), Ok(6));
    }

    #[test]
    fn the_layout_is_the_kernels() {
        let mut writer = Writer::default();
        writer.nested(3, |w| w.u8(1, 9));
        assert_eq!(writer.bytes[..2], 12u16.to_ne_bytes());
        assert_eq!(writer.bytes[2..4], 0x8003u16.to_ne_bytes());
        assert_eq!(writer.bytes[4..6], 5u16.to_ne_bytes());
        assert_eq!(writer.bytes[6..], [1, 0, 9, 0, 0, 0]);
    }

    #[test]
    fn an_attribute_past_65535_bytes_is_noticed() {
        let mut writer = Writer::default();
        writer.nested(1, |w| (0..1000).for_each(|_| w.bytes(1, &[0; 60])));
        assert!(!writer.too_long);
        writer.nested(1, |w| (0..1100).for_each(|_| w.bytes(1, &[0; 60])));
        assert!(writer.too_long);
    }

    #[test]
    fn malformed_attributes_are_errors_and_end_the_reading() {
        for bytes in [&[1u8][..], &[3, 0, 1, 0], &[9, 0, 1, 0, 0, 0, 0, 0], &[0, 0, 0, 0]] {
            let read: Vec<_> = Attributes::new(bytes).collect();
            assert_eq!(read.len(), 1, "{bytes:?}");
            assert!(read[0].is_err(), "{bytes:?}");
        }
        let name = Attribute { kind: 1, value: &[0xff, 0] };
        assert!(name.string().is_err() && name.u8().is_err() && name.u32().is_err() && name.u64().is_err());
        assert_eq!(Attribute { kind: 1, value: &[] }.string(), Ok(""));
    }

    proptest! {
        #[test]
        fn reading_any_bytes_ends(bytes: Vec<u8>) {
            for attribute in Attributes::new(&bytes).flatten() {
                let _ = (attribute.u8(), attribute.u32(), attribute.u64(), attribute.string());
                prop_assert!(attribute.nested().count() <= attribute.value.len());
            }
        }
    }
}
