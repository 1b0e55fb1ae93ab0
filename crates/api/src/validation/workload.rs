//! Deployments, ReplicaSets, StatefulSets, DaemonSets and ReplicationControllers. Upstream: `pkg/apis/apps/validation`.

mod stateful;

pub(crate) use stateful::{create_stateful_set, status_stateful_set, update_stateful_set};

use serde_json::{Value, json};

use super::at::{At, IMMUTABLE};
use super::{meta, names, pod};
use crate::field::FieldError;
use crate::selector::LabelSelector;

const MISMATCH: &str = "`selector` does not match template `labels`";

/// The selector must be set, select something, and match the template.
fn selector_and_template(spec: &At<'_>, kind: &str, empty: &str) -> Vec<FieldError> {
    let selector = spec.get("selector");
    let mut errors = Vec::new();
    if selector.is_set() {
        errors.extend(meta::selector(&selector));
        if meta::is_empty_selector(selector.value) {
            let shown = meta::selector_shown(selector.value);
            errors.push(FieldError::invalid_shown(&*selector.path, shown, empty));
        }
    } else {
        errors.push(selector.required(""));
    }
    let template = spec.get("template");
    match LabelSelector::of_value(selector.value) {
        Err(why) => errors.push(FieldError::invalid_shown(
            &*selector.path,
            meta::selector_shown(selector.value),
            format!("invalid label selector: {why}"),
        )),
        Ok(parsed) => {
            let labels = template.get("metadata.labels");
            // A selector that is not there selects nothing; one that is empty selects everything.
            let matches = parsed.is_empty() || parsed.matches_value(labels.value);
            if !selector.is_set() || !matches {
                errors.push(labels.invalid(MISMATCH));
            }
            errors.extend(pod::template(&template));
        }
    }
    let policy = template.get("spec.restartPolicy");
    if policy.text() != "Always" {
        errors.push(policy.unsupported(&["Always"]));
    }
    let deadline = template.get("spec.activeDeadlineSeconds");
    if deadline.is_set() {
        errors
            .push(deadline.forbidden(format!("activeDeadlineSeconds in {kind} is not Supported")));
    }
    errors
}

fn selector_immutable(new: &Value, old: &Value) -> Option<FieldError> {
    let selector = &new["spec"]["selector"];
    (*selector != old["spec"]["selector"]).then(|| {
        FieldError::invalid_shown("spec.selector", meta::selector_shown(selector), IMMUTABLE)
    })
}

fn all_non_negative(place: &At<'_>, fields: &[&str]) -> Vec<FieldError> {
    fields.iter().filter_map(|field| place.get(field).non_negative()).collect()
}

/// Each `(smaller, larger, message)`: the first may not exceed the second.
fn bounded(status: &At<'_>, bounds: &[(&str, &str, &str)]) -> Vec<FieldError> {
    let number = |field: &str| status.get(field).int().unwrap_or(0);
    bounds
        .iter()
        .filter(|(smaller, larger, _)| number(smaller) > number(larger))
        .map(|(smaller, _, why)| status.get(smaller).invalid(*why))
        .collect()
}

fn not_decremented(new: &At<'_>, old: &At<'_>, field: &str) -> Option<FieldError> {
    let (after, before) = (new.get(field), old.get(field));
    let lower = before.int().is_some_and(|before| after.int().is_none_or(|after| after < before));
    lower.then(|| {
        FieldError::invalid(&*after.path, &json!(after.int().unwrap_or(0)), "cannot be decremented")
    })
}

/// A number or a percentage, not negative.
pub(super) fn int_or_percent(at: &At<'_>) -> Vec<FieldError> {
    match at.value {
        Value::String(text) => at.all_invalid(names::percent(text)),
        _ => at.non_negative().into_iter().collect(),
    }
}

/// The number, or the percentage's.
fn magnitude(value: &Value) -> i64 {
    match value {
        Value::String(text) => text.trim_end_matches('%').parse().unwrap_or(0),
        other => other.as_i64().unwrap_or(0),
    }
}

