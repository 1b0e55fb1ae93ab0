//! The lab's network: a bridge in a namespace of its own, and on it the server, the nodes and an outside client, each in
//! its own namespace, and one link to this machine.
//!
//! ```text
//!  this machine          rhumb-NAME (the wire)
//!   rh-NAME .1 ────────────┬── br0
//!                          ├── rhumb-NAME-server  eth0 .2
//!                          ├── rhumb-NAME-client  eth0 .3     outside the cluster
//!                          ├── rhumb-NAME-n1      eth0 .11
//!                          └── …
//! ```
//!
//! No namespace has a default route, so nothing in the lab reaches the machine's real network, unless `--egress` opens it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use ipnet::{IpNet, Ipv4Net};
use kernel::link::{Netlink, Route};
use kernel::netns;

use crate::cluster::{Cluster, LabNode};
use crate::egress;

const BRIDGE: &str = "br0";
const LINK: &str = "eth0";

/// The namespace of a part of the lab: `server`, `client` or a node.
pub(crate) fn netns_of(cluster: &Cluster, part: &str) -> PathBuf {
    netns::named(&format!("rhumb-{}-{part}", cluster.name))
}

fn wire(cluster: &Cluster) -> PathBuf {
    netns::named(&format!("rhumb-{}", cluster.name))
}

/// The one link on this machine: its name has at most 15 characters.
pub(crate) fn host_link(name: &str) -> String {
    let plain = format!("rh-{name}");
    if plain.len() <= 15 { plain } else { format!("rh{}", &plan::podnet::link_name(name)[3..]) }
}

/// Makes what is missing of the lab's network.
pub(crate) async fn build(cluster: &Cluster) -> Result<()> {
    let wire = wire(cluster);
    netns::create(&wire)?;
    let bridge = Netlink::open_in(&wire)?;
    bridge.set_up("lo", true).await?;
    if bridge.link(BRIDGE).await.is_err() {
        bridge.add_bridge(BRIDGE).await?;
    }
    join(cluster, &bridge, "server", cluster.server_address()).await?;
    join(cluster, &bridge, "client", cluster.client_address()).await?;
    for node in &cluster.nodes {
        build_node(cluster, node).await?;
        link_node(cluster, node).await?;
    }
    if let Some(first) = cluster.nodes.first() {
        // The API server proxies to pods and Services; any node forwards to all.
        let inside = Netlink::open_in(&netns_of(cluster, "server"))?;
        inside
            .replace_route(&Route::via(cluster.pod_cidr.into(), IpAddr::V4(first.address)))
            .await?;
    }
    link_host(cluster, &bridge).await?;
    egress::open(cluster)
}

/// Cuts or mends a node's link. Only who was told to do it does: the supervisor may have read the cluster's file before.
pub(crate) async fn link_node(cluster: &Cluster, node: &LabNode) -> Result<()> {
    let bridge = Netlink::open_in(&wire(cluster))?;
    Ok(bridge.set_up(&port(&node.name), !node.cut).await?)
}

/// Makes what is missing of one node's network. A link that is there stays as it is.
pub(crate) async fn build_node(cluster: &Cluster, node: &LabNode) -> Result<()> {
    let bridge = Netlink::open_in(&wire(cluster))?;
    if join(cluster, &bridge, &node.name, node.address).await? {
        link_node(cluster, node).await?;
    }
    if cluster.egress.is_some() {
        let inside = Netlink::open_in(&netns_of(cluster, &node.name))?;
        let out = IpNet::V4(Ipv4Net::default());
        inside.replace_route(&Route::via(out, IpAddr::V4(cluster.host_address()))).await?;
    }
    Ok(())
}

/// Joins a part to the bridge with an address; answers whether its link is new.
async fn join(cluster: &Cluster, bridge: &Netlink, part: &str, address: Ipv4Addr) -> Result<bool> {
    let path = netns_of(cluster, part);
    netns::create(&path)?;
    let port = port(part);
    let inside = Netlink::open_in(&path)?;
    let is_new = bridge.link(&port).await.is_err();
    if is_new {
        bridge.add_veth(&port, LINK, &path, None).await?;
        bridge.set_bridge(&port, BRIDGE).await?;
    }
    inside.set_up("lo", true).await?;
    inside.set_up(LINK, true).await?;
    inside.add_address(LINK, within(cluster.node_cidr, address)?).await?;
    Ok(is_new)
}

/// The one link between this machine and the lab.
async fn link_host(cluster: &Cluster, bridge: &Netlink) -> Result<()> {
    let name = host_link(&cluster.name);
    let host = Netlink::open()?;
    if host.link(&name).await.is_err() {
        host.add_veth(&name, "host", &wire(cluster), None).await?;
    }
    bridge.set_bridge("host", BRIDGE).await?;
    bridge.set_up("host", true).await?;
    host.add_address(&name, within(cluster.node_cidr, cluster.host_address())?).await?;
    Ok(())
}

fn within(net: Ipv4Net, address: Ipv4Addr) -> Result<IpNet> {
    Ok(IpNet::V4(Ipv4Net::new(address, net.prefix_len())?))
}

/// The bridge's end of a part's link.
fn port(part: &str) -> String {
    plan::podnet::link_name(part)
}

/// Removes one node's network.
pub(crate) fn remove_node(cluster: &Cluster, node: &str) -> Result<()> {
    Ok(netns::delete(&netns_of(cluster, node))?)
}

/// Removes every namespace and link of the cluster `name`, also those that its file does not know any more.
pub(crate) async fn remove(name: &str, nodes: &[String]) -> Result<()> {
    let host = Netlink::open()?;
    host.delete(&host_link(name)).await.context("the lab's link to this machine stays")?;
    let parts = ["server", "client"].into_iter().chain(nodes.iter().map(String::as_str));
    for part in parts {
        netns::delete(&netns::named(&format!("rhumb-{name}-{part}")))?;
    }
    netns::delete(&netns::named(&format!("rhumb-{name}")))?;
    Ok(())
}
