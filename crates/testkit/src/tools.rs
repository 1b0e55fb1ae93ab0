//! Programs and images that tests need from outside: found, or made once and kept.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{Flock, FlockArg};

/// The repository's root.
#[must_use]
pub fn repository() -> PathBuf {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in crates/");
    crates.parent().expect("crates/ is in the repository").to_owned()
}

/// Where made things are kept between runs: `RHUMB_CACHE`, or a folder of the user's cache.
#[must_use]
pub fn cache() -> PathBuf {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    std::env::var_os("RHUMB_CACHE").map_or_else(|| home.join(".cache/rhumb"), PathBuf::from)
}

/// The kubectls to test with: Debian's, and a current one when `make test` could get it.
#[must_use]
pub fn kubectls() -> Vec<PathBuf> {
    let current = cache().join("kubectl36/kubectl");
    let found =
        [PathBuf::from("/usr/bin/kubectl"), current].into_iter().filter(|path| path.exists());
    found.collect()
}

/// The newest kubectl at hand.
///
/// # Errors
/// When there is none: Debian's package is `kubernetes-client`.
pub fn kubectl() -> Result<PathBuf> {
    kubectls()
        .pop()
        .context("no kubectl is installed; `make test` installs Debian's kubernetes-client")
}

/// The folder of one image of `examples/images`, as an OCI layout; all are built at the first call of a machine.
///
/// # Errors
/// When the images cannot be built or there is none of that name.
pub fn image(name: &str) -> Result<PathBuf> {
    let folder = cache().join("images");
    fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join(".lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let path = folder.join(name);
    if !path.exists() {
        let script = repository().join("examples/images/build.sh");
        let status = Command::new("bash").arg(script).arg(&folder).status()?;
        ensure!(status.success(), "examples/images/build.sh failed");
    }
    ensure!(path.exists(), "examples/images/build.sh makes no image {name:?}");
    Ok(path)
}