fn at_most_all(at: &At<'_>) -> Option<FieldError> {
    let over = at.value.is_string() && magnitude(at.value) > 100;
    over.then(|| at.invalid("must not be greater than 100%"))
}

/// Checks a new Deployment.
pub(crate) fn create_deployment(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    errors.extend(deployment_spec(&At::root(object).get("spec")));
    errors
}

/// Checks a changed Deployment.
pub(crate) fn update_deployment(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(deployment_spec(&At::root(new).get("spec")));
    errors.extend(selector_immutable(new, old));
    errors
}

fn deployment_spec(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = all_non_negative(spec, &["replicas"]);
    errors.extend(selector_and_template(
        spec,
        "ReplicaSet",
        "empty selector is invalid for deployment",
    ));
    errors.extend(deployment_strategy(&spec.get("strategy")));
    errors.extend(all_non_negative(spec, &["minReadySeconds", "revisionHistoryLimit"]));
    let deadline = spec.get("progressDeadlineSeconds");
    errors.extend(deadline.non_negative());
    let ready = spec.get("minReadySeconds").int().unwrap_or(0);
    if deadline.int().is_some_and(|seconds| seconds <= ready) {
        errors.push(deadline.invalid("must be greater than minReadySeconds"));
    }
    errors
}

fn deployment_strategy(strategy: &At<'_>) -> Vec<FieldError> {
    let (kind, rolling) = (strategy.get("type"), strategy.get("rollingUpdate"));
    let mut errors = Vec::new();
    match kind.text() {
        "Recreate" if rolling.is_set() => {
            errors
                .push(rolling.forbidden("may not be specified when strategy `type` is 'Recreate'"));
        }
        "Recreate" => {}
        "RollingUpdate" if !rolling.is_set() => {
            errors.push(rolling.required("this should be defaulted and never be nil"));
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            errors.extend(int_or_percent(&unavailable));
            errors.extend(int_or_percent(&surge));
            if magnitude(unavailable.value) == 0 && magnitude(surge.value) == 0 {
                errors.push(unavailable.invalid("may not be 0 when `maxSurge` is 0"));
            }
            errors.extend(at_most_all(&unavailable));
        }
        _ => errors.push(kind.unsupported(&["Recreate", "RollingUpdate"])),
    }
    errors
}

/// Checks a changed status of a Deployment.
pub(crate) fn status_deployment(new: &Value, old: &Value) -> Vec<FieldError> {
    const OVER: &str = "cannot be greater than status.replicas";
    let mut errors = meta::update(new, old);
    let (status, before) = (At::root(new).get("status"), At::root(old).get("status"));
    errors.extend(all_non_negative(
        &status,
        &[
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "collisionCount",
        ],
    ));
    errors.extend(bounded(
        &status,
        &[
            ("updatedReplicas", "replicas", OVER),
            ("readyReplicas", "replicas", OVER),
            ("availableReplicas", "replicas", OVER),
            ("availableReplicas", "readyReplicas", "cannot be greater than readyReplicas"),
        ],
    ));
    errors.extend(not_decremented(&status, &before, "collisionCount"));
    errors
}

/// Checks a new ReplicaSet.
pub(crate) fn create_replica_set(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    errors.extend(replica_set_spec(&At::root(object).get("spec")));
    errors
}

/// Checks a changed ReplicaSet.
pub(crate) fn update_replica_set(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(replica_set_spec(&At::root(new).get("spec")));
    errors.extend(selector_immutable(new, old));
    errors
}

fn replica_set_spec(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = all_non_negative(spec, &["replicas", "minReadySeconds"]);
    errors.extend(selector_and_template(
        spec,
        "ReplicaSet",
        "empty selector is invalid for deployment",
    ));
    errors
}

