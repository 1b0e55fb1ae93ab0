//! Rollouts step by step against a small API: counts, bounds, revisions, conditions.

use api::core::Pod;
use proptest::prelude::{any, prop};
use proptest::{prop_assert, proptest};
use serde_json::{Value, json};

use super::*;
use crate::action::ObjectKind;
use crate::workloads::replicaset;
use crate::world::World;

fn deployment(replicas: i32, surge: &Value, unavailable: &Value) -> (World, Name) {
    let mut world = World::at(1000);
    let name = world.add::<Deployment>(json!({
        "metadata": {"name": "web", "namespace": "a"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 2,
            "strategy": {"type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "one"}]},
            },
        },
    }));
    (world, name)
}

fn step(world: &mut World, name: &Name) {
    let snapshot = Snapshot {
        deployments: world.all(),
        replica_sets: world.all(),
        pods: world.all(),
        now: world.time(),
    };
    world.apply(plan(&snapshot, name));
}

fn step_sets(world: &mut World) {
    for name in world.all::<ReplicaSet>().keys() {
        let snapshot = replicaset::Snapshot {
            replica_sets: world.all(),
            pods: world.all(),
            now: world.time(),
        };
        world.apply(replicaset::plan(&snapshot, name));
    }
}

/// Runs everything until nothing changes, with every pod ready at once.
fn settle(world: &mut World, name: &Name) {
    for _ in 0..40 {
        step(world, name);
        step_sets(world);
        for pod in world.all::<Pod>().keys() {
            world.set_ready(pod, true);
        }
        world.now += 1;
    }
}

fn set_image(world: &mut World, name: &Name, image: &str) {
    let containers = json!([{"name": "c", "image": image}]);
    let patch = json!({"spec": {"template": {"spec": {"containers": containers}}}});
    world.edit(ObjectKind::Deployment, name, &patch);
}

fn sizes(world: &World) -> Vec<i32> {
    let mut sets: Vec<_> = world.all::<ReplicaSet>().values().cloned().collect();
    sets.sort_by_key(|set| revision(set));
    sets.iter().map(|set| replicas(set)).collect()
}

fn reason(world: &World, name: &Name, type_: &str) -> String {
    let deployment = world.all::<Deployment>()[name].clone();
    let conditions = deployment.status.clone().and_then(|status| status.conditions);
    let found = conditions.into_iter().flatten().find(|one| one.type_ == type_);
    found.and_then(|one| one.reason).unwrap_or_default()
}

#[test]
fn a_new_deployment_gets_its_set_and_becomes_available() {
    let (mut world, name) = deployment(3, &json!("25%"), &json!("25%"));
    step(&mut world, &name);
    let set = world.all::<ReplicaSet>().values().next().cloned().expect("made");
    assert_eq!(annotation(set.as_ref(), REVISION), Some("1"));
    assert_eq!(world.events, [format!("Scaled up replica set {} from 0 to 3", set.name())]);
    assert_eq!(reason(&world, &name, "Progressing"), "NewReplicaSetCreated");
    assert_eq!(reason(&world, &name, "Available"), "MinimumReplicasUnavailable");
    settle(&mut world, &name);
    assert_eq!(reason(&world, &name, "Progressing"), "NewReplicaSetAvailable");
    assert_eq!(reason(&world, &name, "Available"), "MinimumReplicasAvailable");
    let settled = world.all::<Deployment>()[&name].clone();
    let status = settled.status.clone().expect("written");
    assert_eq!((status.available_replicas, status.unavailable_replicas), (Some(3), None));
    assert_eq!(annotation(settled.as_ref(), REVISION), Some("1"));
    step(&mut world, &name);
    assert_eq!(world.all::<Deployment>()[&name], settled, "a settled deployment is left alone");
}

#[test]
fn rollout_rollback_and_history_limit() {
    let (mut world, name) = deployment(3, &json!(1), &json!(0));
    for image in ["one", "two", "three", "four", "five"] {
        set_image(&mut world, &name, image);
        settle(&mut world, &name);
    }
    assert_eq!(sizes(&world), [0, 0, 3], "two old sets are kept");
    set_image(&mut world, &name, "four");
    settle(&mut world, &name);
    assert_eq!(sizes(&world), [0, 0, 3]);
    let sets = world.all::<ReplicaSet>();
    let now = sets.values().find(|set| replicas(set) == 3).expect("rolled back");
    assert_eq!(annotation(now.as_ref(), REVISION), Some("6"), "an old template is a new revision");
    assert_eq!(annotation(now.as_ref(), REVISION_HISTORY), Some("4"));
}

