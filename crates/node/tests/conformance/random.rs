//! Random clusters and random packets: the kernel against the specification.

use std::net::{IpAddr, SocketAddr};

use net::nft::Family;
use plan::proxy::{FAMILIES, NodePortAddresses};
use plan::service::Protocol;
use serde_json::json;

use super::machine;
use super::mode::{MODES, Mode, is_asked_for};
use super::objects::{End, Sketch, balancer_ip, cluster_ip, end, external_ip, port, service};
use super::topology::{CLIENTS, NODES, PODS, node_ip, node_second, on_link};
use super::world::{PROTOCOLS, World, source};

/// The test that runs in the virtual machine.
const INNER: &str = "random_clusters_in_the_machine";
/// Clusters that are tried in a mode; `SEEDS=n` tries more.
const SEEDS: u64 = 24;
/// Packets from each place in a cluster.
const PACKETS: usize = 6;
/// The settings change every so many clusters.
const SETTINGS: u64 = 8;

/// Numbers that look random and are the same for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let sides = u64::try_from(sides).expect("a die has few sides");
        usize::try_from((mixed ^ (mixed >> 31)) % sides).expect("below the sides")
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())]
    }
}

/// Fails when a kernel does anything else than the specification says. Prints the seed.
pub(crate) fn compare() {
    let asked = |mode: &&dyn Mode| is_asked_for(*mode) && mode.needs_machine();
    std::thread::scope(|scope| {
        if MODES.iter().any(asked) {
            scope.spawn(|| machine::run(INNER, &["SEEDS", "MODE"]));
        }
        compare_on_this_kernel(false);
    });
}

/// The same for the modes that need the virtual machine, or for all others.
pub(crate) fn compare_on_this_kernel(in_machine: bool) {
    let seeds = std::env::var("SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let here = |mode: &&dyn Mode| is_asked_for(*mode) && mode.needs_machine() == in_machine;
    for mode in MODES.into_iter().filter(here) {
        std::thread::scope(|scope| {
            for half in 0..2 {
                scope.spawn(move || {
                    let mut world = World::new(mode);
                    for seed in (half..seeds).step_by(2) {
                        one(&mut world, seed);
                    }
                });
            }
        });
    }
}

fn one(world: &mut World, seed: u64) {
    let mut dice = Dice(seed);
    if seed % SETTINGS < 2 {
        let chosen = dice.pick(&[None, Some(NodePortAddresses::All)]);
        let masquerade_all = dice.one_in(2);
        world.configure(|settings| {
            settings.node_port_addresses = chosen.into_iter().collect();
            settings.masquerade_all = masquerade_all;
        });
    }
    let count = 1 + dice.roll(5);
    let numbers: Vec<u8> = (10..).take(count).collect();
    let sketches: Vec<Sketch> = numbers.iter().map(|number| sketch(*number, &mut dice)).collect();
    world.apply(&sketches);
    let places: Vec<&str> = PODS
        .into_iter()
        .map(|(pod, ..)| pod)
        .chain(NODES.into_iter().map(|(node, ..)| node))
        .chain(["client"])
        .collect();
    let world = &*world;
    std::thread::scope(|scope| {
        for (at, from) in places.into_iter().enumerate() {
            let mut dice = Dice(seed << 8 | u64::try_from(at).expect("few places"));
            let (numbers, sketches) = (&numbers, &sketches);
            scope.spawn(move || {
                for _ in 0..PACKETS {
                    let (as_whom, protocol, to) = packet(from, numbers, &mut dice);
                    let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        world.agree_as(from, as_whom, protocol, to);
                    }));
                    assert!(told.is_ok(), "seed {seed}, see above; {sketches:#?}");
                }
            });
        }
    });
}

fn sketch(number: u8, dice: &mut Dice) -> Sketch {
    let mut sketch = service(number, &[]).ends(ends(dice));
    if dice.one_in(6) {
        sketch = sketch.family(dice.pick(&FAMILIES));
    }
    if !dice.one_in(3) {
        sketch = sketch.node_port(30000 + 2 * u16::from(number));
    }
    if !dice.one_in(3) {
        sketch = sketch.balanced(if dice.one_in(5) { "Proxy" } else { "VIP" });
        if dice.one_in(3) {
            let ranges = [
                json!(["198.18.0.8/29", "fd44::/32"]),
                json!(["10.244.1.0/24", "fd18::200/128"]),
                json!(["fd18::/64"]),
            ];
            sketch = sketch.set("loadBalancerSourceRanges", ranges[dice.roll(3)].clone());
        }
    }
    if dice.one_in(3) {
        sketch = sketch.external();
    }
    if dice.one_in(4) {
        sketch = sketch.internal_local();
    }
    if dice.one_in(2) {
        sketch = sketch.external_local();
    }
    if dice.one_in(4) {
        sketch = sketch.sticky(600);
    }
    if dice.one_in(20) {
        sketch = sketch.label("service.kubernetes.io/service-proxy-name", "other");
    }
    sketch
}

fn ends(dice: &mut Dice) -> Vec<End> {
    let (hints, health) = (dice.roll(4), dice.roll(4));
    let mut ends = Vec::new();
    for (pod, node, _) in PODS {
        if dice.one_in(2) {
            continue;
        }
        let (node, zone, _) = NODES[usize::from(node) - 1];
        let mut one = end(pod);
        if hints > 1 && !dice.one_in(12) {
            one = one.zone(zone);
        }
        if hints > 2 && !dice.one_in(12) {
            one = one.node(node);
        }
        ends.push(match (health, dice.roll(3)) {
            (0 | 1, 0) => one.draining(),
            (0 | 2, 1) => one.unready(),
            (0, _) => one.draining(),
            _ => one,
        });
    }
    ends
}

fn packet(from: &str, numbers: &[u8], dice: &mut Dice) -> (IpAddr, Protocol, SocketAddr) {
    let (family, at) = (dice.pick(&FAMILIES), dice.roll(2));
    let (protocol, number) = (PROTOCOLS[at], dice.pick(numbers));
    let as_whom = match from {
        "client" => on_link(family, dice.pick(&CLIENTS)),
        _ => source(from, family),
    };
    let mut to = target(family, (protocol, at), number, dice);
    // The pod network takes a node's other addresses for the outside: there pods come as their node.
    if PODS.into_iter().any(|(pod, ..)| pod == from)
        && NODES.into_iter().any(|(node, ..)| node_second(family, node) == to.ip())
    {
        to.set_ip(cluster_ip(family, number));
    }
    (as_whom, protocol, to)
}

fn target(
    family: Family,
    (protocol, at): (Protocol, usize),
    number: u8,
    dice: &mut Dice,
) -> SocketAddr {
    let (node, ..) = dice.pick(&NODES);
    let node_port = 30000 + 2 * u16::from(number) + u16::from(at == 1);
    let to = port(protocol);
    match dice.roll(16) {
        0..4 => SocketAddr::new(cluster_ip(family, number), to),
        4 => SocketAddr::new(cluster_ip(family, number), 4444),
        5 => SocketAddr::new(cluster_ip(family, 99), to),
        6..9 => SocketAddr::new(node_ip(family, node), node_port),
        9 => SocketAddr::new(node_second(family, node), node_port),
        10..13 => SocketAddr::new(balancer_ip(family, number), to),
        _ => SocketAddr::new(external_ip(family, number), to),
    }
}
