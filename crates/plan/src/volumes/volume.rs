//! A volume's phase, its reclaim once the claim is gone, and its protection while bound.

use api::Kind;
use api::Name;
use api::core::PersistentVolume;

use super::{PROVISIONED_BY, PROVISIONER, Snapshot, VOLUME_PROTECTION};
use crate::action::{Action, Plan, delete, patch_meta};
use crate::objects::{annotation, reference};

pub(super) fn plan(snapshot: &Snapshot, name: &Name) -> Plan {
    let mut plan = Plan::none();
    let Some(volume) = snapshot.volumes.get(name) else { return plan };
    let phase = phase(snapshot, volume);
    let finalizers = volume.metadata.finalizers.clone().unwrap_or_default();
    let protected = finalizers.iter().any(|one| one == VOLUME_PROTECTION);
    if volume.is_deleting() {
        if protected && phase != "Bound" {
            let left: Vec<_> = finalizers.iter().filter(|one| *one != VOLUME_PROTECTION).collect();
            plan.push(patch_meta(volume.as_ref(), serde_json::json!({ "finalizers": left })));
        }
        return plan;
    }
    let present = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    if present != Some(phase) {
        let mut changed = PersistentVolume::clone(volume);
        let status = changed.status.get_or_insert_default();
        status.phase = Some(phase.to_owned());
        plan.push(Action::UpdateStatus(changed.into()));
        return plan;
    }
    if !protected {
        let mut finalizers = finalizers;
        finalizers.push(VOLUME_PROTECTION.to_owned());
        plan.push(patch_meta(volume.as_ref(), serde_json::json!({ "finalizers": finalizers })));
    } else if phase == "Released" {
        reclaim(volume, &mut plan);
    }
    plan
}

fn phase(snapshot: &Snapshot, volume: &PersistentVolume) -> &'static str {
    let owner = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let Some(owner) = owner else { return "Available" };
    let Some(uid) = owner.uid.as_deref().filter(|uid| !uid.is_empty()) else { return "Available" };
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let name = Name::new(&text(&owner.namespace), &text(&owner.name));
    match snapshot.claims.get(&name) {
        Some(claim) if claim.uid() == uid => "Bound",
        _ => "Released",
    }
}

/// Deletes a released volume that this provisioner made; its node removes the directory.
fn reclaim(volume: &PersistentVolume, plan: &mut Plan) {
    let policy =
        volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    if policy != Some("Delete") {
        return;
    }
    if annotation(volume, PROVISIONED_BY) == Some(PROVISIONER) {
        plan.push(delete(volume));
    } else if volume.status.as_ref().is_none_or(|status| status.message.is_none()) {
        let message = "no deletable volume plugin matched".to_owned();
        plan.warn(reference(volume), "VolumeFailedDelete", message);
    }
}
