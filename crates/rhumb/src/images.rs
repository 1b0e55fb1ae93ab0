//! `rhumb images`: what the cluster's nodes can run without a registry.

use anyhow::{Context as _, Result, ensure};
use runtime::ImageStore;

use crate::cli::{ImagesCommand, Which};
use crate::cluster::Cluster;
use crate::progress::say;

/// Runs the command.
pub(crate) fn run(which: &Which, command: &ImagesCommand) -> Result<()> {
    let cluster = Cluster::existing(&which.data_dir, &which.name)?;
    let store = ImageStore::open(cluster.images_dir(), std::collections::BTreeMap::new())?;
    match command {
        ImagesCommand::Import { paths, reference } => {
            ensure!(
                reference.is_none() || paths.len() == 1,
                "--as names one image, but {} paths are given",
                paths.len()
            );
            let names: Vec<String> = reference.iter().cloned().collect();
            for path in paths {
                let images = store
                    .import(path, &names)
                    .with_context(|| format!("cannot import {}", path.display()))?;
                for image in images {
                    say(format!("imported {}", image.names.join(", ")));
                }
            }
        }
        ImagesCommand::List => {
            let images = store.list()?;
            let rows = images.iter().flat_map(|image| {
                image.names.iter().map(move |name| (name.clone(), &image.id, image.size_bytes))
            });
            let mut rows: Vec<[String; 3]> =
                rows.map(|(name, id, size)| [name, short(id), megabytes(size)]).collect();
            rows.sort();
            crate::status::table(&["IMAGE", "ID", "SIZE"], &rows);
        }
        ImagesCommand::Rm { references } => {
            for reference in references {
                store.remove(reference).with_context(|| format!("cannot remove {reference}"))?;
                say(format!("removed {reference}"));
            }
        }
    }
    Ok(())
}

fn short(id: &str) -> String {
    id.trim_start_matches("sha256:").chars().take(12).collect()
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
}
