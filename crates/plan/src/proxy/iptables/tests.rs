//! Upstream's names, golden cases, and the properties that tie differences, rules and specification together.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use api::Name;
use net::iptables::{Delta, Ruleset, Saved, TableId, render};
use net::nft::Family;
use proptest::prelude::*;

use super::names::PortName;
use super::{Fold, agrees, owns, share, takeover, udp_frontends};
use crate::decide::{State, Verdict, decide};
use crate::proxy::tests::{Sketch, add, any_settings, packets, settings, world, worlds};
use crate::proxy::{FAMILIES, Settings, Snapshot};
use crate::service::Protocol;

#[path = "tests/trace.rs"]
mod trace;

#[test]
fn chains_are_called_as_upstream_calls_them() {
    let name = PortName::of(&Name::new("ns1", "svc1"), "p80", Protocol::Tcp);
    assert_eq!(name.svc(), "KUBE-SVC-XPGD46QRK7WJZT7O");
    assert_eq!(name.firewall(), "KUBE-FW-XPGD46QRK7WJZT7O");
    let endpoint: SocketAddr = "10.180.0.1:80".parse().unwrap();
    assert_eq!(&*name.sep(endpoint), "KUBE-SEP-SXIVWICOYRO3J4NJ");
    let other = PortName::of(&Name::new("ns2", "svc2"), "p80", Protocol::Tcp);
    assert_eq!(other.ext(), "KUBE-EXT-GNZBNJ2PO5MGZ6GT");
    let hostile = PortName::of(&Name::new("a", "b\"\nCOMMIT"), "", Protocol::Tcp);
    assert_eq!(hostile.comment(), "a/b__COMMIT");
}

#[test]
fn cases_render_as_reviewed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/proxy");
    for case in fs::read_dir(folder).unwrap() {
        let case = case.unwrap().path();
        let text = fs::read_to_string(case.join("objects.yaml")).unwrap();
        let mut snapshot = Snapshot::default();
        for document in text.split("\n---\n") {
            add(&mut snapshot, serde_saphyr::from_str(document).unwrap());
        }
        let mut fold = Fold::new(settings());
        fold.advance(&snapshot);
        let rendered = FAMILIES.map(|family| render(fold.rules(family))).concat();
        let expected = case.join("rules.iptables");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected, &rendered).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(rendered, expected, "{}; BLESS=1 rewrites", case.display());
    }
}

fn kernel() -> Saved {
    let chains = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let chains: BTreeMap<_, _> =
        chains.into_iter().map(|name| (name.to_owned(), Vec::new())).collect();
    Saved { tables: TableId::ALL.into_iter().map(|id| (id, chains.clone())).collect() }
}

fn whole(rules: &Ruleset) -> Saved {
    let mut saved = kernel();
    saved.restore(&Delta::between(&Ruleset::new(), rules).render()).unwrap();
    saved
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_difference_equals_a_rebuild(steps in prop::collection::vec(worlds(), 1..5), settings in any_settings()) {
        let mut fold = Fold::new(settings.clone());
        let mut kernels = FAMILIES.map(|family| whole(fold.rules(family)));
        for sketches in &steps {
            let snapshot = world(sketches);
            let change = fold.advance(&snapshot);
            let mut fresh = Fold::new(settings.clone());
            fresh.advance(&snapshot);
            for (family, kernel) in FAMILIES.into_iter().zip(&mut kernels) {
                if let Some(delta) = change.families.get(&family) {
                    kernel.restore(&delta.render()).unwrap();
                }
                prop_assert_eq!(&*kernel, &whole(fresh.rules(family)));
                for (id, chains) in &kernel.tables {
                    for name in chains.keys().filter(|name| name.contains('-')) {
                        prop_assert!(owns(*id, name), "{}", name);
                        prop_assert!(name.len() <= 28);
                    }
                }
            }
            prop_assert!(fold.advance(&snapshot).families.is_empty());
        }
    }

    #[test]
    fn the_rules_do_what_decide_says(sketches in worlds(), settings in any_settings()) {
        agree(&sketches, &settings);
    }
}

