//! The Services as this node sees them, kept in step with snapshots: what every data plane is planned from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::core::Service;
use api::discovery::EndpointSlice;
use api::{Name, Objects};
use imbl::ordmap::DiffItem;

use super::Settings;
use super::fold::{Dirty, Frontends, Snapshot};
use super::resets::ResetFrontends;
use crate::service::{
    Action, NodeView, Protocol, Reset, ServiceView, Surroundings, service_of, view,
};

/// What all data planes ask of a Service in the same way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    udp: Vec<(SocketAddr, Vec<SocketAddr>)>,
    health: Option<(u16, usize)>,
    resets: Vec<(SocketAddr, Reset)>,
}

/// What changed with one Service, beside the rules of a data plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// A UDP flow may now lead to the wrong place.
    pub udp: bool,
    /// Its health check port or number may differ.
    pub health: bool,
    /// A TCP connection that is to be reset then may now lead to an endpoint that is gone.
    pub resets: bool,
}

/// The Services of one node: a changed Service costs the work of one Service.
#[derive(Clone, Debug)]
pub struct Views {
    settings: Settings,
    node: NodeView,
    seen: Snapshot,
    slices_of: BTreeMap<Name, BTreeSet<Name>>,
    service_of: BTreeMap<Name, Name>,
    facts: BTreeMap<Name, Facts>,
}

impl Views {
    /// No Services yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            node: NodeView::of(&settings.node, None),
            settings,
            seen: Snapshot::default(),
            slices_of: BTreeMap::new(),
            service_of: BTreeMap::new(),
            facts: BTreeMap::new(),
        }
    }

    /// Takes a newer snapshot; answers the Services that may differ. [`Views::look`] is to be called for each.
    pub fn advance(&mut self, snapshot: &Snapshot) -> BTreeSet<Name> {
        let Dirty { services: mut dirty, slices } = match &snapshot.dirty {
            Some(dirty) => dirty.clone(),
            None => compare(&self.seen, snapshot),
        };
        for name in slices {
            let slice = snapshot.slices.get(&name);
            let now = slice.and_then(|slice| service_of(slice));
            let before = match &now {
                Some(service) => self.service_of.insert(name.clone(), service.clone()),
                None => self.service_of.remove(&name),
            };
            if let Some(service) = before.filter(|before| now.as_ref() != Some(before)) {
                if let Some(slices) = self.slices_of.get_mut(&service) {
                    slices.remove(&name);
                    if slices.is_empty() {
                        self.slices_of.remove(&service);
                    }
                }
                dirty.insert(service);
            }
            if let Some(service) = now {
                self.slices_of.entry(service.clone()).or_default().insert(name);
                dirty.insert(service);
            }
        }
        let node = self.settings.node_view(snapshot.node.as_deref(), &snapshot.addresses);
        let node = NodeView { silent: Arc::clone(&snapshot.silent), ..node };
        if node.silent != self.node.silent {
            let changed = node.silent.symmetric_difference(&self.node.silent);
            dirty.extend(self.served_from(snapshot, &changed.map(String::as_str).collect()));
            self.node.silent = Arc::clone(&node.silent);
        }
        if node != self.node {
            self.node = node;
            dirty.extend(snapshot.services.keys().cloned());
        }
        self.seen = Snapshot { dirty: None, ..snapshot.clone() };
        dirty
    }

    /// The Services with endpoints on one of these nodes.
    fn served_from(&self, snapshot: &Snapshot, nodes: &BTreeSet<&str>) -> BTreeSet<Name> {
        let is_there = |slice: &EndpointSlice| {
            let endpoints = slice.endpoints.iter().flatten();
            let mut on = endpoints.filter_map(|endpoint| endpoint.node_name.as_deref());
            on.any(|node| nodes.contains(node))
        };
        let slices = snapshot.slices.iter().filter(|(_, slice)| is_there(slice));
        slices.filter_map(|(name, _)| self.service_of.get(name).cloned()).collect()
    }

    /// Reads a Service anew. Empty when it is gone, or nothing of this proxy's.
    pub fn look(&mut self, name: &Name) -> (ServiceView, Touched) {
        let view = self.view(name);
        let udp = endpoints(&view, Protocol::Udp).collect();
        let new = Facts { udp, health: view.health, resets: resets(&view) };
        let old = self.facts.get(name);
        let touched = Touched {
            udp: old.map_or(!new.udp.is_empty(), |old| old.udp != new.udp),
            health: new.health.is_some() || old.is_some_and(|old| old.health.is_some()),
            resets: old.map_or(!new.resets.is_empty(), |old| old.resets != new.resets),
        };
        if new == Facts::default() {
            self.facts.remove(name);
        } else if old != Some(&new) {
            self.facts.insert(name.clone(), new);
        }
        (view, touched)
    }

    fn view(&self, name: &Name) -> ServiceView {
        let Some(service) = self.seen.services.get(name) else { return ServiceView::default() };
        let slices = self.slices_of.get(name).into_iter().flatten();
        let slices: Vec<&EndpointSlice> =
            slices.filter_map(|name| self.seen.slices.get(name).map(AsRef::as_ref)).collect();
        let around = Surroundings { node: &self.node, external_ips: self.settings.external_ips };
        view(service, &slices, around)
    }

    /// Where UDP flows to each frontend may lead.
    #[must_use]
    pub fn udp(&self) -> Frontends {
        let mut frontends = Frontends::new();
        for (frontend, endpoints) in self.facts.values().flat_map(|facts| &facts.udp) {
            frontends.entry(*frontend).or_default().extend(endpoints);
        }
        frontends
    }

    /// Where new TCP connections to these addresses may lead; those that no Service has are left out.
    ///
    /// Asked for few addresses and seldom, so that the Services are looked through, and no second list of all is kept.
    #[must_use]
    pub fn tcp(&self, to: &BTreeSet<SocketAddr>) -> Frontends {
        let addresses: BTreeSet<IpAddr> = to.iter().map(SocketAddr::ip).collect();
        let ports: BTreeSet<i32> = to.iter().map(|to| to.port().into()).collect();
        let mut frontends = Frontends::new();
        for (name, service) in &self.seen.services {
            if !may_have(service, &addresses, &ports) {
                continue;
            }
            for (frontend, endpoints) in endpoints(&self.view(name), Protocol::Tcp) {
                if to.contains(&frontend) {
                    frontends.entry(frontend).or_default().extend(endpoints);
                }
            }
        }
        frontends
    }

    /// The frontends whose open connections are reset when their endpoint is gone.
    #[must_use]
    pub fn resets(&self) -> ResetFrontends {
        let mut frontends = ResetFrontends::new();
        for (frontend, reset) in self.facts.values().flat_map(|facts| &facts.resets) {
            let known = frontends.entry(*frontend).or_insert_with(|| reset.clone());
            // Two Services with one external address: an endpoint of either may have the connection.
            known.after = known.after.max(reset.after);
            known.present.extend(&reset.present);
        }
        frontends
    }

    /// Health check ports: the Service and the number of ready endpoints here.
    #[must_use]
    pub fn health(&self) -> BTreeMap<u16, (Name, usize)> {
        let facts = self.facts.iter();
        facts
            .filter_map(|(name, facts)| {
                facts.health.map(|(port, count)| (port, (name.clone(), count)))
            })
            .collect()
    }

    /// This node as last seen.
    #[must_use]
    pub fn node(&self) -> &NodeView {
        &self.node
    }

    /// What the proxy was told at start.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}

