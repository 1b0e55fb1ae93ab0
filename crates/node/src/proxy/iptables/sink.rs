//! The kernel's side of it: what was told, and whether it is still so.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kernel::iptables::{Flavor, Iptables, IptablesError};
use kernel::nftables::Nftables;
use net::iptables::{Delta, Ruleset, Saved, TableId};
use net::nft::Family;
use plan::proxy::iptables::{agrees, jumps, owns, takeover, udp_frontends};
use plan::proxy::{FAMILIES, IptablesBackend};

use crate::proxy::SinkError;

/// Looking at all rules may take at most one part in so many of the time.
const SHARE: u32 = 20;
/// How often to look where the kernel does not say that something changed.
const LOOK_AFTER: Duration = Duration::from_secs(5);
/// The same where it says so.
const LOOK_ANYWAY_AFTER: Duration = Duration::from_secs(60);

/// A chain of one's own, or a base chain, whose jumps are meant then.
type Place = (Family, TableId, String);

/// Runs the programs. Knows what the kernel has, or that it does not know.
#[derive(Debug)]
pub(super) struct Sink {
    programs: Iptables,
    nft: Nftables,
    known: bool,
    /// nftables' generation after the last look or change; every transaction of anybody changes it.
    generation: u32,
    /// What the kernel showed, as digests, where it was right. What was told since is not there.
    shown: BTreeMap<Place, u64>,
    /// Whether something was told that was not looked at yet.
    is_new: bool,
    /// Whether to look at once.
    distrusts: bool,
    looked: Instant,
    cost: Duration,
}

impl Sink {
    pub(super) fn open(which: IptablesBackend) -> Result<Self, SinkError> {
        let flavor = match which {
            IptablesBackend::Nft => Flavor::Nft,
            IptablesBackend::Legacy => Flavor::Legacy,
            IptablesBackend::Auto => choose(&Iptables::open(Flavor::Nft)?)?,
        };
        let programs = Iptables::open(flavor)?;
        programs.check()?;
        tracing::info!(component = "proxy", backend = flavor.word(), "iptables");
        Ok(Self {
            programs,
            nft: Nftables::open()?,
            known: false,
            generation: 0,
            shown: BTreeMap::new(),
            is_new: true,
            distrusts: false,
            looked: Instant::now(),
            cost: Duration::ZERO,
        })
    }

    pub(super) fn programs(&self) -> &Iptables {
        &self.programs
    }

    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    pub(super) fn forget(&mut self) {
        self.known = false;
    }

    pub(super) fn distrust(&mut self) {
        self.distrusts = true;
    }

    /// Makes the kernel's own chains these, whatever they were. Answers the UDP frontends that were there before. When one
    /// family is refused the other is told all the same.
    pub(super) fn replace<'a>(
        &mut self,
        rules: impl Fn(Family) -> &'a Ruleset,
    ) -> Result<BTreeSet<SocketAddr>, SinkError> {
        self.known = false;
        let (mut before, mut result) = (BTreeSet::new(), Ok(()));
        for family in FAMILIES {
            let replaced = self.programs.save(family).and_then(|text| {
                let saved = Saved::parse(&text);
                before.extend(udp_frontends(&saved));
                tell(&self.programs, family, &takeover(&saved, rules(family)))
            });
            result = result.and(replaced);
        }
        result?;
        self.shown.clear();
        self.is_new = true;
        self.distrusts = true;
        self.generation = self.nft.generation()?;
        self.known = true;
        Ok(before)
    }

    /// Tells what differs.
    pub(super) fn change(&mut self, family: Family, delta: &Delta) -> Result<(), SinkError> {
        self.distrusts |= self.meddled()?;
        if let Err(error) = tell(&self.programs, family, delta) {
            self.known = false;
            return Err(error.into());
        }
        for (id, table) in &delta.tables {
            for name in table.chains.keys().chain(&table.gone) {
                self.shown.remove(&(family, *id, name.to_string()));
            }
        }
        self.is_new = true;
        self.generation = self.nft.generation()?;
        Ok(())
    }

    /// Whether somebody may have changed rules, as far as the kernel tells.
    fn meddled(&mut self) -> Result<bool, SinkError> {
        Ok(self.programs.flavor() == Flavor::Nft && self.nft.generation()? != self.generation)
    }

    /// Looks whether somebody changed the rules, where that is due, and repairs them.
    pub(super) fn verify<'a>(
        &mut self,
        rules: impl Fn(Family) -> &'a Ruleset,
    ) -> Result<(), SinkError> {
        let since = self.looked.elapsed();
        let often = match self.programs.flavor() {
            Flavor::Nft => LOOK_ANYWAY_AFTER,
            Flavor::Legacy => LOOK_AFTER,
        };
        let wanted = self.is_new || since >= often || self.meddled()?;
        if !self.distrusts && (!wanted || since < self.cost * SHARE) {
            return Ok(());
        }
        if self.look(&rules, false)? {
            return Ok(());
        }
        tracing::warn!(component = "proxy", "somebody changed the rules; they are repaired");
        self.replace(&rules)?;
        if !self.look(&rules, true)? {
            tracing::warn!(component = "proxy", "the rules are not shown as they were told");
        }
        Ok(())
    }

    /// Compares what the kernel shows with what it should; takes note of it where it is right, or where `trusts` says that
    /// it was just told.
    fn look<'a>(
        &mut self,
        rules: &impl Fn(Family) -> &'a Ruleset,
        trusts: bool,
    ) -> Result<bool, SinkError> {
        let started = Instant::now();
        let generation = self.nft.generation()?;
        let mut right = true;
        for family in FAMILIES {
            let saved = Saved::parse(&self.programs.save(family)?);
            for id in TableId::ALL {
                right &= self.look_at(family, id, &saved, rules(family), trusts);
            }
        }
        self.generation = generation;
        (self.is_new, self.distrusts) = (false, false);
        (self.cost, self.looked) = (started.elapsed(), Instant::now());
        Ok(right)
    }

    fn look_at(
        &mut self,
        family: Family,
        id: TableId,
        saved: &Saved,
        rules: &Ruleset,
        trusts: bool,
    ) -> bool {
        let Some(wanted) = rules.get(&id) else { return true };
        let Some(found) = saved.table(id) else { return false };
        // Empty ones may be held by somebody else's rules.
        let odd = |(name, rules): &(&String, &Vec<String>)| {
            owns(id, name) && !rules.is_empty() && !wanted.chains.contains_key(name.as_str())
        };
        let mut right = !found.iter().any(|chain| odd(&chain));
        for (name, planned) in &wanted.chains {
            let Some(shown) = found.get(&**name) else { return false };
            let place = (family, id, name.to_string());
            right &= self.compare(place, shown, trusts, || agrees(shown, planned));
        }
        let mut bases: Vec<&str> = jumps(id).iter().map(|jump| jump.base).collect();
        bases.dedup();
        for base in bases {
            let rules = found.get(base).into_iter().flatten();
            let shown: Vec<String> = rules
                .filter(|rule| jumps(id).iter().any(|jump| jump.resembles(rule)))
                .cloned()
                .collect();
            let wanted = || jumps(id).iter().filter(|jump| jump.base == base);
            let each = || {
                let once =
                    wanted().all(|jump| shown.iter().filter(|rule| jump.is(rule)).count() == 1);
                once && shown.len() == wanted().count()
            };
            right &= self.compare((family, id, base.to_owned()), &shown, trusts, each);
        }
        right
    }

    fn compare(
        &mut self,
        place: Place,
        shown: &[String],
        trusts: bool,
        agrees: impl FnOnce() -> bool,
    ) -> bool {
        let mut hasher = DefaultHasher::new();
        shown.hash(&mut hasher);
        let digest = hasher.finish();
        match self.shown.get(&place) {
            Some(known) => *known == digest,
            None => {
                let right = agrees();
                if right || trusts {
                    self.shown.insert(place, digest);
                }
                right
            }
        }
    }
}

