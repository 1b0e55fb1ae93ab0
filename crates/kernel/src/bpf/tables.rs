//! The tables of the programs: `bpf/maps.h` in Rust.
#![expect(unsafe_code, reason = "aya asks for a promise that keys and values are plain bytes")]

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use net::bpf::{Choice, EndpointKey, Entries, Frontend, FrontendKey, Member};

use super::{BpfError, LAYOUT, TABLES};

/// All of them.
const NAMES: [&str; 12] = [
    "frontends4",
    "frontends6",
    "endpoints4",
    "endpoints6",
    "members4",
    "members6",
    "namespaces",
    "flows4",
    "flows6",
    "origins4",
    "origins6",
    "counters",
];
/// Flags of a choice.
const MASQUERADE: u32 = 1;
const LOCAL: u32 = 2;
const DIRECT: u32 = 4;
/// Audiences of namespaces.
const AUDIENCE_PODS: u32 = 0;
const AUDIENCE_NODE: u32 = 1;

#[repr(C)]
#[derive(Clone, Copy)]
struct RawFrontendKey<A> {
    address: A,
    port: [u8; 2],
    protocol: u8,
    zero: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawChoice {
    set: u64,
    count: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawFrontend {
    choices: [RawChoice; 3],
    identity: u64,
    affinity_s: u32,
    zero: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawEndpointKey {
    set: u64,
    index: u32,
    zero: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawEndpoint<A> {
    address: A,
    port: [u8; 2],
    zero: [u8; 2],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawMember<A, Z> {
    set: u64,
    address: A,
    port: [u8; 2],
    zero: Z,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct RawPlace {
    audience: u32,
    v4: [u8; 4],
    v6: [u8; 16],
}

// SAFETY: all of these are numbers and arrays of bytes without gaps, in the order of the C.
unsafe impl Pod for RawFrontendKey<[u8; 4]> {}
// SAFETY: as above.
unsafe impl Pod for RawFrontendKey<[u8; 16]> {}
// SAFETY: as above.
unsafe impl Pod for RawFrontend {}
// SAFETY: as above.
unsafe impl Pod for RawEndpointKey {}
// SAFETY: as above.
unsafe impl Pod for RawEndpoint<[u8; 4]> {}
// SAFETY: as above.
unsafe impl Pod for RawEndpoint<[u8; 16]> {}
// SAFETY: as above.
unsafe impl Pod for RawMember<[u8; 4], [u8; 2]> {}
// SAFETY: as above.
unsafe impl Pod for RawMember<[u8; 16], [u8; 6]> {}
// SAFETY: as above.
unsafe impl Pod for RawPlace {}

/// An address of one family.
trait Address: Copy {
    fn of(address: IpAddr) -> Option<Self>;
    fn ip(self) -> IpAddr;
}

impl Address for [u8; 4] {
    fn of(address: IpAddr) -> Option<Self> {
        if let IpAddr::V4(v4) = address { Some(v4.octets()) } else { None }
    }

    fn ip(self) -> IpAddr {
        self.into()
    }
}

impl Address for [u8; 16] {
    fn of(address: IpAddr) -> Option<Self> {
        if let IpAddr::V6(v6) = address { Some(v6.octets()) } else { None }
    }

    fn ip(self) -> IpAddr {
        self.into()
    }
}

impl From<Choice> for RawChoice {
    fn from(choice: Choice) -> Self {
        let masquerade = if choice.masquerade { MASQUERADE } else { 0 };
        let local = if choice.local { LOCAL } else { 0 };
        let direct = if choice.direct { DIRECT } else { 0 };
        Self { set: choice.set, count: choice.count, flags: masquerade | local | direct }
    }
}

impl From<RawChoice> for Choice {
    fn from(raw: RawChoice) -> Self {
        let RawChoice { set, count, flags } = raw;
        let is = |flag: u32| flags & flag != 0;
        Self { set, count, masquerade: is(MASQUERADE), local: is(LOCAL), direct: is(DIRECT) }
    }
}

impl From<&Frontend> for RawFrontend {
    fn from(frontend: &Frontend) -> Self {
        Self {
            choices: [frontend.pods, frontend.node, frontend.outside].map(RawChoice::from),
            identity: frontend.identity,
            affinity_s: frontend.affinity_s,
            zero: 0,
        }
    }
}

impl From<RawFrontend> for Frontend {
    fn from(raw: RawFrontend) -> Self {
        let [pods, node, outside] = raw.choices.map(Choice::from);
        Self { pods, node, outside, identity: raw.identity, affinity_s: raw.affinity_s }
    }
}

/// The tables of one family; `Z` fills a member up.
struct Family<A: 'static, Z: 'static> {
    names: [&'static str; 3],
    frontends: HashMap<MapData, RawFrontendKey<A>, RawFrontend>,
    endpoints: HashMap<MapData, RawEndpointKey, RawEndpoint<A>>,
    members: HashMap<MapData, RawMember<A, Z>, u32>,
}

impl<A, Z> Family<A, Z>
where
    A: Address,
    Z: Copy + Default,
    RawFrontendKey<A>: Pod,
    RawEndpoint<A>: Pod,
    RawMember<A, Z>: Pod,
{
    fn open(folder: &Path, names: [&'static str; 3]) -> Result<Self, BpfError> {
        let [frontends, endpoints, members] = names;
        Ok(Self {
            names,
            frontends: open(folder, frontends)?,
            endpoints: open(folder, endpoints)?,
            members: open(folder, members)?,
        })
    }

    fn frontend_key(key: &FrontendKey) -> RawFrontendKey<A> {
        let address = A::of(key.address.ip()).expect("the caller chose the family");
        let port = key.address.port().to_be_bytes();
        RawFrontendKey { address, port, protocol: key.protocol, zero: 0 }
    }

    fn member(member: &Member) -> RawMember<A, Z> {
        let address = A::of(member.address.ip()).expect("the caller chose the family");
        let port = member.address.port().to_be_bytes();
        RawMember { set: member.set, address, port, zero: Z::default() }
    }

    fn put_frontend(&mut self, key: &FrontendKey, frontend: &Frontend) -> Result<(), BpfError> {
        let done = self.frontends.insert(Self::frontend_key(key), RawFrontend::from(frontend), 0);
        done.map_err(table(self.names[0]))
    }

    fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), BpfError> {
        gone(self.frontends.remove(&Self::frontend_key(key))).map_err(table(self.names[0]))
    }

    fn put_endpoint(&mut self, key: EndpointKey, endpoint: SocketAddr) -> Result<(), BpfError> {
        let address = A::of(endpoint.ip()).expect("the caller chose the family");
        let value = RawEndpoint { address, port: endpoint.port().to_be_bytes(), zero: [0; 2] };
        let done = self.endpoints.insert(raw_endpoint_key(key), value, 0);
        done.map_err(table(self.names[1]))
    }

    fn remove_endpoint(&mut self, key: EndpointKey) -> Result<(), BpfError> {
        gone(self.endpoints.remove(&raw_endpoint_key(key))).map_err(table(self.names[1]))
    }

    fn put_member(&mut self, member: &Member) -> Result<(), BpfError> {
        let done = self.members.insert(Self::member(member), 1, 0);
        done.map_err(table(self.names[2]))
    }

    fn remove_member(&mut self, member: &Member) -> Result<(), BpfError> {
        gone(self.members.remove(&Self::member(member))).map_err(table(self.names[2]))
    }

    fn read(&self, entries: &mut Entries, ipv6: bool) -> Result<(), BpfError> {
        let [frontends, endpoints, members] = self.names;
        for entry in self.frontends.iter() {
            let (key, value) = entry.map_err(table(frontends))?;
            let address = SocketAddr::new(key.address.ip(), u16::from_be_bytes(key.port));
            let key = FrontendKey { address, protocol: key.protocol };
            entries.frontends.insert(key, value.into());
        }
        for entry in self.endpoints.iter() {
            let (key, value) = entry.map_err(table(endpoints))?;
            let endpoint = SocketAddr::new(value.address.ip(), u16::from_be_bytes(value.port));
            let key = EndpointKey { ipv6, set: key.set, index: key.index };
            entries.endpoints.insert(key, endpoint);
        }
        for key in self.members.keys() {
            let key = key.map_err(table(members))?;
            let address = SocketAddr::new(key.address.ip(), u16::from_be_bytes(key.port));
            entries.members.insert(Member { set: key.set, address });
        }
        Ok(())
    }
}

fn raw_endpoint_key(key: EndpointKey) -> RawEndpointKey {
    RawEndpointKey { set: key.set, index: key.index, zero: 0 }
}

/// Whose a network namespace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A pod's, with its addresses.
    Pod(Option<Ipv4Addr>, Option<Ipv6Addr>),
    /// The node's own.
    Node,
}

impl From<Place> for RawPlace {
    fn from(place: Place) -> Self {
        match place {
            Place::Pod(v4, v6) => Self {
                audience: AUDIENCE_PODS,
                v4: v4.map(|v4| v4.octets()).unwrap_or_default(),
                v6: v6.map(|v6| v6.octets()).unwrap_or_default(),
            },
            Place::Node => Self { audience: AUDIENCE_NODE, v4: [0; 4], v6: [0; 16] },
        }
    }
}

/// What the programs count, as `enum counter` of `bpf/maps.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// TCP connects led to an endpoint, IPv4.
    Connected4,
    /// The same, IPv6.
    Connected6,
    /// Datagrams led to an endpoint at their socket, IPv4.
    Sent4,
    /// The same, IPv6.
    Sent6,
    /// To a frontend, but left to the rules underneath, IPv4.
    Left4,
    /// The same, IPv6.
    Left6,
    /// Flows led to an endpoint at a link, IPv4; these are in `bpf/forward.h`.
    Flows4 = 16,
    /// The same, IPv6.
    Flows6,
    /// Packets of such flows, in both directions, IPv4.
    Packets4,
    /// The same, IPv6.
    Packets6,
    /// Flows left to the rules underneath because no port was free for masquerade.
    Portless,
    /// TCP flows between pods that pass netfilter by, IPv4.
    Direct4,
    /// The same, IPv6.
    Direct6,
}

/// What the programs are told, and what they count.
pub struct Tables {
    v4: Family<[u8; 4], [u8; 2]>,
    v6: Family<[u8; 16], [u8; 6]>,
    namespaces: HashMap<MapData, u64, RawPlace>,
    counters: PerCpuArray<MapData, u64>,
}

impl fmt::Debug for Tables {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tables").finish_non_exhaustive()
    }
}

impl Tables {
    /// Whether tables are pinned in this folder.
    pub(super) fn are_in(folder: &Path) -> bool {
        NAMES.iter().all(|name| folder.join(name).exists())
    }

    /// The tables kept in the file system at `pins`, once a program was loaded with them.
    ///
    /// # Errors
    /// When there are none.
    pub fn of(pins: &Path) -> Result<Self, BpfError> {
        Self::open(&pins.join(format!("{TABLES}{LAYOUT}")))
    }

    pub(super) fn open(folder: &Path) -> Result<Self, BpfError> {
        Ok(Self {
            v4: Family::open(folder, ["frontends4", "endpoints4", "members4"])?,
            v6: Family::open(folder, ["frontends6", "endpoints6", "members6"])?,
            namespaces: open(folder, "namespaces")?,
            counters: open(folder, "counters")?,
        })
    }

    /// What the kernel has.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn read(&self) -> Result<Entries, BpfError> {
        let mut entries = Entries::default();
        self.v4.read(&mut entries, false)?;
        self.v6.read(&mut entries, true)?;
        Ok(entries)
    }

    /// Leads a frontend to its sets, which are to be there.
    ///
    /// # Errors
    /// When the table is full.
    pub fn put_frontend(&mut self, key: &FrontendKey, frontend: &Frontend) -> Result<(), BpfError> {
        match key.address {
            SocketAddr::V4(_) => self.v4.put_frontend(key, frontend),
            SocketAddr::V6(_) => self.v6.put_frontend(key, frontend),
        }
    }

    /// Leaves a frontend to the rules underneath.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_frontend(&mut self, key: &FrontendKey) -> Result<(), BpfError> {
        match key.address {
            SocketAddr::V4(_) => self.v4.remove_frontend(key),
            SocketAddr::V6(_) => self.v6.remove_frontend(key),
        }
    }

    /// Adds an endpoint to its set.
    ///
    /// # Errors
    /// When the table is full.
    pub fn put_endpoint(&mut self, key: EndpointKey, endpoint: SocketAddr) -> Result<(), BpfError> {
        match endpoint {
            SocketAddr::V4(_) => self.v4.put_endpoint(key, endpoint),
            SocketAddr::V6(_) => self.v6.put_endpoint(key, endpoint),
        }
    }

    /// Takes an endpoint away.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_endpoint(&mut self, key: EndpointKey) -> Result<(), BpfError> {
        if key.ipv6 { self.v6.remove_endpoint(key) } else { self.v4.remove_endpoint(key) }
    }

    /// Says who is in a set.
    ///
    /// # Errors
    /// When the table is full.
    pub fn put_member(&mut self, member: &Member) -> Result<(), BpfError> {
        match member.address {
            SocketAddr::V4(_) => self.v4.put_member(member),
            SocketAddr::V6(_) => self.v6.put_member(member),
        }
    }

    /// Says no more that somebody is in a set.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_member(&mut self, member: &Member) -> Result<(), BpfError> {
        match member.address {
            SocketAddr::V4(_) => self.v4.remove_member(member),
            SocketAddr::V6(_) => self.v6.remove_member(member),
        }
    }

