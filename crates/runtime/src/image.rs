//! Images: a store of unpacked layers, import, pull (upstream: containerd's content store, snapshotter and resolver).
//!
//! One file describes each image, one directory holds each layer; nothing is kept in memory, so that several
//! agents and the command line share one store. Writers take a lock on a file.

mod import;
mod pull;
mod reference;
mod registry;
mod unpack;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::error::ImageError;
use crate::shim::protocol::RootImage;
pub(crate) use unpack::make_directory;

/// Hexadecimal digits of a digest that name a layer's directory: short, because mount options fit one page.
const LAYER_NAME_DIGITS: usize = 24;
/// Shortest prefix of an id that names an image.
const ID_PREFIX_DIGITS_MIN: usize = 12;

/// User name and password (or identity token) for a registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
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
    /// Bytes of its layers as they came (compressed or not).
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
    pulling: Arc<Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>>,
}

/// Which image a container's root comes from; kept while the container exists.
#[derive(Debug, Serialize, Deserialize)]
struct Use {
    image: String,
    directory: PathBuf,
}

/// The parts of an image's config blob that matter here.
#[derive(Debug, Default, Deserialize)]
struct ConfigBlob {
    #[serde(default)]
    config: Option<ConfigSection>,
    #[serde(default)]
    rootfs: RootSection,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigSection {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    stop_signal: Option<String>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
struct RootSection {
    #[serde(default)]
    diff_ids: Vec<String>,
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
        for part in ["images", "layers", "uses", "tmp"] {
            let path = root.join(part);
            fs::create_dir_all(&path).map_err(ImageError::store("create", &path))?;
        }
        let root = fs::canonicalize(&root).map_err(ImageError::store("open", &root))?;
        Ok(Self { root: Arc::new(root), mirrors: Arc::new(mirrors), pulling: Arc::default() })
    }

    /// Where the store is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The image of a name, a name with digest, an id, or a prefix of an id of 12 digits or more.
    ///
    /// # Errors
    /// When it is not in the store, or the reference is invalid.
    pub fn get(&self, reference: &str) -> Result<Image, ImageError> {
        let all = self.list()?;
        find(&all, reference)?.cloned().ok_or_else(|| ImageError::NotFound(reference.into()))
    }

    /// All images, by id.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let directory = self.root.join("images");
        let entries = fs::read_dir(&directory).map_err(ImageError::store("read", &directory))?;
        let paths = entries.flatten().map(|one| one.path());
        let paths = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
        let texts = paths.filter_map(|path| fs::read(path).ok());
        let mut all: Vec<Image> =
            texts.filter_map(|text| serde_json::from_slice(&text).ok()).collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    /// Removes a name; with the last name, or by id, the image and the layers that no other image has.
    ///
    /// # Errors
    /// When there is none, or a container uses it.
    pub fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let _lock = self.lock()?;
        let mut image = self.get(reference)?;
        let name = Reference::parse(reference).map(|one| one.to_string()).unwrap_or_default();
        let others = image.names.iter().any(|one| *one != name);
        if image.names.contains(&name) && others {
            image.names.retain(|one| *one != name);
            return self.write(&image);
        }
        if let Some(container) = self.user_of(&image.id) {
            return Err(ImageError::InUse { image: reference.into(), container });
        }
        let path = self.image_path(&image.id);
        fs::remove_file(&path).map_err(ImageError::store("remove", &path))?;
        self.sweep()
    }

    /// Removes layers that no image has. The lock is held.
    fn sweep(&self) -> Result<(), ImageError> {
        let kept: BTreeSet<String> = self
            .list()?
            .iter()
            .flat_map(|image| image.layers.iter().map(|one| layer_name(one)))
            .collect();
        let directory = self.root.join("layers");
        let entries = fs::read_dir(&directory).map_err(ImageError::store("read", &directory))?;
        for entry in entries.flatten() {
            if !kept.contains(entry.file_name().to_string_lossy().as_ref()) {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(ImageError::store("remove", &path))?;
            }
        }
        Ok(())
    }

    /// The directory of a container that has the image mounted. Forgets containers that are gone.
    fn user_of(&self, id: &str) -> Option<String> {
        let entries = fs::read_dir(self.root.join("uses")).ok()?;
        let mut found = None;
        for path in entries.flatten().map(|one| one.path()) {
            let text = fs::read(&path).ok()?;
            let Ok(one) = serde_json::from_slice::<Use>(&text) else { continue };
            if !one.directory.exists() {
                let _ = fs::remove_file(&path);
            } else if one.image == id {
                found = one.directory.file_name().map(|name| name.to_string_lossy().into_owned());
            }
        }
        found
    }

    /// Finds an image for a new container and keeps it from being removed.
    pub(crate) fn hold(&self, reference: &str, container: &Path) -> Result<RootImage, ImageError> {
        let _lock = self.lock()?;
        let image = self.get(reference)?;
        fs::create_dir_all(container).map_err(ImageError::store("create", container))?;
        let path = self.use_path(container);
        let one = Use { image: image.id.clone(), directory: container.into() };
        fs::write(&path, serde_json::to_vec(&one).unwrap_or_default())
            .map_err(ImageError::store("write", &path))?;
        Ok(RootImage {
            id: image.id,
            config: image.config,
            layers_dir: self.root.join("layers").to_string_lossy().into_owned(),
            layers: image.layers.iter().map(|one| layer_name(one)).collect(),
        })
    }

    /// The container is gone.
    pub(crate) fn release(&self, container: &Path) {
        let _ = fs::remove_file(self.use_path(container)); // gone already: as wished
    }

