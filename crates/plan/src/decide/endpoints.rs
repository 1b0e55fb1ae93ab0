//! Which endpoints may receive a packet, and why the others may not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use api::discovery::EndpointSlice;

use super::frontends::Target;
use super::source::Client;
use crate::service::{FrontendKind, NodeView, Protocol};

/// An endpoint of a Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it listens.
    pub address: SocketAddr,
    /// Takes new connections.
    pub ready: bool,
    /// Is being deleted, and still takes connections.
    pub draining: bool,
    /// Runs on this node.
    pub is_local: bool,
    /// Runs on a node that has fallen silent.
    pub is_silent: bool,
    /// Of the packet's family.
    pub fits: bool,
    /// Nodes that it is meant for.
    pub for_nodes: Vec<String>,
    /// Zones that it is meant for.
    pub for_zones: Vec<String>,
}

impl Candidate {
    fn could_serve(&self) -> bool {
        self.fits && (self.ready || self.draining)
    }
}

/// Why an endpoint gets no new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOut {
    /// Its address is of the other family.
    WrongFamily,
    /// Not ready, and not draining either.
    NotReady,
    /// Draining, while others are ready.
    Terminating,
    /// The traffic policy is Local, and it is on another node.
    NotLocal,
    /// On a node that has fallen silent, while others are not.
    Silent,
    /// Ready, and hinted to other zones.
    OtherZone,
    /// Ready, and hinted to other nodes.
    OtherNode,
}

impl LeftOut {
    /// In words.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::WrongFamily => "its address is of the other family",
            Self::NotReady => "it is not ready",
            Self::Terminating => "it is terminating, and others are ready",
            Self::NotLocal => "it is on another node, and the traffic policy is Local",
            Self::Silent => "its node is silent",
            Self::OtherZone => "it is hinted to other zones, and this zone has its own",
            Self::OtherNode => "it is hinted to other nodes, and this node has its own",
        }
    }
}

/// Which endpoints a client may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All.
    Cluster,
    /// All, although the external policy is Local: the client is in the cluster.
    ShortCircuit,
    /// Those of this node.
    Local,
}

impl Scope {
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Cluster => "one of the Service's endpoints",
            Self::ShortCircuit => "externalTrafficPolicy does not bind clients in the cluster",
            Self::Local => "an endpoint on this node",
        }
    }
}

/// The endpoints in `slices` for the target's port, each address once; of those that occur twice, a ready one counts.
/// Source: services.md section 3, "Size" (only the first address counts), "Slice per port-map"; KEP-0752.
#[must_use]
pub fn candidates(
    target: &Target<'_>,
    slices: &[&EndpointSlice],
    node: &NodeView,
) -> Vec<Candidate> {
    let mut found: BTreeMap<SocketAddr, Candidate> = BTreeMap::new();
    for slice in slices {
        let Some(port) = port_of(slice, target) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let first = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok());
            let Some(address) = first.filter(|address| is_of_type(slice, address)) else {
                continue;
            };
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true);
            let serving = conditions.serving.unwrap_or(ready);
            let terminating = conditions.terminating.unwrap_or(false);
            let hints = endpoint.hints.clone().unwrap_or_default();
            let address = SocketAddr::new(address, port);
            let candidate = Candidate {
                address,
                ready,
                draining: !ready && serving && terminating,
                is_local: endpoint.node_name.as_deref() == Some(&node.name),
                is_silent: node.misses(endpoint.node_name.as_deref()),
                fits: address.is_ipv4() == target.address.is_ipv4(),
                for_nodes: hints.for_nodes.into_iter().flatten().map(|hint| hint.name).collect(),
                for_zones: hints.for_zones.into_iter().flatten().map(|hint| hint.name).collect(),
            };
            let known = found.get(&address);
            if known.is_none_or(|known| !known.ready && candidate.ready) {
                found.insert(address, candidate);
            }
        }
    }
    found.into_values().collect()
}

/// A slice serves a Service port by its name and protocol; the number is the slice's own.
/// Source: services.md section 1, rows 4 and 7.
fn port_of(slice: &EndpointSlice, target: &Target<'_>) -> Option<u16> {
    let name = target.port.name.as_deref().unwrap_or("");
    let port = slice.ports.iter().flatten().find(|port| {
        port.name.as_deref().unwrap_or("") == name
            && Protocol::of(port.protocol.as_deref()) == Some(target.protocol)
    });
    port.and_then(|port| u16::try_from(port.port?).ok()).filter(|number| *number != 0)
}

fn is_of_type(slice: &EndpointSlice, address: &IpAddr) -> bool {
    match slice.address_type.as_str() {
        "IPv4" => address.is_ipv4(),
        "IPv6" => address.is_ipv6(),
        _ => false,
    }
}

/// Whether there is any endpoint at all that could take the packet; when there is none, it is refused at once.
/// Source: services.md section 4, "No endpoints anywhere".
pub(super) fn any_could_serve(all: &[Candidate]) -> bool {
    all.iter().any(Candidate::could_serve)
}

