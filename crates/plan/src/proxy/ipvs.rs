//! Services by IPVS: which virtual servers there are and what they choose among, beside the nftables table, which does all
//! that IPVS does not: refusals, source ranges, source NAT, and the choice for clients that other endpoints serve.
//! Upstream counterpart: `pkg/proxy/ipvs`.
//!
//! A virtual server's destinations go in two steps: first with weight 0, which leaves them the connections that they have;
//! and when these have ended, out.

#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use api::Name;
use net::ipvs::{Choice, Held, Order, Server, State, carry_out};
use net::nft::{
    Chain, ChainKind, CmpOp, CtKey, Elements, Expr, Family, Field, Fields, Hook, HookPoint, Key,
    MetaKey, Reg, Rule, Set, Table, Value, load,
};
use serde::{Deserialize, Serialize};

use super::elements::frontends;
use crate::service::{Action, Frontend, Protocol, ServiceView};

/// The name of the tables that lead packets to IPVS, in both families.
pub const TABLE: &str = "rhumb_ipvs";
/// The set of virtual servers that are this proxy's.
pub const SERVERS: &str = "servers";
/// The set of those among them that take new connections.
pub const ACTIVE: &str = "active";
/// The set of their addresses.
const ADDRESSES: &str = "addresses";
/// Marks packets on their way to IPVS, which only sees packets to the host itself. Cleared before IPVS has them.
pub const STEER_MARK: u32 = 0x2000;
/// The table of routes that makes them such.
pub const STEER_TABLE: u32 = 8211;
/// The place of the rule that asks it: before the tables of others.
pub const STEER_PRIORITY: u32 = 211;

/// After destination NAT: a connection that another mode translated is none of IPVS's.
const AFTER_NAT: i32 = -90;
/// Before IPVS, which is at 98.
const BEFORE_IPVS: i32 = 90;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const NEW: u32 = 8;
/// `NF_CT_STATE_BIT(IP_CT_RELATED)`.
const RELATED: u32 = 4;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;

/// How a virtual server chooses a destination (`--ipvs-scheduler`). The words are the kernel's, and upstream's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// One after the other.
    #[default]
    Rr,
    /// The same by weight, which is 1 for all.
    Wrr,
    /// The one with the fewest connections.
    Lc,
    /// The same by weight.
    Wlc,
    /// By the destination address.
    Dh,
    /// By the source address.
    Sh,
    /// The shortest expected delay.
    Sed,
    /// Never one that waits.
    Nq,
    /// By the source address, moving few clients when destinations change.
    Mh,
}

impl Scheduler {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Rr,
        Self::Wrr,
        Self::Lc,
        Self::Wlc,
        Self::Dh,
        Self::Sh,
        Self::Sed,
        Self::Nq,
        Self::Mh,
    ];

    /// The kernel's word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Dh => "dh",
            Self::Sh => "sh",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::Mh => "mh",
        }
    }
}

/// A virtual server as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// How it chooses.
    pub choice: Choice,
    /// Among what.
    pub endpoints: BTreeSet<SocketAddr>,
}

/// The virtual servers as they should be.
pub type Servers = BTreeMap<Server, Wanted>;

/// Those that differ; `None` for those that are to go.
pub type Change = BTreeMap<Server, Option<Wanted>>;

/// The endpoints among which IPVS chooses at a frontend; `None` where it has no part: what comes from 127.0.0.1 cannot
/// leave the host through IPVS. Clients that a `Split` puts inside are the nftables table's.
pub(super) fn endpoints(frontend: &Frontend) -> Option<&[SocketAddr]> {
    if frontend.address.ip().is_loopback() {
        return None;
    }
    match &frontend.action {
        Action::Forward { endpoints, .. } => Some(endpoints),
        Action::Split { outside, .. } if !outside.is_empty() => Some(outside),
        Action::Split { .. } | Action::Reject | Action::Drop => None,
    }
}

fn servers(view: &ServiceView, scheduler: Scheduler) -> Servers {
    let mut servers = Servers::new();
    for frontend in &view.frontends {
        let Some(endpoints) = endpoints(frontend) else { continue };
        let server = Server { address: frontend.address, protocol: frontend.protocol.number() };
        let scheduler = scheduler.word().to_owned();
        let choice = Choice { scheduler, persistence_s: frontend.affinity_s };
        // Where two kinds of addresses meet, the first one rules.
        let endpoints = endpoints.iter().copied().collect();
        servers.entry(server).or_insert(Wanted { choice, endpoints });
    }
    servers
}

/// The virtual servers of all Services. Two Services may claim one: the first by name has it.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    claims: BTreeMap<Server, BTreeMap<Name, Wanted>>,
    shares: BTreeMap<Name, BTreeSet<Server>>,
}

