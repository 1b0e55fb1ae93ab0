//! Pods that no node will ever finish: on vanished nodes, or deleted before they were scheduled. Upstream: `podgc`.

use api::core::{Node, Pod, PodCondition};
use api::meta::Time;
use api::{Kind, Name, Objects};
use jiff::Timestamp;

use crate::action::{Action, ObjectKind, Plan};
use crate::podfacts;

/// Finished pods that are kept (upstream's `--terminated-pod-gc-threshold`).
const FINISHED_MAX: usize = 12_500;

/// What orphaned pods are planned from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All pods.
    pub pods: Objects<Pod>,
    /// All nodes.
    pub nodes: Objects<Node>,
    /// The time of the plan.
    pub now: Timestamp,
}

/// Writes by the node that must really be gone; the empty name for writes that need no proof.
pub type Plans = std::collections::BTreeMap<String, Plan>;

/// Deletes orphaned pods without grace.
#[must_use]
pub fn plan(snapshot: &Snapshot) -> Plans {
    let mut plans = Plans::new();
    let mut finished = Vec::new();
    for pod in snapshot.pods.values() {
        let node = podfacts::node_name(pod);
        if !node.is_empty() && !snapshot.nodes.contains_key(&Name::cluster(node)) {
            let plan = plans.entry(node.to_owned()).or_default();
            if !podfacts::is_terminal(pod) {
                plan.push(Action::UpdateStatus(failed(pod, snapshot.now).into()));
            }
            plan.push(remove(pod));
        } else if pod.is_deleting() && node.is_empty() {
            plans.entry(String::new()).or_default().push(remove(pod));
        } else if podfacts::is_terminal(pod) && !pod.is_deleting() {
            finished.push(pod);
        }
    }
    let surplus = finished.len().saturating_sub(FINISHED_MAX);
    finished.sort_by_key(|pod| podfacts::created(pod.as_ref()));
    for pod in finished.into_iter().take(surplus) {
        plans.entry(String::new()).or_default().push(remove(pod));
    }
    plans
}

fn remove(pod: &Pod) -> Action {
    Action::Delete {
        kind: ObjectKind::Pod,
        name: pod.object_name(),
        uid: pod.uid().to_owned(),
        grace: Some(0),
        propagation: None,
    }
}

fn failed(pod: &Pod, now: Timestamp) -> Pod {
    let mut changed = pod.clone();
    let mut status = podfacts::with_condition(
        pod,
        PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            reason: Some("DeletionByPodGC".into()),
            message: Some("PodGC: node no longer exists".into()),
            last_transition_time: Some(Time(now)),
            ..PodCondition::default()
        },
    );
    status.phase = Some("Failed".into());
    changed.status = Some(status);
    changed
}
