//! What must happen to a packet: the executable specification of Services.
//!
//! Backends are tested against it with real packets, `rhumb explain` asks it, and the simulator forwards by it. It reads
//! Services frontend by frontend and knows nothing of chains and maps.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use api::core::Service;
use api::discovery::EndpointSlice;
use api::{Name, Objects};

use crate::proxy::Settings;
use crate::service::{
    Action, Frontend, FrontendKind, LeftOut, Masquerade, NodeView, Protocol, Surroundings,
    categorize, endpoints_of, service_of, view,
};

/// The first packet of a connection, as it comes to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who sends.
    pub source: IpAddr,
    /// Whether the node itself sends.
    pub from_node: bool,
    /// To whom.
    pub destination: SocketAddr,
    /// By which protocol.
    pub protocol: Protocol,
}

/// Everything that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// All Services.
    pub services: &'a Objects<Service>,
    /// All EndpointSlices.
    pub slices: &'a Objects<EndpointSlice>,
    /// The node that the packet comes to.
    pub node: &'a NodeView,
    /// The proxy's settings.
    pub settings: &'a Settings,
}

/// What must happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is no Service's packet: it goes its way.
    Pass,
    /// It goes to one of these, with the node's address in place of the client's where `true`.
    Forward(BTreeMap<SocketAddr, bool>),
    /// It is refused.
    Reject,
    /// It is discarded.
    Drop,
}

/// What must happen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What must happen.
    pub verdict: Verdict,
    /// The Service whose packet it is.
    pub service: Option<Name>,
    /// Why, in words.
    pub reason: &'static str,
    /// Endpoints that cannot get it, and why each was left out.
    pub left_out: Vec<(SocketAddr, LeftOut)>,
}

/// Decides about a packet.
#[must_use]
pub fn decide(packet: &Packet, state: &State<'_>) -> Decision {
    let mut address_taken = false;
    let around = Surroundings { node: state.node, external_ips: state.settings.external_ips };
    for (name, service) in state.services {
        let slices: Vec<&EndpointSlice> = slices_of(name, state).collect();
        let view = view(service, &slices, around);
        if view.node_local.contains(&packet.destination.ip()) {
            return plain(Verdict::Pass, "the node agent answers on this address itself");
        }
        address_taken |= view.cluster_ips.contains(&packet.destination.ip());
        let mut frontends = view.frontends.iter();
        let Some(frontend) = frontends.find(|frontend| is_to(packet, frontend)) else { continue };
        let (verdict, reason) = at_frontend(packet, frontend, state);
        let left_out = left_out(service, &slices, frontend, state.node);
        return Decision { verdict, service: Some(name.clone()), reason, left_out };
    }
    let destination = packet.destination.ip();
    if address_taken {
        return plain(Verdict::Reject, "the Service of this address has no such port");
    }
    if state.settings.service_cidrs.iter().any(|cidr| cidr.contains(&destination)) {
        return plain(Verdict::Drop, "no Service has this address");
    }
    plain(Verdict::Pass, "the address is no Service's")
}

fn plain(verdict: Verdict, reason: &'static str) -> Decision {
    Decision { verdict, service: None, reason, left_out: Vec::new() }
}

fn slices_of<'a>(name: &Name, state: &State<'a>) -> impl Iterator<Item = &'a EndpointSlice> {
    let slices = state.slices.values().map(AsRef::as_ref);
    slices.filter(move |slice| service_of(slice).as_ref() == Some(name))
}

fn is_to(packet: &Packet, frontend: &Frontend) -> bool {
    frontend.address == packet.destination && frontend.protocol == packet.protocol
}

/// What happens at a frontend, and why.
fn at_frontend(packet: &Packet, frontend: &Frontend, state: &State<'_>) -> (Verdict, &'static str) {
    let admitted = frontend.sources.as_ref().is_none_or(|ranges| {
        packet.from_node || ranges.iter().any(|range| range.contains(&packet.source))
    });
    if !admitted {
        return (Verdict::Drop, "the client is outside loadBalancerSourceRanges");
    }
    let pods = &state.settings.pod_cidrs;
    let from_pod = pods.iter().any(|cidr| cidr.contains(&packet.source));
    // Without ranges of pods of this family nobody is known to be off the cluster.
    let known = pods.iter().any(|cidr| cidr.addr().is_ipv4() == packet.source.is_ipv4());
    match &frontend.action {
        Action::Reject => (Verdict::Reject, "the Service has no endpoints"),
        Action::Drop => (Verdict::Drop, "internalTrafficPolicy is Local and no endpoint is here"),
        Action::Forward { endpoints, masquerade, .. } => {
            let always = match masquerade {
                Masquerade::Always => true,
                Masquerade::OffCluster => known && !from_pod,
            };
            (forward(packet, endpoints, always), "one of the Service's endpoints")
        }
        Action::Split { inside, outside } => match (from_pod, packet.from_node) {
            (false, false) if outside.is_empty() => {
                (Verdict::Drop, "externalTrafficPolicy is Local and no endpoint is here")
            }
            (false, false) => (forward(packet, outside, false), "an endpoint on this node"),
            _ if inside.is_empty() => (Verdict::Drop, "no endpoint serves the cluster"),
            (from_pod, _) => (
                forward(packet, inside, !from_pod),
                "externalTrafficPolicy does not bind clients in the cluster",
            ),
        },
    }
}

/// A client that reaches itself must not see itself as the sender: it would answer past the node.
fn forward(packet: &Packet, endpoints: &[SocketAddr], masquerade: bool) -> Verdict {
    let all = endpoints.iter();
    Verdict::Forward(
        all.map(|endpoint| (*endpoint, masquerade || endpoint.ip() == packet.source)).collect(),
    )
}

fn left_out(
    service: &Service,
    slices: &[&EndpointSlice],
    frontend: &Frontend,
    node: &NodeView,
) -> Vec<(SocketAddr, LeftOut)> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    let number = i32::from(frontend.identity.port());
    let port = ports.into_iter().find(|port| {
        port.port == number && Protocol::of(port.protocol.as_deref()) == Some(frontend.protocol)
    });
    let Some(port) = port else { return Vec::new() };
    let name = port.name.as_deref().unwrap_or("");
    let ipv4 = frontend.address.is_ipv4();
    let endpoints = endpoints_of(slices, name, frontend.protocol, ipv4, &node.name);
    let mut left_out = categorize(&endpoints, node).left_out;
    // With policy Local the others are left out for being elsewhere, whatever their state.
    if let (FrontendKind::ClusterIp, Action::Forward { local: true, endpoints: here, .. }) =
        (frontend.kind, &frontend.action)
    {
        let elsewhere = endpoints.iter().filter(|endpoint| !here.contains(&endpoint.address));
        left_out = elsewhere.map(|endpoint| (endpoint.address, LeftOut::Elsewhere)).collect();
    }
    left_out
}
