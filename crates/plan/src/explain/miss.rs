//! Nearest misses of names, node ports and listeners; those of a Service's endpoints are [`crate::diagnose`]'s.

use api::Name;
use api::core::Service;

use super::{Chain, Cluster, Step};
use crate::diagnose::{self, Evidence};

/// Services that somebody may have meant by this name.
pub(super) fn of_name(cluster: &Cluster, name: &Name) -> Vec<String> {
    let mut hints: Vec<String> = cluster
        .services
        .keys()
        .filter(|other| other.name == name.name)
        .map(|other| {
            format!(
                "namespace {} has a Service {}: ask for {}.{}",
                other.namespace, other.name, other.name, other.namespace
            )
        })
        .collect();
    let near = cluster
        .services
        .keys()
        .filter(|other| other.namespace == name.namespace && is_near(&other.name, &name.name));
    hints.extend(near.map(|other| format!("there is a Service {other}")));
    hints
}

/// The same for a host name as a pod of `namespace` says it.
pub(super) fn of_host(cluster: &Cluster, host: &str, namespace: &str) -> Vec<String> {
    let mut labels = host.split('.');
    let name = labels.next().unwrap_or_default();
    let namespace = labels.next().unwrap_or(namespace);
    let name = Name::new(namespace, name);
    let hints = of_name(cluster, &name);
    match cluster.services.get(&name) {
        Some(service) if crate::endpointslice::is_headless(service) => {
            let words = format!(
                "Service {name} is headless, and has no ready endpoint: without one its name does not exist"
            );
            [vec![words], hints].concat()
        }
        Some(_) => [vec![format!("Service {name} has no address yet")], hints].concat(),
        None => hints,
    }
}

/// What a port of a node that no Service has may have been meant for.
pub(super) fn of_node_port(cluster: &Cluster, port: u16) -> Vec<String> {
    let mut hints = Vec::new();
    for (name, service) in &cluster.services {
        let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        for listed in ports {
            let node_port = listed.node_port.unwrap_or(0);
            if listed.port == i32::from(port) && node_port != 0 {
                hints.push(format!("Service {name}, port {port}, has node port {node_port}"));
            }
        }
    }
    hints
}

/// Whether one edit (of a letter, or of two neighbours that changed places) makes one of the other.
fn is_near(a: &str, b: &str) -> bool {
    if a == b {
        return false;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[same..], &b[same..]);
    let rest = |from: &[char], skip: usize| from.get(skip..).map(<[char]>::to_vec);
    let swapped = a.len() >= 2 && b.len() >= 2 && a[0] == b[1] && a[1] == b[0];
    rest(a, 1) == Some(b.to_vec())
        || Some(a.to_vec()) == rest(b, 1)
        || (rest(a, 1).is_some() && rest(a, 1) == rest(b, 1))
        || (swapped && rest(a, 2) == rest(b, 2))
}

impl Chain<'_> {
    /// Why the Service does not work, if that is the matter.
    pub(super) fn diagnose(&mut self, service: &Service) {
        let Cluster { pods, slices, events, .. } = self.cluster;
        let found = diagnose::service(service, &Evidence { pods, slices, events });
        if let Some(problem) = found.problem {
            let hints = std::iter::once(problem.message).chain(found.notes).collect();
            self.steps.push(Step::Why { hints });
        }
    }

    /// Why the pods do not listen where the Service sends.
    pub(super) fn miss_listener(&mut self, service: &Name) {
        let Some(found) = self.cluster.services.get(service) else { return };
        let ports = found.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        let targets = ports.filter_map(|port| {
            let target = match port.target_port.as_ref()? {
                api::IntOrString::Int(number) => number.to_string(),
                api::IntOrString::String(name) => format!("{name:?}"),
            };
            Some(format!("targetPort of port {} is {target}", port.port))
        });
        let targets: Vec<String> = targets.collect();
        if !targets.is_empty() {
            let hint = format!(
                "in Service {service} the {}: is it the port that the container listens on?",
                targets.join(", the ")
            );
            self.steps.push(Step::Why { hints: vec![hint] });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::is_near;

    #[test]
    fn one_slip_is_near() {
        for (a, b, near) in [
            ("nginx", "ngnix", true),
            ("web", "wep", true),
            ("web", "webs", true),
            ("web", "we", true),
            ("web", "web", false),
            ("web", "api", false),
            ("ab", "ba", true),
        ] {
            assert_eq!(is_near(a, b), near, "{a} {b}");
        }
    }
}
