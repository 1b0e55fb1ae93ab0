//! Volumes, claims and storage classes. Upstream: `ValidatePersistentVolume*`, `pkg/apis/storage/validation`.

use serde_json::{Value, json};

use super::at::{At, IMMUTABLE, immutable};
use super::pod::difference;
use super::resources::{amount, quantity_of};
use super::volume::{host_path, nfs};
use super::{affinity, meta, names};
use crate::field::FieldError;

const ACCESS_MODES: &[&str] =
    &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
/// Fields of a volume's spec that are not its source.
const VOLUME_FIELDS: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// Checks a new claim.
pub(crate) fn create_claim(claim: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(claim, true, meta::SUBDOMAIN);
    errors.extend(claim_spec(&At::root(claim).get("spec")));
    errors
}

/// Checks the spec of a claim, or of a template for one.
pub(crate) fn claim_spec(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let modes = spec.get("accessModes");
    if modes.is_empty() {
        errors.push(modes.required("at least 1 access mode is required"));
    }
    errors.extend(meta::selector(&spec.get("selector")));
    errors.extend(access_modes(&modes));
    let single = |mode: &At<'_>| mode.text() == "ReadWriteOncePod";
    if modes.items().any(|mode| single(&mode)) && !modes.items().all(|mode| single(&mode)) {
        errors.push(modes.forbidden("may not use ReadWriteOncePod with other access modes"));
    }
    let request = spec.get("resources.requests.storage");
    let request = At::named(request.value, format!("{}[storage]", spec.child("resources")));
    match amount(request.value) {
        None => errors.push(request.required("")),
        Some(amount) if amount.nanos() <= 0 => {
            let shown = json!(amount.canonical());
            errors.push(FieldError::invalid(&*request.path, &shown, "must be greater than zero"));
        }
        Some(_) => errors.extend(quantity_of("storage", &request)),
    }
    for class in ["storageClassName", "volumeAttributesClassName"] {
        let class = spec.get(class);
        if !class.text().is_empty() {
            errors.extend(class.all_invalid(names::dns1123_subdomain(class.text())));
        }
    }
    let mode = spec.get("volumeMode");
    if mode.is_set() && !VOLUME_MODES.contains(&mode.text()) {
        errors.push(mode.unsupported(VOLUME_MODES));
    }
    for source in ["dataSource", "dataSourceRef"] {
        let source = spec.get(source);
        if source.is_set() {
            errors.extend(data_source(&source));
        }
    }
    errors
}

fn access_modes(modes: &At<'_>) -> Vec<FieldError> {
    let unknown = modes.items().filter(|mode| !ACCESS_MODES.contains(&mode.text()));
    unknown.map(|mode| FieldError::unsupported(&*modes.path, mode.value, ACCESS_MODES)).collect()
}

fn data_source(source: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["name", "kind"] {
        if source.get(field).text().is_empty() {
            errors.push(source.get(field).required(""));
        }
    }
    let (group, kind) = (source.get("apiGroup"), source.get("kind"));
    if group.text().is_empty() && kind.text() != "PersistentVolumeClaim" {
        errors.push(FieldError::invalid(
            &*source.path,
            &json!(kind.text()),
            "must be 'PersistentVolumeClaim' when referencing the default apiGroup",
        ));
    }
    errors
}

