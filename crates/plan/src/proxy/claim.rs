//! Who claims an entry. Two Services may claim one (the same external address and port): the first by name has it.

use api::Name;

/// Almost every entry has one claimant; the rest are in the order of their names.
#[derive(Clone, Debug)]
pub(super) struct Claim<V> {
    first: (Name, V),
    others: Vec<(Name, V)>,
}

impl<V> Claim<V> {
    pub(super) fn new(first: (Name, V)) -> Self {
        Self { first, others: Vec::new() }
    }

    /// What the first claimant says.
    pub(super) fn value(&self) -> &V {
        &self.first.1
    }

    pub(super) fn add(&mut self, mut claim: (Name, V)) {
        if claim.0 < self.first.0 {
            std::mem::swap(&mut self.first, &mut claim);
        }
        let place = self.others.partition_point(|(claimant, _)| *claimant < claim.0);
        self.others.insert(place, claim);
    }

    /// Whether anybody is left.
    pub(super) fn remove(&mut self, name: &Name) -> bool {
        self.others.retain(|(claimant, _)| claimant != name);
        if self.first.0 != *name {
            return true;
        }
        if self.others.is_empty() {
            return false;
        }
        self.first = self.others.remove(0);
        true
    }
}
