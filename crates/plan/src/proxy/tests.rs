//! Golden cases, and the properties that tie the fold, the difference and the rules together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use api::{Kind, Name};
use net::nft::{Elements, Family, Op, Outcome, Packet, Table, Transaction, render};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Dirty, FAMILIES, Fold, Mode, Settings, Snapshot, Stage, Views};
use crate::decide::{self, State, Verdict, decide};
use crate::service::{Action, Protocol};

pub(super) fn settings() -> Settings {
    Settings {
        node: "n1".to_owned(),
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd96::/108".parse().unwrap()],
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd44::/48".parse().unwrap()],
        external_ips: false,
        ..Settings::default()
    }
}

pub(super) fn add(snapshot: &mut Snapshot, object: Value) {
    match object["kind"].as_str() {
        Some("Service") => {
            let service: api::core::Service = serde_json::from_value(object).unwrap();
            snapshot.services.insert(service.object_name(), Arc::new(service));
        }
        Some("EndpointSlice") => {
            let slice: api::discovery::EndpointSlice = serde_json::from_value(object).unwrap();
            snapshot.slices.insert(slice.object_name(), Arc::new(slice));
        }
        Some("Node") => snapshot.node = Some(Arc::new(serde_json::from_value(object).unwrap())),
        other => panic!("{other:?} is of no kind that the proxy watches"),
    }
}

#[test]
fn a_range_that_is_added_makes_the_rules_of_a_fresh_plan() {
    let mut snapshot = Snapshot::default();
    let (mut nft, mut iptables) = (Fold::new(settings()), super::iptables::Fold::new(settings()));
    nft.advance(&snapshot);
    iptables.advance(&snapshot);
    assert!(!nft.follow(&snapshot), "not known better");
    snapshot.service_cidrs = settings().service_cidrs;
    assert!(!nft.follow(&snapshot) && !iptables.follow(&snapshot), "as before");
    snapshot.service_cidrs.push("10.200.0.0/24".parse().unwrap());
    assert!(nft.follow(&snapshot) && iptables.follow(&snapshot));
    let known = Settings { service_cidrs: snapshot.service_cidrs.clone(), ..settings() };
    assert_eq!(nft.table(Family::Ip), Fold::new(known.clone()).table(Family::Ip));
    let fresh = super::iptables::Fold::new(known);
    assert_eq!(iptables.rules(Family::Ip), fresh.rules(Family::Ip));
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
        let rendered = FAMILIES.map(|family| render(&fold.table(family))).concat();
        let mut fast = Fold::new(Settings { mode: Mode::Ebpf, ..settings() });
        fast.advance(&snapshot);
        let told = net::bpf::render(&fast.fast());
        for (file, rendered) in [("ruleset.nft", rendered), ("tables.ebpf", told)] {
            let expected = case.join(file);
            if std::env::var_os("BLESS").is_some() {
                fs::write(&expected, &rendered).unwrap();
            }
            let expected = fs::read_to_string(&expected).unwrap_or_default();
            assert_eq!(rendered, expected, "{}; BLESS=1 rewrites", case.display());
        }
    }
}

/// A Service of the random world.
#[derive(Clone, Debug)]
pub(super) struct Sketch {
    kind: u8,
    internal_local: bool,
    external_local: bool,
    affinity: bool,
    range: bool,
    node_local: bool,
    v6: bool,
    udp: bool,
    /// Pod number, and condition: 0 ready, 1 draining, 2 not ready.
    endpoints: BTreeMap<u8, u8>,
    /// 0 none, 1 zones, 2 zones and nodes.
    hints: u8,
    external_ip: bool,
    /// Whether the load balancer's address is of mode Proxy.
    proxy_mode: bool,
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let flags = (any::<[bool; 7]>(), prop::bool::weighted(0.1), 0..3u8);
    let endpoints = prop::collection::btree_map(0..6u8, 0..3u8, 0..5);
    (0..3u8, flags, endpoints).prop_map(|(kind, (flags, node_local, hints), endpoints)| {
        let [internal_local, external_local, affinity, range, both, external_ip, proxy_mode] =
            flags;
        let (v6, udp) = (both && range, both);
        Sketch {
            kind,
            internal_local,
            external_local,
            affinity,
            range,
            node_local,
            v6,
            udp,
            endpoints,
            hints,
            external_ip,
            proxy_mode: proxy_mode && external_ip,
        }
    })
}

