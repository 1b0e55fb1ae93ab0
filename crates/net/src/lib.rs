//! The nftables rule set, links, routes and addresses as data.

pub mod nft;
