//! The program at the node's links, which leads packets from outside to endpoints: `bpf/forward.bpf.c`.
//!
//! Traffic control holds the program where it is attached, and the pinned tables hold the flows: both go on while no
//! agent runs. A flow is known by its addresses and ports alone, so the program can be replaced under it.
#![expect(unsafe_code, reason = "aya asks for a promise that values are plain bytes")]

mod leaving;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::path::Path;
use std::{fmt, fs, io};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapInfo};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{EbpfLoader, Pod, include_bytes_aligned};
use ipnet::IpNet;

use super::tables::{gone, open, table};
use super::{BpfError, LAYOUT, TABLES, failed, number, pins as pinned};
use crate::tc::Tc;

pub use leaving::Leaving;

/// `bpf/forward.bpf.c`, compiled.
static FORWARD: &[u8] = include_bytes_aligned!("../../bpf/forward.bpf.o");
const NAME: &str = "forward";
/// Folders of programs begin so; the object's number follows.
const PROGRAMS: &str = "forward-";
/// Places of a table: `PLACES` of `bpf/forward.h`.
pub const PLACES: usize = 1021;

/// An entry of the table of flows, with what the kernel adds to it.
const ENTRY_BYTES: u64 = 184;
/// Two for each flow.
const ENTRIES_MIN: u32 = 1 << 16;
const ENTRIES_MAX: u32 = 1 << 20;

/// Who is behind a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Behind {
    /// A pod of this node.
    Pod,
    /// Other machines.
    Outside,
}

impl Behind {
    /// `enum audience` of `bpf/maps.h`.
    const fn audience(self) -> u32 {
        match self {
            Self::Pod => 0,
            Self::Outside => 2,
        }
    }
}

/// Seconds after which a silent flow is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP that was not answered yet.
    pub opening_s: u32,
    /// TCP.
    pub open_s: u32,
    /// TCP that one side has closed.
    pub closing_s: u32,
    /// UDP.
    pub asked_s: u32,
    /// UDP that has gone back and forth for a while.
    pub answered_s: u32,
}

impl Default for Timeouts {
    /// Those of netfilter's connection tracking, as the proxy sets them.
    fn default() -> Self {
        Self { opening_s: 120, open_s: 86_400, closing_s: 120, asked_s: 30, answered_s: 120 }
    }
}

