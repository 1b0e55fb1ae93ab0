//! Whether the eBPF programs carry what they are for: answers alone do not show it, for the rules underneath carry all.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use kernel::bpf::{Counter, Tables};
use net::nft::Family;
use plan::proxy::FAMILIES;
use plan::service::Protocol;
use socket2::{Domain, Protocol as SocketProtocol, Socket, Type};

use super::mode::{EBPF, EBPF_LINKS, MODES};
use super::objects::{balancer_ip, cluster, port, service};
use super::topology::{node_ip, pins};
use super::traffic::{Asker, Reply};
use super::world::{World, source};

/// Counts packets from pods and the node that are for Services.
const WATCH: &str = "table inet watch { \
    chain forwarded { type filter hook prerouting priority -400; \
        ip daddr 10.96.0.0/16 counter; ip6 daddr fd96::/108 counter; }; \
    chain own { type filter hook output priority -400; \
        ip daddr 10.96.0.0/16 counter; ip6 daddr fd96::/108 counter; \
        ip saddr 198.18.0.11 tcp dport 30080 counter; }; }";

fn packets(world: &World) -> Vec<u64> {
    counted(&world.on_node("n1", "nft list table inet watch"))
}

fn counted(text: &str) -> Vec<u64> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let counted = words.windows(2).filter(|pair| pair[0] == "packets");
    counted.map(|pair| pair[1].parse().unwrap()).collect()
}

fn ask(world: &World, from: &str, to: SocketAddr) {
    let asker = Asker { netns: &world.path(from), source: source(from, Family::of(&to.ip())) };
    let counts = asker.ask_often(Protocol::Tcp, to, 12);
    assert_eq!(counts.keys().map(String::as_str).collect::<Vec<_>>(), ["a", "c"]);
}

/// Fails when a packet of a connection that the programs carry is addressed to the Service.
pub(crate) fn no_packet_is_for_a_service() {
    let mut world = World::new(EBPF);
    world.apply(&[service(10, &["a", "c"]).node_port(30080)]);
    world.nft("n1", WATCH);
    for family in FAMILIES {
        for from in ["b", "n1"] {
            ask(&world, from, cluster(family, 10, Protocol::Tcp));
        }
    }
    ask(&world, "n1", SocketAddr::new(node_ip(Family::Ip, "n1"), 30080));
    assert_eq!(packets(&world), [0; 5]);
    // Who is an endpoint itself is left to the rules, which masquerade it; and the counters do count.
    ask(&world, "a", cluster(Family::Ip, 10, Protocol::Tcp));
    assert_ne!(packets(&world), [0; 5]);
    // The rules carry everything when the programs are gone.
    world.kill();
    world.on_node("n1", "find {pins} -type f -path *connect-* -delete");
    // The kernel lets go of a program a moment after its last name.
    for round in 0.. {
        assert!(round < 100, "programs without a name go on");
        ask(&world, "n1", cluster(Family::Ip6, 10, Protocol::Tcp));
        if packets(&world)[3] >= 12 {
            break;
        }
    }
    world.restart();
    is_led(&world, true);
    somebody_changes_the_tables(&mut world);
    nothing_can_be_pinned(&mut world);
}

/// Fails unless connections of a pod are led, or unless they are not.
fn is_led(world: &World, led: bool) {
    let before = packets(world);
    ask(world, "b", cluster(Family::Ip6, 10, Protocol::Tcp));
    assert_eq!(packets(world) == before, led);
}

fn somebody_changes_the_tables(world: &mut World) {
    let mut tables = Tables::of(&pins(&world.path("n1"))).unwrap();
    for key in tables.read().unwrap().frontends.into_keys() {
        tables.remove_frontend(&key).unwrap();
    }
    is_led(world, false);
    world.settle();
    is_led(world, true);
}

/// Where programs cannot be kept, the rules carry all, and say so by their mode.
fn nothing_can_be_pinned(world: &mut World) {
    let pins = pins(&world.path("n1"));
    world.kill();
    kernel::bpf::remove(&pins).unwrap();
    std::fs::write(&pins, "").unwrap();
    world.restart();
    assert_eq!(world.healths["n1"].mode().word(), "nftables");
    assert_eq!(world.healths["n2"].mode().word(), "ebpf");
    is_led(world, false);
    std::fs::remove_file(&pins).unwrap();
    world.restart();
    assert_eq!(world.healths["n1"].mode().word(), "ebpf");
    is_led(world, true);
}

