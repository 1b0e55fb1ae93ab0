//! Claims of a pod: bound volumes tie it to nodes, unbound ones may be made where it goes. Upstream: `volumebinding`.

use api::core::{Node, NodeSelector, PersistentVolume, PersistentVolumeClaim, Pod};
use api::{Kind, Name};

use super::reasons::Refusal;
use super::selector::node_matches;
use super::{SELECTED_NODE, Snapshot};
use crate::objects::annotation;
use crate::volumes::{fits, waits_for_consumer};

/// What the pod's claims ask of a node.
#[derive(Debug, Default)]
pub(super) struct Needs {
    /// Node selectors of bound volumes.
    bound: Vec<NodeSelector>,
    /// Claims without a volume, each with the selectors of volumes that would do, and whether one can be made.
    unbound: Vec<Unbound>,
}

#[derive(Debug)]
struct Unbound {
    claim: Name,
    selected: Option<String>,
    /// Node selectors of free volumes that fit; `None` for one that is reachable everywhere.
    candidates: Vec<Option<NodeSelector>>,
    can_be_made: bool,
}

/// The names of the claims that the pod mounts.
pub(super) fn claims(pod: &Pod) -> impl Iterator<Item = Name> + '_ {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        let named = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
        let own = volume.ephemeral.as_ref().map(|_| format!("{}-{}", pod.name(), volume.name));
        Some(Name::new(pod.namespace(), &named.or(own)?))
    })
}

impl Needs {
    /// The needs, or why the pod can go nowhere yet.
    pub(super) fn of(snapshot: &Snapshot, pod: &Pod) -> Result<Self, String> {
        let mut needs = Self::default();
        for name in claims(pod) {
            let Some(claim) = snapshot.claims.get(&name) else {
                return Err(format!("persistentvolumeclaim \"{}\" not found", name.name));
            };
            if claim.is_deleting() {
                return Err(format!("persistentvolumeclaim \"{}\" is being deleted", name.name));
            }
            needs.add(snapshot, &name, claim)?;
        }
        Ok(needs)
    }

    fn add(
        &mut self,
        snapshot: &Snapshot,
        name: &Name,
        claim: &PersistentVolumeClaim,
    ) -> Result<(), String> {
        let spec = claim.spec.clone().unwrap_or_default();
        let bound =
            claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        if let Some(volume) = spec.volume_name.as_ref().filter(|_| bound) {
            let Some(volume) = snapshot.volumes.get(&Name::cluster(volume)) else {
                let reason =
                    "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
                return Err(reason.to_owned());
            };
            self.bound.extend(affinity(volume));
            return Ok(());
        }
        let class = spec.storage_class_name.as_deref().unwrap_or("");
        let class = snapshot.classes.get(&Name::cluster(class));
        let Some(class) = class.filter(|class| waits_for_consumer(class)) else {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        };
        let free = snapshot.volumes.values().filter(|volume| fits(volume, claim));
        self.unbound.push(Unbound {
            claim: name.clone(),
            selected: annotation(claim, SELECTED_NODE).map(ToOwned::to_owned),
            candidates: free.map(|volume| affinity(volume)).collect(),
            can_be_made: class.provisioner != "kubernetes.io/no-provisioner",
        });
        Ok(())
    }

    /// Whether the node can reach the bound volumes and make, or find, the others.
    pub(super) fn check(&self, node: &Node) -> Result<(), Refusal> {
        if !self.bound.iter().all(|selector| node_matches(selector, node)) {
            let reason = "node(s) didn't match PersistentVolume's node affinity";
            return Err(Refusal::for_good(reason));
        }
        let possible = |one: &Unbound| {
            let reachable = |volume: &Option<NodeSelector>| {
                volume.as_ref().is_none_or(|selector| node_matches(selector, node))
            };
            one.selected.as_deref().is_none_or(|selected| selected == node.name())
                && (one.can_be_made || one.candidates.iter().any(reachable))
        };
        if self.unbound.iter().all(possible) {
            return Ok(());
        }
        Err(Refusal::for_good("node(s) didn't find available persistent volumes to bind"))
    }

    /// The claims without a volume.
    pub(super) fn unbound(&self) -> Vec<Name> {
        self.unbound.iter().map(|one| one.claim.clone()).collect()
    }
}

fn affinity(volume: &PersistentVolume) -> Option<NodeSelector> {
    volume.spec.as_ref()?.node_affinity.as_ref()?.required.clone()
}