/// What the program is told of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node's own address, for masquerade.
    pub v4: Option<Ipv4Addr>,
    /// The same, IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Ports for masquerade; `None` leaves to the rules underneath what is to be masqueraded.
    pub ports: Option<RangeInclusive<u16>>,
    /// Addresses of pods of all nodes.
    pub pods: BTreeSet<IpNet>,
    /// Addresses of all nodes, which may choose endpoints for clients of theirs that are on this one.
    pub nodes: BTreeSet<IpAddr>,
    /// When flows are forgotten.
    pub timeouts: Timeouts,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawForwarding {
    v4: [u8; 4],
    v6: [u8; 16],
    port_min: u16,
    port_max: u16,
    opening_s: u32,
    open_s: u32,
    closing_s: u32,
    asked_s: u32,
    answered_s: u32,
    leaving: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawTable {
    places: [u16; PLACES],
    zero: u16,
}

// SAFETY: numbers and arrays of numbers without gaps, in the order of the C.
unsafe impl Pod for RawForwarding {}
// SAFETY: as above.
unsafe impl Pod for RawTable {}

impl From<&NodeFacts> for RawForwarding {
    fn from(node: &NodeFacts) -> Self {
        let ports = node.ports.clone().unwrap_or(0..=0);
        let Timeouts { opening_s, open_s, closing_s, asked_s, answered_s } = node.timeouts;
        Self {
            v4: node.v4.map(|v4| v4.octets()).unwrap_or_default(),
            v6: node.v6.map(|v6| v6.octets()).unwrap_or_default(),
            port_min: *ports.start(),
            port_max: *ports.end(),
            opening_s,
            open_s,
            closing_s,
            asked_s,
            answered_s,
            leaving: 0,
        }
    }
}

type Ranges = LpmTrie<MapData, [u8; 16], u32>;

/// The program, and what it is told.
pub struct Forward {
    program: SchedClassifier,
    id: u32,
    devices: HashMap<MapData, u32, u32>,
    pods: [(&'static str, Ranges); 2],
    tables: HashMap<MapData, u64, RawTable>,
    nodes: HashMap<MapData, [u8; 16], u32>,
    settings: Array<MapData, RawForwarding>,
}

impl fmt::Debug for Forward {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Forward").field("program", &self.id).finish_non_exhaustive()
    }
}

impl Forward {
    /// Loads the program, unless that was done before, with tables in the file system at `pins`, which
    /// [`super::Connect::open`] has prepared.
    ///
    /// # Errors
    /// When the kernel does not take the program.
    pub fn open(pins: &Path) -> Result<Self, BpfError> {
        pinned::prepare(pins)?;
        let folder = pins.join(format!("{TABLES}{LAYOUT}"));
        let own = pins.join(format!("{PROGRAMS}{:016x}", number(FORWARD)));
        let path = own.join(NAME);
        if !reads(&path, &folder) {
            pinned::make_folder(&own)?;
            load(&folder, &path)?;
        }
        // Where those of other versions are attached they stay until this one takes their place.
        pinned::remove_others(pins, PROGRAMS, &own)?;
        let program = SchedClassifier::from_pin(&path).map_err(refused)?;
        let id = program.info().map_err(refused)?.id();
        Ok(Self {
            program,
            id,
            devices: open(&folder, "devices")?,
            pods: [("pods4", open(&folder, "pods4")?), ("pods6", open(&folder, "pods6")?)],
            tables: open(&folder, "tables")?,
            nodes: open(&folder, "nodes")?,
            settings: open(&folder, "forwarding")?,
        })
    }

    /// Attaches the program to these links and to no others; what is as it should be is not touched.
    ///
    /// # Errors
    /// When the kernel refuses. A link that has just gone is no error.
    pub fn attach(&mut self, tc: &mut Tc, links: &BTreeMap<u32, Behind>) -> Result<(), BpfError> {
        let known: BTreeMap<u32, u32> =
            self.devices.iter().collect::<Result<_, _>>().map_err(table("devices"))?;
        for (link, behind) in links {
            if known.get(link) != Some(&behind.audience()) {
                self.devices.insert(link, behind.audience(), 0).map_err(table("devices"))?;
            }
            let attached = tc.attached(*link).unwrap_or_default();
            if attached == Some(self.id) {
                continue;
            }
            let program = self.program.fd().map_err(refused)?;
            match tc.attach(*link, program.as_fd()) {
                Err(error) if error.errno() == Some(libc::ENODEV) => {}
                other => other?,
            }
        }
        for link in known.keys().filter(|link| !links.contains_key(link)) {
            tc.detach(*link)?;
            gone(self.devices.remove(link)).map_err(table("devices"))?;
        }
        Ok(())
    }

    /// Tells the program of the node, and to begin flows.
    ///
    /// # Errors
    /// When a table is full.
    pub fn tell(&mut self, node: &NodeFacts) -> Result<(), BpfError> {
        self.settings.set(0, RawForwarding::from(node), 0).map_err(table("forwarding"))?;
        self.tell_nodes(&node.nodes)?;
        for (name, ranges) in &mut self.pods {
            let wanted: BTreeSet<(u32, [u8; 16])> = node
                .pods
                .iter()
                .filter(|range| range.addr().is_ipv4() == (*name == "pods4"))
                .map(|range| (u32::from(range.prefix_len()), bytes(range.network())))
                .collect();
            let known: BTreeSet<(u32, [u8; 16])> = ranges
                .keys()
                .map(|key| key.map(|key| (key.prefix_len(), key.data())))
                .collect::<Result<_, _>>()
                .map_err(table(name))?;
            for (length, data) in wanted.difference(&known) {
                ranges.insert(&Key::new(*length, *data), 1, 0).map_err(table(name))?;
            }
            for (length, data) in known.difference(&wanted) {
                gone(ranges.remove(&Key::new(*length, *data))).map_err(table(name))?;
            }
        }
        Ok(())
    }

    fn tell_nodes(&mut self, nodes: &BTreeSet<IpAddr>) -> Result<(), BpfError> {
        let wanted: BTreeSet<[u8; 16]> = nodes.iter().map(|address| bytes(*address)).collect();
        let known: BTreeSet<[u8; 16]> =
            self.nodes.keys().collect::<Result<_, _>>().map_err(table("nodes"))?;
        for address in wanted.difference(&known) {
            self.nodes.insert(address, 1, 0).map_err(table("nodes"))?;
        }
        for address in known.difference(&wanted) {
            gone(self.nodes.remove(address)).map_err(table("nodes"))?;
        }
        Ok(())
    }

    /// Says which endpoint of a set a client from outside gets. Sets without a table are drawn from at random.
    ///
    /// # Errors
    /// When there are too many tables.
    pub fn put_table(&mut self, set: u64, places: &[u16; PLACES]) -> Result<(), BpfError> {
        let raw = RawTable { places: *places, zero: 0 };
        self.tables.insert(set, raw, 0).map_err(table("tables"))
    }

    /// Takes a set's table away.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_table(&mut self, set: u64) -> Result<(), BpfError> {
        gone(self.tables.remove(&set)).map_err(table("tables"))
    }

    /// The sets that have a table.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn tables(&self) -> Result<BTreeSet<u64>, BpfError> {
        self.tables.keys().collect::<Result<_, _>>().map_err(table("tables"))
    }
}

