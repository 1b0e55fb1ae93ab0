//! Ports of a node that lead to one pod (`hostPort`): what no Service took. Upstream counterpart: CNI's `portmap`.

use std::net::{IpAddr, SocketAddr};

use api::core::Pod;

use super::{Chain, Cluster, End, Step, called};
use crate::decide::Packet;
use crate::podfacts;
use crate::podnet::hostports::{HostPort, of_pod};

impl Cluster {
    /// The ports of a node that lead to its pods.
    pub(super) fn host_ports<'a>(
        &'a self,
        node: &'a str,
    ) -> impl Iterator<Item = (HostPort, &'a Pod)> {
        let pods = self.pods.values().map(AsRef::as_ref);
        let here = pods.filter(move |pod| podfacts::node_name(pod) == node);
        here.flat_map(|pod| of_pod(pod).into_iter().map(move |port| (port, pod)))
    }
}

impl Chain<'_> {
    /// Leads a packet for the node's own address to the pod that has the port; `None` when none has.
    pub(super) fn host_port(&mut self, node: &str, packet: &Packet) -> Option<End> {
        let cluster = self.cluster;
        let to = packet.destination;
        let meets = |bound: bool| {
            cluster.host_ports(node).find(|(port, _)| {
                let address = port.host_ip.map(IpAddr::V4);
                let at = if bound { address == Some(to.ip()) } else { address.is_none() };
                at && port.protocol == packet.protocol.number() && port.host_port == to.port()
            })
        };
        // One address of the node goes before all of them.
        let found = meets(true).or_else(|| meets(false)).filter(|_| to.is_ipv4());
        let (port, pod) = found?;
        let endpoint = SocketAddr::new(port.pod.into(), port.container_port);
        let words = format!(
            "node {node}'s address and host port {} of {}, port {} there",
            port.host_port,
            called(pod),
            port.container_port
        );
        self.say_address(self.shown(packet), None, &words, true);
        let source = if packet.source == endpoint.ip() {
            format!("becomes the address of node {node}, because the client reaches itself")
        } else {
            format!("stays {}", cluster.address(packet.source))
        };
        let destination = format!("becomes {}", cluster.socket(endpoint));
        self.steps.push(Step::Nat { destination, source });
        self.route(node, [&endpoint]);
        Some(self.listening([endpoint].into_iter(), packet, None))
    }
}