/// The names of all objects that differ.
fn compare(before: &Snapshot, after: &Snapshot) -> Dirty {
    fn names<K: PartialEq>(before: &Objects<K>, after: &Objects<K>) -> BTreeSet<Name> {
        let differences = before.diff(after).map(|item| {
            let (DiffItem::Add(name, _)
            | DiffItem::Remove(name, _)
            | DiffItem::Update { new: (name, _), .. }) = item;
            name.clone()
        });
        differences.collect()
    }
    Dirty {
        services: names(&before.services, &after.services),
        slices: names(&before.slices, &after.slices),
    }
}

fn resets(view: &ServiceView) -> Vec<(SocketAddr, Reset)> {
    let resets = view.frontends.iter();
    resets.filter_map(|frontend| Some((frontend.address, frontend.reset.clone()?))).collect()
}

/// Where new connections to each frontend of a protocol may lead.
fn endpoints(
    view: &ServiceView,
    protocol: Protocol,
) -> impl Iterator<Item = (SocketAddr, Vec<SocketAddr>)> {
    let frontends = view.frontends.iter().filter(move |frontend| frontend.protocol == protocol);
    frontends.map(|frontend| {
        let endpoints = match &frontend.action {
            Action::Reject | Action::Drop => Vec::new(),
            Action::Forward { endpoints, .. } => endpoints.clone(),
            Action::Split { inside, outside, .. } => [inside.as_slice(), outside].concat(),
        };
        (frontend.address, endpoints)
    })
}

/// Whether a Service may answer at one of these addresses, or on one of these ports of a node.
fn may_have(service: &Service, addresses: &BTreeSet<IpAddr>, ports: &BTreeSet<i32>) -> bool {
    let spec = service.spec.iter();
    let balancer = service.status.iter().filter_map(|status| status.load_balancer.as_ref());
    let ingress = balancer.flat_map(|balancer| balancer.ingress.iter().flatten());
    let own = spec.clone().flat_map(|spec| {
        spec.cluster_ips.iter().chain(&spec.external_ips).flatten().chain(&spec.cluster_ip)
    });
    let mut all = own.chain(ingress.filter_map(|one| one.ip.as_ref()));
    let is_asked = |text: &String| text.parse().is_ok_and(|address| addresses.contains(&address));
    let mut node_ports =
        spec.flat_map(|spec| spec.ports.iter().flatten()).filter_map(|port| port.node_port);
    all.any(is_asked) || node_ports.any(|port| ports.contains(&port))
}