impl Claims {
    /// Puts a Service's servers in the place of those that it had; takes note of what differs.
    pub(super) fn put(
        &mut self,
        name: &Name,
        view: &ServiceView,
        scheduler: Scheduler,
        change: &mut Change,
    ) {
        let new = servers(view, scheduler);
        let share: BTreeSet<Server> = new.keys().copied().collect();
        let old = self.shares.remove(name).unwrap_or_default();
        for server in old.difference(&share) {
            self.withdraw(name, server, change);
        }
        for (server, wanted) in new {
            let claims = self.claims.entry(server).or_default();
            let before = claims.first_key_value().map(|(_, wanted)| wanted.clone());
            claims.insert(name.clone(), wanted);
            let now = claims.first_key_value().map(|(_, wanted)| wanted.clone());
            if now != before {
                change.insert(server, now);
            }
        }
        if !share.is_empty() {
            self.shares.insert(name.clone(), share);
        }
    }

    fn withdraw(&mut self, name: &Name, server: &Server, change: &mut Change) {
        let Entry::Occupied(mut claims) = self.claims.entry(*server) else { return };
        let before = claims.get().first_key_value().map(|(_, wanted)| wanted.clone());
        claims.get_mut().remove(name);
        let now = claims.get().first_key_value().map(|(_, wanted)| wanted.clone());
        if now.is_none() {
            claims.remove();
        }
        if now != before {
            change.insert(*server, now);
        }
    }

    pub(super) fn servers(&self) -> Servers {
        let first = |(server, claims): (&Server, &BTreeMap<Name, Wanted>)| {
            Some((*server, claims.first_key_value()?.1.clone()))
        };
        self.claims.iter().filter_map(first).collect()
    }
}

/// The kernel's state when nothing is left to do.
#[must_use]
pub fn desired(servers: &Servers) -> State {
    let mut state = State::new();
    for (server, wanted) in servers {
        for order in widen(&state, *server, wanted) {
            carry_out(&mut state, &order);
        }
    }
    state
}

/// What must be there before connections are led to a virtual server.
#[must_use]
pub fn widen(state: &State, server: Server, wanted: &Wanted) -> Vec<Order> {
    let mut orders = Vec::new();
    let none = Held::default();
    let held = match state.get(&server) {
        Some(held) => held,
        None => {
            orders.push(Order::AddServer(server, wanted.choice.clone()));
            &none
        }
    };
    if orders.is_empty() && held.choice != wanted.choice {
        orders.push(Order::SetServer(server, wanted.choice.clone()));
    }
    for endpoint in &wanted.endpoints {
        match held.destinations.get(endpoint) {
            None => orders.push(Order::AddDestination(server, *endpoint, 1)),
            Some(found) if found.weight != 1 => {
                orders.push(Order::SetDestination(server, *endpoint, 1));
            }
            Some(_) => {}
        }
    }
    orders
}

/// What goes after that: destinations get weight 0, but for those of UDP, whose flows are to move.
#[must_use]
pub fn narrow(state: &State, server: Server, wanted: Option<&Wanted>) -> Vec<Order> {
    let Some(held) = state.get(&server) else { return Vec::new() };
    let at_once = server.protocol == Protocol::Udp.number();
    if wanted.is_none() && (at_once || held.destinations.is_empty()) {
        return vec![Order::DeleteServer(server)];
    }
    let spare = held.destinations.iter().filter(|(endpoint, _)| !is_wanted(wanted, endpoint));
    let order = |(endpoint, found): (&SocketAddr, &net::ipvs::Destination)| {
        if at_once {
            Some(Order::DeleteDestination(server, *endpoint))
        } else {
            (found.weight != 0).then_some(Order::SetDestination(server, *endpoint, 0))
        }
    };
    spare.filter_map(order).collect()
}

/// What goes for good: destinations with weight 0 whose connections have ended, as the kernel has just shown them; and a
/// virtual server without any.
#[must_use]
pub fn drained(shown: &State, server: Server, wanted: Option<&Wanted>) -> Vec<Order> {
    let Some(held) = shown.get(&server) else { return Vec::new() };
    let is_done = |(endpoint, found): &(&SocketAddr, &net::ipvs::Destination)| {
        !is_wanted(wanted, endpoint) && found.weight == 0 && found.connections == 0
    };
    let done: Vec<Order> = held
        .destinations
        .iter()
        .filter(is_done)
        .map(|(endpoint, _)| Order::DeleteDestination(server, *endpoint))
        .collect();
    if wanted.is_none() && done.len() == held.destinations.len() {
        return vec![Order::DeleteServer(server)];
    }
    done
}

/// Whether a virtual server has destinations that are to go when their connections have ended.
#[must_use]
pub fn is_draining(held: &Held, wanted: Option<&Wanted>) -> bool {
    wanted.is_none() || held.destinations.keys().any(|endpoint| !is_wanted(wanted, endpoint))
}

fn is_wanted(wanted: Option<&Wanted>, endpoint: &SocketAddr) -> bool {
    wanted.is_some_and(|wanted| wanted.endpoints.contains(endpoint))
}