fn pod_ip(pod: u8, v6: bool) -> String {
    if v6 { format!("fd44::{}:{pod}", pod % 2 + 1) } else { format!("10.244.{}.{pod}", pod % 2) }
}

pub(super) fn world(sketches: &BTreeMap<u8, Sketch>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    // In some worlds a node has fallen silent.
    if sketches.len().is_multiple_of(2) {
        snapshot.silent = Arc::new(["n0".to_owned()].into());
    }
    add(
        &mut snapshot,
        json!({ "kind": "Node", "apiVersion": "v1", "metadata": { "name": "n1", "labels": { "topology.kubernetes.io/zone": "z1" } },
            "status": { "addresses": [{ "type": "InternalIP", "address": "198.18.0.1" }, { "type": "InternalIP", "address": "fd18::1" }] } }),
    );
    for (number, sketch) in sketches {
        let ip = |family: bool| {
            if family {
                format!("fd96::{}", 10 + number)
            } else {
                format!("10.96.0.{}", 10 + number)
            }
        };
        let kind = ["ClusterIP", "NodePort", "LoadBalancer"][usize::from(sketch.kind)];
        let policy = |local: bool| if local { "Local" } else { "Cluster" };
        let protocol = match (sketch.udp, sketch.hints) {
            (false, _) => "TCP",
            (true, 0) => "SCTP",
            (true, _) => "UDP",
        };
        let mut port = json!({ "name": "p", "port": 80, "protocol": protocol });
        if sketch.kind > 0 {
            port["nodePort"] = json!(30000 + u32::from(*number));
        }
        // Load balancer addresses are shared by pairs of Services: the first by name has them.
        let ingress = if sketch.v6 {
            format!("fd20::{}", number / 2)
        } else {
            format!("203.0.113.{}", number / 2)
        };
        let mut service = json!({
            "kind": "Service", "apiVersion": "v1", "metadata": { "name": format!("s{number}"), "namespace": "default" },
            "spec": { "type": kind, "clusterIP": ip(sketch.v6), "clusterIPs": [ip(sketch.v6)], "ports": [port],
                "internalTrafficPolicy": policy(sketch.internal_local),
                "externalTrafficPolicy": policy(sketch.external_local),
                "sessionAffinity": if sketch.affinity { "ClientIP" } else { "None" } },
            "status": { "loadBalancer": { "ingress": [{ "ip": ingress }] } },
        });
        if sketch.range {
            service["spec"]["loadBalancerSourceRanges"] =
                json!(["192.0.2.0/25", "10.244.0.0/24", "2001:db8::/33"]);
        }
        if sketch.external_ip {
            // Shared by all: the first by name has it.
            service["spec"]["externalIPs"] =
                json!([if sketch.v6 { "fd30::1" } else { "203.0.113.200" }]);
        }
        if sketch.proxy_mode {
            service["status"]["loadBalancer"]["ingress"][0]["ipMode"] = json!("Proxy");
        }
        if sketch.node_local {
            service["metadata"]["annotations"] = json!({ "rhumb.dev/node-local": "true" });
        }
        add(&mut snapshot, service);
        add(&mut snapshot, slice(*number, sketch, protocol));
    }
    snapshot
}

fn slice(number: u8, sketch: &Sketch, protocol: &str) -> Value {
    let endpoints = sketch.endpoints.iter().map(|(pod, condition)| {
        let mut endpoint = json!({
            "addresses": [pod_ip(*pod, sketch.v6)], "nodeName": format!("n{}", pod % 2),
            "conditions": { "ready": *condition == 0, "serving": *condition < 2, "terminating": *condition == 1 },
        });
        if sketch.hints > 0 {
            endpoint["hints"] = json!({ "forZones": [{ "name": format!("z{}", pod % 3) }] });
        }
        if sketch.hints > 1 {
            endpoint["hints"]["forNodes"] = json!([{ "name": format!("n{}", pod % 2) }]);
        }
        endpoint
    });
    json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": { "name": format!("s{number}-x"), "namespace": "default",
            "labels": { "kubernetes.io/service-name": format!("s{number}") } },
        "addressType": if sketch.v6 { "IPv6" } else { "IPv4" },
        "ports": [{ "name": "p", "port": 8080, "protocol": protocol }],
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

