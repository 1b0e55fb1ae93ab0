//! What must happen to a packet: the executable specification of Services.
//!
//! Data planes are tested against it with real packets, `rhumb explain` asks it, and the simulator forwards by it. One
//! function a rule, each with its source, read straight from the objects: it shares nothing with the plan of the rules
//! but the reading of single fields, and knows nothing of chains and maps.
//!
//! Sources: `services.md` is the project's list of requirements; paths are upstream's (`pkg/proxy/…`); KEPs are its
//! enhancement proposals.

mod endpoints;
mod frontends;
mod source;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use api::core::Service;
use api::discovery::EndpointSlice;
use api::{Name, Objects};

use crate::proxy::Settings;
use crate::service::{FrontendKind, NodeView, Protocol, is_node_local, is_proxied, service_of};

pub use endpoints::{Candidate, LeftOut, candidates};
pub use frontends::{Target, addresses_of, targets_of};

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

impl<'a> State<'a> {
    /// The slices of a Service, in the order of their names.
    #[must_use]
    pub fn slices_of(&self, name: &Name) -> Vec<&'a EndpointSlice> {
        let slices = self.slices.values().map(AsRef::as_ref);
        slices.filter(|slice| service_of(slice).as_ref() == Some(name)).collect()
    }

    /// Services that this proxy carries, in the order of their names.
    fn carried(&self) -> impl Iterator<Item = (&'a Name, &'a Service)> {
        let all = self.services.iter().map(|(name, service)| (name, service.as_ref()));
        all.filter(|(_, service)| is_proxied(service))
    }
}

/// What must happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is no Service's packet: it goes its way.
    Pass,
    /// It goes to one of these, each with the same chance, with the node's address in place of the client's where
    /// `true`.
    Forward(BTreeMap<SocketAddr, bool>),
    /// It is refused: a reset for TCP, `port unreachable` for the others.
    Reject,
    /// It is discarded without a word.
    Drop,
}

impl Verdict {
    /// The chance of each endpoint, from 0 to 1; 0 when there is none.
    #[must_use]
    pub fn chance(&self) -> f64 {
        match self {
            Self::Forward(endpoints) => {
                u32::try_from(endpoints.len()).map_or(0.0, |count| f64::from(count).recip())
            }
            Self::Pass | Self::Reject | Self::Drop => 0.0,
        }
    }
}

/// What must happen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What must happen.
    pub verdict: Verdict,
    /// The Service whose packet it is.
    pub service: Option<Name>,
    /// By which of its addresses it is reached.
    pub frontend: Option<FrontendKind>,
    /// Seconds for which the client comes back to the same endpoint, while that is usable; `None` without affinity.
    pub affinity_s: Option<u32>,
    /// Why, in words.
    pub reason: &'static str,
    /// Endpoints that cannot get it, and why each was left out.
    pub left_out: Vec<(SocketAddr, LeftOut)>,
}

/// Decides about a packet.
#[must_use]
pub fn decide(packet: &Packet, state: &State<'_>) -> Decision {
    if answered_by_node(packet, state) {
        return plain(Verdict::Pass, "the node agent answers on this address itself");
    }
    if let Some(target) = frontends::target(packet, state) {
        return at_target(packet, &target, state);
    }
    to_no_port(packet, state)
}

/// An address that the node agent serves itself (the node's DNS) is none of the proxy's business.
/// Source: this project's annotation `rhumb.dev/node-local`.
fn answered_by_node(packet: &Packet, state: &State<'_>) -> bool {
    let mut local = state.carried().filter(|(_, service)| is_node_local(service));
    local.any(|(_, service)| frontends::cluster_ips(service).contains(&packet.destination.ip()))
}

/// A port that its Service does not have is refused, an address that no Service has is discarded.
/// Source: services.md section 4, "Unallocated ClusterIP inside a ServiceCIDR"; `pkg/proxy/nftables/README.md`.
fn to_no_port(packet: &Packet, state: &State<'_>) -> Decision {
    let address = packet.destination.ip();
    if state.carried().any(|(_, service)| frontends::cluster_ips(service).contains(&address)) {
        return plain(Verdict::Reject, "the Service of this address has no such port");
    }
    if state.settings.service_cidrs.iter().any(|cidr| cidr.contains(&address)) {
        return plain(Verdict::Drop, "no Service has this address");
    }
    plain(Verdict::Pass, "the address is no Service's")
}

/// What happens at an address and port of a Service.
fn at_target(packet: &Packet, target: &Target<'_>, state: &State<'_>) -> Decision {
    let slices = state.slices_of(target.name);
    let all = candidates(target, &slices, state.node);
    let client = source::client(packet, state.settings);
    let (chosen, left_out) = endpoints::choose(target, &all, client, state.node);
    let (verdict, reason) = if !source::is_admitted(packet, target) {
        (Verdict::Drop, "the client is outside loadBalancerSourceRanges")
    } else if !endpoints::any_could_serve(&all) {
        (Verdict::Reject, "the Service has no endpoints")
    } else if chosen.is_empty() {
        (Verdict::Drop, nobody_here(target))
    } else {
        let scope = endpoints::scope(target, client, &all);
        let masquerade = source::is_masqueraded(target, client, scope, state.settings);
        (forward(packet, &chosen, masquerade), scope.reason())
    };
    Decision {
        verdict,
        service: Some(target.name.clone()),
        frontend: Some(target.kind),
        affinity_s: target.affinity_s(),
        reason,
        left_out,
    }
}

/// A policy that keeps traffic on the node discards what it cannot keep, so that load balancers and clients try
/// elsewhere. Source: services.md section 4, "Policy Local, none local but some elsewhere"; KEP-1669, KEP-2086.
fn nobody_here(target: &Target<'_>) -> &'static str {
    match target.kind {
        FrontendKind::ClusterIp => "internalTrafficPolicy is Local and no endpoint is here",
        _ => "externalTrafficPolicy is Local and no endpoint is here",
    }
}

/// A client that reaches itself must not see itself as the sender: it would answer past the node.
/// Source: services.md section 4, "Hairpin"; `pkg/proxy/nftables/proxier.go`, the hairpin rule.
fn forward(packet: &Packet, endpoints: &BTreeSet<SocketAddr>, masquerade: bool) -> Verdict {
    let hairpin = |endpoint: &SocketAddr| endpoint.ip() == packet.source;
    let all = endpoints.iter();
    Verdict::Forward(all.map(|to| (*to, masquerade || hairpin(to))).collect())
}

fn plain(verdict: Verdict, reason: &'static str) -> Decision {
    Decision {
        verdict,
        service: None,
        frontend: None,
        affinity_s: None,
        reason,
        left_out: Vec::new(),
    }
}