/// Checks a change of a claim.
pub(crate) fn update_claim(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(claim_spec(&At::root(new).get("spec")));
    let (mut after, mut before) = (new["spec"].clone(), old["spec"].clone());
    let bound = new["status"]["phase"] == "Bound";
    if before["volumeName"].as_str().unwrap_or("").is_empty() {
        before["volumeName"] = after["volumeName"].clone();
    }
    if before["storageClassName"].is_null() {
        after["storageClassName"] = Value::Null;
        before["storageClassName"] = Value::Null;
    }
    if bound {
        if after["resources"]["requests"].is_object() {
            after["resources"]["requests"]["storage"] =
                before["resources"]["requests"]["storage"].clone();
        }
        if !after["volumeAttributesClassName"].is_null() {
            after["volumeAttributesClassName"] = before["volumeAttributesClassName"].clone();
        }
    }
    for spec in [&mut after, &mut before] {
        if let Some(fields) = spec.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
    }
    if after != before {
        errors.push(FieldError::forbidden(
            "spec",
            format!(
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{}",
                difference(&before, &after)
            ),
        ));
    }
    let size = |claim: &Value| amount(&claim["spec"]["resources"]["requests"]["storage"]);
    let capacity = amount(&new["status"]["capacity"]["storage"]);
    if size(new) < size(old) && size(new) <= capacity.or_else(|| crate::quantity::parse("0").ok()) {
        errors.push(FieldError::forbidden(
            "spec.resources.requests.storage",
            "field can not be less than status.capacity",
        ));
    }
    let mode = |claim| At::named(&claim_value(claim)["volumeMode"], "volumeMode");
    errors.extend(immutable(&mode(new), &mode(old)));
    errors
}

fn claim_value(claim: &Value) -> &Value {
    &claim["spec"]
}

/// Checks a change of a claim's status.
pub(crate) fn status_claim(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    if At::root(new).get("spec.accessModes").is_empty() {
        errors.push(FieldError::required("Spec.accessModes", ""));
    }
    for (_, quantity) in At::root(new).get("status.capacity").entries() {
        if let Some(amount) = amount(quantity.value).filter(|amount| amount.nanos() < 0) {
            let shown = json!(i64::try_from(amount.units()).unwrap_or(i64::MIN));
            errors.push(FieldError::invalid(
                &*quantity.path,
                &shown,
                "must be a valid resource quantity",
            ));
        }
    }
    errors
}

/// Checks a new volume.
pub(crate) fn create_volume(volume: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(volume, false, meta::SUBDOMAIN);
    errors.extend(volume_spec(&At::root(volume).get("spec")));
    errors
}

fn volume_spec(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let modes = spec.get("accessModes");
    if modes.is_empty() {
        errors.push(modes.required(""));
    }
    errors.extend(access_modes(&modes));
    let capacity = spec.get("capacity");
    if capacity.is_empty() {
        errors.push(capacity.required(""));
    }
    if capacity.get("storage").value.is_null() || capacity.len() > 1 {
        errors.push(FieldError::unsupported(&*capacity.path, capacity.value, &["storage"]));
    }
    for (name, quantity) in capacity.entries() {
        errors.extend(quantity_of(name, &quantity));
        if let Some(amount) = amount(quantity.value).filter(|amount| amount.nanos() <= 0) {
            let shown = json!(amount.canonical());
            errors.push(FieldError::invalid(&*quantity.path, &shown, "must be greater than zero"));
        }
    }
    let policy = spec.get("persistentVolumeReclaimPolicy");
    if !policy.text().is_empty() && !["Delete", "Recycle", "Retain"].contains(&policy.text()) {
        errors.push(policy.unsupported(&["Delete", "Recycle", "Retain"]));
    }
    let required = spec.get("nodeAffinity");
    if required.is_set() {
        if required.get("required").is_set() {
            errors.extend(affinity::node_selector(&required.get("required")));
        } else {
            errors
                .push(required.get("required").required("must specify required node constraints"));
        }
    }
    errors.extend(volume_source(spec));
    let class = spec.get("storageClassName");
    if !class.text().is_empty() {
        errors.extend(class.all_invalid(names::dns1123_subdomain(class.text())));
    }
    let mode = spec.get("volumeMode");
    if mode.is_set() && !VOLUME_MODES.contains(&mode.text()) {
        errors.push(mode.unsupported(VOLUME_MODES));
    }
    errors
}

fn sources<'a>(spec: &At<'a>) -> impl Iterator<Item = (&'a str, At<'a>)> {
    spec.entries().filter(|(key, value)| !VOLUME_FIELDS.contains(key) && value.is_set())
}