/// Every way to start the proxy.
pub(super) fn any_settings() -> impl Strategy<Value = Settings> {
    use super::NodePortAddresses::{All, Localhost, Primary, Within};
    let within = Within("198.18.7.0/24".parse().unwrap());
    let addresses = prop::sample::subsequence(vec![Primary, Localhost, All, within], 0..4);
    (any::<[bool; 3]>(), addresses).prop_map(|([external_ips, masquerade_all, no_pods], chosen)| {
        let mut settings =
            Settings { external_ips, masquerade_all, node_port_addresses: chosen, ..settings() };
        if no_pods {
            settings.pod_cidrs.retain(|cidr| cidr.addr().is_ipv4());
        }
        settings
    })
}

pub(super) fn worlds() -> impl Strategy<Value = BTreeMap<u8, Sketch>> {
    prop::collection::btree_map(0..5u8, sketch(), 0..5)
}

/// Commits a transaction to a table that stands for the kernel's, and is as strict.
fn commit(table: &mut Table, transaction: Transaction) {
    for op in transaction.ops {
        match op {
            Op::AddChain(name, hook) => {
                let chain = net::nft::Chain { hook, rules: Vec::new() };
                assert!(table.chains.insert(name, chain).is_none());
            }
            Op::AddRule(name, rule) => table.chains.get_mut(&name).unwrap().rules.push(rule),
            Op::DeleteElements(set, keys) => {
                let elements = table.elements.get_mut(&set).unwrap();
                for key in keys {
                    assert!(elements.remove(&key).is_some(), "{set} has no {key:?}");
                }
            }
            Op::AddElements(set, new) => {
                let elements = table.elements.get_mut(&set).unwrap();
                for (key, value) in new {
                    assert!(elements.insert(key.clone(), value).is_none(), "{set} has {key:?}");
                }
            }
            other => panic!("{other:?} is no difference"),
        }
    }
}

fn outcomes(table: &Table, packet: &Packet) -> BTreeSet<(Option<SocketAddr>, &'static str)> {
    (0..12)
        .map(|random| {
            let traced = table.trace("prerouting", packet, random, BTreeMap::new());
            match traced.outcome {
                Outcome::Dnat(address, port) => {
                    let after =
                        Packet { destination: address, port, mark: traced.mark, ..packet.clone() };
                    let after = table.trace("postrouting", &after, 0, BTreeMap::new());
                    let word =
                        if after.outcome == Outcome::Masquerade { "masquerade" } else { "plain" };
                    assert_eq!(after.mark & super::MARK, 0, "the mark leaves the node");
                    (Some(SocketAddr::new(address, port)), word)
                }
                Outcome::Reject => (None, "reject"),
                Outcome::Drop => (None, "drop"),
                Outcome::Accept | Outcome::Masquerade => (None, "pass"),
            }
        })
        .collect()
}

