//! Makes, updates and takes down the volumes of a pod. Upstream: `pkg/volume/*` and the volume manager.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use api::Kind;
use api::core::{
    EmptyDirVolumeSource, HostPathVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod,
    Volume,
};
use client::Client;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use plan::pods::env::{Sources, Subject};
use plan::pods::volumes::{Content, files, is_object_volume};

use super::atomic::{self, Payload};
use super::paths::Paths;
use super::tokens::Tokens;

/// Volumes whose directory the agent makes itself when the provisioner has marked them so.
const LOCAL_PROVISIONER: &str = "rhumb.dev/local";

/// What making volumes needs.
pub(super) struct Mounter<'a> {
    pub(super) client: &'a Client,
    pub(super) paths: &'a Paths,
    pub(super) tokens: &'a Tokens,
    pub(super) subject: Subject<'a>,
    pub(super) sources: &'a Sources,
}

/// Host directories of a pod's volumes by name.
pub(super) type Mounted = BTreeMap<String, PathBuf>;

impl Mounter<'_> {
    fn pod(&self) -> &Pod {
        self.subject.pod
    }

    fn group(&self) -> Option<u32> {
        let context = self.pod().spec.as_ref()?.security_context.as_ref()?;
        u32::try_from(context.fs_group?).ok()
    }

    /// Makes every volume. Idempotent. An error is the message of a `FailedMount` event.
    pub(super) async fn mount_all(&self) -> Result<Mounted, String> {
        let mut mounted = Mounted::new();
        let volumes = self.pod().spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        for volume in volumes {
            let path = self.mount_one(volume).await.map_err(|error| {
                format!("MountVolume.SetUp failed for volume {:?} : {error}", volume.name)
            })?;
            mounted.insert(volume.name.clone(), path);
        }
        Ok(mounted)
    }

    /// Writes the object volumes again, where their objects changed.
    pub(super) async fn refresh(&self) -> Result<(), String> {
        let volumes = self.pod().spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        for volume in volumes.filter(|volume| is_object_volume(volume)) {
            self.mount_one(volume).await?;
        }
        Ok(())
    }

    async fn mount_one(&self, volume: &Volume) -> Result<PathBuf, String> {
        let uid = self.pod().uid();
        if is_object_volume(volume) {
            let path = self.paths.volume(uid, plugin(volume), &volume.name);
            self.write_objects(volume, &path).await?;
            return Ok(path);
        }
        if let Some(source) = &volume.host_path {
            return host_path(source).map_err(|error| error.to_string());
        }
        if let Some(source) = &volume.empty_dir {
            let path = self.paths.volume(uid, "empty-dir", &volume.name);
            empty_dir(source, &path, self.group()).map_err(|error| error.to_string())?;
            return Ok(path);
        }
        if let Some(source) = &volume.persistent_volume_claim {
            return self.claim(&source.claim_name).await;
        }
        Err("no volume plugin matched".to_owned())
    }

    async fn write_objects(&self, volume: &Volume, path: &Path) -> Result<(), String> {
        let group = self.group();
        let mut payloads = BTreeMap::new();
        for (name, file) in files(self.subject, volume, self.sources)? {
            let (bytes, mode) = match file.content {
                Content::Bytes(bytes) => (bytes, file.mode),
                Content::Token { audience, expiration_seconds } => {
                    let pod = self.pod();
                    let token =
                        self.tokens.get(self.client, pod, &audience, expiration_seconds).await?;
                    let mode = if group.is_some() { 0o600 } else { file.mode };
                    (token.into_bytes(), mode)
                }
            };
            payloads.insert(name, Payload { bytes, mode });
        }
        let secret = volume.secret.is_some() || volume.projected.is_some();
        let stamp = jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%9f").to_string();
        let write = || -> io::Result<()> {
            fs::create_dir_all(path)?;
            if secret {
                tmpfs(path, None)?;
            }
            atomic::write(path, &payloads, group, &stamp).map(|_| ())
        };
        write().map_err(|error| error.to_string())
    }

    async fn claim(&self, name: &str) -> Result<PathBuf, String> {
        let namespace = self.pod().namespace();
        let claim: PersistentVolumeClaim =
            self.client.get(namespace, name).await.map_err(|error| error.to_string())?;
        let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
        let Some(volume) = volume.filter(|_| bound == Some("Bound")) else {
            return Err(format!("PVC {namespace}/{name} is not bound"));
        };
        let volume: PersistentVolume =
            self.client.get("", volume).await.map_err(|error| error.to_string())?;
        let path = volume_path(&volume)?;
        self.own_claimed(&path).map_err(|error| error.to_string())?;
        Ok(path)
    }

    fn own_claimed(&self, path: &Path) -> io::Result<()> {
        match self.group() {
            Some(group) => atomic::own(path, group, false),
            None => Ok(()),
        }
    }
}

