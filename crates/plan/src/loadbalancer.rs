//! LoadBalancer addresses: which Service gets which, and which node answers for each.
//!
//! Upstream counterpart: MetalLB's allocator and layer 2 speaker. No state beside the objects: an address that a Service
//! holds is the one in its status. Who announces is a hash that every node computes alike, without an election.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use api::core::{Node, Service};
use api::discovery::EndpointSlice;
use api::{Kind, Name, Objects};

/// The class that a Service may name to get an address from here; no class means the same.
pub const CLASS: &str = "rhumb.dev/l2";

/// An inclusive range of addresses to give away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The first address.
    pub first: Ipv4Addr,
    /// The last address.
    pub last: Ipv4Addr,
}

impl Pool {
    /// Whether the pool has the address.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }

    fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        (u32::from(self.first)..=u32::from(self.last)).map(Ipv4Addr::from)
    }
}

/// What a Service of type LoadBalancer gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// This address.
    Address(Ipv4Addr),
    /// None, and why; said in an Event.
    Refused(String),
}

/// Whether the Service wants an address from here.
#[must_use]
pub fn is_ours(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let class = spec.load_balancer_class.as_deref();
    spec.type_.as_deref() == Some("LoadBalancer")
        && class.is_none_or(|class| class == CLASS)
        && !service.is_deleting()
}

/// The addresses in a Service's status.
#[must_use]
pub fn held(service: &Service) -> Vec<IpAddr> {
    let ingress = service
        .status
        .iter()
        .flat_map(|status| &status.load_balancer)
        .flat_map(|status| &status.ingress);
    ingress.flatten().filter_map(|point| point.ip.as_ref()?.parse().ok()).collect()
}

fn held_v4(service: &Service, pool: &Pool) -> Option<Ipv4Addr> {
    held(service).into_iter().find_map(|address| match address {
        IpAddr::V4(v4) if pool.contains(v4) => Some(v4),
        _ => None,
    })
}

/// The address that the Service `name` should have, given what all others hold.
///
/// A held address is kept while it is the Service's alone (of two holders, the older Service keeps it). A requested one
/// (`spec.loadBalancerIP`) is given or refused with the reason.
#[must_use]
pub fn assign(services: &Objects<Service>, name: &Name, pool: &Pool) -> Option<Assignment> {
    let service = services.get(name).filter(|service| is_ours(service))?;
    let holders = services.iter().filter(|(other, object)| *other != name && is_ours(object));
    let taken: BTreeMap<Ipv4Addr, &Service> =
        holders.filter_map(|(_, other)| Some((held_v4(other, pool)?, &**other))).collect();
    let requested = service
        .spec
        .as_ref()
        .and_then(|spec| spec.load_balancer_ip.as_deref())
        .filter(|ip| !ip.is_empty());
    if let Some(requested) = requested {
        return Some(request(service, requested, pool, &taken));
    }
    if let Some(address) = held_v4(service, pool)
        && taken.get(&address).is_none_or(|other| age(service) < age(other))
    {
        return Some(Assignment::Address(address));
    }
    let free = pool.addresses().find(|address| !taken.contains_key(address));
    Some(free.map_or_else(
        || Assignment::Refused(failed(service, "no available IPs")),
        Assignment::Address,
    ))
}

fn request(
    service: &Service,
    requested: &str,
    pool: &Pool,
    taken: &BTreeMap<Ipv4Addr, &Service>,
) -> Assignment {
    let Ok(address) = requested.parse::<Ipv4Addr>() else {
        return Assignment::Refused(failed(
            service,
            &format!("invalid spec.loadBalancerIP {requested:?}"),
        ));
    };
    if !pool.contains(address) {
        return Assignment::Refused(failed(
            service,
            &format!("[{requested:?}] is not allowed in config"),
        ));
    }
    match taken.get(&address) {
        Some(other) if age(other) < age(service) => {
            let why = format!(
                "can't change sharing key for \"{}\", address also in use by {}",
                service.object_name(),
                other.object_name()
            );
            Assignment::Refused(failed(service, &why))
        }
        _ => Assignment::Address(address),
    }
}

