//! Pulling: resolve, download what is missing, unpack, enter (upstream: containerd's `Client.Pull`).

use std::fs;
use std::sync::{Arc, PoisonError};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::reference::valid_digest;
use super::registry::{Descriptor, Failure, Index, Manifest, Repository, is_index, pick};
use super::{Credentials, Image, ImageStore, Reference};
use crate::error::ImageError;

/// Layers downloaded at a time (containerd's `max_concurrent_downloads`).
const DOWNLOADS_MAX: usize = 3;
/// Depth of indexes inside indexes.
const INDEX_DEPTH_MAX: usize = 4;

impl ImageStore {
    /// Pulls an image and gives it the name. Pulls of one name go one after the other, so that the later
    /// ones find everything there.
    ///
    /// # Errors
    /// In containerd's words, such as `failed to pull and unpack image "docker.io/library/nope:latest":
    /// failed to resolve reference "docker.io/library/nope:latest": docker.io/library/nope:latest: not found`.
    pub async fn pull(
        &self,
        reference: &str,
        credentials: Option<&Credentials>,
    ) -> Result<Image, ImageError> {
        let parsed = Reference::parse(reference)?;
        let name = parsed.to_string();
        let turn = {
            let mut all = self.pulling.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, one| Arc::strong_count(one) > 1);
            Arc::clone(all.entry(name.clone()).or_default())
        };
        let _held = turn.lock().await;
        let mirror = self.mirrors.get(&parsed.registry);
        let repository = Arc::new(Repository::new(&parsed, mirror, credentials));
        self.fetch(&parsed, &repository).await.map_err(|failure| match failure {
            Step::Store(error) => error,
            Step::Pull(cause, not_found) => ImageError::Pull { reference: name, cause, not_found },
        })
    }

    async fn fetch(
        &self,
        reference: &Reference,
        repository: &Arc<Repository>,
    ) -> Result<Image, Step> {
        let name = reference.to_string();
        let wanted = reference.digest.as_ref().or(reference.tag.as_ref());
        let wanted = wanted.map_or("latest", String::as_str);
        let resolve = |failure| resolve_words(&name, failure);
        let (mut kind, mut document, top) = repository.manifest(wanted).await.map_err(resolve)?;
        for _ in 0..INDEX_DEPTH_MAX {
            if !is_index(&kind, &document) {
                break;
            }
            let index: Index = parse(&document)?;
            let found = pick(&index).ok_or_else(|| no_match(&name))?.digest.clone();
            (kind, document, _) = repository.manifest(&found).await.map_err(copy_words)?;
        }
        let manifest: Manifest = parse(&document)?;
        let config = &manifest.config.digest;
        if valid_digest(config).is_none() {
            return Err(Step::Pull("malformed manifest".into(), false));
        }
        let blob = repository.blob(config).await.map_err(copy_words)?;
        let mut image = Image::from_config(config, &blob).map_err(Step::Store)?;
        if image.layers.len() != manifest.layers.len() {
            return Err(Step::Pull("layers and diff_ids differ in number".into(), false));
        }
        if reference.tag.is_some() && reference.digest.is_none() {
            image.names = vec![name.clone()];
        }
        image.digests = vec![format!("{}@{top}", reference.name())];
        image.size_bytes = manifest.layers.iter().map(|one| one.size).sum();
        self.layers(repository, &manifest.layers, &image.layers).await?;
        let store = self.clone();
        let committed = tokio::task::spawn_blocking(move || store.commit(image)).await;
        let committed = committed.map_err(|error| Step::Pull(error.to_string(), false))?;
        let removed = || Step::Pull("its layers were removed meanwhile".into(), false);
        committed.map_err(Step::Store)?.ok_or_else(removed)
    }

    /// Downloads and unpacks the layers that are missing, a few at a time.
    async fn layers(
        &self,
        repository: &Arc<Repository>,
        layers: &[Descriptor],
        diff_ids: &[String],
    ) -> Result<(), Step> {
        let permits = Arc::new(Semaphore::new(DOWNLOADS_MAX));
        let mut tasks = JoinSet::new();
        for (layer, diff_id) in layers.iter().cloned().zip(diff_ids.iter().cloned()) {
            if self.layer_path(&diff_id).exists() {
                continue;
            }
            if valid_digest(&layer.digest).is_none() {
                return Err(Step::Pull("malformed manifest".into(), false));
            }
            let (store, repository) = (self.clone(), Arc::clone(repository));
            let permits = Arc::clone(&permits);
            tasks.spawn(async move {
                let _permit = permits.acquire().await;
                let path = store.temporary();
                let done = match repository.download(&layer, &path).await {
                    Ok(()) => {
                        let path = path.clone();
                        let unpacked =
                            tokio::task::spawn_blocking(move || store.add_layer(&path, &diff_id));
                        match unpacked.await {
                            Ok(done) => done.map_err(Step::Store),
                            Err(error) => Err(Step::Pull(error.to_string(), false)),
                        }
                    }
                    Err(failure) => Err(copy_words(failure)),
                };
                let _ = fs::remove_file(&path);
                done
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.map_err(|error| Step::Pull(error.to_string(), false))??;
        }
        Ok(())
    }
}

/// What stopped a pull.
enum Step {
    Store(ImageError),
    /// Cause, and whether there is no such image or no access.
    Pull(String, bool),
}

/// containerd's words for a failure to find the image.
fn resolve_words(name: &str, failure: Failure) -> Step {
    let (why, not_found) = match failure {
        Failure::NotFound => (format!("{name}: not found"), true),
        Failure::Denied(said) => (
            format!(
                "pull access denied, repository does not exist or may require authorization: \
                 server message: {said}"
            ),
            true,
        ),
        Failure::Other(why) => (why, false),
    };
    Step::Pull(format!("failed to resolve reference {name:?}: {why}"), not_found)
}

/// containerd's words for a failure to copy content.
fn copy_words(failure: Failure) -> Step {
    let why = match failure {
        Failure::NotFound => "not found".into(),
        Failure::Denied(why) | Failure::Other(why) => why,
    };
    Step::Pull(format!("failed to copy: {why}"), false)
}

fn no_match(name: &str) -> Step {
    let why = format!("no match for platform in manifest: not found: {name}");
    Step::Pull(why, true)
}

fn parse<T: serde::de::DeserializeOwned>(document: &[u8]) -> Result<T, Step> {
    serde_json::from_slice(document)
        .map_err(|error| Step::Pull(format!("malformed manifest: {error}"), false))
}
