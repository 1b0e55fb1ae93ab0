//! The kernel's side of IPVS: virtual servers, the tables that lead packets to them, and the rule by which these packets
//! are delivered to the host.
//!
//! The elements of the tables say which virtual servers are this proxy's. They come before a virtual server and go after
//! it, so that a later agent finds every one that an earlier one made; all others are somebody else's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernel::ipvs::Ipvs;
use kernel::nftables::{Inventory, Nftables};
use kernel::steer::{Steer, Steering};
use kernel::sysctl;
use net::ipvs::{Choice, Held, Order, Server, State, carry_out};
use net::nft::{Family, Op, Table, Transaction, Value};
use plan::proxy::FAMILIES;
use plan::proxy::ipvs::{
    ACTIVE, Change, SERVERS, STEER_MARK, STEER_PRIORITY, STEER_TABLE, Servers, TABLE, active,
    drained, elements, is_draining, narrow, owned, table_of, widen,
};

use crate::proxy::{IpvsMissing, SinkError};

/// Looking at everything may take at most one part in so many of the time.
const SHARE: u32 = 20;
/// How often to look whether somebody changed something. The kernel does not say.
const LOOK_AFTER: Duration = Duration::from_secs(5);

/// Parameters of IPVS. With connection tracking, source NAT works; without the next, clients of a destination that is gone
/// would get no answer; and affinity would lead to one whose weight is 0.
const PARAMETERS: [(&str, &str); 4] = [
    ("net/ipv4/vs/conntrack", "1"),
    ("net/ipv4/vs/expire_nodest_conn", "1"),
    ("net/ipv4/vs/expire_quiescent_template", "1"),
    ("net/ipv4/vs/conn_reuse_mode", "1"),
];

/// Sets the parameters of the calling thread's network namespace.
pub(super) fn tune() {
    for (name, value) in PARAMETERS {
        if let Err(error) = sysctl::set(name, value) {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(component = "proxy", name, error, "IPVS may lose connections");
        }
    }
}

/// Tells the kernel. Knows what it has, or that it does not know.
#[derive(Debug)]
pub(in crate::proxy) struct Sink {
    ipvs: Ipvs,
    steer: Steer,
    nft: Nftables,
    wanted: Servers,
    /// This proxy's virtual servers in the kernel; `None` where that is not known.
    state: Option<State>,
    /// Those that new connections are led to, as the tables say.
    active: BTreeSet<Server>,
    /// The tables without elements, as the kernel showed them.
    inventories: [Option<Inventory>; 2],
    /// nftables' generation after the last look or change.
    generation: u32,
    commits: u32,
    distrusts: bool,
    looked: Instant,
    cost: Duration,
}

impl Sink {
    pub(in crate::proxy) fn open() -> Result<Self, SinkError> {
        let steering = Steering { mark: STEER_MARK, table: STEER_TABLE, priority: STEER_PRIORITY };
        Ok(Self {
            ipvs: Ipvs::open()?.ok_or(IpvsMissing)?,
            steer: Steer::open(steering)?,
            nft: Nftables::open()?,
            wanted: Servers::new(),
            state: None,
            active: BTreeSet::new(),
            inventories: [None, None],
            generation: 0,
            commits: 0,
            distrusts: false,
            looked: Instant::now(),
            cost: Duration::ZERO,
        })
    }

    pub(super) fn is_known(&self) -> bool {
        self.state.is_some()
    }

    pub(super) fn forget(&mut self) {
        self.state = None;
    }

    pub(super) fn distrust(&mut self) {
        self.distrusts = true;
    }

    /// Transactions of nftables since this was last asked.
    pub(super) fn commits(&mut self) -> u32 {
        std::mem::take(&mut self.commits)
    }

    /// Makes the kernel have what these virtual servers need, whatever it had. Answers all that may have more than that.
    pub(in crate::proxy) fn replace(
        &mut self,
        wanted: Servers,
    ) -> Result<BTreeSet<Server>, SinkError> {
        self.wanted = wanted;
        self.look()?;
        self.widen_all()?;
        let state = self.state.iter().flat_map(|state| state.keys().copied());
        Ok(state.collect())
    }

