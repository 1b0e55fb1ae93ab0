//! Field tables of every built-in kind: names, types, protobuf tags, list types and merge keys.
//!
//! The tables are facts of the API (`schema/fields.txt`). On them stand strict decoding, protobuf, strategic merge,
//! server-side apply and OpenAPI, so that a kind needs no code of its own. Upstream: the Go types with their tags, and
//! `sigs.k8s.io/json`.

mod check;
mod json;
pub(crate) mod normalize;
mod scalar;
pub(crate) mod table;

use serde_json::Value;

/// Checks an object against the table of its kind.
///
/// Returns the strict-decoding errors (`unknown field "spec.foo"`), empty when the object is clean or the kind is unknown.
///
/// # Errors
/// The first value that does not fit its field's type, in the words of Go's JSON decoder.
pub fn check(
    group: &str,
    version: &str,
    kind: &str,
    object: &Value,
) -> Result<Vec<String>, String> {
    match table::find(group, version, kind) {
        Some(message) => check::check(message, object),
        None => Ok(Vec::new()),
    }
}

/// Parses JSON and reports duplicate keys (`duplicate field "spec.foo"`); the last one wins.
///
/// # Errors
/// A syntax error in the words of Go's JSON decoder.
pub fn parse_json(bytes: &[u8]) -> Result<(Value, Vec<String>), String> {
    json::parse(bytes)
}

/// What a decode into the Go type and back would leave: unknown fields, nulls and empty optional values go, numbers given
/// as quantities become strings. Leaves objects of unknown kinds alone.
pub fn normalize(group: &str, version: &str, kind: &str, object: &mut Value) {
    if let Some(message) = table::find(group, version, kind) {
        normalize::normalize(message, object);
    }
}

/// Whether the tables know the kind.
#[must_use]
pub fn is_known(group: &str, version: &str, kind: &str) -> bool {
    table::find(group, version, kind).is_some()
}

#[cfg(test)]
mod tests;
