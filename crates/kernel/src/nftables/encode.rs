//! Transactions as netlink batches.

use net::nft::{
    ChainKind, Family, Field, Hook, HookPoint, Key, Op, Rule, Set, SetData, Transaction, Value,
};

use super::expr::put_expr;
use super::wire::{self, chain, element, kind, msg, rule, set};
use crate::netfilter::Builder;

/// Elements of one message: an attribute's length is 16 bits.
const ELEMENTS_BYTES_MAX: usize = 60_000;
/// Room for one element of a batch, for the first allocation.
const ELEMENT_BYTES: usize = 96;

/// A batch ready to send, with what each message does, by its place.
pub(super) struct Batch<'a> {
    pub(super) builder: Builder,
    first: u32,
    ops: Vec<&'a Op>,
    family: Family,
    table: &'a str,
}

impl<'a> Batch<'a> {
    /// Encodes `transaction`; the messages are numbered from `first` on.
    pub(super) fn of(transaction: &'a Transaction, first: u32) -> Self {
        let elements: usize = transaction.ops.iter().map(element_count).sum();
        let mut batch = Self {
            builder: Builder::with_capacity(4096 + elements * ELEMENT_BYTES),
            first,
            ops: Vec::new(),
            family: transaction.family,
            table: &transaction.table,
        };
        let request = wire::NLM_F_REQUEST;
        batch.builder.begin(wire::BATCH_BEGIN, request, first, 0, wire::SUBSYSTEM);
        batch.builder.end();
        let mut set_id = 0;
        for op in &transaction.ops {
            batch.put(op, &mut set_id);
        }
        if !batch.ops.is_empty() {
            batch.builder.add_flags(wire::NLM_F_ACK);
        }
        let end = batch.last() + 1;
        batch.builder.begin(wire::BATCH_END, request, end, 0, wire::SUBSYSTEM);
        batch.builder.end();
        batch
    }

    /// The sequence number of the last message before the end message.
    pub(super) fn last(&self) -> u32 {
        self.first.wrapping_add(u32::try_from(self.ops.len()).expect("far fewer messages"))
    }

    /// Whether nothing is to be done.
    pub(super) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// What the message with this sequence number was to do.
    pub(super) fn action(&self, sequence: u32) -> String {
        let place = sequence.wrapping_sub(self.first).checked_sub(1);
        let op = place.and_then(|place| self.ops.get(usize::try_from(place).ok()?));
        let what = op.map_or_else(|| "commit".to_owned(), |op| describe(op));
        format!("{what} in table {} {}", self.family.word(), self.table)
    }

    fn begin(&mut self, op: &'a Op, message: u16, flags: u16) {
        self.ops.push(op);
        let sequence = self.last();
        let family = wire::family(self.family);
        self.builder.begin(kind(message), wire::NLM_F_REQUEST | flags, sequence, family, 0);
        // NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE and NFTA_SET_ELEM_LIST_TABLE are all 1.
        self.builder.text(wire::TABLE_NAME, self.table);
    }

    fn put(&mut self, op: &'a Op, set_id: &mut u32) {
        match op {
            Op::AddTable => self.begin(op, msg::NEW_TABLE, wire::NLM_F_CREATE),
            Op::DeleteTable => self.begin(op, msg::DELETE_TABLE, 0),
            Op::AddChain(name, hook) => {
                self.begin(op, msg::NEW_CHAIN, wire::NLM_F_CREATE);
                self.builder.text(chain::NAME, name);
                if let Some(hook) = hook {
                    put_hook(&mut self.builder, *hook);
                }
            }
            Op::DeleteChain(name) => {
                self.begin(op, msg::DELETE_CHAIN, 0);
                self.builder.text(chain::NAME, name);
            }
            Op::FlushChain(name) => {
                self.begin(op, msg::DELETE_RULE, 0);
                self.builder.text(rule::CHAIN, name);
            }
            Op::FlushRules => self.begin(op, msg::DELETE_RULE, 0),
            Op::AddRule(name, rule) => self.put_rule(op, name, rule),
            Op::AddSet(name, set) => {
                *set_id += 1;
                self.begin(op, msg::NEW_SET, wire::NLM_F_CREATE);
                put_set(&mut self.builder, name, set, *set_id);
            }
            Op::DeleteSet(name) => {
                self.begin(op, msg::DELETE_SET, 0);
                self.builder.text(set::NAME, name);
            }
            Op::FlushSet(name) => {
                self.begin(op, msg::DELETE_ELEMENTS, 0);
                self.builder.text(element::SET, name);
            }
            Op::AddElements(name, elements) => {
                let elements = elements.iter().map(|(key, value)| (key, Some(value)));
                return self.put_elements(op, name, elements, msg::NEW_ELEMENTS);
            }
            Op::DeleteElements(name, keys) => {
                let keys = keys.iter().map(|key| (key, None));
                return self.put_elements(op, name, keys, msg::DELETE_ELEMENTS);
            }
        }
        self.builder.end();
    }

    fn put_rule(&mut self, op: &'a Op, name: &str, rule: &Rule) {
        self.begin(op, msg::NEW_RULE, wire::NLM_F_CREATE | wire::NLM_F_APPEND);
        self.builder.text(rule::CHAIN, name);
        let list = self.builder.open(rule::EXPRESSIONS);
        for expr in &rule.exprs {
            put_expr(&mut self.builder, self.family, expr);
        }
        self.builder.close(&list);
    }

