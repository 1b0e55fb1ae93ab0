//! The tables against the executable specification, and their differences against fresh plans.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use net::bpf::{Choice, Entries, FrontendKey, Steps, Tables};
use proptest::prelude::*;

use crate::decide::{State, Verdict, decide};
use crate::proxy::tests::{any_settings, packets, settings, world, worlds};
use crate::proxy::{Fold, Mode, Settings};

fn ebpf(settings: Settings) -> Settings {
    Settings { mode: Mode::Ebpf, ..settings }
}

/// The endpoints of a choice; none where it is left to the rules.
fn endpoints(tables: &Tables, choice: Choice) -> BTreeSet<SocketAddr> {
    if choice.count == 0 {
        return BTreeSet::new();
    }
    let set = &tables.sets[&choice.set];
    assert_eq!(usize::try_from(choice.count).unwrap(), set.endpoints.len());
    set.endpoints.iter().copied().collect()
}

/// Does to entries what steps say, in their order, as the kernel does.
fn take(entries: &mut Entries, steps: &Steps) {
    entries.endpoints.extend(steps.endpoints.iter().copied());
    entries.members.extend(steps.members.iter().copied());
    for (key, frontend) in &steps.frontends {
        match frontend {
            Some(frontend) => entries.frontends.insert(*key, *frontend),
            None => entries.frontends.remove(key),
        };
    }
    // Whoever was led by what was there before, or is led by what is there now, finds all of it.
    for frontend in entries.frontends.values() {
        for choice in [frontend.pods, frontend.node, frontend.outside] {
            let found = entries.endpoints.keys().filter(|key| key.set == choice.set);
            assert_eq!(found.count(), usize::try_from(choice.count).unwrap());
        }
    }
    entries.endpoints.retain(|key, _| !steps.spare.endpoints.contains(key));
    entries.members.retain(|member| !steps.spare.members.contains(member));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_programs_are_told_is_what_decide_says(sketches in worlds(), settings in any_settings()) {
        let mut snapshot = world(&sketches);
        snapshot.addresses = ["198.18.0.1", "198.18.7.1", "127.0.0.1", "fd18:7::1", "fe80::1", "::1"].map(|text| text.parse().unwrap()).into();
        let mut fold = Fold::new(ebpf(settings.clone()));
        fold.advance(&snapshot);
        let tables = fold.fast();
        let mut node = settings.node_view(snapshot.node.as_deref(), &snapshot.addresses);
        node.silent.clone_from(&snapshot.silent);
        let state = State { services: &snapshot.services, slices: &snapshot.slices, node: &node, settings: &settings };
        for (packet, _) in packets(&sketches) {
            let verdict = decide(&packet, &state).verdict;
            let key = FrontendKey { address: packet.destination, protocol: packet.protocol.number() };
            let Some(told) = tables.frontends.get(&key) else { continue };
            let is_pod = ["10.244.0.0/16", "fd44::/16"].iter().any(|range| range.parse::<ipnet::IpNet>().unwrap().contains(&packet.source));
            let choice = match (packet.from_node, is_pod) {
                (true, _) => told.node,
                (false, true) => told.pods,
                (false, false) => told.outside,
            };
            if choice.count == 0 {
                continue;
            }
            let Verdict::Forward(expected) = verdict else { panic!("{packet:?} is {verdict:?}") };
            prop_assert_eq!(endpoints(&tables, choice), expected.keys().copied().collect(), "{:?}", packet);
            for (endpoint, masquerade) in expected {
                // Who asks itself is known by the set, and left to the rules.
                let itself = endpoint.ip() == packet.source;
                prop_assert!(!itself || packet.from_node || tables.sets[&choice.set].own.contains(&packet.source));
                prop_assert_eq!(choice.masquerade || itself, masquerade, "{:?}", packet);
            }
        }
    }

    #[test]
    fn differences_lead_to_the_tables_of_a_fresh_plan(history in prop::collection::vec(worlds(), 1..6)) {
        let mut fold = Fold::new(ebpf(settings()));
        let (mut tables, mut kernel) = (Tables::default(), Entries::default());
        for sketches in &history {
            let snapshot = world(sketches);
            let before = kernel.clone();
            let change = fold.advance(&snapshot).fast;
            tables.apply(&change);
            take(&mut kernel, &Steps::from(&change));
            let mut fresh = Fold::new(ebpf(settings()));
            fresh.catch_up(&snapshot);
            prop_assert_eq!(&tables, &fresh.fast());
            prop_assert_eq!(&kernel, &fresh.fast().entries());
            let mut taken_over = before.clone();
            let steps = taken_over.steps(&kernel);
            take(&mut taken_over, &steps);
            prop_assert_eq!(&taken_over, &kernel);
            prop_assert!(kernel.steps(&kernel).is_empty());
        }
        for sets in tables.frontends.values().map(|frontend| [frontend.pods, frontend.node, frontend.outside]) {
            prop_assert!(sets.iter().all(|choice| choice.count == 0 || tables.sets.contains_key(&choice.set)));
        }
    }

    #[test]
    fn nothing_is_told_in_mode_nftables(sketches in worlds()) {
        let mut fold = Fold::new(settings());
        prop_assert!(fold.advance(&world(&sketches)).fast.is_empty());
        prop_assert_eq!(fold.fast(), Tables::default());
    }
}