/// Checks a changed status of a ReplicaSet or ReplicationController.
pub(crate) fn status_replica_set(new: &Value, old: &Value) -> Vec<FieldError> {
    const OVER: &str = "cannot be greater than status.replicas";
    let mut errors = meta::update(new, old);
    let status = At::root(new).get("status");
    errors.extend(all_non_negative(
        &status,
        &[
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "observedGeneration",
        ],
    ));
    errors.extend(bounded(
        &status,
        &[
            ("fullyLabeledReplicas", "replicas", OVER),
            ("readyReplicas", "replicas", OVER),
            ("availableReplicas", "replicas", OVER),
            ("availableReplicas", "readyReplicas", "cannot be greater than readyReplicas"),
        ],
    ));
    errors
}

/// Checks a new DaemonSet.
pub(crate) fn create_daemon_set(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    errors.extend(daemon_set_spec(&At::root(object).get("spec")));
    errors
}

/// Checks a changed DaemonSet.
pub(crate) fn update_daemon_set(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(daemon_set_spec(&At::root(new).get("spec")));
    errors.extend(selector_immutable(new, old));
    errors
}

fn daemon_set_spec(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors =
        selector_and_template(spec, "DaemonSet", "empty selector is invalid for daemonset");
    errors.extend(all_non_negative(spec, &["minReadySeconds"]));
    let (kind, rolling) =
        (spec.get("updateStrategy.type"), spec.get("updateStrategy.rollingUpdate"));
    match kind.text() {
        "OnDelete" => {}
        "RollingUpdate" if !rolling.is_set() => errors.push(rolling.required("")),
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            errors.extend(int_or_percent(&unavailable));
            errors.extend(int_or_percent(&surge));
            match (magnitude(unavailable.value) > 0, magnitude(surge.value) > 0) {
                (true, true) => {
                    errors.push(surge.invalid("may not be set when maxUnavailable is non-zero"));
                }
                (false, false) => {
                    errors.push(unavailable.required("cannot be 0 when maxSurge is 0"));
                }
                _ => {}
            }
            errors.extend(at_most_all(&unavailable));
        }
        _ => errors.push(kind.unsupported(&["RollingUpdate", "OnDelete"])),
    }
    errors.extend(all_non_negative(spec, &["revisionHistoryLimit"]));
    errors
}

/// Checks a changed status of a DaemonSet.
pub(crate) fn status_daemon_set(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(all_non_negative(
        &At::root(new).get("status"),
        &[
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
        ],
    ));
    errors
}

/// Checks a new ReplicationController.
pub(crate) fn create_controller(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    errors.extend(controller_spec(&At::root(object).get("spec")));
    errors
}

/// Checks a changed ReplicationController.
pub(crate) fn update_controller(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(controller_spec(&At::root(new).get("spec")));
    errors
}

fn controller_spec(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = all_non_negative(spec, &["minReadySeconds"]);
    let (selector, template) = (spec.get("selector"), spec.get("template"));
    if selector.is_empty() {
        errors.push(selector.required(""));
    }
    errors.extend(all_non_negative(spec, &["replicas"]));
    if !template.is_set() {
        errors.push(template.required(""));
        return errors;
    }
    let labels = template.get("metadata.labels");
    if selector.entries().any(|(key, value)| labels.value[key] != *value.value) {
        errors.push(labels.invalid(MISMATCH));
    }
    errors.extend(pod::template(&template));
    let policy = template.get("spec.restartPolicy");
    if policy.text() != "Always" {
        errors.push(policy.unsupported(&["Always"]));
    }
    errors
}

/// Checks a new ControllerRevision.
pub(crate) fn create_revision(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    let root = At::root(object);
    if !root.get("data").is_set() {
        errors.push(root.get("data").required("data is mandatory"));
    }
    errors.extend(root.get("revision").non_negative());
    errors
}

/// Checks a changed ControllerRevision.
pub(crate) fn update_revision(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(At::root(new).get("revision").non_negative());
    errors.extend(super::at::immutable(&At::root(new).get("data"), &At::root(old).get("data")));
    errors
}

/// Checks a new PodTemplate.
pub(crate) fn create_template(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    errors.extend(pod::template(&At::root(object).get("template")));
    errors
}

/// Checks a changed PodTemplate.
pub(crate) fn update_template(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(pod::template(&At::root(new).get("template")));
    errors
}