/// The elements that say that a virtual server is this proxy's, and lead packets to it: set and key.
#[must_use]
pub fn elements(server: &Server) -> [(&'static str, Key); 2] {
    let address = Fields::new().address(server.address.ip());
    let all = address.clone().proto(server.protocol).port(server.address.port());
    [(SERVERS, all.key()), (ADDRESSES, address.key())]
}

/// The element that says that it takes new connections: set and key.
#[must_use]
pub fn active(server: &Server) -> (&'static str, Key) {
    let [(_, key), _] = elements(server);
    (ACTIVE, key)
}

/// The virtual servers among the elements of [`SERVERS`] or [`ACTIVE`], as the kernel shows them.
#[must_use]
pub fn owned(family: Family, elements: &Elements) -> BTreeSet<Server> {
    let server = |(protocol, address)| Server { address, protocol };
    frontends(family, elements).map(server).collect()
}

/// The table that leads packets to IPVS, without elements: packets to virtual servers get [`STEER_MARK`], and so do
/// errors that belong to their connections.
#[must_use]
pub fn table(family: Family) -> Table {
    let mut table = Table::new(family, TABLE);
    let address = Field::address(family);
    let frontend = || vec![address, Field::Proto, Field::Port];
    for (name, key) in [(SERVERS, frontend()), (ACTIVE, frontend()), (ADDRESSES, vec![address])] {
        table.sets.insert(name.into(), Set::of(key));
        table.elements.insert(name.into(), Elements::new());
    }
    let hook = |point, priority| Some(Hook { kind: ChainKind::Filter, point, priority });
    let steer = Chain {
        hook: hook(HookPoint::Prerouting, AFTER_NAT),
        rules: vec![steer_known(family), steer_packets(family, ACTIVE), steer_errors(family)],
    };
    let arrived = Chain { hook: hook(HookPoint::Input, BEFORE_IPVS), rules: vec![unmark()] };
    table.chains.insert("steer".into(), steer);
    table.chains.insert("arrived".into(), arrived);
    table
}

/// The same with the elements of these virtual servers; those in `taking` take new connections.
#[must_use]
pub fn table_of(family: Family, servers: &BTreeSet<Server>, taking: &BTreeSet<Server>) -> Table {
    let mut table = table(family);
    let ours = |server: &&Server| Family::of(&server.address.ip()) == family;
    for server in servers.iter().filter(ours) {
        let taking = taking.contains(server).then(|| active(server));
        for (set, key) in elements(server).into_iter().chain(taking) {
            table.elements.entry(set.into()).or_default().insert(key, Value::None);
        }
    }
    table
}

fn find(set: &str) -> Expr {
    Expr::Lookup { set: set.into(), from: Reg(0), to: None, invert: false }
}

fn change_mark(set: u32, clear: u32) -> [Expr; 3] {
    let (mask, xor) = ((!(set | clear)).to_ne_bytes().into(), set.to_ne_bytes().into());
    let key = MetaKey::Mark;
    [
        Expr::Meta { key, to: Reg(0) },
        Expr::Bitwise { from: Reg(0), to: Reg(0), mask, xor },
        Expr::MetaSet { key, from: Reg(0) },
    ]
}

fn steer_packets(family: Family, set: &str) -> Rule {
    let width = if family == Family::Ip { 1 } else { 4 };
    let mut exprs = vec![
        load::destination(family, Reg(0)),
        load::l4proto(Reg(width)),
        load::destination_port(Reg(width + 1)),
        find(set),
    ];
    exprs.extend(change_mark(STEER_MARK, 0));
    Rule { exprs }
}

/// A virtual server that is to go keeps its connections. What is new is not for it.
fn steer_known(family: Family) -> Rule {
    let mut exprs = vec![
        Expr::Ct { key: CtKey::State, to: Reg(0) },
        Expr::Cmp { from: Reg(0), op: CmpOp::Neq, value: NEW.to_ne_bytes().into() },
    ];
    exprs.extend(steer_packets(family, SERVERS).exprs);
    Rule { exprs }
}

/// Path MTU and the like: without them a client's large packets would be lost.
fn steer_errors(family: Family) -> Rule {
    let icmp = if family == Family::Ip { ICMP } else { ICMP6 };
    let related = RELATED.to_ne_bytes();
    let mut exprs = vec![
        load::l4proto(Reg(0)),
        Expr::Cmp { from: Reg(0), op: CmpOp::Eq, value: [icmp].into() },
        Expr::Ct { key: CtKey::State, to: Reg(0) },
        Expr::Bitwise { from: Reg(0), to: Reg(0), mask: related.into(), xor: [0; 4].into() },
        Expr::Cmp { from: Reg(0), op: CmpOp::Neq, value: [0; 4].into() },
        load::destination(family, Reg(0)),
        find(ADDRESSES),
    ];
    exprs.extend(change_mark(STEER_MARK, 0));
    Rule { exprs }
}

/// IPVS sends packets on through the host's other rules, which are not to see them delivered to the host again.
fn unmark() -> Rule {
    let bits = STEER_MARK.to_ne_bytes();
    let mut exprs = vec![
        Expr::Meta { key: MetaKey::Mark, to: Reg(0) },
        Expr::Bitwise { from: Reg(0), to: Reg(0), mask: bits.into(), xor: [0; 4].into() },
        Expr::Cmp { from: Reg(0), op: CmpOp::Eq, value: bits.into() },
    ];
    exprs.extend(change_mark(0, STEER_MARK));
    Rule { exprs }
}
