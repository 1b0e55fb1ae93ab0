//! IPVS through generic netlink: virtual servers, and the destinations that each of them spreads connections over.
//!
//! The kernel's counterpart is `net/netfilter/ipvs/ip_vs_ctl.c`; upstream's is `pkg/proxy/ipvs/util`.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use net::ipvs::{Choice, Destination, Order, Server};
use net::nft::Family;
use nix::sys::socket::SockProtocol;

use crate::netfilter::{Attributes, Builder, NetfilterError, Socket, refused, replies};

/// The kernel's module.
pub const MODULE: &str = "ip_vs";
const FAMILY: &str = "IPVS";

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// The family that tells the numbers of the others.
const CONTROL: u16 = 16;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;

const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DELETE_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const NEW_DESTINATION: u8 = 5;
const SET_DESTINATION: u8 = 6;
const DELETE_DESTINATION: u8 = 7;
const GET_DESTINATION: u8 = 8;
const SERVICE: u16 = 1;
const DESTINATION: u16 = 2;

const SERVICE_FAMILY: u16 = 1;
const SERVICE_PROTOCOL: u16 = 2;
const SERVICE_ADDRESS: u16 = 3;
const SERVICE_PORT: u16 = 4;
const SERVICE_SCHEDULER: u16 = 6;
const SERVICE_FLAGS: u16 = 7;
const SERVICE_TIMEOUT: u16 = 8;
const SERVICE_NETMASK: u16 = 9;
const FLAG_PERSISTENT: u32 = 1;

const DESTINATION_ADDRESS: u16 = 1;
const DESTINATION_PORT: u16 = 2;
const DESTINATION_METHOD: u16 = 3;
const DESTINATION_WEIGHT: u16 = 4;
const DESTINATION_UPPER: u16 = 5;
const DESTINATION_LOWER: u16 = 6;
const DESTINATION_ACTIVE: u16 = 7;
const DESTINATION_INACTIVE: u16 = 8;
/// Network address translation.
const METHOD_NAT: u32 = 0;

/// Orders in one datagram: the answers to them fit into the socket's buffer.
const BATCH: usize = 1000;

fn command(order: &Order) -> u8 {
    match order {
        Order::AddServer(..) => NEW_SERVICE,
        Order::SetServer(..) => SET_SERVICE,
        Order::DeleteServer(..) => DELETE_SERVICE,
        Order::AddDestination(..) => NEW_DESTINATION,
        Order::SetDestination(..) => SET_DESTINATION,
        Order::DeleteDestination(..) => DELETE_DESTINATION,
    }
}

/// What an addition comes to where the object is there.
fn setting(order: &Order) -> Option<Order> {
    match order {
        Order::AddServer(server, choice) => Some(Order::SetServer(*server, choice.clone())),
        Order::AddDestination(server, to, weight) => {
            Some(Order::SetDestination(*server, *to, *weight))
        }
        _ => None,
    }
}

fn is_deletion(order: &Order) -> bool {
    matches!(order, Order::DeleteServer(..) | Order::DeleteDestination(..))
}

/// What an order is to do, naming the objects.
fn action(order: &Order) -> String {
    match order {
        Order::AddServer(server, choice) | Order::SetServer(server, choice) => {
            format!("set the virtual server {} (scheduler {})", server.address, choice.scheduler)
        }
        Order::DeleteServer(server) => format!("delete the virtual server {}", server.address),
        Order::AddDestination(server, to, _) | Order::SetDestination(server, to, _) => {
            format!("set the destination {to} of {}", server.address)
        }
        Order::DeleteDestination(server, to) => {
            format!("delete the destination {to} of {}", server.address)
        }
    }
}

/// IPVS of one network namespace: the one that the opening thread was in.
#[derive(Debug)]
pub struct Ipvs {
    socket: Socket,
    family: u16,
}

impl Ipvs {
    /// Opens a connection; the kernel loads the module where it can. `None` when this kernel has no IPVS.
    ///
    /// # Errors
    /// When there is no such socket, or the kernel refuses.
    pub fn open() -> Result<Option<Self>, NetfilterError> {
        let mut socket = Socket::open_to(SockProtocol::NetlinkGeneric)?;
        let sequence = socket.next_sequence(1);
        let mut builder = Builder::default();
        builder.begin_generic(CONTROL, NLM_F_REQUEST, sequence, CONTROL_GET_FAMILY);
        builder.text(CONTROL_FAMILY_NAME, FAMILY);
        builder.end();
        socket.send(builder.bytes())?;
        let mut family = None;
        while let Some(datagram) = socket.receive()? {
            for reply in replies(datagram) {
                match reply.error() {
                    None => family = reply.attributes().u16(CONTROL_FAMILY_ID).or(family),
                    Some(libc::ENOENT) => return Ok(None),
                    Some(errno) => refused(errno, reply.detail(), "tell of IPVS")?,
                }
            }
        }
        let family = family.ok_or(NetfilterError::Answer("the family IPVS has no number"))?;
        Ok(Some(Self { socket, family }))
    }

