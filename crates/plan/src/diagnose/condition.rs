//! The diagnosis as a condition of the Service and as an event. Upstream has no counterpart.
//!
//! A Service that works, and always did, is not written: a condition appears with the first trouble and turns true when it
//! is over. Trouble that is likely to pass (pods that start) is told only when it has not.

use std::time::Duration;

use api::Kind;
use api::core::{Pod, Service};
use api::meta::{Condition, Time};
use jiff::Timestamp;
use serde_json::json;

use super::{Evidence, Problem, pods, problem};
use crate::action::{Action, Notice, ObjectKind};
use crate::objects::reference;
use crate::podfacts;

/// The type of the condition.
pub const ENDPOINTS_READY: &str = "EndpointsReady";
/// Trouble younger than this is not told: pods and slices follow a new Service within it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for trouble that is likely to pass by itself.
const PATIENCE_PASSING: Duration = Duration::from_secs(30);

/// What is to be done about one Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Whether the Service does not work, told or not.
    pub fails: bool,
    /// The write of the condition, if it changes.
    pub write: Option<Action>,
    /// What events say while the Service does not work.
    pub notice: Option<Notice>,
    /// Look again after this time: the trouble is too young to tell.
    pub again: Option<Duration>,
}

/// What is to be done about `service` at `now`.
#[must_use]
pub fn plan(service: &Service, evidence: &Evidence<'_>, now: Timestamp) -> Outcome {
    if service.is_deleting() {
        return Outcome::default();
    }
    let Some(problem) = problem(service, evidence) else {
        let told = present(service).is_some_and(|one| one.status != "True");
        let write = told.then(|| write(service, "True", "EndpointsReady", "", now));
        return Outcome { write, ..Outcome::default() };
    };
    if let Some(left) = patience_left(service, evidence, &problem, now) {
        return Outcome { fails: true, again: Some(left), ..Outcome::default() };
    }
    let reason = problem.reason.as_str();
    let same = present(service).is_some_and(|one| {
        one.status == "False" && one.reason == reason && one.message == problem.message
    });
    let write = (!same).then(|| write(service, "False", reason, &problem.message, now));
    let notice =
        Notice { about: reference(service), warning: true, reason, message: problem.message };
    Outcome { fails: true, write, notice: Some(notice), again: None }
}

fn present(service: &Service) -> Option<&Condition> {
    let conditions = service.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == ENDPOINTS_READY)
}

/// How long the trouble must still last before it is told; `None` when it has lasted, or is told already.
fn patience_left(
    service: &Service,
    evidence: &Evidence<'_>,
    problem: &Problem,
    now: Timestamp,
) -> Option<Duration> {
    if present(service).is_some_and(|one| one.status == "False") {
        return None;
    }
    let patience = if problem.passing { PATIENCE_PASSING } else { PATIENCE };
    let pods = pods::selected(service, evidence).into_iter().flat_map(changes);
    let latest = pods.chain(std::iter::once(podfacts::created(service))).max()?;
    // A clock that is ahead of ours does not make it longer.
    let age = u64::try_from(now.as_millisecond() - latest.as_millisecond()).unwrap_or(0);
    patience.checked_sub(Duration::from_millis(age)).filter(|left| !left.is_zero())
}

/// When the pod was made, became ready or not, or began to go.
fn changes(pod: &Pod) -> impl Iterator<Item = Timestamp> {
    let ready = podfacts::condition(pod, "Ready").and_then(|one| one.last_transition_time.as_ref());
    // The deletion timestamp is the end of the grace, so it lies ahead.
    let going = pod.metadata.deletion_timestamp.as_ref().map(|time| {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        Timestamp::from_second(time.0.as_second() - grace).unwrap_or(time.0)
    });
    std::iter::once(podfacts::created(pod)).chain(ready.map(|time| time.0)).chain(going)
}

/// Replaces our condition among those of others, if the Service is still this one.
fn write(service: &Service, status: &str, reason: &str, message: &str, now: Timestamp) -> Action {
    let before = present(service);
    let since =
        before.filter(|one| one.status == status).map(|one| one.last_transition_time.clone());
    let ours = Condition {
        type_: ENDPOINTS_READY.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: service.metadata.generation,
        last_transition_time: since.unwrap_or_else(|| seconds(now)),
    };
    let status = service.status.as_ref();
    let mut conditions = status.and_then(|status| status.conditions.clone()).unwrap_or_default();
    match conditions.iter_mut().find(|one| one.type_ == ENDPOINTS_READY) {
        Some(one) => *one = ours,
        None => conditions.push(ours),
    }
    Action::Patch {
        kind: ObjectKind::Service,
        name: service.object_name(),
        status: true,
        patch: json!({
            "metadata": {"uid": service.uid(), "resourceVersion": service.meta().resource_version},
            "status": {"conditions": conditions},
        }),
    }
}

/// Times of the API are whole seconds.
fn seconds(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}
