//! Where pods may run: node selectors, affinity, tolerations, spreading. Upstream: `validateAffinity` and siblings.

use serde_json::{Value, json};

use super::at::At;
use super::meta::{self, named_invalid};
use super::names;
use crate::field::FieldError;

/// Checks affinity of all sorts.
pub(crate) fn affinity(affinity: &At<'_>) -> Vec<FieldError> {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let mut errors = Vec::new();
    let node = affinity.get("nodeAffinity");
    if node.get(REQUIRED).is_set() {
        errors.extend(node_selector(&node.get(REQUIRED)));
    }
    for term in node.get(PREFERRED).items() {
        errors.extend(weight(&term));
        errors.extend(node_term(&term.get("preference")));
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let place = affinity.get(kind);
        errors.extend(place.get(REQUIRED).items().flat_map(|term| pod_term(&term)));
        for term in place.get(PREFERRED).items() {
            errors.extend(weight(&term));
            errors.extend(pod_term(&term.get("podAffinityTerm")));
        }
    }
    errors
}

fn weight(term: &At<'_>) -> Option<FieldError> {
    let weight = term.get("weight");
    let value = weight.int().unwrap_or(0);
    let wrong = !(1..=100).contains(&value);
    wrong.then(|| FieldError::invalid(weight.path, &json!(value), "must be in the range 1-100"))
}

/// Checks a selector of nodes.
pub(crate) fn node_selector(selector: &At<'_>) -> Vec<FieldError> {
    let terms = selector.get("nodeSelectorTerms");
    if terms.is_empty() {
        return vec![terms.required("must have at least one node selector term")];
    }
    terms.items().flat_map(|term| node_term(&term)).collect()
}

fn node_term(term: &At<'_>) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = term
        .get("matchExpressions")
        .items()
        .flat_map(|expression| node_requirement(&expression))
        .collect();
    for requirement in term.get("matchFields").items() {
        let (key, operator, values) =
            (requirement.get("key"), requirement.get("operator"), requirement.get("values"));
        if !["In", "NotIn"].contains(&operator.text()) {
            errors.push(operator.invalid("not a valid selector operator"));
        } else if values.len() != 1 {
            errors.push(values.required(
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ));
        }
        if key.text() == "metadata.name" {
            let wrong = |value: At<'_>| value.all_invalid(names::dns1123_subdomain(value.text()));
            errors.extend(values.items().flat_map(wrong));
        } else {
            errors.push(key.invalid("not a valid field selector key"));
        }
    }
    errors
}

fn node_requirement(expression: &At<'_>) -> Vec<FieldError> {
    let (key, operator, values) =
        (expression.get("key"), expression.get("operator"), expression.get("values"));
    let mut errors = Vec::new();
    match operator.text() {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(
            values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"),
        ),
        "Gt" | "Lt" if values.len() != 1 => {
            errors.push(
                values.required("must be specified single value when `operator` is 'Lt' or 'Gt'"),
            );
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.push(FieldError::invalid(
            &*operator.path,
            &Value::from(other),
            "not a valid selector operator",
        )),
    }
    errors.extend(named_invalid(&key.path, key.text(), names::label_key(key.text())));
    errors.extend(
        values.items().flat_map(|value| value.all_invalid(names::label_value(value.text()))),
    );
    errors
}

fn pod_term(term: &At<'_>) -> Vec<FieldError> {
    let mut errors = meta::selector(&term.get("labelSelector"));
    errors.extend(meta::selector(&term.get("namespaceSelector")));
    for name in term.get("namespaces").items() {
        let wrong = names::dns1123_label(name.text());
        errors.extend(named_invalid(&term.child("namespace"), name.text(), wrong));
    }
    let key = term.get("topologyKey");
    if key.text().is_empty() {
        errors.push(key.required("can not be empty"));
    }
    errors.extend(named_invalid(&key.path, key.text(), names::label_key(key.text())));
    errors
}

/// Checks tolerations.
pub(crate) fn tolerations(list: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for toleration in list.items() {
        let (key, operator, value, effect) = (
            toleration.get("key"),
            toleration.get("operator"),
            toleration.get("value"),
            toleration.get("effect"),
        );
        if !key.text().is_empty() {
            errors.extend(key.all_invalid(names::label_key(key.text())));
        }
        if key.text().is_empty() && operator.text() != "Exists" {
            errors.push(FieldError::invalid(
                &*operator.path,
                &Value::from(operator.text()),
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if toleration.get("tolerationSeconds").is_set() && effect.text() != "NoExecute" {
            errors.push(FieldError::invalid(
                &*effect.path,
                &Value::from(effect.text()),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
        match operator.text() {
            "Equal" | "" => {
                let wrong = names::label_value(value.text());
                if !wrong.is_empty() {
                    errors.push(named(&operator, value.text(), &wrong.join(";")));
                }
            }
            "Exists" if !value.text().is_empty() => errors.push(named(
                &operator,
                toleration.value["value"].as_str().unwrap_or(""),
                "value must be empty when `operator` is 'Exists'",
            )),
            "Exists" => {}
            _ => errors.push(operator.unsupported(&["Equal", "Exists"])),
        }
        if !effect.text().is_empty() {
            errors.extend(effect.one_of(&["NoSchedule", "PreferNoSchedule", "NoExecute"]));
        }
    }
    errors
}

fn named(at: &At<'_>, shown: &str, detail: &str) -> FieldError {
    FieldError::invalid(&*at.path, &Value::from(shown), detail)
}

/// Checks how pods are spread.
pub(crate) fn spread(list: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let all: Vec<At<'_>> = list.items().collect();
    for (index, constraint) in all.iter().enumerate() {
        let skew = constraint.get("maxSkew");
        if skew.int().unwrap_or(0) <= 0 {
            errors.push(FieldError::invalid(
                &*skew.path,
                &json!(skew.int().unwrap_or(0)),
                "must be greater than zero",
            ));
        }
        let key = constraint.get("topologyKey");
        if key.text().is_empty() {
            errors.push(key.required("can not be empty"));
        }
        let action = constraint.get("whenUnsatisfiable");
        if !["DoNotSchedule", "ScheduleAnyway"].contains(&action.text()) {
            errors.push(action.unsupported(&["DoNotSchedule", "ScheduleAnyway"]));
        }
        let same = |other: &At<'_>| {
            other.value["topologyKey"] == *key.value
                && other.value["whenUnsatisfiable"] == *action.value
        };
        if all[index + 1..].iter().any(same) {
            let shown = json!(format!("{{{}, {}}}", key.text(), action.text()));
            let path = constraint.child("{topologyKey, whenUnsatisfiable}");
            errors.push(FieldError::duplicate(path, &shown));
        }
        errors.extend(min_domains(constraint, action.text()));
        errors.extend(meta::selector(&constraint.get("labelSelector")));
    }
    errors
}

fn min_domains(constraint: &At<'_>, action: &str) -> Vec<FieldError> {
    let domains = constraint.get("minDomains");
    let mut errors = Vec::new();
    let Some(number) = domains.int() else { return errors };
    if number <= 0 {
        errors.push(domains.invalid("must be greater than zero"));
    }
    if action != "DoNotSchedule" {
        errors.push(domains.invalid(format!(
            "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"
        )));
    }
    errors
}
