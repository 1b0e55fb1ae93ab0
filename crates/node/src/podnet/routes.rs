//! The routes to the other nodes' pods, and the news of this node's own pod CIDR.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::Objects;
use api::core::Node;
use api::networking::ServiceCIDR;
use client::{ApplyError, Client, Inputs, ListParams, Next, Reconcile, Reflector};
use ipnet::{IpNet, Ipv4Net};
use kernel::link::{Netlink, Route};
use kernel::nftables::Nftables;
use kernel::sysctl;
use net::nft::{Family, Op, Table, Transaction};
use plan::podnet::ruleset;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::PodNetError;

/// What the pod network of a node is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node's name.
    pub node: String,
    /// Addresses of all pods of the cluster.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses of Services that the agent was told of; those of ServiceCIDRs come with them.
    pub service_cidrs: Vec<IpNet>,
    /// This node's address.
    pub node_ip: IpAddr,
    /// The link that the other nodes are at.
    pub link: String,
}

/// What the node's routing table should hold.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    own: Option<Ipv4Net>,
    routes: Vec<Route>,
    table: Table,
}

/// What the routes are planned from.
struct Snapshot {
    nodes: Objects<Node>,
    ranges: Objects<ServiceCIDR>,
}

struct Routes {
    node: String,
    netlink: Netlink,
    nft: Nftables,
    /// The table that the kernel has; `None` when that is not known.
    committed: Option<Table>,
    pods: Vec<IpNet>,
    /// Addresses of Services: a packet of the node's own needs a route before it is translated.
    services: Vec<IpNet>,
    node_ip: IpAddr,
    /// The index of the link that the other nodes are at.
    link: u32,
    cidr: watch::Sender<Option<Ipv4Net>>,
}

impl Reconcile for Routes {
    const NAME: &'static str = "podnet";
    type Key = ();
    type Snapshot = Snapshot;
    type Plan = Plan;

    fn plan(&self, snapshot: &Snapshot, (): &()) -> Plan {
        let nodes = &snapshot.nodes;
        let me = nodes.get(&api::Name::cluster(&self.node));
        let own = me.and_then(|node| {
            plan::podnet::pod_cidrs(node).into_iter().find_map(|cidr| match cidr {
                IpNet::V4(cidr) => Some(cidr),
                IpNet::V6(_) => None,
            })
        });
        let others = plan::podnet::routes(nodes, &self.node).into_iter();
        // Addresses of this node that no pod has must not travel to the default route.
        let nobody = own.map(|cidr| Route::unreachable(IpNet::V4(cidr)));
        let addresses =
            nodes.values().flat_map(|node| plan::podnet::internal_addresses(node)).collect();
        let table = ruleset::table(Family::Ip, &self.pods, &addresses);
        let routes = others.map(|(to, via)| Route::via(to, via)).chain(nobody);
        Plan { own, routes: routes.chain(self.to_services(&snapshot.ranges)).collect(), table }
    }

    async fn apply(&mut self, (): &(), plan: Plan) -> Result<Next, ApplyError> {
        let sink = |error| {
            ApplyError::sink("the routes between nodes were not set", PodNetError::Link(error))
        };
        let present = self.netlink.routes().await.map_err(sink)?;
        // Routes to single pods belong to the pods, the default route to the machine or its lab.
        let shared =
            |route: &&Route| (1..route.to.max_prefix_len()).contains(&route.to.prefix_len());
        for old in present
            .iter()
            .filter(shared)
            .filter(|old| !plan.routes.iter().any(|new| new.to == old.to))
        {
            self.netlink.delete_route(old).await.map_err(sink)?;
        }
        let same = |new: &Route, old: &Route| {
            (new.to, new.via, new.unreachable) == (old.to, old.via, old.unreachable)
        };
        for new in plan.routes.iter().filter(|new| !present.iter().any(|old| same(new, old))) {
            self.netlink.replace_route(new).await.map_err(sink)?;
        }
        self.masquerade(plan.table).map_err(|error| {
            ApplyError::sink("pods reach the outside under their own addresses", error)
        })?;
        self.cidr.send_if_modified(|known| std::mem::replace(known, plan.own) != plan.own);
        Ok(Next::Wait)
    }
}

impl Routes {
    fn to_services(&self, ranges: &Objects<ServiceCIDR>) -> Vec<Route> {
        let added = ranges.values().flat_map(|range| plan::servicecidr::prefixes(range));
        let all: BTreeSet<IpNet> = self.services.iter().copied().chain(added).collect();
        let same_family =
            all.into_iter().filter(|cidr| cidr.addr().is_ipv4() == self.node_ip.is_ipv4());
        same_family
            .map(|cidr| Route { source: Some(self.node_ip), ..Route::through(cidr, self.link) })
            .collect()
    }

    /// Replaces the whole table: it is small, and connections keep the translation that they have.
    fn masquerade(&mut self, table: Table) -> Result<(), PodNetError> {
        if self.committed.as_ref() == Some(&table) {
            return Ok(());
        }
        self.committed = None;
        let mut ops = vec![Op::AddTable, Op::DeleteTable];
        ops.extend(table.creation());
        self.nft.commit(&Transaction { family: table.family, table: table.name.clone(), ops })?;
        self.committed = Some(table);
        Ok(())
    }
}

/// Keeps the routes to the other nodes' pods, and tells this node's own pod CIDR to `cidr`.
///
/// # Errors
/// When the kernel gives no netlink socket or refuses to forward packets.
pub async fn follow_nodes(
    client: &Client,
    nodes: &Reflector<Node>,
    options: Options,
    cidr: watch::Sender<Option<Ipv4Net>>,
    shutdown: CancellationToken,
) -> Result<(), PodNetError> {
    for (name, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv4/conf/all/send_redirects", "0"),
        ("net/ipv4/conf/default/send_redirects", "0"),
    ] {
        sysctl::set(name, value)?;
    }
    let (netlink, nft) = (Netlink::open()?, Nftables::open()?);
    let link = netlink.link(&options.link).await?.index;
    let component = Routes {
        node: options.node,
        netlink,
        nft,
        committed: None,
        pods: options.pod_cidrs,
        services: options.service_cidrs,
        node_ip: options.node_ip,
        link,
        cidr,
    };
    let ranges: Reflector<ServiceCIDR> = Reflector::start(client, ListParams::default());
    let inputs = Inputs::new()
        .on(nodes, |_, dirty| {
            dirty.insert(());
        })
        .on(&ranges, |_, dirty| {
            dirty.insert(());
        });
    let nodes = nodes.clone();
    let snapshot = move || Snapshot {
        nodes: nodes.view().objects.clone(),
        ranges: ranges.view().objects.clone(),
    };
    tokio::spawn(client::run(
        component,
        client.component(Routes::NAME),
        inputs,
        snapshot,
        shutdown,
    ));
    Ok(())
}
