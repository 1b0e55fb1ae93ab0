//! An nftables table as data: sets, maps, their elements, chains, and rules as lists of expressions.
//!
//! Upstream counterpart: knftables' objects. Nothing here talks to a kernel: `kernel::nftables` commits a
//! [`Transaction`], [`render()`] shows a [`Table`] to people, [`Table::trace`] runs a packet through it.

mod blob;
mod delta;
mod fields;
pub mod load;
mod render;
mod trace;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

pub use blob::Blob;
pub use delta::{SetChange, replace_elements};
pub use fields::Fields;
pub use render::render;
pub use trace::{Outcome, Packet, Traced};

/// Address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 only.
    Ip,
    /// IPv6 only.
    Ip6,
}

impl Family {
    /// Bytes of an address.
    #[must_use]
    pub const fn address_len(self) -> u32 {
        match self {
            Self::Ip => 4,
            Self::Ip6 => 16,
        }
    }

    /// nft's word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }

    /// The family of an address.
    #[must_use]
    pub const fn of(address: &IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ip,
            IpAddr::V6(_) => Self::Ip6,
        }
    }
}

/// What a chain hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChainKind {
    /// Every packet.
    Filter,
    /// The first packet of every connection.
    Nat,
    /// Every packet; reroutes after a change of a mark.
    Route,
}

/// Where in a packet's way a base chain runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookPoint {
    /// Before routing.
    Prerouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    Postrouting,
}

/// Makes a chain a base chain. The policy is always accept: Rhumb's tables name what they refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// What the chain hangs on.
    pub kind: ChainKind,
    /// Where it runs.
    pub point: HookPoint,
    /// Order among the chains of one hook: lower runs first (dstnat is -100, filter 0, srcnat 100).
    pub priority: i32,
}

/// A chain: its hook, if it is a base chain, and its rules in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Present for base chains.
    pub hook: Option<Hook>,
    /// The rules in order.
    pub rules: Vec<Rule>,
}

/// A rule: expressions evaluated in order until one breaks off or gives a verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The expressions in order.
    pub exprs: Vec<Expr>,
}

impl Rule {
    /// A rule of these expressions.
    #[must_use]
    pub fn new(exprs: impl IntoIterator<Item = Expr>) -> Self {
        Self { exprs: exprs.into_iter().collect() }
    }
}

/// A 32-bit register, 0 to 15. Values longer than 4 bytes take the registers that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reg(pub u8);

/// What a packet's way ends or goes on with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Done with this hook's chain of this table.
    Accept,
    /// Discard silently.
    Drop,
    /// Back to the calling chain.
    Return,
    /// On in another chain, without coming back.
    Goto(Arc<str>),
    /// On in another chain, and back.
    Jump(Arc<str>),
}

/// Where a payload offset counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadBase {
    /// The IP header.
    Network,
    /// The TCP, UDP or SCTP header.
    Transport,
}

/// What is known of a packet outside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaKey {
    /// The packet mark, 4 bytes in host order.
    Mark,
    /// The protocol number above IP, 1 byte.
    L4Proto,
    /// The name of the link it came in by, 16 bytes padded with zeros.
    IifName,
    /// The name of the link it leaves by, 16 bytes padded with zeros.
    OifName,
}

/// What connection tracking knows of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtKey {
    /// Bits, 4 bytes in host order: 1 invalid, 2 established, 4 related, 8 new.
    State,
    /// Bits, 4 bytes in host order: 16 source NAT, 32 destination NAT.
    Status,
    /// The connection's mark, 4 bytes in host order.
    Mark,
    /// The source address in one direction.
    Source(Direction),
    /// The source port in one direction, 2 bytes.
    SourcePort(Direction),
    /// The destination address in one direction.
    Destination(Direction),
    /// The destination port in one direction, 2 bytes.
    DestinationPort(Direction),
}

/// Of a connection's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// As the client sends them, before any translation.
    Original,
    /// As they are answered, before that is translated back.
    Reply,
}

/// How a comparison must come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmpOp {
    /// Equal.
    Eq,
    /// Not equal.
    Neq,
}

/// What to answer to a refused packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// A TCP reset.
    TcpReset,
    /// ICMP (or ICMPv6) port unreachable.
    PortUnreachable,
    /// ICMP (or ICMPv6) administratively prohibited.
    AdminProhibited,
}

