//! Names, labels, annotations, owners, finalizers and label selectors: `apimachinery/pkg/api/validation`.

use serde_json::Value;

use super::at::At;
use super::names;
use crate::field::FieldError;

/// What is wrong with a name.
pub(crate) type NameRule = fn(&str) -> Vec<String>;

/// Bytes of all annotations of an object together.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// Names of most kinds.
pub(crate) const SUBDOMAIN: NameRule = names::dns1123_subdomain;
/// Names of namespaces.
pub(crate) const LABEL: NameRule = names::dns1123_label;

/// Names that only must fit into a path: roles and bindings.
pub(crate) fn path_segment(name: &str) -> Vec<String> {
    if [".", ".."].contains(&name) {
        return vec![format!("may not be '{name}'")];
    }
    let illegal = ["/", "%"].iter().filter(|illegal| name.contains(**illegal));
    illegal.map(|illegal| format!("may not contain '{illegal}'")).collect()
}

/// Checks the metadata of a new object.
pub(crate) fn create(object: &Value, namespaced: bool, rule: NameRule) -> Vec<FieldError> {
    let meta = At::root(object).get("metadata");
    let mut errors = Vec::new();
    let base = meta.get("generateName");
    if !base.text().is_empty() {
        errors.extend(base.all_invalid(rule(&unmasked(base.text()))));
    }
    let name = meta.get("name");
    if name.text().is_empty() {
        errors.push(name.required("name or generateName is required"));
    } else {
        errors.extend(name.all_invalid(rule(name.text())));
    }
    let namespace = meta.get("namespace");
    match (namespaced, namespace.text().is_empty()) {
        (true, true) => errors.push(namespace.required("")),
        (true, false) => errors.extend(namespace.all_invalid(LABEL(namespace.text()))),
        (false, false) => errors.push(namespace.forbidden("not allowed on this type")),
        (false, true) => {}
    }
    errors.extend(common(&meta));
    errors.extend(finalizers(&meta.get("finalizers")));
    errors
}

/// Checks changed metadata. Identity is kept by the server.
pub(crate) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let meta = At::root(new).get("metadata");
    let mut errors = Vec::new();
    if !old["metadata"]["deletionTimestamp"].is_null() {
        let before = At::root(old).get("metadata.finalizers");
        let extra: Vec<&str> = meta
            .get("finalizers")
            .items()
            .filter(|item| before.items().all(|known| known.value != item.value))
            .map(|item| item.value.as_str().unwrap_or(""))
            .collect();
        if !extra.is_empty() {
            let quoted: Vec<String> = extra.iter().map(|name| format!("{name:?}")).collect();
            errors.push(meta.get("finalizers").forbidden(format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                quoted.join(", ")
            )));
        }
    }
    errors.extend(common(&meta));
    errors
}

/// A trailing dash of a prefix stands for what will be appended.
fn unmasked(base: &str) -> String {
    match base.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => format!("{rest}a"),
        _ => base.to_owned(),
    }
}

fn common(meta: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    errors.extend(meta.get("generation").non_negative());
    errors.extend(labels(&meta.get("labels")));
    errors.extend(annotations(&meta.get("annotations")));
    errors.extend(owners(&meta.get("ownerReferences")));
    errors
}

/// Checks a map of labels.
pub(crate) fn labels(labels: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.entries() {
        errors.extend(named_invalid(&labels.path, key, names::label_key(key)));
        let text = value.text();
        errors.extend(named_invalid(&labels.path, text, names::label_value(text)));
    }
    errors
}

/// Invalid errors that show another text than the field's value.
pub(crate) fn named_invalid(path: &str, shown: &str, messages: Vec<String>) -> Vec<FieldError> {
    messages
        .into_iter()
        .map(|message| FieldError::invalid(path, &Value::from(shown), message))
        .collect()
}

