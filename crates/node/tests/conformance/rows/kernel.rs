//! What the data plane does to the kernel besides carrying packets: parameters, others' rules, repair, and death.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernel::nftables::Nftables;
use kernel::{netns, sysctl};
use net::nft::{Op, Transaction};
use plan::proxy::{FAMILIES, Fold, Settings};
use plan::service::Protocol;

use super::{Row, in_machine, row};
use crate::mode::{EBPF, MODES, Mode};
use crate::objects::{cluster, service};
use crate::topology::{PODS, node_ip, pod_ip};
use crate::traffic::{Asker, Reply, serve_sctp};
use crate::world::{PROTOCOLS, World, source};

pub(super) const ROWS: [Row; 11] = [
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
    row("Agent", "no connection is lost when it finds what another version left", upgrade),
    row("Mode change", "no connection is lost, and nothing of the other mode stays", mode_change),
    in_machine("Protocols", "SCTP: endpoints, NodePort, policy Local, both families", sctp),
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

fn sctp(world: &mut World) {
    for (pod, ..) in PODS {
        for family in FAMILIES {
            serve_sctp(&world.path(pod), pod, pod_ip(family, pod));
        }
    }
    let web = |pods| service(10, pods).sctp(30082);
    for web in [web(&["a", "c"]), web(&["a", "c"]).external_local(), web(&["c"]).external_local()] {
        world.apply(&[web]);
        for family in FAMILIES {
            let node_port = SocketAddr::new(node_ip(family, "n1"), 30082);
            for to in [cluster(family, 10, Protocol::Sctp), node_port] {
                for from in ["b", "e", "n1", "client"] {
                    world.agree(from, Protocol::Sctp, to);
                }
            }
        }
    }
}

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
    let others = world.mode.others();
    others.inspect(|[add, ..]| drop(world.on_node("n1", add)));
    let shown = |world: &World| {
        let rest = others.map(|[_, show, _]| world.on_node("n1", show));
        (nft("list table inet foreign"), rest)
    };
    let before = shown(world);
    world.apply(&[service(10, &["a"]).node_port(30080)]);
    world.apply(&[]);
    world.restart();
    let is_own = |harm: &&&str| !["ruleset", "ipvsadm -C"].iter().any(|all| harm.contains(all));
    for harm in world.mode.harms().iter().filter(is_own) {
        world.on_node("n1", harm);
        world.settle();
        assert_eq!(shown(world), before, "after {harm}");
    }
    others.inspect(|[.., remove]| drop(world.on_node("n1", remove)));
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
    let here = |mode: &&dyn Mode| own.needs_machine() || !mode.needs_machine();
    // The slow machine's kernel takes a minute to verify the program at links.
    let quick = |mode: &'static dyn Mode| {
        if own.needs_machine() && mode.name() == EBPF.name() { EBPF } else { mode }
    };
    let others = MODES.into_iter().filter(here).filter(|other| other.name() != own.name());
    for other in others.map(quick) {
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

/// How often the version changes.
const UPGRADES: u32 = 5;

fn upgrade(world: &mut World) {
    world.apply(&[service(10, &["a", "c"]).node_port(30080), service(11, &[])]);
    let is_chains = world.mode.name().starts_with("iptables");
    let command =
        if is_chains { format!("{}-save", world.mode.iptables()) } else { "nft list sets".into() };
    let is_old = |world: &World| world.on_node("n1", &command).contains("of-old");
    for _ in 0..UPGRADES {
        world.kill();
        if is_chains {
            rename_chains(world);
        } else {
            change_tables(world);
        }
        assert!(is_old(world));
        let load = Load::start(world, "b");
        world.restart();
        load.stop();
        assert!(!is_old(world), "it stays");
    }
}

/// The same rules, in chains with other names.
fn rename_chains(world: &World) {
    let v4 = world.mode.iptables();
    for program in [v4.to_owned(), v4.replacen("ip", "ip6", 1)] {
        let rules = world.on_node("n1", &format!("{program}-save -t nat"));
        let chains =
            rules.lines().filter_map(|line| line.strip_prefix(":KUBE-SVC-")?.split(' ').next());
        for (number, chain) in chains.enumerate() {
            let (old, new) = (format!("KUBE-SVC-{chain}"), format!("KUBE-SVC-of-old-{number}"));
            world.on_node("n1", &format!("{program} -t nat -E {old} {new}"));
        }
    }
}

/// The same tables, but for one more set and one of another type, which can only be made afresh.
fn change_tables(world: &World) {
    let (node, mode) = ("n1".to_owned(), world.mode.tables());
    let mut fold = Fold::new(Settings { node, mode, ..world.settings.clone() });
    fold.catch_up(&world.known_at("n1"));
    let change = || {
        let mut nft = Nftables::open().unwrap();
        for family in FAMILIES {
            let mut table = fold.table(family);
            let hairpin = table.sets.get_mut("hairpin").unwrap();
            hairpin.timeout_s = 3600;
            let set = hairpin.clone();
            table.sets.insert("of-old".into(), set);
            let mut ops = vec![Op::AddTable, Op::DeleteTable];
            ops.extend(table.creation());
            nft.commit(&Transaction { family, table: table.name, ops }).unwrap();
        }
    };
    netns::within(&world.path("n1"), change).unwrap();
}

/// Connects without pause until stopped.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(u32, Vec<String>)>>,
}

/// Connections of each family that a load makes at least.
const MADE_MIN: u32 = 50;

impl Load {
    fn start(world: &World, from: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = FAMILIES.into_iter().map(|family| {
            let (path, stop) = (world.path(from), Arc::clone(&stop));
            let (to, source) = (cluster(family, 10, Protocol::Tcp), source(from, family));
            std::thread::spawn(move || {
                let (mut made, mut failed) = (0, Vec::new());
                while made < MADE_MIN || !stop.load(Ordering::Relaxed) {
                    let counts = Asker { netns: &path, source }.ask_often(Protocol::Tcp, to, 10);
                    for lost in ["refused", "silence"] {
                        if counts.contains_key(lost) {
                            failed.push(format!("{lost} from {source} after {made}"));
                        }
                    }
                    made += 10;
                }
                (made, failed)
            })
        });
        Self { threads: threads.collect(), stop }
    }

    /// Fails if a connection failed.
    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let (made, failed) = thread.join().unwrap();
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
