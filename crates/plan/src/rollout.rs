//! What a rollout cost its clients: how many pods ended with every node's word that no new connection came to them, told
//! once for each revision, as a condition and an event. Upstream has no counterpart.
//!
//! The agents tell of each pod that ended (see [`crate::guard`]); here those events are counted when the rollout is over.

mod deployment;
mod statefulset;
#[cfg(test)]
mod tests;

use std::time::Duration;

use api::apps::{ControllerRevision, Deployment, ReplicaSet, StatefulSet};
use api::core::{Event, ObjectReference, Pod};
use api::meta::Time;
use api::{Kind, Name, Objects};
use jiff::Timestamp;

use crate::action::{Action, ObjectKind, Plan};
use crate::objects::in_namespace;
use crate::podfacts;

/// The reason of the event of a pod that ended when every node had confirmed.
pub const STOPPED: &str = "ConnectionsStopped";
/// The reason of the event of a pod that ended although some node had not.
pub const NOT_STOPPED: &str = "ConnectionsNotStopped";
/// The condition of Deployments and StatefulSets; its reason names the revision.
pub const LOSSLESS: &str = "rhumb.dev/RolloutLossless";
/// Agents write events in the background: so long after a rollout's end its events are there.
const EVENTS_AFTER: Duration = Duration::from_secs(2);

/// What rollouts are judged by.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// All Deployments.
    pub deployments: Objects<Deployment>,
    /// All ReplicaSets.
    pub replica_sets: Objects<ReplicaSet>,
    /// All StatefulSets.
    pub stateful_sets: Objects<StatefulSet>,
    /// All revisions of StatefulSets.
    pub revisions: Objects<ControllerRevision>,
    /// All pods.
    pub pods: Objects<Pod>,
    /// Events with the reason [`STOPPED`].
    pub stopped: Objects<Event>,
    /// Events with the reason [`NOT_STOPPED`].
    pub not_stopped: Objects<Event>,
    /// The time of the plan.
    pub now: Timestamp,
}

/// A workload that rolls out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A Deployment.
    Deployment(Name),
    /// A StatefulSet.
    StatefulSet(Name),
}

/// A rollout that is over.
struct Over<'a> {
    revision: i64,
    /// When the first revision was made that is not told of: rollouts that were overtaken count as part of the next.
    since: Timestamp,
    /// Whether a pod is one of the revision's.
    is_new: &'a dyn Fn(&Pod) -> bool,
    /// Whether a pod was one of another revision's, by its controller.
    is_old: &'a dyn Fn(&ObjectReference) -> bool,
}

/// What came of a rollout.
struct Verdict {
    lossless: bool,
    reason: String,
    message: String,
}

/// Tells of the newest rollout of a workload when it is over, and nothing otherwise.
#[must_use]
pub fn plan(snapshot: &Snapshot, key: &Key) -> Plan {
    let told = match key {
        Key::Deployment(name) => deployment::plan(snapshot, name),
        Key::StatefulSet(name) => statefulset::plan(snapshot, name),
    };
    told.unwrap_or_default()
}

impl Verdict {
    /// The condition's.
    fn status(&self) -> String {
        if self.lossless { "True" } else { "False" }.to_owned()
    }
}

/// A plan that waits until the events of a rollout that ended then are written.
fn wait(ended: Option<Timestamp>, now: Timestamp) -> Option<Plan> {
    let since = now.as_millisecond() - ended?.as_millisecond();
    let since = Duration::from_millis(u64::try_from(since).unwrap_or(0));
    let left = EVENTS_AFTER.checked_sub(since).filter(|left| !left.is_zero())?;
    let mut plan = Plan::none();
    plan.after(left);
    Some(plan)
}

impl Over<'_> {
    /// Nothing for a workload behind no Service, or whose guard is off.
    fn judge(&self, snapshot: &Snapshot, namespace: &str) -> Option<Verdict> {
        let count = |events| self.count(events, namespace);
        let (stopped, not_stopped) = (count(&snapshot.stopped), count(&snapshot.not_stopped));
        let pods = || in_namespace(&snapshot.pods, namespace).filter(|pod| (self.is_new)(pod));
        let says = |pod: &Pod| podfacts::condition(pod, crate::guard::REACHABLE).cloned();
        let concerned = pods().any(|pod| says(pod).is_some());
        if stopped + not_stopped == 0 || !concerned {
            return None;
        }
        let reached =
            pods().filter(|pod| says(pod).is_some_and(|one| one.status == "True")).count();
        let message = format!(
            "Revision {}: {} of {} pods ended when no node sent them new connections any more; {reached} of {} pods that began are reached from every node",
            self.revision,
            stopped,
            stopped + not_stopped,
            pods().count(),
        );
        Some(Verdict { lossless: not_stopped == 0, reason: reason_of(self.revision), message })
    }

    /// The old revisions' pods with such an event.
    fn count(&self, events: &Objects<Event>, namespace: &str) -> usize {
        let is_in_time =
            |event: &Event| event.last_timestamp.as_ref().is_some_and(|time| time.0 >= self.since);
        in_namespace(events, namespace)
            .filter(|event| event.related.as_ref().is_some_and(self.is_old) && is_in_time(event))
            .count()
    }
}

fn tell(about: ObjectReference, verdict: Verdict, status: Action) -> Plan {
    let mut plan = Plan::none();
    plan.push(status);
    let Verdict { lossless, message, .. } = verdict;
    if lossless {
        plan.event(about, "RolloutLossless", message);
    } else {
        plan.warn(about, "RolloutNotLossless", message);
    }
    plan
}

fn reason_of(revision: i64) -> String {
    format!("Revision{revision}")
}

/// The newest revision that was told of, and when; the first one replaced nobody.
fn told_of(reason: Option<&str>, time: Option<&Time>) -> (i64, Timestamp) {
    let revision = reason.and_then(|reason| reason.strip_prefix("Revision")?.parse().ok());
    (revision.unwrap_or(1), time.map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

/// The workload that a pod or a set belongs to, if it rolls out.
#[must_use]
pub fn workload(replica_sets: &Objects<ReplicaSet>, pod: &Pod) -> Option<Key> {
    let owner = pod.controller()?;
    let name = Name::new(pod.namespace(), &owner.name);
    match ObjectKind::named(&owner.api_version, &owner.kind)? {
        ObjectKind::StatefulSet => Some(Key::StatefulSet(name)),
        ObjectKind::ReplicaSet => {
            let set = replica_sets.get(&name)?;
            let owner = set.controller().filter(|owner| owner.kind == "Deployment")?;
            Some(Key::Deployment(Name::new(pod.namespace(), &owner.name)))
        }
        _ => None,
    }
}