/// Tells a difference. A chain that somebody else's rules lead to cannot be deleted; it is emptied then.
pub(in crate::proxy) fn tell(
    programs: &Iptables,
    family: Family,
    delta: &Delta,
) -> Result<(), IptablesError> {
    if delta.is_empty() {
        return Ok(());
    }
    let told = programs.restore(family, &delta.render());
    let has_gone = delta.tables.values().any(|table| !table.gone.is_empty());
    match told {
        Err(IptablesError::Refused { .. }) if has_gone => {
            programs.restore(family, &delta.render_gently())
        }
        told => told,
    }
}

/// The kind that has rules: the kubelet's or this proxy's above all, else more of them. Upstream: `iptables-wrappers`.
fn choose(any: &Iptables) -> Result<Flavor, IptablesError> {
    let mut weights = Vec::new();
    for flavor in Flavor::ALL {
        let programs = any.with(flavor)?;
        if !programs.is_installed() {
            continue;
        }
        let (mut marks, mut rules) = (0, 0);
        for family in FAMILIES {
            if flavor == Flavor::Legacy && !programs.has_legacy_tables(family)? {
                continue;
            }
            let text = programs.save(family)?;
            marks += text.lines().filter(|line| line.starts_with(":KUBE-")).count();
            rules += text.lines().filter(|line| line.starts_with('-')).count();
        }
        weights.push((marks > 0, rules, flavor));
    }
    Ok(heaviest(weights))
}

/// The first one where both have as much.
fn heaviest(mut weights: Vec<(bool, usize, Flavor)>) -> Flavor {
    weights.sort_by_key(|(marked, rules, flavor)| (!marked, std::cmp::Reverse(*rules), *flavor));
    weights.first().map_or(Flavor::Nft, |(.., flavor)| *flavor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_with_upstreams_chains_is_chosen_and_then_the_one_with_more_rules() {
        let of = |nft: (bool, usize), legacy: (bool, usize)| {
            heaviest(vec![(nft.0, nft.1, Flavor::Nft), (legacy.0, legacy.1, Flavor::Legacy)])
        };
        assert_eq!(of((false, 0), (false, 0)), Flavor::Nft);
        assert_eq!(of((false, 9), (true, 1)), Flavor::Legacy);
        assert_eq!(of((true, 1), (false, 9)), Flavor::Nft);
        assert_eq!(of((false, 3), (false, 4)), Flavor::Legacy);
        assert_eq!(of((true, 3), (true, 3)), Flavor::Nft);
        assert_eq!(heaviest(Vec::new()), Flavor::Nft);
    }
}
