//! The difference between two states of a set, in the two steps that lose no packet.
//!
//! A packet looks up one map to learn how many endpoints there are and another to get one of them. So elements come
//! before what makes them reachable, or with it, and go in a later transaction than what made them unreachable.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Elements, Key, Op, Value};

/// What happens to one element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetChange {
    /// The set.
    pub set: Arc<str>,
    /// The element.
    pub key: Key,
    /// What it was, if it was there.
    pub old: Option<Value>,
    /// What it shall be, if it shall be there.
    pub new: Option<Value>,
}

impl SetChange {
    /// The operations of this change alone.
    #[must_use]
    pub fn ops(&self) -> Vec<Op> {
        let mut ops = Vec::new();
        if self.old == self.new {
            return ops;
        }
        if self.old.is_some() {
            ops.push(Op::DeleteElements(Arc::clone(&self.set), vec![self.key.clone()]));
        }
        if let Some(new) = &self.new {
            ops.push(Op::AddElements(Arc::clone(&self.set), vec![(self.key.clone(), new.clone())]));
        }
        ops
    }
}

/// The changes that make `old` into `new`, in the order of their keys.
#[must_use]
pub fn replace_elements(set: &Arc<str>, old: &Elements, new: &Elements) -> Vec<SetChange> {
    let (mut olds, mut news) = (old.iter().peekable(), new.iter().peekable());
    let mut changes = Vec::new();
    // Both are in the order of their keys: one walk along both.
    loop {
        let order = match (olds.peek(), news.peek()) {
            (None, None) => return changes,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let before = if order == Ordering::Greater { None } else { olds.next() };
        let after = if order == Ordering::Less { None } else { news.next() };
        let Some((key, _)) = before.or(after) else { return changes };
        let (before, after) = (before.map(|(_, value)| value), after.map(|(_, value)| value));
        if before != after {
            changes.push(SetChange {
                set: Arc::clone(set),
                key: key.clone(),
                old: before.cloned(),
                new: after.cloned(),
            });
        }
    }
}
