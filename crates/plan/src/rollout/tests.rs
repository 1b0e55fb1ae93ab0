//! Rollouts judged from what is left of them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::action::Known;
use crate::workloads::deployment::REVISION;
use crate::workloads::revisions::REVISION_HASH;

/// Some time after everything below happened.
const NOW: i64 = 1_000;

fn stamp(second: i64) -> String {
    Timestamp::from_second(second).unwrap().to_string()
}

fn put<K: Known>(objects: &mut Objects<K>, value: Value) {
    let object: K = serde_json::from_value(value).unwrap();
    objects.insert(object.object_name(), Arc::new(object));
}

fn owner(kind: &str, name: &str) -> Value {
    json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": name, "controller": true}])
}

fn pod(snapshot: &mut Snapshot, name: &str, (kind, of): (&str, &str), reached: &str) {
    put(
        &mut snapshot.pods,
        json!({
            "metadata": {"namespace": "a", "name": name, "uid": name, "ownerReferences": owner(kind, of),
                "labels": {REVISION_HASH: "db-two"}},
            "status": {"conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": stamp(NOW - 60)},
                {"type": crate::guard::REACHABLE, "status": reached}]},
        }),
    );
}

fn event(events: &mut Objects<Event>, number: i64, (kind, of): (&str, &str), second: i64) {
    let name = format!("pod-{number}.x");
    let event: Event = serde_json::from_value(json!({
        "metadata": {"namespace": "a", "name": name}, "involvedObject": {},
        "related": {"kind": kind, "name": of}, "lastTimestamp": stamp(second),
    }))
    .unwrap();
    events.insert(event.object_name(), Arc::new(event));
}

