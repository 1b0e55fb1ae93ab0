//! nftables through netlink: transactions in, a table's elements out. Nothing is ever run to do it.
//!
//! Only the messages that [`net::nft`] can say are spoken; the kernel's refusal names the operation that it refused.

mod encode;
mod expr;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;

use net::nft::{Elements, Family, Key, Transaction, Value};

use self::encode::Batch;
use self::wire::{chain, element, kind, msg, set};
use crate::netfilter::{Attributes, Builder, Socket, refused, replies};

pub use crate::netfilter::NetfilterError;

/// A dump that changes came into is tried again this often.
const DUMP_TRIES_MAX: u32 = 5;

/// What a table has, apart from elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Names of the chains, with the bytes that the kernel shows for their rules: equal bytes mean equal rules.
    pub chains: BTreeMap<Arc<str>, Vec<Vec<u8>>>,
    /// Names of the sets.
    pub sets: Vec<Arc<str>>,
}

/// A connection to nftables of one network namespace: the one that the opening thread was in.
#[derive(Debug)]
pub struct Nftables {
    socket: Socket,
}

impl Nftables {
    /// Opens a connection in the calling thread's network namespace.
    ///
    /// # Errors
    /// When there is no such socket; needs CAP_NET_ADMIN.
    pub fn open() -> Result<Self, NetfilterError> {
        Ok(Self { socket: Socket::open()? })
    }

