//! Every pod has a ServiceAccount and, unless it declines, that account's token (`ServiceAccount`).

use std::sync::Arc;
use std::time::Duration;

use api::StatusError;
use serde_json::{Value, json};

use super::{Request, suffix};
use crate::Cache;
use crate::lookup::{SERVICE_ACCOUNTS, array, text};

/// Where the token, the authority and the namespace are mounted.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Seconds that a mounted token is valid; agents renew it in time (`WarnOnlyBoundTokenExpirationPeriod`).
const TOKEN_SECONDS: i64 = 3607;
/// The account of a new namespace is made by a controller: it is waited for this often, this long.
const ATTEMPTS: usize = 20;
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(50);

pub(super) async fn admit(
    cache: &Cache,
    request: &Request<'_>,
    pod: &mut Value,
) -> Result<(), StatusError> {
    if !pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null() {
        return Ok(());
    }
    let name = match text(pod, "/spec/serviceAccountName") {
        "" => match text(pod, "/spec/serviceAccount") {
            "" => "default".to_owned(),
            name => name.to_owned(),
        },
        name => name.to_owned(),
    };
    pod["spec"]["serviceAccountName"] = name.as_str().into();
    pod["spec"]["serviceAccount"] = name.as_str().into();
    let namespace = text(pod, "/metadata/namespace").to_owned();
    let account = find(cache, &namespace, &name).await.ok_or_else(|| {
        let why = format!(
            "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
        );
        request.forbidden(pod, why)
    })?;
    let wanted = |object: &Value| object["automountServiceAccountToken"].as_bool();
    if wanted(&pod["spec"]).or_else(|| wanted(&account)).unwrap_or(true) {
        mount_token(pod, suffix);
    }
    if array(pod, "/spec/imagePullSecrets").is_empty()
        && !array(&account, "/imagePullSecrets").is_empty()
    {
        pod["spec"]["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    Ok(())
}

/// The account; a `default` one that is about to be made is waited for.
async fn find(cache: &Cache, namespace: &str, name: &str) -> Option<Arc<Value>> {
    for _ in 0..if name == "default" { ATTEMPTS } else { 0 } {
        if let Some(account) = SERVICE_ACCOUNTS.get(cache, namespace, name) {
            return Some(account);
        }
        tokio::time::sleep(ATTEMPT_INTERVAL).await;
    }
    SERVICE_ACCOUNTS.get(cache, namespace, name)
}

/// Mounts the token into every container that has nothing at its place.
pub(super) fn mount_token(pod: &mut Value, suffix: impl Fn() -> String) {
    let present = array(pod, "/spec/volumes")
        .iter()
        .map(|volume| text(volume, "/name"))
        .find(|name| name.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let name = present.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", suffix()));
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            if array(container, "/volumeMounts")
                .iter()
                .any(|mount| mount["mountPath"] == MOUNT_PATH)
            {
                continue;
            }
            needed = true;
            push(
                container,
                "volumeMounts",
                json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}),
            );
        }
    }
    if needed && present.is_none() {
        let namespace = json!({"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}});
        let sources = json!([
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [namespace]}},
        ]);
        let volume = json!({"name": name, "projected": {"sources": sources, "defaultMode": 420}});
        push(&mut pod["spec"], "volumes", volume);
    }
}

/// Appends to a list that may be missing.
pub(super) fn push(object: &mut Value, field: &str, item: Value) {
    match object[field].as_array_mut() {
        Some(list) => list.push(item),
        None => object[field] = json!([item]),
    }
}
