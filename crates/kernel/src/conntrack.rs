//! Connection tracking through ctnetlink: lists flows and deletes single ones.
//!
//! UDP has no handshake: a client that keeps sending keeps its flow alive, to wherever it was first translated. A TCP
//! connection leads where it led when it began, also while it is tried again because nobody answers.
//! Upstream counterpart: `pkg/proxy/conntrack`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use net::nft::Family;

use crate::netfilter::{Attributes, Builder, NetfilterError, Socket, refused, replies};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOINFO: u16 = 4;
const PROTOINFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const STATUS_MASK: u16 = 26;
const FILTER_ORIGINAL_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;
/// Of a filter: the protocol's number must be as given.
const FILTER_PROTO_NUMBER: u32 = 1 << 3;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUMBER: u16 = 1;
const PROTO_SOURCE: u16 = 2;
const PROTO_DESTINATION: u16 = 3;
const STATUS_ANSWERED: u32 = 1 << 1;
const STATUS_DNAT: u32 = 1 << 5;
/// The state of TCP in which only a first packet was seen: SYN sent.
const TCP_BEGINS: u8 = 1;
/// States of TCP in which a connection is over: time wait, close.
const TCP_OVER: [u8; 2] = [7, 8];
/// A dump that changes came into is tried again this often; flows that came meanwhile are the next round's.
const DUMP_TRIES_MAX: u32 = 3;

/// A protocol whose flows are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The number in the IP header.
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// By which protocol.
    pub protocol: Protocol,
    /// Who sends.
    pub source: SocketAddr,
    /// To whom, as sent.
    pub destination: SocketAddr,
    /// Who answers: the destination after translation.
    pub answers: SocketAddr,
    /// To whom: the source after translation.
    pub answered: SocketAddr,
    /// Whether the destination was translated.
    pub translated: bool,
    /// Whether it is only remembered: both sides closed it, or one reset it. Never for UDP.
    pub is_over: bool,
    /// Whether nobody has answered a TCP connection's first packet yet.
    pub begins: bool,
    /// Whether it is IPVS that does it, packet by packet, and not the tracking itself.
    pub by_ipvs: bool,
    zone: Option<u16>,
    id: Option<u32>,
}

/// A connection to the tracking of one network namespace: the one that the opening thread was in.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    /// Whether the kernel takes a filter with a dump, as far as is known: it spares listing the other protocols.
    filters: bool,
}

impl Conntrack {
    /// Opens a connection in the calling thread's network namespace.
    ///
    /// # Errors
    /// When there is no such socket; needs CAP_NET_ADMIN.
    pub fn open() -> Result<Self, NetfilterError> {
        Ok(Self { socket: Socket::open()?, filters: true })
    }

    /// All flows of a protocol and a family.
    ///
    /// # Errors
    /// When the kernel refuses, or changes keep coming in between.
    pub fn flows(
        &mut self,
        family: Family,
        protocol: Protocol,
    ) -> Result<Vec<Flow>, NetfilterError> {
        let narrow = |builder: &mut Builder| put_filter(builder, protocol);
        self.list(family_number(family), protocol, "list the flows", narrow)
    }

    /// The TCP connections of both families whose destination was translated, and that nobody has answered yet. The kernel
    /// goes through a table of all namespaces: 40 ms for 262,144 places, full or empty.
    ///
    /// # Errors
    /// As [`Self::flows`].
    pub fn unanswered(&mut self) -> Result<Vec<Flow>, NetfilterError> {
        // Kernels before 5.19 ignore the mask, and list all.
        let narrow = |builder: &mut Builder| {
            builder.be32(STATUS, STATUS_DNAT);
            builder.be32(STATUS_MASK, STATUS_DNAT | STATUS_ANSWERED);
        };
        let mut flows = self.list(0, Protocol::Tcp, "list the unanswered flows", narrow)?;
        flows.retain(|flow| flow.translated && flow.begins);
        Ok(flows)
    }