/// A Deployment of two pods, whose second revision was made at second 500 and is out since 900.
fn deployed() -> Snapshot {
    let mut snapshot =
        Snapshot { now: Timestamp::from_second(NOW).unwrap(), ..Snapshot::default() };
    put(
        &mut snapshot.deployments,
        json!({
            "metadata": {"namespace": "a", "name": "web", "uid": "web", "generation": 2, "annotations": {REVISION: "2"}},
            "spec": {"replicas": 2, "selector": {}, "template": {}},
            "status": {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "conditions": [
                {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable", "lastUpdateTime": stamp(900)}]},
        }),
    );
    for (set, revision, second) in [("web-one", "1", 100), ("web-two", "2", 500)] {
        put(
            &mut snapshot.replica_sets,
            json!({"metadata": {"namespace": "a", "name": set, "uid": set, "creationTimestamp": stamp(second),
                "ownerReferences": owner("Deployment", "web"), "annotations": {REVISION: revision}}}),
        );
    }
    for name in ["web-two-a", "web-two-b"] {
        pod(&mut snapshot, name, ("ReplicaSet", "web-two"), "True");
    }
    snapshot
}

fn web() -> Key {
    Key::Deployment(Name::new("a", "web"))
}

/// Reason and message of the event, and the new status.
fn told(plan: &Plan) -> (&'static str, String, Value) {
    let [Action::UpdateStatus(object), Action::Event(notice)] = plan.actions.as_slice() else {
        panic!("{plan:?}")
    };
    let status = serde_json::to_value(object).unwrap()["status"].clone();
    assert_eq!(notice.warning, notice.reason == "RolloutNotLossless");
    (notice.reason, notice.message.clone(), status)
}

#[test]
fn a_rollout_is_told_once_with_its_counts() {
    let mut snapshot = deployed();
    event(&mut snapshot.stopped, 1, ("ReplicaSet", "web-one"), 600);
    event(&mut snapshot.stopped, 2, ("ReplicaSet", "web-one"), 700);
    event(&mut snapshot.stopped, 3, ("ReplicaSet", "web-one"), 400); // scaled down before
    event(&mut snapshot.stopped, 4, ("ReplicaSet", "web-two"), 650); // of the new revision
    event(&mut snapshot.stopped, 5, ("ReplicaSet", "other-one"), 650);
    let first = plan(&snapshot, &web());
    let (reason, message, status) = told(&first);
    assert_eq!(reason, "RolloutLossless");
    assert_eq!(
        message,
        "Revision 2: 2 of 2 pods ended when no node sent them new connections any more; 2 of 2 pods that began are reached from every node"
    );
    let condition = &status["conditions"][1];
    assert_eq!((&condition["type"], &condition["status"]), (&json!(LOSSLESS), &json!("True")));
    assert_eq!(status["conditions"][0]["type"], "Progressing", "others stay");

    let Action::UpdateStatus(object) = &first.actions[0] else { panic!() };
    put(&mut snapshot.deployments, serde_json::to_value(object).unwrap());
    assert_eq!(plan(&snapshot, &web()), Plan::none());
}

#[test]
fn a_rollout_that_was_overtaken_counts_with_the_next() {
    let mut snapshot = deployed();
    let mut deployment = Deployment::clone(&snapshot.deployments[&Name::new("a", "web")]);
    deployment.metadata.annotations = Some([(REVISION.to_owned(), "3".to_owned())].into());
    snapshot.deployments.insert(deployment.object_name(), Arc::new(deployment));
    put(
        &mut snapshot.replica_sets,
        json!({"metadata": {"namespace": "a", "name": "web-three", "uid": "web-three", "creationTimestamp": stamp(800),
            "ownerReferences": owner("Deployment", "web"), "annotations": {REVISION: "3"}}}),
    );
    snapshot.pods = Objects::new();
    pod(&mut snapshot, "web-three-a", ("ReplicaSet", "web-three"), "True");
    event(&mut snapshot.stopped, 1, ("ReplicaSet", "web-one"), 600);
    event(&mut snapshot.stopped, 2, ("ReplicaSet", "web-two"), 850);
    let (_, message, _) = told(&plan(&snapshot, &web()));
    assert!(message.starts_with("Revision 3: 2 of 2 pods ended"), "{message}");
}

#[test]
fn who_ended_without_everybodys_word_is_counted() {
    let mut snapshot = deployed();
    event(&mut snapshot.stopped, 1, ("ReplicaSet", "web-one"), 600);
    event(&mut snapshot.not_stopped, 2, ("ReplicaSet", "web-one"), 700);
    let (reason, message, status) = told(&plan(&snapshot, &web()));
    assert_eq!(reason, "RolloutNotLossless");
    assert!(message.contains("1 of 2 pods ended"), "{message}");
    assert_eq!(status["conditions"][1]["status"], "False");
}

#[test]
fn the_last_old_pod_and_the_last_event_are_waited_for() {
    let mut snapshot = deployed();
    event(&mut snapshot.stopped, 1, ("ReplicaSet", "web-one"), 600);
    pod(&mut snapshot, "web-one-c", ("ReplicaSet", "web-one"), "False");
    assert_eq!(plan(&snapshot, &web()), Plan::none(), "an old pod is still there");

    let mut snapshot = deployed();
    event(&mut snapshot.stopped, 1, ("ReplicaSet", "web-one"), 600);
    snapshot.now = Timestamp::from_second(901).unwrap();
    let soon = Plan { again: Some(Duration::from_secs(1)), ..Plan::none() };
    assert_eq!(plan(&snapshot, &web()), soon);
}

#[test]
fn what_is_not_over_or_behind_no_service_is_not_told() {
    let mut unfinished = deployed();
    event(&mut unfinished.stopped, 1, ("ReplicaSet", "web-one"), 600);
    let mut deployment = Deployment::clone(&unfinished.deployments[&Name::new("a", "web")]);
    deployment.status.get_or_insert_default().available_replicas = Some(1);
    unfinished.deployments.insert(deployment.object_name(), Arc::new(deployment));
    assert_eq!(plan(&unfinished, &web()), Plan::none());
    assert_eq!(plan(&deployed(), &web()), Plan::none(), "no agent told of a pod that went");
}

#[test]
fn stateful_sets_are_told_of_too() {
    let mut snapshot =
        Snapshot { now: Timestamp::from_second(NOW).unwrap(), ..Snapshot::default() };
    put(
        &mut snapshot.stateful_sets,
        json!({
            "metadata": {"namespace": "a", "name": "db", "uid": "db", "generation": 2},
            "spec": {"replicas": 1, "selector": {}, "template": {}, "serviceName": "db"},
            "status": {"observedGeneration": 2, "replicas": 1, "availableReplicas": 1,
                "currentRevision": "db-two", "updateRevision": "db-two"},
        }),
    );
    put(
        &mut snapshot.revisions,
        json!({"metadata": {"namespace": "a", "name": "db-two", "creationTimestamp": stamp(500),
            "ownerReferences": owner("StatefulSet", "db")}, "revision": 2}),
    );
    pod(&mut snapshot, "db-0", ("StatefulSet", "db"), "True");
    event(&mut snapshot.stopped, 1, ("StatefulSet", "db"), 600);
    let (reason, message, _) = told(&plan(&snapshot, &Key::StatefulSet(Name::new("a", "db"))));
    assert_eq!(reason, "RolloutLossless");
    assert!(message.starts_with("Revision 2: 1 of 1 pods ended"), "{message}");
}

#[test]
fn a_pod_leads_to_its_workload() {
    let snapshot = deployed();
    let pod = |kind, of| -> Pod {
        serde_json::from_value(json!({"metadata": {"namespace": "a", "name": "x", "ownerReferences": owner(kind, of)}})).unwrap()
    };
    let of = |pod| workload(&snapshot.replica_sets, &pod);
    assert_eq!(of(pod("ReplicaSet", "web-two")), Some(web()));
    assert_eq!(of(pod("StatefulSet", "db")), Some(Key::StatefulSet(Name::new("a", "db"))));
    assert_eq!(of(pod("Job", "x")), None);
    assert_eq!(of(Pod::default()), None);
}
