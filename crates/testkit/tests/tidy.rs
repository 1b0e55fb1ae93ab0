//! The house rules that a machine can check: who may depend on whom, what pure crates may use, how long files are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testkit::tools::repository;

/// Which crates of ours each crate may use, besides `api`. A new edge is a change of the architecture.
const MAY_USE: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("net", &[]),
    ("store", &[]),
    ("plan", &["net"]),
    ("client", &[]),
    ("kernel", &["net"]),
    ("runtime", &["kernel"]),
    ("apiserver", &["store", "plan"]),
    ("controllers", &["plan", "client"]),
    ("node", &["net", "plan", "client", "kernel", "runtime"]),
    ("dns", &["plan", "client"]),
    (
        "rhumb",
        &[
            "net",
            "plan",
            "store",
            "client",
            "kernel",
            "runtime",
            "apiserver",
            "controllers",
            "node",
            "dns",
        ],
    ),
    ("testkit", &[]),
];

/// Words that a pure crate's code may not have: runtimes, clocks, randomness, environment, files, hashed order.
const IMPURE: &[&str] = &[
    "tokio::",
    "std::env",
    "std::fs",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "SystemTime::now",
    "Instant::now",
    "Timestamp::now",
    "rand::",
    "HashMap",
    "HashSet",
];

/// The most lines of a file.
const LINES_MAX: usize = 600;

fn metadata() -> Result<Value> {
    let args = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let output = Command::new(env!("CARGO")).args(args).current_dir(repository()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// All Rust files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The code of a file without its tests and comments.
fn code(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path)?;
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn crates_use_only_what_the_architecture_allows() -> Result<()> {
    let metadata = metadata()?;
    let packages = metadata["packages"].as_array().context("cargo lists packages")?;
    let ours: BTreeSet<&str> =
        packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let allowed: BTreeMap<&str, BTreeSet<&str>> = MAY_USE
        .iter()
        .map(|(name, uses)| (*name, uses.iter().copied().chain(["api"]).collect()))
        .collect();
    for package in packages {
        let name = package["name"].as_str().context("a package has a name")?;
        let allowed = allowed
            .get(name)
            .with_context(|| format!("the crate {name} is not in the table of this test"))?;
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            let is_dev = dependency["kind"] == "dev";
            ensure!(
                !ours.contains(used) || is_dev || allowed.contains(used),
                "{name} may not depend on {used}"
            );
        }
    }
    Ok(())
}

#[test]
fn pure_crates_touch_nothing() -> Result<()> {
    for name in ["api", "net", "plan"] {
        for path in sources(&repository().join("crates").join(name).join("src")) {
            if path.file_name().is_some_and(|file| file == "tests.rs") {
                continue;
            }
            let code = code(&path)?;
            for word in IMPURE {
                ensure!(!code.contains(word), "{} uses {word}, but {name} is pure", path.display());
            }
        }
    }
    Ok(())
}

#[test]
fn only_api_names_the_object_library() -> Result<()> {
    for (name, _) in MAY_USE.iter().filter(|(name, _)| *name != "api") {
        for path in sources(&repository().join("crates").join(name).join("src")) {
            ensure!(!code(&path)?.contains("k8s_openapi"), "{} names k8s_openapi", path.display());
        }
    }
    Ok(())
}

#[test]
fn files_are_short_and_say_what_they_are() -> Result<()> {
    for path in sources(&repository().join("crates")) {
        let text = fs::read_to_string(&path)?;
        let shown = path.display();
        ensure!(
            path.file_name().is_none_or(|file| file != "mod.rs"),
            "{shown}: folders are named after their module"
        );
        ensure!(
            text.lines().count() <= LINES_MAX,
            "{shown} has {} lines of {LINES_MAX}",
            text.lines().count()
        );
        ensure!(text.starts_with("//!"), "{shown} does not begin by saying what it is");
    }
    Ok(())
}
