//! From what the client says to an address: the search list, the DNS answer, the port's number.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::core::{Pod, Service, ServicePort};
use api::{IntOrString, Kind, Name};

use super::exposed::external_addresses;
use super::{Chain, Client, End, Lookup, PortRef, Question, Sees, Step, To};
use crate::dns::{Data, Kind as Asked, Outcome, Zone, service_records};
use crate::pods::files::{Dns, resolv_conf};
use crate::service::Protocol;
use crate::{endpointslice, podfacts, podnet};

/// A name with fewer dots is tried with the search list first, where `ndots` says nothing (resolv.conf(5)).
const NDOTS: usize = 1;
/// Aliases that lead to aliases are followed this far.
const ALIASES_MAX: usize = 8;

/// What a name leads to.
struct Found {
    addresses: Vec<IpAddr>,
    words: String,
}

impl Chain<'_> {
    /// Finds the address and port that the client connects to.
    pub(super) fn destination(
        &mut self,
        question: &Question,
        client: &Client,
    ) -> Result<SocketAddr, End> {
        let family = |addresses: &[IpAddr]| pick(addresses, client);
        match &question.to {
            To::Address(socket) => Ok(*socket),
            To::Node(name, port) => {
                let node = self.cluster.nodes.get(&Name::cluster(name));
                let addresses = node.map(|node| podnet::internal_addresses(node));
                let address = addresses.as_deref().and_then(family).ok_or_else(|| {
                    (Sees::NoName, format!("There is no node {name} with an address."))
                })?;
                Ok(SocketAddr::new(address, *port))
            }
            To::Pod(name, port) => self.pod_address(name, port, question.protocol, client),
            To::Service(name, port) => self.service_address(name, port, question, client),
            To::Host(host, port) => {
                let address = self.resolve(host, client)?;
                Ok(SocketAddr::new(address, *port))
            }
        }
    }

    fn pod_address(
        &self,
        name: &Name,
        port: &PortRef,
        protocol: Protocol,
        client: &Client,
    ) -> Result<SocketAddr, End> {
        let Some(pod) = self.cluster.pods.get(name) else {
            return Err((Sees::NoName, format!("There is no pod {name}.")));
        };
        let addresses: Vec<IpAddr> =
            podfacts::addresses(pod).filter_map(|text| text.parse().ok()).collect();
        let address = pick(&addresses, client)
            .ok_or_else(|| (Sees::NoName, format!("Pod {name} has no address yet.")))?;
        let number = pod_port(pod, port, protocol)
            .ok_or_else(|| (Sees::NoName, format!("Pod {name} names no such port{port}.")))?;
        Ok(SocketAddr::new(address, number))
    }

    /// `svc/b:80`: pods ask for the name, others take the address that reaches them.
    fn service_address(
        &mut self,
        name: &Name,
        port: &PortRef,
        question: &Question,
        client: &Client,
    ) -> Result<SocketAddr, End> {
        let Some(service) = self.cluster.services.get(name).cloned() else {
            return Err(self.no_service(name));
        };
        let listed = port_of(&service, port, question.protocol);
        let number = match (listed, port) {
            (_, PortRef::Number(number)) => *number,
            (Some(listed), _) => u16::try_from(listed.port).unwrap_or(0),
            (None, _) => return Err(no_such_port(&service, port, question.protocol)),
        };
        if client.node.is_none() {
            return self.outside_address(&service, listed, number, question);
        }
        self.headless_port(&service, listed, number);
        let Some(pod) = client.pod.as_ref().filter(|pod| asks_cluster_dns(pod)) else {
            // A node's own resolver knows no Services: its processes use the address.
            return self.own_address(&service, number, client);
        };
        let short = if pod.namespace() == &*name.namespace {
            name.name.to_string()
        } else {
            format!("{}.{}", name.name, name.namespace)
        };
        Ok(SocketAddr::new(self.resolve(&short, client)?, number))
    }

    /// A headless Service's port is told, never translated.
    fn headless_port(&mut self, service: &Service, port: Option<&ServicePort>, number: u16) {
        if !endpointslice::is_headless(service) {
            return;
        }
        let target = port.and_then(|port| port.target_port.as_ref());
        let other = match target {
            Some(IntOrString::Int(target)) if *target != i32::from(number) => target.to_string(),
            Some(IntOrString::String(name)) => format!("named {name}"),
            _ => return,
        };
        let words = format!(
            "a headless Service translates no port: the client connects to port {number} of a pod, although targetPort is {other}"
        );
        self.steps.push(Step::Rule { field: "clusterIP None".into(), words, passes: true });
    }

    fn no_service(&mut self, name: &Name) -> End {
        let hints = super::miss::of_name(self.cluster, name);
        if !hints.is_empty() {
            self.steps.push(Step::Why { hints });
        }
        (Sees::NoName, format!("There is no Service {name}."))
    }

    fn own_address(
        &self,
        service: &Service,
        number: u16,
        client: &Client,
    ) -> Result<SocketAddr, End> {
        let name = service.object_name();
        let spec = service.spec.as_ref();
        let listed = spec.and_then(|spec| spec.cluster_ips.clone()).unwrap_or_default();
        let one = spec.and_then(|spec| spec.cluster_ip.clone());
        let listed = listed.iter().chain(&one).filter_map(|text| text.parse().ok());
        let address = pick(&listed.collect::<Vec<_>>(), client);
        let address = address.ok_or_else(|| {
            let words = if endpointslice::is_headless(service) {
                format!("Service {name} is headless: it has no address, only names, and a node does not ask the cluster's DNS.")
            } else {
                format!("Service {name} has no address that the sender can use.")
            };
            (Sees::NoName, words)
        })?;
        Ok(SocketAddr::new(address, number))
    }

    /// From outside a Service is its load balancer's address, else its node port, else an external address.
    fn outside_address(
        &self,
        service: &Service,
        port: Option<&ServicePort>,
        number: u16,
        question: &Question,
    ) -> Result<SocketAddr, End> {
        let name = service.object_name();
        let (balancers, external) = external_addresses(service);
        let count = self.cluster.told.values().any(|told| told.settings.external_ips);
        let external = external.into_iter().filter(|_| count);
        if let Some(address) = balancers.into_iter().chain(external).next() {
            return Ok(SocketAddr::new(address, number));
        }
        let node_port = port.and_then(|port| u16::try_from(port.node_port?).ok());
        let node = match &question.node {
            Some(node) => Some(node.clone()),
            None => self.cluster.nodes.keys().next().map(|node| node.name.to_string()),
        };
        let address = node.and_then(|node| self.cluster.node_address(&node));
        match (node_port.filter(|port| *port != 0), address) {
            (Some(port), Some(address)) => Ok(SocketAddr::new(address, port)),
            _ => {
                let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
                let kind = kind.unwrap_or("ClusterIP");
                let words = format!(
                    "Service {name} has no address outside the cluster: its type is {kind}, and it has neither a node port nor a load balancer's address."
                );
                Err((Sees::NoName, words))
            }
        }
    }

    /// Asks the cluster's DNS as the client's resolver would.
    fn resolve(&mut self, host: &str, client: &Client) -> Result<IpAddr, End> {
        let Some(pod) = client.pod.as_ref().filter(|pod| asks_cluster_dns(pod)) else {
            let words = format!(
                "The sender does not ask the cluster's DNS, so {host} is whatever its own resolver says. Ask for an address, or for svc/NAME:PORT."
            );
            return Err((Sees::NoName, words));
        };
        let server = self.dns_server();
        let stand_in = server.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let own = resolv_conf(pod, &Dns::default(), Some(stand_in), &self.cluster.domain);
        let (lookups, found) = self.walk(host, &own, client);
        let server = server.map(|address| self.cluster.address(address));
        let found = found.map(|found| (pick(&found.addresses, client), found));
        match found {
            Ok((Some(address), found)) => {
                let words = found.words;
                self.steps.push(Step::Name { server, lookups, words, found: true });
                Ok(address)
            }
            Ok((None, found)) => {
                let words = found.words;
                self.steps.push(Step::Name { server, lookups, words, found: false });
                let verdict = format!("{host} has no address of the sender's family.");
                Err((Sees::NoName, verdict))
            }
            Err((sees, words)) => {
                let found = sees == Sees::Outside;
                self.steps.push(Step::Name { server, lookups, words: String::new(), found });
                if sees == Sees::NoName {
                    let hints = super::miss::of_host(self.cluster, host, pod.namespace());
                    if !hints.is_empty() {
                        self.steps.push(Step::Why { hints });
                    }
                }
                Err((sees, words))
            }
        }
    }

    /// Each name of the search list until one has an address.
    fn walk(&self, host: &str, own: &Dns, client: &Client) -> (Vec<Lookup>, Result<Found, End>) {
        let zone = self.zone();
        let mut lookups = Vec::new();
        for name in names(host, own) {
            let answer = zone.answer(&name, Asked::A);
            if answer.outcome == Outcome::NotOurs {
                let words = format!(
                    "{name} is not in the cluster's domain: the node's resolvers are asked, and what they say is not the cluster's."
                );
                lookups.push(Lookup { name, answer: "not the cluster's name".into() });
                return (lookups, Err((Sees::Outside, words)));
            }
            if answer.outcome == Outcome::NoName {
                lookups.push(Lookup { name, answer: "no such name (NXDOMAIN)".into() });
                continue;
            }
            match self.follow(&zone, &name, client) {
                Ok(found) if found.addresses.is_empty() => {
                    lookups.push(Lookup { name, answer: "the name has no address".into() });
                }
                Ok(found) => {
                    let shown: Vec<String> =
                        found.addresses.iter().map(|one| self.cluster.address(*one)).collect();
                    lookups.push(Lookup { name, answer: shown.join(", ") });
                    return (lookups, Ok(found));
                }
                Err(target) => {
                    let answer = format!("an alias of {target}");
                    let words = format!(
                        "{target} is outside the cluster's domain: the node's resolvers are asked, and what they say is not the cluster's."
                    );
                    lookups.push(Lookup { name, answer });
                    return (lookups, Err((Sees::Outside, words)));
                }
            }
        }
        (lookups, Err((Sees::NoName, format!("The name {host} does not resolve."))))
    }

    /// The addresses of a name of the zone; `Err` with the alias that leads out of it.
    fn follow(&self, zone: &Zone, name: &str, client: &Client) -> Result<Found, String> {
        let mut name = name.to_owned();
        let mut addresses = Vec::new();
        for _ in 0..ALIASES_MAX {
            let mut alias = None;
            let families = client.addresses.iter().map(IpAddr::is_ipv4);
            for ipv4 in families {
                let kind = if ipv4 { Asked::A } else { Asked::Aaaa };
                let answer = zone.answer(&name, kind);
                alias = alias.or(answer.follow);
                for record in answer.records {
                    match record.data {
                        Data::A(address) => addresses.push(IpAddr::V4(address)),
                        Data::Aaaa(address) => addresses.push(IpAddr::V6(address)),
                        Data::Cname(target) => alias = alias.or(Some(target)),
                        _ => {}
                    }
                }
            }
            let Some(target) = alias.filter(|_| addresses.is_empty()) else { break };
            if zone.answer(&target, Asked::A).outcome == Outcome::NotOurs {
                return Err(target);
            }
            name = target;
        }
        let words = match addresses.as_slice() {
            [] | [_] => String::new(),
            many => format!(
                "{name} has {} addresses; the client takes any, here the first is followed",
                many.len()
            ),
        };
        Ok(Found { addresses, words })
    }

    fn zone(&self) -> Zone {
        let mut zone = Zone::new(&self.cluster.domain);
        for name in self.cluster.namespaces.keys() {
            zone.set_namespace(&name.name, true);
        }
        for (name, service) in &self.cluster.services {
            // The namespace of an object exists, also when only the object is at hand.
            zone.set_namespace(&name.namespace, true);
            let slices = self.cluster.slices_of(name);
            zone.set_service(name, service_records(service, slices.into_iter()));
        }
        zone
    }

    /// The address of the cluster's DNS Service.
    fn dns_server(&self) -> Option<IpAddr> {
        let service = self.cluster.services.get(&Name::new("kube-system", "kube-dns"))?;
        service.spec.as_ref()?.cluster_ip.as_deref()?.parse().ok()
    }
}

