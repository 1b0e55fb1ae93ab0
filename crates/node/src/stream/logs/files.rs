//! The files of one log, read from a line on to the end, over rotations.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::cri::Entry;
use super::siblings;

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;

/// A log at the place up to which it was read.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    /// To be read before the live one, each from a place on.
    old: VecDeque<(File, u64)>,
    live: Option<File>,
}

impl Files {
    /// Opens a log at its `tail`-th line from the end, or at its beginning.
    pub(super) fn open(path: &Path, tail: Option<usize>) -> io::Result<Self> {
        let mut old = VecDeque::new();
        let mut left = tail;
        for (index, sibling) in siblings(path).into_iter().rev().enumerate() {
            if left == Some(0) && index > 0 {
                break;
            }
            let file = match File::open(&sibling) {
                Ok(file) => file,
                Err(error) if index > 0 && error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let mut start = 0;
            if let Some(left) = &mut left {
                let (from, lines) = tail_start(&file, *left)?;
                start = from;
                *left -= lines;
            }
            old.push_front((file, start));
        }
        let mut files = Self { path: path.to_owned(), old, live: None };
        files.next_old()?;
        Ok(files)
    }

    /// The next bytes; none at the end of what there is now.
    pub(super) fn read(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let mut bytes = Vec::new();
            if let Some(live) = &mut self.live {
                live.take(READ_BYTES as u64).read_to_end(&mut bytes)?;
            }
            if !bytes.is_empty() || !(self.next_old()? || self.rotated()?) {
                return Ok(bytes);
            }
        }
    }

    fn next_old(&mut self) -> io::Result<bool> {
        let Some((mut file, start)) = self.old.pop_front() else { return Ok(false) };
        file.seek(SeekFrom::Start(start))?;
        self.live = Some(file);
        Ok(true)
    }

    /// Whether the file that is read was rotated away; then the one after it is next.
    fn rotated(&mut self) -> io::Result<bool> {
        let Some(live) = &self.live else { return Ok(false) };
        let here = live.metadata()?.ino();
        match std::fs::metadata(&self.path) {
            Ok(named) if named.ino() != here => {}
            _ => return Ok(false),
        }
        // More may have been written between the last read and the rename.
        let mut rest = Vec::new();
        let mut live = live.try_clone()?;
        let place = live.stream_position()?;
        if live.by_ref().take(1).read_to_end(&mut rest)? > 0 {
            live.seek(SeekFrom::Start(place))?;
            return Ok(true);
        }
        let mut after: VecDeque<(File, u64)> = VecDeque::new();
        for sibling in siblings(&self.path).into_iter().rev() {
            let Ok(file) = File::open(&sibling) else { continue };
            if file.metadata()?.ino() == here {
                break;
            }
            after.push_front((file, 0));
        }
        self.old = after;
        self.next_old()
    }
}

/// Where the last `lines` lines begin, and how many there are at most that. Parts of a line count as one.
fn tail_start(file: &File, lines: usize) -> io::Result<(u64, usize)> {
    let mut reader = BufReader::with_capacity(READ_BYTES, file);
    let mut starts: VecDeque<u64> = VecDeque::new();
    let (mut place, mut within_line) = (0_u64, false);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        if !within_line {
            starts.push_back(place);
            if starts.len() > lines {
                starts.pop_front();
            }
        }
        within_line = Entry::parse(&line).is_some_and(|entry| entry.partial);
        place += u64::try_from(read).unwrap_or(u64::MAX);
    }
    Ok((starts.front().copied().unwrap_or(place), starts.len()))
}
