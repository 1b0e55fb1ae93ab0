//! Hints in proportion to CPUs, and the reasons why there are none.

use api::core::{Pod, Service};
use proptest::prelude::prop;
use proptest::{prop_assert, prop_assert_eq, proptest};
use serde_json::{Value, json};

use super::super::{Endpoint, EndpointSlice, Snapshot, plan};
use super::*;
use crate::action::ObjectKind;
use crate::world::World;
use api::Name;

/// Zones with the CPUs of their one node.
fn world(zones: &[(&str, &str)]) -> (World, Name) {
    let mut world = World::at(1000);
    for (zone, cpu) in zones {
        world.add::<Node>(json!({
            "metadata": {"name": format!("n-{zone}"), "labels": {ZONE: zone}},
            "status": {"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": "True"}]},
        }));
    }
    let name = world.add::<Service>(json!({
        "metadata": {"name": "web", "namespace": "a", "annotations": {MODE: "Auto"}},
        "spec": {"selector": {"app": "web"}, "ipFamilies": ["IPv4"], "ports": [{"port": 80}]},
    }));
    (world, name)
}

fn pods(world: &mut World, zone: &str, count: usize) {
    let first = world.all::<Pod>().len();
    for index in first..first + count {
        let name = world.add::<Pod>(json!({
            "metadata": {"name": format!("p{index:04}"), "namespace": "a", "labels": {"app": "web"}},
            "spec": {"nodeName": format!("n-{zone}"), "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIP": format!("10.0.{}.{}", index / 250, index % 250 + 1)},
        }));
        world.set_ready(&name, true);
    }
}

/// The number of writes.
fn step(world: &mut World, name: &Name) -> usize {
    let snapshot = Snapshot {
        services: world.all(),
        pods: world.all(),
        slices: world.all(),
        nodes: world.all(),
    };
    let plan = plan(&snapshot, name);
    let told = |action: &&crate::action::Action| matches!(action, crate::action::Action::Event(_));
    let writes = plan.actions.len() - plan.actions.iter().filter(told).count();
    world.apply(plan);
    writes
}

fn endpoints(world: &World) -> Vec<Endpoint> {
    let slices = world.all::<EndpointSlice>();
    slices.values().flat_map(|slice| slice.endpoints.clone().unwrap_or_default()).collect()
}

/// Endpoints by the zone that they serve.
fn served(world: &World) -> BTreeMap<String, usize> {
    let mut served = BTreeMap::new();
    for hints in endpoints(world).into_iter().filter_map(|endpoint| endpoint.hints) {
        for zone in hints.for_zones.unwrap_or_default() {
            *served.entry(zone.name).or_default() += 1;
        }
    }
    served
}

fn counts(pairs: &[(&str, usize)]) -> BTreeMap<String, usize> {
    pairs.iter().map(|(zone, count)| ((*zone).to_owned(), *count)).collect()
}

fn told(world: &World) -> &str {
    world.events.last().map_or("", String::as_str)
}

#[test]
fn endpoints_serve_zones_in_proportion_to_cpus() {
    let (mut world, name) = world(&[("a", "4"), ("b", "2000m"), ("c", "2")]);
    pods(&mut world, "a", 8);
    step(&mut world, &name);
    assert_eq!(served(&world), counts(&[("a", 4), ("b", 2), ("c", 2)]));
    assert!(told(&world).contains("Topology Aware Hints has been enabled, addressType: IPv4"));
    let events = world.events.len();
    assert_eq!((step(&mut world, &name), world.events.len()), (0, events), "all is said and done");
    pods(&mut world, "b", 1);
    step(&mut world, &name);
    assert_eq!(served(&world).values().sum::<usize>(), 9);
    assert_eq!(world.events.len(), events, "enabled is told once");
}

#[test]
fn unready_endpoints_have_no_hints_and_do_not_count() {
    let (mut world, name) = world(&[("a", "2"), ("b", "2")]);
    pods(&mut world, "a", 3);
    pods(&mut world, "b", 2);
    world.set_ready(&Name::new("a", "p0000"), false);
    step(&mut world, &name);
    assert_eq!(served(&world), counts(&[("a", 2), ("b", 2)]));
    let without = endpoints(&world).into_iter().filter(|endpoint| endpoint.hints.is_none());
    assert_eq!(without.count(), 1);
}

