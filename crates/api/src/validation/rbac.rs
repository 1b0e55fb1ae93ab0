//! Roles and bindings. Upstream: `pkg/apis/rbac/validation`.

use serde_json::{Value, json};

use super::at::At;
use super::meta;
use crate::field::FieldError;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks a new Role.
pub(crate) fn create_role(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::path_segment);
    errors.extend(rules(object, true));
    errors
}

/// Checks a changed Role.
pub(crate) fn update_role(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = rules(new, true);
    errors.extend(meta::update(new, old));
    errors
}

/// Checks a new ClusterRole.
pub(crate) fn create_cluster_role(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, false, meta::path_segment);
    errors.extend(cluster_role(object));
    errors
}

/// Checks a changed ClusterRole.
pub(crate) fn update_cluster_role(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = cluster_role(new);
    errors.extend(meta::update(new, old));
    errors
}

fn cluster_role(object: &Value) -> Vec<FieldError> {
    let mut errors = rules(object, false);
    let aggregation = At::root(object).get("aggregationRule");
    let selectors = aggregation.get("clusterRoleSelectors");
    if aggregation.is_set() && selectors.is_empty() {
        errors.push(
            selectors.required(
                "at least one clusterRoleSelector required if aggregationRule is non-nil",
            ),
        );
    }
    errors.extend(selectors.items().flat_map(|selector| meta::selector(&selector)));
    errors
}

fn rules(object: &Value, namespaced: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for rule in At::root(object).get("rules").items() {
        let (verbs, urls, groups) =
            (rule.get("verbs"), rule.get("nonResourceURLs"), rule.get("apiGroups"));
        let (resources, names) = (rule.get("resources"), rule.get("resourceNames"));
        if verbs.is_empty() {
            errors.push(verbs.required("verbs must contain at least one value"));
        }
        if !urls.is_empty() {
            if namespaced {
                errors.push(urls.invalid("namespaced rules cannot apply to non-resource URLs"));
            }
            if groups.len() + resources.len() + names.len() > 0 {
                errors.push(
                    urls.invalid(
                        "rules cannot apply to both regular resources and non-resource URLs",
                    ),
                );
            }
            continue;
        }
        if groups.is_empty() {
            errors.push(groups.required("resource rules must supply at least one api group"));
        }
        if resources.is_empty() {
            errors.push(resources.required("resource rules must supply at least one resource"));
        }
    }
    errors
}

/// Checks a new RoleBinding.
pub(crate) fn create_binding(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::path_segment);
    errors.extend(binding(object, true));
    errors
}

/// Checks a changed RoleBinding.
pub(crate) fn update_binding(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = binding(new, true);
    errors.extend(changed(new, old));
    errors
}

/// Checks a new ClusterRoleBinding.
pub(crate) fn create_cluster_binding(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, false, meta::path_segment);
    errors.extend(binding(object, false));
    errors
}

/// Checks a changed ClusterRoleBinding.
pub(crate) fn update_cluster_binding(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = binding(new, false);
    errors.extend(changed(new, old));
    errors
}

fn changed(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    let reference = &new["roleRef"];
    if *reference != old["roleRef"] {
        let text = |field: &str| reference[field].as_str().unwrap_or("");
        // As Go writes the struct, whose fields have no names of their own.
        let shown = format!(
            "{{\"APIGroup\":{:?},\"Kind\":{:?},\"Name\":{:?}}}",
            text("apiGroup"),
            text("kind"),
            text("name")
        );
        errors.push(FieldError::invalid_shown("roleRef", shown, "cannot change roleRef"));
    }
    errors
}

fn shown(field: &At<'_>, known: &[&str]) -> FieldError {
    FieldError::unsupported(&*field.path, &json!(field.text()), known)
}

fn binding(object: &Value, namespaced: bool) -> Vec<FieldError> {
    let root = At::root(object);
    let (group, kind, name) =
        (root.get("roleRef.apiGroup"), root.get("roleRef.kind"), root.get("roleRef.name"));
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    let mut errors = Vec::new();
    if group.text() != GROUP {
        errors.push(shown(&group, &[GROUP]));
    }
    if !kinds.contains(&kind.text()) {
        errors.push(shown(&kind, kinds));
    }
    if name.text().is_empty() {
        errors.push(name.required(""));
    } else {
        errors.extend(name.all_invalid(meta::path_segment(name.text())));
    }
    errors.extend(root.get("subjects").items().flat_map(|item| subject(&item, namespaced)));
    errors
}

fn subject(subject: &At<'_>, namespaced: bool) -> Vec<FieldError> {
    let (name, kind, group) = (subject.get("name"), subject.get("kind"), subject.get("apiGroup"));
    let mut errors = Vec::new();
    if name.text().is_empty() {
        errors.push(name.required(""));
    }
    match kind.text() {
        "ServiceAccount" => {
            if !name.text().is_empty() {
                errors.extend(name.all_invalid(super::names::dns1123_subdomain(name.text())));
            }
            if !group.text().is_empty() {
                errors.push(shown(&group, &[""]));
            }
            if !namespaced && subject.get("namespace").text().is_empty() {
                errors.push(subject.get("namespace").required(""));
            }
        }
        "User" | "Group" => {
            if name.text().is_empty() {
                let who = kind.text().to_lowercase();
                let why = format!("{who} name cannot be empty");
                errors.push(FieldError::invalid(&*name.path, &json!(""), why));
            }
            if group.text() != GROUP {
                errors.push(shown(&group, &[GROUP]));
            }
        }
        _ => errors.push(shown(&kind, &["ServiceAccount", "User", "Group"])),
    }
    errors
}
