//! Host ports: two pods on one node cannot listen on the same one.

use api::core::Pod;

/// Address (empty for all), protocol, number.
pub(super) type HostPort = (String, String, i32);

/// The host ports that the pod's containers ask for.
pub(super) fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let containers = pod.spec.iter().flat_map(|spec| {
        spec.containers.iter().chain(
            spec.init_containers
                .iter()
                .flatten()
                .filter(|one| one.restart_policy.as_deref() == Some("Always")),
        )
    });
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let address = port.host_ip.clone().filter(|address| address != "0.0.0.0");
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            Some((address.unwrap_or_default(), protocol, number))
        })
        .collect()
}

/// Whether two host ports exclude each other.
pub(super) fn conflict(one: &HostPort, two: &HostPort) -> bool {
    one.1 == two.1 && one.2 == two.2 && (one.0.is_empty() || two.0.is_empty() || one.0 == two.0)
}