    /// Commits a transaction: all of it holds from one moment on, or nothing changes.
    ///
    /// # Errors
    /// The first refusal, naming the operation.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<(), NetfilterError> {
        self.socket.drain();
        let first = self.socket.next_sequence(0);
        let batch = Batch::of(transaction, first);
        if batch.is_empty() {
            return Ok(());
        }
        let count = batch.last().wrapping_sub(first) + 2;
        self.socket.next_sequence(count);
        self.socket.send(batch.builder.bytes())?;
        let mut acknowledged = false;
        while let Some(datagram) = self.socket.receive()? {
            for reply in replies(datagram) {
                let Some(errno) = reply.error() else { continue };
                let action = if errno == 0 { String::new() } else { batch.action(reply.sequence) };
                refused(errno, reply.detail(), &action)?;
                acknowledged |= reply.sequence == batch.last();
            }
        }
        if acknowledged { Ok(()) } else { Err(NetfilterError::Answer("a batch has no answer")) }
    }

    /// The number of the rule set's generation in this namespace: it changes with every transaction of anybody.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn generation(&mut self) -> Result<u32, NetfilterError> {
        self.socket.drain();
        let sequence = self.socket.next_sequence(1);
        let mut builder = Builder::default();
        builder.begin(kind(msg::GET_GENERATION), wire::NLM_F_REQUEST, sequence, 0, 0);
        builder.end();
        self.socket.send(builder.bytes())?;
        while let Some(datagram) = self.socket.receive()? {
            for reply in replies(datagram) {
                if let Some(errno) = reply.error() {
                    refused(errno, reply.detail(), "say the generation")?;
                }
                if let Some(number) = reply.attributes().be32(wire::GEN_ID) {
                    return Ok(number);
                }
            }
        }
        Err(NetfilterError::Answer("no generation"))
    }

    /// The elements of one set; `None` when there is no such set or table. Elements of dynamic sets included.
    ///
    /// # Errors
    /// When the kernel refuses, or changes keep coming in between.
    pub fn elements(
        &mut self,
        family: Family,
        table: &str,
        set: &str,
    ) -> Result<Option<Elements>, NetfilterError> {
        let mut found = Elements::new();
        let there = self.dump(
            msg::GET_ELEMENTS,
            family,
            |builder| {
                builder.text(element::TABLE, table);
                builder.text(element::SET, set);
            },
            &mut found,
            |found, attributes| {
                let list = attributes.nested(element::LIST).into_iter().flatten();
                found.extend(list.filter_map(|(_, bytes)| decode_element(Attributes(bytes))));
            },
        )?;
        Ok(there.then_some(found))
    }

    /// The chains, rules and sets of a table; `None` when there is no such table.
    ///
    /// # Errors
    /// When the kernel refuses, or changes keep coming in between.
    pub fn inventory(
        &mut self,
        family: Family,
        table: &str,
    ) -> Result<Option<Inventory>, NetfilterError> {
        let mut inventory = Inventory::default();
        self.dump(
            msg::GET_CHAIN,
            family,
            |_| {},
            &mut inventory,
            |inventory, attributes| {
                if attributes.text(chain::TABLE) == Some(table)
                    && let Some(name) = attributes.text(chain::NAME)
                {
                    inventory.chains.insert(name.into(), Vec::new());
                }
            },
        )?;
        self.dump(
            msg::GET_SET,
            family,
            |builder| builder.text(set::TABLE, table),
            &mut inventory,
            |inventory, attributes| {
                if attributes.text(set::TABLE) == Some(table) {
                    inventory.sets.extend(attributes.text(set::NAME).map(Arc::from));
                }
            },
        )?;
        self.dump(
            msg::GET_RULE,
            family,
            |builder| builder.text(wire::rule::TABLE, table),
            &mut inventory,
            |inventory, attributes| {
                let ours = attributes.text(wire::rule::TABLE) == Some(table);
                let (Some(name), true) = (attributes.text(wire::rule::CHAIN), ours) else { return };
                let rule = attributes.find(wire::rule::EXPRESSIONS).unwrap_or_default();
                inventory.chains.entry(name.into()).or_default().push(rule.to_vec());
            },
        )?;
        let empty = inventory.chains.is_empty() && inventory.sets.is_empty();
        Ok((!empty).then_some(inventory))
    }

    /// Whether there is a table of this name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn has_table(&mut self, family: Family, table: &str) -> Result<bool, NetfilterError> {
        let mut found = false;
        self.dump(
            msg::GET_TABLE,
            family,
            |_| {},
            &mut found,
            |found, attributes| {
                *found |= attributes.text(wire::TABLE_NAME) == Some(table);
            },
        )?;
        Ok(found)
    }

    /// Runs a dump until no change comes between; false when what is asked for is not there.
    fn dump<T: Clone>(
        &mut self,
        message: u16,
        family: Family,
        ask: impl Fn(&mut Builder),
        into: &mut T,
        mut each: impl FnMut(&mut T, Attributes<'_>),
    ) -> Result<bool, NetfilterError> {
        let before = into.clone();
        for _ in 0..DUMP_TRIES_MAX {
            self.socket.drain();
            into.clone_from(&before);
            let sequence = self.socket.next_sequence(1);
            let mut builder = Builder::default();
            let flags = wire::NLM_F_REQUEST | wire::NLM_F_DUMP;
            builder.begin(kind(message), flags, sequence, wire::family(family), 0);
            ask(&mut builder);
            builder.end();
            let whole = self.socket.dump(builder.bytes(), sequence, "list a table", |reply| {
                each(into, reply.attributes());
            });
            match whole {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(false),
                Err(error) if error.errno() == Some(libc::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Err(NetfilterError::Interrupted)
    }
}

fn decode_element(attributes: Attributes<'_>) -> Option<(Key, Value)> {
    let first = attributes.nested(element::KEY)?.find(wire::DATA_VALUE)?;
    let last = attributes.nested(element::KEY_END).and_then(|end| end.find(wire::DATA_VALUE));
    let key = match last {
        Some(last) => Key { bytes: [first, last].concat().as_slice().into(), range: true },
        None => Key::exact(first),
    };
    let value = match attributes.nested(element::DATA) {
        None => Value::None,
        Some(data) => match (data.find(wire::DATA_VALUE), data.nested(wire::DATA_VERDICT)) {
            (Some(bytes), _) => Value::Data(bytes.into()),
            (None, Some(verdict)) => Value::Verdict(wire::get_verdict(verdict)?),
            (None, None) => return None,
        },
    };
    Some((key, value))
}
