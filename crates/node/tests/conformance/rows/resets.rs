//! Connections to endpoints that are gone, of Services that ask for their end. All wait in silence: nobody sends anything
//! before it is told.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use api::service::RESET_CONNECTIONS;
use net::nft::Family;
use plan::proxy::FAMILIES;
use plan::service::Protocol;

use crate::objects::{Sketch, balancer_ip, cluster, end, service};
use crate::topology::{node_ip, pod_ip};
use crate::traffic::{Asker, Conversation, connections};
use crate::world::{World, source};

const TCP: Protocol = Protocol::Tcp;
/// Only a failure takes so long.
const RESET_MAX: Duration = Duration::from_secs(20);

fn web(pods: &[&'static str], after: &str) -> Sketch {
    service(10, pods).node_port(30080).balanced("VIP").annotate(RESET_CONNECTIONS, after)
}

/// A connection of every kind: from pods here and elsewhere, from the node, and from outside to each sort of address, also
/// by way of another node.
fn talks(world: &World, family: Family) -> Vec<(&'static str, SocketAddr, Conversation)> {
    let node = |name| SocketAddr::new(node_ip(family, name), 30080);
    let inside = cluster(family, 10, TCP);
    let targets = [
        ("b", inside),
        ("d", inside),
        ("n1", inside),
        ("client", node("n1")),
        ("client", node("n2")),
        ("client", SocketAddr::new(balancer_ip(family, 10), 80)),
    ];
    targets.map(|(from, to)| (from, to, talk(world, from, to))).into()
}

fn talk(world: &World, from: &str, to: SocketAddr) -> Conversation {
    let source = source(from, Family::of(&to.ip()));
    Asker { netns: &world.path(from), source }.connect(to)
}

/// Lets the agents work until all were told.
fn all_are_reset(world: &mut World, mut talks: Vec<(&'static str, SocketAddr, Conversation)>) {
    let began = Instant::now();
    while !talks.is_empty() {
        world.settle();
        talks.retain_mut(|(_, _, talk)| !talk.is_reset());
        let left: Vec<_> = talks.iter().map(|(from, to, _)| (from, to)).collect();
        assert!(began.elapsed() < RESET_MAX, "{left:?} are still open");
    }
}

/// The rules for it are there only while there is something to reset.
fn the_rules_go(world: &mut World) {
    let began = Instant::now();
    while world.on_node("n1", "nft list tables").contains("rhumb_resets") {
        assert!(began.elapsed() < RESET_MAX, "the rules stay");
        std::thread::sleep(Duration::from_millis(200));
        world.settle();
    }
}

pub(super) fn after_grace(world: &mut World) {
    for family in FAMILIES {
        world.apply(&[web(&["a"], "3600s"), service(11, &["a"])]);
        let mut all = talks(world, family);
        let mut other = talk(world, "b", cluster(family, 11, TCP));
        world.apply(&[web(&["c"], "3600s"), service(11, &["a"])]);
        let mut kept = talk(world, "b", cluster(family, 10, TCP));
        for (from, to, talk) in &mut all {
            assert_eq!(talk.say(), "a", "{from} to {to}, within the grace");
        }
        world.apply(&[web(&["c"], "300ms"), service(11, &["a"])]);
        all_are_reset(world, all);
        let began = Instant::now();
        while connections(&world.path("a"), family) > 1 {
            assert!(began.elapsed() < RESET_MAX, "the endpoint was not told");
            world.settle();
        }
        assert_eq!(other.say(), "a", "the Service did not ask for it");
        assert_eq!(kept.say(), "c", "the endpoint is there");
        world.agree("b", TCP, cluster(family, 10, TCP));
    }
    the_rules_go(world);
}

pub(super) fn out_of_reach(world: &mut World) {
    for family in FAMILIES {
        world.apply(&[web(&["a"], "0s")]);
        let all = talks(world, family);
        world.kill();
        let flag = if family == Family::Ip { "-4" } else { "-6" };
        let rule = |verb: &str| {
            format!("ip {flag} rule {verb} prio 5 to {} unreachable", pod_ip(family, "a"))
        };
        for node in ["n1", "n2"] {
            world.on_node(node, &rule("add"));
        }
        world.apply(&[web(&["c"], "0s")]);
        world.restart();
        all_are_reset(world, all);
        for node in ["n1", "n2"] {
            world.on_node(node, &rule("del"));
        }
    }
}

pub(super) fn draining(world: &mut World) {
    let left = |end| web(&[], "0s").ends([end]);
    for family in FAMILIES {
        world.apply(&[web(&["a"], "0s")]);
        let mut all = talks(world, family);
        for state in [end("a").draining(), end("a").unready()] {
            world.apply(&[left(state)]);
            world.settle();
            for (from, to, talk) in &mut all {
                assert_eq!(talk.say(), "a", "{from} to {to}");
            }
        }
        world.apply(&[left(end("a").gone())]);
        all_are_reset(world, all);
    }
}