/// Fails unless a connection that the program at the links carries outlives its mode, and the program goes with it.
pub(crate) fn connections_outlive_the_mode() {
    let mut world = World::new(EBPF_LINKS);
    world.apply(&[service(10, &["c"]).node_port(30080)]);
    let path = world.path("client");
    let frontends = FAMILIES.map(|family| SocketAddr::new(node_ip(family, "n1"), 30080));
    let connect = |to: SocketAddr| {
        let source = source("client", Family::of(&to.ip()));
        Asker { netns: &path, source }.connect(to)
    };
    let is_there =
        |world: &World| world.on_node("n1", "tc filter show dev eth0 ingress").contains("rhumb");
    let mut held = frontends.map(connect);
    world.mode = MODES[0];
    world.restart();
    assert_eq!(world.healths["n1"].mode().word(), "nftables");
    assert!(is_there(&world));
    // New ones, and those of the rules, beside it; also when the agent starts once more.
    let mut fresh = frontends.map(connect);
    world.restart();
    for conversation in held.iter_mut().chain(&mut fresh) {
        assert_eq!(conversation.say(), "c");
    }
    world.nft("n1", GATE);
    let seen = |world: &World| counted(&world.on_node("n1", "nft list table inet gate"));
    for conversation in &mut held {
        assert_eq!(conversation.say(), "c");
    }
    assert_eq!(seen(&world), [0; 2]);
    for conversation in &mut fresh {
        assert_eq!(conversation.say(), "c");
    }
    assert!(seen(&world).iter().all(|packets| *packets > 0));
    drop(held);
    for round in 0.. {
        assert!(round < 100, "the program stays without connections");
        world.settle();
        if !is_there(&world) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert!(!kernel::bpf::is_pinned(&pins(&world.path("n1"))));
    for conversation in &mut fresh {
        assert_eq!(conversation.say(), "c");
    }
}

/// Counts a client's answers from node ports of n1, by the link's address of the node that sent them.
fn ways(world: &World) -> String {
    let rules = ["n1", "n2"].into_iter().flat_map(|node| {
        let shown = world.on_node(node, "ip -br link show dev eth0");
        let mac = shown.split_whitespace().nth(2).unwrap().to_owned();
        ["tcp sport 30080", "udp sport 30081"]
            .map(|what| format!("ether saddr {mac} {what} counter"))
    });
    let rules: Vec<String> = rules.collect();
    format!(
        "table netdev ways {{ chain come {{ type filter hook ingress device \"eth0\" priority 0; \
            {}; }}; }}",
        rules.join("; ")
    )
}

/// Fails unless answers of endpoints elsewhere go to the client by the shortest way, and its address to them.
pub(crate) fn answers_take_the_short_way() {
    let mut world = World::new(EBPF_LINKS);
    world.configure(|settings| settings.ebpf_dsr = true);
    world.apply(&[service(10, &["c"]).node_port(30080)]);
    world.nft("client", &ways(&world));
    let path = world.path("client");
    for family in FAMILIES {
        let client = source("client", family);
        let asker = Asker { netns: &path, source: client };
        let [tcp, udp] = [30080, 30081].map(|port| SocketAddr::new(node_ip(family, "n1"), port));
        let expected = Reply::From("c".to_owned(), client);
        for _ in 0..4 {
            assert_eq!(asker.ask(Protocol::Tcp, tcp), expected);
            assert_eq!(asker.ask(Protocol::Udp, udp), expected);
        }
        let mut talk = asker.connect(tcp);
        for bytes in [0, 1400, 1440, 1_000_000, 10] {
            assert_eq!(talk.say_much(bytes), "c", "{bytes}");
        }
        let flow = asker.udp();
        for bytes in [1, 1400, 1440, 1452, 1472, 4000, 1] {
            assert_eq!(flow.ask_much(udp, bytes), expected, "{bytes}");
        }
        // The endpoint's node forgets, or is new: the next small packet tells it again.
        world.on_node("n2", "tc qdisc del dev eth0 clsact");
        world.settle();
        assert_eq!(talk.say(), "c");
        // A client on the endpoint's node gets its answers the long way.
        world.agree("n2", Protocol::Tcp, tcp);
    }
    let seen = counted(&world.on_node("client", "nft list table netdev ways"));
    assert!(seen[..2].iter().all(|packets| *packets == 0), "{seen:?}");
    assert!(seen[2..].iter().all(|packets| *packets > 0), "{seen:?}");
}

/// Says to a node, from the client, that a packet of a node port's answer is too big: its addresses, ports and the size.
fn complain(world: &World, from: SocketAddr, to: SocketAddr, size: u8) {
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes(), [0, 8], [0, 0]].concat();
    let (kind, packet) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = [0x45, 0, 5, 0xdc, 0, 0, 0x40, 0, 64, 17, 0, 0];
            let inner = [&header[..], &from.octets(), &to.octets(), &ports].concat();
            let mut packet = [&[3, 4, 0, 0, 0, 0, 5, size][..], &inner].concat();
            let sum: u32 =
                packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
            let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
            packet[2..4].copy_from_slice(&(!folded).to_be_bytes());
            (SocketProtocol::ICMPV4, packet)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let header = [0x60, 0, 0, 0, 5, 0xb4, 17, 64];
            let inner = [&header[..], &from.octets(), &to.octets(), &ports].concat();
            // The kernel fills in the sum.
            (SocketProtocol::ICMPV6, [&[2, 0, 0, 0, 0, 0, 5, size][..], &inner].concat())
        }
        _ => panic!("{from} and {to} are of one family"),
    };
    let send = || {
        let socket = Socket::new(Domain::for_address(from), Type::RAW, Some(kind)).unwrap();
        socket.send_to(&packet, &SocketAddr::new(from.ip(), 0).into()).unwrap();
    };
    kernel::netns::within(&world.path("client"), send).unwrap();
}

