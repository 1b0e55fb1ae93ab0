//! Which endpoints a Service port may use: readiness, draining, topology hints.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use api::discovery::{Endpoint as SliceEndpoint, EndpointSlice};

use super::{NodeView, Protocol};

/// One endpoint of one Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Takes new connections.
    pub ready: bool,
    /// Would take connections, were it not for termination.
    pub serving: bool,
    /// Is being deleted.
    pub terminating: bool,
    /// Runs on this node.
    pub is_local: bool,
    /// Runs on a node that has fallen silent.
    pub is_silent: bool,
    /// Nodes that it is meant for; empty without such hints.
    pub for_nodes: Vec<String>,
    /// Zones that it is meant for; empty without such hints.
    pub for_zones: Vec<String>,
}

impl Endpoint {
    /// Whether it will take no connection any more: it is being deleted, and does not serve.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.terminating && !self.serving && !self.ready
    }
}

/// The endpoints of a Service port by who may use them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Categories {
    /// For traffic policy Cluster, in the order of their addresses.
    pub cluster: Vec<SocketAddr>,
    /// For traffic policy Local, in the order of their addresses.
    pub local: Vec<SocketAddr>,
    /// Whether any endpoint anywhere could serve.
    pub any: bool,
}

/// The endpoints in `slices` for the port of this name and protocol in one family, each address once.
#[must_use]
pub fn endpoints_of(
    slices: &[&EndpointSlice],
    port_name: &str,
    protocol: Protocol,
    ipv4: bool,
    node: &NodeView,
) -> Vec<Endpoint> {
    let family = if ipv4 { "IPv4" } else { "IPv6" };
    let mut found: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.address_type == family) {
        let port = slice.ports.iter().flatten().find(|port| {
            port.name.as_deref().unwrap_or("") == port_name
                && Protocol::of(port.protocol.as_deref()) == Some(protocol)
        });
        let number = port.and_then(|port| u16::try_from(port.port?).ok());
        let Some(number) = number.filter(|number| *number != 0) else { continue };
        for listed in slice.endpoints.iter().flatten() {
            let Some(endpoint) = read(listed, number, node) else { continue };
            if endpoint.address.is_ipv4() != ipv4 {
                continue;
            }
            let known = found.get(&endpoint.address);
            if known.is_none_or(|known| !known.ready && endpoint.ready) {
                found.insert(endpoint.address, endpoint);
            }
        }
    }
    found.into_values().collect()
}

fn read(listed: &SliceEndpoint, port: u16, node: &NodeView) -> Option<Endpoint> {
    let address: IpAddr = listed.addresses.first()?.parse().ok()?;
    let conditions = listed.conditions.as_ref();
    let ready = conditions.and_then(|all| all.ready).unwrap_or(true);
    let serving = conditions.and_then(|all| all.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|all| all.terminating).unwrap_or(false);
    let hints = listed.hints.as_ref();
    let for_nodes = hints.and_then(|hints| hints.for_nodes.as_ref()).into_iter().flatten();
    let for_zones = hints.and_then(|hints| hints.for_zones.as_ref()).into_iter().flatten();
    Some(Endpoint {
        address: SocketAddr::new(address, port),
        ready,
        serving,
        terminating,
        is_local: listed.node_name.as_deref() == Some(&node.name),
        is_silent: node.misses(listed.node_name.as_deref()),
        for_nodes: for_nodes.map(|hint| hint.name.clone()).collect(),
        for_zones: for_zones.map(|hint| hint.name.clone()).collect(),
    })
}

/// Sorts endpoints by who may use them. Ready ones serve; when there is none, those that terminate and still serve.
/// The set for Cluster and the set for Local are decided independently. Hints count only when every ready endpoint
/// has them and one of them is for this node (or zone). Of endpoints on silent nodes nothing counts, while there are others.
#[must_use]
pub fn categorize(endpoints: &[Endpoint], node: &NodeView) -> Categories {
    let endpoints = &*heard(endpoints);
    let near = near(endpoints, node);
    let ready: Vec<&Endpoint> = endpoints.iter().filter(|endpoint| endpoint.ready).collect();
    let draining = |endpoint: &&Endpoint| endpoint.serving && endpoint.terminating;
    let mut categories = Categories::default();
    if ready.is_empty() {
        categories.cluster = addresses(endpoints.iter().filter(draining));
    } else {
        categories.cluster =
            addresses(ready.iter().copied().filter(|endpoint| near.admits(endpoint, node)));
    }
    let local_ready = ready.iter().copied().filter(|endpoint| endpoint.is_local);
    categories.local = addresses(local_ready);
    if categories.local.is_empty() {
        let local = endpoints.iter().filter(|endpoint| endpoint.is_local);
        categories.local = addresses(local.filter(draining));
    }
    categories.any = !categories.cluster.is_empty() || !categories.local.is_empty();
    categories
}

/// The endpoints on nodes that are heard; all, when none of those could serve: better a chance than none.
fn heard(endpoints: &[Endpoint]) -> Cow<'_, [Endpoint]> {
    let could_serve = |one: &Endpoint| one.ready || one.serving && one.terminating;
    let is_heard = |one: &&Endpoint| !one.is_silent;
    if endpoints.iter().all(|one| !one.is_silent)
        || !endpoints.iter().filter(is_heard).any(could_serve)
    {
        return Cow::Borrowed(endpoints);
    }
    Cow::Owned(endpoints.iter().filter(is_heard).cloned().collect())
}

fn addresses<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Vec<SocketAddr> {
    endpoints.map(|endpoint| endpoint.address).collect()
}

/// How near an endpoint must be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Near {
    SameNode,
    SameZone,
    Anywhere,
}

impl Near {
    fn admits(self, endpoint: &Endpoint, node: &NodeView) -> bool {
        match self {
            Self::SameNode => endpoint.for_nodes.contains(&node.name),
            Self::SameZone => {
                node.zone.as_ref().is_some_and(|zone| endpoint.for_zones.contains(zone))
            }
            Self::Anywhere => true,
        }
    }
}

fn near(endpoints: &[Endpoint], node: &NodeView) -> Near {
    let ready = || endpoints.iter().filter(|endpoint| endpoint.ready);
    let (mut all_nodes, mut ours, mut all_zones, mut our_zone) = (true, false, true, false);
    for endpoint in ready() {
        all_nodes &= !endpoint.for_nodes.is_empty();
        ours |= Near::SameNode.admits(endpoint, node);
        all_zones &= !endpoint.for_zones.is_empty();
        our_zone |= Near::SameZone.admits(endpoint, node);
    }
    if all_nodes && ours {
        Near::SameNode
    } else if all_zones && our_zone {
        Near::SameZone
    } else {
        Near::Anywhere
    }
}
