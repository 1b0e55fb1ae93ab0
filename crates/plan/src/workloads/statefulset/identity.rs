//! Who a StatefulSet's pod is: its name, labels and claims follow from its ordinal.

use api::Kind;
use api::apps::StatefulSet;
use api::core::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use api::meta::OwnerReference;

use super::REVISION_HASH;
use crate::objects::Labels;
use crate::workloads::pod_of;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

pub(super) fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set.name())
}

/// The ordinal in the pod's name, if the name is one of the set's.
pub(super) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let number = pod.name().strip_prefix(set.name())?.strip_prefix('-')?;
    let ordinal: i32 = number.parse().ok()?;
    (ordinal >= 0 && ordinal.to_string() == number).then_some(ordinal)
}

pub(super) fn labels(set: &StatefulSet, ordinal: i32) -> Labels {
    Labels::from([
        (POD_NAME.to_owned(), pod_name(set, ordinal)),
        (POD_INDEX.to_owned(), ordinal.to_string()),
    ])
}

fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}", template.name(), pod_name(set, ordinal))
}

/// The pod of one ordinal from a template.
pub(super) fn pod(
    set: &StatefulSet,
    template: &PodTemplateSpec,
    ordinal: i32,
    revision: &str,
) -> Pod {
    let mut pod = pod_of(template, set);
    pod.metadata.name = Some(pod_name(set, ordinal));
    let own = pod.metadata.labels.get_or_insert_default();
    own.extend(labels(set, ordinal));
    own.insert(REVISION_HASH.to_owned(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(pod_name(set, ordinal));
    let set_spec = set.spec.as_ref();
    let service = set_spec.and_then(|spec| spec.service_name.clone());
    spec.subdomain = service.filter(|name| !name.is_empty());
    let templates = set_spec.and_then(|spec| spec.volume_claim_templates.as_deref()).unwrap_or(&[]);
    if !templates.is_empty() {
        let volumes = spec.volumes.get_or_insert_default();
        volumes.retain(|volume| !templates.iter().any(|one| one.name() == volume.name));
        volumes.extend(templates.iter().map(|one| Volume {
            name: one.name().to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(set, one, ordinal),
                read_only: Some(false),
            }),
            ..Volume::default()
        }));
    }
    pod
}

/// The claims of one ordinal.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let spec = set.spec.as_ref();
    let templates = spec.and_then(|spec| spec.volume_claim_templates.as_deref()).unwrap_or(&[]);
    let selector = spec.and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
    let of = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        claim.metadata.name = Some(claim_name(set, template, ordinal));
        claim.metadata.namespace = Some(set.namespace().to_owned());
        claim.metadata.labels.get_or_insert_default().extend(selector.clone());
        claim.status = None;
        let owners = retention(set, &claim, None);
        claim.metadata.owner_references = (!owners.is_empty()).then_some(owners);
        claim
    };
    templates.iter().map(of).collect()
}

/// The owners that the retention policy gives a claim; `condemned` is its pod when that is scaled away.
pub(super) fn retention(
    set: &StatefulSet,
    claim: &PersistentVolumeClaim,
    condemned: Option<&Pod>,
) -> Vec<OwnerReference> {
    let spec = set.spec.as_ref();
    let policy = spec.and_then(|spec| spec.persistent_volume_claim_retention_policy.clone());
    let policy = policy.unwrap_or_default();
    let mut owners = claim.metadata.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| owner.uid != set.uid() && owner.kind != "Pod");
    let plain = |mut owner: OwnerReference| {
        owner.controller = None;
        owner.block_owner_deletion = None;
        owner
    };
    let scaled = policy.when_scaled.as_deref() == Some("Delete");
    match condemned.filter(|_| scaled) {
        Some(pod) => owners.push(plain(pod.as_controller())),
        None if policy.when_deleted.as_deref() == Some("Delete") => {
            owners.push(plain(set.as_controller()));
        }
        None => {}
    }
    owners
}
