//! Images from files: OCI layouts and archives of `docker save` (upstream: containerd's `images/archive`).

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::reference::valid_digest;
use super::registry::{Descriptor, Index, Manifest, is_index, pick};
use super::unpack::{digest_text, unpack};
use super::{Image, ImageStore, Reference};
use crate::error::ImageError;

/// Depth of indexes inside indexes.
const INDEX_DEPTH_MAX: usize = 4;
/// How often an import starts over when another process removes its layers meanwhile.
const TRIES_MAX: usize = 3;

/// One entry of `manifest.json`, as `docker save` writes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl ImageStore {
    /// Imports an OCI layout (directory or tar) or an archive of `docker save`, under the names found in it,
    /// or under `names` when that is not empty. Blocks: call it from a blocking thread.
    ///
    /// # Errors
    /// When the archive is invalid or has no name and none is given.
    pub fn import(&self, path: &Path, names: &[String]) -> Result<Vec<Image>, ImageError> {
        let names = names
            .iter()
            .map(|name| Reference::parse(name).map(|one| one.to_string()))
            .collect::<Result<Vec<_>, _>>()?;
        let found = fs::metadata(path).map_err(ImageError::store("open", path))?;
        if found.is_dir() {
            return self.import_directory(path, &names);
        }
        let work = self.temporary();
        fs::create_dir_all(&work).map_err(ImageError::store("create", &work))?;
        let imported = File::open(path)
            .map_err(ImageError::store("open", path))
            .and_then(|file| unpack(file, &work))
            .and_then(|_| self.import_directory(&work, &names));
        let _ = fs::remove_dir_all(&work);
        imported
    }

    fn import_directory(&self, root: &Path, names: &[String]) -> Result<Vec<Image>, ImageError> {
        let images = if inner_path(root, "index.json").is_ok_and(|path| path.exists()) {
            self.import_layout(root, names)?
        } else if inner_path(root, "manifest.json").is_ok_and(|path| path.exists()) {
            self.import_docker(root, names)?
        } else {
            let what = root.display().to_string();
            return Err(ImageError::invalid(what, "neither index.json nor manifest.json"));
        };
        if images.is_empty() {
            return Err(ImageError::invalid(
                root.display().to_string(),
                "no image for this platform",
            ));
        }
        Ok(images)
    }

    fn import_layout(&self, root: &Path, names: &[String]) -> Result<Vec<Image>, ImageError> {
        let index: Index = parse(&read(root, "index.json")?, "index.json")?;
        let mut images = Vec::new();
        for descriptor in &index.manifests {
            let found =
                if names.is_empty() { descriptor_names(descriptor)? } else { names.to_vec() };
            let Some((manifest, digest)) = manifest(root, descriptor, 0)? else { continue };
            let image_names = if found.is_empty() {
                let why = "the layout names no image: give a name";
                return Err(ImageError::invalid(descriptor.digest.clone(), why));
            } else {
                found
            };
            let blob = read_blob(root, &manifest.config.digest)?;
            let mut image = Image::from_config(&manifest.config.digest, &blob)?;
            image.names = image_names;
            image.digests = image
                .names
                .iter()
                .filter_map(|name| Reference::parse(name).ok())
                .map(|name| format!("{}@{digest}", name.name()))
                .collect();
            image.size_bytes = manifest.layers.iter().map(|one| one.size).sum();
            let paths = manifest.layers.iter().map(|one| blob_path(root, &one.digest));
            images.push(self.add(image, &paths.collect::<Result<Vec<_>, _>>()?)?);
        }
        Ok(images)
    }

    fn import_docker(&self, root: &Path, names: &[String]) -> Result<Vec<Image>, ImageError> {
        let entries: Vec<DockerEntry> = parse(&read(root, "manifest.json")?, "manifest.json")?;
        let mut images = Vec::new();
        for entry in entries {
            let tags = entry.repo_tags.unwrap_or_default();
            let tags = tags.iter().map(|tag| Reference::parse(tag).map(|one| one.to_string()));
            let tags = tags.collect::<Result<Vec<_>, _>>()?;
            let blob = read(root, &entry.config)?;
            let mut hash = Sha256::new();
            hash.update(&blob);
            let mut image = Image::from_config(&digest_text(hash), &blob)?;
            image.names = if names.is_empty() { tags } else { names.to_vec() };
            if image.names.is_empty() {
                let why = "the archive names no image: give a name";
                return Err(ImageError::invalid(entry.config, why));
            }
            let paths = entry.layers.iter().map(|layer| inner_path(root, layer));
            let paths = paths.collect::<Result<Vec<_>, _>>()?;
            let sizes = paths.iter().filter_map(|path| fs::metadata(path).ok());
            image.size_bytes = sizes.map(|found| found.len()).sum();
            images.push(self.add(image, &paths)?);
        }
        Ok(images)
    }

    /// Unpacks the layers and enters the image.
    fn add(&self, image: Image, archives: &[PathBuf]) -> Result<Image, ImageError> {
        if archives.len() != image.layers.len() {
            return Err(ImageError::invalid(image.id, "layers and diff_ids differ in number"));
        }
        for _ in 0..TRIES_MAX {
            for (archive, diff_id) in archives.iter().zip(&image.layers) {
                self.add_layer(archive, diff_id)?;
            }
            if let Some(image) = self.commit(image.clone())? {
                return Ok(image);
            }
        }
        Err(ImageError::invalid(image.id, "its layers were removed meanwhile"))
    }
}

