//! Messages of netlink: headers, attributes and their alignment. Pure.

/// The most bytes that one attribute, and so one message of ours, may have: its length is a `u16`.
pub const MAX_MESSAGE: usize = 0xffff;

const HEADER: usize = 16;
const NLA_F_NESTED: u16 = 0x8000;
/// What of an attribute's type is its type (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;

/// Flags of a message's header.
pub(crate) mod flag {
    pub(crate) const REQUEST: u16 = 0x1;
    pub(crate) const MULTI: u16 = 0x2;
    pub(crate) const ACK: u16 = 0x4;
    pub(crate) const DUMP_INTERRUPTED: u16 = 0x10;
    pub(crate) const EXCLUSIVE: u16 = 0x200;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
}

/// Rounds up to netlink's alignment of four bytes.
const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// Several messages in one buffer, sent together.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    starts: Vec<usize>,
    too_long: bool,
}

impl Batch {
    /// No messages.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many messages it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether it has no messages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Adds a message: its type, its flags beside `NLM_F_REQUEST`, the fixed header of its family,
    /// and its attributes, which `write` writes.
    pub fn push(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        write: impl FnOnce(&mut Writer<'_>),
    ) {
        let start = self.bytes.len();
        self.starts.push(start);
        self.bytes.extend_from_slice(&[0; 4]); // the length, below
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]); // sequence number (by the socket) and port
        self.bytes.extend_from_slice(fixed);
        pad(&mut self.bytes);
        let mut writer = Writer {
            bytes: &mut self.bytes,
            too_long: &mut self.too_long,
        };
        write(&mut writer);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or_else(|_much_too_long| {
            self.too_long = true;
            0
        });
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Bytes so far.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn too_long(&self) -> bool {
        self.too_long
    }

    /// Asks for an answer to the last message, also when all is well.
    pub(crate) fn acknowledge_last(&mut self) {
        if let Some(start) = self.starts.last() {
            let at = start + 6;
            let flags = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]) | flag::ACK;
            self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        }
    }

    /// Numbers the messages from `first` on and gives the bytes. `first` plus their number stays
    /// below 2^32: the socket sees to it.
    pub(crate) fn numbered(&mut self, first: u32) -> &[u8] {
        let mut number = first;
        for start in &self.starts {
            self.bytes[start + 8..start + 12].copy_from_slice(&number.to_ne_bytes());
            number = number.wrapping_add(1);
        }
        &self.bytes
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(align(bytes.len()), 0);
}

/// Writes attributes. One that does not fit makes the whole batch unsendable (`EMSGSIZE`).
#[derive(Debug)]
pub struct Writer<'a> {
    bytes: &'a mut Vec<u8>,
    too_long: &'a mut bool,
}

impl Writer<'_> {
    /// An attribute with these bytes.
    pub fn raw(&mut self, kind: u16, value: &[u8]) {
        self.with(kind, |bytes| bytes.extend_from_slice(value));
    }

    /// An attribute that says something by being there.
    pub fn flag(&mut self, kind: u16) {
        self.raw(kind, &[]);
    }

    /// One byte.
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.raw(kind, &[value]);
    }

    /// Two bytes in the machine's order.
    pub fn u16(&mut self, kind: u16, value: u16) {
        self.raw(kind, &value.to_ne_bytes());
    }

    /// Four bytes in the machine's order.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.raw(kind, &value.to_ne_bytes());
    }

    /// Four bytes in the network's order.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.raw(kind, &value.to_be_bytes());
    }

    /// Eight bytes in the network's order.
    pub fn be64(&mut self, kind: u16, value: u64) {
        self.raw(kind, &value.to_be_bytes());
    }

    /// A string with its terminator.
    pub fn text(&mut self, kind: u16, value: &str) {
        self.with(kind, |bytes| {
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        });
    }

    /// Attributes inside an attribute, marked as such.
    pub fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Writer<'_>)) {
        self.nest_plain(kind | NLA_F_NESTED, write);
    }

    /// Attributes inside an attribute without the mark: traffic control's do not have it.
    pub fn nest_plain(&mut self, kind: u16, write: impl FnOnce(&mut Writer<'_>)) {
        self.nest_after(kind, &[], write);
    }

    /// An attribute whose value is a fixed header and then attributes.
    pub fn nest_after(&mut self, kind: u16, fixed: &[u8], write: impl FnOnce(&mut Writer<'_>)) {
        let start = self.begin(kind);
        self.bytes.extend_from_slice(fixed);
        pad(self.bytes);
        write(&mut Writer {
            bytes: self.bytes,
            too_long: self.too_long,
        });
        self.end(start);
    }

    fn with(&mut self, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.begin(kind);
        write(self.bytes);
        self.end(start);
    }

    fn begin(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn end(&mut self, start: usize) {
        let length = u16::try_from(self.bytes.len() - start).unwrap_or_else(|_too_long| {
            *self.too_long = true;
            0
        });
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        pad(self.bytes);
    }
}

/// One message that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its type (`nlmsg_type`).
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// The number of the request that it answers; 0 for an event.
    pub number: u32,
    /// The port of the socket whose request it answers or whose change it tells of.
    pub port: u32,
    /// All behind the header.
    pub payload: Vec<u8>,
}

impl Message {
    /// The attributes behind a fixed header of `fixed` bytes. Empty when it is shorter.
    #[must_use]
    pub fn attributes(&self, fixed: usize) -> Attributes<'_> {
        Attributes(self.payload.get(align(fixed)..).unwrap_or_default())
    }

    /// Four bytes of the fixed header in the machine's order; 0 when it is shorter.
    pub(crate) fn u32_at(&self, at: usize) -> u32 {
        self.payload.get(at..at + 4).map_or(0, u32_of)
    }

    /// A byte of the fixed header; 0 when it is shorter.
    pub(crate) fn u8_at(&self, at: usize) -> u8 {
        self.payload.get(at).copied().unwrap_or(0)
    }
}

