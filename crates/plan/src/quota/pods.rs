//! What pods count for, and which quotas are about a pod.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Usage, amount, nanos};

/// Resources that quotas also name without `requests.`.
const SHORT: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Counts a pod; one that has ended is only an object.
pub(super) fn count(pod: &Value, usage: &mut Usage) {
    if matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded")) {
        usage.remove("pods");
        return;
    }
    let resources = pod_resources(pod);
    for field in ["requests", "limits"] {
        for (resource, value) in resources[field].as_object().into_iter().flatten() {
            let value = nanos(value).unwrap_or(0);
            usage.insert(format!("{field}.{resource}"), value);
            let short = SHORT.contains(&resource.as_str()) || resource.starts_with("hugepages-");
            if field == "requests" && short {
                usage.insert(resource.clone(), value);
            }
        }
    }
}

/// The sums of a pod's containers and sidecars, or what its init containers need when that is more; with the overhead.
#[must_use]
pub fn pod_resources(pod: &Value) -> Value {
    let mut total = json!({"requests": {}, "limits": {}});
    let spec = &pod["spec"];
    for field in ["requests", "limits"] {
        let mut sums: BTreeMap<String, i128> = BTreeMap::new();
        for container in spec["containers"].as_array().into_iter().flatten() {
            for (resource, value) in given(container, field) {
                *sums.entry(resource).or_default() += value;
            }
        }
        let (mut sidecars, mut most) = (BTreeMap::new(), BTreeMap::new());
        for container in spec["initContainers"].as_array().into_iter().flatten() {
            let stays = container["restartPolicy"] == "Always";
            for (resource, value) in given(container, field) {
                let beside: &mut i128 = sidecars.entry(resource.clone()).or_default();
                let needed = *beside + value;
                if stays {
                    *beside = needed;
                    *sums.entry(resource.clone()).or_default() += value;
                }
                let peak: &mut i128 = most.entry(resource).or_default();
                *peak = (*peak).max(needed);
            }
        }
        for (resource, value) in most {
            let sum = sums.entry(resource).or_default();
            *sum = (*sum).max(value);
        }
        for (resource, value) in spec["overhead"].as_object().into_iter().flatten() {
            if let Some(sum) = sums.get_mut(resource) {
                *sum += nanos(value).unwrap_or(0);
            }
        }
        for (resource, sum) in sums {
            total[field][&resource] = amount(&resource, sum).into();
        }
    }
    total
}

fn given(container: &Value, field: &str) -> Vec<(String, i128)> {
    let named = container["resources"][field].as_object().into_iter().flatten();
    named.map(|(resource, value)| (resource.clone(), nanos(value).unwrap_or(0))).collect()
}

/// Whether the quota is about the object: a quota with scopes is about the pods in all of them, and nothing else.
#[must_use]
pub fn in_scopes(quota: &Value, plural: &str, object: &Value) -> bool {
    let plain = quota["spec"]["scopes"].as_array().into_iter().flatten();
    let plain = plain.map(|scope| json!({"scopeName": scope, "operator": "Exists"}));
    let selected = &quota["spec"]["scopeSelector"]["matchExpressions"];
    let selected = selected.as_array().into_iter().flatten().cloned();
    plain.chain(selected).all(|scope| plural == "pods" && in_scope(&scope, object))
}

fn in_scope(scope: &Value, pod: &Value) -> bool {
    let ends = pod["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
    let best_effort = api::qos::class(&pod["spec"]) == "BestEffort";
    match scope["scopeName"].as_str() {
        Some("Terminating") => ends,
        Some("NotTerminating") => !ends,
        Some("BestEffort") => best_effort,
        Some("NotBestEffort") => !best_effort,
        Some("CrossNamespacePodAffinity") => crosses_namespaces(&pod["spec"]["affinity"]),
        Some("PriorityClass") => {
            let class = pod["spec"]["priorityClassName"].as_str().unwrap_or("");
            let mut values = scope["values"].as_array().into_iter().flatten();
            match scope["operator"].as_str() {
                Some("In") => values.any(|value| value == class),
                Some("NotIn") => !values.any(|value| value == class),
                Some("DoesNotExist") => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        _ => false,
    }
}

/// Whether a term of the pod's (anti-)affinity names or selects namespaces.
fn crosses_namespaces(affinity: &Value) -> bool {
    let kinds = ["podAffinity", "podAntiAffinity"].map(|kind| &affinity[kind]);
    kinds.into_iter().any(|kind| {
        let required = &kind["requiredDuringSchedulingIgnoredDuringExecution"];
        let preferred = &kind["preferredDuringSchedulingIgnoredDuringExecution"];
        let preferred = preferred.as_array().into_iter().flatten();
        let mut terms = required
            .as_array()
            .into_iter()
            .flatten()
            .chain(preferred.map(|one| &one["podAffinityTerm"]));
        terms.any(|term| {
            term["namespaces"].as_array().is_some_and(|names| !names.is_empty())
                || !term["namespaceSelector"].is_null()
        })
    })
}
