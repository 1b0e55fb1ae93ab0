//! Numbers against upstream's: whole, in percent, of several controllers, and while evictions are under way.

use serde_json::{Value, json};

use super::*;
use crate::action::ObjectKind;
use crate::world::World;

fn snapshot(world: &World) -> Snapshot {
    Snapshot {
        budgets: world.all(),
        pods: world.all(),
        deployments: world.all(),
        replica_sets: world.all(),
        stateful_sets: world.all(),
        now: world.time(),
    }
}

fn budget(world: &mut World, spec: Value) -> Name {
    let mut all = json!({"selector": {"matchLabels": {"app": "web"}}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    world.add::<PodDisruptionBudget>(json!({
        "metadata": {"name": "web", "namespace": "a", "generation": 1}, "spec": all,
    }))
}

fn pod(world: &mut World, name: &str, owner: Option<(&str, &str, &str)>, ready: bool) -> Name {
    let owners = owner.map(|(kind, name, uid)| {
        json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true}])
    });
    let status = if ready { "True" } else { "False" };
    world.add::<Pod>(json!({
        "metadata": {"name": name, "namespace": "a", "labels": {"app": "web"}, "ownerReferences": owners},
        "spec": {"containers": []},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]},
    }))
}

/// A StatefulSet with so many wanted and ready pods.
fn set(world: &mut World, name: &str, wanted: i32, ready: usize) {
    let key = world.add::<StatefulSet>(json!({
        "metadata": {"name": name, "namespace": "a"},
        "spec": {"replicas": wanted, "serviceName": "x", "selector": {}, "template": {}},
    }));
    let uid = world.all::<StatefulSet>()[&key].uid().to_owned();
    for at in 0..usize::try_from(wanted).unwrap() {
        pod(world, &format!("{name}-{at}"), Some(("StatefulSet", name, &uid)), at < ready);
    }
}

/// Expected, desired, healthy, allowed.
fn numbers(world: &mut World, key: &Name) -> [i32; 4] {
    let plan = plan(&snapshot(world), key);
    world.apply(plan);
    assert!(super::plan(&snapshot(world), key).actions.is_empty(), "written once");
    let budget = world.all::<PodDisruptionBudget>()[key].clone();
    let status = budget.status.as_ref().expect("written");
    [
        status.expected_pods.unwrap_or(-1),
        status.desired_healthy.unwrap_or(-1),
        status.current_healthy.unwrap_or(-1),
        status.disruptions_allowed.unwrap_or(-1),
    ]
}

fn reason(world: &World, key: &Name) -> (String, String) {
    let budget = world.all::<PodDisruptionBudget>()[key].clone();
    let conditions = budget.status.as_ref().and_then(|status| status.conditions.clone());
    let condition = conditions.unwrap_or_default().pop().expect("there is one");
    (condition.status, condition.reason)
}

#[test]
fn budgets_count_as_upstream() {
    for (spec, wanted, ready, numbers_wanted) in [
        (json!({"minAvailable": 2}), 3, 3, [3, 2, 3, 1]),
        (json!({"minAvailable": 2}), 3, 2, [3, 2, 2, 0]),
        (json!({"minAvailable": 5}), 3, 3, [3, 5, 3, 0]),
        (json!({"minAvailable": "50%"}), 3, 3, [3, 2, 3, 1]),
        (json!({"minAvailable": "100%"}), 3, 3, [3, 3, 3, 0]),
        (json!({"maxUnavailable": 1}), 3, 3, [3, 2, 3, 1]),
        (json!({"maxUnavailable": 1}), 3, 1, [3, 2, 1, 0]),
        (json!({"maxUnavailable": "30%"}), 10, 10, [10, 7, 10, 3]),
        (json!({"maxUnavailable": "25%"}), 3, 3, [3, 2, 3, 1]),
        (json!({"maxUnavailable": 0}), 3, 3, [3, 3, 3, 0]),
        (json!({}), 3, 3, [0, 0, 3, 0]),
    ] {
        let mut world = World::at(1000);
        set(&mut world, "db", wanted, ready);
        let key = budget(&mut world, spec.clone());
        assert_eq!(numbers(&mut world, &key), numbers_wanted, "{spec}, {ready} of {wanted}");
        let said = if numbers_wanted[3] > 0 {
            ("True", "SufficientPods")
        } else {
            ("False", "InsufficientPods")
        };
        assert_eq!(reason(&world, &key), (said.0.to_owned(), said.1.to_owned()));
    }
}

