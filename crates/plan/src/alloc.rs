//! ClusterIPs and node ports: which are free, which to give, in upstream's bands.
//!
//! Upstream counterpart: `pkg/registry/core/service/{ipallocator,portallocator,allocator}` and KEP-3070, KEP-3668. What
//! is taken is read from the stored Services; there is no state beside them. The caller holds a lock from here until
//! the Service is stored, and brings the randomness as a seed.

mod families;
mod ports;
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use api::Name;
use ipnet::IpNet;
use serde_json::Value;

pub use families::Family;

/// Addresses of a range beyond these are not used: the IPv6 ranges are larger than anybody needs.
const ADDRESSES_MAX: u128 = 1 << 32;

/// Offset of the upper band of addresses, from which they are given: `min(max(16, size/16), 256)`; 0 when the range
/// is too small to split (KEP-3070). `size` is the number of usable addresses.
#[must_use]
pub fn address_band(size: u128) -> u128 {
    if size < 16 { 0 } else { (size / 16).clamp(16, 256).min(size) }
}

/// Offset of the upper band of node ports: `min(max(16, size/32), 128)`; 0 when the range is too small (KEP-3668).
#[must_use]
pub fn port_band(size: u128) -> u128 {
    if size < 16 { 0 } else { (size / 32).clamp(16, 128).min(size) }
}

/// The first free number of `0..size`: from a start that the seed picks within `band..size`, around, then the same in
/// `0..band`.
fn pick(size: u128, band: u128, seed: u64, free: impl Fn(u128) -> bool) -> Option<u128> {
    let around = |from: u128, to: u128| {
        let length = to - from;
        let start = if length == 0 { 0 } else { u128::from(seed) % length };
        (0..length).map(move |step| from + (start + step) % length)
    };
    around(band, size).chain(around(0, band)).find(|offset| free(*offset))
}

/// A range of service addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// As configured.
    pub prefix: IpNet,
}

impl Range {
    /// The number of addresses that may be given: without the network's own and, for IPv4, the broadcast address.
    #[must_use]
    pub fn size(&self) -> u128 {
        let host_bits = self.prefix.max_prefix_len() - self.prefix.prefix_len();
        let all = 1u128.checked_shl(u32::from(host_bits)).unwrap_or(u128::MAX).min(ADDRESSES_MAX);
        match self.prefix {
            IpNet::V4(_) => all.saturating_sub(2),
            IpNet::V6(_) => all.saturating_sub(1),
        }
    }

    /// The address at an offset of `0..size()`.
    #[must_use]
    pub fn address(&self, offset: u128) -> IpAddr {
        match self.prefix {
            IpNet::V4(prefix) => {
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                IpAddr::from(
                    u32::from(prefix.network())
                        .saturating_add(offset)
                        .saturating_add(1)
                        .to_be_bytes(),
                )
            }
            IpNet::V6(prefix) => IpAddr::from(
                u128::from(prefix.network()).saturating_add(offset).saturating_add(1).to_be_bytes(),
            ),
        }
    }

    /// Whether the address may be given.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let number = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(u32::from(v4)),
            IpAddr::V6(v6) => u128::from(v6),
        };
        let within = self.prefix.contains(&address);
        within
            && (1..=self.size())
                .contains(&(number(address).wrapping_sub(number(self.prefix.network()))))
    }
}

/// What may be given and what is taken.
#[derive(Clone, Debug)]
pub struct Allocator {
    /// By family; the first is the cluster's primary.
    ranges: Vec<Range>,
    /// Those that were added while the cluster runs, in the order in which they are tried.
    added: Vec<Range>,
    ports: RangeInclusive<u16>,
    addresses_taken: BTreeMap<IpAddr, Name>,
    ports_taken: BTreeMap<u16, Name>,
    /// Addresses that are something else's than a Service's, by their IPAddress.
    reserved: BTreeSet<IpAddr>,
}

impl Allocator {
    /// An allocator over ranges (the first of each family counts) of which nothing is taken.
    #[must_use]
    pub fn new(ranges: &[IpNet], ports: RangeInclusive<u16>) -> Self {
        let mut kept: Vec<Range> = Vec::new();
        for prefix in ranges {
            if !kept
                .iter()
                .any(|range| Family::of_prefix(&range.prefix) == Family::of_prefix(prefix))
            {
                kept.push(Range { prefix: prefix.trunc() });
            }
        }
        Self {
            ranges: kept,
            added: Vec::new(),
            ports,
            addresses_taken: BTreeMap::new(),
            ports_taken: BTreeMap::new(),
            reserved: BTreeSet::new(),
        }
    }

