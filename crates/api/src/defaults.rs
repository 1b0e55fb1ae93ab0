//! What is set when a client leaves it out. Upstream: `pkg/apis/*/v1/defaults.go`.

pub mod core;
pub mod pod;
pub mod workloads;

use serde_json::Value;

/// Sets a field that is absent or null.
fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    if object.get(field).is_none_or(Value::is_null) {
        object[field] = value.into();
    }
}

/// The members of a list that may be absent.
fn each<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Writes the quantities of a map in their one form.
fn canonical(quantities: Option<&mut Value>) {
    for value in
        quantities.and_then(Value::as_object_mut).into_iter().flat_map(|map| map.values_mut())
    {
        canonical_one(Some(value));
    }
}

/// Writes a quantity in its one form; what is none is left to others.
fn canonical_one(quantity: Option<&mut Value>) {
    let Some(quantity) = quantity else { return };
    let parsed = match &*quantity {
        Value::String(text) => crate::quantity::parse(text),
        Value::Number(number) => crate::quantity::parse(&number.to_string()),
        _ => return,
    };
    if let Ok(amount) = parsed {
        *quantity = amount.canonical().into();
    }
}