/// The directory of a node-local volume; made when its provisioner leaves that to the node.
fn volume_path(volume: &PersistentVolume) -> Result<PathBuf, String> {
    let spec = volume.spec.as_ref().ok_or("the volume has no spec")?;
    let host = spec.host_path.as_ref();
    let local = spec.local.as_ref().map(|local| local.path.as_str());
    let Some(path) = local.or(host.map(|host| host.path.as_str())) else {
        return Err(format!("volume {:?} is not local to a node", volume.name()));
    };
    let path = PathBuf::from(path);
    let marks = volume.meta().annotations.iter().flatten();
    if marks.into_iter().any(|(_, value)| value == LOCAL_PROVISIONER) {
        make_dir(&path, 0o777).map_err(|error| error.to_string())?;
    } else if let Some(host) = host {
        return host_path(host).map_err(|error| error.to_string());
    } else if !path.exists() {
        return Err(format!("path {:?} does not exist", path.display().to_string()));
    }
    Ok(path)
}

fn plugin(volume: &Volume) -> &'static str {
    if volume.config_map.is_some() {
        "configmap"
    } else if volume.secret.is_some() {
        "secret"
    } else if volume.downward_api.is_some() {
        "downward-api"
    } else {
        "projected"
    }
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    if !path.is_dir() {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn empty_dir(source: &EmptyDirVolumeSource, path: &Path, group: Option<u32>) -> io::Result<()> {
    let fresh = !path.is_dir();
    make_dir(path, 0o777)?;
    if source.medium.as_deref() == Some("Memory") {
        let limit = source.size_limit.as_ref().and_then(plan::pods::resources::millis);
        tmpfs(path, limit.map(|limit| limit / 1000))?;
    }
    match group {
        Some(group) if fresh => atomic::own(path, group, false),
        _ => Ok(()),
    }
}

/// Mounts memory at `path`, unless something is mounted there already.
fn tmpfs(path: &Path, size_bytes: Option<i128>) -> io::Result<()> {
    if is_mountpoint(path)? {
        return Ok(());
    }
    let options = match size_bytes {
        Some(bytes) if bytes > 0 => format!("mode=1777,size={bytes}"),
        _ => "mode=1777".to_owned(),
    };
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        .map_err(io::Error::from)
}

/// A directory on another file system than its parent is a mount point.
fn is_mountpoint(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let Some(parent) = path.parent() else { return Ok(true) };
    Ok(fs::metadata(path)?.dev() != fs::metadata(parent)?.dev())
}

/// Checks a path of the node against the type that was asked for, and makes it for the `…OrCreate` types.
fn host_path(source: &HostPathVolumeSource) -> io::Result<PathBuf> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" => make_dir(&path, 0o755)?,
        "FileOrCreate" if !path.exists() => {
            fs::write(&path, "")?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        }
        _ => {}
    }
    let found = fs::metadata(&path).map(|meta| meta.file_type());
    let (fits, wanted) = match kind {
        "" => {
            // Without a type nothing is checked; a missing path becomes a directory, as container runtimes do.
            if found.is_err() {
                make_dir(&path, 0o755)?;
            }
            (true, "")
        }
        "Directory" | "DirectoryOrCreate" => (found.is_ok_and(|kind| kind.is_dir()), "a directory"),
        "File" | "FileOrCreate" => (found.is_ok_and(|kind| kind.is_file()), "a file"),
        "Socket" => (found.is_ok_and(|kind| kind.is_socket()), "a socket file"),
        "CharDevice" => (found.is_ok_and(|kind| kind.is_char_device()), "a character device"),
        "BlockDevice" => (found.is_ok_and(|kind| kind.is_block_device()), "a block device"),
        _ => (false, "of a known type"),
    };
    if fits {
        return Ok(path);
    }
    let text = format!("hostPath type check failed: {} is not {wanted}", source.path);
    Err(io::Error::other(text))
}

/// Takes down everything below a pod's volume directory; what is left is removed with the pod.
pub(super) fn unmount_all(paths: &Paths, uid: &str) -> io::Result<()> {
    let root = paths.volumes(uid);
    for plugin in entries(&root)? {
        for volume in entries(&plugin)? {
            if volume.is_dir() && is_mountpoint(&volume)? {
                umount2(&volume, MntFlags::MNT_DETACH).map_err(io::Error::from)?;
            }
        }
    }
    match fs::remove_dir_all(&root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
    }
}