#[test]
fn a_takeover_replaces_what_is_own_and_leaves_the_rest() {
    let fold = Fold::new(settings());
    let rules = fold.rules(Family::Ip);
    let foreign = "*nat\n:FOREIGN - [0:0]\n-A FOREIGN -j DROP\n-A PREROUTING -j FOREIGN\n\
        -A PREROUTING -s 10.0.0.1/32 -j KUBE-SERVICES\nCOMMIT\n";
    let own = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-OLD - [0:0]\n-A KUBE-SERVICES -j KUBE-SVC-OLD\n\
        -A PREROUTING -s 10.0.0.1/32 -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
        -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
        -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\nCOMMIT\n";
    let with = |inputs: &[&str]| {
        let mut saved = whole(rules);
        inputs.iter().for_each(|input| saved.restore(input).unwrap());
        saved
    };
    let mut found = with(&[own, foreign]);
    found.restore(&takeover(&found, rules).render()).unwrap();
    assert!(!found.tables[&TableId::Nat].contains_key("KUBE-SVC-OLD"));
    let sorted = |mut saved: Saved| {
        saved.tables.values_mut().flat_map(BTreeMap::values_mut).for_each(|rules| rules.sort());
        saved
    };
    assert_eq!(sorted(found.clone()), sorted(with(&[foreign])));
    let again = takeover(&found, rules);
    assert!(again.tables.values().all(|table| table.new_jumps.is_empty()), "{again:?}");
    let left = foreign.replace("-A PREROUTING -s 10.0.0.1/32 -j KUBE-SERVICES\n", "");
    let mut found = with(&[&left]);
    found.restore(&takeover(&found, &Ruleset::new()).render()).unwrap();
    let mut bare = kernel();
    bare.restore(&left).unwrap();
    assert_eq!(found, bare);
}

#[test]
fn rules_are_known_again_in_other_words() {
    let planned = |rule: &str| [rule.into()];
    let dnat = "-m comment --comment a/b -m recent --name X --set -m tcp -p tcp -j DNAT --to-destination 10.0.0.1:80";
    let shown = "-p tcp -m comment --comment \"a/b\" -m recent --set --name X --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.0.0.1:80";
    assert!(agrees(&[shown.to_owned()], &planned(dnat)));
    assert!(!agrees(&[shown.replace(".1:80", ".2:80")], &planned(dnat)));
    let masquerade = "-m udp -p udp -d 10.96.0.1 --dport 53 ! -s 10.244.1.0/16 -j KUBE-MARK-MASQ";
    let shown = "! -s 10.244.0.0/16 -d 10.96.0.1/32 -p udp -m udp --dport 53 -j KUBE-MARK-MASQ";
    assert!(agrees(&[shown.to_owned()], &planned(masquerade)));
    assert!(!agrees(&[shown.replace("! -s", "-s")], &planned(masquerade)));
    assert!(!agrees(&[], &planned(masquerade)));
}

