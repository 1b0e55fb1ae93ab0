//! StatefulSets. Upstream: `ValidateStatefulSetSpec`, `ValidateStatefulSetUpdate`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::at::At;
use super::super::{meta, pod, storage};
use super::{MISMATCH, all_non_negative, bounded, int_or_percent, not_decremented};
use crate::field::FieldError;
use crate::selector::LabelSelector;

/// What of a StatefulSet's spec may change.
const UPDATES: &str = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
const UPDATABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

/// Checks a new StatefulSet.
pub(crate) fn create_stateful_set(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    errors.extend(content(&At::root(object).get("spec")));
    errors
}

/// Checks a changed StatefulSet.
pub(crate) fn update_stateful_set(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(content(&At::root(new).get("spec")));
    let fixed = |object: &Value| {
        let mut spec = object["spec"].as_object().cloned().unwrap_or_default();
        spec.retain(|field, value| !UPDATABLE.contains(&field.as_str()) && !value.is_null());
        spec
    };
    if fixed(new) != fixed(old) {
        errors.push(FieldError::forbidden("spec", UPDATES));
    }
    errors
}

fn content(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let policy = spec.get("podManagementPolicy");
    match policy.text() {
        "" => errors.push(policy.required("")),
        "OrderedReady" | "Parallel" => {}
        _ => errors.push(policy.invalid("must be 'OrderedReady' or 'Parallel'")),
    }
    errors.extend(strategy(&spec.get("updateStrategy")));
    let retention = spec.get("persistentVolumeClaimRetentionPolicy");
    for field in ["whenDeleted", "whenScaled"] {
        let field = retention.get(field);
        if retention.is_set() && !["Retain", "Delete"].contains(&field.text()) {
            errors.push(field.unsupported(&["Retain", "Delete"]));
        }
    }
    errors.extend(all_non_negative(spec, &["replicas", "minReadySeconds", "ordinals.start"]));
    errors.extend(selector(spec));
    errors.extend(template(spec));
    let restart = spec.get("template.spec.restartPolicy");
    if restart.text() != "Always" {
        errors.push(restart.unsupported(&["Always"]));
    }
    let deadline = spec.get("template.spec.activeDeadlineSeconds");
    if deadline.is_set() {
        errors.push(deadline.forbidden("activeDeadlineSeconds in StatefulSet is not Supported"));
    }
    errors
}

fn selector(spec: &At<'_>) -> Vec<FieldError> {
    let selector = spec.get("selector");
    if !selector.is_set() {
        return vec![selector.required("")];
    }
    let mut errors = meta::selector(&selector);
    if meta::is_empty_selector(selector.value) {
        let shown = meta::selector_shown(selector.value);
        let why = "empty selector is invalid for statefulset";
        errors.push(FieldError::invalid_shown(&*selector.path, shown, why));
    }
    let labels = spec.get("template.metadata.labels");
    match LabelSelector::of_value(selector.value) {
        Ok(parsed) if !parsed.is_empty() && !parsed.matches_value(labels.value) => {
            errors.push(labels.invalid(MISMATCH));
        }
        Ok(_) => {}
        Err(_) => {
            let shown = meta::selector_shown(selector.value);
            errors.push(FieldError::invalid_shown(&*selector.path, shown, ""));
        }
    }
    errors
}

fn strategy(strategy: &At<'_>) -> Vec<FieldError> {
    let (kind, rolling) = (strategy.get("type"), strategy.get("rollingUpdate"));
    let mut errors = Vec::new();
    match kind.text() {
        "" => errors.push(strategy.required("")),
        "OnDelete" => {
            if rolling.is_set() {
                // As Go writes the struct, whose fields have no names of their own.
                let shown = format!(
                    "{{\"Partition\":{},\"MaxUnavailable\":{}}}",
                    rolling.get("partition").int().unwrap_or(0),
                    rolling.get("maxUnavailable").value
                );
                let why = "only allowed for updateStrategy 'RollingUpdate'";
                errors.push(FieldError::invalid_shown(&*rolling.path, shown, why));
            }
        }
        "RollingUpdate" => {
            errors.extend(rolling.get("partition").non_negative());
            errors.extend(int_or_percent(&rolling.get("maxUnavailable")));
        }
        _ => errors.push(strategy.invalid("must be 'RollingUpdate' or 'OnDelete'")),
    }
    errors
}

/// Checks the template together with the volumes that the claims will be.
fn template(spec: &At<'_>) -> Vec<FieldError> {
    let mut whole = spec.get("template").value.clone();
    let mut claims = BTreeMap::new();
    let mut errors = Vec::new();
    for claim in spec.get("volumeClaimTemplates").items() {
        let name = claim.get("metadata.name").text();
        if !name.is_empty() {
            claims
                .insert(name, json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
        }
        errors.extend(storage::claim_spec(&claim.get("spec")));
    }
    if !claims.is_empty()
        && let Some(fields) = whole["spec"].as_object_mut()
    {
        let volumes = fields.entry("volumes").or_insert_with(|| json!([]));
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.retain(|volume| !claims.contains_key(volume["name"].as_str().unwrap_or("")));
            volumes.extend(claims.into_values());
        }
    }
    errors.extend(pod::template(&At::named(&whole, spec.child("template"))));
    errors
}

/// Checks a changed status of a StatefulSet.
pub(crate) fn status_stateful_set(new: &Value, old: &Value) -> Vec<FieldError> {
    const OVER: &str = "cannot be greater than status.replicas";
    let mut errors = Vec::new();
    let (status, before) = (At::root(new).get("status"), At::root(old).get("status"));
    errors.extend(all_non_negative(
        &status,
        &[
            "replicas",
            "readyReplicas",
            "currentReplicas",
            "updatedReplicas",
            "availableReplicas",
            "observedGeneration",
            "collisionCount",
        ],
    ));
    errors.extend(bounded(
        &status,
        &[
            ("readyReplicas", "replicas", OVER),
            ("currentReplicas", "replicas", OVER),
            ("updatedReplicas", "replicas", OVER),
            ("availableReplicas", "replicas", OVER),
            ("availableReplicas", "readyReplicas", "cannot be greater than status.readyReplicas"),
        ],
    ));
    errors.extend(meta::update(new, old));
    errors.extend(not_decremented(&status, &before, "collisionCount"));
    errors
}