/// By which policy the client chooses. An external policy of Local does not bind pods and the node itself. At a node port
/// pods stay on the node where they can: a pod of another node would be answered by an endpoint next to it, past this
/// node, unless this node masqueraded it.
/// Source: services.md section 1, rows 19 and 21; KEP-2086; `pkg/proxy/topology.go`.
pub(super) fn scope(target: &Target<'_>, client: Client, all: &[Candidate]) -> Scope {
    let is_here = all.iter().any(|candidate| candidate.is_local && candidate.could_serve());
    let local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    match target.kind {
        FrontendKind::ClusterIp if local(&target.spec.internal_traffic_policy) => Scope::Local,
        FrontendKind::ClusterIp => Scope::Cluster,
        _ if !local(&target.spec.external_traffic_policy) => Scope::Cluster,
        _ if client == Client::Outside => Scope::Local,
        FrontendKind::NodePort if client == Client::Pod && is_here => Scope::Local,
        _ => Scope::ShortCircuit,
    }
}

/// The endpoints that may receive the packet, and why each other one may not.
pub(super) fn choose(
    target: &Target<'_>,
    all: &[Candidate],
    client: Client,
    node: &NodeView,
) -> (BTreeSet<SocketAddr>, Vec<(SocketAddr, LeftOut)>) {
    let fitting: Vec<&Candidate> = all.iter().filter(|candidate| candidate.fits).collect();
    let fitting = heard(fitting);
    let chosen = match scope(target, client, all) {
        Scope::Local => {
            let here = fitting.iter().copied().filter(|candidate| candidate.is_local).collect();
            ready_or_draining(here)
        }
        Scope::Cluster | Scope::ShortCircuit => near(ready_or_draining(fitting), node),
    };
    let chosen: BTreeSet<SocketAddr> = chosen.iter().map(|candidate| candidate.address).collect();
    let others = all.iter().filter(|candidate| !chosen.contains(&candidate.address));
    let local = scope(target, client, all) == Scope::Local;
    let is_heard = all.iter().any(|candidate| !candidate.is_silent && candidate.could_serve());
    let why_not = |other: &Candidate| why_not(other, local, is_heard, node);
    let left_out = others.map(|other| (other.address, why_not(other))).collect();
    (chosen, left_out)
}

/// Endpoints on silent nodes are left alone, unless no other could serve: better a chance than none.
/// Source: this project's `docs/liveness.md`.
fn heard(all: Vec<&Candidate>) -> Vec<&Candidate> {
    let (silent, heard): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|candidate| candidate.is_silent);
    if heard.iter().any(|candidate| candidate.could_serve()) {
        return heard;
    }
    silent.into_iter().chain(heard).collect()
}

/// Ready endpoints serve; where there is none, those that are draining do. Never both.
/// Source: services.md section 4, "Terminating fallback"; KEP-1669.
fn ready_or_draining(all: Vec<&Candidate>) -> Vec<&Candidate> {
    if all.iter().any(|candidate| candidate.ready) {
        return all.into_iter().filter(|candidate| candidate.ready).collect();
    }
    all.into_iter().filter(|candidate| candidate.draining).collect()
}

/// Hints count when every ready endpoint has them and one is for this node; else the same for the zone; else none does.
/// Source: services.md section 3, "Consumer rule"; KEP-3015, KEP-4444; `pkg/proxy/topology.go`.
fn near<'a>(all: Vec<&'a Candidate>, node: &NodeView) -> Vec<&'a Candidate> {
    // Endpoints that are draining come without rules of topology.
    if !all.iter().any(|candidate| candidate.ready) {
        return all;
    }
    let for_node = |candidate: &&Candidate| candidate.for_nodes.contains(&node.name);
    if all.iter().all(|candidate| !candidate.for_nodes.is_empty()) && all.iter().any(for_node) {
        return all.into_iter().filter(for_node).collect();
    }
    let for_zone = |candidate: &&Candidate| {
        node.zone.as_ref().is_some_and(|zone| candidate.for_zones.contains(zone))
    };
    if all.iter().all(|candidate| !candidate.for_zones.is_empty()) && all.iter().any(for_zone) {
        return all.into_iter().filter(for_zone).collect();
    }
    all
}

fn why_not(other: &Candidate, local: bool, is_heard: bool, node: &NodeView) -> LeftOut {
    if !other.fits {
        LeftOut::WrongFamily
    } else if !other.ready && !other.draining {
        LeftOut::NotReady
    } else if local && !other.is_local {
        LeftOut::NotLocal
    } else if other.is_silent && is_heard {
        LeftOut::Silent
    } else if other.draining {
        LeftOut::Terminating
    } else if other.for_zones.is_empty()
        || node.zone.as_ref().is_some_and(|zone| other.for_zones.contains(zone))
    {
        LeftOut::OtherNode
    } else {
        LeftOut::OtherZone
    }
}
