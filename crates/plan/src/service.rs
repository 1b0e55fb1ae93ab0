//! What a Service means on one node: its frontends, and which endpoints each of them may use.
//!
//! Upstream counterparts: `pkg/proxy/serviceport.go`, `pkg/proxy/topology.go`, `pkg/proxy/endpointslicecache.go`.

mod endpoints;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::core::{Node, Service, ServicePort, ServiceSpec};
use api::discovery::EndpointSlice;
use api::{Kind, Name};
use ipnet::IpNet;

pub use endpoints::{Categories, Endpoint, categorize, endpoints_of};

/// Services with this label belong to another proxy.
pub const LABEL_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Services and slices with this label are headless, whatever address they have.
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
/// A slice's Service.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// `"true"`: the node agent itself answers on the Service's addresses; the proxy leaves packets to them alone.
pub const ANNOTATION_NODE_LOCAL: &str = "rhumb.dev/node-local";
const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
const ANNOTATION_SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// Seconds; the API's default.
const AFFINITY_DEFAULT_S: u32 = 10_800;

/// A transport protocol of Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// From the API's word; absent means TCP.
    #[must_use]
    pub fn of(word: Option<&str>) -> Option<Self> {
        match word {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    /// The API's word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The number in the IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// What the proxy must know of its own node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// The node's name.
    pub name: String,
    /// `topology.kubernetes.io/zone`, if labelled.
    pub zone: Option<String>,
    /// The primary address of each family: NodePorts answer there.
    pub addresses: Vec<IpAddr>,
    /// Other nodes that have fallen silent: new connections do not go there. See [`crate::liveness`].
    pub silent: Arc<BTreeSet<String>>,
}

impl NodeView {
    /// Whether an endpoint's node has fallen silent. This node never has, as far as it knows.
    #[must_use]
    pub fn misses(&self, node: Option<&str>) -> bool {
        node.is_some_and(|node| node != self.name && self.silent.contains(node))
    }

    /// Reads the Node object; without one, only the name is known.
    #[must_use]
    pub fn of(name: &str, node: Option<&Node>) -> Self {
        let Some(node) = node else { return Self { name: name.to_owned(), ..Self::default() } };
        let zone = node.meta().labels.as_ref().and_then(|labels| labels.get(LABEL_ZONE)).cloned();
        let mut addresses: Vec<IpAddr> = Vec::new();
        let listed = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        for address in listed.filter(|address| address.type_ == "InternalIP") {
            let Ok(address) = address.address.parse::<IpAddr>() else { continue };
            if !addresses.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
                addresses.push(address);
            }
        }
        Self { name: name.to_owned(), zone, addresses, ..Self::default() }
    }
}

/// How a Service is reached through a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// A node's address and `nodePort`.
    NodePort,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
}

/// When the node puts its own address in place of the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// When the client is no pod of the cluster.
    OffCluster,
    /// Always.
    Always,
}

/// What happens to a new connection to a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Refused: there is no endpoint anywhere.
    Reject,
    /// Discarded: the policy is Local and the endpoints are elsewhere.
    Drop,
    /// To one of these.
    Forward {
        /// At least one.
        endpoints: Vec<SocketAddr>,
        /// Source NAT.
        masquerade: Masquerade,
        /// Whether these are this node's endpoints only.
        local: bool,
    },
    /// External traffic with policy Local: clients in the cluster may use every endpoint, others only local ones.
    Split {
        /// For pods (without source NAT) and for the node itself (with it). At least one.
        inside: Vec<SocketAddr>,
        /// For everybody else, without source NAT; dropped when there is none.
        outside: Vec<SocketAddr>,
        /// Whether pods are inside. Not at node ports, where a pod of another node would be answered by an endpoint
        /// next to it, past the node that it asked: there pods are outside, and where there is nothing for those, inside
        /// with source NAT.
        pods_inside: bool,
    },
}

