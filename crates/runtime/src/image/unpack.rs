//! Layers unpacked into directories, in overlayfs' form (upstream: containerd's `archive.Apply`).
//!
//! Every entry is made relative to a descriptor of its parent directory, which the kernel resolves inside
//! the root (`openat2`, `RESOLVE_IN_ROOT`): neither `..` nor a symbolic link leads out of it.
#![expect(unsafe_code, reason = "extended attributes and device nodes have no safe call here")]

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{linkat, symlinkat};
use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType};

use crate::error::ImageError;

/// Largest unpacked layer, bytes: a small archive must not fill the disk (a "zip bomb").
const LAYER_BYTES_MAX: u64 = 64 << 30;
/// Prefix of a name that hides one of a lower layer.
const WHITEOUT: &[u8] = b".wh.";
/// Name that hides everything of lower layers in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What an unpacked layer is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Digest of the uncompressed archive.
    pub(crate) diff_id: String,
    /// Its length, bytes.
    pub(crate) bytes: u64,
}

/// Reads through and remembers the digest.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..count).unwrap_or_default());
        self.bytes += u64::try_from(count).unwrap_or(u64::MAX);
        if self.bytes > LAYER_BYTES_MAX {
            return Err(io::Error::other("layer is too large"));
        }
        Ok(count)
    }
}

/// Hexadecimal with prefix.
pub(crate) fn digest_text(hash: Sha256) -> String {
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The archive without its compression.
fn decompressed(file: File) -> Result<Box<dyn Read>, ImageError> {
    let mut reader = BufReader::with_capacity(256 << 10, file);
    let start = io::BufRead::fill_buf(&mut reader)
        .map_err(|error| ImageError::invalid("layer", error.to_string()))?;
    match start {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(reader))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Err(ImageError::invalid("layer", "zstd compression is not supported"))
        }
        _ => Ok(Box::new(reader)),
    }
}

/// Unpacks an archive, compressed or not, into an existing directory.
pub(crate) fn unpack(archive: File, root: &Path) -> Result<Unpacked, ImageError> {
    let hashing = Hashing { inner: decompressed(archive)?, hash: Sha256::new(), bytes: 0 };
    let mut archive = Archive::new(hashing);
    let mut tree = Tree::open(root)?;
    let failed = |error: io::Error| ImageError::invalid("layer", error.to_string());
    for entry in archive.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let name = entry.path().map_err(failed)?.into_owned();
        tree.add(&mut entry, &name).map_err(|why| {
            ImageError::invalid(format!("layer entry {:?}", name.display().to_string()), why)
        })?;
    }
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(failed)?;
    Ok(Unpacked { bytes: rest.bytes, diff_id: digest_text(rest.hash) })
}

/// Makes a directory and those above it, inside a root.
pub(crate) fn make_directory(root: &Path, path: &str) -> nix::Result<()> {
    let opened = File::open(root).map_err(|_| Errno::ENOENT)?;
    let clean = inside(Path::new(path)).ok_or(Errno::EINVAL)?;
    Tree { root: opened.into(), parent: None }.make(&clean).map(drop)
}

/// A directory that is being filled.
struct Tree {
    root: OwnedFd,
    /// The parent used last: entries come in order.
    parent: Option<(PathBuf, OwnedFd)>,
}

/// The parts of a path inside the root; None when it climbs out.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => clean.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

impl Tree {
    fn open(root: &Path) -> Result<Self, ImageError> {
        let opened = File::open(root).map_err(ImageError::store("open", root))?;
        Ok(Self { root: opened.into(), parent: None })
    }

