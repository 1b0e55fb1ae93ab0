//! At which addresses a Service answers, and to whom.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use kernel::netns;
use net::nft::Family;
use plan::decide::Verdict;
use plan::proxy::{FAMILIES, NodePortAddresses};
use plan::service::Protocol;
use serde_json::json;

use super::{Row, row};
use crate::objects::{balancer_ip, cluster, cluster_ip, external_ip, port, service};
use crate::topology::{node_ip, node_second, on_link};
use crate::traffic::{Asker, Reply, serve_at};
use crate::world::{PROTOCOLS, World};

pub(super) const ROWS: [Row; 14] = [
    row(
        "NodePort addresses",
        "by default the primary address of each family and no other",
        primary,
    ),
    row("NodePort addresses", "`all`: every address but loopback", all),
    row("NodePort addresses", "CIDRs: the node's addresses within", within),
    row(
        "NodePort addresses",
        "`localhost`: 127.0.0.1, for clients on the node (IPv4 only)",
        localhost,
    ),
    row("Port already used by a host process", "an Event and a condition say so", taken),
    row("externalIP / LB IP from inside", "pods and nodes go straight to the endpoints", inside),
    row(
        "externalIP / LB IP from inside",
        "ipMode Proxy: packets go to the load balancer",
        proxy_mode,
    ),
    row("LB source ranges", "others are dropped, at the load balancer's address only", ranges),
    row("LB source ranges", "the nodes themselves stay allowed", ranges_nodes),
    row(
        "LB source ranges",
        "ranges of the other family are ignored; blanks are tolerated",
        ranges_family,
    ),
    row("Dual stack", "a Service of one family does not answer in the other", one_family),
    row("Protocols", "TCP and UDP with one port number lead to their own ports", protocols),
    row(
        "Other proxies",
        "`service-proxy-name` and headless Services are left alone",
        foreign_services,
    ),
    row(
        "Node-local Services",
        "addresses that the node agent answers itself are left alone",
        node_local,
    ),
];

fn each(mut check: impl FnMut(Family, Protocol, u16)) {
    for family in FAMILIES {
        for (protocol, node_port) in PROTOCOLS.into_iter().zip(30080..) {
            check(family, protocol, node_port);
        }
    }
}

/// At which of a node's addresses the node port answers the client: primary, second.
fn answering(world: &mut World) -> [bool; 2] {
    world.apply(&[service(10, &["a", "e"]).node_port(30080)]);
    let mut answering = [true, true];
    each(|family, protocol, node_port| {
        let addresses = [node_ip(family, "n2"), node_second(family, "n2")];
        for (answers, address) in answering.iter_mut().zip(addresses) {
            let to = SocketAddr::new(address, node_port);
            let verdict = world.agree("client", protocol, to);
            world.agree("n2", protocol, to);
            *answers &= matches!(verdict, Verdict::Forward(_));
            if verdict == Verdict::Pass {
                assert_eq!(world.ask("client", protocol, to), Reply::Refused);
            }
        }
    });
    let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 30080);
    if !world.settings.node_ports_on_localhost() {
        assert_eq!(world.ask("n2", Protocol::Tcp, loopback), Reply::Refused);
    }
    answering
}

fn primary(world: &mut World) {
    assert_eq!(answering(world), [true, false]);
}

fn all(world: &mut World) {
    world.configure(|settings| settings.node_port_addresses = vec![NodePortAddresses::All]);
    assert_eq!(answering(world), [true, true]);
}

fn within(world: &mut World) {
    let second = [Family::Ip, Family::Ip6].map(|family| node_second(family, "n2"));
    let chosen = second.map(|address| NodePortAddresses::Within(address.into()));
    world.configure(|settings| settings.node_port_addresses = chosen.into());
    assert_eq!(answering(world), [false, true]);
    world.configure(|settings| settings.node_port_addresses.push(NodePortAddresses::Primary));
    assert_eq!(answering(world), [true, true]);
}