/// An address and port where a Service answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// How the Service is reached.
    pub kind: FrontendKind,
    /// Where.
    pub address: SocketAddr,
    /// By which protocol.
    pub protocol: Protocol,
    /// The name of the Service port; empty when it has none.
    pub port_name: String,
    /// What happens.
    pub action: Action,
    /// Clients that may; `None` for all. The node itself always may.
    pub sources: Option<Vec<IpNet>>,
    /// The cluster address and port of the same Service port: one client's affinity holds for all its frontends.
    pub identity: SocketAddr,
    /// Seconds that a client stays with its endpoint; `None` without session affinity.
    pub affinity_s: Option<u32>,
    /// What the Service wants done with open connections to endpoints that are gone; `None`, also for other protocols
    /// than TCP, is nothing.
    pub reset: Option<Reset>,
}

/// When open connections are reset (annotation [`api::service::RESET_CONNECTIONS`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reset {
    /// How long after the endpoint is gone.
    pub after: Duration,
    /// The endpoints that are not gone, wherever they are and whether they take new connections or not.
    pub present: BTreeSet<SocketAddr>,
}

/// A Service as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceView {
    /// Where it answers.
    pub frontends: Vec<Frontend>,
    /// Its cluster addresses: other ports there are refused.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Addresses that the node agent itself answers.
    pub node_local: BTreeSet<IpAddr>,
    /// Endpoint addresses on this node: they may become clients of themselves.
    pub local_endpoints: BTreeSet<IpAddr>,
    /// `healthCheckNodePort` and the number of ready endpoints on this node.
    pub health: Option<(u16, usize)>,
}

/// What the view depends on besides the Service.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// This node.
    pub node: &'a NodeView,
    /// Whether `spec.externalIPs` count (off by default: CVE-2020-8554).
    pub external_ips: bool,
}

/// A Service's name from a slice's label.
#[must_use]
pub fn service_of(slice: &EndpointSlice) -> Option<Name> {
    let labels = slice.meta().labels.as_ref()?;
    if labels.contains_key(LABEL_HEADLESS) {
        return None;
    }
    let name = labels.get(LABEL_SERVICE_NAME).filter(|name| !name.is_empty())?;
    Some(Name::new(slice.namespace(), name))
}

/// Whether the proxy has anything to do for a Service.
#[must_use]
pub fn is_proxied(service: &Service) -> bool {
    let foreign = service.meta().labels.as_ref().is_some_and(|labels| {
        [LABEL_PROXY_NAME, LABEL_HEADLESS].iter().any(|label| labels.contains_key(*label))
    });
    let Some(spec) = &service.spec else { return false };
    !foreign && spec.type_.as_deref() != Some("ExternalName") && !cluster_ips(spec).is_empty()
}

/// What `service` with `slices` means on the node of `around`.
#[must_use]
pub fn view(service: &Service, slices: &[&EndpointSlice], around: Surroundings<'_>) -> ServiceView {
    let mut view = ServiceView::default();
    let Some(spec) = service.spec.as_ref().filter(|_| is_proxied(service)) else { return view };
    let cluster_ips = cluster_ips(spec);
    if is_node_local(service) {
        view.node_local.extend(cluster_ips);
        return view;
    }
    for cluster_ip in cluster_ips {
        view.cluster_ips.insert(cluster_ip);
        let sources = source_ranges(service, spec, cluster_ip.is_ipv4());
        for port in spec.ports.iter().flatten() {
            let Some(reached) = Reached::of(service, spec, port, cluster_ip) else { continue };
            reached.add(&mut view, slices, around, sources.as_ref());
        }
    }
    view.health = health(spec, service, slices, around.node);
    view
}

/// How long after an endpoint is gone open connections to it are reset; `None` where the Service does not ask for it, or in
/// words that are no time.
#[must_use]
pub fn reset_after(service: &Service) -> Option<Duration> {
    let annotations = service.meta().annotations.as_ref()?;
    api::duration::parse(annotations.get(api::service::RESET_CONNECTIONS)?)
}

/// Whether the node agent itself answers on the Service's addresses.
#[must_use]
pub fn is_node_local(service: &Service) -> bool {
    let annotations = service.meta().annotations.as_ref();
    annotations.and_then(|all| all.get(ANNOTATION_NODE_LOCAL)).is_some_and(|word| word == "true")
}

