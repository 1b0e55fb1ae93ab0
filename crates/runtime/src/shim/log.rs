//! Logs in CRI's format, with rotation (upstream: containerd's `io.NewCRILogger`, kubelet's log manager).
//!
//! `2026-01-02T03:04:05.000000000Z stdout F line`; a line longer than 16 KiB is written in parts tagged `P`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Longest part of a line, bytes (containerd's `max_container_log_line_size`).
const LINE_BYTES_MAX: usize = 16 << 10;
/// Size at which a log is rotated, bytes (kubelet's `containerLogMaxSize`).
const FILE_BYTES_MAX: u64 = 10 << 20;
/// Files kept, with the live one (kubelet's `containerLogMaxFiles`).
const FILES_MAX: usize = 5;

/// The log of one container.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

/// The unfinished line of one stream.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    held: Vec<u8>,
}

impl Log {
    /// Opens or continues a log; makes its directory.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.into(), file, size, limit: FILE_BYTES_MAX })
    }

    /// Writes what a stream gave: complete lines now, the rest when it is complete, too long, or `ended`.
    pub(crate) fn write(&mut self, stream: &str, lines: &mut Lines, data: &[u8], ended: bool) {
        let mut out = Vec::with_capacity(data.len() + 64);
        let now = format!("{:.9}", jiff::Timestamp::now());
        lines.held.extend_from_slice(data);
        let mut rest = lines.held.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end);
            entry(&mut out, &now, stream, line, true);
            rest = after.get(1..).unwrap_or_default();
        }
        while rest.len() >= LINE_BYTES_MAX {
            let (part, after) = rest.split_at(LINE_BYTES_MAX);
            entry(&mut out, &now, stream, part, false);
            rest = after;
        }
        if ended && !rest.is_empty() {
            entry(&mut out, &now, stream, rest, true);
            rest = &[];
        }
        lines.held = rest.to_vec();
        if self.file.write_all(&out).is_ok() {
            self.size = self.size.saturating_add(u64::try_from(out.len()).unwrap_or(u64::MAX));
        }
        if self.size >= self.limit {
            self.rotate();
        }
    }

    fn rotate(&mut self) {
        let Some(name) = self.path.file_name().map(|name| name.to_string_lossy().into_owned())
        else {
            return;
        };
        let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S.%9f").to_string();
        let _ = fs::rename(&self.path, self.path.with_file_name(format!("{name}.{stamp}")));
        if let Ok(file) = OpenOptions::new().create(true).append(true).open(&self.path) {
            self.file = file;
            self.size = 0;
        }
        let Some(entries) = self.path.parent().and_then(|parent| fs::read_dir(parent).ok()) else {
            return;
        };
        let prefix = format!("{name}.");
        let mut old: Vec<PathBuf> = entries
            .flatten()
            .filter(|one| one.file_name().to_string_lossy().starts_with(&prefix))
            .map(|one| one.path())
            .collect();
        old.sort();
        let surplus = old.len().saturating_sub(FILES_MAX - 1);
        for path in old.into_iter().take(surplus) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Parts of at most [`LINE_BYTES_MAX`], all but the last tagged `P`; the last `F` when the line is complete.
fn entry(out: &mut Vec<u8>, now: &str, stream: &str, line: &[u8], complete: bool) {
    let mut rest = line;
    loop {
        let (part, after) = rest.split_at(rest.len().min(LINE_BYTES_MAX));
        let tag = if complete && after.is_empty() { "F" } else { "P" };
        out.extend_from_slice(format!("{now} {stream} {tag} ").as_bytes());
        out.extend_from_slice(part);
        out.push(b'\n');
        if after.is_empty() {
            return;
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(path: &Path) -> Vec<(String, usize)> {
        let text = fs::read_to_string(path).unwrap();
        let fields = text.lines().map(|line| line.splitn(4, ' ').collect::<Vec<_>>());
        fields.map(|one| (format!("{} {}", one[1], one[2]), one[3].len())).collect()
    }

    #[test]
    fn long_lines_are_partial_and_the_end_is_full() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/0.log");
        let mut log = Log::open(&path).unwrap();
        let mut lines = Lines::default();
        log.write("stdout", &mut lines, b"one\ntw", false);
        log.write("stdout", &mut lines, b"o\n", false);
        log.write("stderr", &mut Lines::default(), &vec![b'x'; LINE_BYTES_MAX + 5], true);
        let expected =
            [("stdout F", 3), ("stdout F", 3), ("stderr P", LINE_BYTES_MAX), ("stderr F", 5)];
        assert_eq!(tags(&path), expected.map(|(tag, len)| (tag.to_owned(), len)));
    }

    #[test]
    fn rotation_keeps_five_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = Log::open(&path).unwrap();
        log.limit = 100;
        let mut lines = Lines::default();
        for _ in 0..40 {
            log.write("stdout", &mut lines, b"0123456789012345678901234567890123456789\n", false);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), FILES_MAX);
    }
}