fn localhost(world: &mut World) {
    let chosen = vec![NodePortAddresses::Primary, NodePortAddresses::Localhost];
    world.configure(|settings| settings.node_port_addresses = chosen);
    assert_eq!(answering(world), [true, false]);
    let loopback: IpAddr = Ipv4Addr::LOCALHOST.into();
    for (protocol, node_port) in PROTOCOLS.into_iter().zip(30080..) {
        let asker = Asker { netns: &world.path("n2"), source: loopback };
        let to = SocketAddr::new(loopback, node_port);
        let counts = asker.ask_often(protocol, to, 40);
        assert_eq!(counts.keys().collect::<Vec<_>>(), ["a", "e"], "{protocol:?}");
    }
}

fn taken(world: &mut World) {
    world.apply(&[service(10, &["a", "e"]).node_port(30080)]);
    let told = |world: &World, address: &str| -> Vec<String> {
        // A child that is being started has our sockets until it runs its program: the last one may not be free yet.
        free(world);
        let address = SocketAddr::new(address.parse().unwrap(), 30080);
        let listen = move || TcpListener::bind(address).unwrap();
        let _listens = netns::within(&world.path("n2"), listen).unwrap();
        world.ports_in_use("n2")
    };
    let process = format!("({})", std::process::id());
    for address in ["0.0.0.0", "::", &node_ip(Family::Ip, "n2").to_string()] {
        let [event, condition] = &told(world, address)[..] else { panic!("{address}") };
        assert!(event.contains("on node n2: 30080/TCP is ") && event.contains(&process), "{event}");
        assert!(condition.contains("NodePortsFree") && condition.contains(&process));
    }
    assert_eq!(told(world, "127.0.0.1"), [""; 0], "nothing is taken from it");
    free(world);
    assert_eq!(world.ports_in_use("n2"), [""; 0]);
}

