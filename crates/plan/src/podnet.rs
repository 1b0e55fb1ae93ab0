//! The pod network's decisions: which address a pod gets, and the routes between nodes.
//!
//! Every node has a pod CIDR of its own; packets between pods are routed, never translated (the "host-gw" way of
//! Flannel). Upstream contract: the Kubernetes network model.

pub mod egress;
pub mod hostports;
pub mod ruleset;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use api::Objects;
use api::core::Node;
use ipnet::{IpNet, Ipv4Net};

/// The next hop of every pod: a link-local address that only exists as a permanent neighbour at the pod's own link, so
/// that pods need no gateway address of their own CIDR.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The next free address of `cidr` after `last`, so that an address is not reused at once. The network's own address and
/// the broadcast address are never given. `None` when all are in use.
#[must_use]
pub fn allocate(
    cidr: Ipv4Net,
    used: &BTreeSet<Ipv4Addr>,
    last: Option<Ipv4Addr>,
) -> Option<Ipv4Addr> {
    let first = u32::from(cidr.network()).checked_add(1)?;
    let end = u32::from(cidr.broadcast());
    let start = last
        .filter(|last| cidr.contains(last))
        .map_or(first, |last| u32::from(last).saturating_add(1));
    let free = |bits: &u32| !used.contains(&Ipv4Addr::from(*bits));
    let wrapped = (start.max(first)..end).chain(first..start.clamp(first, end));
    wrapped.into_iter().find(free).map(Ipv4Addr::from)
}

/// How the names of the node's ends of pods' links begin.
pub const LINK_PREFIX: &str = "pod";

/// The name of the node's end of a pod's link: stable, and within the 15 characters that Linux allows.
#[must_use]
pub fn link_name(uid: &str) -> String {
    // FNV-1a: any well-spread hash that never changes will do.
    let hash = uid.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{LINK_PREFIX}{:011x}", hash & 0xfff_ffff_ffff)
}

/// Where the pods of the other nodes are: pod CIDR to the node's address.
#[must_use]
pub fn routes(nodes: &Objects<Node>, me: &str) -> BTreeMap<IpNet, IpAddr> {
    let others = nodes.iter().filter(|(name, _)| &*name.name != me);
    others.flat_map(|(_, node)| node_routes(node)).collect()
}

fn node_routes(node: &Node) -> Vec<(IpNet, IpAddr)> {
    let addresses = internal_addresses(node);
    let same_family = |cidr: &IpNet| {
        addresses.iter().find(|address| address.is_ipv4() == cidr.addr().is_ipv4()).copied()
    };
    pod_cidrs(node).into_iter().filter_map(|cidr| Some((cidr, same_family(&cidr)?))).collect()
}

/// The pod CIDRs that a node was given.
#[must_use]
pub fn pod_cidrs(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let listed = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    let parsed: BTreeSet<IpNet> = listed.filter_map(|text| text.parse().ok()).collect();
    parsed.into_iter().collect()
}

/// The `InternalIP` addresses of a node, in the order of its status.
#[must_use]
pub fn internal_addresses(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let internal = addresses.filter(|address| address.type_ == "InternalIP");
    internal.filter_map(|address| address.address.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn cidr(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn node(name: &str, pod_cidr: &str, address: &str) -> (api::Name, Arc<Node>) {
        let node = serde_json::json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr]},
            "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}]},
        });
        (api::Name::cluster(name), Arc::new(serde_json::from_value(node).unwrap()))
    }

    #[test]
    fn addresses_rotate_and_end() {
        let net = cidr("10.244.1.0/30");
        let (one, two) = ("10.244.1.1".parse().unwrap(), "10.244.1.2".parse().unwrap());
        assert_eq!(allocate(net, &BTreeSet::new(), None), Some(one));
        assert_eq!(
            allocate(net, &BTreeSet::new(), Some(one)),
            Some(two),
            "a freed address waits its turn"
        );
        assert_eq!(allocate(net, &BTreeSet::from([two]), Some(one)), Some(one));
        assert_eq!(allocate(net, &BTreeSet::from([one, two]), Some(two)), None);
        assert_eq!(allocate(net, &BTreeSet::new(), Some("10.9.9.9".parse().unwrap())), Some(one));
    }

    #[test]
    fn other_nodes_are_reached_through_their_addresses() {
        let nodes = Objects::from_iter([
            node("n1", "10.244.0.0/24", "198.18.0.11"),
            node("n2", "10.244.1.0/24", "198.18.0.12"),
        ]);
        let routes = routes(&nodes, "n1");
        assert_eq!(routes.len(), 1);
        assert_eq!(
            routes[&"10.244.1.0/24".parse::<IpNet>().unwrap()],
            "198.18.0.12".parse::<IpAddr>().unwrap()
        );
    }

    proptest::proptest! {
        #[test]
        fn an_address_is_never_given_twice(prefix in 20_u8..=30, takes in 1_usize..200) {
            let net = Ipv4Net::new("10.244.16.0".parse().unwrap(), prefix).unwrap();
            let (mut used, mut last) = (BTreeSet::new(), None);
            for _ in 0..takes {
                let Some(address) = allocate(net, &used, last) else {
                    proptest::prop_assert_eq!(used.len(), net.hosts().count());
                    break;
                };
                proptest::prop_assert!(net.contains(&address) && address != net.network() && address != net.broadcast());
                proptest::prop_assert!(used.insert(address));
                last = Some(address);
            }
        }

        #[test]
        fn link_names_fit_and_do_not_depend_on_order(uid in "[0-9a-f]{8}-[0-9a-f]{4}") {
            proptest::prop_assert_eq!(link_name(&uid).len(), 14);
            proptest::prop_assert_eq!(link_name(&uid), link_name(&uid));
        }
    }
}
