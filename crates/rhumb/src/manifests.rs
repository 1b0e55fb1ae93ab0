//! Manifests of files and folders as objects: what `kubectl apply -f` would read.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use plan::explain::{Cluster, Manifests};
use serde_json::Value;

/// What names end with that a folder's manifests have.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// The cluster when the manifests are applied to `base`; `-` is the standard input.
pub(crate) fn over(base: Cluster, paths: &[PathBuf], namespace: &str) -> Result<Cluster> {
    add(Manifests::over(base, namespace), paths)
}

/// The same, when the only node is called `node` should the manifests have none.
pub(crate) fn on_node(
    base: Cluster,
    paths: &[PathBuf],
    namespace: &str,
    node: &str,
) -> Result<Cluster> {
    add(Manifests::over(base, namespace).on_node(node), paths)
}

fn add(mut manifests: Manifests, paths: &[PathBuf]) -> Result<Cluster> {
    for path in paths {
        for file in files(path)? {
            let text = read(&file)?;
            for document in documents(&text) {
                let object: Value = serde_saphyr::from_str(&document)
                    .with_context(|| format!("{} is not YAML", file.display()))?;
                manifests.add(object).with_context(|| format!("{}", file.display()))?;
            }
        }
    }
    Ok(manifests.cluster()?)
}

/// A file itself, or the manifests of a folder in the order of their names.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let file = entry?.path();
        let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if ENDINGS.contains(&ending) && file.is_file() {
            found.push(file);
        }
    }
    found.sort();
    Ok(found)
}

fn read(file: &Path) -> Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The documents of a file, without empty ones.
fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line == "---" || line.starts_with("--- ") {
            documents.push(String::new());
            continue;
        }
        let last = documents.last_mut().expect("there is one from the start");
        last.push_str(line);
        last.push('\n');
    }
    let says = |document: &String| {
        document.lines().any(|line| !line.trim().is_empty() && !line.trim().starts_with('#'))
    };
    documents.into_iter().filter(says).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_apart() {
        let found = documents("# head\n---\na: 1\n---\n# nothing\n---\nb: |\n  x --- y\n");
        assert_eq!(found, ["a: 1\n", "b: |\n  x --- y\n"]);
    }
}
