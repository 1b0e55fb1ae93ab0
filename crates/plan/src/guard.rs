//! The guard of rollouts: a pod that goes gets its signal only when nothing sends it new connections, and a pod that comes
//! counts as available only when connections reach it. Upstream has no counterpart: there the signal and the removal from
//! the proxies race (KEP-1669 only softens it), and users put a sleep into `preStop`.
//!
//! What is decided here is what the EndpointSlices say of one pod, and up to which revision the proxies must have them.

use std::collections::BTreeSet;
use std::time::Duration;

use api::core::{Node, Pod, Service};
use api::discovery::{Endpoint, EndpointSlice};
use api::{Kind, Name, Objects};

use api::pod::ROLLOUT_GUARD;

use crate::endpointslice::services_of;

/// The condition of pods behind Services: whether every node's proxy sends connections to it.
pub const REACHABLE: &str = "rhumb.dev/Reachable";
/// The longest wait unless the annotation says otherwise; a quarter of upstream's default grace period is more.
pub const BUDGET_MAX: Duration = Duration::from_secs(5);
/// The share of the grace period that the guard may use: one part in this many. The rest is the pod's own.
const GRACE_SHARE: u32 = 2;
/// A pod that goes without another being ready waits this long for one to appear, and then until that one is ready.
const SUCCESSOR_AFTER: Duration = Duration::from_secs(1);

/// What the slices say of the connections to one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not yet as it should be.
    Waits,
    /// As it should be, for proxies that have the slices up to this revision.
    Settled {
        /// The newest revision of the slices concerned.
        revision: u64,
    },
}

/// The longest wait for `pod`, whose grace period is `grace`; zero when the guard is off for it.
#[must_use]
pub fn budget(pod: &Pod, grace: Duration) -> Duration {
    let annotations = pod.meta().annotations.as_ref();
    let asked = annotations.and_then(|all| all.get(ROLLOUT_GUARD)).map(String::as_str);
    let wanted = match asked {
        Some("off") => Duration::ZERO,
        Some(text) => api::duration::parse(text).unwrap_or(BUDGET_MAX),
        None => BUDGET_MAX,
    };
    wanted.min(grace / GRACE_SHARE)
}

/// The Services that send connections to `pod` while it is ready, and to others when it is not.
#[must_use]
pub fn services(services: &Objects<Service>, pod: &Pod) -> Vec<Name> {
    let follows_readiness = |name: &Name| {
        let spec = services.get(name).and_then(|service| service.spec.as_ref());
        spec.is_some_and(|spec| spec.publish_not_ready_addresses != Some(true))
    };
    services_of(services, pod).filter(follows_readiness).collect()
}

/// The nodes that must confirm for a pod of the node `own`: this one, and all that are ready and not silent. Who cannot be
/// reached sends no connections that could be lost, and would use up every wait.
pub fn live<'a>(
    nodes: &'a Objects<Node>,
    own: &'a str,
    silent: &'a BTreeSet<String>,
) -> impl Iterator<Item = &'a Node> {
    let is_live = move |node: &&Node| {
        node.name() == own || is_ready_node(node) && !silent.contains(node.name())
    };
    nodes.values().map(AsRef::as_ref).filter(is_live)
}

fn is_ready_node(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
}

/// Whether new connections of one Service with these slices pass by `pod`, which began to go `since` ago.
///
/// Where no endpoint is ready, proxies fall back on those that go (KEP-1669): then the pod's successor is waited for, if
/// one is on its way.
#[must_use]
pub fn passed_by(pod: &Pod, slices: &Objects<EndpointSlice>, since: Duration) -> Standing {
    let mut own = endpoints(slices).filter(|endpoint| is_of(endpoint, pod)).peekable();
    // Every pod with an address is listed until it is gone, so that this is a copy that lags.
    if own.peek().is_none() || own.any(is_ready) {
        return Standing::Waits;
    }
    let others = || endpoints(slices).filter(|endpoint| !is_of(endpoint, pod));
    let serves = endpoints(slices).any(|endpoint| is_of(endpoint, pod) && is_serving(endpoint));
    let alone = serves && !others().any(is_ready);
    let successor = || others().any(|endpoint| !is_terminating(endpoint));
    if alone && (since < SUCCESSOR_AFTER || successor()) {
        return Standing::Waits;
    }
    Standing::Settled { revision: newest(slices) }
}

