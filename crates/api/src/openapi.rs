//! OpenAPI v2 and v3 documents from the field tables, as far as kubectl needs them for validation and `explain`.
//!
//! Structure and extensions come from the tables; descriptions come from k8s-openapi's schemas at run time. Documents
//! are built on every call: callers keep what they serve. Upstream: `kube-openapi`.

mod descriptions;
mod document;
mod gnostic;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use document::{Dialect, definitions, paths};

/// The media type of [`v2_protobuf`] in answers; `Accept` spells it with an `@`, which Go's parser of answers refuses.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

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

impl Served<'_> {
    /// `api/v1` or `apis/apps/v1`: the key of its document in the index.
    fn root(&self) -> String {
        root(self.group, self.version)
    }
}

fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v2` as JSON.
#[must_use]
pub fn v2(resources: &[Served<'_>]) -> Value {
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": paths(resources, Dialect::V2),
        "definitions": definitions(resources, Dialect::V2),
    })
}

/// `/openapi/v2` in gnostic's protobuf form ([`V2_PROTOBUF`]), which is all that kubectl before 1.27 reads. `document` is what [`v2`] returned.
#[must_use]
pub fn v2_protobuf(document: &Value) -> Vec<u8> {
    gnostic::encode(document)
}

/// `/openapi/v3`: the index of group versions.
#[must_use]
pub fn v3_index(resources: &[Served<'_>]) -> Value {
    let mut roots: BTreeMap<String, u64> = BTreeMap::new();
    for resource in resources {
        let hash = roots.entry(resource.root()).or_insert(FNV_OFFSET);
        for part in [resource.kind, resource.plural, env!("CARGO_PKG_VERSION")] {
            *hash = fnv(*hash, part.as_bytes());
        }
    }
    let paths: Map<String, Value> = roots
        .into_iter()
        .map(|(root, hash)| {
            let url = format!("/openapi/v3/{root}?hash={hash:016X}");
            (root, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// `/openapi/v3/apis/{group}/{version}` (`/openapi/v3/api/v1` for core); `None` when nothing of it is served.
#[must_use]
pub fn v3_group(group: &str, version: &str, resources: &[Served<'_>]) -> Option<Value> {
    let wanted = root(group, version);
    let served: Vec<Served<'_>> =
        resources.iter().filter(|resource| resource.root() == wanted).copied().collect();
    if served.is_empty() {
        return None;
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths(&served, Dialect::V3),
        "components": {"schemas": definitions(&served, Dialect::V3)},
    }))
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "v1.36.0"})
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a: tells documents apart, nothing more.
fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests;
