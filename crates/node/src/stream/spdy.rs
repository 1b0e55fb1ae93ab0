//! SPDY/3.1 frames, without I/O: the framing of exec, attach and port-forward since Kubernetes 1.0.
//!
//! Written after draft-mbelshe-httpbis-spdy-00 and what the only peer there is, `moby/spdystream` in kubectl and
//! client-go, makes of it: header blocks are zlib streams with a dictionary that last as long as the connection.

mod dictionary;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

/// Longest data frame that is taken, bytes; Go's clients write 32 KiB at once.
pub(super) const DATA_BYTES_MAX: usize = 1 << 20;
/// Longest control frame that is taken, bytes.
const CONTROL_BYTES_MAX: usize = 64 << 10;
/// Longest header block after inflation, bytes.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// Frames longer than a stored block cannot be sent: a block's length has 16 bits.
const STORED_BYTES_MAX: usize = 0xffff;

/// Marks a control frame of version 3.
const CONTROL: u16 = 0x8003;
const FLAG_FIN: u8 = 1;
/// Stream ids have 31 bits.
const ID_MASK: u32 = 0x7fff_ffff;

/// Header names in lower case with their values.
pub(super) type Headers = BTreeMap<String, String>;

/// Why a connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SpdyError {
    /// Another version, or not SPDY at all.
    #[error("not a SPDY/3 frame")]
    Version,
    /// A frame beyond a bound.
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    /// A frame shorter than its fields.
    #[error("a frame of type {0} is cut off")]
    Short(u16),
    /// A header block that does not inflate or parse.
    #[error("a header block is broken: {0}")]
    Headers(&'static str),
}

/// A frame, of the kinds that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// The peer opens a stream.
    SynStream { id: u32, fin: bool, headers: Headers },
    /// A stream is accepted.
    SynReply { id: u32, fin: bool, headers: Headers },
    /// A stream is given up.
    RstStream { id: u32, status: u32 },
    /// Settings of the peer: (id, value).
    Settings(Vec<(u32, u32)>),
    /// To be sent back by the other side.
    Ping(u32),
    /// No more streams.
    GoAway { last: u32, status: u32 },
    /// More headers of a stream.
    Headers { id: u32, fin: bool, headers: Headers },
    /// More may be sent on a stream; on the connection when the id is 0.
    WindowUpdate { id: u32, delta: u32 },
    /// Bytes of a stream.
    Data { id: u32, fin: bool, data: Bytes },
    /// A control frame that is ignored, as the draft demands.
    Unknown(u16),
}

/// Takes frames out of bytes.
pub(super) struct Decoder {
    buffer: BytesMut,
    inflate: Inflate,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { buffer: BytesMut::new(), inflate: Inflate::new() }
    }

    /// Adds what was read.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` needs more bytes. After an error the connection is lost.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, SpdyError> {
        let Some(head) = self.buffer.first_chunk::<8>() else { return Ok(None) };
        let [a, b, c, d, flags, x, y, z] = *head;
        let length = usize::try_from(u32::from_be_bytes([0, x, y, z])).unwrap_or(usize::MAX);
        let fin = flags & FLAG_FIN != 0;
        let control = a & 0x80 != 0;
        if control && u16::from_be_bytes([a, b]) != CONTROL {
            return Err(SpdyError::Version);
        }
        if length > if control { CONTROL_BYTES_MAX } else { DATA_BYTES_MAX } {
            return Err(SpdyError::TooLong(length));
        }
        if self.buffer.len() < 8 + length {
            return Ok(None);
        }
        self.buffer.advance(8);
        let body = self.buffer.split_to(length).freeze();
        if control {
            return self.control(u16::from_be_bytes([c, d]), fin, body).map(Some);
        }
        Ok(Some(Frame::Data { id: u32::from_be_bytes([a, b, c, d]), fin, data: body }))
    }

    fn control(&mut self, kind: u16, fin: bool, mut body: Bytes) -> Result<Frame, SpdyError> {
        let number = |body: &mut Bytes| body.try_get_u32().map_err(|_| SpdyError::Short(kind));
        match kind {
            1 => {
                let id = number(&mut body)? & ID_MASK;
                number(&mut body)?; // the associated stream
                body.try_get_u16().map_err(|_| SpdyError::Short(kind))?; // priority and slot
                Ok(Frame::SynStream { id, fin, headers: self.inflate.headers(&body)? })
            }
            2 => {
                let id = number(&mut body)? & ID_MASK;
                Ok(Frame::SynReply { id, fin, headers: self.inflate.headers(&body)? })
            }
            3 => Ok(Frame::RstStream {
                id: number(&mut body)? & ID_MASK,
                status: number(&mut body)?,
            }),
            4 => {
                let count = number(&mut body)?;
                let mut all = Vec::new(); // grows with what is there, not with what is claimed
                for _ in 0..count {
                    let id = number(&mut body)? & 0x00ff_ffff; // below the flags
                    all.push((id, number(&mut body)?));
                }
                Ok(Frame::Settings(all))
            }
            6 => Ok(Frame::Ping(number(&mut body)?)),
            7 => {
                Ok(Frame::GoAway { last: number(&mut body)? & ID_MASK, status: number(&mut body)? })
            }
            8 => {
                let id = number(&mut body)? & ID_MASK;
                Ok(Frame::Headers { id, fin, headers: self.inflate.headers(&body)? })
            }
            9 => Ok(Frame::WindowUpdate {
                id: number(&mut body)? & ID_MASK,
                delta: number(&mut body)? & ID_MASK,
            }),
            other => Ok(Frame::Unknown(other)),
        }
    }
}