/// What a rule does to a dynamic set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DynOp {
    /// Adds the element, or restarts its timeout.
    Update,
    /// Removes the element.
    Delete,
}

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Loads bytes of the packet.
    Payload {
        /// Where `offset` counts from.
        base: PayloadBase,
        /// Bytes from there.
        offset: u32,
        /// Bytes to load.
        len: u32,
        /// First register.
        to: Reg,
    },
    /// Loads metadata.
    Meta {
        /// Which.
        key: MetaKey,
        /// First register.
        to: Reg,
    },
    /// Sets metadata.
    MetaSet {
        /// Which.
        key: MetaKey,
        /// First register.
        from: Reg,
    },
    /// Loads what connection tracking knows.
    Ct {
        /// Which.
        key: CtKey,
        /// First register.
        to: Reg,
    },
    /// Breaks off unless the comparison holds.
    Cmp {
        /// First register.
        from: Reg,
        /// How.
        op: CmpOp,
        /// With what.
        value: Box<[u8]>,
    },
    /// `to = (from & mask) ^ xor`.
    Bitwise {
        /// First register read.
        from: Reg,
        /// First register written.
        to: Reg,
        /// The mask; its length is the operation's.
        mask: Box<[u8]>,
        /// As long as the mask.
        xor: Box<[u8]>,
    },
    /// Loads a constant.
    Immediate {
        /// First register.
        to: Reg,
        /// The constant.
        value: Box<[u8]>,
    },
    /// Ends or diverts the way.
    Verdict(Verdict),
    /// Breaks off unless the key is in the set (or is, when inverted); with `to`, loads the map's data.
    Lookup {
        /// The set or map.
        set: Arc<str>,
        /// First register of the key.
        from: Reg,
        /// First register for the data; `None` for sets.
        to: Option<Reg>,
        /// Breaks off when the key is there.
        invert: bool,
    },
    /// Breaks off unless the key is in the verdict map; else the verdict holds.
    VerdictMap {
        /// The map.
        map: Arc<str>,
        /// First register of the key.
        from: Reg,
    },
    /// A random number below `modulus`, in host order.
    Numgen {
        /// Bound, not 0.
        modulus: u32,
        /// Register.
        to: Reg,
    },
    /// The type of the route to the source address (2 is a local address), in host order.
    FibSourceType {
        /// Register.
        to: Reg,
    },
    /// The type of the route to the destination address (2 is a local address), in host order.
    FibDestinationType {
        /// Register.
        to: Reg,
    },
    /// Destination NAT.
    Dnat {
        /// First register of the address.
        addr: Reg,
        /// Register of the port, in network order.
        port: Option<Reg>,
    },
    /// Source NAT to the address of the link that the packet leaves by, with random ports.
    Masquerade,
    /// Answers and discards.
    Reject(Reject),
    /// Changes a dynamic set or map from the packet path.
    Dynset {
        /// The set or map.
        set: Arc<str>,
        /// How.
        op: DynOp,
        /// First register of the key.
        key: Reg,
        /// First register of the data; `None` for sets.
        data: Option<Reg>,
        /// Seconds until the element goes; 0 for the set's own timeout.
        timeout_s: u32,
    },
    /// Counts packets and bytes.
    Counter,
}

/// The type of one field of a key or of data: what it means and how long it is (padded to 4 bytes each).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// 4 bytes.
    Ipv4,
    /// 16 bytes.
    Ipv6,
    /// 1 byte, padded.
    Proto,
    /// 2 bytes in network order, padded.
    Port,
    /// 4 bytes in host order.
    Mark,
    /// 16 bytes padded with zeros.
    IfName,
}

impl Field {
    /// The address field of a family.
    #[must_use]
    pub const fn address(family: Family) -> Self {
        match family {
            Family::Ip => Self::Ipv4,
            Family::Ip6 => Self::Ipv6,
        }
    }

    /// Bytes in a register, with padding.
    #[must_use]
    pub const fn size(self) -> u32 {
        match self {
            Self::Ipv4 | Self::Proto | Self::Port | Self::Mark => 4,
            Self::Ipv6 | Self::IfName => 16,
        }
    }
}

/// What a set's elements carry besides the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetData {
    /// Nothing: a set.
    None,
    /// A verdict: a verdict map.
    Verdict,
    /// Fields: a map.
    Fields(Vec<Field>),
}

/// A set or map without its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// The fields of the key, concatenated.
    pub key: Vec<Field>,
    /// What elements carry.
    pub data: SetData,
    /// Elements are ranges of each field; such keys are given as start and end.
    pub interval: bool,
    /// Rules add elements, which time out. The kernel owns the elements; a plan holds none.
    pub dynamic: bool,
    /// Bound on the elements of a dynamic set; 0 for none.
    pub size_max: u32,
    /// Seconds until an element goes, where nothing else is said; 0 for never.
    pub timeout_s: u32,
}

impl Set {
    /// A set of these key fields.
    #[must_use]
    pub fn of(key: impl IntoIterator<Item = Field>) -> Self {
        let key = key.into_iter().collect();
        let (interval, dynamic, size_max, timeout_s) = (false, false, 0, 0);
        Self { key, data: SetData::None, interval, dynamic, size_max, timeout_s }
    }

    /// A verdict map of these key fields.
    #[must_use]
    pub fn verdicts(key: impl IntoIterator<Item = Field>) -> Self {
        Self { data: SetData::Verdict, ..Self::of(key) }
    }

