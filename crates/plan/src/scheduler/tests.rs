//! Filters with upstream's words, scores, claims, and a property: nothing is ever overcommitted.

use proptest::prelude::prop;
use proptest::{prop_assert, proptest};
use serde_json::{Value, json};

use super::*;
use crate::action::ObjectKind;
use crate::world::World;

fn snapshot(world: &World) -> Snapshot {
    Snapshot {
        pods: world.all(),
        nodes: world.all(),
        namespaces: world.all(),
        claims: world.all(),
        volumes: world.all(),
        classes: world.all(),
        services: world.all(),
        replica_sets: world.all(),
        stateful_sets: world.all(),
        assumed: BTreeMap::new(),
        now: world.time(),
    }
}

fn node(world: &mut World, name: &str, patch: Value) {
    let key = world.add::<Node>(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": "z1"}},
        "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "2Gi", "pods": "10"}},
    }));
    world.edit(ObjectKind::Node, &key, &patch);
}

fn pod(world: &mut World, name: &str, spec: Value) -> Name {
    let key = world.add::<Pod>(json!({
        "metadata": {"name": name, "namespace": "a", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c"}]},
    }));
    world.edit(ObjectKind::Pod, &key, &json!({ "spec": spec }));
    key
}

fn container(cpu: &str) -> Value {
    json!([{"name": "c", "resources": {"requests": {"cpu": cpu}}}])
}

fn schedule(world: &mut World) {
    let plan = plan(&snapshot(world));
    world.apply(plan);
}

fn node_of(world: &World, pod: &Name) -> String {
    podfacts::node_name(&world.all::<Pod>()[pod]).to_owned()
}

/// The message for one pod on nodes `n0`…, each changed by a patch.
fn refusal(spec: Value, nodes: &[Value]) -> String {
    let mut world = World::at(1000);
    for (index, patch) in nodes.iter().enumerate() {
        node(&mut world, &format!("n{index}"), patch.clone());
    }
    pod(&mut world, "p", spec);
    schedule(&mut world);
    let events = world.events.len();
    schedule(&mut world);
    assert_eq!(world.events.len(), events, "the reason is told once");
    world.events.concat()
}

#[test]
fn quantities_are_read_as_upstream() {
    for (text, expected) in [
        ("100m", 100),
        ("1", 1000),
        ("1.5", 1500),
        ("1Ki", 1_024_000),
        ("1k", 1_000_000),
        ("1e3", 1_000_000),
        ("1n", 1),
        ("0", 0),
        ("x", 0),
    ] {
        assert_eq!(milli(&api::Quantity(text.into())), expected, "{text}");
    }
}

#[test]
fn nothing_fits_is_said_in_words() {
    let taint = json!({"spec": {"taints": [{"key": "a", "value": "b", "effect": "NoSchedule"}]}});
    assert_eq!(
        refusal(
            json!({"containers": container("1500m")}),
            &[json!({"status": {"allocatable": {"cpu": "1"}}}), taint.clone(), taint,]
        ),
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s). no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
    );
    assert_eq!(
        refusal(
            json!({"nodeSelector": {"disk": "ssd"}}),
            &[json!({"spec": {"unschedulable": true}}), json!({})]
        ),
        "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) were unschedulable. no new claims to deallocate, preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    );
    assert_eq!(refusal(json!({}), &[]), "no nodes available to schedule pods");
    let claim = json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]});
    assert_eq!(
        refusal(claim, &[json!({})]),
        "0/1 nodes are available: persistentvolumeclaim \"data\" not found. no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
    );
}

#[test]
fn a_full_node_may_be_freed() {
    let mut world = World::at(1000);
    node(&mut world, "n1", json!({}));
    pod(&mut world, "first", json!({"containers": container("1500m")}));
    pod(&mut world, "second", json!({"containers": container("1500m")}));
    schedule(&mut world);
    assert_eq!(
        world.events,
        [
            "Successfully assigned a/first to n1",
            "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.",
        ]
    );
    world.remove(ObjectKind::Pod, &Name::new("a", "first"));
    schedule(&mut world);
    assert_eq!(node_of(&world, &Name::new("a", "second")), "n1");
}

#[test]
fn pods_that_fit_nowhere_keep_nobody_waiting() {
    let mut world = World::at(1000);
    node(&mut world, "n1", json!({}));
    for at in 0..2 * BATCH_MAX + 1 {
        pod(&mut world, &format!("a{at}"), json!({"nodeSelector": {"disk": "none"}}));
    }
    let last = pod(&mut world, "z", json!({}));
    let mut plans = 0;
    while let Some(again) = {
        let plan = plan(&snapshot(&world));
        let again = plan.again;
        world.apply(plan);
        again
    } {
        assert_eq!(again, NEXT_BATCH);
        plans += 1;
        assert!(plans < 10, "each plan brings it on");
    }
    assert_eq!(node_of(&world, &last), "n1");
    assert_eq!(plan(&snapshot(&world)), Plan::none(), "all are told");
}

