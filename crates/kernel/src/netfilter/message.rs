//! Netlink messages as bytes: headers, attributes, answers.

/// `nlmsghdr` and `nfgenmsg`.
const HEADER_BYTES: usize = 20;
/// `nlmsghdr` alone.
const NLMSG_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Builds messages one after another in one buffer.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    bytes: Vec<u8>,
    message: usize,
}

/// An open nested attribute.
#[must_use]
pub(crate) struct Nest(usize);

impl Builder {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), message: 0 }
    }

    /// Starts a message: type (subsystem << 8 | message), flags, family, resource.
    pub(crate) fn begin(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        family: u8,
        resource: u16,
    ) {
        self.message = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
    }

    /// What follows the header where a subsystem's is longer than netfilter's.
    pub(crate) fn words(&mut self, words: &[u32]) {
        self.bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    }

    /// Starts a message of generic netlink: the family's number, the command.
    pub(crate) fn begin_generic(&mut self, family: u16, flags: u16, sequence: u32, command: u8) {
        self.begin(family, flags, sequence, command, 0);
    }

    /// More of the header, which other families than netfilter have. A multiple of four bytes.
    pub(crate) fn header(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Ends the message that was begun last.
    pub(crate) fn end(&mut self) {
        let len =
            u32::try_from(self.bytes.len() - self.message).expect("a message is far below 4 GiB");
        self.bytes[self.message..self.message + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Sets flags on the message that was begun last.
    pub(crate) fn add_flags(&mut self, flags: u16) {
        let at = self.message + 6;
        let old = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]);
        self.bytes[at..at + 2].copy_from_slice(&(old | flags).to_ne_bytes());
    }

    pub(crate) fn raw(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).expect("attributes are below 64 KiB");
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        let padding = value.len().next_multiple_of(4) - value.len();
        self.bytes.extend_from_slice(&[0; 4][..padding]);
    }

    pub(crate) fn text(&mut self, kind: u16, text: &str) {
        let len = u16::try_from(text.len() + 5).expect("names are short");
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(text.as_bytes());
        let padding = (text.len() + 1).next_multiple_of(4) - text.len();
        self.bytes.extend_from_slice(&[0; 4][..padding]);
    }

    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.raw(kind, &value.to_be_bytes());
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) {
        self.raw(kind, &value.to_be_bytes());
    }

    /// A number in the machine's order.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.raw(kind, &value.to_ne_bytes());
    }

    /// A number in the machine's order.
    pub(crate) fn u16(&mut self, kind: u16, value: u16) {
        self.raw(kind, &value.to_ne_bytes());
    }

    pub(crate) fn byte(&mut self, kind: u16, value: u8) {
        self.raw(kind, &[value]);
    }

    pub(crate) fn open(&mut self, kind: u16) -> Nest {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        Nest(at)
    }

    pub(crate) fn close(&mut self, nest: &Nest) {
        let len = u16::try_from(self.bytes.len() - nest.0)
            .expect("nested attributes are split below 64 KiB");
        self.bytes[nest.0..nest.0 + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// Bytes of the open attribute so far.
    pub(crate) fn len_of(&self, nest: &Nest) -> usize {
        self.bytes.len() - nest.0
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// One message of an answer.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    pub(crate) kind: u16,
    flags: u16,
    pub(crate) sequence: u32,
    body: &'a [u8],
}

impl<'a> Reply<'a> {
    pub(crate) fn is_done(&self) -> bool {
        self.kind == NLMSG_DONE
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.flags & NLM_F_DUMP_INTR != 0
    }

    /// The error number (0 is an acknowledgement), if this is an error message or a dump that ended badly.
    pub(crate) fn error(&self) -> Option<i32> {
        let number = || {
            let bytes = self.body.get(..4)?;
            Some(-i32::from_ne_bytes(bytes.try_into().ok()?))
        };
        match self.kind {
            NLMSG_ERROR => number(),
            NLMSG_DONE => number().filter(|errno| *errno != 0),
            _ => None,
        }
    }

    /// The kernel's words with an error.
    pub(crate) fn detail(&self) -> Option<String> {
        if self.kind != NLMSG_ERROR || self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let request = self.body.get(4..8)?;
        let mut skip = 4 + NLMSG_BYTES;
        if self.flags & NLM_F_CAPPED == 0 {
            let len = u32::from_ne_bytes(request.try_into().ok()?);
            skip = 4 + usize::try_from(len).ok()?.next_multiple_of(4);
        }
        let text = Attributes(self.body.get(skip..)?).find(NLMSGERR_ATTR_MSG)?;
        Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
    }

    /// The attributes after the netfilter header.
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        self.attributes_after(HEADER_BYTES - NLMSG_BYTES)
    }

    /// The attributes after a header of so many bytes.
    pub(crate) fn attributes_after(&self, bytes: usize) -> Attributes<'a> {
        Attributes(self.body.get(bytes..).unwrap_or_default())
    }

    /// A number in the header.
    pub(crate) fn word(&self, at: usize) -> Option<u32> {
        self.body.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
    }
}

/// The messages of a datagram; stops at the first that is cut off.
pub(crate) fn replies(mut datagram: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.get(..NLMSG_BYTES)?;
        let number = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let len = usize::try_from(number(0)).ok()?;
        let body = datagram.get(NLMSG_BYTES..len)?;
        let reply = Reply {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: number(8),
            body,
        };
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(reply)
    })
}

/// A row of attributes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    pub(crate) fn find(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    pub(crate) fn nested(self, kind: u16) -> Option<Self> {
        self.find(kind).map(Self)
    }

    pub(crate) fn text(self, kind: u16) -> Option<&'a str> {
        let bytes = self.find(kind)?;
        std::str::from_utf8(bytes).ok().map(|text| text.trim_end_matches('\0'))
    }

    pub(crate) fn be32(self, kind: u16) -> Option<u32> {
        self.find(kind)?.try_into().ok().map(u32::from_be_bytes)
    }

    pub(crate) fn be16(self, kind: u16) -> Option<u16> {
        self.find(kind)?.try_into().ok().map(u16::from_be_bytes)
    }

    /// A number in the machine's order.
    pub(crate) fn u32(self, kind: u16) -> Option<u32> {
        self.find(kind)?.try_into().ok().map(u32::from_ne_bytes)
    }

    /// A number in the machine's order.
    pub(crate) fn u16(self, kind: u16) -> Option<u16> {
        self.find(kind)?.try_into().ok().map(u16::from_ne_bytes)
    }

    pub(crate) fn byte(self, kind: u16) -> Option<u8> {
        self.find(kind)?.first().copied()
    }
}

impl<'a> IntoIterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);
    type IntoIter = AttributeIter<'a>;

    fn into_iter(self) -> AttributeIter<'a> {
        AttributeIter(self.0)
    }
}

/// Walks a row of attributes; stops at the first that is cut off.
pub(crate) struct AttributeIter<'a>(&'a [u8]);

impl<'a> Iterator for AttributeIter<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.get(..4)?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}
