//! Defaults of Deployments, ReplicaSets, StatefulSets, DaemonSets, Jobs and CronJobs.

use serde_json::{Value, json};

use super::{each, pod, set};

/// `deployments`
pub fn deployment(object: &mut Value) {
    let spec = &mut object["spec"];
    set(spec, "replicas", 1);
    set(spec, "strategy", json!({}));
    set(&mut spec["strategy"], "type", "RollingUpdate");
    if spec["strategy"]["type"] == "RollingUpdate" {
        set(&mut spec["strategy"], "rollingUpdate", json!({}));
        set(&mut spec["strategy"]["rollingUpdate"], "maxUnavailable", "25%");
        set(&mut spec["strategy"]["rollingUpdate"], "maxSurge", "25%");
    }
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "progressDeadlineSeconds", 600);
    pod::template(&mut spec["template"]);
}

/// `replicasets`
pub fn replica_set(object: &mut Value) {
    set(&mut object["spec"], "replicas", 1);
    if object["spec"]["template"].is_object() {
        pod::template(&mut object["spec"]["template"]);
    }
}

/// `replicationcontrollers`
pub fn replication_controller(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    if !labels.is_null() {
        set(&mut object["spec"], "selector", labels);
    }
    replica_set(object);
}

/// `statefulsets`
pub fn stateful_set(object: &mut Value) {
    let spec = &mut object["spec"];
    set(spec, "replicas", 1);
    set(spec, "podManagementPolicy", "OrderedReady");
    set(spec, "updateStrategy", json!({}));
    set(&mut spec["updateStrategy"], "type", "RollingUpdate");
    if spec["updateStrategy"]["type"] == "RollingUpdate" {
        set(&mut spec["updateStrategy"], "rollingUpdate", json!({}));
        set(&mut spec["updateStrategy"]["rollingUpdate"], "partition", 0);
    }
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "serviceName", "");
    set(spec, "persistentVolumeClaimRetentionPolicy", json!({}));
    set(&mut spec["persistentVolumeClaimRetentionPolicy"], "whenDeleted", "Retain");
    set(&mut spec["persistentVolumeClaimRetentionPolicy"], "whenScaled", "Retain");
    for claim in each(spec, "volumeClaimTemplates") {
        set(claim, "apiVersion", "v1");
        set(claim, "kind", "PersistentVolumeClaim");
        super::core::persistent_volume_claim(claim);
        set(claim, "status", json!({"phase": "Pending"}));
    }
    pod::template(&mut spec["template"]);
}

/// `daemonsets`
pub fn daemon_set(object: &mut Value) {
    let spec = &mut object["spec"];
    set(spec, "updateStrategy", json!({}));
    set(&mut spec["updateStrategy"], "type", "RollingUpdate");
    if spec["updateStrategy"]["type"] == "RollingUpdate" {
        set(&mut spec["updateStrategy"], "rollingUpdate", json!({}));
        set(&mut spec["updateStrategy"]["rollingUpdate"], "maxUnavailable", 1);
        set(&mut spec["updateStrategy"]["rollingUpdate"], "maxSurge", 0);
    }
    set(spec, "revisionHistoryLimit", 10);
    pod::template(&mut spec["template"]);
}

/// `jobs`. The selector and its label are admission's: they need the uid.
pub fn job(object: &mut Value) {
    let spec = &mut object["spec"];
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        set(spec, "completions", 1);
    }
    set(spec, "parallelism", 1);
    let per_index = !spec["backoffLimitPerIndex"].is_null();
    set(spec, "backoffLimit", if per_index { i32::MAX } else { 6 });
    set(spec, "completionMode", "NonIndexed");
    set(spec, "suspend", false);
    set(spec, "manualSelector", false);
    let policy = !spec["podFailurePolicy"].is_null();
    set(spec, "podReplacementPolicy", if policy { "Failed" } else { "TerminatingOrFailed" });
    if let Some(fields) = spec.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    pod::template(&mut spec["template"]);
}

/// `cronjobs`
pub fn cron_job(object: &mut Value) {
    let spec = &mut object["spec"];
    set(spec, "concurrencyPolicy", "Allow");
    set(spec, "suspend", false);
    set(spec, "successfulJobsHistoryLimit", 3);
    set(spec, "failedJobsHistoryLimit", 1);
    pod::template(&mut spec["jobTemplate"]["spec"]["template"]);
}

/// `podtemplates`
pub fn pod_template(object: &mut Value) {
    if object["template"].is_object() {
        pod::template(&mut object["template"]);
    }
}
