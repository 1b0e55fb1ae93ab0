//! The scheduler: which node a pod runs on, or why none. Upstream counterpart: `pkg/scheduler` with its default plugins.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::apps::{ReplicaSet, StatefulSet};
use api::core::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodCondition, Service,
};
use api::meta::Time;
use api::storage::StorageClass;
use api::{Kind, Name, Objects};
use jiff::Timestamp;

use crate::action::{Action, Plan};
use crate::objects::reference;
use crate::podfacts;
use node::NodeInfo;

mod affinity;
mod filter;
mod node;
mod ports;
mod reasons;
mod resources;
mod score;
mod selector;
mod spread;
mod volumes;

pub use resources::milli;
pub use selector::{node_matches, tolerates};

/// Whether the pod's node selector and required node affinity allow the node.
#[must_use]
pub fn accepts(node: &Node, pod: &Pod) -> bool {
    selector::pod_matches_node(pod, node)
}

/// Pods that one plan binds or explains; the rest comes with the next, from a newer snapshot.
const BATCH_MAX: usize = 128;
/// When the next plan is made if this one left pods over and nothing else wakes the loop.
const NEXT_BATCH: Duration = Duration::from_millis(10);
/// The name of this scheduler in `spec.schedulerName`.
pub const SCHEDULER_NAME: &str = "default-scheduler";
/// The annotation that tells the provisioner on which node a claim's first pod runs.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// What pods are scheduled from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All pods.
    pub pods: Objects<Pod>,
    /// All nodes.
    pub nodes: Objects<Node>,
    /// All namespaces, for namespace selectors of affinity terms.
    pub namespaces: Objects<Namespace>,
    /// All claims.
    pub claims: Objects<PersistentVolumeClaim>,
    /// All volumes.
    pub volumes: Objects<PersistentVolume>,
    /// All storage classes.
    pub classes: Objects<StorageClass>,
    /// All Services, for default spreading.
    pub services: Objects<Service>,
    /// All ReplicaSets, for default spreading.
    pub replica_sets: Objects<ReplicaSet>,
    /// All StatefulSets, for default spreading.
    pub stateful_sets: Objects<StatefulSet>,
    /// Pods (by uid) bound by this scheduler whose binding the snapshot may not show yet, with their nodes.
    pub assumed: BTreeMap<String, String>,
    /// The time of the plan.
    pub now: Timestamp,
}

/// The cluster while pods are placed one after the other.
struct Cluster<'a> {
    snapshot: &'a Snapshot,
    nodes: Vec<NodeInfo<'a>>,
}

/// Binds every pending pod that fits somewhere, by priority and age, and says why the others do not.
#[must_use]
pub fn plan(snapshot: &Snapshot) -> Plan {
    let mut plan = Plan::none();
    let mut queue: Vec<&Arc<Pod>> =
        snapshot.pods.values().filter(|pod| is_pending(snapshot, pod)).collect();
    if queue.is_empty() {
        return plan;
    }
    queue.sort_by_key(|pod| {
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        (std::cmp::Reverse(priority), podfacts::created(pod.as_ref()), pod.object_name())
    });
    let mut cluster = Cluster::new(snapshot);
    let mut acted = 0;
    for pod in queue {
        if acted == BATCH_MAX {
            plan.after(NEXT_BATCH);
            break;
        }
        // Pods that wait and have been told why cost nothing: they never keep later ones out of the batch.
        let before = plan.actions.len();
        match cluster.place(pod) {
            Ok((index, selections)) => cluster.bind(pod, index, selections, &mut plan),
            Err(message) => unschedulable(pod, message, snapshot.now, &mut plan),
        }
        acted += usize::from(plan.actions.len() > before);
    }
    plan
}

/// Whether the pod waits for this scheduler.
#[must_use]
pub fn is_pending(snapshot: &Snapshot, pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ours = spec.scheduler_name.as_deref().is_none_or(|name| name == SCHEDULER_NAME);
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    ours && !gated
        && podfacts::node_name(pod).is_empty()
        && !podfacts::is_terminal(pod)
        && !pod.is_deleting()
        && !snapshot.assumed.contains_key(pod.uid())
}

