//! Which endpoint is chosen, or what happens when none may be.

use plan::decide::Verdict;
use plan::proxy::FAMILIES;
use std::net::SocketAddr;

use super::{Row, row};
use crate::objects::{balancer_ip, cluster, cluster_ip, end, external_ip, port, service};
use crate::topology::node_ip;
use crate::traffic::{Asker, Reply};
use crate::world::{PROTOCOLS, World, source};

pub(super) const ROWS: [Row; 13] = [
    row("Endpoint choice", "uniform for new connections (chi-square)", uniform),
    row("Endpoint choice", "the same among 236 other Services", uniform_among_many),
    row(
        "No endpoints anywhere",
        "refused at every kind of address, also with policy Local",
        refused,
    ),
    row(
        "Policy Local, none local",
        "externalTrafficPolicy: dropped here, served where endpoints are",
        external_drop,
    ),
    row(
        "Policy Local, none local",
        "internalTrafficPolicy: dropped here, served where endpoints are",
        internal_drop,
    ),
    row("Unallocated ClusterIP", "dropped inside a ServiceCIDR", unallocated),
    row("Unallocated ClusterIP", "another port of an allocated address is refused", other_port),
    row(
        "Terminating fallback",
        "serving and terminating endpoints only where none is ready",
        terminating,
    ),
    row(
        "Terminating fallback",
        "decided apart for the Cluster and the Local set",
        terminating_apart,
    ),
    row("Topology", "PreferSameZone: hints to zones", same_zone),
    row("Topology", "PreferSameNode: hints to nodes, then to zones", same_node),
    row("Topology", "hints that not every ready endpoint has are ignored", half_hints),
    row("Topology", "policy Local does not ask for hints", local_without_hints),
];

/// Connections of one uniformity test.
const DRAWS: u32 = 600;
/// Chi-square with three degrees of freedom is above this once in a million times.
const CHI_SQUARE_MAX: f64 = 30.7;

fn check_uniform(world: &World, from: &str) {
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            let asker = Asker { netns: &world.path(from), source: source(from, family) };
            let counts = asker.ask_often(protocol, cluster(family, 10, protocol), DRAWS);
            let names: Vec<&str> = counts.keys().map(String::as_str).collect();
            assert_eq!(names, ["a", "c", "d", "e"], "{family:?} {protocol:?}");
            let expected = f64::from(DRAWS) / 4.0;
            let parts =
                counts.values().map(|count| (f64::from(*count) - expected).powi(2) / expected);
            let sum: f64 = parts.sum();
            assert!(sum < CHI_SQUARE_MAX, "{family:?} {protocol:?}: {counts:?}");
        }
    }
}

fn uniform(world: &mut World) {
    world.apply(&[service(10, &["a", "c", "d", "e"])]);
    check_uniform(world, "b");
}

fn uniform_among_many(world: &mut World) {
    let mut all = vec![service(10, &["a", "c", "d", "e"]).node_port(30080)];
    all.extend(
        (20..=255)
            .map(|number| service(number, &["a", "b"]).node_port(31000 + 2 * u16::from(number))),
    );
    world.apply(&all);
    check_uniform(world, "b");
}

fn refused(world: &mut World) {
    let all = |number, local: bool| {
        let all = service(number, &[])
            .node_port(30000 + 10 * u16::from(number))
            .balanced("VIP")
            .external();
        let all = all.ends([end("a").unready()]);
        if local { all.internal_local().external_local() } else { all }
    };
    world.apply(&[all(10, false), all(11, true)]);
    for (family, number) in FAMILIES.into_iter().flat_map(|family| [(family, 10), (family, 11)]) {
        for (protocol, node_port) in PROTOCOLS.into_iter().zip(30000 + 10 * u16::from(number)..) {
            let to = port(protocol);
            let mut targets = vec![
                cluster(family, number, protocol),
                SocketAddr::new(balancer_ip(family, number), to),
                SocketAddr::new(external_ip(family, number), to),
            ];
            for from in ["b", "n1", "client"] {
                targets.truncate(3);
                targets.push(SocketAddr::new(node_ip(family, "n1"), node_port));
                for to in &targets {
                    assert_eq!(world.agree(from, protocol, *to), Verdict::Reject, "{from} to {to}");
                }
            }
        }
    }
}

fn external_drop(world: &mut World) {
    world.apply(&[service(10, &["c"])
        .node_port(30080)
        .balanced("VIP")
        .external()
        .external_local()]);
    for family in FAMILIES {
        for (protocol, node_port) in PROTOCOLS.into_iter().zip(30080..) {
            let at = |node| SocketAddr::new(node_ip(family, node), node_port);
            assert_eq!(world.agree("client", protocol, at("n1")), Verdict::Drop);
            assert!(matches!(world.agree("client", protocol, at("n2")), Verdict::Forward(_)));
            for ip in [balancer_ip(family, 10), external_ip(family, 10)] {
                let to = SocketAddr::new(ip, port(protocol));
                assert_eq!(world.agree("client", protocol, to), Verdict::Drop);
            }
        }
    }
}

fn internal_drop(world: &mut World) {
    world.apply(&[service(10, &["c", "e"]).internal_local()]);
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            let to = cluster(family, 10, protocol);
            for from in ["a", "n1", "client"] {
                assert_eq!(world.agree(from, protocol, to), Verdict::Drop, "{from}");
            }
            assert_eq!(world.ask("d", protocol, to).name(), "c");
            world.agree("n3", protocol, to);
        }
    }
}