    /// The same for those that differ.
    pub(super) fn change(&mut self, change: Change) -> Result<BTreeSet<Server>, SinkError> {
        self.distrusts |= self.meddled()?;
        let touched: BTreeSet<Server> = change.keys().copied().collect();
        for (server, wanted) in change {
            match wanted {
                Some(wanted) => self.wanted.insert(server, wanted),
                None => self.wanted.remove(&server),
            };
        }
        let is_new =
            |server: &&Server| self.wanted.contains_key(server) && !self.active.contains(server);
        let new: Vec<Server> = touched.iter().filter(is_new).copied().collect();
        self.claim(&new)?;
        let orders = touched.iter().filter_map(|server| {
            Some(widen(self.state.as_ref()?, *server, self.wanted.get(server)?))
        });
        let orders: Vec<Order> = orders.flatten().collect();
        self.carry_out(&orders)?;
        Ok(touched)
    }

    /// Takes away what these virtual servers do not need.
    pub(in crate::proxy) fn finish(&mut self, touched: &BTreeSet<Server>) -> Result<(), SinkError> {
        let state = self.state.as_ref().expect("it was told a moment ago");
        let orders = touched.iter().map(|server| narrow(state, *server, self.wanted.get(server)));
        let orders: Vec<Order> = orders.flatten().collect();
        self.carry_out(&orders)?;
        self.release(touched)
    }

    /// Takes away what has no connections any more, and repairs what somebody changed, where that is due.
    pub(in crate::proxy) fn verify(&mut self) -> Result<(), SinkError> {
        let since = self.looked.elapsed();
        if !self.distrusts && (since < LOOK_AFTER || since < self.cost * SHARE) {
            return Ok(());
        }
        let started = Instant::now();
        let before = self.state.clone();
        self.look()?;
        if self.widen_all()? && before.is_some() {
            tracing::warn!(
                component = "proxy",
                "somebody changed the virtual servers; they are repaired"
            );
        }
        self.drain()?;
        self.distrusts = false;
        (self.cost, self.looked) = (started.elapsed(), Instant::now());
        Ok(())
    }

    /// Takes away what has no connections any more, as the kernel showed it last.
    fn drain(&mut self) -> Result<(), SinkError> {
        let Some(state) = &self.state else { return Ok(()) };
        let draining =
            state.iter().filter(|(server, held)| is_draining(held, self.wanted.get(server)));
        let draining: BTreeSet<Server> = draining.map(|(server, _)| *server).collect();
        let orders = draining.iter().map(|server| drained(state, *server, self.wanted.get(server)));
        let orders: Vec<Order> = orders.flatten().collect();
        self.carry_out(&orders)?;
        self.finish(&draining)
    }

    /// Whether the kernel has nothing of this proxy's any more.
    pub(in crate::proxy) fn is_empty(&self) -> bool {
        self.state.as_ref().is_some_and(State::is_empty)
    }

    /// Takes the tables and the rule away, when no virtual server is left.
    pub(in crate::proxy) fn close(&mut self) -> Result<(), SinkError> {
        for family in FAMILIES {
            if self.nft.has_table(family, TABLE)? {
                self.commit(family, vec![Op::AddTable, Op::DeleteTable])?;
            }
            self.steer.clear(family)?;
        }
        Ok(())
    }