impl<'a> Cluster<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        let mut nodes: Vec<_> =
            snapshot.nodes.values().map(|node| NodeInfo::new(node.as_ref())).collect();
        let index: BTreeMap<String, usize> =
            nodes.iter().enumerate().map(|(at, one)| (one.node.name().to_owned(), at)).collect();
        for pod in snapshot.pods.values().filter(|pod| !podfacts::is_terminal(pod)) {
            let bound = Some(podfacts::node_name(pod)).filter(|name| !name.is_empty());
            let name = bound.or_else(|| snapshot.assumed.get(pod.uid()).map(String::as_str));
            if let Some(info) =
                name.and_then(|name| index.get(name)).and_then(|at| nodes.get_mut(*at))
            {
                info.add(pod);
            }
        }
        Self { snapshot, nodes }
    }

    /// The best node for the pod and the claims to be provisioned there, or the reason in words.
    fn place(&self, pod: &Pod) -> Result<(usize, Vec<Name>), String> {
        if self.nodes.is_empty() {
            return Err("no nodes available to schedule pods".into());
        }
        let volumes = volumes::Needs::of(self.snapshot, pod)
            .map_err(|message| reasons::refused(self.nodes.len(), &message))?;
        let request = filter::Request::new(self, pod, volumes);
        let mut fitting = Vec::new();
        let mut reasons = reasons::Reasons::default();
        for (index, info) in self.nodes.iter().enumerate() {
            match request.check(info) {
                Ok(()) => fitting.push(index),
                Err(refusal) => reasons.add(refusal),
            }
        }
        let Some(best) = score::best(self, pod, &fitting) else {
            let never = pod.spec.as_ref().and_then(|spec| spec.preemption_policy.as_deref());
            return Err(reasons.message(self.nodes.len(), never == Some("Never")));
        };
        Ok((best, request.unbound_claims()))
    }

    /// Takes the node's resources, and either binds or first lets the claims be provisioned there.
    fn bind(&mut self, pod: &'a Arc<Pod>, index: usize, claims: Vec<Name>, plan: &mut Plan) {
        let Some(info) = self.nodes.get_mut(index) else { return };
        let node = info.node.name().to_owned();
        info.add(pod);
        if claims.is_empty() {
            plan.push(Action::Bind {
                pod: pod.object_name(),
                uid: pod.uid().to_owned(),
                node: node.clone(),
            });
            let message =
                format!("Successfully assigned {}/{} to {node}", pod.namespace(), pod.name());
            plan.event(reference(pod.as_ref()), "Scheduled", message);
            return;
        }
        for claim in claims {
            let Some(claim) = self.snapshot.claims.get(&claim) else { continue };
            if crate::objects::annotation(claim.as_ref(), SELECTED_NODE).is_none() {
                let annotations = serde_json::json!({ "annotations": { SELECTED_NODE: node } });
                plan.push(crate::action::patch_meta(claim.as_ref(), annotations));
            }
        }
    }
}

/// Says why nothing fits, once per reason: as the pod's condition and as an event.
fn unschedulable(pod: &Pod, message: String, now: Timestamp, plan: &mut Plan) {
    let told = podfacts::condition(pod, "PodScheduled").is_some_and(|condition| {
        condition.status == "False" && condition.message.as_deref() == Some(&message)
    });
    if told {
        return;
    }
    let status = podfacts::with_condition(
        pod,
        PodCondition {
            type_: "PodScheduled".into(),
            status: "False".into(),
            reason: Some("Unschedulable".into()),
            message: Some(message.clone()),
            last_transition_time: Some(Time(now)),
            observed_generation: pod.metadata.generation,
            ..PodCondition::default()
        },
    );
    let mut changed = pod.clone();
    changed.status = Some(status);
    plan.push(Action::UpdateStatus(changed.into()));
    plan.warn(reference(pod), "FailedScheduling", message);
}

#[cfg(test)]
mod tests;