/// One port of a Service in one family.
struct Reached<'a> {
    service: &'a Service,
    spec: &'a ServiceSpec,
    name: &'a str,
    protocol: Protocol,
    identity: SocketAddr,
    node_port: Option<u16>,
}

impl<'a> Reached<'a> {
    fn of(
        service: &'a Service,
        spec: &'a ServiceSpec,
        port: &'a ServicePort,
        cluster_ip: IpAddr,
    ) -> Option<Self> {
        let number = u16::try_from(port.port).ok().filter(|number| *number != 0)?;
        let node_port = port.node_port.and_then(|number| u16::try_from(number).ok());
        Some(Self {
            service,
            spec,
            name: port.name.as_deref().unwrap_or(""),
            protocol: Protocol::of(port.protocol.as_deref())?,
            identity: SocketAddr::new(cluster_ip, number),
            node_port: node_port.filter(|number| *number != 0),
        })
    }

    fn add(
        &self,
        view: &mut ServiceView,
        slices: &[&EndpointSlice],
        around: Surroundings<'_>,
        sources: Option<&Vec<IpNet>>,
    ) {
        let ipv4 = self.identity.is_ipv4();
        let endpoints = endpoints_of(slices, self.name, self.protocol, ipv4, around.node);
        let categories = categorize(&endpoints, around.node);
        let local = endpoints.iter().filter(|endpoint| endpoint.is_local);
        view.local_endpoints.extend(local.map(|endpoint| endpoint.address.ip()));
        let internal = self.internal(&categories);
        let first = view.frontends.len();
        view.frontends.push(self.frontend(FrontendKind::ClusterIp, self.identity, internal));
        for (kind, address) in self.external_addresses(around) {
            let mut frontend = self.frontend(kind, address, self.external(kind, &categories));
            if kind == FrontendKind::LoadBalancer {
                frontend.sources = sources.cloned();
            }
            view.frontends.push(frontend);
        }
        let reset = self.reset(&endpoints);
        for frontend in &mut view.frontends[first..] {
            frontend.reset.clone_from(&reset);
        }
    }

    fn frontend(&self, kind: FrontendKind, address: SocketAddr, action: Action) -> Frontend {
        Frontend {
            kind,
            address,
            protocol: self.protocol,
            port_name: self.name.to_owned(),
            action,
            sources: None,
            identity: self.identity,
            affinity_s: affinity(self.spec),
            reset: None,
        }
    }

    fn reset(&self, endpoints: &[Endpoint]) -> Option<Reset> {
        let after = reset_after(self.service).filter(|_| self.protocol == Protocol::Tcp)?;
        let present = endpoints.iter().filter(|endpoint| !endpoint.is_gone());
        Some(Reset { after, present: present.map(|endpoint| endpoint.address).collect() })
    }

    fn internal(&self, categories: &Categories) -> Action {
        let local = self.spec.internal_traffic_policy.as_deref() == Some("Local");
        let endpoints = if local { &categories.local } else { &categories.cluster };
        match (categories.any, endpoints.is_empty()) {
            (false, _) => Action::Reject,
            (true, true) => Action::Drop,
            (true, false) => Action::Forward {
                endpoints: endpoints.clone(),
                masquerade: Masquerade::OffCluster,
                local,
            },
        }
    }

    fn external(&self, kind: FrontendKind, categories: &Categories) -> Action {
        let local = self.spec.external_traffic_policy.as_deref() == Some("Local");
        if !categories.any {
            return Action::Reject;
        }
        if local {
            return Action::Split {
                inside: categories.cluster.clone(),
                outside: categories.local.clone(),
                pods_inside: kind != FrontendKind::NodePort,
            };
        }
        let endpoints = categories.cluster.clone();
        Action::Forward { endpoints, masquerade: Masquerade::Always, local: false }
    }

