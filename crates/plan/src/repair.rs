//! Addresses and node ports of Services against what is allocated: what is out of its range, held twice or not accounted for
//! is told, and IPAddresses are put right.
//!
//! Upstream counterparts: `repairip.go` of `pkg/registry/core/service/ipallocator/controller`, and `repair.go` of
//! `…/portallocator/controller`. Allocators read the Services themselves: nothing can leak from them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use api::core::Service;
use api::meta::ObjectMeta;
use api::networking::{IPAddress, IPAddressSpec, ParentReference, ServiceCIDR};
use api::{Kind, Name, Objects};
use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};

use crate::action::{Action, Notice, Plan, delete};
use crate::objects::{label, reference};
use crate::servicecidr::prefixes;

/// The label that says who writes an IPAddress, and the allocator's value of it.
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";
/// The label with the family of an IPAddress.
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
/// The ServiceCIDR of the cluster's own ranges. Before it is there, nothing is out of range.
const DEFAULT_RANGE: &str = "kubernetes";
/// The API server makes IPAddresses right after their Services; a younger Service may still be without.
const PATIENCE: SignedDuration = SignedDuration::from_secs(15);

/// What is compared.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All Services.
    pub services: Objects<Service>,
    /// All addresses in use.
    pub addresses: Objects<IPAddress>,
    /// All ranges.
    pub ranges: Objects<ServiceCIDR>,
    /// Ports for Services of type NodePort.
    pub node_ports: RangeInclusive<u16>,
    /// Now.
    pub now: Timestamp,
}

/// Looks at every Service.
#[must_use]
pub fn plan(snapshot: &Snapshot) -> Plan {
    let mut plan = Plan::none();
    let mut ports = BTreeSet::new();
    let ranges: Vec<IpNet> = snapshot.ranges.values().flat_map(|range| prefixes(range)).collect();
    let complete = snapshot.ranges.contains_key(&Name::cluster(DEFAULT_RANGE));
    for service in snapshot.services.values() {
        for ip in cluster_ips(service) {
            if complete && !ranges.iter().any(|range| range.contains(&ip)) {
                let message = format!(
                    "Cluster IP [{}]: {ip} is not within any configured Service CIDR; please recreate service",
                    family(ip)
                );
                plan.push(warning(service, "ClusterIPOutOfRange", message));
            } else {
                plan.actions.extend(address(snapshot, service, ip));
            }
        }
        plan.actions.extend(node_ports(service, &snapshot.node_ports, &mut ports));
    }
    plan
}

/// The cluster addresses of a Service.
pub fn cluster_ips(service: &Service) -> impl Iterator<Item = IpAddr> {
    let spec = service.spec.as_ref().filter(|spec| spec.type_.as_deref() != Some("ExternalName"));
    let listed = spec.and_then(|spec| spec.cluster_ips.as_ref()).into_iter().flatten();
    listed.filter_map(|ip| ip.parse().ok())
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn warning(service: &Service, reason: &'static str, message: String) -> Action {
    Action::Event(Notice { about: reference(service), warning: true, reason, message })
}

/// What is to be done that one address of a Service has its IPAddress.
fn address(snapshot: &Snapshot, service: &Service, ip: IpAddr) -> Vec<Action> {
    let said = format!("[{}]: {ip}", family(ip));
    let Some(present) = snapshot.addresses.get(&Name::cluster(&ip.to_string())) else {
        let made = service.metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |at| at.0);
        if service.is_deleting() || snapshot.now.duration_since(made) < PATIENCE {
            return Vec::new();
        }
        let message = format!("Cluster IP {said} is not allocated; repairing");
        let event = warning(service, "ClusterIPNotAllocated", message);
        return vec![event, Action::Create(ip_address(service, ip).into())];
    };
    let again = || vec![delete(present.as_ref()), Action::Create(ip_address(service, ip).into())];
    let Some(owner) = parent(present) else {
        return wrong(service, &said).into_iter().chain(again()).collect();
    };
    if owner != service.object_name() {
        let other = snapshot.services.get(&owner);
        if !other.is_some_and(|other| cluster_ips(other).any(|held| held == ip)) {
            return wrong(service, &said).into_iter().chain(again()).collect();
        }
        let why = "was assigned to multiple services; please recreate service";
        let message = format!("Cluster IP [{}]:{ip} {why}", family(ip));
        return vec![warning(service, "ClusterIPAlreadyAllocated", message)];
    }
    let labels = (label(present.as_ref(), FAMILY), label(present.as_ref(), MANAGED_BY));
    if labels == (Some(family(ip)), Some(ALLOCATOR)) { Vec::new() } else { again() }
}