    fn list(
        &mut self,
        family: u8,
        protocol: Protocol,
        action: &str,
        narrow: impl Fn(&mut Builder),
    ) -> Result<Vec<Flow>, NetfilterError> {
        let mut flows = Vec::new();
        for _ in 0..DUMP_TRIES_MAX {
            self.socket.drain();
            flows.clear();
            let sequence = self.socket.next_sequence(1);
            let mut builder = Builder::default();
            let flags = NLM_F_REQUEST | NLM_F_DUMP;
            builder.begin(SUBSYSTEM << 8 | GET, flags, sequence, family, 0);
            if self.filters {
                narrow(&mut builder);
            }
            builder.end();
            let whole = self.socket.dump(builder.bytes(), sequence, action, |reply| {
                flows.extend(decode(reply.attributes(), protocol));
            });
            match whole {
                Ok(true) => break,
                Ok(false) => {}
                Err(error)
                    if self.filters
                        && matches!(error.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP)) =>
                {
                    self.filters = false;
                }
                Err(error) => return Err(error),
            }
        }
        flows.sort();
        flows.dedup();
        Ok(flows)
    }

    /// Deletes a flow; one that is gone is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete(&mut self, flow: &Flow) -> Result<(), NetfilterError> {
        self.socket.drain();
        let sequence = self.socket.next_sequence(1);
        let family = Family::of(&flow.source.ip());
        let mut builder = Builder::default();
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        builder.begin(SUBSYSTEM << 8 | DELETE, flags, sequence, family_number(family), 0);
        put_tuple(&mut builder, flow);
        if let Some(zone) = flow.zone {
            builder.raw(ZONE, &zone.to_be_bytes());
        }
        if let Some(id) = flow.id {
            builder.be32(ID, id);
        }
        builder.end();
        self.socket.send(builder.bytes())?;
        while let Some(datagram) = self.socket.receive()? {
            for reply in replies(datagram) {
                match reply.error() {
                    None | Some(libc::ENOENT) => {}
                    Some(errno) => {
                        let action = format!("delete the flow to {}", flow.destination);
                        refused(errno, reply.detail(), &action)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::Ip => 2,
        Family::Ip6 => 10,
    }
}

fn put_filter(builder: &mut Builder, protocol: Protocol) {
    let tuple = builder.open(TUPLE_ORIGINAL);
    let proto = builder.open(TUPLE_PROTO);
    builder.byte(PROTO_NUMBER, protocol.number());
    builder.close(&proto);
    builder.close(&tuple);
    let filter = builder.open(FILTER);
    builder.raw(FILTER_ORIGINAL_FLAGS, &FILTER_PROTO_NUMBER.to_ne_bytes());
    builder.raw(FILTER_REPLY_FLAGS, &0_u32.to_ne_bytes());
    builder.close(&filter);
}

fn put_tuple(builder: &mut Builder, flow: &Flow) {
    let tuple = builder.open(TUPLE_ORIGINAL);
    let ip = builder.open(TUPLE_IP);
    for (address, v4, v6) in [(flow.source.ip(), 1, 3), (flow.destination.ip(), 2, 4)] {
        match address {
            IpAddr::V4(address) => builder.raw(v4, &address.octets()),
            IpAddr::V6(address) => builder.raw(v6, &address.octets()),
        }
    }
    builder.close(&ip);
    let proto = builder.open(TUPLE_PROTO);
    builder.byte(PROTO_NUMBER, flow.protocol.number());
    builder.raw(PROTO_SOURCE, &flow.source.port().to_be_bytes());
    builder.raw(PROTO_DESTINATION, &flow.destination.port().to_be_bytes());
    builder.close(&proto);
    builder.close(&tuple);
}

fn decode(attributes: Attributes<'_>, protocol: Protocol) -> Option<Flow> {
    let (source, destination) = tuple(attributes.nested(TUPLE_ORIGINAL)?, protocol)?;
    let (answers, answered) = tuple(attributes.nested(TUPLE_REPLY)?, protocol)?;
    let status = attributes.be32(STATUS).unwrap_or(0);
    let by_nat = status & STATUS_DNAT != 0;
    let by_ipvs = !by_nat && answers != destination;
    let translated = by_nat || by_ipvs;
    let tcp = attributes.nested(PROTOINFO).and_then(|info| info.nested(PROTOINFO_TCP));
    let state = tcp.and_then(|tcp| tcp.byte(TCP_STATE));
    let is_over = state.is_some_and(|state| TCP_OVER.contains(&state));
    let begins = status & STATUS_ANSWERED == 0 && state == Some(TCP_BEGINS);
    let (zone, id) = (attributes.be16(ZONE), attributes.be32(ID));
    Some(Flow {
        protocol,
        source,
        destination,
        answers,
        answered,
        translated,
        by_ipvs,
        is_over,
        begins,
        zone,
        id,
    })
}

/// Source and destination of a tuple of this protocol.
fn tuple(attributes: Attributes<'_>, protocol: Protocol) -> Option<(SocketAddr, SocketAddr)> {
    let proto = attributes.nested(TUPLE_PROTO)?;
    if proto.byte(PROTO_NUMBER)? != protocol.number() {
        return None;
    }
    let ip = attributes.nested(TUPLE_IP)?;
    let address = |v4: u16, v6: u16| -> Option<IpAddr> {
        match ip.find(v4) {
            Some(bytes) => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
            None => Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.find(v6)?).ok()?).into()),
        }
    };
    let source = SocketAddr::new(address(1, 3)?, proto.be16(PROTO_SOURCE)?);
    let destination = SocketAddr::new(address(2, 4)?, proto.be16(PROTO_DESTINATION)?);
    Some((source, destination))
}
