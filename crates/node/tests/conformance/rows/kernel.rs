//! What the data plane does to the kernel besides carrying packets: parameters, others' rules, repair, and death.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kernel::{netns, sysctl};
use plan::proxy::FAMILIES;
use plan::service::Protocol;

use super::{Row, missing, row};
use crate::mode::MODES;
use crate::objects::{cluster, service};
use crate::traffic::{Asker, Reply};
use crate::world::{PROTOCOLS, World, source};

pub(super) const ROWS: [Row; 10] = [
    row("INVALID packets", "`nf_conntrack_tcp_be_liberal` is set", be_liberal),
    row(
        "conntrack sysctls",
        "established 24 h, close-wait 1 h; `nf_conntrack_max` as a number only (no namespace may set it)",
        conntrack,
    ),
    row("Foreign rules", "other tables stay as they are", foreign),
    row("Foreign rules", "rules of others in iptables' tables stay as they are", foreign_iptables),
    row("Foreign rules", "a table that somebody changed is repaired", repair),
    row("Updates", "no connection is lost while endpoints come and go", scaling),
    row("Agent", "forwarding goes on while the agent is dead", dead),
    row("Agent", "no connection is lost when it comes back", restart),
    row("Mode change", "no connection is lost, and nothing of the other mode stays", mode_change),
    missing(
        "Protocols",
        "SCTP with packets (the kernel under test has no SCTP sockets; its rules are tested as data)",
    ),
];

fn be_liberal(world: &mut World) {
    world.apply(&[]);
    netns::within(&world.path("n1"), || {
        sysctl::set("net/netfilter/nf_conntrack_tcp_be_liberal", "0").unwrap();
        node::proxy::prepare(&world.settings, node::proxy::ConntrackLimits::default());
        assert_eq!(sysctl::get("net/netfilter/nf_conntrack_tcp_be_liberal").unwrap(), "1");
    })
    .unwrap();
}

fn conntrack(world: &mut World) {
    netns::within(&world.path("n1"), || {
        node::proxy::prepare(&world.settings, node::proxy::ConntrackLimits::default());
        for (name, value) in [("established", "86400"), ("close_wait", "3600")] {
            let name = format!("net/netfilter/nf_conntrack_tcp_timeout_{name}");
            assert_eq!(sysctl::get(&name).unwrap(), value, "{name}");
        }
    })
    .unwrap();
    let limits = node::proxy::ConntrackLimits::default();
    assert_eq!([1, 4, 8].map(|cores| limits.max(cores)), [131_072, 131_072, 262_144]);
}

const FOREIGN: &str = "table inet foreign { chain mine { type nat hook prerouting priority -150; tcp dport 9999 redirect to :1; }; set theirs { type ipv4_addr; elements = { 192.0.2.1 }; }; }";

