//! Requests and limits of containers, and the names of resources. Upstream: `ValidateContainerResourceRequirements`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::at::{At, NEGATIVE};
use super::meta::named_invalid;
use super::names;
use crate::field::FieldError;
use crate::quantity::{self, Amount};

/// An amount, zero when absent.
pub(crate) fn amount(value: &Value) -> Option<Amount> {
    match value {
        Value::String(text) => quantity::parse(text).ok(),
        Value::Number(number) => quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

/// Checks requests, limits and claims.
pub(crate) fn requirements(resources: &At<'_>, claims: &BTreeSet<&str>) -> Vec<FieldError> {
    let (limits, requests) = (resources.get("limits"), resources.get("requests"));
    let mut errors = Vec::new();
    let (mut compute, mut huge) = (false, false);
    for (name, quantity) in limits.entries() {
        errors.extend(container_resource(name, &quantity.path));
        errors.extend(quantity_of(name, &quantity));
        compute |= ["cpu", "memory"].contains(&name);
        huge |= name.starts_with("hugepages-");
    }
    for (name, quantity) in requests.entries() {
        errors.extend(container_resource(name, &quantity.path));
        errors.extend(quantity_of(name, &quantity));
        errors.extend(against_limit(name, &quantity, &limits, &requests));
        compute |= ["cpu", "memory"].contains(&name);
        huge |= name.starts_with("hugepages-");
    }
    if huge && !compute {
        errors.push(resources.forbidden("HugePages require cpu or memory"));
    }
    for claim in resources.get("claims").items() {
        let name = claim.value["name"].as_str().unwrap_or("");
        if name.is_empty() {
            errors.push(claim.required(""));
        } else if !claims.contains(name) {
            let mut error = FieldError::not_found(&*claim.path, &json!(name));
            let known: Vec<&str> = claims.iter().copied().collect();
            error.detail = "must be one of the names in pod.spec.resourceClaims".to_owned();
            error.detail += &if known.is_empty() {
                " which is empty".to_owned()
            } else {
                format!(": {}", known.join(", "))
            };
            errors.push(error);
        }
    }
    errors
}

fn against_limit(
    name: &str,
    quantity: &At<'_>,
    limits: &At<'_>,
    requests: &At<'_>,
) -> Option<FieldError> {
    let overcommit = is_native(name) && !name.starts_with("hugepages-");
    let request = amount(quantity.value)?;
    let Some(limit) = amount(&limits.value[name]) else {
        return (!overcommit)
            .then(|| limits.required("Limit must be set for non overcommitable resources"));
    };
    let shown = json!(request.canonical());
    let wrong = |why: String| Some(FieldError::invalid(&*requests.path, &shown, why));
    if request != limit && !overcommit {
        return wrong(format!("must be equal to {name} limit of {}", limit.canonical()));
    }
    if request > limit {
        return wrong(format!(
            "must be less than or equal to {name} limit of {}",
            limit.canonical()
        ));
    }
    None
}

/// Without a prefix, or with upstream's own.
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

/// The name of a resource that a container may ask for.
fn container_resource(name: &str, path: &str) -> Vec<FieldError> {
    let mut errors = resource_name(name, path);
    let standard =
        ["cpu", "memory", "ephemeral-storage"].contains(&name) || name.starts_with("hugepages-");
    if !name.contains('/') && !standard {
        errors.push(FieldError::invalid(
            path,
            &json!(name),
            "must be a standard resource for containers",
        ));
    } else if name.contains('/') && !is_native(name) && name.starts_with("requests.") {
        errors.push(FieldError::invalid(
            path,
            &json!(name),
            "doesn't follow extended resource name standard",
        ));
    }
    errors
}

/// The name of any resource.
pub(crate) fn resource_name(name: &str, path: &str) -> Vec<FieldError> {
    let wrong = names::label_key(name);
    if !wrong.is_empty() {
        return named_invalid(path, name, wrong);
    }
    if name.contains('/') || is_standard(name) {
        return Vec::new();
    }
    vec![FieldError::invalid(
        path,
        &json!(name),
        "must be a standard resource type or fully qualified",
    )]
}

fn is_standard(name: &str) -> bool {
    const KNOWN: &[&str] = &[
        "cpu",
        "memory",
        "ephemeral-storage",
        "requests.cpu",
        "requests.memory",
        "requests.ephemeral-storage",
        "limits.cpu",
        "limits.memory",
        "limits.ephemeral-storage",
        "pods",
        "resourcequotas",
        "services",
        "replicationcontrollers",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "storage",
        "requests.storage",
        "services.nodeports",
        "services.loadbalancers",
    ];
    KNOWN.contains(&name)
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
}

/// The name of a resource that a quota may count.
pub(crate) fn quota_resource(name: &str, path: &str) -> Vec<FieldError> {
    let wrong = names::label_key(name);
    let mut errors = named_invalid(path, name, wrong);
    let known = is_standard(name) || name.starts_with("count/") || name.contains('/');
    if errors.is_empty() && !known {
        errors.push(FieldError::invalid(
            path,
            &json!(name),
            "must be a standard resource for quota",
        ));
    }
    errors
}

/// Not negative, and whole for what is counted.
pub(crate) fn quantity_of(name: &str, quantity: &At<'_>) -> Vec<FieldError> {
    let Some(amount) = amount(quantity.value) else { return Vec::new() };
    let shown = json!(amount.canonical());
    let mut errors = Vec::new();
    if amount.nanos() < 0 {
        errors.push(FieldError::invalid(&*quantity.path, &shown, NEGATIVE));
    }
    const COUNTED: &[&str] = &[
        "pods",
        "resourcequotas",
        "services",
        "replicationcontrollers",
        "secrets",
        "configmaps",
        "persistentvolumeclaims",
        "services.nodeports",
        "services.loadbalancers",
    ];
    let counted = COUNTED.contains(&name) || !is_native(name) || name.starts_with("count/");
    if counted && amount.millis() % 1000 != 0 {
        errors.push(FieldError::invalid(&*quantity.path, &shown, "must be an integer"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_compared_with_limits() {
        let object = json!({"limits": {"cpu": "1", "example.com/gpu": "2"}, "requests": {"cpu": "1500m", "example.com/gpu": "1", "foo": "1"}});
        let errors = requirements(&At::named(&object, "r"), &BTreeSet::new());
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "r.requests: Invalid value: \"1500m\": must be less than or equal to cpu limit of 1",
                "r.requests: Invalid value: \"1\": must be equal to example.com/gpu limit of 2",
                "r.requests[foo]: Invalid value: \"foo\": must be a standard resource type or fully qualified",
                "r.requests[foo]: Invalid value: \"foo\": must be a standard resource for containers",
            ]
        );
    }
}
