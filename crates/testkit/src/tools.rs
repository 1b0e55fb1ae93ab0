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

/// A kubectl to test with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubectl {
    /// Its version, `1.20`.
    pub version: String,
    /// Where it is.
    pub path: PathBuf,
}

impl Kubectl {
    /// The number after `1.`: 20.
    #[must_use]
    pub fn minor(&self) -> u32 {
        self.version.rsplit('.').next().and_then(|minor| minor.parse().ok()).unwrap_or_default()
    }

    /// The one at `path`, asked for its version; none when there is nothing or it does not say.
    fn at(path: PathBuf) -> Option<Self> {
        let output =
            Command::new(&path).args(["version", "--client", "-o", "json"]).output().ok()?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let text = answer["clientVersion"]["gitVersion"].as_str()?;
        let mut parts = text.trim_start_matches('v').split('.');
        Some(Self { version: format!("{}.{}", parts.next()?, parts.next()?), path })
    }
}

/// The kubectls to test with, oldest first, one for each version: Debian's, the machine's own, a current one.
///
/// # Errors
/// When Debian's (1.20) or the current one (1.36) is missing: both are what `make packages` fetches.
pub fn kubectls() -> Result<Vec<Kubectl>> {
    let paths = [
        cache().join("kubectl20/kubectl"),
        PathBuf::from("/usr/bin/kubectl"),
        cache().join("kubectl36/kubectl"),
    ];
    let mut found: Vec<Kubectl> = paths.into_iter().filter_map(Kubectl::at).collect();
    found.sort_by_key(Kubectl::minor);
    found.dedup_by_key(|kubectl| kubectl.minor());
    for wanted in [20, 36] {
        ensure!(
            found.iter().any(|kubectl| kubectl.minor() == wanted),
            "there is no kubectl 1.{wanted}: run `make packages`, which fetches it"
        );
    }
    Ok(found)
}

/// The newest kubectl at hand.
///
/// # Errors
/// When there is none: Debian's package is `kubernetes-client`.
pub fn kubectl() -> Result<PathBuf> {
    let current = cache().join("kubectl36/kubectl");
    [current, PathBuf::from("/usr/bin/kubectl")]
        .into_iter()
        .find(|path| path.exists())
        .context("no kubectl is installed; `make packages` fetches one")
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
