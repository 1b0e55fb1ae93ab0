//! What a namespace may hold (`ResourceQuota`), counted from the objects themselves.

use api::StatusError;
use api::resource::RESOURCES;
use plan::quota::{Usage, amount, concerns, hard, in_scopes, usage};
use serde_json::Value;

use super::Request;
use crate::Cache;
use crate::lookup::{RESOURCE_QUOTAS, array, text};

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
    let delta = usage(request.resource.group, request.resource.plural, new);
    for quota in &quotas {
        if !in_scopes(quota, request.resource.plural, new) {
            continue;
        }
        let hard = hard(quota);
        let name = text(quota, "/metadata/name");
        check_given(request, new, name, &hard)?;
        let touched: Vec<&String> = hard
            .keys()
            .filter(|resource| delta.get(*resource).is_some_and(|more| *more > 0))
            .collect();
        if touched.is_empty() {
            continue;
        }
        let used = used(cache, quota, &hard);
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

/// What the namespace holds of what is limited.
fn used(cache: &Cache, quota: &Value, hard: &Usage) -> Usage {
    let mut used = Usage::new();
    for resource in RESOURCES.iter().filter(|resource| resource.is_stored()) {
        let (group, plural) = (resource.group, resource.plural);
        if resource.scope != api::ResourceScope::Namespaced || !concerns(group, plural, hard) {
            continue;
        }
        for object in cache.list(resource, text(quota, "/metadata/namespace")) {
            if !in_scopes(quota, plural, &object) {
                continue;
            }
            for (name, amount) in usage(group, plural, &object) {
                *used.entry(name).or_default() += amount;
            }
        }
    }
    used
}
