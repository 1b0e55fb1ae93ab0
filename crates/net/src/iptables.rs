//! iptables rules as data: tables of chains of rules, each rule the text that `iptables-restore` takes after `-A CHAIN`.
//!
//! Only chains of one's own are held; in the kernel's base chains there are jumps to them, beside rules of others.
//! [`render`] writes all of it, [`Delta::render`] what differs; both for `iptables-restore --noflush`. [`Saved`] reads
//! what `iptables-save` shows. Upstream counterpart: `pkg/util/iptables`.

mod saved;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

pub use saved::{RestoreError, Saved};

/// A table of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableId {
    /// Lets pass or not.
    Filter,
    /// Translates addresses.
    Nat,
    /// Changes packets otherwise.
    Mangle,
}

impl TableId {
    /// All of them, in the order in which they are written.
    pub const ALL: [Self; 3] = [Self::Filter, Self::Nat, Self::Mangle];

    /// iptables' word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Mangle => "mangle",
        }
    }
}

/// A chain's rules in order, without `-A CHAIN`.
pub type Chain = Arc<[Arc<str>]>;

/// A rule in one of the kernel's base chains that leads to a chain of one's own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Jump {
    /// `PREROUTING`, `INPUT`, …
    pub base: &'static str,
    /// Matches that a packet must meet: empty, or ending with a blank.
    pub only: &'static str,
    /// The comment by which the rule is known again.
    pub comment: &'static str,
    /// Where it leads.
    pub chain: &'static str,
}

impl Jump {
    /// The rule's text.
    #[must_use]
    pub fn rule(&self) -> String {
        format!("{}-m comment --comment \"{}\" -j {}", self.only, self.comment, self.chain)
    }

    /// Whether a rule of the base chain is this jump, as `iptables-save` writes it.
    #[must_use]
    pub fn is(&self, rule: &str) -> bool {
        rule.replace('"', "") == self.rule().replace('"', "")
    }

    /// Whether a rule is this jump, or one that was made of it.
    #[must_use]
    pub fn resembles(&self, rule: &str) -> bool {
        let target = rule.rsplit_once("-j ").map(|(_, target)| target.trim());
        target == Some(self.chain) && rule.contains(self.comment)
    }
}

/// One table's own part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Chains by name.
    pub chains: BTreeMap<Arc<str>, Chain>,
    /// Jumps, in the order in which they stand in their base chains.
    pub jumps: Vec<Jump>,
}

/// The rules of one address family.
pub type Ruleset = BTreeMap<TableId, Table>;

/// All of a rule set, as `iptables-restore` takes it.
#[must_use]
pub fn render(rules: &Ruleset) -> String {
    let mut delta = Delta::between(&Ruleset::new(), rules);
    for table in delta.tables.values_mut() {
        // In the order of one's own, where nothing else stands.
        table.new_jumps.reverse();
    }
    delta.text("-A")
}

/// What differs in one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableDelta {
    /// Chains that are new or have other rules.
    pub chains: BTreeMap<Arc<str>, Chain>,
    /// Chains that are gone.
    pub gone: BTreeSet<Arc<str>>,
    /// Jumps to be inserted at the head of their base chains, the last one first.
    pub new_jumps: Vec<Jump>,
    /// Rules to be deleted from base chains: chain and text.
    pub old_jumps: Vec<(String, String)>,
}

impl TableDelta {
    fn is_empty(&self) -> bool {
        self.chains.is_empty()
            && self.gone.is_empty()
            && self.new_jumps.is_empty()
            && self.old_jumps.is_empty()
    }
}

/// What differs between two rule sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// By table.
    pub tables: BTreeMap<TableId, TableDelta>,
}

impl Delta {
    /// From `old` to `new`.
    #[must_use]
    pub fn between(old: &Ruleset, new: &Ruleset) -> Self {
        let mut delta = Self::default();
        let none = Table::default();
        for id in TableId::ALL {
            let (old, new) = (old.get(&id).unwrap_or(&none), new.get(&id).unwrap_or(&none));
            let differs =
                |(name, chain): &(&Arc<str>, &Chain)| old.chains.get(*name) != Some(chain);
            let chains = new.chains.iter().filter(differs);
            let gone = old.chains.keys().filter(|name| !new.chains.contains_key(*name));
            let come = new.jumps.iter().rev().filter(|jump| !old.jumps.contains(jump));
            let go = old.jumps.iter().filter(|jump| !new.jumps.contains(jump));
            let table = TableDelta {
                chains: chains.map(|(name, chain)| (Arc::clone(name), Arc::clone(chain))).collect(),
                gone: gone.cloned().collect(),
                new_jumps: come.cloned().collect(),
                old_jumps: go.map(|jump| (jump.base.to_owned(), jump.rule())).collect(),
            };
            if !table.is_empty() {
                delta.tables.insert(id, table);
            }
        }
        delta
    }

    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tables.values().all(TableDelta::is_empty)
    }

    /// The input of `iptables-restore --noflush` that makes the difference; each table in one step. Chains that are gone
    /// are emptied and deleted.
    #[must_use]
    pub fn render(&self) -> String {
        self.text("-I")
    }

    /// The same, but chains that are gone are only emptied: somebody else may have rules that lead there.
    #[must_use]
    pub fn render_gently(&self) -> String {
        let text = self.text("-I");
        let lines = text.lines().filter(|line| !line.starts_with("-X "));
        lines.flat_map(|line| [line, "\n"]).collect()
    }

    fn text(&self, jump: &str) -> String {
        let mut text = String::new();
        let mut line = |words: std::fmt::Arguments<'_>| {
            text.write_fmt(words).expect("a String takes everything");
            text.push('\n');
        };
        for (id, table) in self.tables.iter().filter(|(_, table)| !table.is_empty()) {
            line(format_args!("*{}", id.word()));
            for name in table.chains.keys().chain(&table.gone) {
                line(format_args!(":{name} - [0:0]"));
            }
            for (base, rule) in &table.old_jumps {
                line(format_args!("-D {base} {rule}"));
            }
            for (name, chain) in &table.chains {
                for rule in chain.iter() {
                    line(format_args!("-A {name} {rule}"));
                }
            }
            for new in &table.new_jumps {
                line(format_args!("{jump} {} {}", new.base, new.rule()));
            }
            for name in &table.gone {
                line(format_args!("-X {name}"));
            }
            line(format_args!("COMMIT"));
        }
        text
    }
}
