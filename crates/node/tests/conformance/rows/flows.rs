//! What lasts longer than one packet: tracked flows and session affinity.

use std::net::{IpAddr, SocketAddr};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use net::nft::Family;
use plan::proxy::FAMILIES;
use plan::service::Protocol;

use super::{Row, resets, row};
use crate::objects::{Sketch, balancer_ip, cluster, end, port, service};
use crate::topology::{node_ip, on_link};
use crate::traffic::{Asker, Conversation, Reply, UdpFlow};
use crate::world::{PROTOCOLS, World, source};

pub(super) const ROWS: [Row; 18] = [
    row("UDP conntrack", "an endpoint is removed: its flows go to another", udp_removed),
    row("UDP conntrack", "an endpoint only drains: its flows go to a ready one", udp_draining),
    row("UDP conntrack", "the last endpoint goes: flows are refused", udp_none),
    row("UDP conntrack", "the first endpoint comes: refused flows are served", udp_first),
    row("UDP conntrack", "the Service is deleted, at every kind of address", udp_deleted),
    row("UDP conntrack", "the nodePort is changed", udp_node_port),
    row("UDP conntrack", "the same, while the agent was dead", udp_while_dead),
    row("UDP conntrack", "unaffected flows survive changes and a restart", udp_survives),
    row("TCP to a removed endpoint", "left alone", tcp_left_alone),
    row(
        "TCP to a removed endpoint",
        "nobody has answered yet: the client's next try goes to another",
        tcp_unanswered,
    ),
    row(
        "TCP to a removed endpoint",
        "opt-in reset after grace, at every kind of address; idle ends learn it, too",
        resets::after_grace,
    ),
    row(
        "TCP to a removed endpoint",
        "the same without a route to the endpoint, and when the agent was dead meanwhile",
        resets::out_of_reach,
    ),
    row(
        "TCP to a removed endpoint",
        "an endpoint that drains keeps its connections while it serves",
        resets::draining,
    ),
    row("Session affinity", "a client comes back, at every address of the Service port", sticky),
    row("Session affinity", "kept across updates and restarts", sticky_kept),
    row("Session affinity", "dropped when the endpoint is no longer usable", sticky_dropped),
    row(
        "Session affinity",
        "forgotten after the timeout, which every connection begins anew",
        sticky_timeout,
    ),
    row("Session affinity", "policy Local does not lead to other nodes", sticky_local),
];

const UDP: Protocol = Protocol::Udp;

fn flow(world: &World, from: &str, family: Family) -> UdpFlow {
    Asker { netns: &world.path(from), source: source(from, family) }.udp()
}