#[test]
fn a_deployment_counts_once_for_all_its_replica_sets() {
    let mut world = World::at(1000);
    let template = json!({});
    let deployment = world.add::<Deployment>(json!({
        "metadata": {"name": "web", "namespace": "a"},
        "spec": {"replicas": 4, "selector": {}, "template": template},
    }));
    let uid = world.all::<Deployment>()[&deployment].uid().to_owned();
    for (set, count) in [("web-old", 1), ("web-new", 3)] {
        let key = world.add::<ReplicaSet>(json!({
            "metadata": {"name": set, "namespace": "a", "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": uid, "controller": true}]},
            "spec": {"replicas": count, "selector": {}},
        }));
        let uid = world.all::<ReplicaSet>()[&key].uid().to_owned();
        for at in 0..count {
            pod(&mut world, &format!("{set}-{at}"), Some(("ReplicaSet", set, &uid)), true);
        }
    }
    let key = budget(&mut world, json!({"maxUnavailable": "50%"}));
    assert_eq!(numbers(&mut world, &key), [4, 2, 4, 2]);
}

#[test]
fn what_cannot_be_reckoned_allows_nothing() {
    let mut world = World::at(1000);
    pod(&mut world, "p", Some(("DaemonSet", "agents", "u")), true);
    let key = budget(&mut world, json!({"maxUnavailable": 1}));
    assert_eq!(numbers(&mut world, &key)[3], 0);
    assert_eq!(reason(&world, &key), ("False".to_owned(), "SyncFailed".to_owned()));
    let told = "Failed to calculate the number of expected pods: daemonsets.apps does not implement the scale subresource";
    assert_eq!(world.events, [told]);
}

#[test]
fn pods_without_a_controller_count_for_whole_numbers_alone() {
    let mut world = World::at(1000);
    pod(&mut world, "p", None, true);
    pod(&mut world, "q", None, true);
    let key = budget(&mut world, json!({"minAvailable": 1}));
    assert_eq!(numbers(&mut world, &key), [2, 1, 2, 1]);
    world.edit(ObjectKind::PodDisruptionBudget, &key, &json!({"spec": {"minAvailable": "50%"}}));
    assert_eq!(numbers(&mut world, &key), [0, 0, 2, 0]);
    assert!(world.events.concat().contains("(selector: app=web) were found to be unmanaged."));
}

#[test]
fn an_eviction_counts_until_its_pod_goes_or_for_two_minutes() {
    let mut world = World::at(1000);
    set(&mut world, "db", 3, 3);
    let key = budget(&mut world, json!({"minAvailable": 1}));
    assert_eq!(numbers(&mut world, &key), [3, 1, 3, 2]);
    let evicted =
        json!({"status": {"disruptionsAllowed": 1, "disruptedPods": {"db-0": world.time()}}});
    world.edit(ObjectKind::PodDisruptionBudget, &key, &evicted);
    assert_eq!(numbers(&mut world, &key), [3, 1, 2, 1]);
    assert_eq!(plan(&snapshot(&world), &key).again, Some(Duration::from_secs(120)));
    world.now += 121;
    assert_eq!(numbers(&mut world, &key), [3, 1, 3, 2]);
    assert_eq!(world.events, ["Pod was expected by PDB a/web to be deleted but it wasn't"]);
}
