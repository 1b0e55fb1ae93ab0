//! Golden cases, and the properties that tie differences, virtual servers, table and specification together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use net::ipvs::{Server, State, carry_out, render};
use net::nft::{Elements, Outcome, Packet, Value};
use proptest::prelude::*;

use super::{
    SERVERS, Servers, Wanted, active, desired, drained, elements, is_draining, narrow, owned,
    table, widen,
};
use crate::decide::{self, Verdict, decide};
use crate::proxy::tests::{Sketch, add, any_settings, packets, settings, world, worlds};
use crate::proxy::{FAMILIES, Fold, Mode, Settings, Snapshot};
use crate::service::Protocol;

fn by_ipvs(settings: Settings) -> Settings {
    Settings { mode: Mode::Ipvs, ..settings }
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
        let mut fold = Fold::new(by_ipvs(settings()));
        fold.advance(&snapshot);
        let rendered = render(&desired(&fold.servers()));
        let expected = case.join("rules.ipvsadm");
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected, &rendered).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(rendered, expected, "{}; BLESS=1 rewrites", case.display());
    }
}

/// What the table lets pass is a virtual server's, if there is one: each endpoint, and whether masqueraded.
fn agree(sketches: &BTreeMap<u8, Sketch>, settings: &Settings) {
    let mut snapshot = world(sketches);
    let own = ["198.18.0.1", "198.18.7.1", "127.0.0.1", "fd18:7::1", "fe80::1", "::1"];
    snapshot.addresses = own.map(|text| text.parse().unwrap()).into();
    let mut fold = Fold::new(settings.clone());
    fold.advance(&snapshot);
    let (tables, servers) = (FAMILIES.map(|family| fold.table(family)), fold.servers());
    let mut node = settings.node_view(snapshot.node.as_deref(), &snapshot.addresses);
    node.silent.clone_from(&snapshot.silent);
    let (services, slices) = (&snapshot.services, &snapshot.slices);
    let state = decide::State { services, slices, node: &node, settings };
    for (packet, family) in packets(sketches) {
        let expected: BTreeSet<(Option<SocketAddr>, &str)> = match decide(&packet, &state).verdict {
            Verdict::Pass => [(None, "pass")].into(),
            Verdict::Reject => [(None, "reject")].into(),
            Verdict::Drop => [(None, "drop")].into(),
            Verdict::Forward(all) => {
                let word = |masquerade| if masquerade { "masquerade" } else { "plain" };
                all.into_iter().map(|(to, masquerade)| (Some(to), word(masquerade))).collect()
            }
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
        let server = Server { address: packet.destination, protocol: packet.protocol.number() };
        let mut found = BTreeSet::new();
        for random in 0..12 {
            let seen = table.trace("prerouting", &traced, random, BTreeMap::new());
            let to: Vec<SocketAddr> = match seen.outcome {
                // To the same address: IPVS chooses.
                Outcome::Dnat(address, port)
                    if packet.destination == SocketAddr::new(address, port) =>
                {
                    servers[&server].endpoints.iter().copied().collect()
                }
                Outcome::Dnat(address, port) => vec![SocketAddr::new(address, port)],
                _ => Vec::new(),
            };
            let word = match seen.outcome {
                Outcome::Reject => "reject",
                Outcome::Drop => "drop",
                _ => "pass",
            };
            if to.is_empty() {
                found.insert((None, word));
            }
            for to in to {
                let after = Packet {
                    destination: to.ip(),
                    port: to.port(),
                    mark: seen.mark,
                    ..traced.clone()
                };
                let after = table.trace("postrouting", &after, 0, BTreeMap::new());
                let masquerade = after.outcome == Outcome::Masquerade;
                found.insert((Some(to), if masquerade { "masquerade" } else { "plain" }));
            }
        }
        assert_eq!(found, expected, "{packet:?}");
    }
}

/// Carries orders out on a state that stands for the kernel's, and is as strict.
fn tell(kernel: &mut State, orders: Vec<net::ipvs::Order>) {
    use net::ipvs::Order;
    for order in orders {
        match &order {
            Order::AddServer(server, _) => assert!(!kernel.contains_key(server), "{order:?}"),
            Order::SetServer(server, _) | Order::DeleteServer(server) => {
                assert!(kernel.contains_key(server), "{order:?}");
            }
            Order::AddDestination(server, to, _) => {
                assert!(!kernel[server].destinations.contains_key(to), "{order:?}");
            }
            Order::SetDestination(server, to, _) | Order::DeleteDestination(server, to) => {
                assert!(kernel[server].destinations.contains_key(to), "{order:?}");
            }
        }
        carry_out(kernel, &order);
    }
}

/// What every data plane's agent does with a change.
fn step(kernel: &mut State, wanted: &Servers, touched: &BTreeSet<Server>) {
    for server in touched {
        let Some(wanted) = wanted.get(server) else { continue };
        let orders = widen(kernel, *server, wanted);
        tell(kernel, orders);
        for endpoint in &wanted.endpoints {
            assert_eq!(kernel[server].destinations[endpoint].weight, 1);
        }
    }
    for server in touched {
        let orders = narrow(kernel, *server, wanted.get(server));
        tell(kernel, orders);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn table_and_servers_do_what_decide_says(sketches in worlds(), settings in any_settings()) {
        agree(&sketches, &by_ipvs(settings));
    }

    #[test]
    fn differences_lead_where_a_fresh_plan_does(steps in prop::collection::vec(worlds(), 1..6), busy in any::<u8>()) {
        let mut fold = Fold::new(by_ipvs(settings()));
        let (mut wanted, mut kernel) = (Servers::new(), State::new());
        for sketches in &steps {
            let change = fold.advance(&world(sketches)).servers;
            let touched = change.keys().copied().collect();
            for (server, now) in change {
                match now {
                    Some(now) => { wanted.insert(server, now); }
                    None => { wanted.remove(&server); }
                }
            }
            let mut fresh = Fold::new(by_ipvs(settings()));
            fresh.advance(&world(sketches));
            prop_assert_eq!(&wanted, &fresh.servers());
            step(&mut kernel, &wanted, &touched);
            // Connections that live stay where they are, until they end.
            for (server, held) in &mut kernel {
                for (to, destination) in &mut held.destinations {
                    let has = destination.weight == 0 && busy & 1 << (to.ip().to_string().len() % 8) != 0;
                    destination.connections = u32::from(has && server.protocol != Protocol::Udp.number());
                }
            }
            let before = kernel.clone();
            for (server, held) in &before {
                let orders = drained(&before, *server, wanted.get(server));
                tell(&mut kernel, orders);
                for to in held.destinations.iter().filter(|(_, found)| found.connections > 0).map(|(to, _)| to) {
                    prop_assert!(kernel[server].destinations.contains_key(to), "{} lost its connections", to);
                }
            }
        }
        for (server, held) in kernel.clone() {
            for (to, mut destination) in held.destinations {
                destination.connections = 0;
                kernel.get_mut(&server).unwrap().destinations.insert(to, destination);
            }
            let orders = drained(&kernel, server, wanted.get(&server));
            tell(&mut kernel, orders);
        }
        prop_assert_eq!(&kernel, &desired(&wanted));
        prop_assert!(!kernel.iter().any(|(server, held)| is_draining(held, wanted.get(server))));
    }
}

#[test]
fn an_owner_knows_its_servers_again() {
    let servers = [("10.96.0.10:80", 6), ("10.96.0.10:53", 17), ("[fd96::10]:80", 132)];
    let servers =
        servers.map(|(address, protocol)| Server { address: address.parse().unwrap(), protocol });
    for family in FAMILIES {
        let mut held = Elements::new();
        let of_family = |server: &&Server| net::nft::Family::of(&server.address.ip()) == family;
        for server in servers.iter().filter(of_family) {
            for (set, key) in elements(server).into_iter().chain([active(server)]) {
                assert!(table(family).sets.contains_key(set));
                if set == SERVERS {
                    held.insert(key, Value::None);
                }
            }
        }
        assert_eq!(owned(family, &held), servers.iter().filter(of_family).copied().collect());
    }
}

#[test]
fn udp_moves_at_once_and_tcp_when_its_connections_have_ended() {
    let [tcp, udp] =
        [6, 17].map(|protocol| Server { address: "10.96.0.10:80".parse().unwrap(), protocol });
    let endpoints = ["10.244.0.1:80", "10.244.0.2:80"].map(|text| text.parse().unwrap());
    let both = Wanted { choice: Default::default(), endpoints: endpoints.into() };
    let one = Wanted { endpoints: [endpoints[0]].into(), ..both.clone() };
    let mut kernel = desired(&[(tcp, both.clone()), (udp, both)].into());
    for server in [tcp, udp] {
        let orders = narrow(&kernel, server, Some(&one));
        tell(&mut kernel, orders);
    }
    assert_eq!(kernel[&tcp].destinations[&endpoints[1]].weight, 0);
    assert!(!kernel[&udp].destinations.contains_key(&endpoints[1]));
    kernel.get_mut(&tcp).unwrap().destinations.get_mut(&endpoints[1]).unwrap().connections = 1;
    assert!(drained(&kernel, tcp, Some(&one)).is_empty());
    let orders = widen(&kernel, tcp, &Wanted { endpoints: endpoints.into(), ..one });
    assert_eq!(orders, [net::ipvs::Order::SetDestination(tcp, endpoints[1], 1)], "it comes back");
}
