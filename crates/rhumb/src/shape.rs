//! What a cluster of this machine is made with and then keeps, as flags of `rhumb up`.

use anyhow::{Result, bail};
use clap::Args;
use ipnet::Ipv4Net;

use crate::cluster::{Cluster, PortRange};

/// The shape of a new cluster; of one that is there already only what it has can be asked for.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Shape {
    /// How many nodes a new cluster gets [default: 1]
    #[arg(long)]
    nodes: Option<usize>,
    /// Addresses of pods [default: 10.244.0.0/16]
    #[arg(long)]
    pod_cidr: Option<Ipv4Net>,
    /// Addresses of Services [default: 10.96.0.0/12]
    #[arg(long)]
    service_cidr: Option<Ipv4Net>,
    /// Addresses of nodes, a /24; the first free one of 198.18.0.0/15 when not given
    #[arg(long)]
    pub(crate) node_cidr: Option<Ipv4Net>,
    /// The cluster's DNS domain [default: cluster.local]
    #[arg(long)]
    dns_domain: Option<String>,
    /// Ports for Services of type NodePort [default: 30000-32767]
    #[arg(long)]
    node_port_range: Option<PortRange>,
    /// The API server's port [default: 6443]
    #[arg(long)]
    api_port: Option<u16>,
}

impl Shape {
    /// How many nodes.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.unwrap_or(1)
    }

    /// Addresses of pods.
    pub(crate) fn pod_cidr(&self) -> Ipv4Net {
        self.pod_cidr.unwrap_or_else(|| "10.244.0.0/16".parse().expect("a constant")).trunc()
    }

    /// Addresses of Services.
    pub(crate) fn service_cidr(&self) -> Ipv4Net {
        self.service_cidr.unwrap_or_else(|| "10.96.0.0/12".parse().expect("a constant")).trunc()
    }

    /// The DNS domain.
    pub(crate) fn dns_domain(&self) -> String {
        self.dns_domain.clone().unwrap_or_else(|| "cluster.local".to_owned())
    }

    /// Ports for Services of type NodePort.
    pub(crate) fn node_port_range(&self) -> PortRange {
        self.node_port_range.unwrap_or(PortRange { first: 30_000, last: 32_767 })
    }

    /// The API server's port.
    pub(crate) fn api_port(&self) -> u16 {
        self.api_port.unwrap_or(6443)
    }

    /// Fails when a cluster that is there should have become another.
    pub(crate) fn is_of(&self, cluster: &Cluster) -> Result<()> {
        if let Some(nodes) = self.nodes
            && nodes != cluster.nodes.len()
        {
            bail!(
                "cluster {:?} has {} node(s); `rhumb node add` and `rhumb node remove` change that, --nodes does not",
                cluster.name,
                cluster.nodes.len()
            );
        }
        let net = |net: Option<Ipv4Net>| net.map(|net| net.trunc().to_string());
        let asked = [
            ("--pod-cidr", net(self.pod_cidr), cluster.pod_cidr.to_string()),
            ("--service-cidr", net(self.service_cidr), cluster.service_cidr.to_string()),
            ("--node-cidr", net(self.node_cidr), cluster.node_cidr.trunc().to_string()),
            ("--dns-domain", self.dns_domain.clone(), cluster.dns_domain.clone()),
            (
                "--node-port-range",
                self.node_port_range.map(|range| range.to_string()),
                cluster.node_port_range.to_string(),
            ),
            (
                "--api-port",
                self.api_port.map(|port| port.to_string()),
                cluster.api_port.to_string(),
            ),
        ];
        for (flag, asked, has) in asked {
            if let Some(asked) = asked.filter(|asked| *asked != has) {
                bail!(
                    "cluster {:?} was made with {flag} {has} and keeps it; only a new one can have {asked}",
                    cluster.name
                );
            }
        }
        Ok(())
    }
}