    fn external_addresses(&self, around: Surroundings<'_>) -> Vec<(FrontendKind, SocketAddr)> {
        let ours = |address: &IpAddr| address.is_ipv4() == self.identity.is_ipv4();
        let port = self.identity.port();
        let mut found: BTreeSet<(FrontendKind, SocketAddr)> = BTreeSet::new();
        if let Some(node_port) = self.node_port {
            let addresses = around.node.addresses.iter().copied().filter(ours);
            found.extend(
                addresses
                    .map(|address| (FrontendKind::NodePort, SocketAddr::new(address, node_port))),
            );
        }
        let external = self.spec.external_ips.iter().flatten().filter(|_| around.external_ips);
        let external = external.filter_map(|text| text.parse().ok()).filter(ours);
        found.extend(
            external.map(|address| (FrontendKind::ExternalIp, SocketAddr::new(address, port))),
        );
        let ingress = load_balancer_ips(self.service).into_iter().filter(ours);
        found.extend(
            ingress.map(|address| (FrontendKind::LoadBalancer, SocketAddr::new(address, port))),
        );
        found.into_iter().collect()
    }
}

fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut found: Vec<IpAddr> = Vec::new();
    for address in listed.filter_map(|text| text.parse().ok()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// Addresses of a load balancer that the proxy short-circuits: not those whose `ipMode` is Proxy.
fn load_balancer_ips(service: &Service) -> Vec<IpAddr> {
    if service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) != Some("LoadBalancer") {
        return Vec::new();
    }
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    let direct = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    direct.filter_map(|ingress| ingress.ip.as_deref()?.parse().ok()).collect()
}

/// The source ranges of one family; `None` when none is given for it.
fn source_ranges(service: &Service, spec: &ServiceSpec, ipv4: bool) -> Option<Vec<IpNet>> {
    let annotations = service.meta().annotations.as_ref();
    let annotated = annotations.and_then(|all| all.get(ANNOTATION_SOURCE_RANGES));
    let annotated = annotated.into_iter().flat_map(|text| text.split(','));
    let listed = spec.load_balancer_source_ranges.iter().flatten().map(String::as_str);
    let texts: Vec<&str> = match spec.load_balancer_source_ranges.as_deref() {
        Some([_, ..]) => listed.collect(),
        _ => annotated.collect(),
    };
    let ranges = texts.iter().filter_map(|text| text.trim().parse::<IpNet>().ok());
    let ranges: BTreeSet<IpNet> =
        ranges.filter(|range| range.addr().is_ipv4() == ipv4).map(|range| range.trunc()).collect();
    (!ranges.is_empty()).then(|| IpNet::aggregate(&ranges.into_iter().collect()))
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|all| all.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds);
    let seconds = seconds.and_then(|seconds| u32::try_from(seconds).ok());
    Some(seconds.filter(|seconds| *seconds > 0).unwrap_or(AFFINITY_DEFAULT_S))
}

/// The health check port and how many distinct addresses here are ready.
fn health(
    spec: &ServiceSpec,
    service: &Service,
    slices: &[&EndpointSlice],
    node: &NodeView,
) -> Option<(u16, usize)> {
    let port = u16::try_from(spec.health_check_node_port?).ok().filter(|port| *port != 0)?;
    let load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
    if !load_balancer || spec.external_traffic_policy.as_deref() != Some("Local") {
        return None;
    }
    // A pod of two families is one endpoint: the family that has more counts.
    let mut count = 0;
    for cluster_ip in cluster_ips(spec) {
        let mut local: BTreeSet<IpAddr> = BTreeSet::new();
        for port in spec.ports.iter().flatten() {
            let Some(reached) = Reached::of(service, spec, port, cluster_ip) else { continue };
            let ipv4 = cluster_ip.is_ipv4();
            let endpoints = endpoints_of(slices, reached.name, reached.protocol, ipv4, node);
            let ready = endpoints.iter().filter(|endpoint| endpoint.is_local && endpoint.ready);
            local.extend(ready.map(|endpoint| endpoint.address.ip()));
        }
        count = count.max(local.len());
    }
    Some((port, count))
}
