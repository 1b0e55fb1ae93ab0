//! A program and the libraries without which it does not run.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

/// Where programs are that only root runs.
const FOLDERS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/bin"];

/// A program by its name.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// The libraries that executables are linked with, and the loader; none where they are static.
pub(super) fn libraries(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").args(paths).output().context("ldd does not run")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let named = text.lines().filter_map(|line| {
        let place = line.rsplit_once("=> ").map_or(line, |(_, place)| place);
        let place = place.split_whitespace().next()?;
        // A line that ends with a colon says whose libraries follow.
        let is_library = place.starts_with('/') && !place.ends_with(':');
        is_library.then(|| PathBuf::from(place))
    });
    Ok(named.collect())
}