    /// All virtual servers that have an address, whoever made them; those of a packet mark are left out.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn servers(&mut self) -> Result<Vec<(Server, Choice)>, NetfilterError> {
        let mut servers = Vec::new();
        self.dump(GET_SERVICE, "list the virtual servers", None, |attributes| {
            servers.extend(attributes.nested(SERVICE).and_then(parse_server));
        })?;
        Ok(servers)
    }

    /// The destinations of a virtual server.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn destinations(
        &mut self,
        server: &Server,
    ) -> Result<Vec<(SocketAddr, Destination)>, NetfilterError> {
        let family = Family::of(&server.address.ip());
        let mut destinations = Vec::new();
        self.dump(GET_DESTINATION, "list destinations", Some(server), |attributes| {
            let nested = attributes.nested(DESTINATION);
            destinations.extend(nested.and_then(|found| parse_destination(family, found)));
        })?;
        Ok(destinations)
    }

    /// One virtual server as it is; `None` where there is none. It may be there though the list lacks it: the kernel keeps
    /// those of all namespaces in one list, and loses its place in it when another namespace's change.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn server(&mut self, server: &Server) -> Result<Option<Choice>, NetfilterError> {
        let sequence = self.socket.next_sequence(1);
        let mut builder = Builder::default();
        builder.begin_generic(self.family, NLM_F_REQUEST, sequence, GET_SERVICE);
        let nest = builder.open(SERVICE);
        put_server(&mut builder, server);
        builder.close(&nest);
        builder.end();
        self.socket.drain();
        self.socket.send(builder.bytes())?;
        let mut choice = None;
        while let Some(datagram) = self.socket.receive()? {
            for reply in replies(datagram) {
                match reply.error() {
                    None => {
                        let found = reply.attributes().nested(SERVICE).and_then(parse_server);
                        choice = found.map(|(_, choice)| choice).or(choice);
                    }
                    Some(libc::ESRCH) => return Ok(None),
                    Some(errno) => refused(errno, reply.detail(), "show a virtual server")?,
                }
            }
        }
        Ok(choice)
    }

    /// Carries changes out, in order. All are tried; answers the first error. What is to be added and is there already is
    /// set, after the others.
    ///
    /// # Errors
    /// When the kernel refuses one: the virtual server is not there, or there is no such scheduler.
    pub fn apply(&mut self, orders: &[Order]) -> Result<(), NetfilterError> {
        let mut result = Ok(());
        for orders in orders.chunks(BATCH) {
            let again = RefCell::default();
            result = result.and(self.apply_batch(orders, &again));
            let again = again.into_inner();
            if !again.is_empty() {
                result = result.and(self.apply_batch(&again, &RefCell::default()));
            }
        }
        result
    }

    /// Orders that are to be given otherwise come into `again`.
    fn apply_batch(
        &mut self,
        orders: &[Order],
        again: &RefCell<Vec<Order>>,
    ) -> Result<(), NetfilterError> {
        let count = u32::try_from(orders.len()).expect("a batch is small");
        let first = self.socket.next_sequence(count);
        let mut builder = Builder::default();
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        for (sequence, order) in (0..count).map(|at| first.wrapping_add(at)).zip(orders) {
            builder.begin_generic(self.family, flags, sequence, command(order));
            put_order(&mut builder, order);
            builder.end();
        }
        self.socket.request(builder.bytes(), first, |at, errno, detail| {
            let order = usize::try_from(at).ok().and_then(|at| orders.get(at));
            let Some(order) = order else { return Ok(()) };
            if is_deletion(order) && matches!(errno, libc::ESRCH | libc::ENOENT) {
                return Ok(());
            }
            if let (libc::EEXIST, Some(order)) = (errno, setting(order)) {
                again.borrow_mut().push(order);
                return Ok(());
            }
            refused(errno, detail, &action(order))
        })
    }

    fn dump(
        &mut self,
        command: u8,
        action: &str,
        of: Option<&Server>,
        mut each: impl FnMut(Attributes<'_>),
    ) -> Result<(), NetfilterError> {
        self.socket.drain();
        let sequence = self.socket.next_sequence(1);
        let mut builder = Builder::default();
        builder.begin_generic(self.family, NLM_F_REQUEST | NLM_F_DUMP, sequence, command);
        if let Some(server) = of {
            let nest = builder.open(SERVICE);
            put_server(&mut builder, server);
            builder.close(&nest);
        }
        builder.end();
        // IPVS does not say when a change came between: see [`Self::server`].
        self.socket.dump(builder.bytes(), sequence, action, |reply| each(reply.attributes()))?;
        Ok(())
    }
}

