//! A Service with a selector: what its pods lack.

use std::collections::BTreeMap;

use api::Kind;
use api::core::{Pod, Service, ServicePort};

use super::{Evidence, Problem, Reason, count, ports, readiness, selector};
use crate::endpointslice::{self, has_selector};
use crate::podfacts;

/// Causes that are told, the most frequent first.
const CAUSES_MAX: usize = 3;

/// The pods that the Service selects.
pub(super) fn selected<'a>(service: &Service, evidence: &Evidence<'a>) -> Vec<&'a Pod> {
    if !has_selector(service) {
        return Vec::new();
    }
    endpointslice::selected(evidence.pods, service).map(AsRef::as_ref).collect()
}

/// Why the slices of the Service have nobody for the ports `missing`.
pub(super) fn problem(
    service: &Service,
    evidence: &Evidence<'_>,
    missing: &[&ServicePort],
) -> Option<Problem> {
    let pods = selected(service, evidence);
    if pods.is_empty() {
        return Some(selector::problem(service, evidence));
    }
    let alive: Vec<&Pod> = pods.iter().copied().filter(|pod| podfacts::is_active(pod)).collect();
    if alive.is_empty() {
        return Some(gone(&pods));
    }
    let publish = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses);
    let ready = |pod: &Pod| publish == Some(true) || podfacts::is_ready(pod);
    ports::of_pods(missing, &alive)
        .or_else(|| (!alive.iter().any(|pod| ready(pod))).then(|| not_ready(&alive, evidence)))
        .or_else(|| family(service, &alive))
        .or_else(|| Some(not_listed(alive.iter().filter(|pod| ready(pod)).count())))
}

/// All pods that match are on their way out, or out.
fn gone(pods: &[&Pod]) -> Problem {
    let terminating = pods.iter().filter(|pod| pod.is_deleting()).count();
    let (all, verb) = (count(pods.len(), "pod"), if pods.len() == 1 { "matches" } else { "match" });
    if terminating > 0 {
        let are = if terminating == 1 { "is" } else { "are" };
        let message = format!("{all} {verb}, {terminating} {are} terminating, 0 are left");
        return Problem::new(Reason::PodsTerminating, message);
    }
    let phases = |phase: &str| pods.iter().filter(|pod| podfacts::phase(pod) == phase).count();
    let ended = [("Succeeded", phases("Succeeded")), ("Failed", phases("Failed"))];
    let ended: Vec<String> = ended
        .into_iter()
        .filter(|(_, pods)| *pods > 0)
        .map(|(phase, pods)| format!("{pods} {phase}"))
        .collect();
    let message = format!("{all} {verb}, all have ended: {}", ended.join(", "));
    Problem::new(Reason::PodsEnded, message)
}

fn not_ready(pods: &[&Pod], evidence: &Evidence<'_>) -> Problem {
    let mut causes: BTreeMap<String, usize> = BTreeMap::new();
    let mut passing = true;
    for pod in pods {
        let cause = readiness::cause(pod, evidence.events);
        passing &= cause.passing;
        *causes.entry(cause.words).or_default() += 1;
    }
    let mut ranked: Vec<(String, usize)> = causes.into_iter().collect();
    ranked.sort_by_key(|(_, pods)| std::cmp::Reverse(*pods));
    let only = ranked.len() == 1;
    let told: Vec<String> = ranked
        .into_iter()
        .take(CAUSES_MAX)
        .map(|(words, pods)| if only { words } else { format!("{words} ({})", count(pods, "pod")) })
        .collect();
    let message = if pods.len() == 1 {
        format!("1 pod matches, it is not ready: {}", told.join("; "))
    } else {
        format!("{} pods match, 0 are ready: {}", pods.len(), told.join("; "))
    };
    Problem { reason: Reason::PodsNotReady, message, passing }
}

/// The pods have addresses, none of a family that the Service has.
fn family(service: &Service, pods: &[&Pod]) -> Option<Problem> {
    let wanted = endpointslice::families(service);
    let of = |address: &str| if address.contains(':') { "IPv6" } else { "IPv4" };
    let mut have: Vec<&str> =
        pods.iter().flat_map(|pod| podfacts::addresses(pod)).map(of).collect();
    have.sort_unstable();
    have.dedup();
    if have.is_empty() || have.iter().any(|family| wanted.contains(family)) {
        return None;
    }
    let message = format!(
        "the Service is {}; the {} {} only {}",
        wanted.join(" and "),
        count(pods.len(), "pod"),
        if pods.len() == 1 { "has" } else { "have" },
        have.join(" and ")
    );
    Some(Problem::new(Reason::AddressFamilyMissing, message))
}

/// The pods are as they should be: their slices are still to come.
fn not_listed(ready: usize) -> Problem {
    let are = if ready == 1 { "is" } else { "are" };
    let message = format!("{} {are} ready, but no EndpointSlice lists them", count(ready, "pod"));
    Problem { reason: Reason::NoReadyEndpoints, message, passing: true }
}