    fn use_path(&self, container: &Path) -> PathBuf {
        self.root.join("uses").join(container.file_name().unwrap_or_default())
    }

    fn image_path(&self, id: &str) -> PathBuf {
        self.root.join("images").join(format!("{}.json", id.trim_start_matches("sha256:")))
    }

    fn layer_path(&self, diff_id: &str) -> PathBuf {
        self.root.join("layers").join(layer_name(diff_id))
    }

    /// An exclusive lock among all processes that use the store, until dropped.
    fn lock(&self) -> Result<File, ImageError> {
        let path = self.root.join("lock");
        let file = File::create(&path).map_err(ImageError::store("create", &path))?;
        file.lock().map_err(ImageError::store("lock", &path))?;
        Ok(file)
    }

    fn write(&self, image: &Image) -> Result<(), ImageError> {
        let path = self.image_path(&image.id);
        let fresh = path.with_extension("new");
        let text = serde_json::to_vec(image).unwrap_or_default();
        fs::write(&fresh, text).map_err(ImageError::store("write", &fresh))?;
        fs::rename(&fresh, &path).map_err(ImageError::store("write", &path))
    }

    /// A file or directory name for work in progress.
    fn temporary(&self) -> PathBuf {
        use std::sync::atomic::{AtomicU64, Ordering};
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        self.root.join("tmp").join(format!("{}-{number}", std::process::id()))
    }

    /// Unpacks a layer unless the store has it; checks its digest.
    fn add_layer(&self, archive: &Path, diff_id: &str) -> Result<(), ImageError> {
        let target = self.layer_path(diff_id);
        if target.exists() {
            return Ok(());
        }
        let work = self.temporary();
        fs::create_dir_all(&work).map_err(ImageError::store("create", &work))?;
        let unpacked = File::open(archive)
            .map_err(ImageError::store("open", archive))
            .and_then(|file| unpack::unpack(file, &work))
            .and_then(|unpacked| match unpacked.diff_id == diff_id {
                true => Ok(()),
                false => Err(ImageError::invalid(
                    format!("layer {diff_id}"),
                    format!("its content has digest {}", unpacked.diff_id),
                )),
            });
        let moved = unpacked.and_then(|()| match fs::rename(&work, &target) {
            Err(_) if target.exists() => Ok(()), // another process was faster
            other => other.map_err(ImageError::store("write", &target)),
        });
        let _ = fs::remove_dir_all(&work);
        moved
    }

    /// Enters an image whose layers are there, and gives it the names. Returns None when a layer
    /// was removed meanwhile.
    fn commit(&self, mut image: Image) -> Result<Option<Image>, ImageError> {
        let _lock = self.lock()?;
        if !image.layers.iter().all(|one| self.layer_path(one).exists()) {
            return Ok(None);
        }
        for mut other in self.list()? {
            if other.id == image.id {
                image.names.extend(other.names);
                image.digests.extend(other.digests);
            } else if other.names.iter().any(|name| image.names.contains(name)) {
                other.names.retain(|name| !image.names.contains(name));
                self.write(&other)?;
            }
        }
        for list in [&mut image.names, &mut image.digests] {
            list.sort();
            list.dedup();
        }
        self.write(&image)?;
        Ok(Some(image))
    }
}

impl Image {
    /// From a config blob and its digest; without names.
    fn from_config(id: &str, blob: &[u8]) -> Result<Self, ImageError> {
        let parsed: ConfigBlob = serde_json::from_slice(blob)
            .map_err(|error| ImageError::invalid(format!("config {id}"), error.to_string()))?;
        let section = parsed.config.unwrap_or_default();
        for diff_id in &parsed.rootfs.diff_ids {
            if reference::valid_digest(diff_id).is_none() {
                return Err(ImageError::invalid(format!("config {id}"), "malformed diff_ids"));
            }
        }
        let keys = |map: Option<BTreeMap<String, serde_json::Value>>| {
            map.unwrap_or_default().into_keys().collect()
        };
        let config = ImageConfig {
            env: section.env.unwrap_or_default(),
            entrypoint: section.entrypoint.unwrap_or_default(),
            cmd: section.cmd.unwrap_or_default(),
            user: section.user.unwrap_or_default(),
            working_dir: section.working_dir.unwrap_or_default(),
            exposed_ports: keys(section.exposed_ports),
            stop_signal: section.stop_signal.unwrap_or_default(),
            volumes: keys(section.volumes),
            labels: section.labels.unwrap_or_default(),
        };
        Ok(Self { id: id.into(), config, layers: parsed.rootfs.diff_ids, ..Self::default() })
    }
}

fn layer_name(diff_id: &str) -> String {
    diff_id.trim_start_matches("sha256:").chars().take(LAYER_NAME_DIGITS).collect()
}

fn find<'a>(all: &'a [Image], reference: &str) -> Result<Option<&'a Image>, ImageError> {
    let hex = reference.trim_start_matches("sha256:");
    let is_id = hex.len() >= ID_PREFIX_DIGITS_MIN && hex.chars().all(|c| c.is_ascii_hexdigit());
    if is_id {
        let by_id = |image: &&Image| image.id.trim_start_matches("sha256:").starts_with(hex);
        if let Some(found) = all.iter().find(by_id) {
            return Ok(Some(found));
        }
        if reference.starts_with("sha256:") {
            return Ok(None);
        }
    }
    let parsed = Reference::parse(reference)?;
    let Some(digest) = &parsed.digest else {
        let name = parsed.to_string();
        return Ok(all.iter().find(|image| image.names.contains(&name)));
    };
    let named = format!("{}@{digest}", parsed.name());
    Ok(all.iter().find(|image| image.digests.contains(&named)))
}
