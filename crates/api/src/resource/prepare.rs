//! What a client may not set: dropped at creation, kept at a change. Upstream: `PrepareForCreate` and `PrepareForUpdate`.

use serde_json::{Value, json};

/// A new object has no status yet, and generation 1 if it has a spec.
pub fn create(object: &mut Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if object.get("spec").is_some() {
        object["metadata"]["generation"] = 1.into();
    }
}

/// The status stays, and the generation counts changes of the spec.
pub fn update(new: &mut Value, old: &Value) {
    keep(new, old, "status");
    let Some(generation) = old["metadata"]["generation"].as_i64() else { return };
    let changed = new.get("spec") != old.get("spec");
    new["metadata"]["generation"] = json!(generation + i64::from(changed));
}

/// Only the status changes.
pub fn status(new: &mut Value, old: &Value) {
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

/// A namespace is active and carries its own name as a label.
pub fn namespace_create(object: &mut Value) {
    create(object);
    let name = object["metadata"]["name"].clone();
    object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
    if object["spec"]["finalizers"].is_null() {
        object["spec"]["finalizers"] = json!(["kubernetes"]);
    }
    object["status"] = json!({"phase": "Active"});
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.remove("generation");
    }
}

/// Finalizers of a namespace change through `/finalize` alone; its name's label cannot be lost.
pub fn namespace_update(new: &mut Value, old: &Value) {
    update(new, old);
    keep(new, old, "spec");
    let name = new["metadata"]["name"].clone();
    new["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
}

/// A new pod is pending, and of the class of its requests.
pub fn pod_create(object: &mut Value) {
    create(object);
    let class = crate::qos::class(&object["spec"]);
    object["status"] = json!({"phase": "Pending", "qosClass": class});
}

/// The status of a pod is the node's to write.
pub fn pod_update(new: &mut Value, old: &Value) {
    update(new, old);
}

/// A new Service has a status without addresses; Services have no generation.
pub fn service_create(object: &mut Value) {
    create(object);
    object["status"] = json!({"loadBalancer": {}});
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.remove("generation");
    }
}

/// Addresses of load balancers go when the Service is no LoadBalancer any more.
pub fn service_update(new: &mut Value, old: &Value) {
    update(new, old);
    if old["spec"]["type"] == "LoadBalancer" && new["spec"]["type"] != "LoadBalancer" {
        new["status"]["loadBalancer"] = json!({});
    }
}
