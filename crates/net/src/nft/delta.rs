//! The difference between two states of a set, in the two steps that lose no packet.
//!
//! A packet looks up one map to learn how many endpoints there are and another to get one of them. So elements come
//! before what makes them reachable, or with it, and go in a later transaction than what made them unreachable.

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
    let gone = old.iter().filter(|(key, _)| !new.contains_key(*key)).map(|(key, value)| {
        SetChange { set: Arc::clone(set), key: key.clone(), old: Some(value.clone()), new: None }
    });
    let mut changes: Vec<SetChange> = gone.collect();
    for (key, value) in new {
        let before = old.get(key);
        if before != Some(value) {
            changes.push(SetChange {
                set: Arc::clone(set),
                key: key.clone(),
                old: before.cloned(),
                new: Some(value.clone()),
            });
        }
    }
    changes.sort_by(|a, b| a.key.cmp(&b.key));
    changes
}
