//! ConfigMaps, Secrets, ServiceAccounts, namespaces, nodes, events, leases, limits and quotas.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::at::{At, immutable};
use super::meta::{self, named_invalid};
use super::names;
use super::resources::{amount, quantity_of, quota_resource, resource_name};
use crate::field::FieldError;

/// Bytes of all values of a `ConfigMap` or Secret together.
const BYTES_MAX: usize = 1024 * 1024;
const FROZEN: &str = "field is immutable when `immutable` is set";

/// Checks a new ConfigMap.
pub(crate) fn create_config_map(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    errors.extend(config_map(object));
    errors
}

/// Checks a changed ConfigMap.
pub(crate) fn update_config_map(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(frozen(new, old, &["data", "binaryData"]));
    errors.extend(config_map(new));
    errors
}

fn frozen(new: &Value, old: &Value, fields: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if old["immutable"] != json!(true) {
        return errors;
    }
    if new["immutable"] != json!(true) {
        errors.push(FieldError::forbidden("immutable", FROZEN));
    }
    let changed = fields.iter().filter(|field| new[**field] != old[**field]);
    errors.extend(changed.map(|field| FieldError::forbidden(*field, FROZEN)));
    errors
}

fn decoded(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap_or("")).unwrap_or_default()
}

fn config_map(object: &Value) -> Vec<FieldError> {
    let root = At::root(object);
    let (data, binary) = (root.get("data"), root.get("binaryData"));
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in data.entries() {
        errors.extend(named_invalid(&value.path, key, names::config_key(key)));
        if binary.value.get(key).is_some() {
            let why = "duplicate of key present in binaryData";
            errors.push(FieldError::invalid(&*value.path, &json!(key), why));
        }
        size += value.text().len();
    }
    for (key, value) in binary.entries() {
        errors.extend(named_invalid(&value.path, key, names::config_key(key)));
        size += decoded(value.value).len();
    }
    if size > BYTES_MAX {
        errors.push(FieldError::too_long("", BYTES_MAX));
    }
    errors
}

/// Checks a new Secret.
pub(crate) fn create_secret(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    errors.extend(secret(object));
    errors
}

/// Checks a changed Secret.
pub(crate) fn update_secret(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(immutable(&At::root(new).get("type"), &At::root(old).get("type")));
    errors.extend(frozen(new, old, &["data"]));
    errors.extend(secret(new));
    errors
}

fn secret(object: &Value) -> Vec<FieldError> {
    const ACCOUNT: &str = "kubernetes.io/service-account.name";
    let root = At::root(object);
    let data = root.get("data");
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in data.entries() {
        errors.extend(named_invalid(&value.path, key, names::config_key(key)));
        size += decoded(value.value).len();
    }
    if size > BYTES_MAX {
        errors.push(FieldError::too_long("data", BYTES_MAX));
    }
    let needed = |key: &str| {
        let missing = data.value.get(key).is_none();
        missing.then(|| FieldError::required(format!("data[{key}]"), ""))
    };
    match root.get("type").text() {
        "kubernetes.io/service-account-token" => {
            let name = object["metadata"]["annotations"][ACCOUNT].as_str().unwrap_or("");
            if name.is_empty() {
                errors.push(FieldError::required(format!("metadata.annotations[{ACCOUNT}]"), ""));
            }
        }
        "kubernetes.io/dockercfg" => errors.extend(json_key(&data, ".dockercfg")),
        "kubernetes.io/dockerconfigjson" => errors.extend(json_key(&data, ".dockerconfigjson")),
        "kubernetes.io/basic-auth" => {
            if let (Some(user), Some(password)) = (needed("username"), needed("password")) {
                errors.extend([user, password]);
            }
        }
        "kubernetes.io/ssh-auth" if decoded(&data.value["ssh-privatekey"]).is_empty() => {
            errors.push(FieldError::required("data[ssh-privatekey]", ""));
        }
        "kubernetes.io/tls" => {
            errors.extend(needed("tls.crt"));
            errors.extend(needed("tls.key"));
        }
        _ => {}
    }
    errors
}

fn json_key(data: &At<'_>, key: &str) -> Option<FieldError> {
    let path = format!("data[{key}]");
    let Some(value) = data.value.get(key) else {
        return Some(FieldError::required(path, ""));
    };
    let bytes = decoded(value);
    match serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes) {
        Ok(_) => None,
        Err(_) => {
            let why = if bytes.is_empty() {
                "unexpected end of JSON input".to_owned()
            } else {
                let first = char::from(bytes[0]);
                format!("invalid character '{first}' looking for beginning of value")
            };
            Some(FieldError::invalid(path, &json!("<secret contents redacted>"), why))
        }
    }
}

/// Checks a new ServiceAccount.
pub(crate) fn create_service_account(object: &Value) -> Vec<FieldError> {
    meta::create(object, true, meta::SUBDOMAIN)
}

