//! Rollouts of StatefulSets: pods keep their names, and their labels tell the revision.

use api::Kind;
use api::Name;
use api::apps::{StatefulSet, StatefulSetCondition};
use api::core::Pod;
use api::meta::Time;
use jiff::Timestamp;

use super::{LOSSLESS, Over, Snapshot, Verdict, tell, told_of, wait};
use crate::action::{Action, Plan};
use crate::objects::{in_namespace, is_controlled_by, label, reference};
use crate::podfacts;
use crate::workloads::revisions::REVISION_HASH;

/// Tells of a StatefulSet's newest revision.
pub(super) fn plan(snapshot: &Snapshot, name: &Name) -> Option<Plan> {
    let set = snapshot.stateful_sets.get(name)?;
    let status = set.status.as_ref()?;
    let wanted = set.spec.as_ref()?.replicas.unwrap_or(1);
    let update = status.update_revision.as_deref()?;
    let is_complete = status.observed_generation >= set.metadata.generation
        && status.current_revision.as_deref() == Some(update)
        && status.replicas == wanted
        && status.available_replicas.unwrap_or(0) == wanted;
    let newest = snapshot.revisions.get(&Name::new(&name.namespace, update))?;
    let conditions = status.conditions.as_deref().unwrap_or(&[]);
    let told = conditions.iter().find(|one| one.type_ == LOSSLESS);
    let (last, told_at) = told.map_or((1, Timestamp::UNIX_EPOCH), |told| {
        told_of(told.reason.as_deref(), told.last_transition_time.as_ref())
    });
    let revision = newest.revision;
    if !is_complete || revision <= last {
        return None;
    }
    let is_of = |pod: &Pod| is_controlled_by(pod, set.as_ref());
    let is_new = |pod: &Pod| is_of(pod) && label(pod, REVISION_HASH) == Some(update);
    let pods = || in_namespace(&snapshot.pods, &name.namespace).filter(|pod| is_of(pod));
    if pods().any(|pod| !is_new(pod)) {
        return None;
    }
    let ended = pods().filter_map(|pod| podfacts::ready_since(pod)).max();
    if let Some(plan) = wait(ended, snapshot.now) {
        return Some(plan);
    }
    let untold = in_namespace(&snapshot.revisions, &name.namespace)
        .filter(|one| one.revision > last && is_controlled_by(one.as_ref(), set.as_ref()));
    let made = untold.map(|one| podfacts::created(one.as_ref())).min();
    let over = Over {
        revision,
        since: made.unwrap_or(told_at).max(told_at),
        is_new: &is_new,
        is_old: &|owner| {
            owner.kind.as_deref() == Some("StatefulSet")
                && owner.name.as_deref() == Some(set.name())
        },
    };
    let verdict = over.judge(snapshot, &name.namespace)?;
    let changed = with_condition(set, &verdict, snapshot.now);
    Some(tell(reference(set.as_ref()), verdict, Action::UpdateStatus(changed.into())))
}

fn with_condition(set: &StatefulSet, verdict: &Verdict, now: Timestamp) -> StatefulSet {
    let mut changed = set.clone();
    let status = changed.status.get_or_insert_default();
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|one| one.type_ != LOSSLESS);
    conditions.push(StatefulSetCondition {
        type_: LOSSLESS.to_owned(),
        status: verdict.status(),
        reason: Some(verdict.reason.clone()),
        message: Some(verdict.message.clone()),
        last_transition_time: Some(Time(now)),
    });
    changed
}
