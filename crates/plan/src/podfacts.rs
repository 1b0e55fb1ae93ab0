//! Facts on pods that several controllers ask for: ready, available, active, addresses, ports.
//!
//! Upstream counterpart: `pkg/api/v1/pod` and `pkg/controller`'s pod predicates.

use std::time::Duration;

use api::core::{Pod, PodCondition, PodStatus};
use api::{IntOrString, Kind};
use jiff::Timestamp;

use crate::guard;

/// A condition of the pod by type.
#[must_use]
pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// The pod's phase; empty when the API server has not set one.
#[must_use]
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("")
}

/// Whether the `Ready` condition holds.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// Since when the pod is ready.
#[must_use]
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|ready| ready.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// Whether the pod has ended for good.
#[must_use]
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod counts as a replica: neither ended nor being deleted.
#[must_use]
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !pod.is_deleting()
}

/// `Ok` when the pod has been ready for `min_ready_seconds`, and is reached by connections where the agent asks for that;
/// `Err` with the time that is missing, if only time is.
pub fn availability(
    pod: &Pod,
    min_ready_seconds: i32,
    now: Timestamp,
) -> Result<(), Option<Duration>> {
    if !is_ready(pod) {
        return Err(None);
    }
    let mut wait = Duration::from_secs(u64::try_from(min_ready_seconds).unwrap_or(0));
    if condition(pod, guard::REACHABLE).is_some_and(|reached| reached.status != "True") {
        wait = wait.max(guard::BUDGET_MAX);
    }
    if wait.is_zero() {
        return Ok(());
    }
    let since = ready_since(pod).ok_or(None)?;
    let end = since.as_millisecond() + i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
    match u64::try_from(end - now.as_millisecond()) {
        Ok(0) | Err(_) => Ok(()),
        Ok(missing) => Err(Some(Duration::from_millis(missing))),
    }
}

/// Whether the pod has been ready for `min_ready_seconds`.
#[must_use]
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    availability(pod, min_ready_seconds, now).is_ok()
}

/// The node that the pod is bound to; empty when it is not.
#[must_use]
pub fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("")
}

/// How often containers of the pod were restarted, at most.
#[must_use]
pub fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).max().unwrap_or(0)
}

/// When the object was created; the epoch when the API server has not said.
pub fn created<K: Kind>(object: &K) -> Timestamp {
    object.meta().creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

/// All addresses of the pod, the primary first.
pub fn addresses(pod: &Pod) -> impl Iterator<Item = &str> {
    let status = pod.status.as_ref();
    let many = status.and_then(|status| status.pod_ips.as_deref()).unwrap_or(&[]);
    let one = status.and_then(|status| status.pod_ip.as_deref()).filter(|_| many.is_empty());
    many.iter().map(|one| one.ip.as_str()).chain(one).filter(|address| !address.is_empty())
}

/// The number that a `targetPort` means for this pod; `None` when the name is not among its ports.
#[must_use]
pub fn target_port(pod: &Pod, target: &IntOrString, protocol: &str) -> Option<i32> {
    let name = match target {
        IntOrString::Int(number) => return Some(*number),
        IntOrString::String(name) => name,
    };
    let spec = pod.spec.as_ref()?;
    // Sidecars (init containers that restart) serve too.
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .find(|port| {
            port.name.as_ref() == Some(name)
                && port.protocol.as_deref().unwrap_or("TCP") == protocol
        })
        .map(|port| port.container_port)
}

/// The status with `condition` set: the transition time moves only when the condition's status does.
#[must_use]
pub fn with_condition(pod: &Pod, mut condition: PodCondition) -> PodStatus {
    let mut status = pod.status.clone().unwrap_or_default();
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|old| old.type_ == condition.type_) {
        Some(old) => {
            if old.status == condition.status {
                condition.last_transition_time = old.last_transition_time.take();
            }
            *old = condition;
        }
        None => conditions.push(condition),
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::meta::Time;

    fn ready(second: i64) -> Pod {
        let condition = PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(Time(at(second))),
            ..PodCondition::default()
        };
        let status = PodStatus { conditions: Some(vec![condition]), ..PodStatus::default() };
        Pod { status: Some(status), ..Pod::default() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn a_ready_pod_is_available_after_min_ready_seconds() {
        assert_eq!(availability(&ready(100), 0, at(100)), Ok(()));
        assert_eq!(availability(&ready(100), 10, at(110)), Ok(()));
        assert_eq!(availability(&ready(100), 10, at(107)), Err(Some(Duration::from_secs(3))));
        assert_eq!(availability(&Pod::default(), 0, at(100)), Err(None));
    }

    #[test]
    fn a_pod_that_connections_do_not_reach_is_available_only_when_that_takes_too_long() {
        let with = |status: &str| {
            let mut pod = ready(100);
            let conditions = pod.status.as_mut().and_then(|status| status.conditions.as_mut());
            conditions.expect("it is ready").push(PodCondition {
                type_: guard::REACHABLE.into(),
                status: status.into(),
                ..PodCondition::default()
            });
            pod
        };
        assert_eq!(availability(&with("False"), 0, at(100)), Err(Some(Duration::from_secs(5))));
        assert_eq!(availability(&with("False"), 0, at(105)), Ok(()));
        assert_eq!(availability(&with("True"), 0, at(100)), Ok(()));
        assert_eq!(availability(&with("True"), 10, at(105)), Err(Some(Duration::from_secs(5))));
    }
}
