//! JSON patch, JSON merge patch and strategic merge patch. Upstream: `strategicpatch` and `apiserver/endpoints/handlers/patch.go`.

mod strategic;

pub use strategic::go_text;

use serde_json::Value;

use crate::schema::table;
use crate::{Reason, StatusError};

/// A JSON patch may hold this many operations, as upstream.
pub const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;

/// RFC 6902.
///
/// # Errors
/// 400 for a malformed patch, 413 for too many operations, 422 for one that cannot be applied.
pub fn json(object: &Value, patch: &Value) -> Result<Value, StatusError> {
    let operations: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| StatusError::bad_request(error.to_string()))?;
    if operations.len() > JSON_PATCH_OPERATIONS_MAX {
        return Err(StatusError::new(
            Reason::RequestEntityTooLarge,
            format!(
                "The allowed maximum operations in a JSON patch is {JSON_PATCH_OPERATIONS_MAX}, got {}",
                operations.len()
            ),
        ));
    }
    let mut patched = object.clone();
    json_patch::patch(&mut patched, &operations).map_err(|_| rejected())?;
    Ok(patched)
}

/// RFC 7386.
///
/// # Errors
/// 400 when the patch is not an object.
pub fn merge(object: &Value, patch: &Value) -> Result<Value, StatusError> {
    if !patch.is_object() {
        return Err(StatusError::bad_request(format!(
            "error decoding patch: {}",
            not_a_map(patch)
        )));
    }
    let mut patched = object.clone();
    json_patch::merge(&mut patched, patch);
    Ok(patched)
}

/// Strategic merge by the merge keys of the kind's fields.
///
/// # Errors
/// 400 for a patch whose directives are malformed, 422 for a list element without its merge key, 415 for a kind without
/// a table (custom resources take merge and JSON patches only).
pub fn strategic(
    group: &str,
    version: &str,
    kind: &str,
    object: &Value,
    patch: &Value,
) -> Result<Value, StatusError> {
    let message = table::find(group, version, kind).ok_or_else(|| {
        StatusError::new(
            Reason::UnsupportedMediaType,
            "the body of the request was in an unknown format - accepted media types include: \
             application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
        )
    })?;
    let Value::Object(patch) = patch else {
        return Err(StatusError::bad_request(not_a_map(patch)));
    };
    let mut patched = object.as_object().cloned().unwrap_or_default();
    strategic::merge_object(Some(message), &mut patched, patch)?;
    Ok(Value::Object(patched))
}

/// 422 in the words of a patch that cannot be applied.
fn rejected() -> StatusError {
    StatusError::new(
        Reason::Invalid,
        "the server rejected our request due to an error in our request",
    )
}

fn not_a_map(patch: &Value) -> String {
    let found = match patch {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) | Value::Object(_) => "array",
    };
    format!("json: cannot unmarshal {found} into Go value of type map[string]interface {{}}")
}

#[cfg(test)]
mod tests;