/// The peer's header blocks: one zlib stream.
struct Inflate {
    raw: Decompress,
    started: bool,
}

impl Inflate {
    /// A preset dictionary is nothing but a window that is full already: a raw stream that begins with a stored block
    /// of it goes on like one that was given it. (flate2 has dictionaries only with a zlib in C or another backend.)
    fn new() -> Self {
        let mut raw = Decompress::new(false);
        let block = stored(&dictionary::bytes());
        let mut rest = block.as_slice();
        let mut scratch = [0_u8; 2048];
        while !rest.is_empty() {
            let before = raw.total_in();
            let inflated = raw.decompress(rest, &mut scratch, FlushDecompress::None);
            inflated.expect("a stored block is a valid stream");
            rest = rest.get(taken(before, raw.total_in())..).unwrap_or_default();
        }
        Self { raw, started: false }
    }

    fn headers(&mut self, mut block: &[u8]) -> Result<Headers, SpdyError> {
        if !self.started {
            block = zlib_head(block).ok_or(SpdyError::Headers("no zlib stream"))?;
            self.started = true;
        }
        let mut plain = Vec::with_capacity(1024);
        loop {
            if plain.len() == plain.capacity() {
                if plain.len() >= HEADER_BYTES_MAX {
                    return Err(SpdyError::Headers("it is too long"));
                }
                plain.reserve(4096);
            }
            let (input, output) = (self.raw.total_in(), self.raw.total_out());
            let status = self
                .raw
                .decompress_vec(block, &mut plain, FlushDecompress::Sync)
                .map_err(|_| SpdyError::Headers("it does not inflate"))?;
            block = block.get(taken(input, self.raw.total_in())..).unwrap_or_default();
            let stuck = (input, output) == (self.raw.total_in(), self.raw.total_out());
            if status == Status::StreamEnd && !block.is_empty() {
                return Err(SpdyError::Headers("it goes on after its end"));
            }
            if block.is_empty() && (stuck || plain.len() < plain.capacity()) {
                return pairs(&plain);
            }
            if stuck && plain.len() < plain.capacity() {
                return Err(SpdyError::Headers("it does not inflate"));
            }
        }
    }
}

fn taken(before: u64, after: u64) -> usize {
    usize::try_from(after.saturating_sub(before)).unwrap_or(usize::MAX)
}

/// What follows the head of a zlib stream that may name our dictionary.
fn zlib_head(block: &[u8]) -> Option<&[u8]> {
    let [method, flags, rest @ ..] = block else { return None };
    if method & 0x0f != 8 || u16::from_be_bytes([*method, *flags]) % 31 != 0 {
        return None;
    }
    if flags & 0x20 == 0 {
        return Some(rest);
    }
    let (id, rest) = rest.split_first_chunk::<4>()?;
    (u32::from_be_bytes(*id) == dictionary::ID).then_some(rest)
}

fn pairs(mut plain: &[u8]) -> Result<Headers, SpdyError> {
    let cut = SpdyError::Headers("it is cut off");
    let text = |plain: &mut &[u8]| {
        let length = plain.try_get_u32().map_err(|_| cut.clone())?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let (text, rest) = plain.split_at_checked(length).ok_or_else(|| cut.clone())?;
        *plain = rest;
        Ok::<_, SpdyError>(String::from_utf8_lossy(text).into_owned())
    };
    let mut all = Headers::new();
    let count = plain.try_get_u32().map_err(|_| SpdyError::Headers("it is empty"))?;
    for _ in 0..count {
        let name = text(&mut plain)?.to_ascii_lowercase();
        all.insert(name, text(&mut plain)?);
    }
    Ok(all)
}