    /// Says whose a network namespace is; without that, programs leave its packets alone.
    ///
    /// # Errors
    /// When the table is full.
    pub fn put_namespace(&mut self, cookie: u64, place: Place) -> Result<(), BpfError> {
        let done = self.namespaces.insert(cookie, RawPlace::from(place), 0);
        done.map_err(table("namespaces"))
    }

    /// Forgets a network namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_namespace(&mut self, cookie: u64) -> Result<(), BpfError> {
        gone(self.namespaces.remove(&cookie)).map_err(table("namespaces"))
    }

    /// The namespaces that are known, by their cookies.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn namespaces(&self) -> Result<Vec<u64>, BpfError> {
        self.namespaces.keys().collect::<Result<_, _>>().map_err(table("namespaces"))
    }

    /// How often something was done, since the programs were first attached.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn counted(&self, counter: Counter) -> Result<u64, BpfError> {
        let values = self.counters.get(&(counter as u32), 0).map_err(table("counters"))?;
        Ok(values.iter().sum())
    }
}

pub(super) fn open<M>(folder: &Path, name: &'static str) -> Result<M, BpfError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let pinned = MapData::from_pin(folder.join(name)).and_then(Map::from_map_data);
    pinned.and_then(M::try_from).map_err(table(name))
}

pub(super) fn table(name: &'static str) -> impl FnOnce(MapError) -> BpfError {
    move |source| BpfError::Table { name, source: Box::new(source) }
}

/// What is not there is gone.
pub(super) fn gone(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}