    fn directory(&self, path: &Path) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.root, path, how)
    }

    /// Opens a directory, making what is missing.
    fn make(&self, path: &Path) -> nix::Result<OwnedFd> {
        match self.directory(path) {
            Err(Errno::ENOENT) => {}
            other => return other,
        }
        let parent = self.make(path.parent().unwrap_or(Path::new("")))?;
        let name = path.file_name().ok_or(Errno::EINVAL)?;
        match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        self.directory(path)
    }

    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>, path: &Path) -> Result<(), String> {
        let clean = inside(path).ok_or("path leaves the root")?;
        let Some(name) = clean.file_name().map(OsStr::to_os_string) else {
            return attributes(entry, &self.root, OsStr::new(".")); // the root itself
        };
        let above = clean.parent().unwrap_or(Path::new("")).to_path_buf();
        if self.parent.as_ref().is_none_or(|(path, _)| *path != above) {
            let opened = self.make(&above).map_err(|errno| errno.to_string())?;
            self.parent = Some((above, opened));
        }
        let Some((_, parent)) = &self.parent else { return Ok(()) };
        if name.as_bytes() == OPAQUE {
            return set_xattr(parent, OsStr::new("."), "trusted.overlay.opaque", b"y");
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            let hidden = OsStr::from_bytes(hidden);
            if hidden.is_empty() || hidden == ".." || hidden == "." {
                return Err("invalid whiteout".into());
            }
            clear(parent, hidden)?;
            return mknodat(parent, hidden, SFlag::S_IFCHR, Mode::empty(), 0)
                .map_err(|errno| errno.to_string());
        }
        self.create(entry, parent, &name)?;
        let kind = entry.header().entry_type();
        if kind == EntryType::Directory {
            // A remembered directory may have been replaced by this one.
            let keep = self.parent.as_ref().is_some_and(|(path, _)| !path.starts_with(&clean));
            if !keep {
                self.parent = None;
            }
        }
        Ok(())
    }

    fn create<R: Read>(
        &self,
        entry: &mut Entry<'_, R>,
        parent: &OwnedFd,
        name: &OsStr,
    ) -> Result<(), String> {
        let said = |errno: Errno| errno.to_string();
        let kind = entry.header().entry_type();
        if kind == EntryType::Directory {
            let existing = is_directory(parent, name);
            if !existing {
                clear(parent, name)?;
                mkdirat(parent, name, Mode::from_bits_truncate(0o755)).map_err(said)?;
            }
            return attributes(entry, parent, name);
        }
        let target = entry.link_name().map_err(|error| error.to_string())?;
        let target = target.map(std::borrow::Cow::into_owned);
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                clear(parent, name)?;
                let flags = OFlag::O_WRONLY
                    | OFlag::O_CREAT
                    | OFlag::O_EXCL
                    | OFlag::O_NOFOLLOW
                    | OFlag::O_CLOEXEC;
                let fd =
                    openat(parent, name, flags, Mode::from_bits_truncate(0o600)).map_err(said)?;
                io::copy(entry, &mut File::from(fd)).map_err(|error| error.to_string())?;
                attributes(entry, parent, name)
            }
            EntryType::Symlink => {
                clear(parent, name)?;
                let target = target.ok_or("symbolic link without target")?;
                symlinkat(&target, parent, name).map_err(said)?;
                attributes(entry, parent, name)
            }
            EntryType::Link => {
                let target = inside(&target.ok_or("link without target")?)
                    .ok_or("link target leaves the root")?;
                let file = target.file_name().ok_or("link to the root")?;
                let above =
                    self.directory(target.parent().unwrap_or(Path::new(""))).map_err(said)?;
                if is_directory(&above, file) {
                    return Err("link to a directory".into());
                }
                clear(parent, name)?;
                linkat(&above, file, parent, name, AtFlags::empty()).map_err(said)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                clear(parent, name)?;
                let flag = match kind {
                    EntryType::Char => SFlag::S_IFCHR,
                    EntryType::Block => SFlag::S_IFBLK,
                    _ => SFlag::S_IFIFO,
                };
                let number = |part: io::Result<Option<u32>>| part.ok().flatten().unwrap_or(0);
                let major = number(entry.header().device_major());
                let minor = number(entry.header().device_minor());
                let device = libc::makedev(major, minor);
                mknodat(parent, name, flag, Mode::from_bits_truncate(0o600), device)
                    .map_err(said)?;
                attributes(entry, parent, name)
            }
            EntryType::XGlobalHeader => Ok(()),
            other => Err(format!("unknown type {other:?}")),
        }
    }
}

/// A path that the kernel resolves from a descriptor; its last part must not be followed.
fn beside(parent: &OwnedFd, name: &OsStr) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name)
}

fn is_directory(parent: &OwnedFd, name: &OsStr) -> bool {
    fs::symlink_metadata(beside(parent, name)).is_ok_and(|found| found.is_dir())
}

/// Removes what has the name.
fn clear(parent: &OwnedFd, name: &OsStr) -> Result<(), String> {
    let path = beside(parent, name);
    let removed = match fs::symlink_metadata(&path) {
        Err(_) => Ok(()),
        Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
        Ok(_) => fs::remove_file(&path),
    };
    removed.map_err(|error| error.to_string())
}

/// Owner, mode, times and extended attributes.
fn attributes<R: Read>(
    entry: &mut Entry<'_, R>,
    parent: &OwnedFd,
    name: &OsStr,
) -> Result<(), String> {
    let path = beside(parent, name);
    let text = |error: io::Error| error.to_string();
    let id = |id: io::Result<u64>| id.ok().and_then(|id| u32::try_from(id).ok());
    let (uid, gid) = (id(entry.header().uid()), id(entry.header().gid()));
    std::os::unix::fs::lchown(&path, uid, gid).map_err(text)?;
    for (key, value) in extended(entry) {
        set_xattr(parent, name, &key, &value)?;
    }
    if entry.header().entry_type() != EntryType::Symlink {
        let mode = Mode::from_bits_truncate(entry.header().mode().map_err(text)? & 0o7777);
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(parent, name, flags, Mode::empty()).map_err(|errno| errno.to_string())?;
        set_mode(&fd, mode)?;
    }
    let seconds =
        entry.header().mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0);
    let time = TimeSpec::new(seconds, 0);
    utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)
        .map_err(|errno| errno.to_string())
}

