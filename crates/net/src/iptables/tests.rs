//! Differences lead from one rule set to the other, and leave what is somebody else's.

use std::sync::Arc;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::{Delta, Jump, Ruleset, Saved, Table, TableId, render};

const JUMPS: [Jump; 3] = [
    Jump { base: "INPUT", only: "", comment: "health check", chain: "OWN-0" },
    Jump { base: "INPUT", only: "-m conntrack --ctstate NEW ", comment: "new", chain: "OWN-1" },
    Jump { base: "OUTPUT", only: "", comment: "portals", chain: "OWN-0" },
];
const FOREIGN: &str = "-s 192.0.2.1/32 -j DROP";

fn rulesets() -> impl Strategy<Value = Ruleset> {
    let rule = prop_oneof![
        (0..4_u8, 0..6_u8).prop_map(|(from, to)| format!("-s 10.0.0.{from}/32 -j OWN-{to}")),
        (0..4_u8).prop_map(|port| format!("-p udp -m udp --dport {port} -j DROP")),
    ];
    let chain = vec(rule, 0..4);
    let table =
        (btree_map(0..6_u8, chain, 0..6), vec(0..3_usize, 0..3)).prop_map(|(chains, which)| {
            let known = |rule: &String| {
                let target = rule.rsplit_once("OWN-").and_then(|(_, to)| to.parse().ok());
                target.is_none_or(|to: u8| chains.contains_key(&to))
            };
            let rules = |rules: &Vec<String>| {
                rules
                    .iter()
                    .filter(|rule| known(rule))
                    .map(|rule| Arc::from(rule.as_str()))
                    .collect()
            };
            let mut jumps: Vec<Jump> = which.into_iter().map(|at| JUMPS[at].clone()).collect();
            jumps.sort();
            jumps.dedup();
            jumps.retain(|jump| chains.keys().any(|key| jump.chain == format!("OWN-{key}")));
            let chains = chains.iter();
            let chains =
                chains.map(|(key, all)| (Arc::from(format!("OWN-{key}")), rules(all))).collect();
            Table { chains, jumps }
        });
    vec(table, 3).prop_map(|tables| TableId::ALL.into_iter().zip(tables).collect())
}

/// A kernel with somebody else's rules.
fn kernel() -> Saved {
    let mut saved = Saved::default();
    for id in TableId::ALL {
        let chains = saved.tables.entry(id).or_default();
        for base in ["INPUT", "OUTPUT"] {
            chains.insert(base.to_owned(), vec![FOREIGN.to_owned()]);
        }
        chains.insert("FOREIGN".to_owned(), vec![FOREIGN.to_owned()]);
    }
    saved
}

/// The order of jumps is that of their coming.
fn sorted(mut saved: Saved) -> Saved {
    for base in ["INPUT", "OUTPUT"] {
        saved.tables.values_mut().for_each(|chains| chains.get_mut(base).unwrap().sort());
    }
    saved
}

proptest! {
    #[test]
    fn a_difference_applied_to_the_old_is_the_new(old in rulesets(), new in rulesets()) {
        let mut kernel_old = kernel();
        kernel_old.restore(&Delta::between(&Ruleset::new(), &old).render()).unwrap();
        kernel_old.restore(&Delta::between(&old, &new).render()).unwrap();
        let mut kernel_new = kernel();
        kernel_new.restore(&Delta::between(&Ruleset::new(), &new).render()).unwrap();
        prop_assert_eq!(sorted(kernel_old.clone()), sorted(kernel_new));
        kernel_old.restore(&Delta::between(&new, &Ruleset::new()).render()).unwrap();
        prop_assert_eq!(kernel_old, kernel());
        prop_assert!(Delta::between(&new, &new).is_empty());
    }

    #[test]
    fn what_is_rendered_reads_back(rules in rulesets()) {
        let saved = Saved::parse(&render(&rules));
        for (id, table) in &rules {
            for (name, chain) in &table.chains {
                let found = &saved.tables[id][&**name];
                prop_assert!(found.iter().map(String::as_str).eq(chain.iter().map(AsRef::as_ref)));
            }
        }
    }
}

#[test]
fn a_jump_is_known_again_in_what_the_kernel_shows() {
    let [plain, new, _] = JUMPS;
    assert!(new.is("-m conntrack --ctstate NEW -m comment --comment new -j OWN-1"));
    assert!(plain.is("-m comment --comment \"health check\" -j OWN-0"));
    assert!(!plain.is("-s 10.0.0.1/32 -m comment --comment \"health check\" -j OWN-0"));
    assert!(plain.resembles("-s 10.0.0.1/32 -m comment --comment \"health check\" -j OWN-0"));
    assert!(!plain.resembles("-s 10.0.0.1/32 -j OWN-0"));
    let text =
        render(&[(TableId::Nat, Table { jumps: vec![plain, new], ..Table::default() })].into());
    let inputs: Vec<&str> = text.lines().filter(|line| line.starts_with("-A INPUT")).collect();
    assert!(inputs[0].ends_with("OWN-0") && inputs[1].ends_with("OWN-1"), "{text}");
}

#[test]
fn gone_chains_may_be_emptied_only() {
    let chain = || (Arc::from("OWN"), Arc::from([Arc::from("-j DROP")]));
    let old = Table { chains: [chain()].into(), jumps: Vec::new() };
    let delta = Delta::between(&[(TableId::Nat, old)].into(), &Ruleset::new());
    assert_eq!(delta.render(), "*nat\n:OWN - [0:0]\n-X OWN\nCOMMIT\n");
    assert_eq!(delta.render_gently(), "*nat\n:OWN - [0:0]\nCOMMIT\n");
}
