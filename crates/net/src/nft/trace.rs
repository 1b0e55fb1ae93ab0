//! Runs a packet through a table as the kernel would: the test of a rule set that needs no kernel.
//!
//! Registers hold bytes, lookups are exact, random numbers are an argument. The tracer knows the NAT hooks' part of
//! the way; routing and what other tables do are outside.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{
    CmpOp, CtKey, DynOp, Elements, Expr, Family, Key, MetaKey, PayloadBase, Reg, Reject, Rule,
    Table, Value, Verdict,
};

/// Jumps deeper than this end the way: the kernel's own limit.
const JUMP_DEPTH_MAX: u32 = 16;

/// The first packet of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol number.
    pub proto: u8,
    /// Destination port.
    pub port: u16,
    /// Whether the source is an address of this host.
    pub source_is_local: bool,
    /// The packet mark.
    pub mark: u32,
}

/// How a chain let go of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on unchanged.
    Accept,
    /// It goes on to another destination.
    Dnat(IpAddr, u16),
    /// It goes on with this host's source address.
    Masquerade,
    /// It is answered and discarded.
    Reject,
    /// It is discarded.
    Drop,
}

/// What a chain did to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// How it ended.
    pub outcome: Outcome,
    /// The mark afterwards.
    pub mark: u32,
    /// Elements that rules put into dynamic maps, by map.
    pub learned: BTreeMap<String, Elements>,
}

enum Step {
    Next,
    Break,
    Verdict(Verdict),
    End(Outcome),
}

struct Tracer<'a> {
    table: &'a Table,
    packet: &'a Packet,
    random: u32,
    mark: u32,
    regs: [u8; 64],
    learned: BTreeMap<String, Elements>,
}

impl Table {
    /// Runs `packet` through the chain `chain`; `random` stands for every random number, before the modulus.
    /// `learned` holds the elements of dynamic maps.
    #[must_use]
    pub fn trace(
        &self,
        chain: &str,
        packet: &Packet,
        random: u32,
        learned: BTreeMap<String, Elements>,
    ) -> Traced {
        let mut tracer =
            Tracer { table: self, packet, random, mark: packet.mark, regs: [0; 64], learned };
        let outcome = tracer.chain(chain, 0).unwrap_or(Outcome::Accept);
        Traced { outcome, mark: tracer.mark, learned: tracer.learned }
    }
}