#[test]
fn tolerations_affinity_ports_and_priority_are_honoured() {
    let mut world = World::at(1000);
    node(&mut world, "n1", json!({"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}}));
    node(&mut world, "n2", json!({"metadata": {"labels": {"disk": "ssd"}}}));
    let tolerant = json!({
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "DoesNotExist"}]}]}}},
    });
    let tolerant = pod(&mut world, "tolerant", tolerant);
    let ports =
        json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
    let low = pod(&mut world, "a-low", ports.clone());
    let high = pod(&mut world, "z-high", ports);
    world.edit(ObjectKind::Pod, &high, &json!({"spec": {"priority": 10}}));
    schedule(&mut world);
    assert_eq!(node_of(&world, &tolerant), "n1");
    assert_eq!((node_of(&world, &high), node_of(&world, &low)), ("n2".into(), String::new()));
    assert!(world.events.concat().contains("didn't have free ports for the requested pod ports"));
}

#[test]
fn replicas_spread_over_nodes_and_anti_affinity_keeps_them_apart() {
    let mut world = World::at(1000);
    for name in ["n1", "n2", "n3"] {
        node(&mut world, name, json!({}));
    }
    world.add::<Service>(json!({
        "metadata": {"name": "web", "namespace": "a"}, "spec": {"selector": {"app": "web"}},
    }));
    let pods: Vec<_> = (0..6).map(|at| pod(&mut world, &format!("p{at}"), json!({}))).collect();
    schedule(&mut world);
    let mut used: Vec<_> = pods.iter().map(|pod| node_of(&world, pod)).collect();
    used.sort();
    assert_eq!(used, ["n1", "n1", "n2", "n2", "n3", "n3"]);
    let term = json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]);
    pod(
        &mut world,
        "alone",
        json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}}),
    );
    schedule(&mut world);
    let told = world.events.last().expect("told");
    assert!(
        told.starts_with(
            "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules."
        ),
        "{told}"
    );
}

#[test]
fn hard_spreading_keeps_the_skew() {
    let mut world = World::at(1000);
    node(&mut world, "n1", json!({}));
    node(&mut world, "n2", json!({"status": {"allocatable": {"cpu": "100m"}}}));
    let spread = json!({
        "containers": container("100m"),
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}],
    });
    for at in 0..4 {
        pod(&mut world, &format!("p{at}"), spread.clone());
    }
    schedule(&mut world);
    let told = world.events.last().expect("told");
    assert!(told.starts_with("0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match pod topology spread constraints."), "{told}");
}

#[test]
fn a_claim_is_made_on_the_chosen_node_before_the_pod_is_bound() {
    let mut world = World::at(1000);
    node(&mut world, "n1", json!({}));
    world.add::<StorageClass>(json!({
        "metadata": {"name": "local"}, "provisioner": crate::volumes::PROVISIONER,
        "volumeBindingMode": "WaitForFirstConsumer",
    }));
    let claim = world.add::<PersistentVolumeClaim>(json!({
        "metadata": {"name": "data", "namespace": "a"},
        "spec": {"storageClassName": "local", "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}},
    }));
    let volumes =
        json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]});
    let pod = pod(&mut world, "p", volumes);
    let settle = |world: &mut World| {
        for _ in 0..8 {
            schedule(world);
            let snapshot = |world: &World| crate::volumes::Snapshot {
                claims: world.all(),
                volumes: world.all(),
                classes: world.all(),
                pods: world.all(),
                nodes: world.all(),
                directory: "/data/{node}".into(),
            };
            let key = crate::volumes::Key::Claim(claim.clone());
            let plan = crate::volumes::plan(&snapshot(world), &key);
            world.apply(plan);
            for volume in world.all::<PersistentVolume>().keys() {
                let key = crate::volumes::Key::Volume(volume.clone());
                let plan = crate::volumes::plan(&snapshot(world), &key);
                world.apply(plan);
            }
        }
    };
    settle(&mut world);
    assert_eq!(node_of(&world, &pod), "n1");
    let bound = world.all::<PersistentVolumeClaim>()[&claim].clone();
    assert_eq!(bound.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Bound"));
    let volume = world.all::<PersistentVolume>().values().next().cloned().expect("made");
    let path =
        volume.spec.as_ref().and_then(|spec| spec.local.as_ref()).map(|one| one.path.clone());
    assert_eq!(path, Some(format!("/data/n1/{}", volume.name())));
    world.delete(ObjectKind::PersistentVolumeClaim, &claim);
    settle(&mut world);
    assert!(world.all::<PersistentVolumeClaim>().contains_key(&claim), "still in use");
    world.remove(ObjectKind::Pod, &pod);
    settle(&mut world);
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 24, max_shrink_iters: 64, failure_persistence: None, ..Default::default() })]
    /// Whatever pods come, no node is ever given more than it has.
    #[test]
    fn nodes_are_never_overcommitted(
        sizes in prop::collection::vec((1..1500_u32, 1..900_u32), 1..30),
        nodes in 1..5_u32,
    ) {
        let mut world = World::at(1000);
        for at in 0..nodes {
            node(&mut world, &format!("n{at}"), json!({"status": {"allocatable": {"pods": "4"}}}));
        }
        for (at, (cpu, memory)) in sizes.iter().enumerate() {
            let requests = json!({"cpu": format!("{cpu}m"), "memory": format!("{memory}Mi")});
            let containers = json!([{"name": "c", "resources": {"requests": requests}}]);
            pod(&mut world, &format!("p{at}"), json!({"containers": containers}));
        }
        schedule(&mut world);
        let snapshot = snapshot(&world);
        for info in Cluster::new(&snapshot).nodes {
            prop_assert!(info.pods.len() <= 4);
            for (name, amount) in &info.requested {
                prop_assert!(*amount <= info.allocatable[name]);
            }
        }
    }
}
