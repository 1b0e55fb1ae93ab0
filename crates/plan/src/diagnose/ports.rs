//! Ports that nobody serves: which they are, and what slices or pods name instead.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::core::{Pod, Service, ServicePort};
use api::discovery::EndpointSlice;
use api::{IntOrString, Kind};

use super::{Evidence, Problem, Reason, count, near};
use crate::endpointslice::SERVICE_NAME;
use crate::objects::{in_namespace, label};
use crate::podfacts;

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

fn listed(service: &Service) -> impl Iterator<Item = &ServicePort> {
    service.spec.iter().flat_map(|spec| spec.ports.iter().flatten())
}

/// The ports without an endpoint that may be used; `None` when there is no such port, and somebody answers.
pub(super) fn unserved<'a>(
    service: &'a Service,
    slices: &[&Arc<EndpointSlice>],
) -> Option<Vec<&'a ServicePort>> {
    let usable: Vec<&&Arc<EndpointSlice>> = slices.iter().filter(|one| is_usable(one)).collect();
    let missing: Vec<&ServicePort> = listed(service)
        .filter(|port| {
            let name = port.name.as_deref().unwrap_or("");
            !usable.iter().any(|slice| serves(slice, name, protocol(port)))
        })
        .collect();
    (!missing.is_empty() || usable.is_empty()).then_some(missing)
}

/// Whether an endpoint of the slice takes connections: a ready one, or one that serves while it terminates (KEP-1669).
fn is_usable(slice: &EndpointSlice) -> bool {
    slice.endpoints.iter().flatten().any(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|all| all.ready).unwrap_or(true);
        let serving = conditions.and_then(|all| all.serving).unwrap_or(ready);
        let terminating = conditions.and_then(|all| all.terminating).unwrap_or(false);
        ready || (serving && terminating)
    })
}

fn serves(slice: &EndpointSlice, name: &str, protocol: &str) -> bool {
    slice.ports.iter().flatten().any(|port| {
        port.name.as_deref().unwrap_or("") == name
            && port.protocol.as_deref().unwrap_or("TCP") == protocol
    })
}

/// A Service without selector: what its slices lack.
pub(super) fn of_slices(
    service: &Service,
    evidence: &Evidence<'_>,
    slices: &[&Arc<EndpointSlice>],
    missing: &[&ServicePort],
) -> Problem {
    if slices.is_empty() {
        return no_slices(service, evidence);
    }
    let endpoints = slices.iter().map(|slice| slice.endpoints.as_ref().map_or(0, Vec::len)).sum();
    let lists = if slices.len() == 1 { "lists" } else { "list" };
    let has = format!(
        "{} {lists} {}",
        count(slices.len(), "EndpointSlice"),
        count(endpoints, "endpoint")
    );
    if !slices.iter().any(|slice| is_usable(slice)) {
        let reason = Reason::NoReadyEndpoints;
        let tail = if endpoints == 0 { "" } else { ", 0 are ready" };
        return Problem::new(reason, format!("{has}{tail}"));
    }
    let port = missing.first().expect("slices with usable endpoints lack a port, or all is well");
    let name = port.name.as_deref().unwrap_or("");
    let given = slices.iter().flat_map(|slice| slice.ports.iter().flatten());
    let given: BTreeSet<(&str, &str)> = given
        .map(|port| (port.name.as_deref().unwrap_or(""), port.protocol.as_deref().unwrap_or("TCP")))
        .collect();
    let number = slices.len();
    let slices = count(number, "EndpointSlice");
    if let Some((_, other)) = given.iter().find(|(given, _)| *given == name) {
        let message = format!(
            "port {} is {}; the {slices} of the Service {} it as {other}",
            quoted(name),
            protocol(port),
            if number == 1 { "has" } else { "have" },
        );
        return Problem::new(Reason::ProtocolMismatch, message);
    }
    let names: BTreeSet<&str> = given.iter().map(|(name, _)| *name).collect();
    let all = if number == 1 {
        "not in the 1 EndpointSlice".to_owned()
    } else {
        format!("in none of the {slices}")
    };
    let message =
        format!("port name {} is {all}; {}", quoted(name), they_name(number, &names, name));
    Problem::new(Reason::NamedPortMissing, message)
}

fn no_slices(service: &Service, evidence: &Evidence<'_>) -> Problem {
    let near = in_namespace(evidence.slices, service.namespace()).find_map(|slice| {
        let meant = label(slice.as_ref(), SERVICE_NAME)?;
        near::distance(meant, service.name())?;
        Some(format!("; EndpointSlice {} is of {SERVICE_NAME}={meant}", slice.name()))
    });
    let message = format!(
        "the Service has no selector, and no EndpointSlice has the label {SERVICE_NAME}={}{}",
        service.name(),
        near.unwrap_or_default()
    );
    Problem::new(Reason::NoEndpointSlices, message)
}

/// The first port whose `targetPort` is a name that none of `pods` has, or has for another protocol.
pub(super) fn of_pods(missing: &[&ServicePort], pods: &[&Pod]) -> Option<Problem> {
    missing.iter().find_map(|port| {
        let Some(IntOrString::String(name)) = &port.target_port else { return None };
        let target = IntOrString::String(name.clone());
        let found = |protocol: &str| {
            pods.iter()
                .filter(|pod| podfacts::target_port(pod, &target, protocol).is_some())
                .count()
        };
        if found(protocol(port)) > 0 {
            return None;
        }
        let others = ["TCP", "UDP", "SCTP"].map(|one| (one, found(one)));
        if let Some((other, pods)) = others.into_iter().find(|(_, pods)| *pods > 0) {
            let have = if pods == 1 { "has" } else { "have" };
            let message = format!(
                "port {} of the Service is {}; {} {have} port {name} as {other}",
                port.port,
                protocol(port),
                count(pods, "pod"),
            );
            return Some(Problem::new(Reason::ProtocolMismatch, message));
        }
        let names: BTreeSet<&str> = pods.iter().flat_map(|pod| names(pod)).collect();
        let all = if pods.len() == 1 {
            "not on the 1 pod".to_owned()
        } else {
            format!("on none of the {} pods", pods.len())
        };
        let message = format!("port name {name} is {all}; {}", they_name(pods.len(), &names, name));
        Some(Problem::new(Reason::NamedPortMissing, message))
    })
}

/// Names of ports that a pod declares.
fn names(pod: &Pod) -> impl Iterator<Item = &str> {
    declared(pod).filter_map(|port| port.name.as_deref())
}

/// Ports that a pod's containers, and its sidecars, declare.
pub(super) fn declared(pod: &Pod) -> impl Iterator<Item = &api::core::ContainerPort> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| {
        let sidecars = spec.init_containers.iter().flatten();
        let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
        spec.containers.iter().chain(sidecars)
    })
    .flat_map(|container| container.ports.iter().flatten())
}

/// "they name web", or "it names web": the nearest first.
fn they_name(number: usize, names: &BTreeSet<&str>, wanted: &str) -> String {
    let mut names: Vec<&str> = names.iter().copied().collect();
    names.sort_by_key(|name| near::distance(name, wanted).unwrap_or(usize::MAX));
    let names: Vec<String> = names.into_iter().take(5).map(quoted).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    if number == 1 { format!("it names {names}") } else { format!("they name {names}") }
}

/// A name, or `""` where a port has none.
fn quoted(name: &str) -> String {
    if name.is_empty() { "\"\"".to_owned() } else { name.to_owned() }
}
