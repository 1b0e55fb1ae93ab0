//! Order, names, storage and updates, step by step against a small API.

use serde_json::json;

use super::*;
use crate::action::ObjectKind;
use crate::world::World;

fn set(replicas: i32) -> (World, Name) {
    let mut world = World::at(1000);
    let name = world.add::<StatefulSet>(json!({
        "metadata": {"name": "db", "namespace": "a"},
        "spec": {
            "replicas": replicas, "serviceName": "db-peers",
            "selector": {"matchLabels": {"app": "db"}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "template": {
                "metadata": {"labels": {"app": "db"}},
                "spec": {"containers": [{"name": "c", "image": "one"}]},
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Gi"}}},
            }],
        },
    }));
    (world, name)
}

fn step(world: &mut World, name: &Name) {
    let snapshot = Snapshot {
        stateful_sets: world.all(),
        pods: world.all(),
        claims: world.all(),
        revisions: world.all(),
        now: world.time(),
    };
    world.apply(plan(&snapshot, name));
}

fn ready_all(world: &mut World) {
    for pod in world.all::<Pod>().keys() {
        world.set_ready(pod, true);
    }
}

fn settle(world: &mut World, name: &Name) {
    for _ in 0..20 {
        step(world, name);
        ready_all(world);
    }
}

fn pods(world: &World) -> Vec<String> {
    world.all::<Pod>().keys().map(|pod| pod.name.to_string()).collect()
}

fn image(world: &World, pod: &str) -> String {
    let pod = world.all::<Pod>()[&Name::new("a", pod)].clone();
    let image = pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone());
    image.unwrap_or_default()
}

fn set_image(world: &mut World, name: &Name, image: &str) {
    let containers = json!([{"name": "c", "image": image}]);
    let patch = json!({"spec": {"template": {"spec": {"containers": containers}}}});
    world.edit(ObjectKind::StatefulSet, name, &patch);
}

#[test]
fn pods_come_in_order_with_names_and_claims_and_go_in_reverse() {
    let (mut world, name) = set(3);
    step(&mut world, &name);
    step(&mut world, &name);
    assert_eq!(pods(&world), ["db-0"], "the next waits until this one is ready");
    ready_all(&mut world);
    step(&mut world, &name);
    assert_eq!(pods(&world), ["db-0", "db-1"]);
    settle(&mut world, &name);
    assert_eq!(pods(&world), ["db-0", "db-1", "db-2"]);
    let claims: Vec<_> =
        world.all::<PersistentVolumeClaim>().keys().map(|one| one.name.to_string()).collect();
    assert_eq!(claims, ["data-db-0", "data-db-1", "data-db-2"]);
    let pod = world.all::<Pod>()[&Name::new("a", "db-1")].clone();
    let spec = pod.spec.clone().expect("set");
    assert_eq!(
        (spec.hostname.as_deref(), spec.subdomain.as_deref()),
        (Some("db-1"), Some("db-peers"))
    );
    assert_eq!(label(pod.as_ref(), "statefulset.kubernetes.io/pod-name"), Some("db-1"));
    assert_eq!(label(pod.as_ref(), "apps.kubernetes.io/pod-index"), Some("1"));
    assert!(world.events.contains(&"create Pod db-1 in StatefulSet db successful".to_owned()));
    world.edit(ObjectKind::StatefulSet, &name, &json!({"spec": {"replicas": 1}}));
    step(&mut world, &name);
    assert_eq!(pods(&world), ["db-0", "db-1"]);
    settle(&mut world, &name);
    assert_eq!(pods(&world), ["db-0"]);
    assert_eq!(world.all::<PersistentVolumeClaim>().len(), 3, "claims stay");
    let before = world.all::<StatefulSet>();
    step(&mut world, &name);
    assert_eq!(world.all::<StatefulSet>(), before, "a settled set is left alone");
}

#[test]
fn updates_go_from_the_highest_down_to_the_partition() {
    let (mut world, name) = set(3);
    settle(&mut world, &name);
    let partition = json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 2}}}});
    world.edit(ObjectKind::StatefulSet, &name, &partition);
    set_image(&mut world, &name, "two");
    settle(&mut world, &name);
    let images = |world: &World| ["db-0", "db-1", "db-2"].map(|pod| image(world, pod));
    assert_eq!(images(&world), ["one", "one", "two"]);
    world.delete(ObjectKind::Pod, &Name::new("a", "db-0"));
    settle(&mut world, &name);
    assert_eq!(images(&world), ["one", "one", "two"], "below the partition the old one comes back");
    let partition = json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}});
    world.edit(ObjectKind::StatefulSet, &name, &partition);
    settle(&mut world, &name);
    assert_eq!(images(&world), ["two", "two", "two"]);
    let status = world.all::<StatefulSet>()[&name].status.clone().expect("written");
    assert_eq!(status.current_revision, status.update_revision);
    assert_eq!((status.ready_replicas, status.updated_replicas), (Some(3), Some(3)));
    set_image(&mut world, &name, "one");
    settle(&mut world, &name);
    assert_eq!(world.all::<ControllerRevision>().len(), 2, "going back uses the old revision");
}

#[test]
fn parallel_sets_start_at_once_and_on_delete_waits() {
    let (mut world, name) = set(3);
    let patch = json!({"spec": {"podManagementPolicy": "Parallel", "updateStrategy": {"type": "OnDelete"}}});
    world.edit(ObjectKind::StatefulSet, &name, &patch);
    step(&mut world, &name);
    assert_eq!(pods(&world).len(), 3);
    settle(&mut world, &name);
    set_image(&mut world, &name, "two");
    settle(&mut world, &name);
    assert_eq!(image(&world, "db-2"), "one");
    world.delete(ObjectKind::Pod, &Name::new("a", "db-2"));
    settle(&mut world, &name);
    assert_eq!((image(&world, "db-1"), image(&world, "db-2")), ("one".into(), "two".into()));
}
