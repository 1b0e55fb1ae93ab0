//! Changes as transactions, in the two steps that lose no packet.

use std::collections::BTreeMap;
use std::sync::Arc;

use net::nft::{Family, Key, Op, SetChange, Transaction, Value};

use super::elements::SetId;
use super::fold::FamilyChange;
use super::ruleset::TABLE;

/// Elements that are still in the kernel although nothing needs them any more: packets that were being looked up when
/// their Service let go of them may have needed them. A later transaction takes them away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    spare: BTreeMap<(Arc<str>, Key), Value>,
}

impl Stage {
    /// Whether nothing waits to be taken away.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spare.is_empty()
    }

    /// The transaction of a change, to be committed now.
    pub fn change(&mut self, family: Family, change: FamilyChange) -> Transaction {
        let mut ops = Vec::new();
        for (name, chain) in change.chains {
            ops.push(Op::AddChain(Arc::clone(&name), chain.hook));
            ops.extend(chain.rules.into_iter().map(|rule| Op::AddRule(Arc::clone(&name), rule)));
        }
        ops.extend(self.elements(change.elements));
        Transaction { family, table: TABLE.into(), ops }
    }

    /// The operations of element changes: all deletions first, then all additions.
    pub fn elements(&mut self, changes: Vec<SetChange>) -> Vec<Op> {
        let mut gone: BTreeMap<Arc<str>, Vec<Key>> = BTreeMap::new();
        let mut come: BTreeMap<Arc<str>, Vec<(Key, Value)>> = BTreeMap::new();
        for SetChange { set, key, old, new } in changes {
            let lingers = SetId::by_name(&set).is_some_and(SetId::lingers);
            match (old, new) {
                (Some(old), None) if lingers => {
                    self.spare.insert((set, key), old);
                }
                (Some(_), None) => gone.entry(set).or_default().push(key),
                (old, Some(new)) => {
                    let at = (set, key);
                    let spare = self.spare.remove(&at);
                    let (set, key) = at;
                    if spare.as_ref() == Some(&new) {
                        continue;
                    }
                    if old.is_some() || spare.is_some() {
                        gone.entry(Arc::clone(&set)).or_default().push(key.clone());
                    }
                    come.entry(set).or_default().push((key, new));
                }
                (None, None) => {}
            }
        }
        let gone = gone.into_iter().map(|(set, keys)| Op::DeleteElements(set, keys));
        gone.chain(come.into_iter().map(|(set, elements)| Op::AddElements(set, elements))).collect()
    }

    /// The transaction that takes the spare elements away; nothing is spare afterwards.
    pub fn sweep(&mut self, family: Family) -> Transaction {
        let mut gone: BTreeMap<Arc<str>, Vec<Key>> = BTreeMap::new();
        for (set, key) in std::mem::take(&mut self.spare).into_keys() {
            gone.entry(set).or_default().push(key);
        }
        let ops = gone.into_iter().map(|(set, keys)| Op::DeleteElements(set, keys)).collect();
        Transaction { family, table: TABLE.into(), ops }
    }
}
