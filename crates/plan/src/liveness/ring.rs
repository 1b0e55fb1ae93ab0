//! Who watches whom: the nodes on several rings, each in an order of its own, next to each other on one of them.
//!
//! Rings in random orders make a graph in which every node has few neighbours and is few steps from every other, so that
//! the cost of a node does not grow with the cluster. Source: Suresh et al., "Stable and Consistent Membership at Scale
//! with Rapid", 2018, section 4.1.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

/// The least number of rings.
const RINGS_MIN: u64 = 3;
/// More are added until every node has enough neighbours, but not beyond this: one has at most 16.
const RINGS_MAX: u64 = 8;
/// Neighbours that each node must have: then a majority of them is at least three.
const NEIGHBOURS_MIN: usize = 5;
/// Up to so many nodes all watch all.
const MESH_MAX: usize = 7;
/// With fewer there is no majority besides the node in question, and nobody watches.
const MEMBERS_MIN: usize = 3;

/// A node, by the hash of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u64);

impl Id {
    /// The node of this name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self(first(Sha256::digest(name)))
    }

    /// Its place on a ring.
    fn place(self, ring: u64) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.0.to_be_bytes());
        hash.update(ring.to_be_bytes());
        first(hash.finalize())
    }
}

fn first(hash: impl AsRef<[u8]>) -> u64 {
    hash.as_ref().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The members of a cluster and who watches whom; the same on every node that knows the same members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ring {
    members: Vec<Id>,
    digest: u32,
    neighbours: BTreeMap<Id, BTreeSet<Id>>,
}

impl Ring {
    /// A ring of these.
    #[must_use]
    pub fn new(members: &BTreeSet<Id>) -> Self {
        let members: Vec<Id> = members.iter().copied().collect();
        let mut hash = Sha256::new();
        for member in &members {
            hash.update(member.0.to_be_bytes());
        }
        let digest = u32::try_from(first(hash.finalize()) >> 32).expect("half of the bits");
        let neighbours = match members.len() {
            0..MEMBERS_MIN => BTreeMap::new(),
            MEMBERS_MIN..=MESH_MAX => mesh(&members),
            _ => rings(&members),
        };
        Self { members, digest, neighbours }
    }

    /// All members, in the order of their ids.
    #[must_use]
    pub fn members(&self) -> &[Id] {
        &self.members
    }

    /// Equal for equal members.
    #[must_use]
    pub const fn digest(&self) -> u32 {
        self.digest
    }

    /// Who watches a node, and is watched by it.
    pub fn neighbours(&self, of: Id) -> impl ExactSizeIterator<Item = Id> + '_ {
        const NONE: &BTreeSet<Id> = &BTreeSet::new();
        self.neighbours.get(&of).unwrap_or(NONE).iter().copied()
    }
}

fn mesh(members: &[Id]) -> BTreeMap<Id, BTreeSet<Id>> {
    let others = |of: &Id| members.iter().copied().filter(|other| other != of).collect();
    members.iter().map(|member| (*member, others(member))).collect()
}

fn rings(members: &[Id]) -> BTreeMap<Id, BTreeSet<Id>> {
    let mut found: BTreeMap<Id, BTreeSet<Id>> = BTreeMap::new();
    for ring in 0..RINGS_MAX {
        let enough = found.values().all(|all| all.len() >= NEIGHBOURS_MIN);
        if ring >= RINGS_MIN && enough {
            break;
        }
        let mut order = members.to_vec();
        order.sort_by_cached_key(|member| member.place(ring));
        for (one, next) in order.iter().zip(order.iter().cycle().skip(1)) {
            found.entry(*one).or_default().insert(*next);
            found.entry(*next).or_default().insert(*one);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(count: u64) -> Ring {
        Ring::new(&(0..count).map(|number| Id::of(&format!("n{number}"))).collect())
    }

    /// The most steps from the first node to another.
    fn steps(ring: &Ring) -> usize {
        let mut seen = BTreeSet::from([ring.members[0]]);
        let mut steps = 0;
        while seen.len() < ring.members.len() {
            let next: Vec<Id> = seen.iter().flat_map(|one| ring.neighbours(*one)).collect();
            seen.extend(next);
            steps += 1;
        }
        steps
    }

    #[test]
    fn fewer_than_three_watch_nobody() {
        for count in 0..3 {
            assert!(ring(count).neighbours.is_empty());
        }
    }

    #[test]
    fn neighbours_are_few_mutual_and_near_everybody() {
        for count in [3, 4, 7, 8, 9, 12, 20, 50, 100, 300, 1000] {
            let ring = ring(count);
            let mut all = 0;
            for member in &ring.members {
                let neighbours = &ring.neighbours[member];
                let least = NEIGHBOURS_MIN.min(ring.members.len() - 1);
                assert!((least..=16).contains(&neighbours.len()), "{count}: {}", neighbours.len());
                assert!(!neighbours.contains(member));
                assert!(neighbours.iter().all(|other| ring.neighbours[other].contains(member)));
                all += neighbours.len();
            }
            assert!(all <= 8 * ring.members.len(), "{count}: {all}");
            assert!(steps(&ring) <= 6, "{count}: {}", steps(&ring));
        }
    }

    #[test]
    fn one_member_more_changes_few_neighbours() {
        let (before, after) = (ring(100), ring(101));
        let kept = |id: &&Id| before.neighbours.get(*id) == after.neighbours.get(*id);
        assert!(before.members.iter().filter(kept).count() >= 80);
        assert_ne!(before.digest(), after.digest());
    }
}
