//! Default requests and limits of containers, and their bounds (`LimitRanger`).

use std::collections::BTreeMap;
use std::sync::Arc;

use api::StatusError;
use plan::quota::{nanos, pod_resources};
use serde_json::Value;

use super::Request;
use crate::Cache;
use crate::lookup::{LIMIT_RANGES, PODS, array, text};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Fills what containers of a new pod leave open.
pub(super) fn complete(
    cache: &Cache,
    request: &Request<'_>,
    pod: &mut Value,
) -> Result<(), StatusError> {
    debug_assert!(PODS.is(request.resource));
    let ranges = LIMIT_RANGES.list(cache, text(pod, "/metadata/namespace"));
    if !ranges.is_empty() {
        fill(pod, &ranges);
    }
    Ok(())
}

/// Sets defaults and says so in the annotation that upstream writes.
pub(super) fn fill(pod: &mut Value, ranges: &[Arc<Value>]) {
    let (requests, limits) = defaults(ranges);
    let mut notes = Vec::new();
    for (list, kind) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let name = text(container, "/name").to_owned();
            let mut set = |field: &str, word: &str, defaults: &BTreeMap<String, Value>| {
                let mut names = Vec::new();
                for (resource, value) in defaults {
                    if container["resources"][field][resource].is_null() {
                        container["resources"][field][resource] = value.clone();
                        names.push(resource.as_str());
                    }
                }
                if !names.is_empty() {
                    notes.push(format!("{} {word} for {kind} {name}", names.join(", ")));
                }
            };
            set("requests", "request", &requests);
            set("limits", "limit", &limits);
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        pod["metadata"]["annotations"][ANNOTATION] = note.into();
        pod["status"]["qosClass"] = api::qos::class(&pod["spec"]).into();
    }
}

/// Default requests and limits of containers.
fn defaults(ranges: &[Arc<Value>]) -> (BTreeMap<String, Value>, BTreeMap<String, Value>) {
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    for item in items(ranges, "Container") {
        for (field, into) in [("defaultRequest", &mut requests), ("default", &mut limits)] {
            for (resource, value) in item[field].as_object().into_iter().flatten() {
                into.insert(resource.clone(), value.clone());
            }
        }
    }
    (requests, limits)
}

fn items<'a>(ranges: &'a [Arc<Value>], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    ranges
        .iter()
        .flat_map(|range| array(range, "/spec/limits"))
        .filter(move |item| item["type"] == kind)
}

/// Refuses what is out of bounds.
pub(super) fn check(cache: &Cache, request: &Request<'_>, new: &Value) -> Result<(), StatusError> {
    let claim =
        request.resource.group.is_empty() && request.resource.plural == "persistentvolumeclaims";
    if !request.creates() || !(claim || PODS.is(request.resource)) {
        return Ok(());
    }
    let ranges = LIMIT_RANGES.list(cache, text(new, "/metadata/namespace"));
    let problems = if claim {
        let resources = &new["spec"]["resources"];
        items(&ranges, "PersistentVolumeClaim")
            .flat_map(|item| bounds(item, "PersistentVolumeClaim", resources))
            .collect()
    } else {
        problems(new, &ranges)
    };
    match problems.as_slice() {
        [] => Ok(()),
        [one] => Err(request.forbidden(new, one)),
        many => Err(request.forbidden(new, format!("[{}]", many.join(", ")))),
    }
}

pub(super) fn problems(pod: &Value, ranges: &[Arc<Value>]) -> Vec<String> {
    let mut problems: Vec<String> = Vec::new();
    for item in items(ranges, "Container") {
        for container in
            array(pod, "/spec/containers").iter().chain(array(pod, "/spec/initContainers"))
        {
            problems.extend(bounds(item, "Container", &container["resources"]));
        }
    }
    for item in items(ranges, "Pod") {
        problems.extend(bounds(item, "Pod", &pod_resources(pod)));
    }
    let mut seen = Vec::new();
    problems.retain(|problem| {
        !seen.contains(problem) && {
            seen.push(problem.clone());
            true
        }
    });
    problems
}

fn bounds(item: &Value, kind: &str, resources: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let limited = |field: &'static str| item[field].as_object().into_iter().flatten();
    for (resource, bound) in limited("min") {
        let request = &resources["requests"][resource];
        let limit = &resources["limits"][resource];
        let shown = plain(bound);
        match (nanos(request), nanos(limit), nanos(bound)) {
            (Some(request_n), _, Some(least)) if request_n < least => problems.push(format!(
                "minimum {resource} usage per {kind} is {shown}, but request is {}",
                plain(request)
            )),
            (Some(_), Some(limit_n), Some(least)) if limit_n < least => problems.push(format!(
                "minimum {resource} usage per {kind} is {shown}, but limit is {}",
                plain(limit)
            )),
            (None, _, Some(_)) => {
                problems.push(format!(
                    "minimum {resource} usage per {kind} is {shown}.  No request is specified"
                ));
            }
            _ => {}
        }
    }
    for (resource, bound) in limited("max") {
        let request = &resources["requests"][resource];
        let limit = &resources["limits"][resource];
        // Claims have no limits: their request counts.
        let limit = if kind == "PersistentVolumeClaim" { request } else { limit };
        let shown = plain(bound);
        let word = if kind == "PersistentVolumeClaim" { "request" } else { "limit" };
        match (nanos(request), nanos(limit), nanos(bound)) {
            (_, None, Some(_)) => {
                problems.push(format!(
                    "maximum {resource} usage per {kind} is {shown}.  No limit is specified"
                ));
            }
            (_, Some(limit_n), Some(most)) if limit_n > most => problems.push(format!(
                "maximum {resource} usage per {kind} is {shown}, but {word} is {}",
                plain(limit)
            )),
            (Some(request_n), _, Some(most)) if request_n > most => problems.push(format!(
                "maximum {resource} usage per {kind} is {shown}, but request is {}",
                plain(request)
            )),
            _ => {}
        }
    }
    for (resource, bound) in limited("maxLimitRequestRatio") {
        let (request, limit) =
            (nanos(&resources["requests"][resource]), nanos(&resources["limits"][resource]));
        let shown = plain(bound);
        match (request, limit, nanos(bound)) {
            (None | Some(0), _, _) => problems.push(format!(
                "{resource} max limit to request ratio per {kind} is {shown}, but no request is specified or request is 0"
            )),
            (_, None | Some(0), _) => problems.push(format!(
                "{resource} max limit to request ratio per {kind} is {shown}, but no limit is specified or limit is 0"
            )),
            (Some(request), Some(limit), Some(most)) if limit * 1_000_000_000 > most * request => {
                let ratio = limit * 1_000_000 / request;
                let (whole, rest) = (ratio / 1_000_000, ratio % 1_000_000);
                problems.push(format!(
                    "{resource} max limit to request ratio per {kind} is {shown}, but provided ratio is {whole}.{rest:06}"
                ));
            }
            _ => {}
        }
    }
    problems
}

/// A quantity as it is written.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
