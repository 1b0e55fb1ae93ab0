//! PodDisruptionBudgets and PriorityClasses. Upstream: `pkg/apis/{policy,scheduling}/validation`.

use serde_json::Value;

use super::at::{At, immutable};
use super::meta;
use super::workload::int_or_percent;
use crate::field::FieldError;

/// The highest priority that users may give.
const PRIORITY_MAX: i64 = 1_000_000_000;

/// Checks a new PodDisruptionBudget.
pub(crate) fn create_budget(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    errors.extend(budget(object));
    errors
}

/// Checks a changed PodDisruptionBudget.
pub(crate) fn update_budget(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(budget(new));
    errors
}

fn budget(object: &Value) -> Vec<FieldError> {
    let spec = At::root(object).get("spec");
    let (least, most) = (spec.get("minAvailable"), spec.get("maxUnavailable"));
    let mut errors = Vec::new();
    if least.is_set() && most.is_set() {
        // As Go writes the struct, whose fields have no names of their own.
        let selector = spec.get("selector");
        let selector = if selector.is_set() {
            meta::selector_shown(selector.value)
        } else {
            "null".to_owned()
        };
        let policy = spec.get("unhealthyPodEvictionPolicy").value;
        let shown = format!(
            "{{\"MinAvailable\":{},\"Selector\":{selector},\"MaxUnavailable\":{},\"UnhealthyPodEvictionPolicy\":{policy}}}",
            least.value, most.value
        );
        let why = "minAvailable and maxUnavailable cannot be both set";
        errors.push(FieldError::invalid_shown(&*spec.path, shown, why));
    }
    for bound in [&least, &most] {
        if bound.is_set() {
            errors.extend(int_or_percent(bound));
            let text = bound.value.as_str().unwrap_or("").trim_end_matches('%');
            if text.parse::<i64>().is_ok_and(|percent| percent > 100) {
                errors.push(bound.invalid("must not be greater than 100%"));
            }
        }
    }
    errors.extend(meta::selector(&spec.get("selector")));
    let policy = spec.get("unhealthyPodEvictionPolicy");
    if policy.is_set() && !["AlwaysAllow", "IfHealthyBudget"].contains(&policy.text()) {
        errors.push(policy.unsupported(&["AlwaysAllow", "IfHealthyBudget"]));
    }
    errors
}

/// Checks a changed status of a PodDisruptionBudget.
pub(crate) fn status_budget(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    let status = At::root(new).get("status");
    for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
        errors.extend(status.get(field).non_negative());
    }
    errors
}

/// Checks a new PriorityClass.
pub(crate) fn create_priority(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, false, meta::SUBDOMAIN);
    let root = At::root(object);
    let (name, value) = (root.get("metadata.name"), root.get("value"));
    if name.text().starts_with("system-") {
        if let Some(why) = unknown_system_priority(&root) {
            errors.push(name.forbidden(format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
            )));
        }
    } else if value.int().unwrap_or(0) > PRIORITY_MAX {
        errors.push(value.forbidden(format!(
            "maximum allowed value of a user defined priority is {PRIORITY_MAX}"
        )));
    }
    let policy = root.get("preemptionPolicy");
    if policy.is_set() {
        errors.extend(policy.one_of(&["PreemptLowerPriority", "Never"]));
    }
    errors
}

/// Why a class of the reserved prefix is not one of the system's own.
fn unknown_system_priority(class: &At<'_>) -> Option<String> {
    let name = class.get("metadata.name").text();
    let own = match name {
        "system-cluster-critical" => 2_000_000_000,
        "system-node-critical" => 2_000_001_000,
        _ => return Some(format!("{name} is not a known system priority class")),
    };
    if class.get("value").int() != Some(own) {
        return Some(format!("value of {name} PriorityClass must be {own}"));
    }
    let global = class.get("globalDefault").is_true();
    global.then(|| format!("globalDefault of {name} PriorityClass must be false"))
}

/// Checks a changed PriorityClass.
pub(crate) fn update_priority(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    if new["value"] != old["value"] {
        errors.push(FieldError::forbidden("value", "may not be changed in an update."));
    }
    let policy = |object| At::root(object).get("preemptionPolicy");
    errors.extend(immutable(&policy(new), &policy(old)));
    errors
}
