//! Three nodes with zones, pods on them, and a client outside, each a network namespace; both families.
//!
//! Nodes and client are on one link. Pods hang on links of their own, routed as the pod network does it: a gateway that
//! is only a permanent neighbour, a route to each pod, routes between nodes, and the rules that masquerade pods outside.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use api::core::Node;
use ipnet::IpNet;
use kernel::link::{Netlink, Route};
use kernel::netns;
use kernel::nftables::Nftables;
use net::nft::{Family, Op, Transaction};
use plan::podnet::{GATEWAY, ruleset};
use plan::proxy::FAMILIES;
use serde_json::json;
use tokio::runtime::Runtime;

use super::mode::Place;

/// Nodes: name, zone, number.
pub(crate) const NODES: [(&str, &str, u8); 3] = [("n1", "z1", 1), ("n2", "z1", 2), ("n3", "z2", 3)];
/// Pods: name, the number of their node, their own number.
pub(crate) const PODS: [(&str, u8, u8); 5] =
    [("a", 1, 2), ("b", 1, 3), ("c", 2, 2), ("d", 2, 3), ("e", 3, 2)];
/// The client's numbers on the common link: it has two addresses.
pub(crate) const CLIENTS: [u8; 2] = [9, 200];
/// A second address of each node: its number and this.
const SECOND: u8 = 100;

pub(crate) fn pod_cidrs() -> Vec<IpNet> {
    ["10.244.0.0/16", "fd44::/32"].map(|text| text.parse().unwrap()).into()
}

pub(crate) fn service_cidrs() -> Vec<IpNet> {
    ["10.96.0.0/16", "fd96::/108"].map(|text| text.parse().unwrap()).into()
}

/// An address on the common link.
pub(crate) fn on_link(family: Family, number: u8) -> IpAddr {
    match family {
        Family::Ip => IpAddr::from([198, 18, 0, number]),
        Family::Ip6 => format!("fd18::{number}").parse().unwrap(),
    }
}

/// A node's primary address.
pub(crate) fn node_ip(family: Family, node: &str) -> IpAddr {
    let (_, _, number) = NODES.into_iter().find(|(name, ..)| *name == node).unwrap();
    on_link(family, 10 + number)
}

/// A node's other address.
pub(crate) fn node_second(family: Family, node: &str) -> IpAddr {
    let (_, _, number) = NODES.into_iter().find(|(name, ..)| *name == node).unwrap();
    on_link(family, SECOND + number)
}

/// A pod's address.
pub(crate) fn pod_ip(family: Family, pod: &str) -> IpAddr {
    let (_, node, number) = PODS.into_iter().find(|(name, ..)| *name == pod).unwrap();
    match family {
        Family::Ip => IpAddr::from([10, 244, node, number]),
        Family::Ip6 => format!("fd44:0:{node}::{number}").parse().unwrap(),
    }
}

/// The node that a pod is on.
pub(crate) fn node_of(pod: &str) -> &'static str {
    let (_, node, _) = PODS.into_iter().find(|(name, ..)| *name == pod).unwrap();
    NODES[usize::from(node) - 1].0
}

fn pods_of(family: Family, node: u8) -> IpNet {
    match family {
        Family::Ip => format!("10.244.{node}.0/24").parse().unwrap(),
        Family::Ip6 => format!("fd44:0:{node}::/64").parse().unwrap(),
    }
}

fn gateway(family: Family) -> IpAddr {
    match family {
        Family::Ip => GATEWAY.into(),
        Family::Ip6 => "fe80::1".parse().unwrap(),
    }
}

fn everywhere(family: Family) -> IpNet {
    if family == Family::Ip { "0.0.0.0/0" } else { "::/0" }.parse().unwrap()
}

fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// A node's object.
pub(crate) fn node_object(node: &str) -> Node {
    let (name, zone, _) = NODES.into_iter().find(|(name, ..)| *name == node).unwrap();
    let addresses = FAMILIES.map(
        |family| json!({ "type": "InternalIP", "address": node_ip(family, name).to_string() }),
    );
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "topology.kubernetes.io/zone": zone } },
        "status": { "addresses": addresses },
    }))
    .unwrap()
}

