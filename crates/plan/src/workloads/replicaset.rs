//! ReplicaSets: as many pods of one template as asked. Upstream counterpart: `pkg/controller/replicaset`.

use api::apps::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use api::core::Pod;
use api::meta::Time;
use api::{Kind, Name, Objects};
use jiff::Timestamp;
use std::sync::Arc;

use super::{Claim, claim, count, crowd, pod_of, pod_prefix, rank_for_deletion, template_labels};
use crate::action::{Action, Plan};
use crate::objects::{in_namespace, map_matches, reference};
use crate::podfacts;

/// Pods created or deleted in one plan at most (upstream's `BurstReplicas`).
const BURST_MAX: usize = 500;

/// What ReplicaSets are planned from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All ReplicaSets.
    pub replica_sets: Objects<ReplicaSet>,
    /// All pods.
    pub pods: Objects<Pod>,
    /// The time of the plan.
    pub now: Timestamp,
}

/// Creates or deletes pods until the count is right, and writes the status.
#[must_use]
pub fn plan(snapshot: &Snapshot, key: &Name) -> Plan {
    let Some(set) = snapshot.replica_sets.get(key) else { return Plan::none() };
    let Some(spec) = &set.spec else { return Plan::none() };
    let Claim { owned, actions } =
        claim(set.as_ref(), &spec.selector, in_namespace(&snapshot.pods, set.namespace()));
    let mut plan = Plan { actions, again: None };
    let active: Vec<_> = owned.iter().filter(|pod| podfacts::is_active(pod)).cloned().collect();
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    let (have, going) = (active.len(), set.is_deleting());
    let surplus = if going { 0 } else { have.saturating_sub(wanted).min(BURST_MAX) };
    let doomed = doomed(snapshot, set, active, surplus);
    // The status leaves out what this plan deletes, so that a Deployment never counts on it.
    let staying: Vec<_> =
        owned.into_iter().filter(|pod| !doomed.iter().any(|(_, uid)| uid == pod.uid())).collect();
    let status = status(set, &staying, doomed.len(), snapshot.now, &mut plan);
    if set.status.as_ref() != Some(&status) {
        let mut set = ReplicaSet::clone(set);
        set.status = Some(status);
        plan.push(Action::UpdateStatus(set.into()));
    }
    if !doomed.is_empty() {
        plan.push(Action::DeletePods { owner: reference(set.as_ref()), pods: doomed });
    } else if have < wanted && !going {
        create(set, (wanted - have).min(BURST_MAX), &mut plan);
    }
    plan
}

fn create(set: &ReplicaSet, missing: usize, plan: &mut Plan) {
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let mut pod = pod_of(&template.cloned().unwrap_or_default(), set);
    pod.metadata.generate_name = Some(pod_prefix(set.name()));
    plan.push(Action::CreatePods { owner: reference(set), pods: vec![pod; missing] });
}

fn doomed(
    snapshot: &Snapshot,
    set: &ReplicaSet,
    mut active: Vec<Arc<Pod>>,
    surplus: usize,
) -> Vec<(Name, String)> {
    if surplus == 0 {
        return Vec::new();
    }
    // Pods of the sister sets (one Deployment's) count where they run, so that scaling down evens out.
    let sisters: Vec<&str> = in_namespace(&snapshot.replica_sets, set.namespace())
        .filter(|other| match (other.controller(), set.controller()) {
            (Some(one), Some(two)) => one.uid == two.uid,
            _ => other.uid() == set.uid(),
        })
        .map(|other| other.uid())
        .collect();
    let related = in_namespace(&snapshot.pods, set.namespace()).filter(|pod| {
        podfacts::is_active(pod)
            && pod.controller().is_some_and(|owner| sisters.contains(&owner.uid.as_str()))
    });
    rank_for_deletion(&mut active, &crowd(related));
    let doomed = active.iter().take(surplus);
    doomed.map(|pod| (pod.object_name(), pod.uid().to_owned())).collect()
}

fn status(
    set: &ReplicaSet,
    owned: &[Arc<Pod>],
    doomed: usize,
    now: Timestamp,
    plan: &mut Plan,
) -> ReplicaSetStatus {
    let spec = set.spec.clone().unwrap_or_default();
    let labels = spec.template.as_ref().and_then(template_labels).cloned().unwrap_or_default();
    let (mut active, mut labelled, mut ready, mut available) = (0, 0, 0, 0);
    for pod in owned.iter().filter(|pod| podfacts::is_active(pod)) {
        active += 1;
        labelled += i32::from(map_matches(&labels, pod.meta().labels.as_ref()));
        ready += i32::from(podfacts::is_ready(pod));
        match podfacts::availability(pod, spec.min_ready_seconds.unwrap_or(0), now) {
            Ok(()) => available += 1,
            Err(Some(missing)) => plan.after(missing),
            Err(None) => {}
        }
    }
    let terminating = owned.iter().filter(|pod| pod.is_deleting() && !podfacts::is_terminal(pod));
    let old = set.status.as_ref();
    let mut conditions = old.and_then(|status| status.conditions.clone()).unwrap_or_default();
    if active == spec.replicas.unwrap_or(1) {
        conditions.retain(|condition| condition.type_ != "ReplicaFailure");
    }
    ReplicaSetStatus {
        replicas: active,
        fully_labeled_replicas: some(labelled),
        ready_replicas: some(ready),
        available_replicas: some(available),
        terminating_replicas: Some(count(terminating.count() + doomed)),
        observed_generation: set.metadata.generation,
        conditions: (!conditions.is_empty()).then_some(conditions),
    }
}

/// Zero is left out on the wire.
fn some(number: i32) -> Option<i32> {
    (number != 0).then_some(number)
}

/// The ReplicaSet with a condition that tells why pods were not created, or not deleted.
#[must_use]
pub fn failed(set: &ReplicaSet, reason: &str, message: &str, now: Timestamp) -> Option<ReplicaSet> {
    let mut set = set.clone();
    let status = set.status.get_or_insert_default();
    let conditions = status.conditions.get_or_insert_default();
    let same = |one: &ReplicaSetCondition| one.type_ == "ReplicaFailure";
    if conditions.iter().any(|one| same(one) && one.reason.as_deref() == Some(reason)) {
        return None;
    }
    conditions.retain(|one| !same(one));
    conditions.push(ReplicaSetCondition {
        type_: "ReplicaFailure".into(),
        status: "True".into(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(now)),
    });
    Some(set)
}

#[cfg(test)]
mod tests;
