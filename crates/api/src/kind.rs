//! What every object type offers: its place in the API and its metadata.

use k8s_openapi::{ClusterResourceScope, Metadata, NamespaceResourceScope, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Name;
use crate::meta::{ObjectMeta, OwnerReference};

/// Whether objects of a resource live in namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceScope {
    /// Objects are named within a namespace.
    Namespaced,
    /// Objects are named within the cluster.
    Cluster,
}

/// Maps the type-level scope of `k8s_openapi` to a value.
pub trait Scoped {
    /// The scope as a value.
    const SCOPE: ResourceScope;
}

impl Scoped for NamespaceResourceScope {
    const SCOPE: ResourceScope = ResourceScope::Namespaced;
}

impl Scoped for ClusterResourceScope {
    const SCOPE: ResourceScope = ResourceScope::Cluster;
}

/// A stored object type: has metadata, a place in the API, and an encoding.
pub trait Kind:
    Resource<Scope: Scoped>
    + Metadata<Ty = ObjectMeta>
    + DeserializeOwned
    + Serialize
    + Clone
    + Send
    + Sync
    + 'static
{
    /// The path of the collection: `/api/v1/namespaces/default/pods`, or of all namespaces when `namespace` is empty.
    fn path(namespace: &str) -> String {
        let root = if Self::GROUP.is_empty() { "/api" } else { "/apis" };
        let plural = Self::URL_PATH_SEGMENT;
        if Self::Scope::SCOPE == ResourceScope::Cluster || namespace.is_empty() {
            format!("{root}/{}/{plural}", Self::API_VERSION)
        } else {
            format!("{root}/{}/namespaces/{namespace}/{plural}", Self::API_VERSION)
        }
    }

    /// Shorthand for the metadata.
    fn meta(&self) -> &ObjectMeta {
        self.metadata()
    }

    /// Shorthand for the mutable metadata.
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.metadata_mut()
    }

    /// Namespace and name; absent parts are empty.
    fn object_name(&self) -> Name {
        let meta = self.metadata();
        Name::new(meta.namespace.as_deref().unwrap_or(""), meta.name.as_deref().unwrap_or(""))
    }

    /// `metadata.namespace`, or empty.
    fn namespace(&self) -> &str {
        self.metadata().namespace.as_deref().unwrap_or("")
    }

    /// `metadata.name`, or empty.
    fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or("")
    }

    /// `metadata.uid`, or empty.
    fn uid(&self) -> &str {
        self.metadata().uid.as_deref().unwrap_or("")
    }

    /// `metadata.resourceVersion` as a number; 0 when absent.
    fn revision(&self) -> u64 {
        self.metadata().resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// The owner that controls this object, if any.
    fn controller(&self) -> Option<&OwnerReference> {
        self.metadata()
            .owner_references
            .as_ref()?
            .iter()
            .find(|owner| owner.controller == Some(true))
    }

    /// An owner reference that makes this object the controller of a dependent.
    fn as_controller(&self) -> OwnerReference {
        OwnerReference {
            api_version: Self::API_VERSION.to_owned(),
            kind: Self::KIND.to_owned(),
            name: self.name().to_owned(),
            uid: self.uid().to_owned(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }
    }

    /// Whether deletion has been asked for.
    fn is_deleting(&self) -> bool {
        self.metadata().deletion_timestamp.is_some()
    }
}

impl<K> Kind for K where
    K: Resource<Scope: Scoped>
        + Metadata<Ty = ObjectMeta>
        + DeserializeOwned
        + Serialize
        + Clone
        + Send
        + Sync
        + 'static
{
}