fn unallocated(world: &mut World) {
    world.apply(&[service(10, &["a"])]);
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            for from in ["b", "n1", "client"] {
                let to = cluster(family, 99, protocol);
                assert_eq!(world.agree(from, protocol, to), Verdict::Drop, "{from}");
            }
        }
    }
}

fn other_port(world: &mut World) {
    world.apply(&[service(10, &["a"])]);
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            for from in ["b", "n1", "client"] {
                let to = SocketAddr::new(cluster_ip(family, 10), 4444);
                assert_eq!(world.agree(from, protocol, to), Verdict::Reject, "{from}");
            }
        }
    }
}

fn terminating(world: &mut World) {
    let web = |ends| service(10, &[]).node_port(30080).ends(ends);
    for (ends, expected) in [
        (vec![end("a"), end("c").draining(), end("e").unready()], vec!["a"]),
        (vec![end("c").draining(), end("d").draining(), end("e").unready()], vec!["c", "d"]),
    ] {
        world.apply(&[web(ends)]);
        for family in FAMILIES {
            for (protocol, node_port) in PROTOCOLS.into_iter().zip(30080..) {
                let inside = world.agree("b", protocol, cluster(family, 10, protocol));
                let Verdict::Forward(endpoints) = inside else { panic!("{inside:?}") };
                assert_eq!(endpoints.len(), expected.len());
                let to = SocketAddr::new(node_ip(family, "n1"), node_port);
                world.agree("client", protocol, to);
            }
        }
    }
}

fn terminating_apart(world: &mut World) {
    // n1 has only one that drains, n2 a ready one: Local traffic of n1 drains, Cluster traffic goes to the ready one.
    let web = service(10, &[]).node_port(30080).external_local().internal_local();
    let cluster_too = service(11, &[]).ends([end("a").draining(), end("c")]);
    world.apply(&[web.ends([end("a").draining(), end("c")]), cluster_too]);
    for family in FAMILIES {
        for (protocol, node_port) in PROTOCOLS.into_iter().zip(30080..) {
            let to = SocketAddr::new(node_ip(family, "n1"), node_port);
            assert_eq!(world.ask("client", protocol, to).name(), "a");
            assert_eq!(world.ask("b", protocol, cluster(family, 10, protocol)).name(), "a");
            assert_eq!(world.ask("b", protocol, cluster(family, 11, protocol)).name(), "c");
            for from in ["b", "client", "n1"] {
                world.agree(from, protocol, to);
                world.agree(from, protocol, cluster(family, 10, protocol));
                world.agree(from, protocol, cluster(family, 11, protocol));
            }
        }
    }
}

fn check_from_everywhere(world: &World, expected: &[(&str, &[&str])]) {
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            for (from, pods) in expected {
                let to = cluster(family, 10, protocol);
                let Verdict::Forward(endpoints) = world.agree(from, protocol, to) else {
                    panic!("{from} is not served")
                };
                assert_eq!(endpoints.len(), pods.len(), "{from}");
                let reply = world.ask(from, protocol, to);
                assert!(pods.contains(&reply.name()), "{from}: {reply:?}");
            }
        }
    }
}

fn same_zone(world: &mut World) {
    let ends = [end("a").zone("z1"), end("c").zone("z1"), end("e").zone("z2")];
    world.apply(&[service(10, &[]).ends(ends)]);
    check_from_everywhere(world, &[("b", &["a", "c"]), ("n2", &["a", "c"]), ("e", &["e"])]);
    // A zone without endpoints of its own uses all.
    world.apply(&[service(10, &[]).ends([end("a").zone("z1"), end("c").zone("z1")])]);
    check_from_everywhere(world, &[("e", &["a", "c"])]);
}

fn same_node(world: &mut World) {
    let ends = [end("a").zone("z1").node("n1"), end("c").zone("z1").node("n2")];
    world.apply(&[service(10, &[]).ends(ends.clone())]);
    check_from_everywhere(world, &[("b", &["a"]), ("d", &["c"]), ("e", &["a", "c"])]);
    let [a, _] = ends;
    world.apply(&[service(10, &[]).ends([a, end("e").zone("z2").node("n3")])]);
    check_from_everywhere(world, &[("b", &["a"]), ("c", &["a"]), ("n3", &["e"])]);
}

fn half_hints(world: &mut World) {
    world.apply(&[service(10, &[]).ends([end("a").zone("z1"), end("e")])]);
    check_from_everywhere(world, &[("b", &["a", "e"]), ("e", &["a", "e"])]);
    // One that is not ready needs none.
    world.apply(&[service(10, &[]).ends([end("a").zone("z1"), end("e").unready()])]);
    check_from_everywhere(world, &[("b", &["a"])]);
}

fn local_without_hints(world: &mut World) {
    let ends = [end("a").zone("z2"), end("e").zone("z1")];
    world.apply(&[service(10, &[]).ends(ends).internal_local()]);
    check_from_everywhere(world, &[("b", &["a"]), ("n3", &["e"])]);
    let family = FAMILIES[0];
    let reply = world.ask_in_vain("c", PROTOCOLS[0], cluster(family, 10, PROTOCOLS[0]));
    assert_eq!(reply, Reply::Silence);
}
