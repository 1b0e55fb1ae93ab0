//! Services and their endpoints as nftables elements: one table a family, whose chains and maps all Services share.
//!
//! A frontend is one element of a verdict map that says how many endpoints there are; the chain of that number draws
//! one and finds it in the endpoint map. So a change costs the elements that differ, whatever the number of Services.
//! Two tables (`ip`, `ip6`) and not one `inet`: keys have one address type each, and one family never blocks the other.
//! Upstream counterpart: `pkg/proxy/nftables`.

mod claim;
mod ebpf;
mod elements;
mod fold;
pub mod iptables;
pub mod ipvs;
pub mod maglev;
mod resets;
mod ruleset;
mod stage;
#[cfg(test)]
mod tests;
mod views;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use api::core::Node;
use ipnet::IpNet;
use net::nft::Family;
use serde::{Deserialize, Serialize};

use crate::service::NodeView;

pub use elements::{ChainId, SetId, udp_frontends};
pub use fold::{Change, Dirty, FamilyChange, Fold, Frontends, Snapshot};
pub use resets::{
    Lead, RESETS_SET, RESETS_TABLE, ResetFrontends, Resets, Step, reset_key, resets_table,
};
pub use ruleset::{MARK, TABLE};
pub use stage::Stage;
pub use views::{Touched, Views};

/// How Services are carried (`--proxy-mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Mode {
    /// nftables through netlink.
    #[default]
    Nftables,
    /// iptables, in upstream's chains.
    Iptables,
    /// eBPF programs at sockets and links, and nftables for what they leave.
    Ebpf,
    /// IPVS, and nftables for what that does not do.
    Ipvs,
}

impl Mode {
    /// Upstream's word for it, where upstream has it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ebpf => "ebpf",
            Self::Ipvs => "ipvs",
        }
    }
}

/// Which of iptables' two kinds is used (`--iptables-backend`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IptablesBackend {
    /// Where rules are already; `Nft` where there are none.
    #[default]
    Auto,
    /// The one that makes nftables' rules.
    Nft,
    /// The older one.
    Legacy,
}

/// Where eBPF programs and their tables are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EbpfPlace {
    /// The folder that keeps them while no agent runs, or below which a file system for that is mounted.
    pub pins: PathBuf,
    /// The control group whose processes are led to endpoints at their sockets, below the root of the hierarchy; empty
    /// for all processes.
    pub cgroup: String,
}

/// What the proxy is told at start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    /// How Services are carried.
    pub mode: Mode,
    /// Which iptables, where that is the mode.
    pub iptables: IptablesBackend,
    /// Where eBPF programs and their tables are, where that is the mode.
    pub ebpf: EbpfPlace,
    /// How virtual servers choose, where IPVS is the mode.
    pub ipvs_scheduler: ipvs::Scheduler,
    /// Addresses that are Services' or nobody's: packets to those that no Service has are dropped.
    pub service_cidrs: Vec<IpNet>,
    /// Addresses of pods: other clients of cluster addresses are masqueraded.
    pub pod_cidrs: Vec<IpNet>,
    /// Whether `spec.externalIPs` count (off by default: CVE-2020-8554).
    pub external_ips: bool,
    /// Whether mode `ebpf` also carries packets at the node's links. The command line says so unless it is told
    /// `--ebpf-links=false`.
    pub ebpf_links: bool,
    /// Whether nodes with endpoints answer clients of other nodes' ports themselves (`--ebpf-dsr`), where packets are carried
    /// at links, on all nodes.
    pub ebpf_dsr: bool,
    /// Whether all clients of cluster addresses are masqueraded, pods too (`--masquerade-all`).
    pub masquerade_all: bool,
    /// Where node ports answer (`--nodeport-addresses`); empty means [`NodePortAddresses::Primary`].
    pub node_port_addresses: Vec<NodePortAddresses>,
}

/// Addresses of the node on which node ports answer. Source: KEP-3866, and upstream's `--nodeport-addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodePortAddresses {
    /// The node's primary address of each family.
    Primary,
    /// 127.0.0.1, for clients on the node. IPv6 has no way to lead packets of `::1` out of the host.
    Localhost,
    /// Every address of the node, but for loopback and link-local ones.
    All,
    /// The node's addresses within.
    Within(IpNet),
}

impl std::str::FromStr for NodePortAddresses {
    type Err = ipnet::AddrParseError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "primary" => Ok(Self::Primary),
            "localhost" => Ok(Self::Localhost),
            "all" => Ok(Self::All),
            cidr => cidr.parse().map(Self::Within),
        }
    }
}

impl NodePortAddresses {
    fn admits(self, address: &IpAddr) -> bool {
        let link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        match self {
            Self::Primary | Self::Localhost => false,
            Self::All => !address.is_loopback() && !link_local,
            Self::Within(cidr) => cidr.contains(address) && !address.is_loopback() && !link_local,
        }
    }
}

impl Settings {
    /// The node as the proxy must see it, with the addresses on which node ports answer; `own` are all addresses that
    /// the node has.
    #[must_use]
    pub fn node_view(&self, node: Option<&Node>, own: &BTreeSet<IpAddr>) -> NodeView {
        let mut view = NodeView::of(&self.node, node);
        let chosen = &self.node_port_addresses;
        if chosen.is_empty() {
            return view;
        }
        if !chosen.contains(&NodePortAddresses::Primary) {
            view.addresses.clear();
        }
        if self.node_ports_on_localhost() {
            view.addresses.push(Ipv4Addr::LOCALHOST.into());
        }
        for address in own.iter().filter(|own| chosen.iter().any(|which| which.admits(own))) {
            if !view.addresses.contains(address) {
                view.addresses.push(*address);
            }
        }
        view
    }

    /// Whether node ports answer on 127.0.0.1.
    #[must_use]
    pub fn node_ports_on_localhost(&self) -> bool {
        self.node_port_addresses.contains(&NodePortAddresses::Localhost)
    }

    fn service_cidrs(&self, family: Family) -> impl Iterator<Item = &IpNet> {
        self.service_cidrs.iter().filter(move |cidr| Family::of(&cidr.addr()) == family)
    }

    fn pod_cidrs(&self, family: Family) -> impl Iterator<Item = &IpNet> {
        self.pod_cidrs.iter().filter(move |cidr| Family::of(&cidr.addr()) == family)
    }
}

/// Both families, in the order in which they are applied.
pub const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];
