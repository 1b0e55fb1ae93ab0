//! Whom the endpoint sees: source NAT.

use std::net::{IpAddr, SocketAddr};

use net::nft::Family;
use plan::proxy::FAMILIES;
use plan::service::Protocol;

use super::{Row, row};
use crate::objects::{balancer_ip, cluster, external_ip, port, service};
use crate::topology::{node_ip, node_second, on_link, pod_ip};
use crate::world::{PROTOCOLS, World};

pub(super) const ROWS: [Row; 7] = [
    row("Source NAT", "pods keep their address at a ClusterIP, also across nodes", pods_keep),
    row("Source NAT", "off-cluster clients and nodes are masqueraded at a ClusterIP", off_cluster),
    row("Source NAT", "`--masquerade-all`: pods too", masquerade_all),
    row("Source NAT", "policy Cluster masquerades external traffic", external_cluster),
    row("Source NAT", "policy Local keeps the client's address", external_local),
    row(
        "Source NAT",
        "policy Local: pods keep theirs at load balancer and external IPs, the node does not",
        local_inside,
    ),
    row("Hairpin", "a pod reaches itself through every kind of address", hairpin),
];

fn each(mut check: impl FnMut(Family, Protocol)) {
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            check(family, protocol);
        }
    }
}

/// Fails unless the endpoint sees `peer`; where that is n1, any address of it will do.
fn seen_as(world: &World, from: &str, protocol: Protocol, to: SocketAddr, peer: IpAddr) {
    let reply = world.ask(from, protocol, to);
    let family = Family::of(&peer);
    let seen = match reply.peer() {
        Some(other) if other == node_second(family, "n1") => node_ip(family, "n1"),
        Some(other) => other,
        None => panic!("{from} to {to} {protocol:?}: {reply:?}"),
    };
    assert_eq!(seen, peer, "{from} to {to} {protocol:?}: {reply:?}");
    world.agree(from, protocol, to);
}

fn external(family: Family, protocol: Protocol) -> [SocketAddr; 3] {
    let node_port = if protocol == Protocol::Udp { 30081 } else { 30080 };
    [
        SocketAddr::new(balancer_ip(family, 10), port(protocol)),
        SocketAddr::new(external_ip(family, 10), port(protocol)),
        SocketAddr::new(node_ip(family, "n1"), node_port),
    ]
}

fn pods_keep(world: &mut World) {
    for pod in ["a", "c"] {
        world.apply(&[service(10, &[pod])]);
        each(|family, protocol| {
            seen_as(world, "b", protocol, cluster(family, 10, protocol), pod_ip(family, "b"));
        });
    }
}

fn off_cluster(world: &mut World) {
    for pod in ["a", "c"] {
        world.apply(&[service(10, &[pod])]);
        each(|family, protocol| {
            let to = cluster(family, 10, protocol);
            seen_as(world, "client", protocol, to, node_ip(family, "n1"));
            seen_as(world, "n1", protocol, to, node_ip(family, "n1"));
        });
    }
}

fn masquerade_all(world: &mut World) {
    world.configure(|settings| settings.masquerade_all = true);
    world.apply(&[service(10, &["a"])]);
    each(|family, protocol| {
        seen_as(world, "b", protocol, cluster(family, 10, protocol), node_ip(family, "n1"));
    });
}

fn external_cluster(world: &mut World) {
    for pod in ["a", "c"] {
        world.apply(&[service(10, &[pod]).node_port(30080).balanced("VIP").external()]);
        each(|family, protocol| {
            for to in external(family, protocol) {
                for from in ["client", "b", "n1"] {
                    seen_as(world, from, protocol, to, node_ip(family, "n1"));
                }
            }
        });
    }
}

fn external_local(world: &mut World) {
    let web = service(10, &["a", "c"]).node_port(30080).balanced("VIP").external();
    world.apply(&[web.external_local()]);
    each(|family, protocol| {
        for to in external(family, protocol) {
            seen_as(world, "client", protocol, to, on_link(family, 9));
            assert_eq!(world.ask("client", protocol, to).name(), "a");
        }
        // For n1 other nodes' pods, and other nodes, are clients like any.
        let [_, _, node_port] = external(family, protocol);
        for from in ["d", "e", "b"] {
            seen_as(world, from, protocol, node_port, pod_ip(family, from));
        }
        seen_as(world, "n2", protocol, node_port, node_ip(family, "n2"));
    });
}

fn local_inside(world: &mut World) {
    let web = service(10, &["c"]).node_port(30080).balanced("VIP").external();
    world.apply(&[web.external_local()]);
    each(|family, protocol| {
        for to in external(family, protocol) {
            seen_as(world, "n1", protocol, to, node_ip(family, "n1"));
            if to.ip() != node_ip(family, "n1") {
                seen_as(world, "b", protocol, to, pod_ip(family, "b"));
            }
        }
        // A pod next to the endpoint would not know the answer, had it not asked as the node.
        for from in ["b", "d"] {
            let [_, _, node_port] = external(family, protocol);
            seen_as(world, from, protocol, node_port, node_ip(family, "n1"));
        }
    });
}

fn hairpin(world: &mut World) {
    let web = service(10, &["a"]).node_port(30080).balanced("VIP").external();
    for web in [web.clone(), web.external_local().internal_local()] {
        world.apply(&[web]);
        each(|family, protocol| {
            let all = external(family, protocol).into_iter();
            for to in all.chain([cluster(family, 10, protocol)]) {
                assert_eq!(world.ask("a", protocol, to).name(), "a");
                seen_as(world, "a", protocol, to, node_ip(family, "n1"));
            }
        });
    }
}
