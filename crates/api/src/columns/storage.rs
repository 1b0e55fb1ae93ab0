//! Volumes, claims and storage classes.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, NAME, UNSET, age, amount, list, name, or, string, text, wide};
use crate::resource::Column;

/// `RWO,ROX,RWX,RWOP`, each once, in this order.
fn access_modes(modes: &Value) -> String {
    let known = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let present = known.iter().filter(|(mode, _)| list(modes).iter().any(|own| own == mode));
    present.map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}

fn phase(object: &Value) -> &str {
    let deleting = !object["metadata"]["deletionTimestamp"].is_null();
    if deleting { "Terminating" } else { string(&object["status"]["phase"]) }
}

/// The class, also from the annotation that came before the field.
fn class(object: &Value) -> &str {
    let annotation = &object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    or(annotation, string(&object["spec"]["storageClassName"]))
}

/// `persistentvolumes`
pub(crate) const VOLUME: &[Column] = &[
    NAME,
    text("Capacity", "The size of the volume."),
    text("Access Modes", "The ways the volume can be mounted."),
    text("Reclaim Policy", "What happens to the volume when its claim goes."),
    text("Status", "Whether the volume is bound."),
    text("Claim", "The claim that it is bound to."),
    text("StorageClass", "The class that the volume belongs to."),
    text("VolumeAttributesClass", "The class of the volume's attributes."),
    text("Reason", "Why the volume is in this state."),
    AGE,
    wide("VolumeMode", "Whether the volume is a file system or a block device."),
];

/// The row of a PersistentVolume.
pub(crate) fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let claim = match &spec["claimRef"] {
        Value::Null => String::new(),
        claim => format!("{}/{}", string(&claim["namespace"]), string(&claim["name"])),
    };
    vec![
        name(object),
        json!(amount(&spec["capacity"]["storage"])),
        json!(access_modes(&spec["accessModes"])),
        json!(string(&spec["persistentVolumeReclaimPolicy"])),
        json!(phase(object)),
        json!(claim),
        json!(class(object)),
        json!(or(&spec["volumeAttributesClassName"], UNSET)),
        json!(string(&object["status"]["reason"])),
        age(object, now),
        json!(or(&spec["volumeMode"], UNSET)),
    ]
}

/// `persistentvolumeclaims`
pub(crate) const CLAIM: &[Column] = &[
    NAME,
    text("Status", "Whether the claim is bound."),
    text("Volume", "The volume that it is bound to."),
    text("Capacity", "The size of the volume."),
    text("Access Modes", "The ways the volume can be mounted."),
    text("StorageClass", "The class that the claim asks for."),
    text("VolumeAttributesClass", "The class of the volume's attributes."),
    AGE,
    wide("VolumeMode", "Whether the volume is a file system or a block device."),
];

/// The row of a PersistentVolumeClaim.
pub(crate) fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let volume = string(&spec["volumeName"]);
    let (modes, capacity) = if volume.is_empty() {
        (String::new(), String::new())
    } else {
        (access_modes(&status["accessModes"]), amount(&status["capacity"]["storage"]))
    };
    vec![
        name(object),
        json!(phase(object)),
        json!(volume),
        json!(capacity),
        json!(modes),
        json!(class(object)),
        json!(or(&spec["volumeAttributesClassName"], UNSET)),
        age(object, now),
        json!(or(&spec["volumeMode"], UNSET)),
    ]
}

/// `storageclasses`
pub(crate) const CLASS: &[Column] = &[
    NAME,
    text("Provisioner", "Who makes the volumes."),
    text("ReclaimPolicy", "What happens to a volume when its claim goes."),
    text("VolumeBindingMode", "When claims are bound."),
    text("AllowVolumeExpansion", "Whether volumes can grow."),
    AGE,
];

/// The row of a StorageClass.
pub(crate) fn class_row(object: &Value, now: Timestamp) -> Vec<Value> {
    const DEFAULT: [&str; 2] = [
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
    ];
    let annotations = &object["metadata"]["annotations"];
    let mut title = string(&object["metadata"]["name"]).to_owned();
    if DEFAULT.iter().any(|key| annotations[*key] == "true") {
        title.push_str(" (default)");
    }
    vec![
        json!(title),
        json!(string(&object["provisioner"])),
        json!(or(&object["reclaimPolicy"], "Delete")),
        json!(or(&object["volumeBindingMode"], "Immediate")),
        json!(object["allowVolumeExpansion"] == true),
        age(object, now),
    ]
}
