//! The rules that all kinds share; a kind's own replace them field by field.

use serde_json::{Value, json};

use super::{Column, Rules};

/// The columns of kinds without columns of their own.
pub const NAME_AGE: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", description: "The name of the object.", priority: 0 },
    Column { name: "Age", kind: "date", format: "", description: "The time since the object was created.", priority: 0 },
];

/// A kind without rules of its own: any content, with spec and status told apart.
pub const GENERIC: Rules = Rules {
    default: |_| {},
    prepare_create,
    prepare_update,
    prepare_status,
    validate_create: |_| Vec::new(),
    validate_update: |_, _| Vec::new(),
    validate_status: |_, _| Vec::new(),
    warnings: |_| Vec::new(),
    fields: |_| Vec::new(),
    columns: NAME_AGE,
    row: |object, _| vec![object["metadata"]["name"].clone(), object["metadata"]["creationTimestamp"].clone()],
};

/// A new object has no status yet, and generation 1 if it has a spec.
fn prepare_create(object: &mut Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if object.get("spec").is_some() {
        object["metadata"]["generation"] = 1.into();
    }
}

/// The status stays, and the generation counts changes of the spec.
fn prepare_update(new: &mut Value, old: &Value) {
    keep(new, old, "status");
    let Some(generation) = old["metadata"]["generation"].as_i64() else { return };
    let changed = new.get("spec") != old.get("spec");
    new["metadata"]["generation"] = json!(generation + i64::from(changed));
}

/// Only the status changes.
fn prepare_status(new: &mut Value, old: &Value) {
    let status = new.get("status").cloned();
    let version = new["metadata"].get("resourceVersion").cloned();
    let managed = new["metadata"].get("managedFields").cloned();
    *new = old.clone();
    match status {
        Some(status) => new["status"] = status,
        None => {
            if let Some(fields) = new.as_object_mut() {
                fields.remove("status");
            }
        }
    }
    for (key, value) in [("resourceVersion", version), ("managedFields", managed)] {
        if let Some(value) = value {
            new["metadata"][key] = value;
        }
    }
}

fn keep(new: &mut Value, old: &Value, field: &str) {
    match (old.get(field), new.as_object_mut()) {
        (Some(value), Some(fields)) => drop(fields.insert(field.to_owned(), value.clone())),
        (None, Some(fields)) => drop(fields.remove(field)),
        _ => {}
    }
}

