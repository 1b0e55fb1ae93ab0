//! The Python that has the official Kubernetes client: an environment of its own in the cache.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::tools;

/// The environment's interpreter.
///
/// # Errors
/// When there is none: `tools/install-packages.sh` makes it.
pub fn python() -> Result<PathBuf> {
    let path = tools::cache().join("python/bin/python");
    ensure!(path.exists(), "there is no {}: run `make packages`, which makes it", path.display());
    Ok(path)
}
