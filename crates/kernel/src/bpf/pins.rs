//! The file system in which programs and tables stay while nobody holds them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{BpfError, LINKS, failed};

/// Whether anything is kept at `pins`.
#[must_use]
pub fn is_pinned(pins: &Path) -> bool {
    is_bpffs(pins) && folders(pins).is_ok_and(|folders| !folders.is_empty())
}

/// Takes everything away that is kept at `pins`: programs are detached, tables gone. A file system that was mounted for
/// it goes, too. Nothing there is no error.
///
/// # Errors
/// When something cannot be removed.
pub fn remove(pins: &Path) -> Result<(), BpfError> {
    if !is_bpffs(pins) {
        return Ok(());
    }
    for folder in folders(pins)? {
        remove_folder(&folder)?;
    }
    while is_mounted(pins) {
        let unmounted = umount2(pins, MntFlags::MNT_DETACH).map_err(io::Error::from);
        unmounted.map_err(failed("unmount", pins))?;
    }
    fs::remove_dir(pins).map_err(failed("remove", pins))
}

/// Takes the programs at sockets away. What is at links stays, with all tables.
///
/// # Errors
/// When something cannot be removed.
pub fn stop_connects(pins: &Path) -> Result<(), BpfError> {
    remove_others(pins, LINKS, Path::new(""))
}

/// Makes the folder, with a file system around it that takes pins.
pub(super) fn prepare(pins: &Path) -> Result<(), BpfError> {
    fs::create_dir_all(pins).map_err(failed("make", pins))?;
    if is_bpffs(pins) {
        return Ok(());
    }
    let mounted = mount(Some("rhumb"), pins, Some("bpf"), MsFlags::empty(), Some("mode=0700"));
    mounted.map_err(io::Error::from).map_err(failed("mount a bpf file system at", pins))
}

pub(super) fn make_folder(path: &Path) -> Result<(), BpfError> {
    fs::create_dir_all(path).map_err(failed("make", path))
}

/// Removes the folders whose names begin with `prefix`, but for `kept`.
pub(super) fn remove_others(pins: &Path, prefix: &str, kept: &Path) -> Result<(), BpfError> {
    for folder in folders(pins)?.iter().filter(|folder| *folder != kept) {
        let name = folder.file_name().map(|name| name.to_string_lossy());
        if name.is_some_and(|name| name.starts_with(prefix)) {
            remove_folder(folder)?;
        }
    }
    Ok(())
}

/// The kernel has files of its own beside them.
fn folders(pins: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let entries = fs::read_dir(pins).map_err(failed("read", pins))?;
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}

fn remove_folder(folder: &Path) -> Result<(), BpfError> {
    for entry in fs::read_dir(folder).map_err(failed("read", folder))?.flatten() {
        let path = entry.path();
        fs::remove_file(&path).map_err(failed("remove", &path))?;
    }
    fs::remove_dir(folder).map_err(failed("remove", folder))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// Whether the folder is where a file system begins.
fn is_mounted(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev()).ok();
    is_bpffs(path) && path.parent().and_then(device) != device(path)
}
