//! What the workload controllers share: claiming objects, pods from templates, template hashes, which pod goes first.
//!
//! Upstream counterpart: `pkg/controller/controller_utils.go` and `controller_ref_manager.go`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::core::{Pod, PodTemplateSpec};
use api::meta::{LabelSelector, OwnerReference};
use api::{IntOrString, Kind};
use serde::Serialize;
use serde_json::json;

use crate::action::{Action, Known, patch_meta};
use crate::objects::{Labels, annotation, is_controlled_by, matches};
use crate::podfacts;

pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod job;
pub mod replicaset;
pub mod replicationcontroller;
pub mod revisions;
pub mod statefulset;

/// The label that tells the ReplicaSets of one Deployment apart.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";
/// The annotation that makes a pod cheaper or dearer to delete.
const POD_DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The objects that an owner controls after the `actions` have been written.
#[derive(Debug)]
pub struct Claim<K> {
    /// Controlled and matching.
    pub owned: Vec<Arc<K>>,
    /// Adoptions of matching orphans and releases of objects that no longer match.
    pub actions: Vec<Action>,
}

/// Claims `candidates` for `owner` by its selector: adopts orphans, releases what no longer matches.
pub fn claim<'a, K: Known, O: Kind>(
    owner: &O,
    selector: &LabelSelector,
    candidates: impl Iterator<Item = &'a Arc<K>>,
) -> Claim<K> {
    let mut claim = Claim { owned: Vec::new(), actions: Vec::new() };
    for object in candidates {
        let matching = matches(selector, object.meta().labels.as_ref());
        if is_controlled_by(object.as_ref(), owner) {
            if matching {
                claim.owned.push(Arc::clone(object));
            } else if !owner.is_deleting() {
                claim.actions.push(release(object.as_ref(), owner));
            }
        } else if matching
            && object.controller().is_none()
            && !owner.is_deleting()
            && !object.is_deleting()
        {
            claim.actions.push(adopt(object.as_ref(), owner));
            claim.owned.push(Arc::clone(object));
        }
    }
    claim
}

fn adopt<K: Known, O: Kind>(object: &K, owner: &O) -> Action {
    let mut owners: Vec<OwnerReference> =
        object.meta().owner_references.clone().unwrap_or_default();
    owners.retain(|one| one.uid != owner.uid());
    owners.push(owner.as_controller());
    patch_meta(object, json!({ "ownerReferences": owners }))
}

fn release<K: Known, O: Kind>(object: &K, owner: &O) -> Action {
    let mut owners: Vec<OwnerReference> =
        object.meta().owner_references.clone().unwrap_or_default();
    owners.retain(|one| one.uid != owner.uid());
    patch_meta(object, json!({ "ownerReferences": owners }))
}

/// A number, or a percentage of `total` rounded up or down. Malformed percentages count as 0.
#[must_use]
pub fn resolve(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|one| one.parse().ok()).unwrap_or(0);
            let product = i64::from(total) * percent;
            let whole = if round_up { (product + 99).div_euclid(100) } else { product / 100 };
            i32::try_from(whole).unwrap_or(i32::MAX)
        }
    }
}

/// Ten characters at most that name a state of `content`: FNV-1a of its JSON, spelled as upstream spells hashes (no vowels).
#[must_use]
pub fn content_hash(content: &impl Serialize, collisions: i32) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut json = serde_json::to_vec(content).expect("API objects encode");
    if collisions > 0 {
        json.extend_from_slice(&collisions.to_le_bytes());
    }
    let hash = json
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let spell = |digit: u8| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()]);
    hash.to_string().bytes().map(spell).collect()
}

/// The template with another `pod-template-hash`, or none: what makes two templates the same revision.
#[must_use]
pub fn with_template_hash(template: &PodTemplateSpec, hash: Option<&str>) -> PodTemplateSpec {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    let labels = meta.labels.get_or_insert_default();
    labels.remove(POD_TEMPLATE_HASH);
    if let Some(hash) = hash {
        labels.insert(POD_TEMPLATE_HASH.to_owned(), hash.to_owned());
    }
    if labels.is_empty() {
        meta.labels = None;
    }
    template
}