pub(super) fn packets(sketches: &BTreeMap<u8, Sketch>) -> Vec<(decide::Packet, Family)> {
    let mut packets = Vec::new();
    for v6 in [false, true] {
        let sources: &[(&str, bool)] = if v6 {
            &[
                ("fd44::1:c8", false),
                ("fd44::2:1", false),
                ("fd18::1", true),
                ("2001:db8::9", false),
                ("2001:db8:8000::9", false),
            ]
        } else {
            &[
                ("10.244.0.200", false),
                ("10.244.1.1", false),
                ("198.18.0.1", true),
                ("192.0.2.9", false),
                ("192.0.2.200", false),
            ]
        };
        let mut targets: Vec<SocketAddr> = Vec::new();
        for number in sketches.keys().copied().chain([99]) {
            let address = |v4: String, v6_text: String| -> IpAddr {
                if v6 { v6_text } else { v4 }.parse().unwrap()
            };
            let cluster = address(
                format!("10.96.0.{}", 10 + number),
                format!("fd96::{}", 10 + u16::from(number)),
            );
            let balancer =
                address(format!("203.0.113.{}", number / 2), format!("fd20::{}", number / 2));
            let node = address("198.18.0.1".to_owned(), "fd18::1".to_owned());
            targets.extend([(cluster, 80), (cluster, 81), (balancer, 80)].map(SocketAddr::from));
            let external = address("203.0.113.200".to_owned(), "fd30::1".to_owned());
            let second = address("198.18.7.1".to_owned(), "fd18:7::1".to_owned());
            let loopback = address("127.0.0.1".to_owned(), "::1".to_owned());
            targets.push(SocketAddr::new(external, 80));
            let node_port = 30000 + u16::from(number);
            targets.extend([node, second, loopback].map(|node| SocketAddr::new(node, node_port)));
        }
        for (source, from_node) in sources {
            for destination in &targets {
                for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                    let source = source.parse().unwrap();
                    let packet = decide::Packet {
                        source,
                        from_node: *from_node,
                        destination: *destination,
                        protocol,
                    };
                    packets.push((packet, Family::of(&source)));
                }
            }
        }
    }
    packets
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_rules_do_what_decide_says(sketches in worlds(), settings in any_settings()) {
        let mut snapshot = world(&sketches);
        snapshot.addresses = ["198.18.0.1", "198.18.7.1", "127.0.0.1", "fd18:7::1", "fe80::1", "::1"].map(|text| text.parse().unwrap()).into();
        let mut fold = Fold::new(settings.clone());
        fold.advance(&snapshot);
        let tables = FAMILIES.map(|family| fold.table(family));
        let mut node = settings.node_view(snapshot.node.as_deref(), &snapshot.addresses);
        node.silent = Arc::clone(&snapshot.silent);
        let state = State { services: &snapshot.services, slices: &snapshot.slices, node: &node, settings: &settings };
        for (packet, family) in packets(&sketches) {
            let expected = match decide(&packet, &state).verdict {
                Verdict::Pass => [(None, "pass")].into(),
                Verdict::Reject => [(None, "reject")].into(),
                Verdict::Drop => [(None, "drop")].into(),
                Verdict::Forward(endpoints) => endpoints
                    .into_iter()
                    .map(|(endpoint, masquerade)| (Some(endpoint), if masquerade { "masquerade" } else { "plain" }))
                    .collect::<BTreeSet<_>>(),
            };
            let traced = Packet {
                source: packet.source,
                destination: packet.destination.ip(),
                proto: packet.protocol.number(),
                port: packet.destination.port(),
                source_is_local: packet.from_node,
                mark: 0,
            };
            let table = tables.iter().find(|table| table.family == family).unwrap();
            prop_assert_eq!(outcomes(table, &traced), expected, "{:?}", packet);
        }
    }

    #[test]
    fn the_order_of_objects_makes_no_difference(sketches in worlds(), seed in any::<prop::sample::Index>()) {
        let snapshot = world(&sketches);
        let mut at_once = Fold::new(settings());
        at_once.advance(&snapshot);
        // One object after the other, from anywhere and round; slices may come before their Services.
        let mut names: Vec<(bool, &Name)> = snapshot.services.keys().map(|name| (true, name)).collect();
        names.extend(snapshot.slices.keys().map(|name| (false, name)));
        if !names.is_empty() {
            let by = seed.index(names.len());
            names.rotate_left(by);
        }
        let (node, silent) = (snapshot.node.clone(), snapshot.silent.clone());
        let mut growing = Snapshot { node, silent, ..Snapshot::default() };
        let mut one_by_one = Fold::new(settings());
        for (is_service, name) in names {
            if is_service {
                growing.services.extend(snapshot.services.get_key_value(name).map(|(name, service)| (name.clone(), Arc::clone(service))));
            } else {
                growing.slices.insert(name.clone(), Arc::clone(&snapshot.slices[name]));
            }
            one_by_one.advance(&growing);
        }
        for family in FAMILIES {
            let (expected, mut found) = (at_once.table(family), one_by_one.table(family));
            // Chains and their classes stay for the next Service that needs them.
            found.chains.retain(|name, _| expected.chains.contains_key(name));
            for map in ["classes", "guarded_classes", "split_classes"] {
                let needed = &expected.elements[map];
                found.elements.get_mut(map).unwrap().retain(|key, _| needed.contains_key(key));
            }
            prop_assert_eq!(found, expected);
        }
        let shown = FAMILIES.into_iter().flat_map(|family| {
            super::udp_frontends(family, &at_once.table(family).elements["services"])
        });
        prop_assert_eq!(shown.collect::<BTreeSet<_>>(), at_once.udp().into_keys().collect());
        prop_assert_eq!(one_by_one.udp(), at_once.udp());
        prop_assert_eq!(one_by_one.health(), at_once.health());
    }

    #[test]
    fn differences_lead_to_the_table_of_a_fresh_plan(history in prop::collection::vec(worlds(), 1..6), sweeps in any::<[bool; 6]>()) {
        let mut fold = Fold::new(settings());
        let mut kernel = FAMILIES.map(|family| fold.table(family));
        let mut stages: [Stage; 2] = Default::default();
        for (sketches, sweep) in history.iter().zip(sweeps) {
            let change = fold.advance(&world(sketches));
            for (family, change) in change.families {
                let at = usize::from(family == Family::Ip6);
                let transaction = stages[at].change(family, change);
                commit(&mut kernel[at], transaction);
            }
            for (at, family) in FAMILIES.into_iter().enumerate().filter(|_| sweep) {
                let transaction = stages[at].sweep(family);
                commit(&mut kernel[at], transaction);
            }
        }
        let mut fresh = Fold::new(settings());
        fresh.advance(&world(history.last().unwrap()));
        for (at, family) in FAMILIES.into_iter().enumerate() {
            commit(&mut kernel[at], stages[at].sweep(family));
            let expected = fresh.table(family);
            // Chains and their classes stay for the next Service that needs them.
            for map in ["classes", "guarded_classes", "split_classes"] {
                let needed = expected.elements[map].clone();
                let kept = kernel[at].elements.insert(map.into(), needed.clone()).unwrap();
                prop_assert!(needed.iter().all(|(key, value)| kept.get(key) == Some(value)));
            }
            prop_assert_eq!(&kernel[at].elements, &expected.elements);
            let missing: Vec<_> = expected.chains.iter().filter(|(name, chain)| kernel[at].chains.get(*name) != Some(chain)).collect();
            prop_assert!(missing.is_empty(), "{:?}", missing);
        }
    }
}

