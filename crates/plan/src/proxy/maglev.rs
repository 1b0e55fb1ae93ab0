//! Which endpoint a connection from outside gets, the same on every node: Maglev's table.
//!
//! Nodes that share an address by equal routes, or that take it over from one another, lead a connection to the same
//! endpoint without telling each other anything. When endpoints come or go, few of the other connections move.
//! Source: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4.

use std::net::{IpAddr, SocketAddr};

/// Places of a table. Prime, so that every step visits all places; with `ENDPOINTS_MAX` endpoints each has eight of them
/// or seven, and with ten each has 102 or 103.
pub const PLACES: u16 = 1021;

/// Endpoints that a table spreads over. Beyond, the shares would be too uneven: one is drawn at random instead.
pub const ENDPOINTS_MAX: usize = 128;

/// For each place the index of its endpoint. `None` when there are none, or too many. The order of the endpoints
/// makes no difference to who gets a place.
#[must_use]
pub fn table(endpoints: &[SocketAddr]) -> Option<Vec<u16>> {
    if endpoints.is_empty() || endpoints.len() > ENDPOINTS_MAX {
        return None;
    }
    let mut walks: Vec<Walk> =
        (0..).zip(endpoints).map(|(index, at)| Walk::of(index, at)).collect();
    // Who chooses first must not depend on the order in which a node happens to know them.
    walks.sort_by_key(|walk| endpoints[usize::from(walk.index)]);
    let mut table = vec![None; usize::from(PLACES)];
    let mut free = table.len();
    'rounds: loop {
        for walk in &mut walks {
            let place = walk.next_free(&table);
            table[place] = Some(walk.index);
            free -= 1;
            if free == 0 {
                break 'rounds;
            }
        }
    }
    table.into_iter().collect()
}

/// An endpoint's way through all places, in the order in which it wants them.
struct Walk {
    index: u16,
    place: u16,
    skip: u16,
}

impl Walk {
    fn of(index: u16, endpoint: &SocketAddr) -> Self {
        let place = hash(endpoint, 0) % u64::from(PLACES);
        let skip = hash(endpoint, 1) % u64::from(PLACES - 1) + 1;
        let narrow = |number: u64| u16::try_from(number).expect("below PLACES");
        Self { index, place: narrow(place), skip: narrow(skip) }
    }

    fn next_free(&mut self, table: &[Option<u16>]) -> usize {
        loop {
            let place = usize::from(self.place);
            self.place = (self.place + self.skip) % PLACES;
            if table[place].is_none() {
                return place;
            }
        }
    }
}

/// FNV-1a with a last mixing, for its low bits alone are not even. Fixed for ever: nodes of all versions must agree.
fn hash(endpoint: &SocketAddr, seed: u64) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut take = |octets: &[u8]| {
        for octet in octets {
            state = (state ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    match endpoint.ip() {
        IpAddr::V4(v4) => take(&v4.octets()),
        IpAddr::V6(v6) => take(&v6.octets()),
    }
    take(&endpoint.port().to_be_bytes());
    state ^= state >> 33;
    state = state.wrapping_mul(0xff51_afd7_ed55_8ccd);
    state ^ (state >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn endpoint(number: u16) -> SocketAddr {
        let [high, low] = number.to_be_bytes();
        SocketAddr::from(([10, 244, high, low], 8080))
    }

    /// Who has each place.
    fn owners(endpoints: &[SocketAddr]) -> Vec<SocketAddr> {
        let table = table(endpoints).unwrap();
        table.into_iter().map(|index| endpoints[usize::from(index)]).collect()
    }

    #[test]
    fn no_endpoint_has_no_table_and_too_many_have_none_either() {
        assert_eq!(table(&[]), None);
        let many: Vec<SocketAddr> = (0..=128).map(endpoint).collect();
        assert_eq!(table(&many), None);
        assert!(table(&many[1..]).is_some());
    }

    #[test]
    fn one_endpoint_has_every_place() {
        assert_eq!(table(&[endpoint(7)]).unwrap(), vec![0; 1021]);
    }

    #[test]
    fn the_table_of_an_older_version_is_the_same() {
        let six: SocketAddr = "[fd44::2]:53".parse().unwrap();
        let table = table(&[endpoint(1), endpoint(2), endpoint(3), six]).unwrap();
        assert_eq!(table[..16], [1, 3, 2, 0, 3, 2, 3, 0, 3, 3, 1, 0, 2, 1, 3, 0]);
    }

    proptest! {
        #[test]
        fn shares_are_even(numbers in proptest::collection::btree_set(any::<u16>(), 1..=ENDPOINTS_MAX)) {
            let endpoints: Vec<SocketAddr> = numbers.into_iter().map(endpoint).collect();
            let mut shares = BTreeMap::new();
            for owner in owners(&endpoints) {
                *shares.entry(owner).or_insert(0) += 1;
            }
            let fewest = usize::from(PLACES) / endpoints.len();
            prop_assert_eq!(shares.len(), endpoints.len());
            prop_assert!(shares.values().all(|share| [fewest, fewest + 1].contains(share)));
        }

        #[test]
        fn order_makes_no_difference(numbers in proptest::collection::btree_set(any::<u16>(), 1..20)) {
            let endpoints: Vec<SocketAddr> = numbers.into_iter().map(endpoint).collect();
            let reversed: Vec<SocketAddr> = endpoints.iter().rev().copied().collect();
            prop_assert_eq!(owners(&endpoints), owners(&reversed));
        }

        /// Of the places of the endpoints that stay, few change their owner: the paper's figures 11 and 12 show some
        /// percent for tables a hundred times as large as the number of endpoints.
        #[test]
        fn one_that_leaves_moves_few_others(
            numbers in proptest::collection::btree_set(any::<u16>(), 2..=20),
            pick in any::<prop::sample::Index>(),
        ) {
            let endpoints: Vec<SocketAddr> = numbers.into_iter().map(endpoint).collect();
            let gone = pick.index(endpoints.len());
            let mut fewer = endpoints.clone();
            fewer.remove(gone);
            let (before, after) = (owners(&endpoints), owners(&fewer));
            let moved = before.iter().zip(&after);
            let moved = moved.filter(|(was, is)| **was != endpoints[gone] && was != is).count();
            prop_assert!(moved * 100 <= usize::from(PLACES) * 15, "{moved} moved");
        }
    }
}
