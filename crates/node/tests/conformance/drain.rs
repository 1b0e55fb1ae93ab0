//! Virtual servers of IPVS let connections end: when an endpoint goes, and when the mode is left.

use net::nft::Family;
use plan::service::Protocol;

use super::mode::{IPVS, MODES};
use super::objects::{cluster, service};
use super::topology::pod_ip;
use super::traffic::{Asker, Conversation};
use super::world::{World, source};
use super::{machine, mode};

/// The test that runs in the virtual machine.
const INNER: &str = "virtual_servers_drain";
const FAMILY: Family = Family::Ip;
const FOREIGN: &str = "-A -t 192.0.2.50:80 -s lc";
/// How often to look: the kernel forgets a connection ten seconds after its reset.
const LOOKS: u32 = 200;

pub(crate) fn in_machine() {
    if mode::is_asked_for(IPVS) {
        machine::run(INNER, &[]);
    }
}

/// Runs in the machine.
pub(crate) fn let_connections_end() {
    let mut world = World::new(IPVS);
    world.on_node("n1", &format!("ipvsadm {FOREIGN}"));
    world.apply(&[service(10, &["a"])]);
    let mut old = connect(&world);
    assert_eq!(old.say(), "a");
    world.apply(&[service(10, &["c"])]);
    assert_eq!(old.say(), "a", "the endpoint went, the connection did not");
    let mut new: Vec<Conversation> = (0..4).map(|_| connect(&world)).collect();
    assert!(new.iter_mut().all(|talk| talk.say() == "c"));
    assert_eq!(destinations(&world), [weighs("a", 0), weighs("c", 1)]);
    // An agent that starts goes on with what it finds.
    world.restart();
    assert_eq!(destinations(&world), [weighs("a", 0), weighs("c", 1)]);
    old.hang_up();
    wait_until(&mut world, |world| destinations(world) == [weighs("c", 1)]);

    world.mode = MODES[0];
    world.restart();
    assert!(new.iter_mut().all(|talk| talk.say() == "c"), "the mode went, the connections did not");
    assert_eq!(destinations(&world), [weighs("c", 0)]);
    world.agree("b", Protocol::Tcp, cluster(FAMILY, 10, Protocol::Tcp));
    new.into_iter().for_each(Conversation::hang_up);
    wait_until(&mut world, |world| saved(world) == [FOREIGN]);
    wait_until(&mut world, |world| {
        let left =
            ["nft list tables", "ip rule", "ip -6 rule"].map(|show| world.on_node("n1", show));
        !left.concat().contains("rhumb_ipvs") && !left.concat().contains("8211")
    });
}

fn connect(world: &World) -> Conversation {
    let (path, source) = (world.path("b"), source("b", FAMILY));
    Asker { netns: &path, source }.connect(cluster(FAMILY, 10, Protocol::Tcp))
}

fn saved(world: &World) -> Vec<String> {
    let text = world.on_node("n1", "ipvsadm -S -n");
    text.lines().map(|line| line.trim_end().to_owned()).collect()
}

fn destinations(world: &World) -> Vec<String> {
    let to = format!("-a -t {}", cluster(FAMILY, 10, Protocol::Tcp));
    let mut found = saved(world);
    found.retain(|line| line.starts_with(&to));
    found.sort();
    found
}

fn weighs(pod: &str, weight: u32) -> String {
    let to = cluster(FAMILY, 10, Protocol::Tcp);
    format!("-a -t {to} -r {}:8080 -m -w {weight}", pod_ip(FAMILY, pod))
}

fn wait_until(world: &mut World, holds: impl Fn(&World) -> bool) {
    for _ in 0..LOOKS {
        world.settle();
        if holds(world) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    panic!("{:?}", saved(world));
}
