//! Defaults of claims, volumes and ingresses (`DefaultStorageClass`, `StorageObjectInUseProtection`,
//! `DefaultIngressClass`).

use serde_json::{Value, json};

use super::{Request, service_accounts::push};
use crate::Cache;
use crate::lookup::{INGRESS_CLASSES, Row, STORAGE_CLASSES, array, text};

const STORAGE_DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
const INGRESS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";

pub(super) fn admit(cache: &Cache, request: &Request<'_>, new: &mut Value) {
    if !request.creates() {
        return;
    }
    match (request.resource.group, request.resource.plural) {
        ("", "persistentvolumeclaims") => {
            let legacy = &new["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
            if new["spec"]["storageClassName"].is_null()
                && legacy.is_null()
                && let Some(class) = default_of(STORAGE_CLASSES, cache, STORAGE_DEFAULT)
            {
                new["spec"]["storageClassName"] = class.into();
            }
            protect(new, "kubernetes.io/pvc-protection");
        }
        ("", "persistentvolumes") => protect(new, "kubernetes.io/pv-protection"),
        ("networking.k8s.io", "ingresses") => {
            let legacy = &new["metadata"]["annotations"]["kubernetes.io/ingress.class"];
            if new["spec"]["ingressClassName"].is_null()
                && legacy.is_null()
                && let Some(class) = default_of(INGRESS_CLASSES, cache, INGRESS_DEFAULT)
            {
                new["spec"]["ingressClassName"] = class.into();
            }
        }
        _ => {}
    }
}

/// The newest class that is marked as default; by name among equals.
fn default_of(row: Row, cache: &Cache, mark: &str) -> Option<String> {
    let classes = row.list(cache, "");
    let marked = classes.iter().filter(|class| class["metadata"]["annotations"][mark] == "true");
    let class = marked.max_by(|left, right| {
        let made = |class: &Value| text(class, "/metadata/creationTimestamp").to_owned();
        let name = |class: &Value| text(class, "/metadata/name").to_owned();
        made(left).cmp(&made(right)).then_with(|| name(right).cmp(&name(left)))
    })?;
    Some(text(class, "/metadata/name").to_owned())
}

/// The object stays while it is in use.
fn protect(object: &mut Value, finalizer: &str) {
    if !array(object, "/metadata/finalizers").iter().any(|own| own == finalizer) {
        push(&mut object["metadata"], "finalizers", json!(finalizer));
    }
}