/// Whether new connections of one Service with these slices reach `pod`.
#[must_use]
pub fn reached(pod: &Pod, slices: &Objects<EndpointSlice>) -> Standing {
    if endpoints(slices).any(|endpoint| is_of(endpoint, pod) && is_ready(endpoint)) {
        Standing::Settled { revision: newest(slices) }
    } else {
        Standing::Waits
    }
}

/// All of these together.
#[must_use]
pub fn all(standings: impl IntoIterator<Item = Standing>) -> Standing {
    let nothing = Standing::Settled { revision: 0 };
    standings.into_iter().fold(nothing, |all, one| match (all, one) {
        (Standing::Settled { revision: a }, Standing::Settled { revision: b }) => {
            Standing::Settled { revision: a.max(b) }
        }
        _ => Standing::Waits,
    })
}

fn newest(slices: &Objects<EndpointSlice>) -> u64 {
    slices.values().map(|slice| slice.revision()).max().unwrap_or(0)
}

fn endpoints(slices: &Objects<EndpointSlice>) -> impl Iterator<Item = &Endpoint> {
    slices.values().flat_map(|slice| slice.endpoints.iter().flatten())
}

fn is_of(endpoint: &Endpoint, pod: &Pod) -> bool {
    endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()) == Some(pod.uid())
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

fn is_serving(endpoint: &Endpoint) -> bool {
    let serving = endpoint.conditions.as_ref().and_then(|conditions| conditions.serving);
    serving.unwrap_or_else(|| is_ready(endpoint))
}

