//! Files of volumes that come from objects: configMap, secret, downwardAPI, projected.
//! Upstream: `pkg/volume/{configmap,secret,downwardapi,projected}`.

use std::collections::BTreeMap;

use api::core::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccountTokenProjection,
    Volume, VolumeProjection,
};

use super::env::{Sources, Subject, field, find_container};
use super::resources;

/// Permissions of files without `defaultMode`.
const MODE_DEFAULT: i32 = 0o644;

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFile {
    /// What it holds.
    pub content: Content,
    /// Permission bits.
    pub mode: u32,
}

/// Where a file's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A token of the pod's service account for this audience (empty for the API server's), valid this many seconds.
    Token {
        /// The audience.
        audience: String,
        /// The validity asked for.
        expiration_seconds: i64,
    },
}

/// Files by relative path.
pub type Files = BTreeMap<String, VolumeFile>;

/// Whether the volume's files come from objects, so that [`files`] applies.
#[must_use]
pub fn is_object_volume(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// Names of the config maps and the secrets that a pod refers to, anywhere.
#[must_use]
pub fn references(pod: &Pod) -> (Vec<String>, Vec<String>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    let Some(spec) = &pod.spec else { return (maps, secrets) };
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        for from in container.env_from.iter().flatten() {
            maps.extend(from.config_map_ref.iter().map(|reference| reference.name.clone()));
            secrets.extend(from.secret_ref.iter().map(|reference| reference.name.clone()));
        }
        for from in container.env.iter().flatten().filter_map(|entry| entry.value_from.as_ref()) {
            maps.extend(from.config_map_key_ref.iter().map(|reference| reference.name.clone()));
            secrets.extend(from.secret_key_ref.iter().map(|reference| reference.name.clone()));
        }
    }
    for volume in spec.volumes.iter().flatten() {
        maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
        secrets.extend(volume.secret.iter().filter_map(|source| source.secret_name.clone()));
        let projections =
            volume.projected.iter().flat_map(|source| source.sources.iter().flatten());
        for projection in projections {
            maps.extend(projection.config_map.iter().map(|source| source.name.clone()));
            secrets.extend(projection.secret.iter().map(|source| source.name.clone()));
        }
    }
    secrets.extend(spec.image_pull_secrets.iter().flatten().map(|secret| secret.name.clone()));
    for list in [&mut maps, &mut secrets] {
        list.retain(|name| !name.is_empty());
        list.sort();
        list.dedup();
    }
    (maps, secrets)
}

/// The files of an object volume; an error is the tail of a `FailedMount` event.
///
/// # Errors
/// When an object or key that is not optional is missing.
pub fn files(subject: Subject<'_>, volume: &Volume, sources: &Sources) -> Result<Files, String> {
    let mut files = Files::new();
    if let Some(source) = &volume.config_map {
        let pick = pick(source.items.as_deref(), source.default_mode, source.optional);
        from_config_map(&source.name, &pick, sources, &mut files)?;
    }
    if let Some(source) = &volume.secret {
        let pick = pick(source.items.as_deref(), source.default_mode, source.optional);
        let name = source.secret_name.as_deref().unwrap_or_default();
        from_secret(name, &pick, sources, &mut files)?;
    }
    if let Some(source) = &volume.downward_api {
        let items = source.items.as_deref().unwrap_or_default();
        from_pod(subject, items, source.default_mode, sources, &mut files)?;
    }
    if let Some(projected) = &volume.projected {
        for projection in projected.sources.iter().flatten() {
            project(subject, projection, projected.default_mode, sources, &mut files)?;
        }
    }
    Ok(files)
}

fn project(
    subject: Subject<'_>,
    projection: &VolumeProjection,
    mode: Option<i32>,
    sources: &Sources,
    files: &mut Files,
) -> Result<(), String> {
    if let Some(source) = &projection.config_map {
        let pick = pick(source.items.as_deref(), mode, source.optional);
        from_config_map(&source.name, &pick, sources, files)?;
    }
    if let Some(source) = &projection.secret {
        let pick = pick(source.items.as_deref(), mode, source.optional);
        from_secret(&source.name, &pick, sources, files)?;
    }
    if let Some(source) = &projection.downward_api {
        let items = source.items.as_deref().unwrap_or_default();
        from_pod(subject, items, mode, sources, files)?;
    }
    if let Some(source) = &projection.service_account_token {
        files.insert(source.path.clone(), token(source, mode));
    }
    Ok(())
}

