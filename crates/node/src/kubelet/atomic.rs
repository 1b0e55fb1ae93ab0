//! Files that appear and change all at once: the `..data` layout of object volumes.
//!
//! Readers see the old set or the new set, never a mixture: the visible names are links through `..data`, which is
//! itself a link that is renamed in one step. Upstream: `pkg/volume/util/atomic_writer.go`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path};

/// The link that the visible names go through.
const DATA: &str = "..data";
/// The link before it takes its place.
const DATA_NEW: &str = "..data_tmp";

/// A file's bytes and permission bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Payload {
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
}

/// Writes `files` (by relative path) below `target`, owned by `group` if given; returns whether anything changed.
///
/// `stamp` names the new set and must differ from those before it.
pub(super) fn write(
    target: &Path,
    files: &BTreeMap<String, Payload>,
    group: Option<u32>,
    stamp: &str,
) -> io::Result<bool> {
    for path in files.keys() {
        check(path)?;
    }
    fs::create_dir_all(target)?;
    let before = fs::read_link(target.join(DATA)).ok();
    if let Some(before) = &before
        && is_same(&target.join(before), files)?
    {
        return Ok(false);
    }
    let set = format!("..{stamp}");
    let root = target.join(&set);
    fs::create_dir(&root)?;
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
    for (path, payload) in files {
        let file = root.join(path);
        let parent = file.parent().expect("a file below the root has a parent");
        fs::create_dir_all(parent)?;
        fs::write(&file, &payload.bytes)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(payload.mode))?;
    }
    if let Some(group) = group {
        own(&root, group, true)?;
    }
    let _ = fs::remove_file(target.join(DATA_NEW));
    symlink(&set, target.join(DATA_NEW))?;
    fs::rename(target.join(DATA_NEW), target.join(DATA))?;
    link_names(target, files)?;
    if let Some(before) = before {
        fs::remove_dir_all(target.join(before))?;
    }
    Ok(true)
}

/// Refuses paths that leave the volume or collide with its own names.
fn check(path: &str) -> io::Result<()> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || path.is_empty() || path.starts_with("..") {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {path:?}")));
    }
    Ok(())
}

fn is_same(root: &Path, files: &BTreeMap<String, Payload>) -> io::Result<bool> {
    let mut count = 0;
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { return Ok(false) };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                count += 1;
            }
        }
    }
    if count != files.len() {
        return Ok(false);
    }
    Ok(files
        .iter()
        .all(|(path, payload)| fs::read(root.join(path)).is_ok_and(|bytes| bytes == payload.bytes)))
}

/// Makes the visible links that are missing and removes those whose file is gone.
fn link_names(target: &Path, files: &BTreeMap<String, Payload>) -> io::Result<()> {
    let first = |path: &str| path.split('/').next().unwrap_or_default().to_owned();
    let mut names: Vec<String> = files.keys().map(|path| first(path)).collect();
    names.dedup();
    for name in &names {
        let link = target.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    for entry in fs::read_dir(target)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !names.contains(&name) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Gives a tree to a group, as `fsGroup` asks: readable (and writable unless `read_only`), new files inherit it.
pub(super) fn own(root: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let meta = fs::symlink_metadata(root)?;
    if meta.is_symlink() {
        return Ok(());
    }
    chown(root, None, Some(group))?;
    let mode = meta.permissions().mode() | if read_only { 0o440 } else { 0o660 };
    let mode = if meta.is_dir() { mode | 0o2110 } else { mode };
    fs::set_permissions(root, fs::Permissions::from_mode(mode))?;
    if meta.is_dir() {
        for entry in fs::read_dir(root)? {
            own(&entry?.path(), group, read_only)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> BTreeMap<String, Payload> {
        let payload = |text: &str| Payload { bytes: text.as_bytes().to_vec(), mode: 0o640 };
        list.iter().map(|(path, text)| ((*path).to_owned(), payload(text))).collect()
    }

    #[test]
    fn a_new_set_replaces_the_old_one_through_one_link() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let first = files(&[("a", "1"), ("sub/b", "2")]);
        assert!(write(root, &first, None, "t1").unwrap());
        assert_eq!(fs::read_link(root.join("..data")).unwrap(), Path::new("..t1"));
        assert_eq!(fs::read_link(root.join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(fs::read_to_string(root.join("sub/b")).unwrap(), "2");
        let mode = fs::metadata(root.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);

        assert!(!write(root, &first, None, "t2").unwrap(), "the same content changes nothing");
        assert!(write(root, &files(&[("a", "3")]), None, "t3").unwrap());
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "3");
        assert!(fs::symlink_metadata(root.join("sub")).is_err());
        assert!(!root.join("..t1").exists());
    }

    #[test]
    fn paths_that_leave_the_volume_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "a/../../x", "..x", ""] {
            assert!(write(dir.path(), &files(&[(path, "")]), None, "t").is_err(), "{path}");
        }
    }
}