/// Whether two templates are the same revision: equal but for the hash label.
#[must_use]
pub fn is_same_template(one: &PodTemplateSpec, two: &PodTemplateSpec) -> bool {
    with_template_hash(one, None) == with_template_hash(two, None)
}

/// A pod of `template` that `owner` controls, without a name.
pub fn pod_of<O: Kind>(template: &PodTemplateSpec, owner: &O) -> Pod {
    let from = template.metadata.clone().unwrap_or_default();
    let mut pod = Pod { spec: template.spec.clone(), ..Pod::default() };
    pod.metadata.namespace = Some(owner.namespace().to_owned());
    pod.metadata.labels = from.labels;
    pod.metadata.annotations = from.annotations;
    pod.metadata.finalizers = from.finalizers;
    pod.metadata.owner_references = Some(vec![owner.as_controller()]);
    pod
}

/// Name prefix of a controller's pods, as upstream: `name-`, or `name` when that would not be a valid prefix.
#[must_use]
pub fn pod_prefix(name: &str) -> String {
    format!("{name}-")
}

/// Sorts pods so that those to delete first come first: unscheduled, pending, not ready, cheap, crowded nodes, young, restarted.
/// `crowd` counts the related pods on each node.
pub fn rank_for_deletion(pods: &mut [Arc<Pod>], crowd: &BTreeMap<String, usize>) {
    pods.sort_by_cached_key(|pod| {
        let phase = match podfacts::phase(pod) {
            "Pending" | "" => 0,
            "Unknown" => 1,
            _ => 2,
        };
        let cost = annotation(pod.as_ref(), POD_DELETION_COST);
        let cost: i32 = cost.and_then(|text| text.parse().ok()).unwrap_or(0);
        let crowded = crowd.get(podfacts::node_name(pod)).copied().unwrap_or(0);
        let ready = podfacts::ready_since(pod);
        (
            (!podfacts::node_name(pod).is_empty(), phase, podfacts::is_ready(pod), cost),
            std::cmp::Reverse(crowded),
            std::cmp::Reverse(ready),
            std::cmp::Reverse(podfacts::restarts(pod)),
            std::cmp::Reverse(podfacts::created(pod.as_ref())),
            pod.uid().to_owned(),
        )
    });
}

/// Counts pods by node.
pub fn crowd<'a>(pods: impl Iterator<Item = &'a Arc<Pod>>) -> BTreeMap<String, usize> {
    let mut crowd = BTreeMap::new();
    for pod in pods {
        *crowd.entry(podfacts::node_name(pod).to_owned()).or_default() += 1;
    }
    crowd
}

/// A number of objects as the API counts them.
#[must_use]
pub fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// The labels of a template.
#[must_use]
pub fn template_labels(template: &PodTemplateSpec) -> Option<&Labels> {
    template.metadata.as_ref().and_then(|meta| meta.labels.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_asked() {
        let quarter = IntOrString::String("25%".into());
        assert_eq!(resolve(&quarter, 3, true), 1);
        assert_eq!(resolve(&quarter, 3, false), 0);
        assert_eq!(resolve(&quarter, 10, true), 3);
        assert_eq!(resolve(&IntOrString::Int(2), 10, true), 2);
        assert_eq!(resolve(&IntOrString::String("many".into()), 10, true), 0);
    }

    #[test]
    fn hashes_differ_by_content_and_collisions() {
        let one = content_hash(&json!({"a": 1}), 0);
        assert_eq!(one, content_hash(&json!({"a": 1}), 0));
        assert_ne!(one, content_hash(&json!({"a": 2}), 0));
        assert_ne!(one, content_hash(&json!({"a": 1}), 1));
        assert!(one.len() <= 10 && one.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    }
}
