//! Containers of pods: names, images, ports, environment, mounts, resources. Upstream: `validateContainers`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::at::At;
use super::names;
use super::probe;
use super::resources;
use crate::field::FieldError;

pub(crate) const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// What containers need to know of their pod.
pub(crate) struct Context<'a> {
    /// Volumes by name.
    pub volumes: BTreeMap<&'a str, &'a Value>,
    /// `terminationGracePeriodSeconds`.
    pub grace: Option<i64>,
    /// Names of `resourceClaims`.
    pub claims: BTreeSet<&'a str>,
}

/// Checks the regular containers.
pub(crate) fn containers(list: &At<'_>, context: &Context<'_>) -> Vec<FieldError> {
    if list.is_empty() {
        return vec![list.required("")];
    }
    let mut errors = Vec::new();
    let mut names = BTreeSet::new();
    for container in list.items() {
        errors.extend(common(&container, context));
        let name = container.get("name");
        if !names.insert(name.text()) {
            errors.push(name.duplicate());
        }
        errors.extend(probe::lifecycle_and_probes(&container, context.grace));
        if container.get("restartPolicy").is_set() {
            errors.push(
                container.get("restartPolicy").forbidden("may not be set for non-init containers"),
            );
        }
    }
    let mut taken = BTreeSet::new();
    errors.extend(list.items().flat_map(|container| host_ports(&container, &mut taken)));
    errors
}

/// Checks the init containers.
pub(crate) fn init_containers(
    list: &At<'_>,
    regular: &At<'_>,
    context: &Context<'_>,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut names: BTreeSet<&str> =
        regular.items().map(|container| container.value["name"].as_str().unwrap_or("")).collect();
    for container in list.items() {
        errors.extend(common(&container, context));
        let policy = container.get("restartPolicy");
        if policy.is_set() && policy.text() != "Always" {
            errors.push(policy.unsupported(&["Always"]));
        }
        let name = container.get("name");
        if names.contains(name.text()) {
            errors.push(name.duplicate());
        } else if !name.text().is_empty() {
            names.insert(name.text());
        }
        errors.extend(host_ports(&container, &mut BTreeSet::new()));
        if policy.text() == "Always" {
            errors.extend(probe::lifecycle_and_probes(&container, context.grace));
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            let field = container.get(field);
            if field.is_set() {
                errors.push(
                    field.forbidden(
                        "may not be set for init containers without restartPolicy=Always",
                    ),
                );
            }
        }
    }
    errors
}

fn host_ports(container: &At<'_>, taken: &mut BTreeSet<String>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for port in container.get("ports").items() {
        let host_port = port.get("hostPort");
        let number = host_port.int().unwrap_or(0);
        if number == 0 {
            continue;
        }
        let key = format!("{}/{}/{number}", port.get("protocol").text(), port.get("hostIP").text());
        if taken.contains(&key) {
            errors.push(FieldError::duplicate(host_port.path, &json!(key)));
        } else {
            taken.insert(key);
        }
    }
    errors
}

fn common(container: &At<'_>, context: &Context<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = container.get("name");
    if name.text().is_empty() {
        errors.push(name.required(""));
    } else {
        errors.extend(name.all_invalid(names::dns1123_label(name.text())));
    }
    if container.get("image").text().is_empty() {
        errors.push(container.get("image").required(""));
    }
    let policy = container.get("terminationMessagePolicy");
    errors.extend(policy.one_of(&["File", "FallbackToLogsOnError"]));
    errors.extend(ports(&container.get("ports")));
    errors.extend(env(&container.get("env")));
    errors.extend(env_from(&container.get("envFrom")));
    errors.extend(mounts(container, context));
    errors.extend(devices(container, context));
    errors.extend(container.get("imagePullPolicy").one_of(&["Always", "IfNotPresent", "Never"]));
    errors.extend(resources::requirements(&container.get("resources"), &context.claims));
    errors.extend(security(&container.get("securityContext")));
    errors
}

fn ports(list: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for port in list.items() {
        let name = port.get("name");
        if !name.text().is_empty() {
            let wrong = names::port_name(name.text());
            if !wrong.is_empty() {
                errors.extend(name.all_invalid(wrong));
            } else if !seen.insert(name.text()) {
                errors.push(name.duplicate());
            }
        }
        let number = port.get("containerPort");
        match number.int().unwrap_or(0) {
            0 => errors.push(number.required("")),
            value => errors.extend(number.all_invalid(names::port_number(value))),
        }
        let host = port.get("hostPort");
        if let Some(value) = host.int().filter(|value| *value != 0) {
            errors.extend(host.all_invalid(names::port_number(value)));
        }
        errors.extend(port.get("protocol").one_of(PROTOCOLS));
    }
    errors
}

fn env(list: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for variable in list.items() {
        let name = variable.get("name");
        if name.text().is_empty() {
            errors.push(name.required(""));
        } else {
            errors.extend(name.all_invalid(names::env_name(name.text())));
        }
        errors.extend(value_from(&variable));
    }
    errors
}

