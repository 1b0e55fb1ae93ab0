//! Sinks to Linux: nftables, iptables, IPVS, rtnetlink, namespaces, conntrack, raw TCP segments, ARP, eBPF, echo
//! requests.

pub mod arp;
pub mod bpf;
pub mod conntrack;
pub mod iptables;
pub mod ipvs;
pub mod link;
mod netfilter;
pub mod netns;
pub mod nftables;
pub mod nudge;
pub mod ping;
pub mod steer;
pub mod sysctl;
pub mod tc;
