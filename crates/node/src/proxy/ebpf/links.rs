//! The program at this node's links: which links it sees, and what it is told of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernel::bpf::BpfError;
use kernel::bpf::forward::{Behind, Forward, NodeFacts, PLACES, Timeouts};
use kernel::sysctl;
use net::bpf::{EndpointSet, SetNumber};
use plan::podnet::LINK_PREFIX;
use plan::proxy::{Settings, maglev};

/// How often to look whether links have come, or somebody has taken the program from one. Pods that come are told of.
const LOOK_AFTER: Duration = Duration::from_secs(5);
const LOCAL_PORTS: &str = "net/ipv4/ip_local_port_range";
/// Where node ports begin by default: clients come to them, so answers do not.
const NODE_PORTS: u16 = 30_000;
/// Ports for masquerade begin here: those below are for servers.
const PORT_MIN: u16 = 1024;
/// With fewer, clients would find none too often.
const PORTS_MIN: u16 = 4096;

type Sets = BTreeMap<SetNumber, Arc<EndpointSet>>;

/// The program, and what it was told.
#[derive(Debug)]
pub(super) struct Links {
    forward: Forward,
    told: Option<NodeFacts>,
    look_at: Instant,
    /// Sets that have a table.
    tables: BTreeSet<SetNumber>,
}

impl Links {
    pub(super) fn open(pins: &Path) -> Result<Self, BpfError> {
        let forward = Forward::open(pins)?;
        let tables = forward.tables()?;
        Ok(Self { forward, told: None, look_at: Instant::now(), tables })
    }

    /// Makes the next look not wait for its time.
    pub(super) fn distrust(&mut self) {
        self.look_at = Instant::now();
    }

    /// Attaches the program where it is missing, and tells it what it does not know of the node.
    pub(super) fn look(&mut self, settings: &Settings, node: &[IpAddr]) -> Result<(), BpfError> {
        if self.look_at > Instant::now() {
            return Ok(());
        }
        let facts = facts(settings, node);
        if self.told.as_ref() != Some(&facts) {
            self.forward.tell(&facts)?;
            self.told = Some(facts);
        }
        let wanted = wanted(&self.forward.links()?, &with_address(node));
        self.forward.attach(&wanted)?;
        self.look_at = Instant::now() + LOOK_AFTER;
        Ok(())
    }

    /// Gives sets tables. Equal sets have equal numbers and so equal tables: a table that is there is right.
    pub(super) fn spread(&mut self, sets: &Sets) -> Result<(), BpfError> {
        for (number, set) in sets.iter().filter(|(_, set)| set.spread) {
            let table = maglev::table(&set.endpoints);
            let Some(table) = table.filter(|_| !self.tables.contains(number)) else { continue };
            let places: [u16; PLACES] = table.try_into().expect("a table has so many places");
            self.forward.put_table(*number, &places)?;
            self.tables.insert(*number);
        }
        Ok(())
    }

    /// Takes away the tables of all other sets.
    pub(super) fn keep(&mut self, sets: &Sets) -> Result<(), BpfError> {
        let gone: Vec<SetNumber> =
            self.tables.iter().copied().filter(|number| !sets.contains_key(number)).collect();
        for number in gone {
            self.forward.remove_table(number)?;
            self.tables.remove(&number);
        }
        Ok(())
    }
}

/// Pods' links, and those that have an address which the node is known by.
fn wanted(links: &BTreeMap<u32, String>, with_address: &BTreeSet<String>) -> BTreeMap<u32, Behind> {
    let behind = |name: &str| {
        if name.starts_with(LINK_PREFIX) {
            return Some(Behind::Pod);
        }
        with_address.contains(name).then_some(Behind::Outside)
    };
    links.iter().filter_map(|(index, name)| Some((*index, behind(name)?))).collect()
}

fn with_address(node: &[IpAddr]) -> BTreeSet<String> {
    let links = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let links = links
        .filter(|link| super::super::address(link).is_some_and(|address| node.contains(&address)));
    links.map(|link| link.interface_name).collect()
}

fn facts(settings: &Settings, node: &[IpAddr]) -> NodeFacts {
    let own = || node.iter().filter(|address| !address.is_loopback());
    NodeFacts {
        v4: own().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        }),
        v6: own().find_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        }),
        ports: sysctl::get(LOCAL_PORTS).ok().and_then(|range| free_ports(&range)),
        pods: settings.pod_cidrs.iter().copied().collect(),
        timeouts: Timeouts::default(),
    }
}

/// Ports that no socket of this node is given by itself: below or above the kernel's range of those.
fn free_ports(range: &str) -> Option<RangeInclusive<u16>> {
    let mut words = range.split_whitespace().map(str::parse::<u16>);
    let (low, high) = (words.next()?.ok()?, words.next()?.ok()?);
    let below = PORT_MIN..=low.min(NODE_PORTS).saturating_sub(1);
    let above = high.saturating_add(1)..=u16::MAX;
    let is_wide =
        |ports: &RangeInclusive<u16>| ports.end().saturating_sub(*ports.start()) >= PORTS_MIN;
    [below, above].into_iter().find(is_wide)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masquerade_takes_ports_that_sockets_are_not_given() {
        assert_eq!(free_ports("32768\t60999\n"), Some(1024..=29_999));
        assert_eq!(free_ports("1024\t40000"), Some(40_001..=65_535));
        assert_eq!(free_ports("16000 65535"), Some(1024..=15_999));
        assert_eq!(free_ports("1024 65535"), None);
        assert_eq!(free_ports("?"), None);
    }

    #[test]
    fn pods_and_addresses_of_the_node_are_watched() {
        let names = ["lo", "eth0", "eth1", "pod0123", "br0"];
        let links = (1..).zip(names.map(str::to_owned)).collect();
        let with_address = BTreeSet::from(["eth0".to_owned()]);
        let wanted = wanted(&links, &with_address);
        assert_eq!(wanted, BTreeMap::from([(2, Behind::Outside), (4, Behind::Pod)]));
    }
}