fn failed(service: &Service, why: &str) -> String {
    format!("Failed to allocate IP for \"{}\": {why}", service.object_name())
}

/// Orders Services by age; the uid decides between equals.
fn age(service: &Service) -> (Option<&api::meta::Time>, &str) {
    (service.meta().creation_timestamp.as_ref(), service.uid())
}

/// What decides who announces.
#[derive(Clone, Debug)]
pub struct View {
    /// All Services.
    pub services: Objects<Service>,
    /// All EndpointSlices: for `externalTrafficPolicy: Local`.
    pub slices: Objects<EndpointSlice>,
    /// All nodes.
    pub nodes: Objects<Node>,
    /// Those that have fallen silent.
    pub silent: Arc<BTreeSet<String>>,
}

/// The addresses that the node `me` answers for, each by exactly one node.
#[must_use]
pub fn announced_by(view: &View, me: &str) -> BTreeSet<IpAddr> {
    let ours = view.services.values().filter(|service| is_ours(service));
    let pairs =
        ours.flat_map(|service| held(service).into_iter().map(move |address| (service, address)));
    let mine = pairs
        .filter(|(service, address)| announcer(view, service, *address).as_deref() == Some(me));
    mine.map(|(_, address)| address).collect()
}

/// The node that answers for an address of a Service: rendezvous hashing over the nodes that may, and over silent ones only
/// when there are no others.
#[must_use]
pub fn announcer(view: &View, service: &Service, address: IpAddr) -> Option<String> {
    let local = service.spec.as_ref().and_then(|spec| spec.external_traffic_policy.as_deref())
        == Some("Local");
    let with_endpoint = if local { local_nodes(view, service) } else { BTreeSet::new() };
    let able = view.nodes.values().filter(|node| is_ready(node) && !is_excluded(node));
    let able = able.filter(|node| !local || with_endpoint.contains(node.name()));
    let choice = |node: &str| (!view.silent.contains(node), weight(node, address), node.to_owned());
    able.max_by_key(|node| choice(node.name())).map(|node| node.name().to_owned())
}

fn local_nodes<'a>(view: &'a View, service: &Service) -> BTreeSet<&'a str> {
    let of_service = |slice: &&Arc<EndpointSlice>| {
        let label = slice
            .meta()
            .labels
            .as_ref()
            .and_then(|labels| labels.get("kubernetes.io/service-name"));
        slice.namespace() == service.namespace()
            && label.map(String::as_str) == Some(service.name())
    };
    let slices = view.slices.values().filter(of_service);
    let endpoints = slices.flat_map(|slice| slice.endpoints.iter().flatten());
    let usable = endpoints.filter(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|conditions| conditions.ready) != Some(false);
        ready || conditions.and_then(|conditions| conditions.serving) == Some(true)
    });
    usable.filter_map(|endpoint| endpoint.node_name.as_deref()).collect()
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions
        .filter(|condition| condition.type_ == "Ready")
        .any(|condition| condition.status == "True")
}

/// Upstream's label that keeps a node out of external load balancers (KEP-1143).
fn is_excluded(node: &Node) -> bool {
    let labels = node.meta().labels.as_ref();
    labels.is_some_and(|labels| {
        labels.contains_key("node.kubernetes.io/exclude-from-external-load-balancers")
    })
}

