//! What stops nothing and is still worth a word.

use std::collections::BTreeSet;

use api::IntOrString;
use api::core::{Pod, Service};

use super::{count, ports};
use crate::podfacts;

/// Notes on the pods that a Service selects.
pub(super) fn of(service: &Service, pods: &[&Pod]) -> Vec<String> {
    let alive: Vec<&Pod> = pods.iter().copied().filter(|pod| podfacts::is_active(pod)).collect();
    if alive.is_empty() {
        return Vec::new();
    }
    let mut notes: Vec<String> = host_network(&alive).into_iter().collect();
    for port in service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let default = IntOrString::Int(port.port);
        let note = match port.target_port.as_ref().unwrap_or(&default) {
            IntOrString::String(name) => partly(name, protocol, &alive),
            IntOrString::Int(number) => undeclared(*number, protocol, &alive),
        };
        notes.extend(note);
    }
    notes
}

/// Endpoints in the network of their node: their address is the node's, and two on one node share its ports.
fn host_network(pods: &[&Pod]) -> Option<String> {
    let on_host = |pod: &&&Pod| pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    let found = pods.iter().filter(on_host).count();
    let verb = if found == 1 { "uses" } else { "use" };
    (found > 0).then(|| {
        format!(
            "{} {verb} the network of the node: the endpoint has the node's address",
            count(found, "pod")
        )
    })
}

/// A name that only some of the pods have.
fn partly(name: &str, protocol: &str, pods: &[&Pod]) -> Option<String> {
    let target = IntOrString::String(name.to_owned());
    let with =
        pods.iter().filter(|pod| podfacts::target_port(pod, &target, protocol).is_some()).count();
    (with > 0 && with < pods.len())
        .then(|| format!("port name {name} is on {with} of the {} pods", pods.len()))
}

/// A number that no pod declares, while they all declare others. Declaring is not needed, so it is no more than a hint.
fn undeclared(number: i32, protocol: &str, pods: &[&Pod]) -> Option<String> {
    let own = |pod: &&Pod| -> Vec<i32> {
        let same = ports::declared(pod)
            .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == protocol);
        same.map(|port| port.container_port).collect()
    };
    let all: Vec<Vec<i32>> = pods.iter().map(own).collect();
    if all.iter().any(|own| own.is_empty() || own.contains(&number)) {
        return None;
    }
    let declared: BTreeSet<i32> = all.into_iter().flatten().collect();
    let declared: Vec<String> = declared.iter().map(ToString::to_string).collect();
    Some(format!(
        "targetPort {number} is not among the ports that the pods declare ({})",
        declared.join(", ")
    ))
}