/// The names that a resolver tries, in order (resolv.conf(5)).
fn names(host: &str, own: &Dns) -> Vec<String> {
    if let Some(whole) = host.strip_suffix('.') {
        return vec![whole.to_owned()];
    }
    let ndots = own.options.iter().find_map(|option| option.strip_prefix("ndots:")?.parse().ok());
    let dots = host.matches('.').count();
    let searched = own.searches.iter().map(|domain| format!("{host}.{domain}"));
    if dots >= ndots.unwrap_or(NDOTS) {
        return std::iter::once(host.to_owned()).chain(searched).collect();
    }
    searched.chain([host.to_owned()]).collect()
}

/// Whether a pod's resolver is the cluster's DNS.
fn asks_cluster_dns(pod: &Arc<Pod>) -> bool {
    let stand_in = IpAddr::from([0, 0, 0, 0]);
    let own = resolv_conf(pod, &Dns::default(), Some(stand_in), "cluster.local");
    own.servers.iter().any(|server| *server == stand_in.to_string())
}

/// The first address of a family that the client has.
fn pick(addresses: &[IpAddr], client: &Client) -> Option<IpAddr> {
    let usable = |address: &&IpAddr| {
        let mut own = client.addresses.iter();
        client.is_anybody || own.any(|own| own.is_ipv4() == address.is_ipv4())
    };
    addresses.iter().find(usable).copied()
}

