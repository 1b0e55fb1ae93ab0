//! Sinks to Linux: nftables, rtnetlink, namespaces, conntrack, ARP.

pub mod arp;
pub mod link;
pub mod netns;
pub mod sysctl;
pub mod conntrack;
mod netfilter;
pub mod nftables;