/// Tokens are for their owner only, unless the container runs as somebody else: then upstream widens the mode.
fn token(source: &ServiceAccountTokenProjection, mode: Option<i32>) -> VolumeFile {
    VolumeFile {
        content: Content::Token {
            audience: source.audience.clone().unwrap_or_default(),
            expiration_seconds: source.expiration_seconds.unwrap_or(3600),
        },
        mode: bits(mode),
    }
}

struct Pick<'a> {
    items: &'a [KeyToPath],
    mode: Option<i32>,
    optional: bool,
}

fn pick(items: Option<&[KeyToPath]>, mode: Option<i32>, optional: Option<bool>) -> Pick<'_> {
    Pick { items: items.unwrap_or_default(), mode, optional: optional.unwrap_or(false) }
}

fn bits(mode: Option<i32>) -> u32 {
    u32::try_from(mode.unwrap_or(MODE_DEFAULT)).unwrap_or(0o644) & 0o7777
}

fn from_config_map(
    name: &str,
    pick: &Pick<'_>,
    sources: &Sources,
    files: &mut Files,
) -> Result<(), String> {
    match sources.config_maps.get(name) {
        Some(map) => choose(&config_map_bytes(map), pick, "config", files),
        None if pick.optional => Ok(()),
        None => Err(format!("configmap {name:?} not found")),
    }
}

fn from_secret(
    name: &str,
    pick: &Pick<'_>,
    sources: &Sources,
    files: &mut Files,
) -> Result<(), String> {
    match sources.secrets.get(name) {
        Some(secret) => choose(&secret_bytes(secret), pick, "secret", files),
        None if pick.optional => Ok(()),
        None => Err(format!("secret {name:?} not found")),
    }
}

fn config_map_bytes(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text =
        map.data.iter().flatten().map(|(key, text)| (key.clone(), text.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, data)| (key.clone(), data.0.clone()));
    text.chain(binary).collect()
}

fn secret_bytes(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(key, data)| (key.clone(), data.0.clone())).collect()
}

fn choose(
    data: &BTreeMap<String, Vec<u8>>,
    pick: &Pick<'_>,
    kind: &str,
    files: &mut Files,
) -> Result<(), String> {
    let mut add = |path: &str, bytes: &[u8], mode: Option<i32>| {
        let content = Content::Bytes(bytes.to_vec());
        files.insert(path.to_owned(), VolumeFile { content, mode: bits(mode) });
    };
    if pick.items.is_empty() {
        data.iter().for_each(|(key, bytes)| add(key, bytes, pick.mode));
        return Ok(());
    }
    for item in pick.items {
        match data.get(&item.key) {
            Some(bytes) => add(&item.path, bytes, item.mode.or(pick.mode)),
            None if pick.optional => {}
            None => return Err(format!("references non-existent {kind} key: {}", item.key)),
        }
    }
    Ok(())
}

fn from_pod(
    subject: Subject<'_>,
    items: &[DownwardAPIVolumeFile],
    mode: Option<i32>,
    sources: &Sources,
    files: &mut Files,
) -> Result<(), String> {
    for item in items {
        let text = if let Some(reference) = &item.field_ref {
            field(subject, &reference.field_path)?
        } else if let Some(reference) = &item.resource_field_ref {
            let name = reference.container_name.as_deref().unwrap_or_default();
            let container = find_container(subject.pod, name)?;
            let divisor = reference.divisor.as_ref();
            resources::field(container, &reference.resource, divisor, &sources.allocatable)?
        } else {
            String::new()
        };
        let content = Content::Bytes(text.into_bytes());
        files.insert(item.path.clone(), VolumeFile { content, mode: bits(item.mode.or(mode)) });
    }
    Ok(())
}
