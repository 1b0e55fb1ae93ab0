//! A claim's way from Pending to Bound.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::core::{
    LocalVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeSpec, PersistentVolumeStatus, VolumeNodeAffinity,
};
use api::meta::ObjectMeta;
use api::storage::StorageClass;
use api::{Kind, Name};

use super::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, CLAIM_PROTECTION, PROVISIONED_BY, PROVISIONER, Snapshot,
    VOLUME_PROTECTION, default_class, fits, is_bound_to, waits_for_consumer,
};
use crate::action::{Action, Plan, patch_meta};
use crate::objects::{annotation, in_namespace, reference};
use crate::podfacts;
use crate::scheduler::{SELECTED_NODE, milli, node_matches};

pub(super) fn plan(snapshot: &Snapshot, name: &Name) -> Plan {
    let mut plan = Plan::none();
    let Some(claim) = snapshot.claims.get(name) else { return plan };
    if claim.is_deleting() {
        release(snapshot, claim, &mut plan);
        return plan;
    }
    let finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
    if !finalizers.iter().any(|one| one == CLAIM_PROTECTION) {
        let mut finalizers = finalizers;
        finalizers.push(CLAIM_PROTECTION.to_owned());
        plan.push(patch_meta(claim.as_ref(), serde_json::json!({ "finalizers": finalizers })));
        return plan;
    }
    let spec = claim.spec.clone().unwrap_or_default();
    match spec.volume_name.as_deref().filter(|name| !name.is_empty()) {
        Some(volume) => bound(snapshot, claim, volume, &mut plan),
        None => unbound(snapshot, claim, &mut plan),
    }
    plan
}

/// Lets a deleted claim go once no pod uses it.
fn release(snapshot: &Snapshot, claim: &PersistentVolumeClaim, plan: &mut Plan) {
    let mut finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
    let used = in_namespace(&snapshot.pods, claim.namespace()).any(|pod| {
        !podfacts::is_terminal(pod)
            && !podfacts::node_name(pod).is_empty()
            && claims_of(pod).any(|name| name == claim.name())
    });
    if !used && finalizers.iter().any(|one| one == CLAIM_PROTECTION) {
        finalizers.retain(|one| one != CLAIM_PROTECTION);
        plan.push(patch_meta(claim, serde_json::json!({ "finalizers": finalizers })));
    }
}

/// The names of the claims that a pod mounts.
pub(super) fn claims_of(pod: &api::core::Pod) -> impl Iterator<Item = String> + '_ {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        let named = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
        named.or_else(|| {
            volume.ephemeral.as_ref().map(|_| format!("{}-{}", pod.name(), volume.name))
        })
    })
}

fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("")
}

fn set_phase(claim: &PersistentVolumeClaim, phase_: &str, plan: &mut Plan) {
    if phase(claim) != phase_ {
        let mut claim = claim.clone();
        claim.status.get_or_insert_default().phase = Some(phase_.to_owned());
        plan.push(Action::UpdateStatus(claim.into()));
    }
}

/// A claim that names its volume: completes the binding, or tells that the volume is lost.
fn bound(snapshot: &Snapshot, claim: &PersistentVolumeClaim, volume: &str, plan: &mut Plan) {
    let Some(volume) = snapshot.volumes.get(&Name::cluster(volume)) else {
        if annotation(claim, BIND_COMPLETED).is_some() && phase(claim) != "Lost" {
            set_phase(claim, "Lost", plan);
            let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
            plan.warn(reference(claim), "ClaimLost", message.to_owned());
        } else {
            set_phase(claim, "Pending", plan);
        }
        return;
    };
    let owner = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    match owner {
        Some(owner) if is_bound_to(owner, claim) => complete(claim, volume, plan),
        _ if fits(volume, claim) || owner.is_none() => take(claim, volume, plan),
        Some(_) => {
            set_phase(claim, "Pending", plan);
        }
        None => {}
    }
}

/// Writes the volume's name into the claim and its phase, once the volume names the claim.
fn complete(claim: &PersistentVolumeClaim, volume: &PersistentVolume, plan: &mut Plan) {
    let mut changed = claim.clone();
    let chosen_here = claim.spec.as_ref().is_none_or(|spec| spec.volume_name.is_none());
    changed.spec.get_or_insert_default().volume_name = Some(volume.name().to_owned());
    let annotations = changed.metadata.annotations.get_or_insert_default();
    annotations.insert(BIND_COMPLETED.to_owned(), "yes".to_owned());
    if chosen_here {
        annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
    }
    if changed != *claim {
        plan.push(Action::Update(changed.into()));
        return;
    }
    let mut status = claim.status.clone().unwrap_or_default();
    let spec = volume.spec.clone().unwrap_or_default();
    status.phase = Some("Bound".to_owned());
    status.access_modes = spec.access_modes;
    status.capacity = spec.capacity;
    if claim.status.as_ref() != Some(&status) {
        changed.status = Some(status);
        plan.push(Action::UpdateStatus(changed.into()));
    }
}

