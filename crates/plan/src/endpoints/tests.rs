//! Endpoints against a small API: who is in them, ready or not, what is cut off, and when they are left alone.

use serde_json::{Value, json};

use super::*;
use crate::action::ObjectKind;
use crate::objects::annotation;
use crate::world::World;

fn world(spec: &Value) -> (World, Name) {
    let mut world = World::at(1000);
    let name = world.add::<Service>(json!({
        "metadata": {"name": "web", "namespace": "a", "labels": {"team": "shop"}},
        "spec": {"clusterIP": "10.96.0.9", "selector": {"app": "web"}, "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
    }));
    world.edit(ObjectKind::Service, &name, &json!({ "spec": spec }));
    (world, name)
}

fn pod(world: &mut World, index: usize, port: i32, ready: bool) -> Name {
    let name = world.add::<Pod>(json!({
        "metadata": {"name": format!("p{index}"), "namespace": "a", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "hostname": "h", "subdomain": "web", "containers": [
            {"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {"phase": "Running", "podIP": format!("10.0.{}.{}", index / 250, index % 250 + 1)},
    }));
    world.set_ready(&name, ready);
    name
}

fn step(world: &mut World, name: &Name) -> usize {
    let snapshot = Snapshot { services: world.all(), pods: world.all(), endpoints: world.all() };
    let plan = plan(&snapshot, name);
    let writes = plan.actions.len();
    world.apply(plan);
    writes
}

fn only(world: &World) -> Endpoints {
    world.all::<Endpoints>().values().next().expect("exists").as_ref().clone()
}

/// Ready and other addresses, a pair for each subset.
fn counts(world: &World) -> Vec<(usize, usize)> {
    let count = |list: Option<Vec<EndpointAddress>>| list.map_or(0, |list| list.len());
    let subsets = only(world).subsets.unwrap_or_default().into_iter();
    subsets.map(|one| (count(one.addresses), count(one.not_ready_addresses))).collect()
}

#[test]
fn endpoints_name_ready_and_other_pods_and_their_frame() {
    let (mut world, name) = world(&json!({}));
    let first = pod(&mut world, 0, 8080, true);
    pod(&mut world, 1, 8080, false);
    assert_eq!((step(&mut world, &name), step(&mut world, &name)), (1, 0));
    assert_eq!(counts(&world), [(1, 1)]);
    let found = only(&world);
    assert_eq!(
        (label(&found, "team"), label(&found, MANAGED_BY)),
        (Some("shop"), Some(CONTROLLER))
    );
    assert_eq!(annotation(&found, TRIGGER_TIME), Some("1970-01-01T00:16:40Z"));
    let subset = &found.subsets.unwrap_or_default()[0];
    let address = &subset.addresses.as_ref().expect("one")[0];
    assert_eq!(
        (address.hostname.as_deref(), address.node_name.as_deref()),
        (Some("h"), Some("n1"))
    );
    let port = &subset.ports.as_ref().expect("one")[0];
    assert_eq!((port.name.as_deref(), port.port), (Some("http"), 8080));
    world.delete(ObjectKind::Pod, &first);
    step(&mut world, &name);
    assert_eq!(counts(&world), [(0, 1)], "a pod that is going is not in Endpoints");
    assert_eq!(annotation(&only(&world), TRIGGER_TIME), None, "nothing new happened");
    world.edit(ObjectKind::Service, &name, &json!({"spec": {"publishNotReadyAddresses": true}}));
    step(&mut world, &name);
    assert_eq!(counts(&world), [(2, 0)]);
}

#[test]
fn pods_without_any_of_the_ports_are_left_out() {
    let (mut world, name) = world(&json!({"ports": [{"port": 80, "targetPort": "admin"}]}));
    pod(&mut world, 0, 8080, true);
    step(&mut world, &name);
    assert_eq!(only(&world).subsets, None);
    world.edit(ObjectKind::Service, &name, &json!({"spec": {"ports": null, "clusterIP": "None"}}));
    step(&mut world, &name);
    assert_eq!(counts(&world), [(1, 0)], "a headless Service needs none");
    assert_eq!(label(&only(&world), HEADLESS), Some(""));
}

#[test]
fn more_than_a_thousand_are_cut_ready_ones_last() {
    let (mut world, name) = world(&json!({}));
    for index in 0..900 {
        pod(&mut world, index, 8080, true);
    }
    for index in 900..1200 {
        pod(&mut world, index, if index < 1000 { 8080 } else { 9090 }, false);
    }
    step(&mut world, &name);
    assert_eq!(counts(&world), [(900, 34), (0, 66)], "a third and two thirds of what is left");
    assert_eq!(annotation(&only(&world), OVER_CAPACITY), Some("truncated"));
    assert_eq!(step(&mut world, &name), 0);
    for index in 1200..1800 {
        pod(&mut world, index, 9090, true);
    }
    step(&mut world, &name);
    assert_eq!(counts(&world), [(600, 0), (400, 0)], "in proportion, and no others");
    for index in 300..1800 {
        world.remove(ObjectKind::Pod, &Name::new("a", &format!("p{index}")));
    }
    step(&mut world, &name);
    assert_eq!(counts(&world), [(300, 0)]);
    assert_eq!(annotation(&only(&world), OVER_CAPACITY), None);
}

#[test]
fn without_a_selector_endpoints_are_the_users() {
    let (mut world, name) = world(&json!({}));
    pod(&mut world, 0, 8080, true);
    step(&mut world, &name);
    world.edit(ObjectKind::Service, &name, &json!({"spec": {"selector": null}}));
    assert_eq!(step(&mut world, &name), 0);
    world.edit(ObjectKind::Endpoints, &name, &json!({"subsets": null}));
    assert_eq!((step(&mut world, &name), counts(&world)), (0, Vec::new()));
    world.remove(ObjectKind::Service, &name);
    step(&mut world, &name);
    assert!(world.all::<Endpoints>().is_empty(), "they go with their Service");
}