/// What the rules do with each packet is what must happen to it.
fn agree(sketches: &BTreeMap<u8, Sketch>, settings: &Settings) {
    let mut snapshot = world(sketches);
    let own = ["198.18.0.1", "198.18.7.1", "127.0.0.1", "fd18::1", "fd18:7::1", "fe80::1", "::1"];
    snapshot.addresses = own.map(|text| text.parse().unwrap()).into();
    let mut fold = Fold::new(settings.clone());
    fold.advance(&snapshot);
    let mut node = settings.node_view(snapshot.node.as_deref(), &snapshot.addresses);
    node.silent.clone_from(&snapshot.silent);
    let (services, slices) = (&snapshot.services, &snapshot.slices);
    let state = State { services, slices, node: &node, settings };
    let kernels = FAMILIES.map(|family| whole(fold.rules(family)));
    for (packet, family) in packets(sketches) {
        // A neighbour may not send to 127.0.0.1.
        if packet.destination.ip().is_loopback() && !packet.from_node {
            continue;
        }
        let kernel = &kernels[usize::from(family == Family::Ip6)];
        let is_own = snapshot.addresses.contains(&packet.destination.ip());
        let done = trace::outcomes(kernel, &packet, is_own);
        let must = decide(&packet, &state);
        let expected = match &must.verdict {
            Verdict::Pass => [trace::Outcome::Pass].into(),
            Verdict::Reject => [trace::Outcome::Reject].into(),
            Verdict::Drop => [trace::Outcome::Drop].into(),
            Verdict::Forward(to) => {
                to.iter().map(|(to, snat)| trace::Outcome::Forward(*to, *snat)).collect()
            }
        };
        assert_eq!(done, expected, "{packet:?} {must:?}\n{}", render(fold.rules(family)));
    }
}

#[test]
fn one_frontends_share_has_its_own_chains_and_nobody_elses() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/proxy/nodeport-local/rules.iptables");
    let planned = fs::read_to_string(path).unwrap();
    let of = |text: &str, at: &str| share(&Saved::parse(text), at.parse().unwrap(), Protocol::Tcp);
    let chains = |at: &str| of(&planned, at).into_keys().collect::<Vec<_>>().join("\n");
    let balancer = chains("198.18.255.1:80");
    for chain in [
        "filter KUBE-PROXY-FIREWALL",
        "nat KUBE-SERVICES",
        "nat KUBE-FW-PFINMTQ5Y2TT4XZK",
        "nat KUBE-EXT-PFINMTQ5Y2TT4XZK",
        "nat KUBE-SVL-PFINMTQ5Y2TT4XZK",
        "nat KUBE-SEP-YB2O3KLXGO6JPS57",
    ] {
        assert!(balancer.contains(chain), "no {chain} in {balancer}");
    }
    assert!(chains("198.18.0.1:30080").contains("nat KUBE-NODEPORTS"));
    assert!(!chains("10.96.0.20:80").contains("KUBE-NODEPORTS"));
    assert!(!chains("10.96.0.20:80").contains("KUBE-FW-"));
    assert_eq!(chains("10.96.0.20:81"), "");
    // The programs show the same in other words, and something else as something else.
    let shown = planned.replace("-m tcp -p tcp -d 10.96.0.20 ", "-d 10.96.0.20/32 -p tcp -m tcp ");
    assert_ne!(shown, planned);
    assert_eq!(of(&shown, "10.96.0.20:80"), of(&planned, "10.96.0.20:80"));
    let wrong =
        planned.replace("--to-destination 10.244.1.2:8080", "--to-destination 10.244.9.9:1");
    assert_ne!(of(&wrong, "10.96.0.20:80"), of(&planned, "10.96.0.20:80"));
}

#[test]
fn udp_frontends_are_read_from_what_the_kernel_shows() {
    let saved = Saved::parse(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n\
        -A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m comment --comment \"a cluster IP\" -m udp --dport 53 -j KUBE-SVC-A\n\
        -A KUBE-SERVICES -d 10.96.0.11/32 -p tcp -m comment --comment \"b cluster IP\" -m tcp --dport 53 -j KUBE-SVC-B\n\
        -A KUBE-SERVICES -d 198.18.0.1/32 -m comment --comment \"nodeports\" -j KUBE-NODEPORTS\n\
        -A KUBE-NODEPORTS -p udp -m comment --comment a -m udp --dport 30053 -j KUBE-EXT-A\n\
        -A KUBE-NODEPORTS -p tcp -m comment --comment b -m tcp --dport 30054 -j KUBE-EXT-B\nCOMMIT\n",
    );
    let expected = ["10.96.0.10:53", "198.18.0.1:30053"].map(|text| text.parse().unwrap());
    assert_eq!(udp_frontends(&saved), expected.into());
}
