//! Network namespaces held by a bind mount, as `ip netns` holds them; no process has to stay in them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Where `ip netns` looks for namespaces by name.
pub const NAMED: &str = "/run/netns";

/// Why a namespace could not be made, entered or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the network namespace {path}")]
pub struct NetnsError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> NetnsError {
    let path = path.to_owned();
    move |source| NetnsError { action, path, source: source.into() }
}

/// The path of a namespace that `ip netns` knows by `name`.
#[must_use]
pub fn named(name: &str) -> PathBuf {
    Path::new(NAMED).join(name)
}

/// Makes an empty network namespace at `path` (a file that is made for it). One that is already there is kept.
///
/// # Errors
/// When the mount or the unshare is refused; needs CAP_SYS_ADMIN.
pub fn create(path: &Path) -> Result<(), NetnsError> {
    if exists(path) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("make the folder of", path))?;
    }
    File::create(path).map_err(failed("make the file of", path))?;
    let target = path.to_owned();
    let thread = thread::spawn(move || -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(
            Some("/proc/thread-self/ns/net"),
            &target,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
    });
    thread.join().expect("the thread does not panic").map_err(failed("make", path))
}

/// Whether a namespace is mounted at `path`.
#[must_use]
pub fn exists(path: &Path) -> bool {
    nix::sys::statfs::statfs(path)
        .is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

/// Removes the namespace at `path`; it ends when the last process has left it. One that is gone is no error.
///
/// # Errors
/// When the mount is held by somebody without permission to detach it.
pub fn delete(path: &Path) -> Result<(), NetnsError> {
    while exists(path) {
        umount2(path, MntFlags::MNT_DETACH).map_err(failed("unmount", path))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove the file of", path)(error))
        }
        _ => Ok(()),
    }
}

/// Moves the calling thread into the namespace at `path`. Threads started afterwards follow.
///
/// # Errors
/// When there is no namespace at `path`.
pub fn enter(path: &Path) -> Result<(), NetnsError> {
    let file = File::open(path).map_err(failed("open", path))?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(failed("enter", path))
}

/// Runs `work` on a thread of its own inside the namespace at `path`. Sockets made there stay there.
///
/// # Errors
/// When there is no namespace at `path`.
pub fn within<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| enter(path).map(|()| work()));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
