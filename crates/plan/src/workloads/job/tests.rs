//! Completions, back-off limit, indexes, and DaemonSets beside them.

use serde_json::json;

use super::*;
use crate::workloads::daemonset;
use crate::world::World;

fn job(spec: &serde_json::Value) -> (World, Name) {
    let mut world = World::at(1000);
    let name = world.add::<Job>(json!({
        "metadata": {"name": "j", "namespace": "a"},
        "spec": {
            "selector": {"matchLabels": {"job": "j"}},
            "template": {"metadata": {"labels": {"job": "j"}},
                "spec": {"containers": [{"name": "c"}]}},
        },
    }));
    world.edit(ObjectKind::Job, &name, &json!({ "spec": spec }));
    (world, name)
}

fn step(world: &mut World, name: &Name) {
    let snapshot = Snapshot { jobs: world.all(), pods: world.all(), now: world.time() };
    world.apply(plan(&snapshot, name));
}

fn end_all(world: &mut World, phase: &str) {
    for (name, pod) in &world.all::<Pod>() {
        if podfacts::is_active(pod) {
            world.edit(ObjectKind::Pod, name, &json!({"status": {"phase": phase}}));
        }
    }
}

fn condition(world: &World, name: &Name) -> Option<String> {
    world.all::<Job>().get(name).and_then(|job| finished(job).map(|one| one.type_.clone()))
}

#[test]
fn a_job_runs_until_its_completions_and_expires() {
    let spec = json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed", "ttlSecondsAfterFinished": 10});
    let (mut world, name) = job(&spec);
    step(&mut world, &name);
    assert_eq!(world.all::<Pod>().len(), 2);
    for _ in 0..3 {
        end_all(&mut world, "Succeeded");
        step(&mut world, &name);
    }
    assert_eq!((world.all::<Pod>().len(), condition(&world, &name)), (3, Some("Complete".into())));
    let status = world.all::<Job>()[&name].status.clone().expect("written");
    assert_eq!((status.succeeded, status.completed_indexes), (Some(3), Some("0-2".into())));
    world.now += 10;
    step(&mut world, &name);
    assert!(world.all::<Job>().is_empty());
}

#[test]
fn failures_beyond_the_limit_end_the_job() {
    let (mut world, name) = job(&json!({"completions": 1, "parallelism": 1, "backoffLimit": 1}));
    for _ in 0..3 {
        step(&mut world, &name);
        end_all(&mut world, "Failed");
    }
    step(&mut world, &name);
    assert_eq!(condition(&world, &name), Some("Failed".into()));
    assert_eq!(world.all::<Pod>().len(), 2);
    assert!(world.events.contains(&"Job has reached the specified backoff limit".to_owned()));
}

#[test]
fn a_daemon_runs_once_on_every_node_and_updates_one_by_one() {
    let mut world = World::at(1000);
    for name in ["n1", "n2"] {
        world.add::<api::core::Node>(json!({"metadata": {"name": name}, "spec": {}}));
    }
    let name = world.add::<api::apps::DaemonSet>(json!({
        "metadata": {"name": "d", "namespace": "a"},
        "spec": {"selector": {"matchLabels": {"d": "d"}}, "template": {
            "metadata": {"labels": {"d": "d"}}, "spec": {"containers": [{"name": "c", "image": "one"}]}}},
    }));
    let step = |world: &mut World| {
        let snapshot = daemonset::Snapshot {
            daemon_sets: world.all(),
            pods: world.all(),
            nodes: world.all(),
            revisions: world.all(),
            now: world.time(),
        };
        let plan = daemonset::plan(&snapshot, &name);
        world.apply(plan);
    };
    step(&mut world);
    assert_eq!(world.all::<Pod>().len(), 2);
    for pod in world.all::<Pod>().keys() {
        world.set_ready(pod, true);
    }
    step(&mut world);
    let containers = json!([{"name": "c", "image": "two"}]);
    let patch = json!({"spec": {"template": {"spec": {"containers": containers}}}});
    world.edit(ObjectKind::DaemonSet, &name, &patch);
    step(&mut world);
    assert_eq!(world.all::<Pod>().len(), 1, "one at a time");
    for _ in 0..6 {
        step(&mut world);
        for pod in world.all::<Pod>().keys() {
            world.set_ready(pod, true);
        }
    }
    step(&mut world);
    let status = world.all::<api::apps::DaemonSet>()[&name].status.clone().expect("written");
    assert_eq!((status.number_ready, status.updated_number_scheduled), (2, Some(2)));
}