fn foreign(world: &mut World) {
    let add = FOREIGN.to_owned();
    let path = world.path("n1");
    let nft = |script: &str| {
        let run = || std::process::Command::new("nft").arg(script).output().unwrap();
        let output = netns::within(&path, run).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    nft(&add);
    let before = nft("list table inet foreign");
    world.apply(&[service(10, &["a"]).node_port(30080)]);
    world.apply(&[]);
    world.restart();
    for harm in world.mode.harms().iter().filter(|harm| !harm.contains("ruleset")) {
        world.on_node("n1", harm);
        world.settle();
        assert_eq!(nft("list table inet foreign"), before, "after {harm}");
    }
    nft("delete table inet foreign");
}

fn repair(world: &mut World) {
    world.apply(&[service(10, &["a"]).sticky(600), service(11, &["c"])]);
    for harm in world.mode.harms() {
        world.on_node("n1", harm);
        world.settle();
        for family in FAMILIES {
            for protocol in PROTOCOLS {
                for number in [10, 11, 12] {
                    world.agree("b", protocol, cluster(family, number, protocol));
                }
            }
        }
        world.network.podnet_rules("n1");
    }
}

fn foreign_iptables(world: &mut World) {
    let program = world.mode.iptables();
    let rules = [
        "-t mangle -N FOREIGN",
        "-t mangle -A FOREIGN -s 192.0.2.7/32 -j RETURN",
        "-t mangle -A PREROUTING -j FOREIGN",
        "-A FORWARD -s 192.0.2.7/32 -j DROP",
    ];
    for rule in rules {
        world.on_node("n1", &format!("{program} {rule}"));
    }
    let shown = |world: &World| {
        let text = world.on_node("n1", &format!("{program}-save"));
        let ours =
            text.lines().filter(|line| line.contains("FOREIGN") || line.contains("192.0.2.7"));
        ours.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = shown(world);
    assert_eq!(before.len(), 4, "{before:?}");
    world.apply(&[service(10, &["a"]).node_port(30080)]);
    world.restart();
    for harm in world.mode.harms().iter().filter(|harm| !harm.contains("ruleset")) {
        world.on_node("n1", harm);
        world.settle();
    }
    world.apply(&[]);
    assert_eq!(shown(world), before);
    world.on_node("n1", &format!("{program} -D FORWARD -s 192.0.2.7/32 -j DROP"));
    world.on_node("n1", &format!("{program} -t mangle -F PREROUTING"));
}

fn mode_change(world: &mut World) {
    let own = world.mode;
    world.apply(&[service(10, &["a", "c"]).node_port(30080).sticky(600), service(11, &[])]);
    let all = FAMILIES.map(|family| (family, cluster(family, 10, Protocol::Tcp)));
    let mut talks = all.map(|(family, to)| {
        Asker { netns: &world.path("b"), source: source("b", family) }.connect(to)
    });
    let load = Load::start(world, "b");
    for other in MODES.into_iter().filter(|other| other.name() != own.name()) {
        for mode in [other, own] {
            let before = world.mode;
            let (command, word) = before.trace();
            world.mode = mode;
            world.restart();
            let left = world.on_node("n1", command);
            assert_eq!(left.contains(word), mode.includes(before), "{} left {left}", before.name());
            let (command, word) = mode.trace();
            assert!(world.on_node("n1", command).contains(word));
            for talk in &mut talks {
                assert!(!talk.say().is_empty(), "a connection broke");
            }
            for protocol in PROTOCOLS {
                for number in [10, 11, 12] {
                    world.agree("b", protocol, cluster(FAMILIES[0], number, protocol));
                }
            }
        }
    }
    load.stop();
}

/// Connects without pause until stopped.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<(u32, Vec<String>)>>,
}

impl Load {
    fn start(world: &World, from: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = FAMILIES.into_iter().map(|family| {
            let (path, stop) = (world.path(from), Arc::clone(&stop));
            let (to, source) = (cluster(family, 10, Protocol::Tcp), source(from, family));
            std::thread::spawn(move || {
                let (mut made, mut failed) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let counts = Asker { netns: &path, source }.ask_often(Protocol::Tcp, to, 10);
                    let lost =
                        ["refused", "silence"].iter().filter(|name| counts.contains_key(**name));
                    failed.extend(lost.map(|name| format!("{name} from {source} after {made}")));
                    made += 10;
                }
                (made, failed)
            })
        });
        Self { threads: threads.collect(), stop }
    }

    /// Fails if a connection failed, or if hardly any was made.
    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let (made, failed) = thread.join().unwrap();
            assert!(made > 50, "only {made} connections were made");
            assert!(failed.is_empty(), "of {made}: {failed:?}");
        }
    }
}

fn scaling(world: &mut World) {
    let web = |pods| service(10, pods).node_port(30080);
    world.apply(&[web(&["a", "c", "e"])]);
    let load = Load::start(world, "b");
    let all: [&[&str]; 4] = [&["a", "c", "e"], &["a", "e"], &["e"], &["c", "e", "a", "d"]];
    for pods in all.into_iter().cycle().take(24) {
        world.apply(&[web(pods)]);
    }
    load.stop();
}

fn dead(world: &mut World) {
    world.apply(&[service(10, &["a", "c"]).node_port(30080), service(11, &[])]);
    world.kill();
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            for from in ["b", "n1", "client"] {
                for number in [10, 11, 12] {
                    world.agree(from, protocol, cluster(family, number, protocol));
                }
            }
        }
    }
}

fn restart(world: &mut World) {
    world.apply(&[service(10, &["a", "c"])]);
    let load = Load::start(world, "b");
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(600) {
        world.kill();
        world.restart();
    }
    load.stop();
    let to = cluster(FAMILIES[0], 10, Protocol::Tcp);
    assert_ne!(world.ask("b", Protocol::Tcp, to), Reply::Silence);
}
