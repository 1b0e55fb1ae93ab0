//! Topology hints: which zones, and nodes, an endpoint should serve (`spec.trafficDistribution`, KEP-4444 and KEP-3015).

use api::core::Service;
use api::discovery::{Endpoint, EndpointHints, ForNode, ForZone};

/// The hints of one endpoint: its own zone, and its own node with `PreferSameNode`; none unless it is ready.
pub(super) fn of(service: &Service, endpoint: &Endpoint) -> Option<EndpointHints> {
    let distribution = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready);
    if ready == Some(false) {
        return None;
    }
    let zones = endpoint.zone.as_ref().map(|zone| vec![ForZone { name: zone.clone() }]);
    let nodes = endpoint.node_name.as_ref().map(|node| vec![ForNode { name: node.clone() }]);
    let hints = match distribution {
        "PreferClose" | "PreferSameZone" => EndpointHints { for_zones: zones, for_nodes: None },
        "PreferSameNode" => EndpointHints { for_zones: zones, for_nodes: nodes },
        _ => return None,
    };
    (hints != EndpointHints::default()).then_some(hints)
}
