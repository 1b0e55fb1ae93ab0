//! Pods by the states of their containers.

use serde_json::{Value, json};

use super::cells;

/// `READY`, `STATUS` and `RESTARTS` of a pod with two init containers, the second a sidecar, and one container.
fn shown(deleted: bool, status: &Value) -> Vec<String> {
    let init = json!([{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]);
    let mut pod =
        json!({"spec": {"containers": [{"name": "a"}], "initContainers": init}, "status": status});
    if deleted {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-10T12:00:00Z");
    }
    cells("", "pods", &pod, &["Ready", "Status", "Restarts"])
}

fn waiting(name: &str, reason: &str, restarts: i32) -> Value {
    json!({"name": name, "restartCount": restarts, "state": {"waiting": {"reason": reason}}})
}

fn done(name: &str) -> Value {
    json!({"name": name, "restartCount": 1, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}})
}

fn sidecar(restarts: i32) -> Value {
    json!({"name": "s", "restartCount": restarts, "ready": true, "started": true, "state": {"running": {}},
        "lastState": {"terminated": {"finishedAt": "2026-01-10T11:50:00Z"}}})
}

fn ended(terminated: &Value) -> Value {
    json!({"name": "a", "restartCount": 0, "state": {"terminated": terminated}})
}

#[test]
fn init_containers_count_up_to_the_first_that_is_not_done() {
    let main = json!([waiting("a", "PodInitializing", 0)]);
    for (init, expected) in [
        (
            json!([waiting("i", "PodInitializing", 0), waiting("s", "PodInitializing", 0)]),
            ["0/2", "Init:0/2", "0"],
        ),
        (
            json!([waiting("i", "ImagePullBackOff", 1), sidecar(5)]),
            ["0/2", "Init:ImagePullBackOff", "1"],
        ),
        (json!([done("i"), waiting("s", "PodInitializing", 0)]), ["0/2", "Init:1/2", "1"]),
        (
            json!([{"name": "i", "restartCount": 0, "state": {"terminated": {"exitCode": 2}}}]),
            ["0/2", "Init:ExitCode:2", "0"],
        ),
        (
            json!([{"name": "i", "restartCount": 0, "state": {"terminated": {"exitCode": 137, "signal": 9}}}]),
            ["0/2", "Init:Signal:9", "0"],
        ),
        (json!([done("i"), sidecar(0)]), ["1/2", "PodInitializing", "0"]),
        (json!([done("i"), sidecar(2)]), ["1/2", "PodInitializing", "2 (10m ago)"]),
    ] {
        let status =
            json!({"phase": "Pending", "initContainerStatuses": init, "containerStatuses": main});
        assert_eq!(shown(false, &status), expected, "{init}");
    }
}

#[test]
fn a_sidecar_that_fails_later_shows_and_ready_containers_count() {
    let status = json!({
        "phase": "Running", "conditions": [{"type": "Initialized", "status": "True"}],
        "initContainerStatuses": [done("i"), waiting("s", "CrashLoopBackOff", 3)],
        "containerStatuses": [{"name": "a", "restartCount": 0, "ready": true, "state": {"running": {}}}],
    });
    assert_eq!(shown(false, &status), ["1/2", "Init:CrashLoopBackOff", "3"]);
}

#[test]
fn containers_show_why_they_do_not_run() {
    let init = json!([done("i"), sidecar(0)]);
    for (phase, main, expected) in [
        ("Pending", waiting("a", "ContainerCreating", 0), "ContainerCreating"),
        ("Pending", waiting("a", "ErrImagePull", 0), "ErrImagePull"),
        ("Pending", waiting("a", "CreateContainerConfigError", 0), "CreateContainerConfigError"),
        ("Failed", ended(&json!({"reason": "OOMKilled", "exitCode": 137})), "OOMKilled"),
        ("Failed", ended(&json!({"signal": 15, "exitCode": 143})), "Signal:15"),
        ("Failed", ended(&json!({"exitCode": 3})), "ExitCode:3"),
    ] {
        let status =
            json!({"phase": phase, "initContainerStatuses": init, "containerStatuses": [main]});
        assert_eq!(shown(false, &status), ["1/2", expected, "0"], "{status}");
    }
}

#[test]
fn pods_that_go_say_so_until_they_are_over() {
    for (phase, reason, expected) in [
        ("Running", "", "Terminating"),
        ("Running", "NodeLost", "Unknown"),
        ("Succeeded", "", "Succeeded"),
        ("Failed", "Evicted", "Evicted"),
    ] {
        let status = json!({"phase": phase, "reason": reason});
        assert_eq!(shown(true, &status)[1], expected, "{status}");
    }
}
