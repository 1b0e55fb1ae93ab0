//! Counts, adoption, and which pod goes first.

use serde_json::json;

use super::*;
use crate::action::ObjectKind;
use crate::world::World;

fn set(replicas: i32) -> (World, Name) {
    let mut world = World::at(1000);
    let name = world.add::<ReplicaSet>(json!({
        "metadata": {"name": "web", "namespace": "a"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c"}]},
            },
        },
    }));
    (world, name)
}

fn step(world: &mut World, name: &Name) -> Plan {
    let snapshot = Snapshot { replica_sets: world.all(), pods: world.all(), now: world.time() };
    let plan = plan(&snapshot, name);
    world.apply(plan.clone());
    plan
}

#[test]
fn missing_pods_are_created_once() {
    let (mut world, name) = set(3);
    step(&mut world, &name);
    step(&mut world, &name);
    assert_eq!(step(&mut world, &name), Plan::none());
    let pods = world.all::<Pod>();
    assert_eq!(pods.len(), 3);
    assert!(pods.keys().all(|pod| pod.name.starts_with("web-")));
    let status = world.all::<ReplicaSet>()[&name].status.clone().expect("written");
    assert_eq!((status.replicas, status.ready_replicas), (3, None));
}

#[test]
fn matching_orphans_are_adopted_and_others_released() {
    let (mut world, name) = set(1);
    world
        .add::<Pod>(json!({"metadata": {"name": "x", "namespace": "a", "labels": {"app": "web"}}}));
    step(&mut world, &name);
    let pods = world.all::<Pod>();
    assert_eq!(pods.len(), 1, "the orphan counts");
    let pod = Name::new("a", "x");
    assert_eq!(pods[&pod].controller().map(|owner| owner.kind.as_str()), Some("ReplicaSet"));
    world.edit(ObjectKind::Pod, &pod, &json!({"metadata": {"labels": {"app": "other"}}}));
    step(&mut world, &name);
    let pods = world.all::<Pod>();
    assert!(pods[&pod].controller().is_none());
    assert_eq!(pods.len(), 2, "the released pod is replaced");
}

#[test]
fn the_least_useful_pods_go_first() {
    let (mut world, name) = set(5);
    step(&mut world, &name);
    let pods: Vec<Name> = world.all::<Pod>().keys().cloned().collect();
    for (index, pod) in pods.iter().enumerate() {
        if index > 0 {
            let node = json!({"spec": {"nodeName": format!("n{}", index % 2)}});
            world.edit(ObjectKind::Pod, pod, &node);
        }
        world.now += 1;
        world.set_ready(pod, index > 1);
    }
    let cheap =
        json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1"}}});
    world.edit(ObjectKind::Pod, &pods[3], &cheap);
    let mut gone = Vec::new();
    for replicas in [4, 3, 2] {
        world.edit(ObjectKind::ReplicaSet, &name, &json!({"spec": {"replicas": replicas}}));
        let plan = step(&mut world, &name);
        gone.extend(plan.actions.into_iter().find_map(|action| match action {
            Action::DeletePods { pods, .. } => pods.first().map(|(pod, _)| pod.clone()),
            _ => None,
        }));
    }
    assert_eq!(gone, [pods[0].clone(), pods[1].clone(), pods[3].clone()]);
}

#[test]
fn failures_are_told_once() {
    let (world, name) = set(1);
    let set = world.all::<ReplicaSet>()[&name].clone();
    let told = failed(&set, "FailedCreate", "quota", world.time()).expect("news");
    assert_eq!(failed(&told, "FailedCreate", "quota", world.time()), None);
}