/// Writes the claim into a free volume.
fn take(claim: &PersistentVolumeClaim, volume: &PersistentVolume, plan: &mut Plan) {
    let mut changed = volume.clone();
    changed.spec.get_or_insert_default().claim_ref = Some(reference(claim));
    let annotations = changed.metadata.annotations.get_or_insert_default();
    annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
    plan.push(Action::Update(changed.into()));
}

/// A claim without a volume: finds one, makes one, or waits and says for what.
fn unbound(snapshot: &Snapshot, claim: &PersistentVolumeClaim, plan: &mut Plan) {
    if claim.spec.as_ref().is_none_or(|spec| spec.storage_class_name.is_none())
        && let Some(class) = default_class(&snapshot.classes)
    {
        let mut changed = claim.clone();
        changed.spec.get_or_insert_default().storage_class_name = Some(class.name().to_owned());
        plan.push(Action::Update(changed.into()));
        return;
    }
    let class =
        claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()).unwrap_or("");
    let class_object = snapshot.classes.get(&Name::cluster(class));
    let delayed = class_object.is_some_and(|class| waits_for_consumer(class));
    let node = annotation(claim, SELECTED_NODE);
    if (!delayed || node.is_some())
        && let Some(volume) = best_volume(snapshot, claim, node)
    {
        let owner = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        match owner {
            Some(owner) if is_bound_to(owner, claim) => complete(claim, volume, plan),
            _ => take(claim, volume, plan),
        }
        return;
    }
    let first = phase(claim).is_empty();
    set_phase(claim, "Pending", plan);
    match class_object {
        Some(class) if class.provisioner == PROVISIONER => match node {
            Some(node) => provision(snapshot, claim, class, node, plan),
            None if first => {
                let message = "waiting for first consumer to be created before binding";
                plan.event(reference(claim), "WaitForFirstConsumer", message.to_owned());
            }
            None => {}
        },
        Some(_) | None if !first => {}
        Some(class) => {
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.",
                class.provisioner
            );
            plan.event(reference(claim), "ExternalProvisioning", message);
        }
        None if class.is_empty() => {
            let message =
                "no persistent volumes available for this claim and no storage class is set";
            plan.event(reference(claim), "FailedBinding", message.to_owned());
        }
        None => {
            let message = format!("storageclass.storage.k8s.io \"{class}\" not found");
            plan.warn(reference(claim), "ProvisioningFailed", message);
        }
    }
}

/// The smallest fitting volume that the node reaches; one that already names the claim comes first.
fn best_volume<'a>(
    snapshot: &'a Snapshot,
    claim: &PersistentVolumeClaim,
    node: Option<&str>,
) -> Option<&'a Arc<PersistentVolume>> {
    let node = node.and_then(|name| snapshot.nodes.get(&Name::cluster(name)));
    let reachable = |volume: &PersistentVolume| {
        let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
        match (affinity.and_then(|one| one.required.as_ref()), node) {
            (Some(selector), Some(node)) => node_matches(selector, node),
            _ => true,
        }
    };
    let fitting =
        snapshot.volumes.values().filter(|volume| fits(volume, claim) && reachable(volume));
    fitting.min_by_key(|volume| {
        let spec = volume.spec.as_ref();
        let free = spec.is_some_and(|spec| spec.claim_ref.is_none());
        let size = spec.and_then(|spec| spec.capacity.as_ref()?.get("storage").map(milli));
        (free, size, volume.object_name())
    })
}

fn provision(
    snapshot: &Snapshot,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &str,
    plan: &mut Plan,
) {
    let name = format!("pvc-{}", claim.uid());
    if snapshot.volumes.contains_key(&Name::cluster(&name)) {
        return;
    }
    let spec = claim.spec.clone().unwrap_or_default();
    let size = spec.resources.and_then(|one| one.requests?.get("storage").cloned());
    let host = snapshot.nodes.get(&Name::cluster(node));
    let host = host.and_then(|node| crate::objects::label(node.as_ref(), "kubernetes.io/hostname"));
    let only_there = NodeSelectorTerm {
        match_expressions: Some(vec![NodeSelectorRequirement {
            key: "kubernetes.io/hostname".into(),
            operator: "In".into(),
            values: Some(vec![host.unwrap_or(node).to_owned()]),
        }]),
        match_fields: None,
    };
    let directory = snapshot.directory.replace("{node}", node);
    let volume = PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            annotations: Some(BTreeMap::from([(
                PROVISIONED_BY.to_owned(),
                PROVISIONER.to_owned(),
            )])),
            finalizers: Some(vec![VOLUME_PROTECTION.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: size.map(|size| BTreeMap::from([("storage".to_owned(), size)])),
            claim_ref: Some(reference(claim)),
            local: Some(LocalVolumeSource { path: format!("{directory}/{name}"), fs_type: None }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: vec![only_there] }),
            }),
            persistent_volume_reclaim_policy: Some(
                class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into()),
            ),
            storage_class_name: Some(class.name().to_owned()),
            volume_mode: Some("Filesystem".into()),
            ..PersistentVolumeSpec::default()
        }),
        status: Some(PersistentVolumeStatus::default()),
    };
    plan.push(Action::Create(volume.into()));
    let message = format!("Successfully provisioned volume {name}");
    plan.event(reference(claim), "ProvisioningSucceeded", message);
}
