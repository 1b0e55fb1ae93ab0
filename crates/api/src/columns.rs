//! Rows of `kubectl get`: columns and cells after `pkg/printers/internalversion`.

pub(crate) mod cluster;
pub(crate) mod network;
pub(crate) mod pod;
pub(crate) mod service;
pub(crate) mod storage;
pub(crate) mod workload;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::resource::Column;
use crate::{duration, quantity};

const NONE: &str = "<none>";
const UNSET: &str = "<unset>";
const UNKNOWN: &str = "<unknown>";
/// Members of a list that a cell shows.
const SHOWN_MAX: usize = 3;

/// A column that is always shown.
const fn text(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", description, priority: 0 }
}

/// A column of numbers.
const fn number(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "integer", format: "", description, priority: 0 }
}

/// A column that only `-o wide` shows.
const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", description, priority: 1 }
}

/// The object's name.
const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "The object's name, unique within its namespace.",
    priority: 0,
};
/// The object's age.
const AGE: Column = text("Age", "The time since the object was created.");

fn name(object: &Value) -> Value {
    object["metadata"]["name"].clone()
}

fn age(object: &Value, now: Timestamp) -> Value {
    since(&object["metadata"]["creationTimestamp"], now).into()
}

fn since(time: &Value, now: Timestamp) -> String {
    duration::since(time.as_str(), now)
}

/// The text, or an empty one.
fn string(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

/// The text, or another one for none.
fn or<'a>(value: &'a Value, missing: &'a str) -> &'a str {
    value.as_str().filter(|text| !text.is_empty()).unwrap_or(missing)
}

/// The number, or 0.
fn int(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// The quantity in its one form (`1Gi` for `1024Mi`); none is 0.
fn amount(value: &Value) -> String {
    let text = or(value, "0");
    quantity::parse(text).map_or_else(|_| text.to_owned(), quantity::Amount::canonical)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.len(),
        Value::Object(fields) => fields.len(),
        _ => 0,
    }
}

/// Texts of a list.
fn joined(values: &Value, separator: &str) -> String {
    let texts: Vec<&str> = list(values).iter().filter_map(Value::as_str).collect();
    texts.join(separator)
}

/// The first members and how many more there are; another text for none.
fn shortened(members: &[String], missing: &str) -> String {
    if members.len() > SHOWN_MAX {
        let more = members.len() - SHOWN_MAX;
        return format!("{} + {more} more...", members[..SHOWN_MAX].join(","));
    }
    let all = members.join(",");
    if all.is_empty() { missing.to_owned() } else { all }
}

/// `a=b,c=d`, or `<none>`.
fn labels(labels: &Value) -> String {
    let pairs: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", string(value)))
        .collect();
    if pairs.is_empty() { NONE.to_owned() } else { pairs.join(",") }
}

/// `a=b,c in (d,e),!f`, sorted by key, or `<none>`.
fn selector(selector: &Value) -> String {
    let mut parts: Vec<(String, String)> = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        parts.push((key.clone(), format!("{key}={}", string(value))));
    }
    for expression in list(&selector["matchExpressions"]) {
        let key = string(&expression["key"]);
        let mut values: Vec<&str> =
            list(&expression["values"]).iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match string(&expression["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        parts.push((key.to_owned(), text));
    }
    parts.sort_by(|left, right| left.0.cmp(&right.0));
    let texts: Vec<String> = parts.into_iter().map(|(_, text)| text).collect();
    if texts.is_empty() { NONE.to_owned() } else { texts.join(",") }
}

/// Names and images of a template's containers.
fn containers(spec: &Value) -> [Value; 2] {
    ["name", "image"].map(|field| {
        let texts: Vec<&str> =
            list(&spec["containers"]).iter().map(|one| string(&one[field])).collect();
        json!(texts.join(","))
    })
}

/// Columns of kinds without a printer of their own: `kubectl get roles`.
pub(crate) const CREATED: &[Column] = &[
    NAME,
    Column {
        name: "Created At",
        kind: "date",
        format: "",
        description: "When the object was created.",
        priority: 0,
    },
];

/// The row of kinds without a printer of their own.
pub(crate) fn created(object: &Value, _: Timestamp) -> Vec<Value> {
    vec![name(object), object["metadata"]["creationTimestamp"].clone()]
}

#[cfg(test)]
mod tests;
