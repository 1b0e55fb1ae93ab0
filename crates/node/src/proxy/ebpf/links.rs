//! The program at this node's links: which links it sees, and what it is told of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernel::bpf::BpfError;
use kernel::bpf::forward::{Behind, Forward, NodeFacts, PLACES, Timeouts, detach_all};
use kernel::sysctl;
use kernel::tc::Tc;
use net::bpf::{EndpointSet, SetNumber};
use plan::podnet::LINK_PREFIX;
use plan::proxy::{Settings, maglev};

use super::drain::Drain;

/// How often to look whether links have come, or somebody has taken the program from one. Pods that come are told of.
const LOOK_AFTER: Duration = Duration::from_secs(5);
/// A program that the kernel refused is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(60);
const LOCAL_PORTS: &str = "net/ipv4/ip_local_port_range";
/// Where node ports begin by default: clients come to them, so answers do not.
const NODE_PORTS: u16 = 30_000;
/// Ports for masquerade begin here: those below are for servers.
const PORT_MIN: u16 = 1024;
/// With fewer, clients would find none too often.
const PORTS_MIN: u16 = 4096;

type Sets = BTreeMap<SetNumber, Arc<EndpointSet>>;

/// The links of the network namespace that the opening thread was in. Without the program Services are carried all the
/// same: clients outside are left to the rules underneath.
#[derive(Debug)]
pub(super) struct Links {
    tc: Tc,
    ports: Option<RangeInclusive<u16>>,
    /// Addresses of all nodes.
    nodes: BTreeSet<IpAddr>,
    program: Option<Program>,
    /// Where the program is kept, if one is to be at the links; and when to try again.
    wanted: Option<PathBuf>,
    retry: Instant,
    /// A program that was at the links before.
    drain: Option<Drain>,
}

impl Links {
    pub(super) fn open() -> Result<Self, BpfError> {
        let ports = sysctl::get(LOCAL_PORTS).ok().and_then(|range| free_ports(&range));
        let tc = Tc::open()?;
        let (nodes, retry) = (BTreeSet::new(), Instant::now());
        Ok(Self { tc, ports, nodes, program: None, wanted: None, retry, drain: None })
    }

    /// Takes the program that is kept at `pins`, or loads it.
    pub(super) fn start(&mut self, pins: &Path) {
        self.drain = None;
        self.wanted = Some(pins.to_owned());
        match Program::open(pins) {
            Ok(program) => self.program = Some(program),
            Err(error) => self.give_up(&error),
        }
    }

    fn give_up(&mut self, error: &BpfError) {
        let error: &dyn Error = error;
        tracing::warn!(component = "proxy", error, "clients outside are left to nftables");
        let wanted = self.wanted.take();
        self.stop();
        (self.wanted, self.retry) = (wanted, Instant::now() + RETRY_AFTER);
    }

    /// Leaves the links to the connections that are carried there.
    pub(super) fn leave(&mut self, pins: &Path) {
        (self.program, self.wanted) = (None, None);
        match Drain::begin(&mut self.tc, pins) {
            Ok(drain) => self.drain = drain,
            Err(error) => self.give_up(&error),
        }
    }

    /// Leaves the links.
    pub(super) fn stop(&mut self) {
        (self.program, self.wanted, self.drain) = (None, None, None);
        if let Err(error) = detach_all(&mut self.tc) {
            let error: &dyn Error = &error;
            tracing::error!(component = "proxy", error, "eBPF programs stay at links");
        }
    }

    fn with(&mut self, act: impl FnOnce(&mut Program, &mut Tc) -> Result<(), BpfError>) {
        let Some(program) = &mut self.program else { return };
        if let Err(error) = act(program, &mut self.tc) {
            self.give_up(&error);
        }
    }

    /// Learns the addresses of all nodes.
    pub(super) fn know(&mut self, nodes: BTreeSet<IpAddr>) {
        if self.nodes != nodes {
            self.nodes = nodes;
            self.distrust();
        }
    }

    /// Makes the next look not wait for its time.
    pub(super) fn distrust(&mut self) {
        self.retry = Instant::now();
        if let Some(program) = &mut self.program {
            program.look_at = Instant::now();
        }
    }