    /// Also gives addresses of these ranges, once those before are full (KEP-1880).
    pub fn set_added(&mut self, ranges: &[IpNet]) {
        let added = ranges.iter().map(|prefix| Range { prefix: prefix.trunc() });
        self.added = added.filter(|range| !self.ranges.contains(range)).collect();
    }

    /// Keeps an address from Services: it has an IPAddress that is not theirs.
    pub fn reserve(&mut self, address: IpAddr) {
        self.reserved.insert(address);
    }

    /// Leaves an address to Services again.
    pub fn unreserve(&mut self, address: IpAddr) {
        self.reserved.remove(&address);
    }

    /// Takes what a stored Service holds.
    pub fn take(&mut self, service: &Value) {
        let name = service::name(service);
        for address in service::addresses(service) {
            self.addresses_taken.insert(address, name.clone());
        }
        for port in service::node_ports(service) {
            self.ports_taken.insert(port, name.clone());
        }
    }

    /// Gives back what a Service held.
    pub fn release(&mut self, service: &Value) {
        let name = service::name(service);
        for address in service::addresses(service) {
            if self.addresses_taken.get(&address) == Some(&name) {
                self.addresses_taken.remove(&address);
            }
        }
        for port in service::node_ports(service) {
            if self.ports_taken.get(&port) == Some(&name) {
                self.ports_taken.remove(&port);
            }
        }
    }

    /// The families that the cluster has, the primary first.
    #[must_use]
    pub fn families(&self) -> Vec<Family> {
        self.ranges.iter().map(|range| Family::of_prefix(&range.prefix)).collect()
    }

    fn ranges(&self, family: Family) -> impl Iterator<Item = &Range> {
        let all = self.ranges.iter().chain(&self.added);
        all.filter(move |range| Family::of_prefix(&range.prefix) == family)
    }

    /// A free address of a family, for `owner`.
    fn next_address(&self, family: Family, seed: u64) -> Result<IpAddr, String> {
        let in_range = |range: &Range| {
            let free = |offset| {
                let address = range.address(offset);
                !self.addresses_taken.contains_key(&address) && !self.reserved.contains(&address)
            };
            let size = range.size();
            pick(size, address_band(size), seed, free).map(|offset| range.address(offset))
        };
        self.ranges(family).find_map(in_range).ok_or_else(|| "range is full".to_owned())
    }

    /// Whether `owner` may have exactly this address.
    fn check_address(&self, address: IpAddr, owner: &Name) -> Result<(), String> {
        let mut ranges = self.ranges(Family::of(address));
        if !ranges.any(|range| range.contains(address)) {
            let valid = self
                .ranges(Family::of(address))
                .chain(&self.ranges)
                .next()
                .map(|range| range.prefix.to_string())
                .unwrap_or_default();
            return Err(format!(
                "provided IP is not in the valid range. The range of valid IPs is {valid}"
            ));
        }
        match self.addresses_taken.get(&address) {
            Some(taken) if taken == owner => Ok(()),
            None if !self.reserved.contains(&address) => Ok(()),
            _ => Err("provided IP is already allocated".to_owned()),
        }
    }

    /// A free node port that is not in `also_taken`.
    fn next_port(&self, seed: u64, also_taken: &[u16]) -> Result<u16, String> {
        let (first, last) = (*self.ports.start(), *self.ports.end());
        let size = u128::from(last.saturating_sub(first)) + 1;
        let port = |offset: u128| u16::try_from(u128::from(first) + offset).unwrap_or(u16::MAX);
        let free = |offset| {
            !self.ports_taken.contains_key(&port(offset)) && !also_taken.contains(&port(offset))
        };
        pick(size, port_band(size), seed, free).map(port).ok_or_else(|| "range is full".to_owned())
    }

    /// Whether `owner` may have exactly this node port.
    fn check_port(&self, port: u16, owner: &Name) -> Result<(), String> {
        if !self.ports.contains(&port) {
            let (first, last) = (self.ports.start(), self.ports.end());
            return Err(format!(
                "provided port is not in the valid range. The range of valid ports is {first}-{last}"
            ));
        }
        match self.ports_taken.get(&port) {
            Some(taken) if taken != owner => Err("provided port is already allocated".to_owned()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