#[test]
fn paused_rollouts_wait_and_scale_in_proportion() {
    let (mut world, name) = deployment(10, &json!(3), &json!(2));
    settle(&mut world, &name);
    set_image(&mut world, &name, "two");
    step(&mut world, &name);
    step(&mut world, &name);
    assert_eq!(sizes(&world), [8, 3]);
    world.edit(ObjectKind::Deployment, &name, &json!({"spec": {"paused": true, "replicas": 20}}));
    step(&mut world, &name);
    assert_eq!(sizes(&world).iter().sum::<i32>(), 23, "{:?}", sizes(&world));
    assert_eq!(reason(&world, &name, "Progressing"), "DeploymentPaused");
    let before = sizes(&world);
    step(&mut world, &name);
    assert_eq!(sizes(&world), before);
    world.edit(ObjectKind::Deployment, &name, &json!({"spec": {"paused": null}}));
    settle(&mut world, &name);
    assert_eq!(sizes(&world), [0, 20]);
}

#[test]
fn recreate_waits_until_old_pods_are_gone() {
    let (mut world, name) = deployment(2, &json!(1), &json!(1));
    let strategy = json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}});
    world.edit(ObjectKind::Deployment, &name, &strategy);
    settle(&mut world, &name);
    let pods: Vec<_> = world.all::<Pod>().keys().cloned().collect();
    for pod in &pods {
        world.edit(ObjectKind::Pod, pod, &json!({"spec": {"nodeName": "n1"}}));
    }
    set_image(&mut world, &name, "two");
    settle(&mut world, &name);
    assert_eq!(sizes(&world), [0], "pods are still terminating");
    pods.iter().for_each(|pod| world.remove(ObjectKind::Pod, pod));
    settle(&mut world, &name);
    assert_eq!(sizes(&world), [0, 2]);
}

#[test]
fn a_stuck_rollout_exceeds_its_deadline() {
    let (mut world, name) = deployment(1, &json!(1), &json!(0));
    settle(&mut world, &name);
    set_image(&mut world, &name, "broken");
    for _ in 0..5 {
        step(&mut world, &name);
        step_sets(&mut world);
    }
    world.now += 700;
    step(&mut world, &name);
    assert_eq!(reason(&world, &name, "Progressing"), "ProgressDeadlineExceeded");
    assert_eq!(reason(&world, &name, "Available"), "MinimumReplicasAvailable");
}

#[test]
fn orphaned_sets_of_the_same_template_are_adopted() {
    let (mut world, name) = deployment(3, &json!(1), &json!(0));
    settle(&mut world, &name);
    let set = world.all::<ReplicaSet>().keys().next().cloned().expect("made");
    let orphan = json!({"metadata": {"ownerReferences": null}});
    world.edit(ObjectKind::ReplicaSet, &set, &orphan);
    let pods = world.all::<Pod>().len();
    step(&mut world, &name);
    settle(&mut world, &name);
    assert!(world.all::<ReplicaSet>()[&set].controller().is_some());
    assert_eq!((world.all::<ReplicaSet>().len(), world.all::<Pod>().len()), (1, pods));
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 24, max_shrink_iters: 64, failure_persistence: None, ..Default::default() })]
    /// Whatever the order of events, a rolling update keeps to its surge and to its minimum of available pods.
    #[test]
    fn rolling_updates_keep_their_bounds(
        replicas in 1..8_i32,
        surge in 0..3_i32,
        unavailable in 0..3_i32,
        moves in prop::collection::vec(any::<(u8, u8)>(), 1..60),
    ) {
        let (mut world, name) = deployment(replicas, &json!(surge), &json!(unavailable));
        settle(&mut world, &name);
        let unavailable = if surge + unavailable == 0 { 1 } else { unavailable };
        let mut images = 0;
        for (what, which) in moves {
            match what % 8 {
                0 | 1 => step(&mut world, &name),
                2 | 3 => step_sets(&mut world),
                4 => {
                    images += 1;
                    set_image(&mut world, &name, &format!("image-{}", images % 4));
                }
                _ => {
                    let pods = world.all::<Pod>();
                    if let Some(pod) = pods.keys().nth(usize::from(which) % pods.len().max(1)) {
                        world.set_ready(pod, true);
                    }
                }
            }
            let pods = world.all::<Pod>();
            let ready = pods.values().filter(|pod| podfacts::is_ready(pod)).count();
            prop_assert!(pods.len() <= usize::try_from(replicas + surge).unwrap_or(0));
            prop_assert!(ready >= usize::try_from((replicas - unavailable).max(0)).unwrap_or(0));
        }
        settle(&mut world, &name);
        prop_assert!(world.all::<Pod>().len() == usize::try_from(replicas).unwrap_or(0));
        prop_assert!(reason(&world, &name, "Progressing") == "NewReplicaSetAvailable");
    }
}
