//! The nftables, iptables and IPVS rule sets, the tables of eBPF programs, links, routes and addresses as data.

pub mod bpf;
pub mod iptables;
pub mod ipvs;
pub mod nft;
