//! Answers ARP for the LoadBalancer addresses that this node announces.
//!
//! Upstream counterpart: MetalLB's speaker in layer 2 mode. The kernel answers, not this process: it goes on while the
//! agent is down.

use std::collections::BTreeSet;
use std::net::IpAddr;

use api::core::{Node, Service};
use api::discovery::EndpointSlice;
use client::{ApplyError, Client, Inputs, Next, Reconcile, Reflector};
use ipnet::IpNet;
use kernel::link::{LinkError, Netlink, Route};
use kernel::{arp, sysctl};
use plan::loadbalancer::{View, announced_by};
use tokio_util::sync::CancellationToken;

use crate::liveness::Silence;

struct Speaker {
    node: String,
    link: String,
    netlink: Netlink,
}

impl Reconcile for Speaker {
    const NAME: &'static str = "speaker";
    type Key = ();
    type Snapshot = View;
    type Plan = BTreeSet<IpAddr>;

    fn plan(&self, view: &View, (): &()) -> BTreeSet<IpAddr> {
        announced_by(view, &self.node)
    }

    async fn apply(&mut self, (): &(), wanted: BTreeSet<IpAddr>) -> Result<Next, ApplyError> {
        let done = self.announce(&wanted).await;
        done.map_err(|error| ApplyError::sink("LoadBalancer addresses are not announced", error))?;
        Ok(Next::Wait)
    }
}

impl Speaker {
    async fn announce(&self, wanted: &BTreeSet<IpAddr>) -> Result<(), LinkError> {
        let link = self.netlink.link(&self.link).await?;
        // The kernel answers only for addresses that it would forward elsewhere; Service rules come before routes.
        let nowhere = self.netlink.link("lo").await?.index;
        let present: BTreeSet<IpAddr> =
            self.netlink.proxies(link.index).await?.into_iter().collect();
        for old in present.difference(wanted) {
            self.netlink.delete_proxy(link.index, *old).await?;
            self.netlink.delete_route(&Route::through(IpNet::from(*old), nowhere)).await?;
        }
        for new in wanted.difference(&present) {
            self.netlink.replace_route(&Route::through(IpNet::from(*new), nowhere)).await?;
            self.netlink.add_proxy(link.index, *new).await?;
            if let IpAddr::V4(v4) = new {
                arp::announce(&link, *v4)?;
            }
            tracing::info!(component = Self::NAME, node = self.node, address = %new, "announcing a LoadBalancer address");
        }
        Ok(())
    }
}

/// The reflectors that decide who announces.
#[derive(Clone, Debug)]
pub struct Sources {
    /// All Services.
    pub services: Reflector<Service>,
    /// All EndpointSlices.
    pub slices: Reflector<EndpointSlice>,
    /// All nodes.
    pub nodes: Reflector<Node>,
    /// Those that have fallen silent.
    pub silence: Silence,
}

/// Starts to announce at `link`, the node's link to the outside.
///
/// # Errors
/// When the kernel gives no netlink socket or refuses to answer at once.
pub fn spawn(
    client: &Client,
    sources: Sources,
    node: &str,
    link: &str,
    shutdown: CancellationToken,
) -> Result<(), LinkError> {
    sysctl::set(&format!("net/ipv4/neigh/{link}/proxy_delay"), "0")
        .map_err(std::io::Error::other)?;
    let component =
        Speaker { node: node.to_owned(), link: link.to_owned(), netlink: Netlink::open()? };
    let all = |dirty: &mut BTreeSet<()>| {
        dirty.insert(());
    };
    let inputs = Inputs::new()
        .on(&sources.services, move |_, dirty| all(dirty))
        .on(&sources.slices, move |_, dirty| all(dirty))
        .on(&sources.nodes, move |_, dirty| all(dirty));
    let (silence, poke) = (sources.silence, inputs.poke());
    silence.listen(move || poke(()));
    let snapshot = move || View {
        services: sources.services.view().objects.clone(),
        slices: sources.slices.view().objects.clone(),
        nodes: sources.nodes.view().objects.clone(),
        silent: silence.now(),
    };
    tokio::spawn(client::run(
        component,
        client.component(Speaker::NAME),
        inputs,
        snapshot,
        shutdown,
    ));
    Ok(())
}
