//! The endpoints that a Service should have, by address family and port map, and the frame of its slices.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::core::{Node, ObjectReference, Pod, Service};
use api::discovery::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use api::meta::ObjectMeta;
use api::{IntOrString, Kind, Name, Objects};
use jiff::Timestamp;

use super::{
    CONTROLLER, Groups, HEADLESS, MANAGED_BY, SERVICE_NAME, Snapshot, hints, identity, is_headless,
    selected, topology,
};
use crate::objects::label;
use crate::podfacts;

/// The node label with its zone.
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";

/// The address families of the Service, as slices name them.
pub(crate) fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let listed = spec.and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    let mut families: Vec<_> =
        listed.iter().map(|family| if family == "IPv6" { "IPv6" } else { "IPv4" }).collect();
    if families.is_empty() {
        let ip = spec.and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or("");
        families.push(if ip.contains(':') { "IPv6" } else { "IPv4" });
    }
    families
}

/// An empty slice of the Service: labels, owner, address type.
pub(super) fn template(service: &Service, family: &str) -> EndpointSlice {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.name().to_owned());
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.name())),
            namespace: Some(service.namespace().to_owned()),
            labels: Some(labels),
            owner_references: Some(vec![service.as_controller()]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(Vec::new()),
        ports: None,
    }
}

/// What tells port maps apart, whatever their order.
pub(super) fn port_key(ports: Option<&[EndpointPort]>) -> String {
    let mut ports: Vec<String> =
        ports.unwrap_or(&[]).iter().map(|port| format!("{port:?}")).collect();
    ports.sort();
    ports.concat()
}

/// The wanted endpoints of one family, by port map.
pub(super) fn endpoints(snapshot: &Snapshot, service: &Service, family: &str) -> Groups {
    let mut groups: Groups = BTreeMap::new();
    for pod in selected(&snapshot.pods, service) {
        let node = snapshot.nodes.get(&Name::cluster(podfacts::node_name(pod)));
        let Some(address) = address(pod, family) else { continue };
        if podfacts::is_terminal(pod) || (node.is_none() && !publishes_not_ready(service)) {
            continue;
        }
        let ports = ports(service, pod);
        let endpoint = endpoint(service, pod, node, address);
        let key = port_key(Some(&ports));
        let (_, group) = groups.entry(key).or_insert_with(|| (Some(ports), BTreeMap::new()));
        group.insert(identity(&endpoint), endpoint);
    }
    groups
}

fn address(pod: &Pod, family: &str) -> Option<String> {
    let fits = |text: &&str| match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => family == "IPv4",
        Ok(IpAddr::V6(_)) => family == "IPv6",
        Err(_) => false,
    };
    podfacts::addresses(pod).find(fits).map(ToOwned::to_owned)
}

fn publishes_not_ready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true)
}

/// The Service's ports as this pod serves them; a named port that the pod lacks is left out.
fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let listed = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    listed
        .filter_map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let target = port.target_port.clone().unwrap_or(IntOrString::Int(port.port));
            let target =
                if target == IntOrString::Int(0) { IntOrString::Int(port.port) } else { target };
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(podfacts::target_port(pod, &target, protocol)?),
                protocol: Some(protocol.to_owned()),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn endpoint(service: &Service, pod: &Pod, node: Option<&Arc<Node>>, address: String) -> Endpoint {
    let (serving, terminating) = (podfacts::is_ready(pod), pod.is_deleting());
    let ready = publishes_not_ready(service) || (serving && !terminating);
    let spec = pod.spec.as_ref();
    let in_subdomain = spec.and_then(|spec| spec.subdomain.as_deref()) == Some(service.name());
    let hostname = spec.and_then(|spec| spec.hostname.clone());
    let mut endpoint = Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname.filter(|name| in_subdomain && !name.is_empty()),
        node_name: spec.and_then(|spec| spec.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some(pod.namespace().to_owned()),
            name: Some(pod.name().to_owned()),
            uid: Some(pod.uid().to_owned()),
            ..ObjectReference::default()
        }),
        zone: node.and_then(|node| label(node.as_ref(), ZONE)).map(ToOwned::to_owned),
        ..Endpoint::default()
    };
    if !topology::is_wanted(service) {
        endpoint.hints = hints::of(service, &endpoint);
    }
    endpoint
}

/// The latest change that the slices answer to: the Service made, a pod ready or not ready or going.
pub(crate) fn trigger_time(pods: &Objects<Pod>, service: &Service) -> Option<Timestamp> {
    let pods = selected(pods, service).filter_map(|pod| {
        let ready = podfacts::condition(pod, "Ready")?.last_transition_time.as_ref()?;
        Some(ready.0)
    });
    let made = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
    pods.chain(made).max()
}