/// Changes the mode of what an `O_PATH` descriptor stands for, which is never a symbolic link here.
fn set_mode(fd: &OwnedFd, mode: Mode) -> Result<(), String> {
    match fchmod(fd.as_fd(), mode) {
        Err(Errno::EBADF) => {
            use std::os::unix::fs::PermissionsExt;
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            fs::set_permissions(path, fs::Permissions::from_mode(mode.bits()))
                .map_err(|error| error.to_string())
        }
        other => other.map_err(|errno| errno.to_string()),
    }
}

/// Extended attributes of an entry, from its PAX records.
fn extended<R: Read>(entry: &mut Entry<'_, R>) -> Vec<(String, Vec<u8>)> {
    let Ok(Some(records)) = entry.pax_extensions() else { return Vec::new() };
    let records = records.flatten();
    let named = records.filter_map(|record| {
        let name = record.key().ok()?.strip_prefix("SCHILY.xattr.")?;
        // Overlay's own marks must not come from an image.
        (!name.starts_with("trusted.")).then(|| (name.to_owned(), record.value_bytes().to_vec()))
    });
    named.collect()
}

fn set_xattr(parent: &OwnedFd, name: &OsStr, key: &str, value: &[u8]) -> Result<(), String> {
    let path = CString::new(beside(parent, name).as_os_str().as_bytes());
    let (Ok(path), Ok(name)) = (path, CString::new(key)) else { return Err("NUL in name".into()) };
    // SAFETY: the strings end with NUL and live through the call; the kernel reads `value.len()` bytes.
    let done = unsafe {
        libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    match (done, Errno::last()) {
        (0, _) | (_, Errno::EOPNOTSUPP) => Ok(()),
        (_, errno) => Err(format!("set attribute {key}: {errno}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Made(tar::Builder<Vec<u8>>);

    impl Made {
        fn new() -> Self {
            Self(tar::Builder::new(Vec::new()))
        }

        /// Writes the name as it is: the builder's own checks would refuse hostile ones.
        fn entry(mut self, name: &str, kind: EntryType, link: &str, data: &str) -> Self {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(data.len().try_into().unwrap());
            header.set_cksum();
            self.0.append(&header, data.as_bytes()).unwrap();
            self
        }

        fn unpack(self, root: &Path) -> Result<Unpacked, ImageError> {
            use std::io::{Seek, Write};
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&self.0.into_inner().unwrap()).unwrap();
            file.rewind().unwrap();
            unpack(file, root)
        }
    }

    #[test]
    fn climbing_paths_are_refused() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("root");
        fs::create_dir(&root).unwrap();
        for (name, kind, link) in [
            ("../evil", EntryType::Regular, ""),
            ("a/../../evil", EntryType::Regular, ""),
            ("hard", EntryType::Link, "../../etc/passwd"),
        ] {
            let refused = Made::new().entry(name, kind, link, "").unpack(&root);
            assert!(refused.unwrap_err().to_string().contains("leaves the root"), "{name}");
        }
        assert_eq!(fs::read_dir(top.path()).unwrap().count(), 1);
    }

    #[test]
    fn symbolic_links_lead_nowhere_outside() {
        let top = tempfile::tempdir().unwrap();
        let (root, outside) = (top.path().join("root"), top.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "safe").unwrap();
        let out = outside.to_string_lossy().into_owned();
        let made = Made::new()
            .entry("up", EntryType::Symlink, "../outside", "")
            .entry("abs", EntryType::Symlink, &out, "")
            .entry("up/file", EntryType::Regular, "", "evil")
            .entry("abs/file", EntryType::Regular, "", "evil")
            .entry("direct", EntryType::Symlink, &format!("{out}/file"), "")
            .entry("direct", EntryType::Regular, "", "replaced")
            .unpack(&root);
        assert!(made.is_ok() || made.unwrap_err().to_string().contains("layer entry"));
        assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "safe");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }

    #[test]
    fn a_link_through_a_symbolic_link_stays_inside() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(top.path().join("secret"), "secret").unwrap();
        let made = Made::new()
            .entry("up", EntryType::Symlink, "..", "")
            .entry("stolen", EntryType::Link, "up/secret", "")
            .unpack(&root);
        assert!(made.is_err());
    }

    #[test]
    fn whiteouts_become_overlay_marks() {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        let root = tempfile::tempdir().unwrap();
        let made = Made::new()
            .entry("dir/.wh.gone", EntryType::Regular, "", "")
            .entry("dir/kept", EntryType::Regular, "", "text")
            .unpack(root.path())
            .unwrap();
        let gone = fs::symlink_metadata(root.path().join("dir/gone")).unwrap();
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
        assert_eq!(fs::read_to_string(root.path().join("dir/kept")).unwrap(), "text");
        assert!(made.diff_id.starts_with("sha256:"));
    }
}