/// Names that a layout gives an image: containerd's annotation, or a full reference in the standard one.
fn descriptor_names(descriptor: &Descriptor) -> Result<Vec<String>, ImageError> {
    let annotations = &descriptor.annotations;
    let full = annotations.get("io.containerd.image.name");
    let name = annotations.get("org.opencontainers.image.ref.name");
    match full.or(name) {
        Some(name) => Ok(vec![Reference::parse(name)?.to_string()]),
        None => Ok(Vec::new()),
    }
}

/// The manifest that a descriptor leads to on this platform, with its digest.
fn manifest(
    root: &Path,
    descriptor: &Descriptor,
    depth: usize,
) -> Result<Option<(Manifest, String)>, ImageError> {
    let blob = read_blob(root, &descriptor.digest)?;
    if is_index(&descriptor.media_type, &blob) {
        let index: Index = parse(&blob, &descriptor.digest)?;
        return match pick(&index) {
            Some(inner) if depth < INDEX_DEPTH_MAX => manifest(root, inner, depth + 1),
            _ => Ok(None),
        };
    }
    Ok(Some((parse(&blob, &descriptor.digest)?, descriptor.digest.clone())))
}

/// A file of an archive, which must lie inside it.
fn inner_path(root: &Path, name: &str) -> Result<PathBuf, ImageError> {
    let path = root.join(name.trim_start_matches('/'));
    let real = match fs::canonicalize(&path) {
        Ok(real) => real,
        Err(error) => return Err(ImageError::store("open", &path)(error)),
    };
    let top = fs::canonicalize(root).map_err(ImageError::store("open", root))?;
    if !real.starts_with(top) {
        return Err(ImageError::invalid(name, "path leaves the archive"));
    }
    Ok(real)
}

fn blob_path(root: &Path, digest: &str) -> Result<PathBuf, ImageError> {
    let digest = valid_digest(digest).ok_or_else(|| ImageError::invalid(digest, "not a digest"))?;
    inner_path(root, &format!("blobs/{}", digest.replace(':', "/")))
}

fn read(root: &Path, name: &str) -> Result<Vec<u8>, ImageError> {
    let path = inner_path(root, name)?;
    fs::read(&path).map_err(ImageError::store("read", &path))
}

fn read_blob(root: &Path, digest: &str) -> Result<Vec<u8>, ImageError> {
    let path = blob_path(root, digest)?;
    let blob = fs::read(&path).map_err(ImageError::store("read", &path))?;
    let mut hash = Sha256::new();
    hash.update(&blob);
    let found = digest_text(hash);
    if found != digest {
        let why = format!("its content has digest {found}");
        return Err(ImageError::invalid(format!("blob {digest}"), why));
    }
    Ok(blob)
}

fn parse<T: serde::de::DeserializeOwned>(blob: &[u8], what: &str) -> Result<T, ImageError> {
    serde_json::from_slice(blob).map_err(|error| ImageError::invalid(what, error.to_string()))
}