fn wrong(service: &Service, said: &str) -> Option<Action> {
    let message = format!(
        "the ClusterIP {said} for Service {}/{} has a wrong reference; repairing",
        service.namespace(),
        service.name()
    );
    Some(warning(service, "ClusterIPNotAllocated", message))
}

/// The Service that an address says it belongs to; `None` when it is nothing of a Service's.
#[must_use]
pub fn parent(address: &IPAddress) -> Option<Name> {
    let parent = &address.spec.parent_ref;
    let is_service =
        parent.resource == "services" && parent.group.as_deref().unwrap_or("").is_empty();
    is_service.then(|| Name::new(parent.namespace.as_deref().unwrap_or(""), &parent.name))
}

/// The address of a Service as an object.
fn ip_address(service: &Service, ip: IpAddr) -> IPAddress {
    let labels = [(FAMILY, family(ip)), (MANAGED_BY, ALLOCATOR)];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    IPAddress {
        metadata: ObjectMeta {
            name: Some(ip.to_string()),
            labels: Some(BTreeMap::from(labels)),
            ..ObjectMeta::default()
        },
        spec: IPAddressSpec {
            parent_ref: ParentReference {
                group: Some(String::new()),
                resource: "services".to_owned(),
                namespace: Some(service.namespace().to_owned()),
                name: service.name().to_owned(),
            },
        },
    }
}