/// Checks a new namespace.
pub(crate) fn create_namespace(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, false, meta::LABEL);
    for finalizer in At::root(object).get("spec.finalizers").items() {
        let name = finalizer.text();
        errors.extend(named_invalid("spec.finalizers", name, names::label_key(name)));
        let standard = ["kubernetes", "orphan", "foregroundDeletion"].contains(&name);
        if !name.contains('/') && !standard {
            errors.push(FieldError::invalid(
                "spec.finalizers",
                finalizer.value,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    errors
}

/// Checks a changed status of a namespace.
pub(crate) fn status_namespace(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    let phase = &new["status"]["phase"];
    let deleting = !new["metadata"]["deletionTimestamp"].is_null();
    if !deleting && *phase != json!("Active") {
        let why = "may only be 'Active' if `deletionTimestamp` is empty";
        errors.push(FieldError::invalid("status.Phase", &json!(phase.as_str().unwrap_or("")), why));
    }
    if deleting && *phase != json!("Terminating") {
        let why = "may only be 'Terminating' if `deletionTimestamp` is not empty";
        errors.push(FieldError::invalid("status.Phase", &json!(phase.as_str().unwrap_or("")), why));
    }
    errors
}

/// Checks a new node.
pub(crate) fn create_node(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, false, meta::SUBDOMAIN);
    errors.extend(node(object));
    errors
}

fn node(object: &Value) -> Vec<FieldError> {
    let spec = At::root(object).get("spec");
    let mut errors = taints(&spec.get("taints"));
    let cidrs = spec.get("podCIDRs");
    for (index, cidr) in cidrs.items().enumerate() {
        errors.extend(named_invalid(
            &format!("spec.podCIDRs[{index}]"),
            cidr.text(),
            names::cidr(cidr.text()),
        ));
    }
    if cidrs.len() > 1 {
        let six = cidrs.items().filter(|cidr| cidr.text().contains(':')).count();
        if cidrs.len() > 2 || six != 1 {
            errors.push(cidrs.invalid("may specify no more than one CIDR for each IP family"));
        }
    }
    errors
}

fn taints(list: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = Vec::new();
    for taint in list.items() {
        let (key, value, effect) = (taint.get("key"), taint.get("value"), taint.get("effect"));
        errors.extend(named_invalid(&key.path, key.text(), names::label_key(key.text())));
        let wrong = names::label_value(value.text());
        if !wrong.is_empty() {
            errors.push(FieldError::invalid(&*value.path, value.value, wrong.join(";")));
        }
        if effect.text().is_empty() {
            errors.push(effect.required(""));
        } else if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect.text()) {
            errors.push(effect.unsupported(&["NoSchedule", "PreferNoSchedule", "NoExecute"]));
        }
        let pair = (key.text(), effect.text());
        if seen.contains(&pair) {
            // As Go writes the struct, whose fields have no names of their own.
            let shown = format!(
                "{{\"Key\":{:?},\"Value\":{:?},\"Effect\":{:?},\"TimeAdded\":{}}}",
                key.text(),
                value.text(),
                effect.text(),
                taint.get("timeAdded").value
            );
            let mut error = FieldError::duplicate_shown(&*taint.path, shown);
            error.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(error);
        }
        seen.push(pair);
    }
    errors
}

/// Checks a changed node.
pub(crate) fn update_node(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(node(new));
    let (spec, before) = (At::root(new).get("spec"), At::root(old).get("spec"));
    let (cidrs, old_cidrs) = (spec.get("podCIDRs"), before.get("podCIDRs"));
    if !old_cidrs.is_empty() && cidrs.value != old_cidrs.value {
        errors
            .push(cidrs.forbidden("node updates may not change podCIDR except from \"\" to valid"));
    }
    let (id, old_id) = (spec.get("providerID"), before.get("providerID"));
    if !old_id.text().is_empty() && id.text() != old_id.text() {
        errors
            .push(id.forbidden("node updates may not change providerID except from \"\" to valid"));
    }
    errors
}

/// Checks a changed status of a node.
pub(crate) fn status_node(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    let status = At::root(new).get("status");
    let mut seen = Vec::new();
    for address in status.get("addresses").items() {
        if seen.contains(&address.value) {
            errors.push(address.duplicate());
        }
        seen.push(address.value);
    }
    for list in ["capacity", "allocatable"] {
        for (name, quantity) in status.get(list).entries() {
            errors.extend(resource_name(name, &quantity.path));
            errors.extend(quantity_of(name, &quantity));
        }
    }
    errors
}

/// Checks a new Lease.
pub(crate) fn create_lease(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    errors.extend(lease(object));
    errors
}

/// Checks a changed Lease.
pub(crate) fn update_lease(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(lease(new));
    errors
}

fn lease(object: &Value) -> Vec<FieldError> {
    let spec = At::root(object).get("spec");
    let mut errors = Vec::new();
    let duration = spec.get("leaseDurationSeconds");
    if duration.int().is_some_and(|seconds| seconds <= 0) {
        errors.push(duration.invalid("must be greater than 0"));
    }
    errors.extend(spec.get("leaseTransitions").non_negative());
    let holder = spec.get("holderIdentity");
    if holder.is_set() && holder.text().is_empty() && !spec.get("strategy").is_set() {
        errors.push(holder.invalid("must not be empty"));
    }
    errors
}

/// Checks a new event, of either group.
pub(crate) fn create_event(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    errors.extend(event(object));
    errors
}

/// Checks a changed event.
pub(crate) fn update_event(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(event(new));
    errors
}

fn event(object: &Value) -> Vec<FieldError> {
    let root = At::root(object);
    let served = root.get("regarding").is_set();
    let about = &object[if served { "regarding" } else { "involvedObject" }]["namespace"];
    let (about, own) = (about.as_str().unwrap_or(""), root.get("metadata.namespace"));
    let timed = served || root.get("eventTime").is_set();
    let fits = match (about.is_empty(), timed) {
        (true, false) => own.text() == "default",
        (true, true) => ["default", "kube-system"].contains(&own.text()),
        (false, false) => own.text() == about,
        (false, true) => true,
    };
    let mut errors = Vec::new();
    if !fits {
        let why = "does not match event.namespace";
        errors.push(FieldError::invalid("involvedObject.namespace", &json!(about), why));
    }
    if timed {
        errors.extend(event_reporter(&root, served));
    }
    errors
}

/// Events with a time of their own say who saw them do what.
fn event_reporter(root: &At<'_>, served: bool) -> Vec<FieldError> {
    const TEXT_MAX: usize = 128;
    let mut errors = Vec::new();
    let controller = root.get(if served { "reportingController" } else { "reportingComponent" });
    if controller.text().is_empty() {
        errors.push(controller.required(""));
    }
    let wrong = names::label_key(controller.text());
    errors.extend(named_invalid(&controller.path, controller.text(), wrong));
    for field in ["reportingInstance", "action", "reason"] {
        let field = root.get(field);
        if field.text().is_empty() {
            errors.push(field.required(""));
        } else if field.text().len() > TEXT_MAX {
            let why = format!("can have at most {TEXT_MAX} characters");
            errors.push(FieldError::invalid(&*field.path, &json!(""), why));
        }
    }
    errors
}

/// Checks a new ResourceQuota.
pub(crate) fn create_quota(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    errors.extend(quota(object));
    errors
}

/// Checks a changed ResourceQuota.
pub(crate) fn update_quota(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(quota(new));
    errors.extend(immutable(&At::root(new).get("spec.scopes"), &At::root(old).get("spec.scopes")));
    errors
}

fn quota(object: &Value) -> Vec<FieldError> {
    let spec = At::root(object).get("spec");
    let mut errors = Vec::new();
    for (name, quantity) in spec.get("hard").entries() {
        errors.extend(quota_resource(name, &quantity.path));
        errors.extend(quantity_of(name, &quantity));
    }
    const SCOPES: &[&str] = &[
        "Terminating",
        "NotTerminating",
        "BestEffort",
        "NotBestEffort",
        "PriorityClass",
        "CrossNamespacePodAffinity",
        "VolumeAttributesClass",
    ];
    let scopes = spec.get("scopes");
    let mut seen = Vec::new();
    for scope in scopes.items() {
        if !SCOPES.contains(&scope.text()) {
            errors.push(scopes.invalid("unsupported scope"));
        }
        seen.push(scope.text());
    }
    for (one, other) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if seen.contains(&one) && seen.contains(&other) {
            errors.push(scopes.invalid("conflicting scopes"));
        }
    }
    errors
}