fn value_from(variable: &At<'_>) -> Vec<FieldError> {
    let from = variable.get("valueFrom");
    if !from.is_set() {
        return Vec::new();
    }
    let mut errors = Vec::new();
    let mut sources = 0;
    let field = from.get("fieldRef");
    if field.is_set() {
        sources += 1;
        errors.extend(field_ref(&field, ENV_FIELDS));
    }
    let resource = from.get("resourceFieldRef");
    if resource.is_set() {
        sources += 1;
        errors.extend(resource_ref(&resource, false));
    }
    for reference in ["configMapKeyRef", "secretKeyRef"] {
        let reference = from.get(reference);
        if reference.is_set() {
            sources += 1;
            errors.extend(key_ref(&reference));
        }
    }
    let wrong = |detail: &str| FieldError::invalid(&*from.path, &json!(""), detail);
    if sources == 0 {
        errors.push(wrong(
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        ));
    } else if !variable.get("value").text().is_empty() {
        errors.push(wrong("may not be specified when `value` is not empty"));
    } else if sources > 1 {
        errors.push(wrong("may not have more than one field specified at a time"));
    }
    errors
}

/// Fields of a pod that become environment variables.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Fields of a pod that become files.
pub(crate) const FILE_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

/// Checks a reference to a field of the pod.
pub(crate) fn field_ref(reference: &At<'_>, known: &[&str]) -> Vec<FieldError> {
    let (version, path) = (reference.get("apiVersion"), reference.get("fieldPath"));
    for field in [&version, &path] {
        if field.text().is_empty() {
            return vec![field.required("")];
        }
    }
    let text = path.text();
    if version.text() != "v1" {
        let why =
            format!("error converting fieldPath: unsupported pod version: {}", version.text());
        return vec![path.invalid(why)];
    }
    if let Some((name, key)) = text.strip_suffix("']").and_then(|rest| rest.split_once("['")) {
        return match name {
            "metadata.annotations" => super::meta::named_invalid(
                &reference.path,
                &key.to_lowercase(),
                names::label_key(&key.to_lowercase()),
            ),
            "metadata.labels" => {
                super::meta::named_invalid(&reference.path, key, names::label_key(key))
            }
            _ => {
                vec![path.invalid(format!(
                    "error converting fieldPath: field label not supported: {text}"
                ))]
            }
        };
    }
    let convertible = known.contains(&text)
        || ENV_FIELDS.contains(&text)
        || FILE_FIELDS.contains(&text)
        || ["spec.restartPolicy", "spec.schedulerName", "status.phase"].contains(&text);
    if !convertible {
        return vec![
            path.invalid(format!("error converting fieldPath: field label not supported: {text}")),
        ];
    }
    if known.contains(&text) { Vec::new() } else { vec![path.unsupported(known)] }
}

