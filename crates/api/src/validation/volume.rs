//! Volumes of pods. Upstream: `ValidateVolumes`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::at::At;
use super::container::{FILE_FIELDS, descending, field_ref, no_backsteps, resource_ref};
use super::names;
use super::resources::amount;
use super::storage;
use crate::field::FieldError;

/// Checks the volumes; also answers with them by name.
pub(crate) fn volumes<'a>(list: &At<'a>) -> (BTreeMap<&'a str, &'a Value>, Vec<FieldError>) {
    let mut errors = Vec::new();
    let mut known = BTreeMap::new();
    for volume in list.items() {
        let mut own = source(&volume);
        let name = volume.get("name");
        if name.text().is_empty() {
            own.push(name.required(""));
        } else {
            own.extend(name.all_invalid(names::dns1123_label(name.text())));
        }
        if known.contains_key(name.text()) {
            own.push(name.duplicate());
        }
        if own.is_empty() {
            known.insert(name.text(), volume.value);
        }
        errors.extend(own);
    }
    (known, errors)
}

fn source(volume: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let sources = volume.entries().filter(|(key, value)| *key != "name" && value.is_set());
    for (index, (kind, _)) in sources.enumerate() {
        let place = volume.get(kind);
        if index > 0 {
            errors.push(place.forbidden("may not specify more than 1 volume type"));
            continue;
        }
        errors.extend(one_source(kind, &place));
    }
    if volume.entries().all(|(key, value)| key == "name" || !value.is_set()) {
        errors.push(volume.required("must specify a volume type"));
    }
    errors
}

fn one_source(kind: &str, place: &At<'_>) -> Vec<FieldError> {
    match kind {
        "emptyDir" => empty_dir(place),
        "hostPath" => host_path(place),
        "configMap" => files(place, "name"),
        "secret" => files(place, "secretName"),
        "downwardAPI" => downward(place),
        "projected" => projected(place),
        "persistentVolumeClaim" => required(place, &["claimName"]),
        "nfs" => nfs(place),
        "image" => Vec::new(),
        "csi" => required(place, &["driver"]),
        "ephemeral" => {
            let template = place.get("volumeClaimTemplate");
            if template.is_set() {
                storage::claim_spec(&template.get("spec"))
            } else {
                vec![template.required("")]
            }
        }
        _ => Vec::new(),
    }
}

fn required(place: &At<'_>, fields: &[&str]) -> Vec<FieldError> {
    let missing =
        fields.iter().map(|field| place.get(field)).filter(|field| field.text().is_empty());
    missing.map(|field| field.required("")).collect()
}

fn empty_dir(place: &At<'_>) -> Vec<FieldError> {
    let limit = place.get("sizeLimit");
    let negative = amount(limit.value).is_some_and(|amount| amount.nanos() < 0);
    if negative {
        vec![limit.forbidden("SizeLimit field must be a valid resource quantity")]
    } else {
        Vec::new()
    }
}

/// Checks a path of the node.
pub(crate) fn host_path(place: &At<'_>) -> Vec<FieldError> {
    let path = place.get("path");
    if path.text().is_empty() {
        return vec![path.required("")];
    }
    let mut errors: Vec<FieldError> = no_backsteps(&path).into_iter().collect();
    const KINDS: &[&str] = &[
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    let kind = place.get("type");
    if kind.is_set() && !KINDS.contains(&kind.text()) {
        errors.push(kind.unsupported(KINDS));
    }
    errors
}

/// Checks an NFS source.
pub(crate) fn nfs(place: &At<'_>) -> Vec<FieldError> {
    let mut errors = required(place, &["server", "path"]);
    if !place.get("path").text().is_empty() && !place.get("path").text().starts_with('/') {
        errors.push(place.get("path").invalid("must be an absolute path"));
    }
    errors
}

fn files(place: &At<'_>, name: &str) -> Vec<FieldError> {
    let mut errors = required(place, &[name]);
    errors.extend(mode(&place.get("defaultMode")));
    errors.extend(items(&place.get("items")));
    errors
}

fn mode(mode: &At<'_>) -> Option<FieldError> {
    let wrong = mode.int().is_some_and(|bits| !(0..=0o777).contains(&bits));
    wrong.then(|| mode.invalid("must be a number between 0 and 0777 (octal), both inclusive"))
}

fn items(list: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for item in list.items() {
        errors.extend(required(&item, &["key", "path"]));
        errors.extend(file_path(&item.get("path")));
        errors.extend(mode(&item.get("mode")));
    }
    errors
}

/// A path that an item is written to.
fn file_path(path: &At<'_>) -> Vec<FieldError> {
    let mut errors = descending(path);
    if path.text().starts_with("..") && errors.is_empty() {
        errors.push(path.invalid("must not start with '..'"));
    }
    errors
}

fn downward(place: &At<'_>) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = mode(&place.get("defaultMode")).into_iter().collect();
    errors.extend(place.get("items").items().flat_map(|item| downward_item(&item)));
    errors
}

fn downward_item(item: &At<'_>) -> Vec<FieldError> {
    let path = item.get("path");
    let mut errors = required(item, &["path"]);
    errors.extend(file_path(&path));
    let (field, resource) = (item.get("fieldRef"), item.get("resourceFieldRef"));
    if field.is_set() {
        errors.extend(field_ref(&field, FILE_FIELDS));
        if resource.is_set() {
            errors.push(
                item.invalid("fieldRef and resourceFieldRef can not be specified simultaneously"),
            );
        }
    } else if resource.is_set() {
        errors.extend(resource_ref(&resource, true));
    } else {
        errors.push(item.required("one of fieldRef and resourceFieldRef is required"));
    }
    errors.extend(mode(&item.get("mode")));
    errors
}

fn projected(place: &At<'_>) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = mode(&place.get("defaultMode")).into_iter().collect();
    for source in place.get("sources").items() {
        let mut kinds = 0;
        for (kind, value) in source.entries().filter(|(_, value)| value.is_set()) {
            kinds += 1;
            let at = At::named(value.value, source.child(kind));
            if kinds > 1 {
                errors.push(at.forbidden("may not specify more than 1 volume type"));
                continue;
            }
            match kind {
                "secret" | "configMap" => {
                    errors.extend(required(&at, &["name"]));
                    errors.extend(items(&at.get("items")));
                }
                "downwardAPI" => {
                    errors.extend(at.get("items").items().flat_map(|item| downward_item(&item)));
                }
                "serviceAccountToken" => errors.extend(token(&at)),
                _ => {}
            }
        }
    }
    errors
}

fn token(place: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (seconds, path) = (place.get("expirationSeconds"), place.get("path"));
    match seconds.int() {
        Some(value) if value < 600 => {
            errors.push(seconds.invalid("may not specify a duration less than 10 minutes"));
        }
        Some(value) if value > 1 << 32 => {
            errors.push(seconds.invalid("may not specify a duration larger than 2^32 seconds"));
        }
        _ => {}
    }
    errors.extend(required(place, &["path"]));
    errors.extend(file_path(&path));
    errors
}