/// A new IPv6 address is no route's source for a moment, though nobody looks for duplicates.
async fn replace_route(node: &Netlink, route: &Route) {
    for _ in 0..200 {
        if node.replace_route(route).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.replace_route(route).await.unwrap();
}

/// Where control groups are.
fn groups() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            (fields[2] == "cgroup2").then(|| PathBuf::from(fields[1]))
        });
        root.expect("cgroup2 is mounted")
    })
}

/// The control group of the node that a namespace is, or is on; only some data planes make it.
pub(crate) fn group(netns: &Path) -> Option<PathBuf> {
    let name = netns.file_name()?.to_str()?;
    let (prefix, place) = name.rsplit_once('-')?;
    let node = if PODS.iter().any(|(pod, ..)| *pod == place) { node_of(place) } else { place };
    let is_node = NODES.iter().any(|(name, ..)| *name == node);
    is_node.then(|| groups().join(format!("{prefix}-{node}")))
}

/// Where the eBPF programs of the node in a namespace are pinned.
pub(crate) fn pins(netns: &Path) -> PathBuf {
    let name = netns.file_name().expect("a namespace has a name").to_string_lossy();
    std::env::temp_dir().join(format!("{name}-pins"))
}

static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// The namespaces. Dropped, they are gone.
pub(crate) struct Network {
    prefix: String,
    runtimes: Vec<Runtime>,
}

impl Network {
    pub(crate) fn new() -> Self {
        testkit::leftovers::sweep();
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let mut network = Self {
            prefix: format!("rhumb-conf-{}-{number}-", std::process::id()),
            runtimes: Vec::new(),
        };
        for name in names() {
            let path = network.path(name);
            netns::create(&path).unwrap();
            netns::within(&path, || sysctls(name)).unwrap();
        }
        for (name, ..) in NODES {
            let path = network.path(name);
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .on_thread_start(move || netns::enter(&path).unwrap())
                .build();
            network.runtimes.push(runtime.unwrap());
        }
        network.runtimes[0].block_on(network.wire());
        for (name, ..) in NODES {
            network.podnet_rules(name);
        }
        network
    }

