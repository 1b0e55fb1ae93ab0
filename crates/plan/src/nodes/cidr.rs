//! Pod CIDRs: each node a part of the cluster's range. Upstream counterpart: `nodeipam`'s range allocator.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// Addresses of one node: a /24 (upstream's default `--node-cidr-mask-size`).
const NODE_MASK: u8 = 24;

/// The first part of `cluster` (such as `10.244.0.0/16`) that is not taken; `None` when all are, or it is no IPv4 range.
#[must_use]
pub fn allocate(cluster: &str, taken: impl Iterator<Item = String>) -> Option<String> {
    let (address, mask) = cluster.split_once('/')?;
    let IpAddr::V4(first) = address.parse().ok()? else { return None };
    let mask: u8 = mask.parse().ok().filter(|mask| *mask <= NODE_MASK)?;
    let taken: BTreeSet<String> = taken.collect();
    let size = 1_u32 << (32 - u32::from(NODE_MASK));
    let count = 1_u32 << (NODE_MASK - mask);
    let parts = (0..count).map(|part| {
        let start = u32::from(first).wrapping_add(part * size);
        format!("{}/{NODE_MASK}", Ipv4Addr::from(start))
    });
    parts.into_iter().find(|part| !taken.contains(part))
}
