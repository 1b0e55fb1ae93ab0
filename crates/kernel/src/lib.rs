//! Sinks to Linux: nftables, rtnetlink, namespaces, conntrack, ARP.

pub mod arp;
pub mod conntrack;
pub mod link;
mod netfilter;
pub mod netns;
pub mod nftables;
pub mod sysctl;