impl Tracer<'_> {
    /// `None` when the chain came to its end or returned.
    fn chain(&mut self, name: &str, depth: u32) -> Option<Outcome> {
        let mut chain = self.table.chains.get(name)?;
        assert!(depth < JUMP_DEPTH_MAX, "the chain {name} is too deep");
        let mut rules = chain.rules.iter();
        while let Some(rule) = rules.next() {
            match self.rule(rule) {
                Step::Next | Step::Break => {}
                Step::End(outcome) => return Some(outcome),
                Step::Verdict(Verdict::Accept) => return Some(Outcome::Accept),
                Step::Verdict(Verdict::Drop) => return Some(Outcome::Drop),
                Step::Verdict(Verdict::Return) => return None,
                Step::Verdict(Verdict::Goto(next)) => {
                    chain = self.table.chains.get(&next)?;
                    rules = chain.rules.iter();
                }
                Step::Verdict(Verdict::Jump(next)) => {
                    if let Some(outcome) = self.chain(&next, depth + 1) {
                        return Some(outcome);
                    }
                }
            }
        }
        None
    }

    fn rule(&mut self, rule: &Rule) -> Step {
        for expr in &rule.exprs {
            match self.step(expr) {
                Step::Next => {}
                other => return other,
            }
        }
        Step::Next
    }

    fn write(&mut self, to: Reg, bytes: &[u8]) {
        let at = usize::from(to.0) * 4;
        let padded = bytes.len().div_ceil(4) * 4;
        self.regs[at..at + padded].fill(0);
        self.regs[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn read(&self, from: Reg, len: usize) -> &[u8] {
        let at = usize::from(from.0) * 4;
        &self.regs[at..at + len]
    }

    fn step(&mut self, expr: &Expr) -> Step {
        match expr {
            Expr::Payload { base, offset, len, to } => {
                let bytes = self.payload(*base, *offset, *len);
                self.write(*to, &bytes);
            }
            Expr::Meta { key, to } => match key {
                MetaKey::Mark => self.write(*to, &self.mark.to_ne_bytes()),
                MetaKey::L4Proto => self.write(*to, &[self.packet.proto]),
                MetaKey::IifName | MetaKey::OifName => self.write(*to, &[0; 16]),
            },
            Expr::MetaSet { key: MetaKey::Mark, from } => {
                let bytes: [u8; 4] = self.read(*from, 4).try_into().expect("four bytes were read");
                self.mark = u32::from_ne_bytes(bytes);
            }
            Expr::MetaSet { .. } | Expr::Counter => {}
            Expr::Ct { key, to } => match key {
                CtKey::State => self.write(*to, &8_u32.to_ne_bytes()),
                CtKey::Status | CtKey::Mark => self.write(*to, &0_u32.to_ne_bytes()),
                // A first packet's connection has no answer yet that rules could go by.
                _ => return Step::Break,
            },
            Expr::Cmp { from, op, value } => {
                let equal = self.read(*from, value.len()) == &**value;
                if equal != (*op == CmpOp::Eq) {
                    return Step::Break;
                }
            }
            Expr::Bitwise { from, to, mask, xor } => {
                let bytes = self.read(*from, mask.len()).iter().zip(mask).zip(xor);
                let bytes: Vec<u8> = bytes.map(|((byte, mask), xor)| byte & mask ^ xor).collect();
                self.write(*to, &bytes);
            }
            Expr::Immediate { to, value } => self.write(*to, value),
            Expr::Numgen { modulus, to } => {
                self.write(*to, &(self.random % modulus).to_ne_bytes());
            }
            Expr::FibSourceType { to } => {
                let kind: u32 = if self.packet.source_is_local { 2 } else { 1 };
                self.write(*to, &kind.to_ne_bytes());
            }
            Expr::FibDestinationType { to } => self.write(*to, &1u32.to_ne_bytes()),
            other => return self.statement(other),
        }
        Step::Next
    }

    fn statement(&mut self, expr: &Expr) -> Step {
        match expr {
            Expr::Verdict(verdict) => Step::Verdict(verdict.clone()),
            Expr::VerdictMap { map, from } => match self.find(map, *from) {
                Some(Value::Verdict(verdict)) => Step::Verdict(verdict),
                _ => Step::Break,
            },
            Expr::Lookup { set, from, to, invert } => match (self.find(set, *from), to) {
                (Some(Value::Data(bytes)), Some(to)) => {
                    self.write(*to, &bytes);
                    Step::Next
                }
                (found, _) if found.is_some() == *invert => Step::Break,
                _ => Step::Next,
            },
            Expr::Dynset { set, op, key, data, .. } => {
                self.learn(set, *op, *key, *data);
                Step::Next
            }
            Expr::Dnat { addr, port } => {
                let port = port.map_or(self.packet.port, |reg| {
                    let bytes = self.read(reg, 2);
                    u16::from_be_bytes([bytes[0], bytes[1]])
                });
                Step::End(Outcome::Dnat(self.address(*addr), port))
            }
            Expr::Masquerade => Step::End(Outcome::Masquerade),
            Expr::Reject(Reject::TcpReset | Reject::PortUnreachable | Reject::AdminProhibited) => {
                Step::End(Outcome::Reject)
            }
            _ => Step::Next,
        }
    }

    fn learn(&mut self, name: &str, op: DynOp, key: Reg, data: Option<Reg>) {
        let Some(set) = self.table.sets.get(name) else { return };
        let key = Key::exact(self.read(key, set.key_len() as usize));
        let value = data
            .map_or(Value::None, |reg| Value::Data(self.read(reg, set.data_len() as usize).into()));
        let elements = self.learned.entry(name.to_owned()).or_default();
        match op {
            DynOp::Update => {
                elements.entry(key).or_insert(value);
            }
            DynOp::Delete => {
                elements.remove(&key);
            }
        }
    }

    fn address(&self, from: Reg) -> IpAddr {
        match self.table.family {
            Family::Ip => {
                IpAddr::from(<[u8; 4]>::try_from(self.read(from, 4)).expect("four bytes were read"))
            }
            Family::Ip6 => IpAddr::from(
                <[u8; 16]>::try_from(self.read(from, 16)).expect("sixteen bytes were read"),
            ),
        }
    }

    fn payload(&self, base: PayloadBase, offset: u32, len: u32) -> Vec<u8> {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        match (base, offset) {
            (PayloadBase::Network, 12 | 8) => octets(self.packet.source),
            (PayloadBase::Network, 16 | 24) => octets(self.packet.destination),
            (PayloadBase::Transport, 2) => self.packet.port.to_be_bytes().to_vec(),
            _ => vec![0; len as usize],
        }
    }

    fn find(&self, name: &str, from: Reg) -> Option<Value> {
        let set = self.table.sets.get(name)?;
        let len = set.key_len() as usize;
        let key = Key::exact(self.read(from, len));
        if set.dynamic {
            return self.learned.get(name)?.get(&key).cloned();
        }
        let elements = self.table.elements.get(name)?;
        if !set.interval {
            return elements.get(&key).cloned();
        }
        elements
            .iter()
            .find(|(range, _)| {
                let ((first, last), mut at) = (range.ends(), 0);
                set.key.iter().all(|field| {
                    let end = at + field.size() as usize;
                    let field = &key.bytes[at..end];
                    let held = field >= &first[at..end] && field <= &last[at..end];
                    at = end;
                    held
                })
            })
            .map(|(_, value)| value.clone())
    }
}