/// Every kind of address with a client that uses it.
fn udp_targets(family: Family) -> [(&'static str, SocketAddr); 3] {
    [
        ("b", cluster(family, 10, UDP)),
        ("client", SocketAddr::new(node_ip(family, "n1"), 30081)),
        ("client", SocketAddr::new(balancer_ip(family, 10), port(UDP))),
    ]
}

fn dns(pods: &[&'static str]) -> Sketch {
    service(10, pods).node_port(30080).balanced("VIP")
}

/// Starts flows of every kind, changes the Service, and asks again on the same flows.
fn flows_after(
    world: &mut World,
    before: Sketch,
    change: impl FnOnce(&mut World),
    check: impl Fn(&UdpFlow, SocketAddr, &str),
) {
    world.apply(&[before]);
    let flows: Vec<(UdpFlow, SocketAddr, String)> = FAMILIES
        .into_iter()
        .flat_map(udp_targets)
        .map(|(from, to)| {
            let flow = flow(world, from, Family::of(&to.ip()));
            let first = flow.ask(to);
            (flow, to, first.name().to_owned())
        })
        .collect();
    change(world);
    for (flow, to, first) in &flows {
        check(flow, *to, first);
    }
}

fn udp_removed(world: &mut World) {
    flows_after(
        world,
        dns(&["a"]),
        |world| world.apply(&[dns(&["c"])]),
        |flow, to, first| {
            assert_eq!(first, "a");
            assert_eq!(flow.ask(to).name(), "c", "{to}");
        },
    );
}

fn udp_draining(world: &mut World) {
    let after = || dns(&[]).ends([end("a").draining(), end("c")]);
    flows_after(
        world,
        dns(&["a"]),
        |world| world.apply(&[after()]),
        |flow, to, _| {
            assert_eq!(flow.ask(to).name(), "c", "{to}");
        },
    );
}

fn udp_none(world: &mut World) {
    flows_after(
        world,
        dns(&["a"]),
        |world| world.apply(&[dns(&[])]),
        |flow, to, _| {
            assert_eq!(flow.ask(to), Reply::Refused, "{to}");
        },
    );
}

fn udp_first(world: &mut World) {
    flows_after(
        world,
        dns(&[]),
        |world| world.apply(&[dns(&["a"])]),
        |flow, to, first| {
            assert_eq!(first, "refused");
            assert_eq!(flow.ask(to).name(), "a", "{to}");
        },
    );
}

fn udp_deleted(world: &mut World) {
    flows_after(
        world,
        dns(&["a"]),
        |world| world.apply(&[]),
        |flow, to, first| {
            assert_eq!(first, "a");
            assert!(flow.ask_in_vain(to).peer().is_none(), "{to} still answers");
        },
    );
}

fn udp_node_port(world: &mut World) {
    let other = || service(10, &["a"]).node_port(30090).balanced("VIP");
    flows_after(
        world,
        dns(&["a"]),
        |world| world.apply(&[other()]),
        |flow, to, first| {
            assert_eq!(first, "a");
            let gone = to.port() == 30081;
            assert_eq!(flow.ask_in_vain(to).peer().is_none(), gone, "{to}");
        },
    );
}

fn udp_while_dead(world: &mut World) {
    let deleted = |world: &mut World| {
        world.kill();
        world.apply(&[service(11, &["c"])]);
        world.restart();
    };
    flows_after(world, dns(&["a"]), deleted, |flow, to, _| {
        assert!(flow.ask_in_vain(to).peer().is_none(), "{to} still answers");
    });
    let moved = |world: &mut World| {
        world.kill();
        world.apply(&[dns(&["c"])]);
        world.restart();
    };
    flows_after(world, dns(&["a"]), moved, |flow, to, _| {
        assert_eq!(flow.ask(to).name(), "c", "{to}");
    });
}

fn udp_survives(world: &mut World) {
    let all = ["a", "c", "d", "e"];
    let change = |world: &mut World| {
        world.apply(&[dns(&all), service(11, &["b"])]);
        world.restart();
        world.apply(&[dns(&all).set("internalTrafficPolicy", "Cluster".into())]);
    };
    // The flow stays where it is although there are others by now.
    flows_after(world, dns(&["c"]), change, |flow, to, _| {
        for _ in 0..4 {
            assert_eq!(flow.ask(to).name(), "c", "{to}");
        }
    });
    // A flow of the node's own, to no Service, is nobody's business.
    for family in FAMILIES {
        let flow = flow(world, "client", family);
        let direct = SocketAddr::new(crate::topology::pod_ip(family, "a"), 8053);
        assert_eq!(flow.ask(direct).name(), "a");
        world.apply(&[]);
        world.restart();
        assert_eq!(flow.ask(direct).name(), "a");
    }
}

fn tcp_left_alone(world: &mut World) {
    for family in FAMILIES {
        world.apply(&[service(10, &["a"]).node_port(30080)]);
        let to_node = SocketAddr::new(node_ip(family, "n1"), 30080);
        let targets = [("b", cluster(family, 10, Protocol::Tcp)), ("client", to_node)];
        let mut all: Vec<Conversation> = targets
            .into_iter()
            .map(|(from, to)| {
                Asker { netns: &world.path(from), source: source(from, family) }.connect(to)
            })
            .collect();
        world.apply(&[service(10, &["c"]).node_port(30080)]);
        for conversation in &mut all {
            assert_eq!(conversation.say(), "a");
        }
        world.apply(&[]);
        world.restart();
        for conversation in &mut all {
            assert_eq!(conversation.say(), "a");
        }
    }
}

/// Asks in the background, for as long as the kernel's later tries take.
fn patient(world: &World, from: &str, to: SocketAddr) -> JoinHandle<Reply> {
    let (path, source) = (world.path(from), source(from, Family::of(&to.ip())));
    spawn(move || Asker { netns: &path, source }.ask_patiently(to))
}

/// Makes a pod take no connections, and remember the ports of those who try.
const SILENT: &str = "add table inet silent; \
    add set inet silent tried { type inet_service; flags dynamic; size 1024; }; \
    add chain inet silent in { type filter hook input priority 0; }; \
    add rule inet silent in tcp dport 8080 add @tried { tcp sport } drop";

/// Waits until so many have tried to connect to a silent pod.
fn tried(world: &World, pod: &str, count: usize) {
    let began = Instant::now();
    loop {
        let listed = world.on_node(pod, "nft list set inet silent tried");
        let ports =
            listed.split_once("elements = {").map_or(0, |(_, all)| all.matches(',').count() + 1);
        if ports >= count {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{ports} of {count} tried");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn tcp_unanswered(world: &mut World) {
    let web = |pod| service(10, &[pod]).node_port(30080).balanced("VIP");
    let other = || service(11, &["a"]).node_port(30090);
    // Where a socket itself is led, its tries are, too: they are not this row's.
    let is_led = world.mode.name() == "eBPF";
    for family in FAMILIES {
        world.apply(&[web("a"), other()]);
        world.nft("a", SILENT);
        let inside = cluster(family, 10, Protocol::Tcp);
        let node = |number| SocketAddr::new(node_ip(family, "n1"), number);
        let mut targets =
            vec![("client", node(30080)), ("client", SocketAddr::new(balancer_ip(family, 10), 80))];
        if !is_led {
            targets.extend([("b", inside), ("n1", inside)]);
        }
        let asked = |(from, to): &(&str, SocketAddr)| patient(world, from, *to);
        let asks: Vec<_> = targets.iter().map(asked).collect();
        let left = patient(world, "client", node(30090));
        tried(world, "a", targets.len() + 1);
        world.apply(&[web("c"), other()]);
        for (ask, target) in asks.into_iter().zip(&targets) {
            // The agents look a moment after a change.
            while !ask.is_finished() {
                world.settle();
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(ask.join().unwrap().name(), "c", "{target:?}");
        }
        world.nft("a", "delete table inet silent");
        assert_eq!(left.join().unwrap().name(), "a", "it is still the right endpoint");
    }
}

const ALL: [&str; 4] = ["a", "c", "d", "e"];

/// Who answers every time that this client asks at these addresses.
fn same(world: &World, from: &str, protocol: Protocol, targets: &[SocketAddr]) -> String {
    if let ([first, rest @ ..], true) = (targets, world.mode.remembers_by_address()) {
        rest.iter().for_each(|to| drop(same_at(world, from, protocol, &[*to])));
        return same_at(world, from, protocol, &[*first]);
    }
    same_at(world, from, protocol, targets)
}

fn same_at(world: &World, from: &str, protocol: Protocol, targets: &[SocketAddr]) -> String {
    let first = world.ask(from, protocol, targets[0]);
    for to in targets.iter().cycle().take(12) {
        assert_eq!(world.ask(from, protocol, *to).name(), first.name(), "{from} to {to}");
    }
    first.name().to_owned()
}

fn sticky_targets(family: Family, protocol: Protocol) -> [SocketAddr; 3] {
    let node_port = if protocol == UDP { 30081 } else { 30080 };
    [
        cluster(family, 10, protocol),
        SocketAddr::new(node_ip(family, "n1"), node_port),
        SocketAddr::new(balancer_ip(family, 10), port(protocol)),
    ]
}

fn each(mut check: impl FnMut(Family, Protocol)) {
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            check(family, protocol);
        }
    }
}

fn sticky(world: &mut World) {
    world.apply(&[dns(&ALL).sticky(600)]);
    each(|family, protocol| {
        let mut seen = std::collections::BTreeSet::new();
        for from in ["a", "b", "n1", "client"] {
            seen.insert(same(world, from, protocol, &sticky_targets(family, protocol)));
        }
        // Each client has its own; that all agree by chance is possible, so nothing is asked of `seen` but life.
        assert!(!seen.is_empty());
        world.agree("b", protocol, cluster(family, 10, protocol));
    });
}

fn sticky_kept(world: &mut World) {
    each(|family, protocol| {
        world.apply(&[dns(&["a", "c"]).sticky(600)]);
        let targets = sticky_targets(family, protocol);
        let first = same(world, "b", protocol, &targets);
        world.apply(&[dns(&ALL).sticky(600), service(11, &["b"])]);
        assert_eq!(same(world, "b", protocol, &targets), first, "after an update");
        world.kill();
        world.restart();
        assert_eq!(same(world, "b", protocol, &targets), first, "after a restart");
    });
}

fn sticky_dropped(world: &mut World) {
    each(|family, protocol| {
        world.apply(&[dns(&ALL).sticky(600)]);
        let targets = sticky_targets(family, protocol);
        let first = same(world, "b", protocol, &targets);
        let others = || ALL.into_iter().filter(|pod| *pod != first);
        let unready = ALL.map(|pod| if pod == first { end(pod).unready() } else { end(pod) });
        world.apply(&[dns(&[]).ends(unready).sticky(600)]);
        let second = same(world, "b", protocol, &targets);
        assert!(others().any(|pod| pod == second), "{second}");
        let gone: Vec<&'static str> = ALL.into_iter().filter(|pod| *pod != second).collect();
        world.apply(&[dns(&gone).sticky(600)]);
        assert_ne!(same(world, "b", protocol, &targets), second);
    });
}

fn sticky_timeout(world: &mut World) {
    if world.mode.remembers_by_address() {
        return sticky_after_flows(world);
    }
    // A number of its own: clients of the others may be remembered from before.
    world.apply(&[service(77, &ALL).sticky(1)]);
    // Each connection begins the time anew.
    let (to, mut asked) = (cluster(FAMILIES[0], 77, Protocol::Tcp), 0);
    let first = world.ask("b", Protocol::Tcp, to);
    let until = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < until {
        assert_eq!(world.ask("b", Protocol::Tcp, to).name(), first.name(), "after {asked}");
        asked += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    // Who is forgotten is sent to another sooner or later.
    let mut waiting = Vec::new();
    each(|family, protocol| {
        let to = cluster(family, 77, protocol);
        waiting.push((protocol, to, same(world, "b", protocol, &[to])));
    });
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(1300));
        waiting.retain(|(protocol, to, first)| world.ask("b", *protocol, *to).name() == first);
        if waiting.is_empty() {
            return;
        }
    }
    panic!("a client is remembered for ever: {waiting:?}");
}

/// IPVS remembers a client as long as any of its connections: UDP flows are made short here.
fn sticky_after_flows(world: &mut World) {
    world.on_node("n1", "ipvsadm --set 0 0 1");
    world.apply(&[service(77, &ALL).sticky(3)]);
    let mut waiting = Vec::new();
    for to in FAMILIES.map(|family| cluster(family, 77, UDP)) {
        waiting.push((to, same(world, "b", UDP, &[to])));
    }
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(4500));
        waiting.retain(|(to, first)| world.ask("b", UDP, *to).name() == first);
        if waiting.is_empty() {
            world.on_node("n1", "ipvsadm --set 0 0 300");
            return;
        }
    }
    panic!("a client is remembered for ever: {waiting:?}");
}

fn sticky_local(world: &mut World) {
    // What a client is remembered for at the ClusterIP may be elsewhere; through a node port with policy Local it stays.
    world.apply(&[dns(&["c", "d", "e", "a"]).sticky(600).external_local()]);
    each(|family, protocol| {
        let [inside, node_port, _] = sticky_targets(family, protocol);
        world.ask("client", protocol, inside);
        let asker = |number| -> IpAddr { on_link(family, number) };
        for number in [9, 200] {
            let path = world.path("client");
            let asker = Asker { netns: &path, source: asker(number) };
            let counts = asker.ask_often(protocol, node_port, 6);
            assert_eq!(counts.keys().collect::<Vec<_>>(), ["a"]);
        }
    });
}
