//! Which addresses and ports answer from outside, on which nodes, by which Service or host port, and to whom.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::core::{Pod, Service};
use api::{Kind, Name};
use serde::Serialize;

use super::Cluster;
use crate::loadbalancer::{View, announcer, is_ours};
use crate::podnet::hostports::HostPort;
use crate::podnet::internal_addresses;
use crate::service::{
    Action, Frontend, FrontendKind, Protocol, ServiceView, Surroundings, is_proxied, view,
};

/// An address and port that is open to clients outside the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Exposure {
    /// The address; `None` when it is to be allocated.
    pub address: Option<String>,
    /// The port; `None` when it is to be allocated.
    pub port: Option<u16>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: &'static str,
    /// `NodePort`, `LoadBalancer`, `ExternalIP`, `HealthCheckNodePort` or `HostPort`.
    pub by: &'static str,
    /// Namespace and name of the Service; `None` for a host port.
    pub service: Option<String>,
    /// Namespace and name of the pod with the host port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The port of the Service, or of the pod.
    pub service_port: u16,
    /// Nodes where a packet to it reaches an endpoint.
    pub nodes: Vec<String>,
    /// The node that announces the address, where this project's load balancer does.
    pub announced_by: Option<String>,
    /// Ranges that clients must be in; empty for everybody.
    pub sources: Vec<String>,
    /// Why nobody answers, when nobody does.
    pub silent: Option<&'static str>,
}

/// The addresses of a Service outside the cluster: its load balancer's, and `spec.externalIPs`.
pub(super) fn external_addresses(service: &Service) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    let balancers = ingress.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok());
    let external = service.spec.iter().flat_map(|spec| spec.external_ips.iter().flatten());
    (balancers.collect(), external.filter_map(|text| text.parse().ok()).collect())
}

/// A Service as one node sees it.
pub(super) fn on_node(cluster: &Cluster, service: &Service, node: &str) -> ServiceView {
    let (settings, node) = (cluster.settings(node), cluster.node_view(node));
    let around = Surroundings { node: &node, external_ips: settings.external_ips };
    view(service, &cluster.slices_of(&service.object_name()), around)
}

/// What a client outside gets at a frontend: nothing, and why.
pub(super) fn silent_outside(action: &Action) -> Option<&'static str> {
    match action {
        Action::Reject => Some("the Service has no endpoints"),
        Action::Drop => Some("no endpoint is on the node"),
        Action::Split { outside, .. } if outside.is_empty() => Some("no endpoint is on the node"),
        Action::Forward { .. } | Action::Split { .. } => None,
    }
}

