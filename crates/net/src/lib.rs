//! The nftables and iptables rule sets, the tables of eBPF programs, links, routes and addresses as data.

pub mod bpf;
pub mod iptables;
pub mod nft;