    /// Reads what the kernel has, and makes the tables and the rule right.
    fn look(&mut self) -> Result<(), SinkError> {
        let known = self.state.take();
        let suspect = known.is_none() || self.distrusts || self.meddled()?;
        let mut ours: BTreeSet<Server> = self.wanted.keys().copied().collect();
        ours.extend(known.iter().flat_map(|state| state.keys()));
        if suspect {
            self.active = self.wanted.keys().copied().collect();
            for family in FAMILIES {
                let found = self.nft.elements(family, TABLE, SERVERS)?.unwrap_or_default();
                ours.extend(owned(family, &found));
                let found = self.nft.elements(family, TABLE, ACTIVE)?.unwrap_or_default();
                self.active.extend(owned(family, &found));
            }
            ours.extend(&self.active);
            self.lead(&ours)?;
        }
        for family in FAMILIES {
            self.steer.set(family)?;
        }
        let state = self.show(&ours, known.as_ref())?;
        let gone: BTreeSet<Server> =
            ours.into_iter().filter(|server| !state.contains_key(server)).collect();
        self.state = Some(state);
        self.release(&gone)
    }

    /// What the kernel has of these virtual servers. Those that are new may be missing though they are there.
    fn show(&mut self, ours: &BTreeSet<Server>, known: Option<&State>) -> Result<State, SinkError> {
        let mut choices: BTreeMap<Server, Choice> = self.ipvs.servers()?.into_iter().collect();
        choices.retain(|server, _| ours.contains(server));
        let is_new = |server: &Server| {
            let was_there = known.is_some_and(|known| known.contains_key(server));
            self.wanted.contains_key(server) && !was_there
        };
        for server in ours {
            if choices.contains_key(server) || is_new(server) {
                continue;
            }
            choices.extend(self.ipvs.server(server)?.map(|choice| (*server, choice)));
        }
        let mut state = State::new();
        for (server, choice) in choices {
            let destinations = self.ipvs.destinations(&server)?.into_iter().collect();
            state.insert(server, Held { choice, destinations });
        }
        Ok(state)
    }

    /// Whether somebody may have changed rules, as far as the kernel tells.
    fn meddled(&mut self) -> Result<bool, SinkError> {
        Ok(self.nft.generation()? != self.generation)
    }

    /// All changes of rules until now are this agent's, or were looked at.
    pub(super) fn settle(&mut self) -> Result<(), SinkError> {
        self.generation = self.nft.generation()?;
        Ok(())
    }

    /// Makes the tables such that packets to these virtual servers come to IPVS.
    fn lead(&mut self, servers: &BTreeSet<Server>) -> Result<(), SinkError> {
        for (at, family) in FAMILIES.into_iter().enumerate() {
            let wanted = table_of(family, servers, &self.active);
            let inventory = self.nft.inventory(family, TABLE)?;
            if inventory.is_some() && inventory == self.inventories[at] && self.has(&wanted)? {
                continue;
            }
            let changed = self.changes(&wanted, inventory).and_then(|ops| self.commit(family, ops));
            if let Err(error) = changed {
                // A set of another type, from another version: only a new table helps.
                tracing::info!(component = "proxy", error = %error, "the table is made afresh");
                let mut ops = vec![Op::AddTable, Op::DeleteTable];
                ops.extend(wanted.creation());
                self.commit(family, ops)?;
            }
            self.inventories[at] = self.nft.inventory(family, TABLE)?;
        }
        Ok(())
    }

    /// What makes the table this one. Elements that stay are not touched: a packet that is just on its way would miss them.
    fn changes(&mut self, wanted: &Table, found: Option<Inventory>) -> Result<Vec<Op>, SinkError> {
        let Some(found) = found else { return Ok(wanted.creation()) };
        let mut ops = vec![Op::AddTable];
        let chains = wanted.chains.iter();
        ops.extend(chains.map(|(name, chain)| Op::AddChain(Arc::clone(name), chain.hook)));
        let sets = wanted.sets.iter();
        ops.extend(sets.map(|(name, set)| Op::AddSet(Arc::clone(name), set.clone())));
        ops.push(Op::FlushRules);
        ops.extend(wanted.rules());
        for (set, elements) in &wanted.elements {
            let held = self.nft.elements(wanted.family, TABLE, set)?.unwrap_or_default();
            let new = elements.iter().filter(|(key, _)| !held.contains_key(*key));
            let new = new.map(|(key, value)| (key.clone(), value.clone())).collect();
            let old = held.keys().filter(|key| !elements.contains_key(*key)).cloned().collect();
            ops.push(Op::AddElements(Arc::clone(set), new));
            ops.push(Op::DeleteElements(Arc::clone(set), old));
        }
        let foreign = found.chains.into_keys().filter(|name| !wanted.chains.contains_key(name));
        ops.extend(foreign.map(Op::DeleteChain));
        let foreign = found.sets.into_iter().filter(|name| !wanted.sets.contains_key(name));
        ops.extend(foreign.map(Op::DeleteSet));
        Ok(ops)
    }