/// The Service's port that is meant.
pub(super) fn port_of<'a>(
    service: &'a Service,
    port: &PortRef,
    protocol: Protocol,
) -> Option<&'a ServicePort> {
    let ports = service.spec.as_ref()?.ports.as_deref().unwrap_or_default();
    let ours = |one: &&ServicePort| Protocol::of(one.protocol.as_deref()) == Some(protocol);
    let mut ours = ports.iter().filter(ours);
    match port {
        PortRef::Number(number) => ours.find(|one| one.port == i32::from(*number)),
        PortRef::Named(name) => ours.find(|one| one.name.as_ref() == Some(name)),
        PortRef::Only => ours.next().filter(|_| ours.next().is_none()),
    }
}

/// `80/TCP (http), 443/TCP (https)`
pub(super) fn ports_of(service: &Service) -> String {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let shown: Vec<String> = ports
        .iter()
        .map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let name = port.name.as_deref().map_or_else(String::new, |name| format!(" ({name})"));
            format!("{}/{protocol}{name}", port.port)
        })
        .collect();
    if shown.is_empty() { "no port".to_owned() } else { shown.join(", ") }
}

fn no_such_port(service: &Service, port: &PortRef, protocol: Protocol) -> End {
    let name = service.object_name();
    let has = ports_of(service);
    let words = match port {
        PortRef::Only => format!("Service {name} has {has}: say which is meant."),
        _ => format!("Service {name} has no {} port{port}: it has {has}.", protocol.word()),
    };
    (Sees::NoName, words)
}

fn pod_port(pod: &Pod, port: &PortRef, protocol: Protocol) -> Option<u16> {
    match port {
        PortRef::Number(number) => Some(*number),
        PortRef::Named(name) => {
            let target = IntOrString::String(name.clone());
            podfacts::target_port(pod, &target, protocol.word()).and_then(|n| u16::try_from(n).ok())
        }
        PortRef::Only => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            let only = ports.next().filter(|_| ports.next().is_none())?;
            u16::try_from(only.container_port).ok()
        }
    }
}
