//! A `newc` archive, which the kernel unpacks into its first file system. Format: the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;

/// Files, links and the folders that they are in.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    pub(super) fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        self.folders_of(path);
        self.entry(path, FILE | mode, bytes);
    }

    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.folders_of(path);
        self.entry(path, LINK, target.as_bytes());
    }

    pub(super) fn write(mut self, path: &Path) -> Result<()> {
        self.entry("TRAILER!!!", 0, &[]);
        Ok(std::fs::write(path, &self.bytes)?)
    }

    /// A folder comes before what is in it.
    fn folders_of(&mut self, path: &str) {
        for (at, _) in path.match_indices('/').filter(|(at, _)| *at > 0) {
            let folder = &path[..at];
            if self.folders.insert(folder.to_owned()) {
                self.entry(folder, FOLDER, &[]);
            }
        }
    }

    fn entry(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        self.entries += 1;
        let name = path.trim_start_matches('/');
        let len = u32::try_from(bytes.len()).expect("a file is below 4 GiB");
        let name_len = u32::try_from(name.len() + 1).expect("a path is short");
        let fields = [self.entries, mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
