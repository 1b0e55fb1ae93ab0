//! Rollouts of Deployments: old pods are those of other ReplicaSets.

use api::apps::{Deployment, DeploymentCondition, ReplicaSet};
use api::core::Pod;
use api::meta::Time;
use api::{Kind, Name};
use jiff::Timestamp;

use super::{LOSSLESS, Over, Snapshot, Verdict, tell, told_of, wait};
use crate::action::{Action, Plan};
use crate::objects::{annotation, in_namespace, is_controlled_by, reference};
use crate::podfacts;
use crate::workloads::deployment::REVISION;

/// Tells of a Deployment's newest revision.
pub(super) fn plan(snapshot: &Snapshot, name: &Name) -> Option<Plan> {
    let deployment = snapshot.deployments.get(name)?;
    let status = deployment.status.as_ref()?;
    let wanted = deployment.spec.as_ref()?.replicas.unwrap_or(1);
    let counts = [status.replicas, status.updated_replicas, status.available_replicas];
    let is_complete = status.observed_generation >= deployment.metadata.generation
        && counts.iter().all(|count| count.unwrap_or(0) == wanted);
    let revision = revision_of(deployment.as_ref())?;
    let conditions = status.conditions.as_deref().unwrap_or(&[]);
    let told = conditions.iter().find(|one| one.type_ == LOSSLESS);
    let (last, told_at) = told.map_or((1, Timestamp::UNIX_EPOCH), |told| {
        told_of(told.reason.as_deref(), told.last_update_time.as_ref())
    });
    if !is_complete || revision <= last {
        return None;
    }
    let sets = || {
        in_namespace(&snapshot.replica_sets, &name.namespace)
            .filter(|set| is_controlled_by(set.as_ref(), deployment.as_ref()))
    };
    let is_current = |set: &ReplicaSet| revision_of(set) == Some(revision);
    let new = sets().find(|set| is_current(set))?;
    let pods = || in_namespace(&snapshot.pods, &name.namespace);
    let is_old_pod =
        |pod: &Pod| sets().any(|set| !is_current(set) && is_controlled_by(pod, set.as_ref()));
    if pods().any(|pod| is_old_pod(pod)) {
        return None;
    }
    let progressed = conditions.iter().find(|one| one.type_ == "Progressing");
    let ended = progressed.and_then(|one| one.last_update_time.as_ref()).map(|time| time.0);
    if let Some(plan) = wait(ended, snapshot.now) {
        return Some(plan);
    }
    let untold = sets().filter(|set| revision_of(set.as_ref()) > Some(last));
    let made = untold.map(|set| podfacts::created(set.as_ref())).min();
    let over = Over {
        revision,
        since: made.unwrap_or(told_at).max(told_at),
        is_new: &|pod| is_controlled_by(pod, new.as_ref()),
        // A set's name is the Deployment's with a hash: sets beyond the history's limit are gone by now.
        is_old: &|owner| {
            let set = owner.name.as_deref().unwrap_or_default();
            let of = set.rsplit_once('-').map(|(deployment, _)| deployment);
            owner.kind.as_deref() == Some("ReplicaSet")
                && of == Some(deployment.name())
                && set != new.name()
        },
    };
    let verdict = over.judge(snapshot, &name.namespace)?;
    let changed = with_condition(deployment, &verdict, snapshot.now);
    Some(tell(reference(deployment.as_ref()), verdict, Action::UpdateStatus(changed.into())))
}

fn revision_of<K: Kind>(object: &K) -> Option<i64> {
    annotation(object, REVISION)?.parse().ok()
}

fn with_condition(deployment: &Deployment, verdict: &Verdict, now: Timestamp) -> Deployment {
    let now = Some(Time(now));
    let mut changed = deployment.clone();
    let status = changed.status.get_or_insert_default();
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|one| one.type_ != LOSSLESS);
    conditions.push(DeploymentCondition {
        type_: LOSSLESS.to_owned(),
        status: verdict.status(),
        reason: Some(verdict.reason.clone()),
        message: Some(verdict.message.clone()),
        last_transition_time: now.clone(),
        last_update_time: now,
    });
    changed
}