/// Whether the program that is kept at `path` reads the tables that are kept in `folder`, and not some before them.
fn reads(path: &Path, folder: &Path) -> bool {
    let program = SchedClassifier::from_pin(path).and_then(|program| program.info());
    let maps = program.and_then(|info| info.map_ids()).ok().flatten().unwrap_or_default();
    ["frontends4", "tracked"].iter().all(|name| {
        MapInfo::from_pin(folder.join(name)).is_ok_and(|info| maps.contains(&info.id()))
    })
}

fn load(folder: &Path, path: &Path) -> Result<(), BpfError> {
    pinned::make_folder(folder)?;
    let mut object = EbpfLoader::new()
        .btf(None)
        .map_max_entries("tracked", entries_max())
        .default_map_pin_directory(folder)
        .load(FORWARD)
        .map_err(|error| BpfError::Load(Box::new(error)))?;
    let program = object.program_mut(NAME).expect("the object has this program");
    let program: &mut SchedClassifier = program.try_into().map_err(refused)?;
    program.load().map_err(refused)?;
    let _ = fs::remove_file(path);
    program.pin(path).map_err(io::Error::other).map_err(failed("pin a program at", path))
}

/// Entries of the table of flows. They take their memory from the start: a thousandth of the machine's, within bounds.
fn entries_max() -> u32 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let entries = kib.unwrap_or_default() * 1024 / 1000 / ENTRY_BYTES;
    u32::try_from(entries).unwrap_or(u32::MAX).clamp(ENTRIES_MIN, ENTRIES_MAX)
}

/// Detaches the program from every link.
///
/// # Errors
/// When the kernel refuses.
pub fn detach_all(tc: &mut Tc) -> Result<(), BpfError> {
    for link in tc.links()?.into_keys() {
        if tc.attached(link).unwrap_or_default().is_some() {
            tc.detach(link)?;
        }
    }
    Ok(())
}

/// An address in the layout of tuples.
fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn refused(source: ProgramError) -> BpfError {
    BpfError::Program { name: NAME, source: Box::new(source) }
}