fn is_terminating(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.terminating).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    /// A pod's uid, and whether it is ready, serving, terminating.
    type Listed = (&'static str, bool, bool, bool);
    /// A slice's revision and endpoints.
    type Slice<'a> = (u64, &'a [Listed]);

    const LONG: Duration = Duration::from_secs(60);

    fn pod(annotation: Option<&str>) -> Pod {
        let annotations = annotation.map(|text| json!({ ROLLOUT_GUARD: text }));
        serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "n", "uid": "a", "labels": {"app": "web"}, "annotations": annotations},
            "status": {"podIP": "10.244.0.2", "podIPs": [{"ip": "10.244.0.2"}]},
        }))
        .unwrap()
    }

    /// Slices of one Service.
    fn slices(all: &[Slice<'_>]) -> Objects<EndpointSlice> {
        let one = |(number, (revision, endpoints)): (usize, &Slice<'_>)| {
            let endpoints: Vec<_> = endpoints
                .iter()
                .map(|(uid, ready, serving, terminating)| {
                    json!({"addresses": ["10.244.0.2"], "targetRef": {"kind": "Pod", "uid": uid},
                        "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
                })
                .collect();
            let slice: EndpointSlice = serde_json::from_value(json!({
                "metadata": {"name": format!("web-{number}"), "namespace": "n", "resourceVersion": revision.to_string()},
                "addressType": "IPv4", "endpoints": endpoints,
            }))
            .unwrap();
            (slice.object_name(), Arc::new(slice))
        };
        all.iter().enumerate().map(one).collect()
    }

    const GOES: Listed = ("a", false, true, true);
    const READY: Listed = ("b", true, true, false);
    const STARTS: Listed = ("b", false, false, false);

    #[test]
    fn the_budget_is_a_share_of_the_grace_and_the_annotations() {
        let seconds = Duration::from_secs;
        assert_eq!(budget(&pod(None), seconds(30)), seconds(5));
        assert_eq!(budget(&pod(None), seconds(1)), Duration::from_millis(500));
        assert_eq!(budget(&pod(Some("off")), seconds(30)), Duration::ZERO);
        assert_eq!(budget(&pod(Some("2s")), seconds(30)), seconds(2));
        assert_eq!(budget(&pod(Some("50ms")), seconds(30)), Duration::from_millis(50));
        assert_eq!(budget(&pod(Some("soon")), seconds(30)), BUDGET_MAX);
        assert_eq!(budget(&pod(None), Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn nodes_that_are_silent_or_not_ready_are_not_waited_for() {
        let node = |(name, ready): (&str, &str)| -> (Name, Arc<Node>) {
            let node: Node = serde_json::from_value(json!({"metadata": {"name": name},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap();
            (node.object_name(), Arc::new(node))
        };
        let all = [("n1", "False"), ("n2", "True"), ("n3", "Unknown"), ("n4", "True")];
        let all: Objects<Node> = all.into_iter().map(node).collect();
        let live = |silent: &[&str]| {
            let silent = silent.iter().map(|name| (*name).to_owned()).collect();
            live(&all, "n1", &silent).map(|node| node.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(live(&[]), ["n1", "n2", "n4"]);
        assert_eq!(live(&["n4", "n3"]), ["n1", "n2"]);
        assert_eq!(live(&["n1", "n2", "n4"]), ["n1"], "this one speaks for itself");
    }

    #[test]
    fn a_pod_that_goes_is_passed_by_when_the_slices_say_so() {
        let at = |all: &[Slice<'_>]| passed_by(&pod(None), &slices(all), LONG);
        assert_eq!(at(&[(5, &[])]), Standing::Waits, "not listed yet");
        assert_eq!(at(&[(5, &[("a", true, true, false), READY])]), Standing::Waits, "still ready");
        assert_eq!(at(&[(5, &[GOES, READY])]), Standing::Settled { revision: 5 });
        let never_ready = [(5, [("a", false, false, true)].as_slice())];
        assert_eq!(at(&never_ready), Standing::Settled { revision: 5 });
    }

    #[test]
    fn the_revision_is_that_of_the_newest_slice() {
        let all = slices(&[(5, &[GOES]), (9, &[READY])]);
        assert_eq!(passed_by(&pod(None), &all, LONG), Standing::Settled { revision: 9 });
    }

    #[test]
    fn a_last_pod_waits_for_its_successor_alone() {
        let at = |endpoints: &[Listed], since| {
            passed_by(&pod(None), &slices(&[(5, endpoints)]), Duration::from_millis(since))
        };
        assert_eq!(at(&[GOES], 0), Standing::Waits, "one may appear");
        assert_eq!(at(&[GOES], 1000), Standing::Settled { revision: 5 }, "none did");
        assert_eq!(at(&[GOES, STARTS], 4000), Standing::Waits, "it starts");
        assert_eq!(at(&[GOES, READY], 0), Standing::Settled { revision: 5 });
        let both_go = [GOES, ("b", false, true, true)];
        assert_eq!(at(&both_go, 1000), Standing::Settled { revision: 5 });
    }

    #[test]
    fn a_pod_that_comes_is_reached_when_it_is_listed_as_ready() {
        let at = |endpoints: &[Listed]| reached(&pod(None), &slices(&[(7, endpoints)]));
        assert_eq!(at(&[]), Standing::Waits);
        assert_eq!(at(&[("a", false, false, false)]), Standing::Waits);
        assert_eq!(at(&[("a", true, true, false)]), Standing::Settled { revision: 7 });
    }

    #[test]
    fn one_service_that_waits_makes_all_wait() {
        let settled = |revision| Standing::Settled { revision };
        assert_eq!(all([]), settled(0));
        assert_eq!(all([settled(3), settled(8), settled(5)]), settled(8));
        assert_eq!(all([settled(3), Standing::Waits]), Standing::Waits);
    }

    #[test]
    fn services_that_publish_unready_addresses_do_not_matter() {
        let service = |name: &str, publish: bool, app: &str| -> Service {
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n"},
                "spec": {"selector": {"app": app}, "publishNotReadyAddresses": publish}}))
            .unwrap()
        };
        let all = [
            service("web", false, "web"),
            service("peers", true, "web"),
            service("db", false, "db"),
        ];
        let all: Objects<Service> =
            all.into_iter().map(|one| (one.object_name(), Arc::new(one))).collect();
        assert_eq!(services(&all, &pod(None)), [Name::new("n", "web")]);
        assert!(services(&all, &Pod::default()).is_empty());
    }
}