#[test]
fn affinity_leads_back_only_to_usable_endpoints() {
    let mut sketches: BTreeMap<u8, Sketch> = BTreeMap::new();
    let sketch = Sketch {
        kind: 1,
        internal_local: false,
        external_local: false,
        affinity: true,
        range: false,
        node_local: false,
        v6: false,
        udp: false,
        endpoints: [(0, 0), (1, 0), (2, 0)].into(),
        hints: 0,
        external_ip: false,
        proxy_mode: false,
    };
    sketches.insert(0, sketch);
    let mut fold = Fold::new(settings());
    fold.advance(&world(&sketches));
    let mut packet = Packet {
        source: "192.0.2.9".parse().unwrap(),
        destination: "10.96.0.10".parse().unwrap(),
        proto: 6,
        port: 80,
        source_is_local: false,
        mark: 0,
    };
    let first = fold.table(Family::Ip).trace("prerouting", &packet, 1, BTreeMap::new());
    let again = fold.table(Family::Ip).trace("prerouting", &packet, 2, first.learned.clone());
    assert_eq!(again.outcome, first.outcome);
    (packet.destination, packet.port) = ("198.18.0.1".parse().unwrap(), 30000);
    let again = fold.table(Family::Ip).trace("prerouting", &packet, 2, first.learned.clone());
    assert_eq!(again.outcome, first.outcome, "one affinity for all frontends");
    sketches.get_mut(&0).unwrap().endpoints.remove(&2);
    fold.advance(&world(&sketches));
    let moved = fold.table(Family::Ip).trace("prerouting", &packet, 1, first.learned);
    assert_ne!(moved.outcome, first.outcome);
    let kept: Vec<&Elements> = moved.learned.values().collect();
    assert_eq!(kept[0].len(), 1, "the old memory is replaced");
}