/// Every address and port that is open to the outside, in their order.
#[must_use]
pub fn exposed(cluster: &Cluster) -> Vec<Exposure> {
    let mut found: BTreeMap<(String, u16, &'static str, String), Exposure> = BTreeMap::new();
    for service in cluster.services.values().filter(|service| is_proxied(service)) {
        for node in cluster.nodes.keys().map(|name| &*name.name) {
            let view = on_node(cluster, service, node);
            if let Some((port, ready)) = view.health {
                add_health(cluster, &mut found, service, node, (port, ready));
            }
            let outer = view
                .frontends
                .iter()
                .filter(|at| at.kind != FrontendKind::ClusterIp && !at.address.ip().is_loopback());
            for at in outer {
                add(cluster, &mut found, service, node, at);
            }
        }
        add_unallocated(&mut found, service);
    }
    for node in cluster.nodes.keys().map(|name| &*name.name) {
        for (port, pod) in cluster.host_ports(node) {
            add_host_port(cluster, &mut found, node, &port, pod);
        }
    }
    found.into_values().collect()
}

/// Of all addresses, the ones that the node says others reach it by.
fn add_host_port(cluster: &Cluster, found: &mut Found, node: &str, port: &HostPort, pod: &Pod) {
    let object = cluster.nodes.get(&Name::cluster(node));
    let own = object.map(|node| internal_addresses(node)).unwrap_or_default();
    let own = own.into_iter().filter(IpAddr::is_ipv4);
    let addresses: Vec<IpAddr> = match port.host_ip {
        Some(address) => vec![address.into()],
        None => own.collect(),
    };
    let mut known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter();
    let protocol = known.find(|known| known.number() == port.protocol).map(Protocol::word);
    let protocol = protocol.unwrap_or_default();
    let name = pod.object_name().to_string();
    for address in addresses.into_iter().filter(|address| !address.is_loopback()) {
        let exposure = Exposure {
            address: (!cluster.invented.contains(&address)).then(|| address.to_string()),
            port: Some(port.host_port),
            protocol,
            by: "HostPort",
            service: None,
            pod: Some(name.clone()),
            service_port: port.container_port,
            nodes: vec![node.to_owned()],
            announced_by: None,
            sources: Vec::new(),
            silent: None,
        };
        // A Service at the same port goes first.
        let key = (sortable(address), port.host_port, protocol);
        let is_taken = |(at, number, word, _): &(String, u16, &'static str, String)| {
            (at, *number, *word) == (&key.0, key.1, key.2)
        };
        if !found.keys().any(is_taken) {
            found.insert((key.0, key.1, key.2, name.clone()), exposure);
        }
    }
}

type Found = BTreeMap<(String, u16, &'static str, String), Exposure>;

fn add(cluster: &Cluster, found: &mut Found, service: &Service, node: &str, at: &Frontend) {
    let name = service.object_name().to_string();
    let address = at.address.ip();
    let key = (sortable(address), at.address.port(), at.protocol.word(), name.clone());
    let sources = at.sources.iter().flatten().map(ToString::to_string);
    let announced = || {
        let view = View {
            services: cluster.services.clone(),
            slices: cluster.slices.clone(),
            nodes: cluster.nodes.clone(),
            silent: Arc::default(),
        };
        let ours = at.kind == FrontendKind::LoadBalancer && is_ours(service);
        ours.then(|| announcer(&view, service, address)).flatten()
    };
    let entry = found.entry(key).or_insert_with(|| Exposure {
        address: (!cluster.invented.contains(&address)).then(|| address.to_string()),
        port: Some(at.address.port()),
        protocol: at.protocol.word(),
        by: kind(at.kind),
        service: Some(name),
        pod: None,
        service_port: at.identity.port(),
        nodes: Vec::new(),
        announced_by: announced(),
        sources: sources.collect(),
        silent: silent_outside(&at.action),
    });
    if silent_outside(&at.action).is_none() {
        entry.nodes.push(node.to_owned());
        entry.silent = None;
    }
}

fn add_health(
    cluster: &Cluster,
    found: &mut Found,
    service: &Service,
    node: &str,
    (port, _ready): (u16, usize),
) {
    let Some(address) = cluster.node_address(node) else { return };
    let name = service.object_name().to_string();
    let exposure = Exposure {
        address: (!cluster.invented.contains(&address)).then(|| address.to_string()),
        port: Some(port),
        protocol: Protocol::Tcp.word(),
        by: "HealthCheckNodePort",
        service: Some(name.clone()),
        pod: None,
        service_port: port,
        nodes: vec![node.to_owned()],
        announced_by: None,
        sources: Vec::new(),
        silent: None,
    };
    found.insert((sortable(address), port, Protocol::Tcp.word(), name), exposure);
}

/// Node ports that the API server will choose.
fn add_unallocated(found: &mut Found, service: &Service) {
    let Some(spec) = &service.spec else { return };
    let wanted = match spec.type_.as_deref() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec.allocate_load_balancer_node_ports != Some(false),
        _ => false,
    };
    let name = service.object_name().to_string();
    for port in spec.ports.iter().flatten().filter(|_| wanted) {
        let number = u16::try_from(port.port).unwrap_or(0);
        let protocol = Protocol::of(port.protocol.as_deref()).unwrap_or(Protocol::Tcp).word();
        if port.node_port.unwrap_or(0) == 0 {
            let exposure = Exposure {
                address: None,
                port: None,
                protocol,
                by: kind(FrontendKind::NodePort),
                service: Some(name.clone()),
                pod: None,
                service_port: number,
                nodes: Vec::new(),
                announced_by: None,
                sources: Vec::new(),
                silent: None,
            };
            found.insert((String::new(), number, protocol, name.clone()), exposure);
        }
    }
}

const fn kind(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "ClusterIP",
        FrontendKind::NodePort => "NodePort",
        FrontendKind::ExternalIp => "ExternalIP",
        FrontendKind::LoadBalancer => "LoadBalancer",
    }
}

/// Addresses as texts sort by their numbers.
fn sortable(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("4 {:08x}", u32::from(v4)),
        IpAddr::V6(v6) => format!("6 {:032x}", u128::from(v6)),
    }
}