    fn has(&mut self, wanted: &Table) -> Result<bool, SinkError> {
        for (set, elements) in &wanted.elements {
            if self.nft.elements(wanted.family, TABLE, set)?.as_ref() != Some(elements) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Says of new virtual servers that they are this proxy's.
    fn claim(&mut self, servers: &[Server]) -> Result<(), SinkError> {
        for family in FAMILIES {
            let mut ops = Vec::new();
            for server in servers.iter().filter(|server| of(family, server)) {
                for (set, key) in elements(server).into_iter().chain([active(server)]) {
                    ops.push(Op::AddElements(Arc::from(set), vec![(key, Value::None)]));
                }
            }
            self.commit(family, ops)?;
        }
        self.active.extend(servers);
        Ok(())
    }

    /// Says of virtual servers that are not wanted that they take no new connections; and of those that are gone that they
    /// are.
    fn release(&mut self, servers: &BTreeSet<Server>) -> Result<(), SinkError> {
        let Some(state) = &self.state else { return Ok(()) };
        let unwanted: Vec<Server> =
            servers.iter().filter(|server| !self.wanted.contains_key(server)).copied().collect();
        let gone: Vec<Server> =
            unwanted.iter().filter(|server| !state.contains_key(server)).copied().collect();
        let mut addresses: BTreeSet<IpAddr> =
            gone.iter().map(|server| server.address.ip()).collect();
        if !addresses.is_empty() {
            for server in state.keys().chain(self.wanted.keys()) {
                addresses.remove(&server.address.ip());
            }
        }
        for family in FAMILIES {
            let mut ops = Vec::new();
            let mut delete = |(set, key)| ops.push(Op::DeleteElements(Arc::from(set), vec![key]));
            for server in unwanted.iter().filter(|server| of(family, server)) {
                if self.active.remove(server) {
                    delete(active(server));
                }
            }
            for server in gone.iter().filter(|server| of(family, server)) {
                let [of_server, of_address] = elements(server);
                delete(of_server);
                if addresses.remove(&server.address.ip()) {
                    delete(of_address);
                }
            }
            self.commit(family, ops)?;
        }
        Ok(())
    }

    fn widen_all(&mut self) -> Result<bool, SinkError> {
        let Some(state) = &self.state else { return Ok(false) };
        let orders = self.wanted.iter().map(|(server, wanted)| widen(state, *server, wanted));
        let orders: Vec<Order> = orders.flatten().collect();
        self.carry_out(&orders)?;
        Ok(!orders.is_empty())
    }

    fn carry_out(&mut self, orders: &[Order]) -> Result<(), SinkError> {
        if orders.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.ipvs.apply(orders) {
            self.state = None;
            return Err(error.into());
        }
        if let Some(state) = &mut self.state {
            orders.iter().for_each(|order| carry_out(state, order));
        }
        Ok(())
    }

    fn commit(&mut self, family: Family, ops: Vec<Op>) -> Result<(), SinkError> {
        if ops.is_empty() {
            return Ok(());
        }
        let transaction = Transaction { family, table: TABLE.into(), ops };
        self.nft.commit(&transaction).inspect_err(|_| self.state = None)?;
        self.commits += 1;
        Ok(())
    }
}

fn of(family: Family, server: &Server) -> bool {
    Family::of(&server.address.ip()) == family
}