/// Waits until nothing on the node listens on the node port.
fn free(world: &World) {
    let listens = || !node::portuse::holders(&[30080].into()).is_empty();
    let is_free = || !netns::within(&world.path("n2"), listens).unwrap();
    for _ in 0..500 {
        if is_free() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the port never became free");
}

fn inside(world: &mut World) {
    world.apply(&[service(10, &["a", "c"]).balanced("VIP").external()]);
    each(|family, protocol, _| {
        for ip in [balancer_ip(family, 10), external_ip(family, 10)] {
            for from in ["b", "d", "e", "n1", "n3"] {
                let to = SocketAddr::new(ip, port(protocol));
                assert!(matches!(world.agree(from, protocol, to), Verdict::Forward(_)));
            }
        }
    });
}

fn proxy_mode(world: &mut World) {
    world.apply(&[service(50, &["a", "c"]).balanced("Proxy")]);
    for from in ["b", "n1"] {
        each(|family, protocol, _| {
            // Here it is the client that has the address; nobody listens.
            let to = SocketAddr::new(balancer_ip(family, 50), port(protocol));
            assert_eq!(world.agree(from, protocol, to), Verdict::Pass);
        });
    }
}

fn ranges(world: &mut World) {
    let ranges = json!(["198.18.0.8/29", "fd18::9/128"]);
    let web = service(10, &["a"]).node_port(30080).balanced("VIP").external();
    world.apply(&[web.set("loadBalancerSourceRanges", ranges)]);
    each(|family, protocol, node_port| {
        let balancer = SocketAddr::new(balancer_ip(family, 10), port(protocol));
        let (ours, other) = (on_link(family, 9), on_link(family, 200));
        let served = |verdict| assert!(matches!(verdict, Verdict::Forward(_)), "{verdict:?}");
        served(world.agree_as("client", ours, protocol, balancer));
        assert_eq!(world.agree_as("client", other, protocol, balancer), Verdict::Drop);
        assert_eq!(world.agree("b", protocol, balancer), Verdict::Drop);
        for to in [
            SocketAddr::new(node_ip(family, "n1"), node_port),
            SocketAddr::new(external_ip(family, 10), port(protocol)),
            cluster(family, 10, protocol),
        ] {
            served(world.agree_as("client", other, protocol, to));
        }
    });
}

fn ranges_nodes(world: &mut World) {
    let ranges = json!(["192.168.0.0/24", "fd99::/64"]);
    world.apply(&[service(10, &["a"]).balanced("VIP").set("loadBalancerSourceRanges", ranges)]);
    each(|family, protocol, _| {
        let to = SocketAddr::new(balancer_ip(family, 10), port(protocol));
        assert_eq!(world.agree("client", protocol, to), Verdict::Drop);
        for node in ["n1", "n2"] {
            assert!(matches!(world.agree(node, protocol, to), Verdict::Forward(_)), "{node}");
        }
    });
}

fn ranges_family(world: &mut World) {
    let ranges = json!(["  198.18.0.200/32 ", "10.244.0.0/16"]);
    world.apply(&[service(10, &["a"]).balanced("VIP").set("loadBalancerSourceRanges", ranges)]);
    for protocol in PROTOCOLS {
        let to = |family| SocketAddr::new(balancer_ip(family, 10), port(protocol));
        let as_other =
            |family| world.agree_as("client", on_link(family, 200), protocol, to(family));
        assert_eq!(world.agree("client", protocol, to(Family::Ip)), Verdict::Drop);
        assert!(matches!(as_other(Family::Ip), Verdict::Forward(_)));
        assert!(matches!(world.agree("b", protocol, to(Family::Ip)), Verdict::Forward(_)));
        assert!(matches!(as_other(Family::Ip6), Verdict::Forward(_)));
        assert!(matches!(world.agree("client", protocol, to(Family::Ip6)), Verdict::Forward(_)));
    }
}

fn one_family(world: &mut World) {
    for only in FAMILIES {
        world.apply(&[service(10, &["a"]).family(only).node_port(30080).balanced("VIP")]);
        each(|family, protocol, node_port| {
            let node_port = SocketAddr::new(node_ip(family, "n1"), node_port);
            let inside = world.agree("b", protocol, cluster(family, 10, protocol));
            let outside = world.agree("client", protocol, node_port);
            if family == only {
                assert!(matches!(inside, Verdict::Forward(_)));
                assert!(matches!(outside, Verdict::Forward(_)));
            } else {
                assert_eq!((inside, outside), (Verdict::Drop, Verdict::Pass));
            }
        });
    }
}

fn protocols(world: &mut World) {
    let ports = json!([
        { "name": "TCP", "protocol": "TCP", "port": 53, "targetPort": 8080, "nodePort": 30053 },
        { "name": "UDP", "protocol": "UDP", "port": 53, "targetPort": 8053, "nodePort": 30053 },
    ]);
    world.apply(&[service(10, &["a", "c"]).set("type", json!("NodePort")).set("ports", ports)]);
    each(|family, protocol, _| {
        world.agree("b", protocol, SocketAddr::new(cluster_ip(family, 10), 53));
        world.agree("client", protocol, SocketAddr::new(node_ip(family, "n1"), 30053));
    });
}

fn foreign_services(world: &mut World) {
    let other = service(10, &["a"]).label("service.kubernetes.io/service-proxy-name", "other");
    let headless = service(12, &["a"]).label("service.kubernetes.io/headless", "");
    world.apply(&[other.balanced("VIP"), service(11, &["a"]), headless]);
    each(|family, protocol, _| {
        let to = SocketAddr::new(balancer_ip(family, 10), port(protocol));
        assert_eq!(world.agree("b", protocol, to), Verdict::Pass);
        for number in [10, 12] {
            let to = cluster(family, number, protocol);
            assert_eq!(world.agree("b", protocol, to), Verdict::Drop);
        }
        world.agree("b", protocol, cluster(family, 11, protocol));
    });
}

fn node_local(world: &mut World) {
    world.apply(&[service(53, &["c"]).annotate("rhumb.dev/node-local", "true")]);
    let addresses = FAMILIES.map(|family| cluster_ip(family, 53));
    for address in addresses {
        let len = if address.is_ipv4() { 32 } else { 128 };
        world.on_node("n1", &format!("ip address add {address}/{len} dev lo nodad"));
    }
    serve_at(&world.path("n1"), "node", &addresses);
    for (address, (protocol, port)) in addresses
        .into_iter()
        .flat_map(|address| PROTOCOLS.into_iter().zip([8080, 8053]).map(move |to| (address, to)))
    {
        let to = SocketAddr::new(address, port);
        assert_eq!(world.agree("b", protocol, to), Verdict::Pass);
        assert_eq!(world.ask("b", protocol, to).name(), "node");
    }
    for address in addresses {
        let len = if address.is_ipv4() { 32 } else { 128 };
        world.on_node("n1", &format!("ip address del {address}/{len} dev lo"));
    }
}
