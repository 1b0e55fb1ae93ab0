//! Claims and volumes: binds them, makes node-local volumes on demand, reclaims them, and protects both while in use.
//!
//! Upstream counterparts: `pkg/controller/volume/persistentvolume`, `pvcprotection`, `pvprotection`, and an external
//! provisioner (here [`PROVISIONER`], whose volumes are directories of one node).

use std::sync::Arc;

use api::core::{Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use api::storage::StorageClass;
use api::{Kind, Name, Objects};

use crate::action::Plan;
use crate::objects::{annotation, matches};
use crate::scheduler::milli;

mod claim;
mod volume;

/// The provisioner of node-local volumes.
pub const PROVISIONER: &str = "rhumb.dev/local";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";

/// A claim, or a volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A PersistentVolumeClaim.
    Claim(Name),
    /// A PersistentVolume by name.
    Volume(Name),
}

/// What volumes are planned from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All claims.
    pub claims: Objects<PersistentVolumeClaim>,
    /// All volumes.
    pub volumes: Objects<PersistentVolume>,
    /// All storage classes.
    pub classes: Objects<StorageClass>,
    /// All pods, for protection.
    pub pods: Objects<Pod>,
    /// All nodes, for the host names of node affinities.
    pub nodes: Objects<Node>,
    /// The directory on each node that holds node-local volumes; `{node}` stands for the node's name.
    pub directory: Arc<str>,
}

/// The next step of a claim's or volume's life.
#[must_use]
pub fn plan(snapshot: &Snapshot, key: &Key) -> Plan {
    match key {
        Key::Claim(name) => claim::plan(snapshot, name),
        Key::Volume(name) => volume::plan(snapshot, name),
    }
}

/// Whether the class's volumes are bound and made only once a pod that uses them has a node.
#[must_use]
pub fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// Whether a free volume suits the claim.
#[must_use]
pub fn fits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(volume_spec), Some(spec)) = (&volume.spec, &claim.spec) else { return false };
    if volume.is_deleting() {
        return false;
    }
    if let Some(reference) = &volume_spec.claim_ref {
        let named = reference.namespace.as_deref() == Some(claim.namespace())
            && reference.name.as_deref() == Some(claim.name());
        let same = reference.uid.as_deref().is_none_or(|uid| uid.is_empty() || uid == claim.uid());
        return named && same;
    }
    let modes = volume_spec.access_modes.as_deref().unwrap_or(&[]);
    let request = spec.resources.as_ref().and_then(|one| one.requests.as_ref());
    let request = request.and_then(|one| one.get("storage")).map_or(0, milli);
    let capacity =
        volume_spec.capacity.as_ref().and_then(|one| one.get("storage")).map_or(0, milli);
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".into());
    volume_spec.storage_class_name.as_deref().unwrap_or("")
        == spec.storage_class_name.as_deref().unwrap_or("")
        && spec.access_modes.iter().flatten().all(|mode| modes.contains(mode))
        && capacity >= request
        && mode(&volume_spec.volume_mode) == mode(&spec.volume_mode)
        && spec.selector.as_ref().is_none_or(|one| matches(one, volume.metadata.labels.as_ref()))
}

/// Whether `reference` names exactly this claim.
fn is_bound_to(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    reference.uid.as_deref() == Some(claim.uid())
        && reference.name.as_deref() == Some(claim.name())
        && reference.namespace.as_deref() == Some(claim.namespace())
}

/// The class that serves claims without one.
fn default_class(classes: &Objects<StorageClass>) -> Option<&Arc<StorageClass>> {
    const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
    let defaults = classes.values().filter(|one| annotation(one.as_ref(), DEFAULT) == Some("true"));
    defaults.max_by_key(|one| {
        (crate::podfacts::created(one.as_ref()), std::cmp::Reverse(one.object_name()))
    })
}
