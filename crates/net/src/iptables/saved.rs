//! What `iptables-save` shows, read back; and what `iptables-restore` would make of it, for tests.

use std::collections::BTreeMap;

use super::{Chain, Ruleset, TableId};

/// All chains of all tables that [`TableId`] knows, of whomever; rules as the kernel's tool writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Rules by table and chain.
    pub tables: BTreeMap<TableId, BTreeMap<String, Vec<String>>>,
}

/// Why an input is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct RestoreError {
    line: usize,
    why: &'static str,
}

impl Saved {
    /// Reads the output of `iptables-save`. Counters, comments and other tables are passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut saved = Self::default();
        let mut table = None;
        for line in text.lines() {
            if let Some(word) = line.strip_prefix('*') {
                table = TableId::ALL.into_iter().find(|id| id.word() == word);
            } else if let Some(id) = table {
                let chains = saved.tables.entry(id).or_default();
                if let Some((name, _)) =
                    line.strip_prefix(':').and_then(|rest| rest.split_once(' '))
                {
                    chains.entry(name.to_owned()).or_default();
                } else if let Some((chain, rule)) = rule_of(line, "-A ") {
                    chains.entry(chain.to_owned()).or_default().push(rule.to_owned());
                }
            }
        }
        saved
    }

    /// What would be shown if the kernel had these rules and nothing else.
    #[must_use]
    pub fn of(rules: &Ruleset) -> Self {
        let texts = |chain: &Chain| chain.iter().map(ToString::to_string).collect();
        let tables = rules.iter().map(|(id, table)| {
            let chains = table.chains.iter();
            (*id, chains.map(|(name, chain)| (name.to_string(), texts(chain))).collect())
        });
        Self { tables: tables.collect() }
    }

    /// The chains of a table.
    #[must_use]
    pub fn table(&self, id: TableId) -> Option<&BTreeMap<String, Vec<String>>> {
        self.tables.get(&id)
    }

    /// Does what `iptables-restore --noflush` does with an input; tests compare what comes of differences.
    ///
    /// # Errors
    /// When the tool would refuse it: a chain that is not there, or one that is deleted while rules lead to it. What was
    /// done before stays.
    pub fn restore(&mut self, input: &str) -> Result<(), RestoreError> {
        let mut table: Option<TableId> = None;
        for (number, line) in (1..).zip(input.lines()) {
            let refused = |why| RestoreError { line: number, why };
            if let Some(word) = line.strip_prefix('*') {
                table = TableId::ALL.into_iter().find(|id| id.word() == word);
                continue;
            }
            let chains = self.tables.entry(table.ok_or(refused("no table"))?).or_default();
            if line == "COMMIT" {
                let target =
                    |rule: &String| rule.rsplit_once("-j ")?.1.split(' ').next().map(str::to_owned);
                let mut targets = chains.values().flatten().filter_map(target);
                let lost = |target: String| target.contains('-') && !chains.contains_key(&target);
                if targets.any(lost) {
                    return Err(refused("a rule leads to a chain that is not there"));
                }
                table = None;
            } else if let Some(rest) = line.strip_prefix(':') {
                let (name, _) = rest.split_once(' ').ok_or(refused("no policy"))?;
                chains.insert(name.to_owned(), Vec::new());
            } else if let Some(name) = line.strip_prefix("-X ") {
                let rules = chains.remove(name).ok_or(refused("no such chain"))?;
                if !rules.is_empty() {
                    return Err(refused("the chain has rules"));
                }
            } else {
                let (verb, rest) = line.split_at_checked(3).ok_or(refused("no rule"))?;
                let (name, rule) = rest.split_once(' ').ok_or(refused("no rule"))?;
                let rules = chains.get_mut(name).ok_or(refused("no such chain"))?;
                match verb {
                    "-A " => rules.push(rule.to_owned()),
                    "-I " => rules.insert(0, rule.to_owned()),
                    "-D " => {
                        let at = rules.iter().position(|other| other == rule);
                        rules.remove(at.ok_or(refused("no such rule"))?);
                    }
                    _ => return Err(refused("unknown verb")),
                }
            }
        }
        Ok(())
    }
}

fn rule_of<'a>(line: &'a str, verb: &str) -> Option<(&'a str, &'a str)> {
    // An empty rule matches everything and does nothing.
    let rest = line.strip_prefix(verb)?;
    Some(rest.split_once(' ').unwrap_or((rest, "")))
}
