//! Pod CIDRs, silence, taints and eviction.

use serde_json::json;

use super::*;
use crate::action::ObjectKind;
use crate::world::World;

fn world() -> (World, Name) {
    let mut world = World::at(1000);
    let node = world.add::<Node>(json!({
        "metadata": {"name": "n1"},
        "status": {"conditions": [{"type": "Ready", "status": "True",
            "lastHeartbeatTime": "1970-01-01T00:16:40Z"}]},
    }));
    (world, node)
}

fn step(world: &mut World, node: &Name) -> Plan {
    let snapshot = Snapshot {
        nodes: world.all(),
        leases: Objects::new(),
        pods: world.all(),
        pod_cidr: "10.244.0.0/16".into(),
        grace: Duration::from_secs(40),
        started: Timestamp::UNIX_EPOCH,
        now: world.time(),
    };
    let plan = plan(&snapshot, node);
    world.apply(plan.clone());
    plan
}

fn taints_of(world: &World, node: &Name) -> Vec<String> {
    let node = world.all::<Node>()[node].clone();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect()
}

#[test]
fn each_node_gets_the_first_free_range() {
    assert_eq!(allocate("10.244.0.0/16", std::iter::empty()).as_deref(), Some("10.244.0.0/24"));
    let taken = ["10.244.0.0/24", "10.244.2.0/24"].map(str::to_owned).into_iter();
    assert_eq!(allocate("10.244.0.0/16", taken).as_deref(), Some("10.244.1.0/24"));
    assert_eq!(allocate("10.0.0.0/24", ["10.0.0.0/24".to_owned()].into_iter()), None);
    assert_eq!(allocate("10.0.0.0/25", std::iter::empty()), None);
    let (mut world, node) = world();
    step(&mut world, &node);
    let spec = world.all::<Node>()[&node].spec.clone().expect("set");
    assert_eq!(spec.pod_cidrs, Some(vec!["10.244.0.0/24".to_owned()]));
}

#[test]
fn a_silent_node_is_unreachable_and_loses_its_pods() {
    let (mut world, node) = world();
    let quick = world.add::<Pod>(json!({
        "metadata": {"name": "quick", "namespace": "a"},
        "spec": {"nodeName": "n1", "containers": [], "tolerations": [
            {"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]},
    }));
    let patient = world.add::<Pod>(json!({
        "metadata": {"name": "patient", "namespace": "a"},
        "spec": {"nodeName": "n1", "containers": [], "tolerations": [{"operator": "Exists"}]},
    }));
    world.set_ready(&quick, true);
    step(&mut world, &node);
    assert_eq!(step(&mut world, &node).again, Some(Duration::from_secs(40)));
    world.now += 41;
    for _ in 0..3 {
        step(&mut world, &node);
    }
    let both = ["unreachable:NoSchedule", "unreachable:NoExecute"];
    assert_eq!(taints_of(&world, &node), both.map(|one| format!("node.kubernetes.io/{one}")));
    assert!(!podfacts::is_ready(&world.all::<Pod>()[&quick]));
    assert!(!world.all::<Pod>()[&quick].is_deleting());
    assert_eq!(step(&mut world, &node).again, Some(Duration::from_secs(5)));
    world.now += 5;
    step(&mut world, &node);
    assert!(world.all::<Pod>()[&quick].is_deleting());
    assert!(!world.all::<Pod>()[&patient].is_deleting());
    let time = world.time().to_string();
    let ready = json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": time}]);
    world.edit(ObjectKind::Node, &node, &json!({"status": {"conditions": ready}}));
    step(&mut world, &node);
    assert!(taints_of(&world, &node).is_empty());
}

#[test]
fn pods_of_vanished_nodes_fail_and_go() {
    let (mut world, node) = world();
    world.add::<Pod>(json!({
        "metadata": {"name": "p", "namespace": "a"}, "spec": {"nodeName": "n1", "containers": []},
    }));
    let snapshot = |world: &World| orphans::Snapshot {
        pods: world.all(),
        nodes: world.all(),
        now: world.time(),
    };
    assert!(orphans::plan(&snapshot(&world)).is_empty());
    world.remove(ObjectKind::Node, &node);
    let plans = orphans::plan(&snapshot(&world));
    assert!(matches!(
        plans["n1"].actions.as_slice(),
        [Action::UpdateStatus(_), Action::Delete { grace: Some(0), .. }]
    ));
}