    /// Attaches the program where it is missing, and tells it what it does not know of the node.
    pub(super) fn look(&mut self, settings: &Settings, node: &[IpAddr]) {
        match self.drain.as_mut().map(|drain| drain.is_over(&mut self.tc)) {
            Some(Ok(true)) => self.drain = None,
            Some(Err(error)) => self.give_up(&error),
            Some(Ok(false)) | None => {}
        }
        let is_time = self.program.is_none() && self.retry <= Instant::now();
        if let Some(pins) = self.wanted.clone().filter(|_| is_time) {
            self.start(&pins);
        }
        if self.program.as_ref().is_none_or(|program| program.look_at > Instant::now()) {
            return;
        }
        let facts =
            NodeFacts { nodes: self.nodes.clone(), ..facts(settings, node, self.ports.clone()) };
        self.with(|program, tc| program.look(tc, facts, node));
    }

    /// Gives sets tables.
    pub(super) fn spread(&mut self, sets: &Sets) {
        self.with(|program, _| program.spread(sets));
    }

    /// Takes away the tables of all other sets.
    pub(super) fn keep(&mut self, sets: &Sets) {
        self.with(|program, _| program.keep(sets));
    }
}

/// The program, and what it was told.
#[derive(Debug)]
struct Program {
    forward: Forward,
    told: Option<NodeFacts>,
    look_at: Instant,
    /// Sets that have a table.
    tables: BTreeSet<SetNumber>,
}

impl Program {
    fn open(pins: &Path) -> Result<Self, BpfError> {
        let forward = Forward::open(pins)?;
        let tables = forward.tables()?;
        Ok(Self { forward, told: None, look_at: Instant::now(), tables })
    }

    fn look(&mut self, tc: &mut Tc, facts: NodeFacts, node: &[IpAddr]) -> Result<(), BpfError> {
        if self.told.as_ref() != Some(&facts) {
            self.forward.tell(&facts)?;
            self.told = Some(facts);
        }
        let addresses = tc.addresses()?.into_iter();
        let with_address = addresses.filter(|(_, address)| node.contains(address));
        let wanted = wanted(&tc.links()?, &with_address.map(|(link, _)| link).collect());
        self.forward.attach(tc, &wanted)?;
        self.look_at = Instant::now() + LOOK_AFTER;
        Ok(())
    }

    /// Equal sets have equal numbers and so equal tables: a table that is there is right.
    fn spread(&mut self, sets: &Sets) -> Result<(), BpfError> {
        for (number, set) in sets.iter().filter(|(_, set)| set.spread) {
            if self.tables.contains(number) {
                continue;
            }
            let Some(table) = maglev::table(&set.endpoints) else { continue };
            let places: [u16; PLACES] = table.try_into().expect("a table has so many places");
            self.forward.put_table(*number, &places)?;
            self.tables.insert(*number);
        }
        Ok(())
    }

    fn keep(&mut self, sets: &Sets) -> Result<(), BpfError> {
        let gone: Vec<SetNumber> =
            self.tables.iter().copied().filter(|number| !sets.contains_key(number)).collect();
        for number in gone {
            self.forward.remove_table(number)?;
            self.tables.remove(&number);
        }
        Ok(())
    }
}

fn facts(settings: &Settings, node: &[IpAddr], ports: Option<RangeInclusive<u16>>) -> NodeFacts {
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
        ports,
        pods: settings.pod_cidrs.iter().copied().collect(),
        nodes: BTreeSet::new(),
        timeouts: Timeouts::default(),
    }
}

/// Pods' links, and those that have an address which the node is known by.
fn wanted(links: &BTreeMap<u32, String>, with_address: &BTreeSet<u32>) -> BTreeMap<u32, Behind> {
    let behind = |(index, name): (&u32, &String)| {
        if name.starts_with(LINK_PREFIX) {
            return Some((*index, Behind::Pod));
        }
        with_address.contains(index).then_some((*index, Behind::Outside))
    };
    links.iter().filter_map(behind).collect()
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
        let wanted = wanted(&links, &BTreeSet::from([2]));
        assert_eq!(wanted, BTreeMap::from([(2, Behind::Outside), (4, Behind::Pod)]));
    }
}
