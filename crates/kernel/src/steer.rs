//! Packets with a mark are delivered to the host itself, whatever address they are for: a rule, and a table of routes with
//! one route. What is local this way is local to nobody else: the address answers no ARP, and may be a sender's.

use net::nft::Family;
use nix::sys::socket::SockProtocol;

use crate::link::ROUTE_PROTOCOL;
use crate::netfilter::{Builder, NetfilterError, Socket, refused};

const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

const RULE_PRIORITY: u16 = 6;
const RULE_MARK: u16 = 10;
const RULE_TABLE: u16 = 15;
const RULE_MASK: u16 = 16;
/// `FR_ACT_TO_TBL`.
const TO_TABLE: u8 = 1;

const ROUTE_LINK: u16 = 4;
const ROUTE_TABLE: u16 = 15;
/// `RT_SCOPE_HOST`.
const SCOPE_HOST: u8 = 254;
/// `RTN_LOCAL`.
const LOCAL: u8 = 2;
/// `lo` is the first link of every namespace.
const LOOPBACK: u32 = 1;

/// What is done to a rule or a route, and the error number that says that it was done before.
struct Verb {
    kind: u16,
    flags: u16,
    done: i32,
    words: &'static str,
}

const SET: &str = "deliver packets with a mark to this host";
const CLEAR: &str = "stop delivering packets with a mark to this host";
const SET_RULE: Verb =
    Verb { kind: NEW_RULE, flags: NLM_F_CREATE | NLM_F_EXCL, done: libc::EEXIST, words: SET };
const SET_ROUTE: Verb =
    Verb { kind: NEW_ROUTE, flags: NLM_F_CREATE | NLM_F_REPLACE, done: libc::EEXIST, words: SET };
const CLEAR_RULE: Verb = Verb { kind: DELETE_RULE, flags: 0, done: libc::ENOENT, words: CLEAR };
const CLEAR_ROUTE: Verb = Verb { kind: DELETE_ROUTE, flags: 0, done: libc::ESRCH, words: CLEAR };

/// Which packets, and the names of what makes them local.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steering {
    /// The bits of the packet mark that are all set.
    pub mark: u32,
    /// The number of the table of routes.
    pub table: u32,
    /// The rule's place among the rules.
    pub priority: u32,
}

/// The rules and routes of one network namespace: the one that the opening thread was in.
#[derive(Debug)]
pub struct Steer {
    socket: Socket,
    steering: Steering,
}

impl Steer {
    /// Opens a connection.
    ///
    /// # Errors
    /// When there is no such socket.
    pub fn open(steering: Steering) -> Result<Self, NetfilterError> {
        Ok(Self { socket: Socket::open_to(SockProtocol::NetlinkRoute)?, steering })
    }

    /// Makes the rule and the route of a family, where they are not there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set(&mut self, family: Family) -> Result<(), NetfilterError> {
        self.rule(family, &SET_RULE)?;
        self.route(family, &SET_ROUTE)
    }

    /// Deletes both; what is gone is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn clear(&mut self, family: Family) -> Result<(), NetfilterError> {
        self.rule(family, &CLEAR_RULE)?;
        self.route(family, &CLEAR_ROUTE)
    }

    fn rule(&mut self, family: Family, verb: &Verb) -> Result<(), NetfilterError> {
        let Steering { mark, table, priority } = self.steering;
        // After the lengths: a small table's number, two spare bytes, the action; flags.
        let header = [0, 0, 0, TO_TABLE, 0, 0, 0, 0];
        let attributes =
            [(RULE_PRIORITY, priority), (RULE_MARK, mark), (RULE_MASK, mark), (RULE_TABLE, table)];
        self.change(family, verb, header, &attributes)
    }

    fn route(&mut self, family: Family, verb: &Verb) -> Result<(), NetfilterError> {
        // After the lengths: a small table's number, protocol, scope, type; flags.
        let header = [0, ROUTE_PROTOCOL, SCOPE_HOST, LOCAL, 0, 0, 0, 0];
        let attributes = [(ROUTE_TABLE, self.steering.table), (ROUTE_LINK, LOOPBACK)];
        self.change(family, verb, header, &attributes)
    }

    fn change(
        &mut self,
        family: Family,
        verb: &Verb,
        header: [u8; 8],
        attributes: &[(u16, u32)],
    ) -> Result<(), NetfilterError> {
        let number = match family {
            Family::Ip => libc::AF_INET,
            Family::Ip6 => libc::AF_INET6,
        };
        let number = u8::try_from(number).expect("families are small");
        let sequence = self.socket.next_sequence(1);
        let mut builder = Builder::default();
        let flags = NLM_F_REQUEST | NLM_F_ACK | verb.flags;
        builder.begin(verb.kind, flags, sequence, number, 0);
        builder.header(&header);
        for (kind, value) in attributes {
            builder.u32(*kind, *value);
        }
        builder.end();
        self.socket.request(builder.bytes(), sequence, |_, errno, detail| {
            // A kernel without IPv6 has nothing to deliver.
            if errno == verb.done || errno == libc::EAFNOSUPPORT || errno == libc::EOPNOTSUPP {
                return Ok(());
            }
            refused(errno, detail, verb.words)
        })
    }
}