/// FNV-1a over node and address: spread enough, and the same on every node forever.
fn weight(node: &str, address: IpAddr) -> u64 {
    let bytes = node.bytes().chain([b'/']).chain(address.to_string().into_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const POOL: Pool =
        Pool { first: Ipv4Addr::new(198, 18, 0, 200), last: Ipv4Addr::new(198, 18, 0, 201) };

    fn service(name: &str, spec: &Value, ip: Option<&str>) -> (Name, Arc<Service>) {
        let mut spec = spec.clone();
        spec["type"] = "LoadBalancer".into();
        let ingress: Vec<Value> = ip.iter().map(|ip| json!({"ip": ip})).collect();
        let service = json!({
            "metadata": {"namespace": "default", "name": name, "uid": name},
            "spec": spec, "status": {"loadBalancer": {"ingress": ingress}},
        });
        (Name::new("default", name), Arc::new(serde_json::from_value(service).unwrap()))
    }

    fn node(name: &str, ready: &str) -> (Name, Arc<Node>) {
        let node = json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        (Name::cluster(name), Arc::new(serde_json::from_value(node).unwrap()))
    }

    fn address(last: u8) -> Assignment {
        Assignment::Address(Ipv4Addr::new(198, 18, 0, last))
    }

    #[test]
    fn a_held_address_is_kept_and_a_free_one_given() {
        let services = Objects::from_iter([
            service("a", &json!({}), Some("198.18.0.201")),
            service("b", &json!({}), None),
        ]);
        assert_eq!(assign(&services, &Name::new("default", "a"), &POOL), Some(address(201)));
        assert_eq!(assign(&services, &Name::new("default", "b"), &POOL), Some(address(200)));
    }

    #[test]
    fn an_exhausted_pool_and_a_foreign_request_are_refused_in_words() {
        let services = Objects::from_iter([
            service("a", &json!({}), Some("198.18.0.201")),
            service("b", &json!({}), Some("198.18.0.200")),
            service("c", &json!({}), None),
            service("d", &json!({"loadBalancerIP": "10.1.1.1"}), None),
        ]);
        let refused = |text: &str| Some(Assignment::Refused(text.to_owned()));
        assert_eq!(
            assign(&services, &Name::new("default", "c"), &POOL),
            refused("Failed to allocate IP for \"default/c\": no available IPs")
        );
        assert_eq!(
            assign(&services, &Name::new("default", "d"), &POOL),
            refused(
                "Failed to allocate IP for \"default/d\": [\"10.1.1.1\"] is not allowed in config"
            )
        );
    }

    #[test]
    fn another_class_is_left_alone() {
        let services = Objects::from_iter([service(
            "a",
            &json!({"loadBalancerClass": "example.com/x"}),
            None,
        )]);
        assert_eq!(assign(&services, &Name::new("default", "a"), &POOL), None);
    }

    #[test]
    fn exactly_one_ready_node_announces() {
        let services = Objects::from_iter([
            service("a", &json!({}), Some("198.18.0.200")),
            service("b", &json!({}), Some("198.18.0.201")),
        ]);
        let nodes =
            Objects::from_iter([node("n1", "True"), node("n2", "True"), node("n3", "False")]);
        let silent = Arc::default();
        let mut view = View { services, slices: Objects::new(), nodes, silent };
        let (one, two) = (announced_by(&view, "n1"), announced_by(&view, "n2"));
        assert!(one.is_disjoint(&two));
        assert_eq!(one.len() + two.len(), 2);
        assert!(announced_by(&view, "n3").is_empty());
        // The other one takes over before the API knows.
        view.silent = Arc::new(["n1".to_owned()].into());
        assert!(announced_by(&view, "n1").is_empty());
        assert_eq!(announced_by(&view, "n2").len(), 2);
        view.silent = Arc::new(["n1".to_owned(), "n2".to_owned()].into());
        assert_eq!(announced_by(&view, "n1"), one, "better a chance than none");
    }

    #[test]
    fn local_policy_announces_only_where_an_endpoint_is() {
        let services = Objects::from_iter([service(
            "a",
            &json!({"externalTrafficPolicy": "Local"}),
            Some("198.18.0.200"),
        )]);
        let nodes = Objects::from_iter([node("n1", "True"), node("n2", "True")]);
        let slice = json!({
            "metadata": {"namespace": "default", "name": "a-1", "labels": {"kubernetes.io/service-name": "a"}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["10.244.1.2"], "nodeName": "n2"}],
        });
        let slices = Objects::from_iter([(
            Name::new("default", "a-1"),
            Arc::new(serde_json::from_value(slice).unwrap()),
        )]);
        let silent = Arc::default();
        let view = View { services, slices, nodes, silent };
        assert!(announced_by(&view, "n1").is_empty());
        assert_eq!(announced_by(&view, "n2").len(), 1);
    }
}
