//! Every object in memory, kept current from the store: what reads, lists and watches are served from.
//!
//! Upstream counterpart: the watch cache of `k8s.io/apiserver/pkg/storage/cacher`.

use std::sync::Arc;

use api::resource::Resource;
use serde_json::Value;

/// Objects of all resources at one revision.
pub struct Cache {}

impl Cache {
    /// The object of that name, with its resourceVersion; the namespace is empty for cluster-scoped resources.
    #[must_use]
    pub fn get(&self, _resource: &Resource, _namespace: &str, _name: &str) -> Option<Arc<Value>> {
        None
    }

    /// All objects of a namespace, or of the cluster when `namespace` is empty, by namespace and name.
    #[must_use]
    pub fn list(&self, _resource: &Resource, _namespace: &str) -> Vec<Arc<Value>> {
        Vec::new()
    }

    /// Revision of the newest change to any object of the resource: unchanged means nothing of it changed.
    #[must_use]
    pub fn revision_of(&self, _resource: &Resource) -> u64 {
        0
    }
}
