//! Mirrored slices: families, limits, who is left alone, and what follows the source.

use api::core::Service;
use serde_json::{Value, json};

use super::*;
use crate::action::ObjectKind;
use crate::world::World;

fn world(subsets: &Value) -> (World, Name) {
    let mut world = World::at(0);
    let name = world.add::<Service>(json!({
        "metadata": {"name": "db", "namespace": "a"}, "spec": {"ports": [{"port": 5432}]},
    }));
    world.add::<LegacyEndpoints>(json!({
        "metadata": {"name": "db", "namespace": "a", "labels": {"team": "shop", HEADLESS: ""},
            "annotations": {"note": "x", TRIGGER_TIME: "1970-01-01T00:00:00Z", LAST_APPLIED: "{}"}},
        "subsets": subsets,
    }));
    (world, name)
}

fn step(world: &mut World, name: &Name) -> usize {
    let snapshot = Snapshot { services: world.all(), endpoints: world.all(), slices: world.all() };
    let plan = plan(&snapshot, name);
    let told = plan.actions.iter().filter(|action| matches!(action, Action::Event(_))).count();
    let writes = plan.actions.len() - told;
    world.apply(plan);
    writes
}

fn slices(world: &World) -> Vec<EndpointSlice> {
    world.all::<EndpointSlice>().values().map(|slice| EndpointSlice::clone(slice)).collect()
}

fn sizes(world: &World) -> Vec<usize> {
    slices(world).iter().map(|one| one.endpoints.as_ref().map_or(0, Vec::len)).collect()
}

fn many(count: usize) -> Vec<Value> {
    (0..count).map(|at| json!({"ip": format!("10.0.{}.{}", at / 250, at % 250 + 1)})).collect()
}

#[test]
fn families_and_ports_are_slices_of_their_own() {
    let (mut world, name) = world(&json!([
        {"addresses": [{"ip": "192.0.2.1", "hostname": "one"}, {"ip": "2001:db8::1"}],
            "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"name": "pg", "port": 5432}]},
        {"addresses": [{"ip": "192.0.2.1"}], "ports": [{"name": "pg", "port": 5433}]},
    ]));
    assert_eq!(step(&mut world, &name), 3);
    let mut found: Vec<_> = slices(&world)
        .iter()
        .map(|slice| {
            let ready = slice.endpoints.iter().flatten();
            let ready = ready.map(|one| one.conditions.as_ref().and_then(|one| one.ready));
            let port = slice.ports.as_ref().and_then(|ports| ports[0].port);
            (slice.address_type.clone(), port, ready.collect::<Vec<_>>())
        })
        .collect();
    found.sort();
    let (yes, no) = (Some(true), Some(false));
    let expected = [
        ("IPv4".to_owned(), Some(5432), vec![yes, no]),
        ("IPv4".to_owned(), Some(5433), vec![yes]),
        ("IPv6".to_owned(), Some(5432), vec![yes]),
    ];
    assert_eq!(found, expected);
    let one = &slices(&world)[0];
    assert_eq!((label(one, MANAGED_BY), label(one, SERVICE_NAME)), (Some(CONTROLLER), Some("db")));
    assert_eq!((label(one, "team"), label(one, HEADLESS)), (Some("shop"), None));
    let annotations = one.metadata.annotations.clone().unwrap_or_default();
    assert_eq!(annotations.keys().collect::<Vec<_>>(), ["note"]);
    assert_eq!(one.controller().map(|owner| owner.kind.as_str()), Some("Endpoints"));
    assert_eq!(step(&mut world, &name), 0);
    let edit = json!({"metadata": {"annotations": {"note": "y"}, "labels": {"team": "b"}}});
    world.edit(ObjectKind::Endpoints, &name, &edit);
    assert_eq!((step(&mut world, &name), step(&mut world, &name)), (3, 0));
    assert_eq!(annotation(&slices(&world)[0], "note"), Some("y"));
}

#[test]
fn a_thousand_addresses_of_a_subset_are_mirrored_ready_ones_first() {
    let (mut world, name) = world(&json!([{"addresses": many(700),
        "notReadyAddresses": (0..400).map(|at| json!({"ip": format!("10.9.{}.{}", at / 250, at % 250 + 1)})).collect::<Vec<_>>(),
        "ports": [{"port": 1}]}]));
    step(&mut world, &name);
    assert_eq!(sizes(&world), [1000]);
    let endpoints = slices(&world)[0].endpoints.clone().unwrap_or_default();
    let ready =
        endpoints.iter().filter(|one| one.conditions.as_ref().and_then(|c| c.ready) == Some(true));
    assert_eq!(ready.count(), 700);
    let told = world.events.last().cloned().unwrap_or_default();
    assert!(told.contains("A max of 1000 addresses can be mirrored to EndpointSlices per Endpoints subset. 100 addresses were skipped"), "{told}");
    assert_eq!(step(&mut world, &name), 0);
}

#[test]
fn addresses_that_are_none_are_left_out_and_told() {
    let (mut world, name) = world(
        &json!([{"addresses": [{"ip": "ten"}, {"ip": "192.0.2.1"}], "ports": [{"port": 1}]}]),
    );
    step(&mut world, &name);
    assert_eq!(sizes(&world), [1]);
    let told = world.events.concat();
    assert!(told.contains("Skipped 1 invalid IP addresses when mirroring to EndpointSlices"));
    assert!(!told.contains("A max of"));
}

#[test]
fn what_is_not_mirrored_has_no_slices() {
    for (kind, edit) in [
        (ObjectKind::Endpoints, json!({"metadata": {"labels": {SKIP: "true"}}})),
        (
            ObjectKind::Endpoints,
            json!({"metadata": {"annotations": {"control-plane.alpha.kubernetes.io/leader": "{}"}}}),
        ),
        (ObjectKind::Service, json!({"spec": {"selector": {"app": "db"}}})),
    ] {
        let (mut world, name) = world(&json!([{"addresses": many(2), "ports": [{"port": 1}]}]));
        step(&mut world, &name);
        assert_eq!(sizes(&world), [2]);
        world.edit(kind, &name, &edit);
        step(&mut world, &name);
        assert_eq!(sizes(&world), [0; 0], "{edit}");
    }
    for kind in [ObjectKind::Endpoints, ObjectKind::Service] {
        let (mut world, name) = world(&json!([{"addresses": many(2), "ports": [{"port": 1}]}]));
        step(&mut world, &name);
        world.remove(kind, &name);
        step(&mut world, &name);
        assert_eq!(sizes(&world), [0; 0], "without its {kind:?}");
    }
}
