//! The nftables and iptables rule sets, links, routes and addresses as data.

pub mod iptables;
pub mod nft;