    /// The namespace of a node, a pod or the client.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        netns::named(&format!("{}{name}", self.prefix))
    }

    /// A node, for a data plane.
    pub(crate) fn place(&self, node: &str) -> Place {
        let at = NODES.iter().position(|(name, ..)| *name == node).unwrap();
        let pods = PODS.into_iter().map(|(pod, ..)| pod).filter(|pod| node_of(pod) == node);
        Place {
            netns: self.path(node),
            runtime: self.runtimes[at].handle().clone(),
            group: group(&self.path(node)).expect("a node has a group"),
            pins: pins(&self.path(node)),
            pods: pods
                .map(|pod| (self.path(pod), FAMILIES.map(|family| pod_ip(family, pod))))
                .collect(),
        }
    }

    async fn wire(&self) {
        let lan = Netlink::open_in(&self.path("lan")).unwrap();
        lan.add_bridge("lan").await.unwrap();
        lan.set_up("lan", true).await.unwrap();
        for name in NODES.map(|(name, ..)| name).into_iter().chain(["client"]) {
            lan.add_veth(name, "eth0", &self.path(name), None).await.unwrap();
            lan.set_bridge(name, "lan").await.unwrap();
            let there = Netlink::open_in(&self.path(name)).unwrap();
            there.set_up("lo", true).await.unwrap();
            there.set_up("eth0", true).await.unwrap();
            let numbers: Vec<u8> = match NODES.into_iter().find(|(node, ..)| *node == name) {
                Some((_, _, number)) => vec![10 + number, SECOND + number],
                None => CLIENTS.into(),
            };
            for (family, number) in
                FAMILIES.into_iter().flat_map(|family| numbers.iter().map(move |n| (family, *n)))
            {
                let len = if family == Family::Ip { 24 } else { 64 };
                let address = IpNet::new(on_link(family, number), len).unwrap();
                there.add_address("eth0", address).await.unwrap();
            }
        }
        for (name, _, number) in NODES {
            self.wire_node(name, number).await;
        }
        let client = Netlink::open_in(&self.path("client")).unwrap();
        for family in FAMILIES {
            let first = Route::via(everywhere(family), node_ip(family, "n1"));
            client.replace_route(&first).await.unwrap();
        }
    }

    async fn wire_node(&self, name: &str, number: u8) {
        let node = Netlink::open_in(&self.path(name)).unwrap();
        let eth0 = node.link("eth0").await.unwrap().index;
        for family in FAMILIES {
            let own = Some(node_ip(family, name));
            for (_, _, other) in NODES.into_iter().filter(|(.., other)| *other != number) {
                let via = Route::via(pods_of(family, other), on_link(family, 10 + other));
                node.replace_route(&via).await.unwrap();
            }
            node.replace_route(&Route::unreachable(pods_of(family, number))).await.unwrap();
            let outside = Route {
                source: own,
                link: Some(eth0),
                ..Route::via(everywhere(family), on_link(family, CLIENTS[0]))
            };
            replace_route(&node, &outside).await;
        }
        for (pod, ..) in PODS.into_iter().filter(|(_, on, _)| *on == number) {
            let link = format!("pod-{pod}");
            node.add_veth(&link, "eth0", &self.path(pod), None).await.unwrap();
            let inside = Netlink::open_in(&self.path(pod)).unwrap();
            inside.set_up("lo", true).await.unwrap();
            inside.set_up("eth0", true).await.unwrap();
            let (near, far) = (node.link(&link).await.unwrap(), inside.link("eth0").await.unwrap());
            for family in FAMILIES {
                let (address, gateway) = (pod_ip(family, pod), gateway(family));
                inside.add_address("eth0", host(address)).await.unwrap();
                inside.replace_route(&Route::through(host(gateway), far.index)).await.unwrap();
                inside.set_neighbour(far.index, gateway, &near.mac).await.unwrap();
                let default =
                    Route { link: Some(far.index), ..Route::via(everywhere(family), gateway) };
                inside.replace_route(&default).await.unwrap();
                node.set_neighbour(near.index, address, &far.mac).await.unwrap();
                let source = Some(node_ip(family, name));
                let route = Route { source, ..Route::through(host(address), near.index) };
                node.replace_route(&route).await.unwrap();
            }
        }
    }

    /// What the pod network keeps on every node.
    pub(crate) fn podnet_rules(&self, node: &str) {
        let nodes: BTreeSet<IpAddr> = FAMILIES
            .into_iter()
            .flat_map(|family| NODES.map(|(name, ..)| node_ip(family, name)))
            .collect();
        let mut nft = netns::within(&self.path(node), || Nftables::open().unwrap()).unwrap();
        for family in FAMILIES {
            let table = ruleset::table(family, &pod_cidrs(), &nodes);
            let mut ops = vec![Op::AddTable, Op::DeleteTable];
            ops.extend(table.creation());
            let transaction = Transaction { family, table: Arc::clone(&table.name), ops };
            nft.commit(&transaction).unwrap();
        }
    }
}

fn names() -> impl Iterator<Item = &'static str> {
    let nodes = NODES.into_iter().map(|(name, ..)| name);
    nodes.chain(PODS.into_iter().map(|(name, ..)| name)).chain(["client", "lan"])
}

fn sysctls(name: &str) {
    // No waiting for duplicate addresses: there are none.
    for conf in ["all", "default"] {
        kernel::sysctl::set(&format!("net/ipv6/conf/{conf}/accept_dad"), "0").unwrap();
        kernel::sysctl::set(&format!("net/ipv6/conf/{conf}/accept_ra"), "0").unwrap();
    }
    if NODES.into_iter().any(|(node, ..)| node == name) {
        for (name, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
            // Refusals are counted here: none may be spared.
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv6/icmp/ratelimit", "0"),
        ] {
            kernel::sysctl::set(name, value).unwrap();
        }
        // Older kernels have these once for all namespaces, and more than one test may send.
        for name in ["net/ipv4/icmp_msgs_per_sec", "net/ipv4/icmp_msgs_burst"] {
            let _ = kernel::sysctl::set(name, "100000");
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for runtime in self.runtimes.drain(..) {
            runtime.shutdown_background();
        }
        for (node, ..) in NODES {
            let path = self.path(node);
            kernel::bpf::remove(&pins(&path)).unwrap();
            let group = group(&path).expect("a node has a group");
            // A thread that has ended leaves its group a moment later.
            for _ in 0..100 {
                match std::fs::remove_dir(&group) {
                    Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    _ => break,
                }
            }
        }
        for name in names() {
            netns::delete(&self.path(name)).unwrap();
        }
    }
}