fn put_order(builder: &mut Builder, order: &Order) {
    let (server, choice, destination) = match order {
        Order::AddServer(server, choice) | Order::SetServer(server, choice) => {
            (server, Some(choice), None)
        }
        Order::DeleteServer(server) => (server, None, None),
        Order::AddDestination(server, to, weight) | Order::SetDestination(server, to, weight) => {
            (server, None, Some((to, Some(*weight))))
        }
        Order::DeleteDestination(server, to) => (server, None, Some((to, None))),
    };
    let nest = builder.open(SERVICE);
    put_server(builder, server);
    if let Some(choice) = choice {
        put_choice(builder, server, choice);
    }
    builder.close(&nest);
    if let Some((to, weight)) = destination {
        let nest = builder.open(DESTINATION);
        builder.raw(DESTINATION_ADDRESS, &octets(to.ip()));
        builder.raw(DESTINATION_PORT, &to.port().to_be_bytes());
        if let Some(weight) = weight {
            builder.u32(DESTINATION_METHOD, METHOD_NAT);
            builder.u32(DESTINATION_WEIGHT, weight);
            builder.u32(DESTINATION_UPPER, 0);
            builder.u32(DESTINATION_LOWER, 0);
        }
        builder.close(&nest);
    }
}

fn put_server(builder: &mut Builder, server: &Server) {
    let family = if server.address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    builder.u16(SERVICE_FAMILY, u16::try_from(family).expect("families are small"));
    builder.u16(SERVICE_PROTOCOL, server.protocol.into());
    builder.raw(SERVICE_ADDRESS, &octets(server.address.ip()));
    builder.raw(SERVICE_PORT, &server.address.port().to_be_bytes());
}

fn put_choice(builder: &mut Builder, server: &Server, choice: &Choice) {
    builder.text(SERVICE_SCHEDULER, &choice.scheduler);
    let flags = if choice.persistence_s.is_some() { FLAG_PERSISTENT } else { 0 };
    builder.raw(SERVICE_FLAGS, &[flags.to_ne_bytes(), FLAG_PERSISTENT.to_ne_bytes()].concat());
    builder.u32(SERVICE_TIMEOUT, choice.persistence_s.unwrap_or_default());
    // Each address is a client: of IPv4 a mask, of IPv6 the length of a prefix.
    match server.address {
        SocketAddr::V4(_) => builder.be32(SERVICE_NETMASK, u32::MAX),
        SocketAddr::V6(_) => builder.u32(SERVICE_NETMASK, 128),
    }
}

/// An address in the 16 bytes that both families have here.
fn octets(address: IpAddr) -> [u8; 16] {
    let mut octets = [0; 16];
    match address {
        IpAddr::V4(v4) => octets[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => octets = v6.octets(),
    }
    octets
}

fn parse_address(family: Family, attributes: Attributes<'_>, kind: u16) -> Option<IpAddr> {
    let octets = attributes.find(kind)?;
    Some(match family {
        Family::Ip => Ipv4Addr::from(<[u8; 4]>::try_from(octets.get(..4)?).ok()?).into(),
        Family::Ip6 => Ipv6Addr::from(<[u8; 16]>::try_from(octets.get(..16)?).ok()?).into(),
    })
}

fn parse_server(attributes: Attributes<'_>) -> Option<(Server, Choice)> {
    let family = match i32::from(attributes.u16(SERVICE_FAMILY)?) {
        libc::AF_INET => Family::Ip,
        libc::AF_INET6 => Family::Ip6,
        _ => return None,
    };
    let address = parse_address(family, attributes, SERVICE_ADDRESS)?;
    let address = SocketAddr::new(address, attributes.be16(SERVICE_PORT)?);
    let protocol = u8::try_from(attributes.u16(SERVICE_PROTOCOL)?).ok()?;
    let flags = attributes.find(SERVICE_FLAGS)?.get(..4)?;
    let persistent = u32::from_ne_bytes(flags.try_into().ok()?) & FLAG_PERSISTENT != 0;
    let choice = Choice {
        scheduler: attributes.text(SERVICE_SCHEDULER)?.to_owned(),
        persistence_s: attributes.u32(SERVICE_TIMEOUT).filter(|_| persistent),
    };
    Some((Server { protocol, address }, choice))
}

fn parse_destination(
    family: Family,
    attributes: Attributes<'_>,
) -> Option<(SocketAddr, Destination)> {
    let address = parse_address(family, attributes, DESTINATION_ADDRESS)?;
    let address = SocketAddr::new(address, attributes.be16(DESTINATION_PORT)?);
    let number = |kind: u16| attributes.u32(kind).unwrap_or_default();
    let destination = Destination {
        weight: number(DESTINATION_WEIGHT),
        connections: number(DESTINATION_ACTIVE).saturating_add(number(DESTINATION_INACTIVE)),
    };
    Some((address, destination))
}