fn end_index(world: &mut World, index: i32, status: &serde_json::Value) {
    for (name, pod) in &world.all::<Pod>() {
        if podfacts::is_active(pod) && index_of(pod) == Some(index) {
            world.edit(ObjectKind::Pod, name, &json!({ "status": status }));
        }
    }
}

fn exited(code: i32) -> serde_json::Value {
    json!({"phase": "Failed", "containerStatuses": [{"name": "c", "image": "", "imageID": "",
        "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": code}}}]})
}

fn ending(world: &World, name: &Name) -> (String, String) {
    let jobs = world.all::<Job>();
    let end = finished(&jobs[name]).expect("ended");
    (end.reason.clone().unwrap_or_default(), end.message.clone().unwrap_or_default())
}

#[test]
fn exit_codes_are_fatal_or_ignored_by_the_policy() {
    let rule = |action: &str, code: i32| json!({"action": action, "onExitCodes": {"operator": "In", "values": [code]}});
    let spec = json!({"completions": 1, "parallelism": 1, "completionMode": "Indexed", "backoffLimit": 0,
        "podFailurePolicy": {"rules": [rule("Ignore", 7), rule("FailJob", 42)]}});
    let (mut world, name) = job(&spec);
    step(&mut world, &name);
    end_index(&mut world, 0, &exited(7));
    step(&mut world, &name);
    assert_eq!((condition(&world, &name), world.all::<Pod>().len()), (None, 2), "ignored");
    end_index(&mut world, 0, &exited(42));
    step(&mut world, &name);
    let (reason, message) = ending(&world, &name);
    assert_eq!(reason, "PodFailurePolicy");
    let tail = " failed with exit code 42 matching FailJob rule at index 1";
    assert!(message.starts_with("Container c for pod a/") && message.ends_with(tail), "{message}");
}

#[test]
fn indexes_fail_on_their_own_and_a_success_policy_ends_the_job() {
    let spec = json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 0});
    let (mut world, name) = job(&spec);
    step(&mut world, &name);
    end_index(&mut world, 0, &json!({"phase": "Failed"}));
    step(&mut world, &name);
    assert_eq!((condition(&world, &name), world.all::<Pod>().len()), (None, 2));
    end_index(&mut world, 1, &json!({"phase": "Succeeded"}));
    step(&mut world, &name);
    assert_eq!(ending(&world, &name).0, "FailedIndexes");
    let status = world.all::<Job>()[&name].status.clone().expect("written");
    assert_eq!(status.failed_indexes.as_deref(), Some("0"));
    assert_eq!(status.completed_indexes.as_deref(), Some("1"));

    let spec = json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed",
        "successPolicy": {"rules": [{"succeededIndexes": "1-2", "succeededCount": 1}]}});
    let (mut world, name) = job(&spec);
    step(&mut world, &name);
    end_index(&mut world, 2, &json!({"phase": "Succeeded"}));
    step(&mut world, &name);
    let expected = ("SuccessPolicy".to_owned(), "Matched rules at index 0".to_owned());
    assert_eq!(ending(&world, &name), expected);
}

#[test]
fn a_suspended_job_says_so_and_starts_anew() {
    let (mut world, name) = job(
        &json!({"completions": 1, "parallelism": 1, "suspend": true, "activeDeadlineSeconds": 5}),
    );
    step(&mut world, &name);
    assert!(world.all::<Pod>().is_empty());
    assert!(is_true(world.all::<Job>()[&name].status.as_ref().expect("written"), "Suspended"));
    world.now += 60;
    world.edit(ObjectKind::Job, &name, &json!({"spec": {"suspend": false}}));
    step(&mut world, &name);
    let status = world.all::<Job>()[&name].status.clone().expect("written");
    assert_eq!(status.start_time.map(|time| time.0), Some(world.time()));
    assert_eq!((world.all::<Pod>().len(), condition(&world, &name)), (1, None));
    world.now += 5;
    step(&mut world, &name);
    assert_eq!(ending(&world, &name).0, "DeadlineExceeded");
    let status = world.all::<Job>()[&name].status.clone().expect("written");
    assert_eq!(status.failed, Some(1), "the pod that was taken down");
}