/// Checks a reference to a container's resources.
pub(crate) fn resource_ref(reference: &At<'_>, volume: bool) -> Vec<FieldError> {
    const KNOWN: &[&str] = &[
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let resource = reference.get("resource");
    let name = resource.text();
    if volume && reference.get("containerName").text().is_empty() {
        return vec![reference.get("containerName").required("")];
    }
    if name.is_empty() {
        return vec![resource.required("")];
    }
    let huge =
        ["requests.hugepages-", "limits.hugepages-"].iter().any(|prefix| name.starts_with(prefix));
    if KNOWN.contains(&name) || huge { Vec::new() } else { vec![resource.unsupported(KNOWN)] }
}

fn key_ref(reference: &At<'_>) -> Vec<FieldError> {
    let (name, key) = (reference.get("name"), reference.get("key"));
    let shown = |at: &At<'_>, wrong| super::meta::named_invalid(&at.path, at.text(), wrong);
    let mut errors = shown(&name, names::dns1123_subdomain(name.text()));
    if key.text().is_empty() {
        errors.push(key.required(""));
    } else {
        errors.extend(shown(&key, names::config_key(key.text())));
    }
    errors
}

fn env_from(list: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for source in list.items() {
        let prefix = source.get("prefix");
        if !prefix.text().is_empty() {
            errors.extend(prefix.all_invalid(names::env_name(prefix.text())));
        }
        let mut sources = 0;
        for reference in ["configMapRef", "secretRef"] {
            let reference = source.get(reference);
            if !reference.is_set() {
                continue;
            }
            sources += 1;
            let name = reference.get("name");
            if name.text().is_empty() {
                errors.push(name.required(""));
            } else {
                errors.extend(name.all_invalid(names::dns1123_subdomain(name.text())));
            }
        }
        let wrong = |detail: &str| FieldError::invalid(&*list.path, &json!(""), detail);
        match sources {
            0 => errors.push(wrong("must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => errors.push(wrong("may not have more than one field specified at a time")),
        }
    }
    errors
}

fn mounts(container: &At<'_>, context: &Context<'_>) -> Vec<FieldError> {
    let list = container.get("volumeMounts");
    let devices = container.get("volumeDevices");
    let mut errors = Vec::new();
    let mut paths = BTreeSet::new();
    for mount in list.items() {
        let (name, path) = (mount.get("name"), mount.get("mountPath"));
        if name.text().is_empty() {
            errors.push(name.required(""));
        }
        if !context.volumes.contains_key(name.text()) {
            errors.push(FieldError::not_found(&*name.path, &json!(name.text())));
        }
        if path.text().is_empty() {
            errors.push(path.required(""));
        }
        if !paths.insert(path.text()) {
            errors.push(path.invalid("must be unique"));
        }
        if devices.items().any(|device| device.value["name"] == *name.value) {
            errors.push(name.invalid("must not already exist in volumeDevices"));
        }
        if devices.items().any(|device| device.value["devicePath"] == *path.value) {
            errors.push(path.invalid("must not already exist as a path in volumeDevices"));
        }
        let (sub, expression) = (mount.get("subPath"), mount.get("subPathExpr"));
        errors.extend(descending(&At::named(sub.value, list.child("subPath"))));
        if !sub.text().is_empty() && !expression.text().is_empty() {
            errors.push(expression.invalid("subPathExpr and subPath are mutually exclusive"));
        }
        errors.extend(descending(&At::named(expression.value, list.child("subPathExpr"))));
        let propagation = mount.get("mountPropagation").value;
        let propagation = At::named(propagation, list.child("mountPropagation"));
        errors.extend(mount_propagation(&propagation, container));
    }
    errors
}

/// Mounts travel back to the node from privileged containers alone.
fn mount_propagation(mode: &At<'_>, container: &At<'_>) -> Option<FieldError> {
    if !mode.is_set() {
        return None;
    }
    let back = mode.text() == "Bidirectional";
    if back && !container.get("securityContext.privileged").is_true() {
        return Some(mode.forbidden(
            "Bidirectional mount propagation is available only to privileged containers",
        ));
    }
    const MODES: &[&str] = &["Bidirectional", "HostToContainer", "None"];
    (!MODES.contains(&mode.text())).then(|| mode.unsupported(MODES))
}

/// A path below something else.
pub(crate) fn descending(path: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if path.text().starts_with('/') {
        errors.push(path.invalid("must be a relative path"));
    }
    errors.extend(no_backsteps(path));
    errors
}

/// A path without `..`.
pub(crate) fn no_backsteps(path: &At<'_>) -> Option<FieldError> {
    let back = path.text().split('/').any(|part| part == "..");
    back.then(|| path.invalid("must not contain '..'"))
}

fn devices(container: &At<'_>, context: &Context<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut paths = BTreeSet::new();
    for device in container.get("volumeDevices").items() {
        let (name, path) = (device.get("name"), device.get("devicePath"));
        if name.text().is_empty() {
            errors.push(name.required(""));
        }
        match context.volumes.get(name.text()) {
            None => errors.push(FieldError::not_found(&*name.path, &json!(name.text()))),
            Some(volume)
                if volume["persistentVolumeClaim"].is_null() && volume["ephemeral"].is_null() =>
            {
                errors.push(name.invalid(
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
                ));
            }
            Some(_) => {}
        }
        if path.text().is_empty() {
            errors.push(path.required(""));
        } else if !paths.insert(path.text()) {
            errors.push(path.invalid("must be unique"));
        }
    }
    errors
}

fn security(context: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["runAsUser", "runAsGroup"] {
        let field = context.get(field);
        if let Some(id) = field.int() {
            errors.extend(field.all_invalid(names::in_range(id, 0, i64::from(i32::MAX))));
        }
    }
    errors.extend(seccomp(&context.get("seccompProfile")));
    if context.get("allowPrivilegeEscalation").value == &Value::Bool(false) {
        if context.get("privileged").is_true() {
            errors.push(context.invalid(
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            ));
        }
        let added = context.get("capabilities.add");
        if added.items().any(|capability| capability.text() == "CAP_SYS_ADMIN") {
            errors.push(context.invalid(
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            ));
        }
    }
    errors
}

/// Checks a seccomp profile.
pub(crate) fn seccomp(profile: &At<'_>) -> Vec<FieldError> {
    if !profile.is_set() {
        return Vec::new();
    }
    let (kind, local) = (profile.get("type"), profile.get("localhostProfile"));
    let mut errors = Vec::new();
    match kind.text() {
        "" => errors.push(kind.required("type is required when seccompProfile is set")),
        "Localhost" | "RuntimeDefault" | "Unconfined" => {}
        _ => errors.push(kind.unsupported(&["Localhost", "RuntimeDefault", "Unconfined"])),
    }
    if kind.text() == "Localhost" && !local.is_set() {
        errors.push(local.required("must be set when seccomp type is Localhost"));
    } else if kind.text() == "Localhost" {
        errors.extend(descending(&local));
    } else if local.is_set() {
        errors.push(FieldError::invalid(
            local.path,
            profile.value,
            "can only be set when seccomp type is Localhost",
        ));
    }
    errors
}