#[test]
fn reasons_against_hints_are_told_in_upstreams_words() {
    let (mut world, name) = world(&[("a", "2"), ("b", "2")]);
    pods(&mut world, "a", 1);
    step(&mut world, &name);
    assert!(
        told(&world)
            .contains("Insufficient number of endpoints (1 endpoints, 2 zones), addressType: IPv4")
    );
    pods(&mut world, "b", 2);
    step(&mut world, &name);
    assert!(
        told(&world).contains(
            "Unable to allocate minimum required endpoints to each zone without exceeding overload threshold (3 endpoints, 2 zones), addressType: IPv4"
        ),
        "{}",
        told(&world)
    );
    pods(&mut world, "b", 1);
    step(&mut world, &name);
    assert_eq!(served(&world), counts(&[("a", 2), ("b", 2)]));
    let node = Name::cluster("n-b");
    let not_ready = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
    world.edit(ObjectKind::Node, &node, &not_ready);
    step(&mut world, &name);
    assert_eq!(served(&world), counts(&[]), "hints are taken off");
    assert!(told(&world).contains("Nodes only ready in one zone"));
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"cpu": null}}});
    world.edit(ObjectKind::Node, &node, &ready);
    step(&mut world, &name);
    assert!(told(&world).contains(
        "Insufficient Node information: allocatable CPU or zone not specified on one or more nodes"
    ));
}

#[test]
fn a_node_of_the_control_plane_does_not_count_and_its_pods_have_no_zone() {
    let (mut world, name) = world(&[("a", "2"), ("b", "2"), ("cp", "64")]);
    let role =
        json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": "", ZONE: null}}});
    world.edit(ObjectKind::Node, &Name::cluster("n-cp"), &role);
    pods(&mut world, "a", 4);
    step(&mut world, &name);
    assert_eq!(served(&world), counts(&[("a", 2), ("b", 2)]));
    pods(&mut world, "cp", 2);
    step(&mut world, &name);
    assert!(told(&world).contains("One or more endpoints do not have a zone specified"));
    assert_eq!(served(&world), counts(&[]));
}

#[test]
fn hints_go_with_the_annotation_and_give_way_to_a_distribution() {
    let (mut world, name) = world(&[("a", "2"), ("b", "2")]);
    pods(&mut world, "a", 2);
    step(&mut world, &name);
    assert_eq!(served(&world), counts(&[("a", 1), ("b", 1)]));
    let annotation = |mode: Value| json!({"metadata": {"annotations": {MODE: mode}}});
    world.edit(ObjectKind::Service, &name, &annotation(json!("Disabled")));
    step(&mut world, &name);
    assert_eq!(served(&world), counts(&[]));
    assert!(told(&world).contains("Topology Aware Hints has been disabled"));
    let distribution = json!({"spec": {"trafficDistribution": "PreferSameZone"}});
    world.edit(ObjectKind::Service, &name, &distribution);
    step(&mut world, &name);
    assert_eq!(served(&world), counts(&[("a", 2)]));
    world.edit(ObjectKind::Service, &name, &annotation(json!("auto")));
    step(&mut world, &name);
    assert_eq!(served(&world), counts(&[("a", 1), ("b", 1)]), "the annotation counts first");
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]
    /// However pods come and go: either every ready endpoint has a hint and no zone has less than its part by more than a
    /// fifth, or none has; and a second step writes nothing.
    #[test]
    fn no_zone_is_overloaded(cpus in prop::collection::vec(1..9_u8, 2..4), rounds in prop::collection::vec((0..3_usize, 0..70_usize), 1..5)) {
        let names = ["a", "b", "c"];
        let texts: Vec<String> = cpus.iter().map(ToString::to_string).collect();
        let zones: Vec<(&str, &str)> = names.iter().copied().zip(texts.iter().map(String::as_str)).collect();
        let (mut world, name) = world(&zones);
        for (zone, count) in rounds {
            if zone < zones.len() {
                pods(&mut world, names[zone], count);
            } else {
                for pod in world.all::<Pod>().keys().step_by(3) {
                    world.set_ready(pod, false);
                }
            }
            step(&mut world, &name);
            let ready = endpoints(&world).iter().filter(|endpoint| is_ready(endpoint)).count();
            let served = served(&world);
            let all: usize = served.values().sum();
            prop_assert!(all == 0 || all == ready);
            for (zone, cpu) in names.iter().zip(&cpus).filter(|_| all > 0) {
                let (cpu, whole) = (usize::from(*cpu), cpus.iter().map(|cpu| usize::from(*cpu)).sum::<usize>());
                let least = (cpu * ready * 5).div_ceil(whole * 6);
                prop_assert!(served.get(*zone).copied().unwrap_or(0) >= least, "{zone}: {served:?} {cpus:?}");
            }
            prop_assert_eq!(step(&mut world, &name), 0);
        }
    }
}