/// The messages in what one `recv(2)` gave. Ends at the first that is cut.
pub(crate) fn split(mut bytes: &[u8]) -> Vec<Message> {
    let mut all = Vec::new();
    while let Some((length, rest)) = header(bytes) {
        let u16_at = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        all.push(Message {
            kind: u16_at(4),
            flags: u16_at(6),
            number: u32_of(&bytes[8..12]),
            port: u32_of(&bytes[12..16]),
            payload: bytes[HEADER..length].to_vec(),
        });
        bytes = rest;
    }
    all
}

fn header(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let length = usize::try_from(u32_of(bytes.get(..4)?)).ok()?;
    if length < HEADER || length > bytes.len() {
        return None;
    }
    Some((length, bytes.get(align(length)..).unwrap_or_default()))
}

/// Four bytes in the machine's order; 0 when there are fewer.
pub(crate) fn u32_of(bytes: &[u8]) -> u32 {
    bytes
        .get(..4)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

/// A string attribute without its terminator.
pub(crate) fn text_of(bytes: &[u8]) -> String {
    let bytes = bytes.split(|b| *b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

/// Attributes one after the other: type and value. Ends at the first that is cut.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Those in `bytes`, the value of an attribute that holds attributes.
    #[must_use]
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.0.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// The value of the first attribute of a type.
#[must_use]
pub fn find<'a>(mut attributes: Attributes<'a>, kind: u16) -> Option<&'a [u8]> {
    attributes
        .find(|(k, _value)| *k == kind)
        .map(|(_kind, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut batch = Batch::new();
        batch.push(16, 0, &[1, 2, 3, 4], |w| {
            w.text(3, "eth0");
            w.nest(18, |w| w.u32(1, 7));
        });
        batch.push(17, 0, &[], |_| {});
        batch.acknowledge_last();
        let all = split(batch.numbered(5));
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].number, all[1].number), (5, 6));
        assert_eq!(all[0].flags & flag::ACK, 0);
        assert_eq!(all[1].flags & flag::ACK, flag::ACK, "the last is answered");
        let attributes = all[0].attributes(4);
        assert_eq!(text_of(find(attributes, 3).unwrap()), "eth0");
        let inner = Attributes::of(find(attributes, 18).unwrap());
        assert_eq!(u32_of(find(inner, 1).unwrap()), 7);
        assert_eq!(find(attributes, 9), None);
    }

    #[test]
    fn what_is_too_long_for_an_attribute_is_marked() {
        let mut batch = Batch::new();
        batch.push(1, 0, &[], |w| w.raw(1, &vec![0; MAX_MESSAGE]));
        assert!(batch.too_long());
    }

    #[test]
    fn cut_messages_and_attributes_end_the_reading() {
        let mut batch = Batch::new();
        batch.push(1, 0, &[], |w| w.raw(1, &[9; 8]));
        let whole = batch.bytes().to_vec();
        for cut in 0..whole.len() {
            assert_eq!(split(&whole[..cut]), []);
        }
        let message = split(&whole).remove(0);
        for cut in 0..message.payload.len() {
            assert_eq!(Attributes::of(&message.payload[..cut]).count(), 0);
        }
        // A length that is smaller than the header of an attribute does not loop.
        assert_eq!(Attributes::of(&[0; 64]).count(), 0);
        assert_eq!(split(&[0; 64]), []);
    }
}
