//! Which Service port a packet is for: every address by which a Service is reached.

use std::net::{IpAddr, SocketAddr};

use api::Name;
use api::core::{Service, ServicePort, ServiceSpec};

use super::{Packet, State};
use crate::proxy::Settings;
use crate::service::{FrontendKind, NodeView, Protocol, is_node_local, is_proxied};

/// Seconds; what the API server fills in.
const AFFINITY_DEFAULT_S: u32 = 10_800;

/// One port of a Service at one of its addresses.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The Service's name.
    pub name: &'a Name,
    /// The Service.
    pub service: &'a Service,
    /// Its specification.
    pub spec: &'a ServiceSpec,
    /// The port of it.
    pub port: &'a ServicePort,
    /// How it is reached.
    pub kind: FrontendKind,
    /// Where.
    pub address: SocketAddr,
    /// By which protocol.
    pub protocol: Protocol,
}

impl Target<'_> {
    /// How long a client comes back to the same endpoint. Source: services.md section 1, row 14.
    #[must_use]
    pub fn affinity_s(&self) -> Option<u32> {
        if self.spec.session_affinity.as_deref() != Some("ClientIP") {
            return None;
        }
        let config = self.spec.session_affinity_config.as_ref();
        let seconds = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
        let seconds = seconds.and_then(|seconds| u32::try_from(seconds).ok());
        Some(seconds.filter(|seconds| *seconds > 0).unwrap_or(AFFINITY_DEFAULT_S))
    }
}

/// The Service port that a packet is for. When several Services claim one address and port, the first by name has it.
pub(super) fn target<'a>(packet: &Packet, state: &State<'a>) -> Option<Target<'a>> {
    let mut services = state.carried().filter(|(_, service)| !is_node_local(service));
    services.find_map(|(name, service)| {
        targets_of(name, service, state.node, state.settings).into_iter().find(|target| {
            target.address == packet.destination && target.protocol == packet.protocol
        })
    })
}

/// Every address and port of a Service on a node, by kind of address: where two kinds meet, the first one rules.
/// None of a Service that this proxy does not carry.
#[must_use]
pub fn targets_of<'a>(
    name: &'a Name,
    service: &'a Service,
    node: &NodeView,
    settings: &Settings,
) -> Vec<Target<'a>> {
    let mut targets = Vec::new();
    let Some(spec) = service.spec.as_ref().filter(|_| is_proxied(service)) else { return targets };
    for (kind, address) in addresses_of(service, node, settings) {
        for port in spec.ports.iter().flatten() {
            let number = match kind {
                FrontendKind::NodePort => port.node_port.unwrap_or(0),
                _ => port.port,
            };
            let number = u16::try_from(number).ok().filter(|number| *number != 0);
            let protocol = Protocol::of(port.protocol.as_deref());
            let (Some(number), Some(protocol)) = (number, protocol) else { continue };
            let address = SocketAddr::new(address, number);
            targets.push(Target { name, service, spec, port, kind, address, protocol });
        }
    }
    targets
}

/// Every address by which a Service is reached on a node. A family without a cluster address is not served: its
/// `ipFamilies` say so.
#[must_use]
pub fn addresses_of(
    service: &Service,
    node: &NodeView,
    settings: &Settings,
) -> Vec<(FrontendKind, IpAddr)> {
    let cluster = cluster_ips(service);
    let served = |address: &IpAddr| cluster.iter().any(|ip| ip.is_ipv4() == address.is_ipv4());
    let kinds = [
        (FrontendKind::ClusterIp, cluster.clone()),
        (FrontendKind::NodePort, node_addresses(node)),
        (FrontendKind::ExternalIp, external_ips(service, settings)),
        (FrontendKind::LoadBalancer, load_balancer_ips(service)),
    ];
    let all = kinds.into_iter().flat_map(|(kind, ips)| ips.into_iter().map(move |ip| (kind, ip)));
    all.filter(|(_, address)| served(address)).collect()
}

/// `spec.clusterIPs`. Source: services.md section 1, row 11.
pub(super) fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut all: Vec<IpAddr> = listed.filter_map(|text| text.parse().ok()).collect();
    all.sort();
    all.dedup();
    all
}

/// Where node ports answer: on the node's primary address of each family, unless the proxy is told otherwise.
/// Source: services.md section 4, "NodePort addresses"; KEP-3866.
fn node_addresses(node: &NodeView) -> Vec<IpAddr> {
    node.addresses.clone()
}

/// `spec.externalIPs`, where the proxy is told to honour them. Source: services.md section 1, row 13; CVE-2020-8554.
fn external_ips(service: &Service, settings: &Settings) -> Vec<IpAddr> {
    let listed = service.spec.iter().flat_map(|spec| spec.external_ips.iter().flatten());
    listed.filter(|_| settings.external_ips).filter_map(|text| text.parse().ok()).collect()
}

/// Addresses of the load balancer, without those whose `ipMode` is Proxy: their packets go the whole way.
/// Source: services.md section 1, row 25; KEP-1860.
fn load_balancer_ips(service: &Service) -> Vec<IpAddr> {
    if service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) != Some("LoadBalancer") {
        return Vec::new();
    }
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    let direct = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    direct.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok()).collect()
}