/// Node ports out of the range, or held by a Service before.
fn node_ports(
    service: &Service,
    range: &RangeInclusive<u16>,
    seen: &mut BTreeSet<i32>,
) -> Vec<Action> {
    let spec = service.spec.as_ref();
    let listed = spec.and_then(|spec| spec.ports.as_ref()).into_iter().flatten();
    let mut held: BTreeSet<i32> = listed.filter_map(|port| port.node_port).collect();
    held.extend(spec.and_then(|spec| spec.health_check_node_port));
    held.remove(&0);
    let check = |port| {
        if !u16::try_from(port).is_ok_and(|port| range.contains(&port)) {
            let message = format!(
                "Port {port} is not within the port range {}-{}; please recreate service",
                range.start(),
                range.end()
            );
            return Some(warning(service, "PortOutOfRange", message));
        }
        let message =
            format!("Port {port} was assigned to multiple services; please recreate service");
        (!seen.insert(port)).then(|| warning(service, "PortAlreadyAllocated", message))
    };
    held.into_iter().filter_map(check).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::action::ObjectKind;
    use crate::world::World;

    fn world() -> World {
        let mut world = World::at(1000);
        let spec = json!({"cidrs": ["10.96.0.0/24", "fd96::/112"]});
        world.add::<ServiceCIDR>(json!({"metadata": {"name": "kubernetes"}, "spec": spec}));
        world
    }

    fn service(world: &mut World, name: &str, ips: &[&str], ports: &[(u16, u16)]) -> Name {
        let ports: Vec<Value> =
            ports.iter().map(|(port, node)| json!({"port": port, "nodePort": node})).collect();
        let name = world.add::<Service>(json!({
            "metadata": {"name": name, "namespace": "a"}, "spec": {"clusterIPs": ips, "ports": ports},
        }));
        let old = json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:00Z"}});
        world.edit(ObjectKind::Service, &name, &old);
        name
    }

    /// What was written, and the events.
    fn step(world: &mut World) -> (usize, Vec<String>) {
        let snapshot = Snapshot {
            services: world.all(),
            addresses: world.all(),
            ranges: world.all(),
            node_ports: 30000..=30009,
            now: world.time(),
        };
        let plan = plan(&snapshot);
        let told = plan.actions.iter().filter(|one| matches!(one, Action::Event(_))).count();
        let writes = plan.actions.len() - told;
        world.events.clear();
        world.apply(plan);
        (writes, world.events.clone())
    }

    fn said(events: &[String], words: &str) -> bool {
        events.iter().any(|event| event.contains(words))
    }

    #[test]
    fn a_missing_address_is_told_and_made() {
        let mut world = world();
        service(&mut world, "web", &["10.96.0.7", "fd96::7"], &[]);
        let (writes, events) = step(&mut world);
        assert_eq!(writes, 2);
        assert!(
            said(&events, "Cluster IP [IPv4]: 10.96.0.7 is not allocated; repairing"),
            "{events:?}"
        );
        assert!(said(&events, "Cluster IP [IPv6]: fd96::7 is not allocated; repairing"));
        let made = world.all::<IPAddress>();
        assert_eq!(made.values().filter_map(|one| parent(one)).next(), Some(Name::new("a", "web")));
        assert_eq!(step(&mut world), (0, Vec::new()));
        let young = json!({"metadata": {"creationTimestamp": "1970-01-01T00:16:39Z"}});
        world.remove(ObjectKind::IPAddress, &Name::cluster("10.96.0.7"));
        world.edit(ObjectKind::Service, &Name::new("a", "web"), &young);
        assert_eq!(step(&mut world), (0, Vec::new()), "its address is on the way");
    }

    #[test]
    fn an_address_of_somebody_else_is_taken_back() {
        let mut world = world();
        service(&mut world, "web", &["10.96.0.7"], &[]);
        step(&mut world);
        for parent in [
            json!({"group": "gateway.networking.k8s.io", "resource": "gateways", "name": "g"}),
            json!({"group": "", "resource": "services", "namespace": "a", "name": "gone"}),
        ] {
            let edit = json!({"spec": {"parentRef": parent}});
            world.edit(ObjectKind::IPAddress, &Name::cluster("10.96.0.7"), &edit);
            let (writes, events) = step(&mut world);
            assert_eq!(writes, 2);
            let words = "the ClusterIP [IPv4]: 10.96.0.7 for Service a/web has a wrong reference; repairing";
            assert!(said(&events, words), "{events:?}");
            assert_eq!(step(&mut world).0, 0);
        }
        let edit = json!({"metadata": {"labels": {MANAGED_BY: "me"}}});
        world.edit(ObjectKind::IPAddress, &Name::cluster("10.96.0.7"), &edit);
        assert_eq!((step(&mut world).0, step(&mut world).0), (2, 0), "labels are put back");
    }

    #[test]
    fn what_two_services_hold_and_what_no_range_has_is_told() {
        let mut world = world();
        service(&mut world, "one", &["10.96.0.7"], &[(80, 30001), (81, 30001)]);
        step(&mut world);
        service(&mut world, "two", &["10.96.0.7"], &[(80, 30001), (81, 40000)]);
        service(&mut world, "three", &["10.97.0.7"], &[]);
        let (writes, events) = step(&mut world);
        assert_eq!((writes, events.len()), (0, 4), "{events:?}");
        for words in [
            "Cluster IP [IPv4]:10.96.0.7 was assigned to multiple services; please recreate service",
            "Cluster IP [IPv4]: 10.97.0.7 is not within any configured Service CIDR; please recreate service",
            "Port 30001 was assigned to multiple services; please recreate service",
            "Port 40000 is not within the port range 30000-30009; please recreate service",
        ] {
            assert!(said(&events, words), "{words}: {events:?}");
        }
    }
}
