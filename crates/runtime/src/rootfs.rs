//! A container's root file system: an overlay of the image's layers (upstream: containerd's overlayfs snapshotter).

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Where the overlay is mounted, in a container's directory.
const ROOT_DIR: &str = "rootfs";

/// Mounts the layers (lowest first, names in `layers_dir`) below `directory`; returns the root.
///
/// The process's working directory is changed meanwhile: mount options fit one page only, so that
/// layers are named relative to it.
pub(crate) fn mount_layers(
    directory: &Path,
    layers_dir: &Path,
    layers: &[String],
) -> Result<PathBuf, String> {
    let root = directory.join(ROOT_DIR);
    let make = |path: &Path| {
        fs::create_dir_all(path).map_err(|error| format!("create {}: {error}", path.display()))
    };
    make(&root)?;
    match overlay(directory, &root, layers_dir, layers, directory) {
        Err(Errno::EINVAL) => {
            // The file system below cannot hold an overlay's upper part (it is an overlay itself):
            // keep the container's changes in memory.
            let scratch = directory.join("scratch");
            make(&scratch)?;
            let tmpfs =
                mount(Some("scratch"), &scratch, Some("tmpfs"), MsFlags::empty(), None::<&str>);
            tmpfs.map_err(|errno| format!("mount {}: {errno}", scratch.display()))?;
            overlay(directory, &root, layers_dir, layers, &scratch).map_err(|errno| {
                let _ = umount2(&scratch, MntFlags::MNT_DETACH);
                format!("mount overlay of {} layers at {}: {errno}", layers.len(), root.display())
            })?;
        }
        other => other.map_err(|errno| {
            format!("mount overlay of {} layers at {}: {errno}", layers.len(), root.display())
        })?,
    }
    Ok(root)
}

fn overlay(
    directory: &Path,
    root: &Path,
    layers_dir: &Path,
    layers: &[String],
    writable: &Path,
) -> Result<(), Errno> {
    let (upper, work, empty) =
        (writable.join("upper"), writable.join("work"), directory.join("empty"));
    for path in [&upper, &work, &empty] {
        fs::create_dir_all(path).map_err(|_| Errno::EIO)?;
    }
    let mut lower: Vec<&str> = layers.iter().rev().map(String::as_str).collect();
    let empty = empty.to_string_lossy();
    if lower.is_empty() {
        lower.push(&empty);
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        upper.display(),
        work.display()
    );
    let before = std::env::current_dir().ok();
    nix::unistd::chdir(layers_dir)?;
    let mounted =
        mount(Some("overlay"), root, Some("overlay"), MsFlags::empty(), Some(options.as_str()));
    let _ = nix::unistd::chdir(before.as_deref().unwrap_or(Path::new("/")));
    mounted
}

/// Unmounts everything at and below a directory, innermost first.
pub(crate) fn unmount_below(directory: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut below: Vec<PathBuf> =
        points.map(PathBuf::from).filter(|point| point.starts_with(directory)).collect();
    below.reverse();
    for point in below {
        if let Err(errno) = umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            tracing::warn!(path = %point.display(), error = %errno, "not unmounted");
        }
    }
}

/// Undoes the octal escapes of mountinfo.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}
