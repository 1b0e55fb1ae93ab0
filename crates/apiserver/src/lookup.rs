//! Objects of the kinds that the server itself reads, found in the cache by the kind's row.

use std::sync::Arc;

use api::resource::{self, Resource};
use serde_json::Value;

use crate::Cache;

/// A kind by group, version and plural.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row(&'static str, &'static str, &'static str);

pub(crate) const NAMESPACES: Row = Row("", "v1", "namespaces");
pub(crate) const NODES: Row = Row("", "v1", "nodes");
pub(crate) const PODS: Row = Row("", "v1", "pods");
pub(crate) const SECRETS: Row = Row("", "v1", "secrets");
pub(crate) const SERVICES: Row = Row("", "v1", "services");
pub(crate) const ENDPOINTS: Row = Row("", "v1", "endpoints");
pub(crate) const SERVICE_ACCOUNTS: Row = Row("", "v1", "serviceaccounts");
pub(crate) const LIMIT_RANGES: Row = Row("", "v1", "limitranges");
pub(crate) const RESOURCE_QUOTAS: Row = Row("", "v1", "resourcequotas");
pub(crate) const ENDPOINT_SLICES: Row = Row("discovery.k8s.io", "v1", "endpointslices");
pub(crate) const STORAGE_CLASSES: Row = Row("storage.k8s.io", "v1", "storageclasses");
pub(crate) const PRIORITY_CLASSES: Row = Row("scheduling.k8s.io", "v1", "priorityclasses");
pub(crate) const INGRESS_CLASSES: Row = Row("networking.k8s.io", "v1", "ingressclasses");
pub(crate) const SERVICE_CIDRS: Row = Row("networking.k8s.io", "v1", "servicecidrs");
pub(crate) const IP_ADDRESSES: Row = Row("networking.k8s.io", "v1", "ipaddresses");
pub(crate) const ROLES: Row = Row("rbac.authorization.k8s.io", "v1", "roles");
pub(crate) const ROLE_BINDINGS: Row = Row("rbac.authorization.k8s.io", "v1", "rolebindings");
pub(crate) const CLUSTER_ROLES: Row = Row("rbac.authorization.k8s.io", "v1", "clusterroles");
pub(crate) const CLUSTER_ROLE_BINDINGS: Row =
    Row("rbac.authorization.k8s.io", "v1", "clusterrolebindings");

impl Row {
    /// The row of the table; `None` when this server does not serve the kind.
    pub(crate) fn resource(self) -> Option<&'static Resource> {
        resource::find(self.0, self.1, self.2)
    }

    /// Whether the resource is of this kind.
    pub(crate) fn is(self, resource: &Resource) -> bool {
        resource.group == self.0 && resource.plural == self.2
    }

    /// The object of that name; the namespace is empty for cluster-scoped kinds.
    pub(crate) fn get(self, cache: &Cache, namespace: &str, name: &str) -> Option<Arc<Value>> {
        cache.get(self.resource()?, namespace, name)
    }

    /// All objects of a namespace, or of the cluster when it is empty.
    pub(crate) fn list(self, cache: &Cache, namespace: &str) -> Vec<Arc<Value>> {
        self.resource().map(|resource| cache.list(resource, namespace)).unwrap_or_default()
    }

    /// The revision of the newest change of any object of the kind.
    pub(crate) fn revision(self, cache: &Cache) -> u64 {
        self.resource().map_or(0, |resource| cache.revision_of(resource))
    }
}

/// A string at a JSON pointer, or empty.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// The array at a JSON pointer, or an empty one.
pub(crate) fn array<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The strings of an array at a JSON pointer.
pub(crate) fn texts(object: &Value, pointer: &str) -> Vec<String> {
    array(object, pointer).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}