#[test]
fn every_chain_has_a_class_of_its_own() {
    use super::elements::{Class, MasqueradeChain, STICKY_ENDPOINTS_MAX};
    let mut numbers = BTreeMap::new();
    for count in [1, 2, 999, 1_000, STICKY_ENDPOINTS_MAX] {
        for affinity_s in [0, 1, 2, 600, 10_800, 86_400] {
            for (masquerade, local, here) in [
                (Some(MasqueradeChain::OffCluster), false, false),
                (Some(MasqueradeChain::OffCluster), false, affinity_s > 0),
                (Some(MasqueradeChain::Always), false, false),
                (None, false, false),
                (None, true, affinity_s > 0),
            ] {
                let id =
                    super::ChainId { masquerade, local, count, affinity_s, local_identity: here };
                let (_, key, _) = Class::Draw(id).elements().next().unwrap();
                let other = numbers.insert(key, id);
                assert!(other.is_none_or(|other| other == id), "{other:?} and {id:?}");
            }
        }
    }
}

#[test]
fn an_address_of_two_services_is_the_first_ones_also_where_that_drops() {
    let external = |pod: u8| Sketch { external_local: true, external_ip: true, ..serving(&[pod]) };
    // The first one's endpoint is on another node, the second one's on this.
    let snapshot = world(&BTreeMap::from([(0, external(2)), (3, external(1))]));
    let mut fold = Fold::new(Settings { external_ips: true, ..settings() });
    fold.advance(&snapshot);
    let table = fold.table(Family::Ip);
    let packet = Packet {
        source: "192.0.2.9".parse().unwrap(),
        destination: "203.0.113.200".parse().unwrap(),
        proto: 6,
        port: 80,
        source_is_local: false,
        mark: 0,
    };
    let seen = table.trace("prerouting", &packet, 0, BTreeMap::new());
    assert_eq!(seen.outcome, Outcome::Drop);
}

/// A Service with these endpoints, and nothing out of the ordinary.
fn serving(pods: &[u8]) -> Sketch {
    Sketch {
        kind: 0,
        internal_local: false,
        external_local: false,
        affinity: false,
        range: false,
        node_local: false,
        v6: false,
        udp: false,
        endpoints: pods.iter().map(|pod| (*pod, 0)).collect(),
        hints: 0,
        external_ip: false,
        proxy_mode: false,
    }
}

#[test]
fn a_node_that_falls_silent_touches_only_services_with_endpoints_there() {
    let sketches = BTreeMap::from([(0, serving(&[0, 1])), (1, serving(&[1, 3]))]);
    let silent = world(&sketches);
    let heard = Snapshot { silent: Arc::default(), ..silent.clone() };
    let told = |snapshot: &Snapshot| Snapshot { dirty: Some(Dirty::default()), ..snapshot.clone() };
    let mut views = Views::new(settings());
    let all = views.advance(&heard);
    assert_eq!(all.len(), 2);
    all.iter().for_each(|name| drop(views.look(name)));
    assert!(views.advance(&told(&heard)).is_empty());
    for (snapshot, count) in [(&silent, 1), (&heard, 2)] {
        let touched: Vec<Name> = views.advance(&told(snapshot)).into_iter().collect();
        assert_eq!(touched, [all.first().unwrap().clone()], "n0 has endpoints of one Service");
        let (view, _) = views.look(&touched[0]);
        let Action::Forward { endpoints, .. } = &view.frontends[0].action else { panic!() };
        assert_eq!(endpoints.len(), count);
    }
}
