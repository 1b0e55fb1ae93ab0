//! The kubelet on real containers, against an API server in memory. Needs root and Debian's busybox-static; each run has
//! its own directories, control group and network namespace, and leaves nothing behind.
//!
//! The binary is its own shim: `/proc/self/exe shim …`, so it has no test harness.

#![expect(
    clippy::unwrap_used,
    reason = "a test without the harness, which the lint does not recognise"
)]

mod fake_api;
mod image;
mod world;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use futures_util::FutureExt;
use serde_json::{Value, json};
use world::World;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|word| word == "shim") {
        return runtime::shim_main(&args[1..]);
    }
    if args.iter().any(|word| word == "--list") {
        if !args.iter().any(|word| word == "--ignored") {
            world::say("kubelet_runs_pods: test");
        }
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut world = World::new().await;
        let outcome = AssertUnwindSafe(story(&mut world)).catch_unwind().await;
        world.end().await;
        if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    })
}

async fn story(world: &mut World) {
    node_registers(world).await;
    pod_runs(world).await;
    volumes_follow_their_objects(world).await;
    crash_backs_off(world).await;
    pod_succeeds(world).await;
    missing_image_is_told(world).await;
    pod_survives_the_agent(world).await;
    pod_ends(world).await;
}

async fn node_registers(world: &World) {
    let ready = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Ready" && c["reason"] == "KubeletReady")
    };
    let node = world.until("nodes", "", "n1", ready).await;
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "n1");
    assert_eq!(node["status"]["capacity"]["pods"], "110");
    assert_eq!(node["status"]["addresses"][0]["address"], "192.0.2.1");
    let lease = world.until("leases", "kube-node-lease", "n1", |_| true).await;
    assert_eq!(lease["spec"]["holderIdentity"], "n1");
}

async fn pod_runs(world: &World) {
    world.api.put(
        "services",
        json!({
            "metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]},
        }),
    );
    world.api.put(
        "configmaps",
        json!({
            "metadata": {"name": "cm", "namespace": "default"}, "data": {"greeting": "hello"},
        }),
    );
    let script = "cat /etc/hosts /etc/resolv.conf /etc/hostname /cm/greeting /sa/token; env; touch /tmp/ok; exec sleep 1000";
    world.pod("web", json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "main", "image": "busybox:1", "command": ["sh", "-c", script],
            "env": [{"name": "WHO", "value": "$(HOSTNAME)-$(GREETING)"},
                    {"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "greeting"}}}],
            "volumeMounts": [{"name": "cm", "mountPath": "/cm"}, {"name": "sa", "mountPath": "/sa"},
                             {"name": "tmp", "mountPath": "/tmp"}],
            "readinessProbe": {"exec": {"command": ["cat", "/tmp/ok"]}},
            "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo hook > /tmp/hook"]}}},
        }],
        "volumes": [{"name": "cm", "configMap": {"name": "cm"}}, {"name": "tmp", "emptyDir": {}},
            {"name": "sa", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}],
    }));
    let ready = |pod: &Value| pod["status"]["containerStatuses"][0]["ready"] == true;
    let pod = world.until("pods", "default", "web", ready).await;
    let status = &pod["status"];
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIP"], "10.244.1.5");
    assert_eq!(status["qosClass"], "BestEffort");
    assert!(
        status["containerStatuses"][0]["containerID"].as_str().unwrap().starts_with("rhumb://")
    );
    let reasons = world.reasons("web", &["Pulled", "Created", "Started"]).await;
    assert_eq!(reasons, ["Pulled", "Created", "Started"]);

    let log = world.handle.log_path("default", "web", "main", false).unwrap();
    let text = world.read_until(&log, "SERVICE_HOST").await;
    for part in [
        "10.244.1.5\tweb",
        "search default.svc.cluster.local svc.cluster.local cluster.local",
        "nameserver 10.96.0.10",
        "hello",
        "the-token",
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
        "HOSTNAME=web",
        "GREETING=hello",
    ] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    assert!(world.handle.lookup("default", "web", "").unwrap().running);
}

async fn volumes_follow_their_objects(world: &World) {
    let mut map = world.api.get("configmaps", "default", "cm").unwrap();
    map["data"]["greeting"] = "changed".into();
    world.api.put("configmaps", map);
    let uid = world.api.get("pods", "default", "web").unwrap()["metadata"]["uid"].clone();
    let file = world.data().join("kubelet/pods").join(uid.as_str().unwrap());
    let file = file.join("volumes/kubernetes.io~configmap/cm/greeting");
    world.read_until(&file, "changed").await;
}

async fn crash_backs_off(world: &World) {
    world.pod(
        "crash",
        json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": "busybox:1",
                "command": ["sh", "-c", "echo bad > /dev/termination-log; exit 3"]}],
        }),
    );
    let waits = |pod: &Value| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    };
    let pod = world.until("pods", "default", "crash", waits).await;
    let main = &pod["status"]["containerStatuses"][0];
    assert_eq!(main["restartCount"], 1);
    assert_eq!(main["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(main["lastState"]["terminated"]["message"], "bad\n");
    assert!(world.handle.log_path("default", "crash", "main", true).is_ok());
}

async fn pod_succeeds(world: &World) {
    world.pod("once", json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "first", "image": "busybox:1", "command": ["true"]}],
        "containers": [{"name": "main", "image": "busybox:1", "command": ["sh", "-c", "exit 0"]}],
    }));
    let over = |pod: &Value| pod["status"]["phase"] == "Succeeded";
    let pod = world.until("pods", "default", "once", over).await;
    let first = &pod["status"]["initContainerStatuses"][0]["state"]["terminated"];
    assert_eq!(first["reason"], "Completed");
}

async fn missing_image_is_told(world: &World) {
    world.pod(
        "nope",
        json!({
            "containers": [{"name": "main", "image": "nope:1", "imagePullPolicy": "Never"}],
        }),
    );
    let waits = |pod: &Value| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImageNeverPull"
    };
    let pod = world.until("pods", "default", "nope", waits).await;
    assert_eq!(pod["status"]["phase"], "Pending");
}

async fn pod_survives_the_agent(world: &mut World) {
    let id = |world: &World| {
        let pod = world.api.get("pods", "default", "web").unwrap();
        pod["status"]["containerStatuses"][0]["containerID"].clone()
    };
    let before = id(world);
    world.stop_agent().await;
    world.api.remove("pods", "default", "once");
    world.start_agent().await;
    world
        .until_true(|| world.handle.lookup("default", "web", "main").is_ok_and(|c| c.running))
        .await;
    let ready = |pod: &Value| pod["status"]["containerStatuses"][0]["ready"] == true;
    let pod = world.until("pods", "default", "web", ready).await;
    assert_eq!(id(world), before, "the container was not restarted");
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    // The pod that was removed meanwhile is cleaned up.
    world.until_true(|| world.runtime().pods().len() == 3).await;
}

async fn pod_ends(world: &World) {
    for name in ["web", "crash", "nope"] {
        world.delete(name, 2).await;
    }
    for name in ["web", "crash", "nope"] {
        world.until_true(|| world.api.get("pods", "default", name).is_none()).await;
    }
    world.until_true(|| world.runtime().pods().is_empty()).await;
    let left = || std::fs::read_dir(world.data().join("kubelet/pods")).unwrap().count();
    world.until_true(|| left() == 0).await;
    world.until_true(|| world.handle.pods().is_empty()).await;
    let reasons = world.reasons("web", &["Killing"]).await;
    assert_eq!(reasons, ["Killing"]);
}