/// A deflate block without compression.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("callers keep to 64 KiB");
    let mut block = Vec::with_capacity(bytes.len() + 5);
    block.push(0);
    block.extend_from_slice(&length.to_le_bytes());
    block.extend_from_slice(&(!length).to_le_bytes());
    block.extend_from_slice(bytes);
    block
}

/// Makes bytes of frames. What a server says in headers is next to nothing, so they are stored, not compressed.
#[derive(Default)]
pub(super) struct Encoder {
    started: bool,
}

impl Encoder {
    /// Appends a frame; data longer than a frame may be becomes several.
    ///
    /// # Panics
    /// When headers are longer than 64 KiB: the caller's own are not.
    pub(super) fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::SynStream { id, fin, headers } => {
                let mut body = numbers(&[*id, 0]);
                body.extend_from_slice(&[0, 0]);
                body.extend_from_slice(&self.block(headers));
                control(out, 1, *fin, &body);
            }
            Frame::SynReply { id, fin, headers } => {
                let mut body = numbers(&[*id]);
                body.extend_from_slice(&self.block(headers));
                control(out, 2, *fin, &body);
            }
            Frame::RstStream { id, status } => control(out, 3, false, &numbers(&[*id, *status])),
            Frame::Settings(all) => {
                let count = u32::try_from(all.len()).expect("settings are few");
                let mut body = numbers(&[count]);
                all.iter().for_each(|(id, value)| body.extend(numbers(&[*id, *value])));
                control(out, 4, false, &body);
            }
            Frame::Ping(id) => control(out, 6, false, &numbers(&[*id])),
            Frame::GoAway { last, status } => control(out, 7, false, &numbers(&[*last, *status])),
            Frame::Headers { id, fin, headers } => {
                let mut body = numbers(&[*id]);
                body.extend_from_slice(&self.block(headers));
                control(out, 8, *fin, &body);
            }
            Frame::WindowUpdate { id, delta } => control(out, 9, false, &numbers(&[*id, *delta])),
            Frame::Data { id, fin, data } => encode_data(out, *id, *fin, data),
            Frame::Unknown(kind) => control(out, *kind, false, &[]),
        }
    }

    fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let length = |text: &str| u32::try_from(text.len()).expect("headers are short");
        let mut plain = length_prefix(headers.len());
        for (name, value) in headers {
            plain.extend_from_slice(&length(name).to_be_bytes());
            plain.extend_from_slice(name.as_bytes());
            plain.extend_from_slice(&length(value).to_be_bytes());
            plain.extend_from_slice(value.as_bytes());
        }
        assert!(plain.len() <= STORED_BYTES_MAX, "headers are short");
        let mut block = Vec::new();
        if !self.started {
            self.started = true;
            block.extend_from_slice(&[0x78, 0xbb]); // deflate with a dictionary
            block.extend_from_slice(&dictionary::ID.to_be_bytes());
        }
        block.extend_from_slice(&stored(&plain));
        // The mark of a flush: Go's inflater hands a block on when it meets it, and else waits for the next frame.
        block.extend_from_slice(&stored(&[]));
        block
    }
}

fn length_prefix(count: usize) -> Vec<u8> {
    u32::try_from(count).expect("headers are few").to_be_bytes().to_vec()
}

fn numbers(all: &[u32]) -> Vec<u8> {
    all.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn control(out: &mut BytesMut, kind: u16, fin: bool, body: &[u8]) {
    out.put_u16(CONTROL);
    out.put_u16(kind);
    let length = u32::try_from(body.len()).expect("control frames are short");
    out.put_u32(length | u32::from(fin) << 24);
    out.put_slice(body);
}

fn encode_data(out: &mut BytesMut, id: u32, fin: bool, data: &[u8]) {
    let mut rest = data;
    loop {
        let (part, after) = rest.split_at(rest.len().min(DATA_BYTES_MAX));
        let last = fin && after.is_empty();
        out.put_u32(id & ID_MASK);
        let length = u32::try_from(part.len()).expect("frames are bounded");
        out.put_u32(length | u32::from(last) << 24);
        out.put_slice(part);
        if after.is_empty() {
            return;
        }
        rest = after;
    }
}
