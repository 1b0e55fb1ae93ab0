//! What a namespace may hold (`ResourceQuota`), counted from the objects themselves.

use std::collections::BTreeMap;

use api::StatusError;
use api::resource::{RESOURCES, Resource};
use serde_json::Value;

use super::Request;
use super::limits::{amount, nanos, pod_resources};
use crate::Cache;
use crate::lookup::{RESOURCE_QUOTAS, array, text};

/// Billionths by resource name, as quotas name them.
type Usage = BTreeMap<String, i128>;
const ONE: i128 = 1_000_000_000;
/// Kinds that are counted under their plain plural.
const COUNTED: [&str; 8] = [
    "pods",
    "services",
    "configmaps",
    "secrets",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "endpoints",
];

/// Refuses a new object that does not fit.
pub(super) fn check(cache: &Cache, request: &Request<'_>, new: &Value) -> Result<(), StatusError> {
    let namespace = text(new, "/metadata/namespace");
    if namespace.is_empty() {
        return Ok(());
    }
    let quotas = RESOURCE_QUOTAS.list(cache, namespace);
    if quotas.is_empty() {
        return Ok(());
    }
    let delta = usage(request.resource, new);
    for quota in &quotas {
        if !array(quota, "/spec/scopes").is_empty() || quota["spec"]["scopeSelector"].is_object() {
            continue;
        }
        let hard: Usage = quota["spec"]["hard"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(resource, value)| Some((resource.clone(), nanos(value)?)))
            .collect();
        let name = text(quota, "/metadata/name");
        check_given(request, new, name, &hard)?;
        let touched: Vec<&String> = hard
            .keys()
            .filter(|resource| delta.get(*resource).is_some_and(|more| *more > 0))
            .collect();
        if touched.is_empty() {
            continue;
        }
        let used = used(cache, namespace, &hard);
        let of = |usage: &Usage, resource: &str| usage.get(resource).copied().unwrap_or(0);
        let over: Vec<&String> = touched
            .into_iter()
            .filter(|resource| of(&used, resource) + of(&delta, resource) > hard[*resource])
            .collect();
        if !over.is_empty() {
            let list = |usage: &Usage| {
                let parts = over.iter().map(|resource| {
                    format!("{resource}={}", amount(resource, of(usage, resource)))
                });
                parts.collect::<Vec<_>>().join(",")
            };
            let (requested, used, limited) = (list(&delta), list(&used), list(&hard));
            let why = format!(
                "exceeded quota: {name}, requested: {requested}, used: {used}, limited: {limited}"
            );
            return Err(request.forbidden(new, why));
        }
    }
    Ok(())
}

/// Every container names what the quota counts.
fn check_given(
    request: &Request<'_>,
    pod: &Value,
    quota: &str,
    hard: &Usage,
) -> Result<(), StatusError> {
    if !(request.resource.group.is_empty() && request.resource.plural == "pods") {
        return Ok(());
    }
    let mut missing = Vec::new();
    for wanted in hard.keys() {
        let (field, resource) = match wanted.split_once('.') {
            Some((field @ ("requests" | "limits"), resource)) => (field, resource),
            None if matches!(wanted.as_str(), "cpu" | "memory") => ("requests", wanted.as_str()),
            _ => continue,
        };
        if !matches!(resource, "cpu" | "memory") {
            continue;
        }
        let containers =
            array(pod, "/spec/initContainers").iter().chain(array(pod, "/spec/containers"));
        let names: Vec<&str> = containers
            .filter(|container| container["resources"][field][resource].is_null())
            .map(|container| text(container, "/name"))
            .collect();
        if !names.is_empty() {
            missing.push(format!("{wanted} for: {}", names.join(",")));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(request
        .forbidden(pod, format!("failed quota: {quota}: must specify {}", missing.join("; "))))
}

/// What one object counts for.
fn usage(resource: &Resource, object: &Value) -> Usage {
    let mut usage = Usage::new();
    let counted = if resource.group.is_empty() {
        format!("count/{}", resource.plural)
    } else {
        format!("count/{}.{}", resource.plural, resource.group)
    };
    usage.insert(counted, ONE);
    if !resource.group.is_empty() {
        return usage;
    }
    if COUNTED.contains(&resource.plural) {
        usage.insert(resource.plural.to_owned(), ONE);
    }
    match resource.plural {
        "pods" => pod_usage(object, &mut usage),
        "services" => {
            let ports = array(object, "/spec/ports")
                .iter()
                .filter(|port| port["nodePort"].as_u64().unwrap_or(0) > 0);
            usage.insert(
                "services.nodeports".to_owned(),
                i128::try_from(ports.count()).unwrap_or(0) * ONE,
            );
            let balanced = object["spec"]["type"] == "LoadBalancer";
            usage.insert("services.loadbalancers".to_owned(), i128::from(balanced) * ONE);
        }
        "persistentvolumeclaims" => {
            let storage = nanos(&object["spec"]["resources"]["requests"]["storage"]).unwrap_or(0);
            usage.insert("requests.storage".to_owned(), storage);
        }
        _ => {}
    }
    usage
}

fn pod_usage(pod: &Value, usage: &mut Usage) {
    if matches!(text(pod, "/status/phase"), "Failed" | "Succeeded") {
        usage.remove("pods");
        return;
    }
    let resources = pod_resources(pod);
    for field in ["requests", "limits"] {
        for (resource, value) in resources[field].as_object().into_iter().flatten() {
            let value = nanos(value).unwrap_or(0);
            usage.insert(format!("{field}.{resource}"), value);
            if field == "requests" && matches!(resource.as_str(), "cpu" | "memory") {
                usage.insert(resource.clone(), value);
            }
        }
    }
}

/// What the namespace holds of what is limited.
fn used(cache: &Cache, namespace: &str, hard: &Usage) -> Usage {
    let mut used = Usage::new();
    for resource in RESOURCES.iter().filter(|resource| resource.is_stored()) {
        if resource.scope != api::ResourceScope::Namespaced || !concerns(resource, hard) {
            continue;
        }
        for object in cache.list(resource, namespace) {
            for (name, amount) in usage(resource, &object) {
                *used.entry(name).or_default() += amount;
            }
        }
    }
    used
}

/// Whether objects of the resource count for any of the limits.
fn concerns(resource: &Resource, hard: &Usage) -> bool {
    let counted = format!("count/{}", resource.plural);
    let core = resource.group.is_empty();
    hard.keys().any(|name| {
        name.starts_with(&counted)
            || (core
                && (name.starts_with(resource.plural)
                    || (resource.plural == "pods" && !name.starts_with("count/"))
                    || (resource.plural == "persistentvolumeclaims" && name == "requests.storage")))
    })
}