fn annotations(annotations: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in annotations.entries() {
        errors.extend(named_invalid(&annotations.path, key, names::label_key(&key.to_lowercase())));
        size += key.len() + value.text().len();
    }
    if size > ANNOTATIONS_BYTES_MAX {
        errors.push(FieldError::too_long(&*annotations.path, ANNOTATIONS_BYTES_MAX));
    }
    errors
}

fn owners(owners: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut controller = None;
    for owner in owners.items() {
        let version = owner.get("apiVersion");
        if version.text().is_empty() {
            errors.push(version.required("must not be empty"));
        } else if version.text().matches('/').count() > 1 || version.text().ends_with('/') {
            errors.push(version.invalid("must be <group>/<version> or <version>"));
        }
        for field in ["kind", "name", "uid"] {
            let field = owner.get(field);
            if field.text().is_empty() {
                errors.push(field.required("must not be empty"));
            }
        }
        if version.text() == "v1" && owner.get("kind").text() == "Event" {
            errors.push(owner.invalid("/v1, Kind=Event is disallowed from being an owner"));
        }
        if owner.get("controller").is_true() {
            let name = format!("{}/{}", owner.get("kind").text(), owner.get("name").text());
            match &controller {
                Some(first) => errors.push(owners.invalid(format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"
                ))),
                None => controller = Some(name),
            }
        }
    }
    errors
}

fn finalizers(finalizers: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut seen = Vec::new();
    for item in finalizers.items() {
        errors.extend(named_invalid(&finalizers.path, item.text(), names::label_key(item.text())));
        seen.push(item.text());
    }
    if seen.contains(&"foregroundDeletion") && seen.contains(&"orphan") {
        errors
            .push(finalizers.invalid("finalizer foregroundDeletion and orphan cannot be both set"));
    }
    errors
}

/// Checks a `metav1.LabelSelector`.
pub(crate) fn selector(selector: &At<'_>) -> Vec<FieldError> {
    let mut errors = labels(&selector.get("matchLabels"));
    for expression in selector.get("matchExpressions").items() {
        errors.extend(requirement(&expression));
    }
    errors
}

fn requirement(expression: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (operator, values) = (expression.get("operator"), expression.get("values"));
    match operator.text() {
        "In" | "NotIn" => {
            if values.is_empty() {
                errors
                    .push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
            }
        }
        "Exists" | "DoesNotExist" => {
            if !values.is_empty() {
                errors.push(values.forbidden(
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                ));
            }
        }
        other => errors.push(FieldError::invalid(
            &*operator.path,
            &Value::from(other),
            "not a valid selector operator",
        )),
    }
    let key = expression.get("key");
    errors.extend(named_invalid(&key.path, key.text(), names::label_key(key.text())));
    for value in values.items() {
        errors.extend(value.all_invalid(names::label_value(value.text())));
    }
    errors
}

/// Whether a structured selector has no requirement.
pub(crate) fn is_empty_selector(selector: &Value) -> bool {
    let none = |field: &str| match &selector[field] {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => true,
    };
    none("matchLabels") && none("matchExpressions")
}

/// A structured selector as Go's encoder orders it.
pub(crate) fn selector_shown(selector: &Value) -> String {
    let parts: Vec<String> = ["matchLabels", "matchExpressions"]
        .into_iter()
        .filter(|field| selector.get(field).is_some_and(|value| !value.is_null()))
        .map(|field| match field {
            "matchLabels" => format!("\"matchLabels\":{}", selector[field]),
            _ => format!("\"matchExpressions\":{}", expressions_shown(&selector[field])),
        })
        .collect();
    format!("{{{}}}", parts.join(","))
}

fn expressions_shown(expressions: &Value) -> String {
    let shown: Vec<String> = expressions
        .as_array()
        .into_iter()
        .flatten()
        .map(|expression| {
            let mut text =
                format!("{{\"key\":{},\"operator\":{}", expression["key"], expression["operator"]);
            if expression["values"].is_array() {
                text.push_str(&format!(",\"values\":{}", expression["values"]));
            }
            text.push('}');
            text
        })
        .collect();
    format!("[{}]", shown.join(","))
}