/// Checks a new LimitRange.
pub(crate) fn create_limits(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    errors.extend(limits(object));
    errors
}

/// Checks a changed LimitRange.
pub(crate) fn update_limits(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(limits(new));
    errors
}

fn limits(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = Vec::new();
    for limit in At::root(object).get("spec.limits").items() {
        let kind = limit.get("type");
        if seen.contains(&kind.text()) {
            errors.push(kind.duplicate());
        }
        seen.push(kind.text());
        if kind.text() == "Pod" {
            for field in ["default", "defaultRequest"] {
                let field = limit.get(field);
                if !field.is_empty() {
                    errors.push(field.forbidden("may not be specified when `type` is 'Pod'"));
                }
            }
        }
        for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            for (name, quantity) in limit.get(list).entries() {
                errors.extend(resource_name(name, &quantity.path));
            }
        }
        errors.extend(limit_order(&limit));
    }
    errors
}

fn limit_order(limit: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (low, high, low_word, high_word) in [
        ("min", "max", "min", "max"),
        ("min", "defaultRequest", "min", "default request"),
        ("defaultRequest", "max", "default request", "max"),
        ("defaultRequest", "default", "default request", "default limit"),
        ("min", "default", "min", "default"),
        ("default", "max", "default", "max"),
    ] {
        for (name, quantity) in limit.get(low).entries() {
            let (Some(small), Some(large)) =
                (amount(quantity.value), amount(&limit.get(high).value[name]))
            else {
                continue;
            };
            if small > large {
                let (small, large) = (small.canonical(), large.canonical());
                errors.push(FieldError::invalid(
                    &*quantity.path,
                    &json!(small),
                    format!("{low_word} value {small} is greater than {high_word} value {large}"),
                ));
            }
        }
    }
    errors
}
