//! Entries of CRI logs, and how they are shown: `2026-01-02T03:04:05.000000000Z stdout F line`.

use jiff::Timestamp;

/// Longest raw line that is held while its end is missing, bytes: four times what runtimes write.
const RAW_LINE_BYTES_MAX: usize = 64 << 10;

/// Which outputs are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::stream) enum Streams {
    #[default]
    All,
    Stdout,
    Stderr,
}

/// Which entries are shown, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::stream) struct Selection {
    /// Entries before are left out.
    pub(in crate::stream) since: Option<Timestamp>,
    /// Bytes after which it ends.
    pub(in crate::stream) limit: Option<usize>,
    /// Each line begins with its time.
    pub(in crate::stream) timestamps: bool,
    /// Which outputs.
    pub(in crate::stream) streams: Streams,
}

/// One raw line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) time: &'a str,
    pub(super) stream: &'a str,
    /// The line goes on in the next entry.
    pub(super) partial: bool,
    pub(super) text: &'a [u8],
}

impl<'a> Entry<'a> {
    /// `None` when it is no entry; upstream skips those too.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(fields.next()?).ok()?;
        let stream = std::str::from_utf8(fields.next()?).ok()?;
        if !matches!(stream, "stdout" | "stderr") {
            return None;
        }
        // Tags are separated by colons; the first says whether the line is whole.
        let partial = match fields.next()?.split(|byte| *byte == b':').next()? {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        Some(Self { time, stream, partial, text: fields.next().unwrap_or_default() })
    }
}

/// Turns raw bytes of log files, cut anywhere, into what the client sees.
#[derive(Debug)]
pub(super) struct Printer {
    selection: Selection,
    left: usize,
    held: Vec<u8>,
    within_line: bool,
}

impl Printer {
    pub(super) fn new(selection: Selection) -> Self {
        let left = selection.limit.unwrap_or(usize::MAX);
        Self { selection, left, held: Vec::new(), within_line: false }
    }

    /// Whether the limit is reached.
    pub(super) fn is_full(&self) -> bool {
        self.left == 0
    }

    /// Takes the next raw bytes and appends what is to be shown of them.
    pub(super) fn print(&mut self, raw: &[u8], out: &mut Vec<u8>) {
        for piece in raw.split_inclusive(|byte| *byte == b'\n') {
            if self.held.len() + piece.len() > RAW_LINE_BYTES_MAX {
                self.finish(out);
            }
            self.held.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.finish(out);
            }
        }
    }

    /// Shows what is held of a raw line without an end.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        let held = std::mem::take(&mut self.held);
        let line = held.strip_suffix(b"\n").unwrap_or(&held);
        if let Some(entry) = Entry::parse(line) {
            self.entry(&entry, out);
        }
    }

    fn entry(&mut self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        let wanted = match self.selection.streams {
            Streams::All => true,
            Streams::Stdout => entry.stream == "stdout",
            Streams::Stderr => entry.stream == "stderr",
        };
        if !wanted {
            return;
        }
        if let Some(since) = self.selection.since
            && entry.time.parse::<Timestamp>().is_ok_and(|time| time < since)
        {
            return;
        }
        if self.selection.timestamps && !self.within_line {
            self.put(entry.time.as_bytes(), out);
            self.put(b" ", out);
        }
        self.put(entry.text, out);
        if !entry.partial {
            self.put(b"\n", out);
        }
        self.within_line = entry.partial;
    }

    fn put(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let part = bytes.get(..self.left).unwrap_or(bytes);
        out.extend_from_slice(part);
        self.left = self.left.saturating_sub(part.len());
    }
}