    /// A map from these key fields to these data fields.
    #[must_use]
    pub fn map(
        key: impl IntoIterator<Item = Field>,
        data: impl IntoIterator<Item = Field>,
    ) -> Self {
        Self { data: SetData::Fields(data.into_iter().collect()), ..Self::of(key) }
    }

    /// Bytes of a key with padding.
    #[must_use]
    pub fn key_len(&self) -> u32 {
        self.key.iter().map(|field| field.size()).sum()
    }

    /// Bytes of the data with padding; 0 for sets and verdict maps.
    #[must_use]
    pub fn data_len(&self) -> u32 {
        match &self.data {
            SetData::Fields(fields) => fields.iter().map(|field| field.size()).sum(),
            SetData::None | SetData::Verdict => 0,
        }
    }
}

/// The key of an element.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The padded fields; of a range the first followed by the last, both included.
    pub bytes: Blob,
    /// Whether this is a range, as elements of interval sets are.
    pub range: bool,
}

impl Key {
    /// A key that is no range.
    #[must_use]
    pub fn exact(bytes: impl Into<Blob>) -> Self {
        Self { bytes: bytes.into(), range: false }
    }

    /// A range from `first` to `last`, both included and of one length.
    #[must_use]
    pub fn range(first: &Fields, last: &Fields) -> Self {
        assert!(first.0.len() == last.0.len(), "both ends of a range have the same fields");
        let bytes = [&*first.0, &*last.0].concat();
        Self { bytes: bytes.as_slice().into(), range: true }
    }

    /// The first and last key of a range; of an exact key twice the same.
    #[must_use]
    pub fn ends(&self) -> (&[u8], &[u8]) {
        if self.range {
            self.bytes.split_at(self.bytes.len() / 2)
        } else {
            (&self.bytes, &self.bytes)
        }
    }
}

/// What an element carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing: an element of a set.
    None,
    /// Padded fields.
    Data(Blob),
    /// A verdict.
    Verdict(Verdict),
}

/// The elements of one set, in the order of their keys.
pub type Elements = BTreeMap<Key, Value>;

/// A table: everything that it should be, apart from the elements of dynamic sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Address family.
    pub family: Family,
    /// Name.
    pub name: Arc<str>,
    /// Sets and maps by name.
    pub sets: BTreeMap<Arc<str>, Set>,
    /// Elements by set.
    pub elements: BTreeMap<Arc<str>, Elements>,
    /// Chains by name.
    pub chains: BTreeMap<Arc<str>, Chain>,
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(family: Family, name: &str) -> Self {
        Self {
            family,
            name: name.into(),
            sets: BTreeMap::new(),
            elements: BTreeMap::new(),
            chains: BTreeMap::new(),
        }
    }

    /// Everything that makes this table from nothing, in an order that the kernel takes: chains and sets before the
    /// rules and elements that name them.
    #[must_use]
    pub fn creation(&self) -> Vec<Op> {
        let mut ops = vec![Op::AddTable];
        ops.extend(
            self.chains.iter().map(|(name, chain)| Op::AddChain(Arc::clone(name), chain.hook)),
        );
        ops.extend(self.sets.iter().map(|(name, set)| Op::AddSet(Arc::clone(name), set.clone())));
        ops.extend(self.rules());
        for (set, elements) in self.elements.iter().filter(|(_, elements)| !elements.is_empty()) {
            let elements = elements.iter().map(|(key, value)| (key.clone(), value.clone()));
            ops.push(Op::AddElements(Arc::clone(set), elements.collect()));
        }
        ops
    }

    /// The rules of all chains as operations.
    pub fn rules(&self) -> impl Iterator<Item = Op> + '_ {
        self.chains.iter().flat_map(|(name, chain)| {
            chain.rules.iter().map(|rule| Op::AddRule(Arc::clone(name), rule.clone()))
        })
    }
}

/// One operation on the table of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Makes the table unless it is there.
    AddTable,
    /// Deletes the table, which must be there, with all in it.
    DeleteTable,
    /// Makes a chain unless it is there.
    AddChain(Arc<str>, Option<Hook>),
    /// Deletes an empty chain that nothing names.
    DeleteChain(Arc<str>),
    /// Deletes the rules of a chain.
    FlushChain(Arc<str>),
    /// Deletes the rules of all chains.
    FlushRules,
    /// Appends a rule.
    AddRule(Arc<str>, Rule),
    /// Makes a set unless it is there; fails when one of another type is.
    AddSet(Arc<str>, Set),
    /// Deletes a set that nothing names.
    DeleteSet(Arc<str>),
    /// Deletes the elements of a set.
    FlushSet(Arc<str>),
    /// Adds elements.
    AddElements(Arc<str>, Vec<(Key, Value)>),
    /// Deletes elements, which must be there.
    DeleteElements(Arc<str>, Vec<Key>),
}

/// Operations on one table that hold all together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Address family of the table.
    pub family: Family,
    /// Name of the table.
    pub table: Arc<str>,
    /// In order.
    pub ops: Vec<Op>,
}
