//! Goldens of admission without a cache.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use serde_json::{Value, json};

use super::{limits, pods, service_accounts};
use crate::lookup::{array, text};

fn mk_pod() -> Value {
    json!({"metadata": {"namespace": "default", "name": "web"},
        "spec": {"containers": [{"name": "web", "image": "nginx"}]}})
}

#[test]
fn token_volume_is_upstreams() {
    let mut pod = mk_pod();
    service_accounts::mount_token(&mut pod, || "abcde".to_owned());
    service_accounts::mount_token(&mut pod, || "other".to_owned());
    assert_eq!(
        pod["spec"]["volumes"],
        json!([{"name": "kube-api-access-abcde", "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace",
                "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}])
    );
    assert_eq!(
        pod["spec"]["containers"][0]["volumeMounts"],
        json!([{"name": "kube-api-access-abcde", "readOnly": true,
            "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}])
    );
}

#[test]
fn a_mount_of_ones_own_keeps_the_token_away() {
    let mut pod = mk_pod();
    let mount =
        json!([{"name": "mine", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]);
    pod["spec"]["containers"][0]["volumeMounts"] = mount;
    service_accounts::mount_token(&mut pod, || "abcde".to_owned());
    assert!(pod["spec"]["volumes"].is_null());
}

#[test]
fn troubles_of_nodes_are_tolerated_for_a_while_unless_said_otherwise() {
    let mut pod = mk_pod();
    pod["spec"]["tolerations"] =
        json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]);
    pods::tolerate(&mut pod);
    let tolerations = array(&pod, "/spec/tolerations");
    assert_eq!(tolerations.len(), 2);
    assert_eq!(
        tolerations[1],
        json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": 300})
    );
}

fn mk_range(limits: Value) -> Vec<Arc<Value>> {
    vec![Arc::new(json!({"spec": {"limits": limits}}))]
}

#[test]
fn limit_ranges_fill_and_say_so() {
    let mut pod = mk_pod();
    let ranges = mk_range(json!([{"type": "Container", "default": {"cpu": "1", "memory": "1Gi"},
        "defaultRequest": {"cpu": "100m"}}]));
    limits::fill(&mut pod, &ranges);
    assert_eq!(
        pod["spec"]["containers"][0]["resources"],
        json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "1", "memory": "1Gi"}})
    );
    assert_eq!(pod["status"]["qosClass"], "Burstable", "the class of what it has now");
    assert_eq!(
        text(&pod["metadata"]["annotations"], "/kubernetes.io~1limit-ranger"),
        "LimitRanger plugin set: cpu request for container web; cpu, memory limit for container web"
    );
}

#[test]
fn bounds_speak_as_upstream() {
    let mut pod = mk_pod();
    pod["spec"]["containers"][0]["resources"] =
        json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "200m", "memory": "2Gi"}});
    let ranges = mk_range(json!([
        {"type": "Container", "min": {"cpu": "100m"}, "max": {"memory": "1Gi"}, "maxLimitRequestRatio": {"cpu": "2"}},
        {"type": "Pod", "max": {"ephemeral-storage": "1Gi"}},
    ]));
    assert_eq!(
        limits::problems(&pod, &ranges),
        [
            "minimum cpu usage per Container is 100m, but request is 50m",
            "maximum memory usage per Container is 1Gi, but limit is 2Gi",
            "cpu max limit to request ratio per Container is 2, but provided ratio is 4.000000",
            "maximum ephemeral-storage usage per Pod is 1Gi.  No limit is specified",
        ]
    );
}

#[test]
fn amounts_read_well() {
    assert_eq!(plan::quota::amount("cpu", 1_500_000_000), "1500m");
    assert_eq!(plan::quota::amount("memory", (1 << 30) * 1_000_000_000), "1Gi");
    assert_eq!(plan::quota::amount("pods", 3_000_000_000), "3");
}