/// Fails unless an endpoint elsewhere learns what routers say of its answers, though they say it to the first node.
pub(crate) fn errors_find_the_endpoint() {
    let mut world = World::new(EBPF_LINKS);
    world.configure(|settings| settings.ebpf_dsr = true);
    world.apply(&[service(10, &["c"]).node_port(30080)]);
    let path = world.path("client");
    for family in FAMILIES {
        let client = source("client", family);
        let frontend = SocketAddr::new(node_ip(family, "n1"), 30081);
        let flow = Asker { netns: &path, source: client }.udp();
        assert_eq!(flow.ask(frontend), Reply::From("c".to_owned(), client));
        let is_told = (0..100).any(|_| {
            // 1300 bytes.
            complain(&world, frontend, SocketAddr::new(client, flow.port()), 20);
            std::thread::sleep(std::time::Duration::from_millis(20));
            world.on_node("c", &format!("ip route get {client}")).contains("mtu 1300")
        });
        assert!(is_told, "{client}");
    }
}

/// Fails unless who talks on a connection that was forgotten is told that it is over.
pub(crate) fn lost_connections_are_reset() {
    let mut world = World::new(EBPF_LINKS);
    world.apply(&[service(10, &["a", "c"]).node_port(30080)]);
    let path = world.path("client");
    for family in FAMILIES {
        let asker = Asker { netns: &path, source: source("client", family) };
        let mut talks: Vec<_> =
            (0..8).map(|_| asker.connect(SocketAddr::new(node_ip(family, "n1"), 30080))).collect();
        world.kill();
        world.on_node("n1", "find {pins} -name tracked -delete");
        world.restart();
        for talk in &mut talks {
            assert!(talk.ends(), "its client waits for ever");
        }
    }
}

/// Fails unless nodes lead a flow to the same endpoint, wherever it comes in.
pub(crate) fn nodes_choose_alike() {
    let mut world = World::new(EBPF_LINKS);
    let pods = ["a", "c", "d", "e"];
    world.apply(&[service(10, &pods).balanced("VIP")]);
    let path = world.path("client");
    for family in FAMILIES {
        let to = SocketAddr::new(balancer_ip(family, 10), port(Protocol::Udp));
        let asker = Asker { netns: &path, source: source("client", family) };
        // That one pod of four is nobody's happens once in twenty million times.
        let flows: Vec<_> = (0..64).map(|_| asker.udp()).collect();
        let [first, second] = ["n1", "n2"].map(|node| {
            let option = if family == Family::Ip { "-4" } else { "-6" };
            let gateway = node_ip(family, node);
            world.on_node("client", &format!("ip {option} route replace default via {gateway}"));
            flows.iter().map(|flow| flow.ask(to).name().to_owned()).collect::<Vec<_>>()
        });
        assert_eq!(first, second);
        assert_eq!(first.into_iter().collect::<BTreeSet<_>>(), pods.map(str::to_owned).into());
    }
    for node in ["n1", "n2"] {
        let tables = Tables::of(&pins(&world.path(node))).unwrap();
        assert!(tables.counted(Counter::Flows4).unwrap() >= 64, "{node} carries them");
    }
}

/// Counts packets of clients outside that are for node ports.
const GATE: &str = "table inet gate { chain come { type filter hook prerouting priority -400; \
    ip saddr 198.18.0.9 tcp dport 30080 counter; ip6 saddr fd18::9 tcp dport 30080 counter; }; }";

/// Fails when netfilter sees a packet of a client outside that the program at the links carries.
pub(crate) fn no_packet_from_outside_is_seen() {
    let mut world = World::new(EBPF_LINKS);
    world.apply(&[service(10, &["a", "c"]).node_port(30080)]);
    world.nft("n1", GATE);
    let seen = |world: &World| counted(&world.on_node("n1", "nft list table inet gate"));
    let ask_all = |world: &World| {
        for family in FAMILIES {
            ask(world, "client", SocketAddr::new(node_ip(family, "n1"), 30080));
        }
    };
    ask_all(&world);
    assert_eq!(seen(&world), [0; 2]);
    // The rules carry everything when the program is gone, and the counters do count.
    world.kill();
    world.on_node("n1", "tc qdisc del dev eth0 clsact");
    ask_all(&world);
    assert!(seen(&world).iter().all(|packets| *packets >= 12));
    world.restart();
    let before = seen(&world);
    ask_all(&world);
    assert_eq!(seen(&world), before);
    // A program that cannot be had is tried for again.
    world.kill();
    let program = world.on_node("n1", "find {pins} -name forward").trim_end().to_owned();
    std::fs::remove_file(&program).unwrap();
    std::fs::create_dir(&program).unwrap();
    world.restart();
    ask_all(&world);
    assert!(seen(&world).iter().zip(&before).all(|(now, before)| *now >= before + 12));
    std::fs::remove_dir(&program).unwrap();
    world.settle();
    let before = seen(&world);
    ask_all(&world);
    assert_eq!(seen(&world), before);
}
