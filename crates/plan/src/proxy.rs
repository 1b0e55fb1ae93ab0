//! Services and their endpoints as nftables elements: one table a family, whose chains and maps all Services share.
//!
//! A frontend is one element of a verdict map that says how many endpoints there are; the chain of that number draws
//! one and finds it in the endpoint map. So a change costs the elements that differ, whatever the number of Services.
//! Two tables (`ip`, `ip6`) and not one `inet`: keys have one address type each, and one family never blocks the other.
//! Upstream counterpart: `pkg/proxy/nftables`.

mod elements;
mod fold;
mod ruleset;
mod stage;
#[cfg(test)]
mod tests;

use ipnet::IpNet;
use net::nft::Family;

pub use elements::{ChainId, SetId};
pub use fold::{Change, Dirty, FamilyChange, Fold, Snapshot, UdpFrontends};
pub use ruleset::{MARK, TABLE};
pub use stage::Stage;

/// What the proxy is told at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    /// Addresses that are Services' or nobody's: packets to those that no Service has are dropped.
    pub service_cidrs: Vec<IpNet>,
    /// Addresses of pods: other clients of cluster addresses are masqueraded.
    pub pod_cidrs: Vec<IpNet>,
    /// Whether `spec.externalIPs` count (off by default: CVE-2020-8554).
    pub external_ips: bool,
}

impl Settings {
    fn service_cidrs(&self, family: Family) -> impl Iterator<Item = &IpNet> {
        self.service_cidrs.iter().filter(move |cidr| Family::of(&cidr.addr()) == family)
    }

    fn pod_cidrs(&self, family: Family) -> impl Iterator<Item = &IpNet> {
        self.pod_cidrs.iter().filter(move |cidr| Family::of(&cidr.addr()) == family)
    }
}

/// Both families, in the order in which they are applied.
pub const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];