fn volume_source(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, (kind, _)) in sources(spec).enumerate() {
        let place = spec.get(kind);
        if index > 0 {
            errors.push(place.forbidden("may not specify more than 1 volume type"));
            continue;
        }
        match kind {
            "hostPath" => errors.extend(host_path(&place)),
            "nfs" => errors.extend(nfs(&place)),
            "local" => {
                if place.get("path").text().is_empty() {
                    errors.push(place.get("path").required(""));
                }
                if !spec.get("nodeAffinity").is_set() {
                    errors.push(
                        spec.get("nodeAffinity").required("Local volume requires node affinity"),
                    );
                }
            }
            "csi" => {
                for field in ["driver", "volumeHandle"] {
                    if place.get(field).text().is_empty() {
                        errors.push(place.get(field).required(""));
                    }
                }
            }
            _ => {}
        }
    }
    if sources(spec).next().is_none() {
        errors.push(spec.required("must specify a volume type"));
    }
    let root = spec.get("hostPath.path").text().trim_end_matches('/').is_empty();
    let recycled = spec.get("persistentVolumeReclaimPolicy");
    if spec.get("hostPath").is_set() && root && recycled.text() == "Recycle" {
        errors.push(recycled.forbidden("may not be 'recycle' for a hostPath mount of '/'"));
    }
    errors
}

/// Checks a change of a volume.
pub(crate) fn update_volume(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    let (spec, before) = (At::root(new).get("spec"), At::root(old).get("spec"));
    errors.extend(volume_spec(&spec));
    let collect = |spec: &At<'_>| -> serde_json::Map<String, Value> {
        sources(spec).map(|(key, value)| (key.to_owned(), value.value.clone())).collect()
    };
    let (after, earlier) = (Value::from(collect(&spec)), Value::from(collect(&before)));
    if after != earlier {
        errors.push(FieldError::forbidden(
            "spec.persistentvolumesource",
            format!(
                "spec.persistentvolumesource is immutable after creation\n{}",
                difference(&earlier, &after)
            ),
        ));
    }
    let mode = |spec: &At<'_>| spec.get("volumeMode").value.clone();
    if mode(&spec) != mode(&before) {
        errors.push(FieldError::invalid("volumeMode", &mode(&spec), IMMUTABLE));
    }
    let (place, old_place) = (spec.get("nodeAffinity"), before.get("nodeAffinity"));
    if old_place.is_set() && place.value != old_place.value {
        let why = format!("{IMMUTABLE}, except for updating from beta label to GA");
        errors.push(FieldError::invalid("nodeAffinity", place.value, why));
    }
    errors
}

/// Checks a new storage class.
pub(crate) fn create_class(class: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(class, false, meta::SUBDOMAIN);
    errors.extend(class_content(class));
    errors
}

fn class_content(class: &Value) -> Vec<FieldError> {
    let root = At::root(class);
    let mut errors = Vec::new();
    let provisioner = root.get("provisioner");
    if provisioner.text().is_empty() {
        errors.push(FieldError::required(&*provisioner.path, ""));
    } else {
        let wrong = names::label_key(&provisioner.text().to_lowercase());
        errors.extend(provisioner.all_invalid(wrong));
    }
    let policy = root.get("reclaimPolicy");
    if !policy.text().is_empty() && !["Delete", "Retain"].contains(&policy.text()) {
        errors.push(policy.unsupported(&["Delete", "Retain"]));
    }
    let binding = root.get("volumeBindingMode");
    if !binding.is_set() {
        errors.push(binding.required(""));
    } else if !["Immediate", "WaitForFirstConsumer"].contains(&binding.text()) {
        errors.push(binding.unsupported(&["Immediate", "WaitForFirstConsumer"]));
    }
    errors
}

/// Checks a change of a storage class.
pub(crate) fn update_class(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(class_content(new));
    let (root, before) = (At::root(new), At::root(old));
    for (field, why) in [
        ("parameters", "updates to parameters are forbidden."),
        ("provisioner", "updates to provisioner are forbidden."),
    ] {
        if root.get(field).value != before.get(field).value {
            errors.push(root.get(field).forbidden(why));
        }
    }
    if root.get("reclaimPolicy").value != before.get("reclaimPolicy").value {
        errors.push(root.get("reclaimPolicy").forbidden("updates to reclaimPolicy are forbidden."));
    }
    errors.extend(immutable(&root.get("volumeBindingMode"), &before.get("volumeBindingMode")));
    errors
}