    fn put_elements<'k>(
        &mut self,
        op: &'a Op,
        name: &str,
        elements: impl Iterator<Item = (&'k Key, Option<&'k Value>)>,
        message: u16,
    ) {
        let flags = if message == msg::NEW_ELEMENTS { wire::NLM_F_CREATE } else { 0 };
        let mut elements = elements.peekable();
        while elements.peek().is_some() {
            self.begin(op, message, flags);
            self.builder.text(element::SET, name);
            let list = self.builder.open(element::LIST);
            while self.builder.len_of(&list) < ELEMENTS_BYTES_MAX {
                let Some((key, value)) = elements.next() else { break };
                put_element(&mut self.builder, key, value);
            }
            self.builder.close(&list);
            self.builder.end();
        }
    }
}

fn element_count(op: &Op) -> usize {
    match op {
        Op::AddElements(_, elements) => elements.len(),
        Op::DeleteElements(_, keys) => keys.len(),
        _ => 0,
    }
}

fn put_element(builder: &mut Builder, key: &Key, value: Option<&Value>) {
    let nest = builder.open(wire::LIST_ELEM);
    let (first, last) = key.ends();
    wire::put_value(builder, element::KEY, first);
    if key.range {
        wire::put_value(builder, element::KEY_END, last);
    }
    match value {
        Some(Value::Data(bytes)) => wire::put_value(builder, element::DATA, bytes),
        Some(Value::Verdict(verdict)) => wire::put_verdict(builder, element::DATA, verdict),
        Some(Value::None) | None => {}
    }
    builder.close(&nest);
}

fn put_hook(builder: &mut Builder, hook: Hook) {
    let nest = builder.open(chain::HOOK);
    let number = match hook.point {
        HookPoint::Prerouting => 0,
        HookPoint::Input => 1,
        HookPoint::Forward => 2,
        HookPoint::Output => 3,
        HookPoint::Postrouting => 4,
    };
    builder.be32(chain::HOOK_NUMBER, number);
    builder.raw(chain::HOOK_PRIORITY, &hook.priority.to_be_bytes());
    builder.close(&nest);
    builder.be32(chain::POLICY, 1);
    let kind = match hook.kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
        ChainKind::Route => "route",
    };
    builder.text(chain::TYPE, kind);
}

fn put_set(builder: &mut Builder, name: &str, of: &Set, id: u32) {
    builder.text(set::NAME, name);
    builder.be32(set::FLAGS, set_flags(of));
    builder.be32(set::KEY_TYPE, type_number(&of.key));
    builder.be32(set::KEY_LEN, of.key_len());
    match &of.data {
        SetData::None => {}
        SetData::Verdict => builder.be32(set::DATA_TYPE, set::DATA_VERDICT),
        SetData::Fields(fields) => {
            builder.be32(set::DATA_TYPE, type_number(fields));
            builder.be32(set::DATA_LEN, of.data_len());
        }
    }
    builder.be32(set::ID, id);
    if of.timeout_s > 0 {
        builder.be64(set::TIMEOUT, u64::from(of.timeout_s) * 1000);
    }
    if of.interval || of.size_max > 0 {
        let nest = builder.open(set::DESCRIPTION);
        if of.size_max > 0 {
            builder.be32(set::DESCRIPTION_SIZE, of.size_max);
        }
        if of.interval {
            put_concat(builder, &of.key);
        }
        builder.close(&nest);
    }
}

fn put_concat(builder: &mut Builder, fields: &[Field]) {
    let concat = builder.open(set::DESCRIPTION_CONCAT);
    for field in fields {
        let nest = builder.open(wire::LIST_ELEM);
        builder.be32(set::FIELD_LEN, field_bytes(*field));
        builder.close(&nest);
    }
    builder.close(&concat);
}

/// The flags that a set of this shape has.
pub(super) fn set_flags(of: &Set) -> u32 {
    let mut flags = 0;
    if of.data != SetData::None {
        flags |= set::FLAG_MAP;
    }
    if of.interval {
        flags |= set::FLAG_INTERVAL | set::FLAG_CONCAT;
    }
    if of.dynamic {
        flags |= set::FLAG_TIMEOUT | set::FLAG_EVAL;
    }
    if of.timeout_s > 0 {
        flags |= set::FLAG_TIMEOUT;
    }
    flags
}

/// Bytes of a field without padding.
fn field_bytes(field: Field) -> u32 {
    match field {
        Field::Proto => 1,
        Field::Port => 2,
        other => other.size(),
    }
}

/// nft's number for a concatenation, so that `nft list` shows the elements as what they are.
pub(super) fn type_number(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |number, field| {
        let field = match field {
            Field::Ipv4 => 7,
            Field::Ipv6 => 8,
            Field::Proto => 12,
            Field::Port => 13,
            Field::Mark => 19,
            Field::IfName => 41,
        };
        number << 6 | field
    })
}

fn describe(op: &Op) -> String {
    match op {
        Op::AddTable => "add the table".to_owned(),
        Op::DeleteTable => "delete the table".to_owned(),
        Op::AddChain(name, _) => format!("add the chain {name}"),
        Op::DeleteChain(name) => format!("delete the chain {name}"),
        Op::FlushChain(name) => format!("flush the chain {name}"),
        Op::FlushRules => "flush the rules".to_owned(),
        Op::AddRule(chain, _) => format!("add a rule to the chain {chain}"),
        Op::AddSet(name, _) => format!("add the set {name}"),
        Op::DeleteSet(name) => format!("delete the set {name}"),
        Op::FlushSet(name) => format!("flush the set {name}"),
        Op::AddElements(set, _) => format!("add elements to the set {set}"),
        Op::DeleteElements(set, _) => format!("delete elements from the set {set}"),
    }
}
