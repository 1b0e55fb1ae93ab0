//! What a client may not set: dropped at creation, kept at a change. Upstream: `PrepareForCreate` and `PrepareForUpdate`.

use serde_json::{Value, json};

/// A new object has no status yet, and generation 1 if it has a spec.
pub fn create(object: &mut Value) {
    plain_create(object);
    if object.get("spec").is_some() {
        object["metadata"]["generation"] = 1.into();
    }
}

/// The status stays, and the generation counts changes of the spec.
pub fn update(new: &mut Value, old: &Value) {
    keep(new, old, "status");
    let Some(generation) = old["metadata"]["generation"].as_i64() else { return };
    let changed = new.get("spec") != old.get("spec");
    new["metadata"]["generation"] = json!(generation + i64::from(changed));
}

/// As `create`, of a kind that counts no generations.
pub fn plain_create(object: &mut Value) {
    let status = blank_status(object["kind"].as_str().unwrap_or_default());
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
        status.map(|status| fields.insert("status".to_owned(), status));
    }
}

/// What upstream's types write of a status that nothing is known of: clients read its fields right after creation.
fn blank_status(kind: &str) -> Option<Value> {
    Some(match kind {
        "Deployment" | "Job" | "CronJob" => json!({}),
        "Ingress" => json!({"loadBalancer": {}}),
        "ReplicaSet" | "ReplicationController" => json!({"replicas": 0}),
        "StatefulSet" => json!({"availableReplicas": 0, "replicas": 0}),
        "DaemonSet" => json!({
            "currentNumberScheduled": 0,
            "desiredNumberScheduled": 0,
            "numberMisscheduled": 0,
            "numberReady": 0,
        }),
        "PodDisruptionBudget" => json!({
            "currentHealthy": 0,
            "desiredHealthy": 0,
            "disruptionsAllowed": 0,
            "expectedPods": 0,
        }),
        _ => return None,
    })
}

/// A kind without a status whose generation counts all changes but those of metadata.
pub fn counted_create(object: &mut Value) {
    object["metadata"]["generation"] = 1.into();
}

/// The generation counts all changes but those of metadata.
pub fn counted_update(new: &mut Value, old: &Value) {
    let content = |object: &Value| {
        let mut fields = object.as_object().cloned().unwrap_or_default();
        fields.retain(|field, value| field != "metadata" && !value.is_null());
        fields
    };
    let generation = old["metadata"]["generation"].as_i64().unwrap_or(1);
    let changed = content(new) != content(old);
    new["metadata"]["generation"] = json!(generation + i64::from(changed));
}

/// Only the status changes, and what notes about the object say: its labels, annotations and finalizers.
pub fn status(new: &mut Value, old: &Value) {
    const NOTES: [&str; 5] =
        ["resourceVersion", "managedFields", "labels", "annotations", "finalizers"];
    let status = new.get_mut("status").map(Value::take);
    let mut meta = new["metadata"].take();
    *new = old.clone();
    match status {
        Some(status) => new["status"] = status,
        None => {
            if let Some(fields) = new.as_object_mut() {
                fields.remove("status");
            }
        }
    }
    for field in NOTES {
        if let Some(value) = meta.get_mut(field).map(Value::take) {
            new["metadata"][field] = value;
        }
    }
}

/// As `status`, of workloads: their labels stay.
pub fn workload_status(new: &mut Value, old: &Value) {
    status(new, old);
    if let Some(meta) = new["metadata"].as_object_mut() {
        match old["metadata"].get("labels") {
            Some(labels) => drop(meta.insert("labels".to_owned(), labels.clone())),
            None => drop(meta.remove("labels")),
        }
    }
}

/// The generation of a Deployment counts changes of its annotations too.
pub fn deployment_update(new: &mut Value, old: &Value) {
    update(new, old);
    let generation = old["metadata"]["generation"].as_i64().unwrap_or(1);
    if new["metadata"].get("annotations") != old["metadata"].get("annotations") {
        new["metadata"]["generation"] = json!(generation + 1);
    }
}

/// A node comes with its status: its agent knows it.
pub fn node_create(_: &mut Value) {}

/// A new volume or claim is pending.
pub fn pending_create(object: &mut Value) {
    object["status"] = json!({"phase": "Pending"});
}

/// The pods of a Job carry its uid, which its selector asks for, unless the selector is the user's.
pub fn job_create(object: &mut Value) {
    create(object);
    if object["spec"]["manualSelector"] == true {
        return;
    }
    let (uid, name) = (object["metadata"]["uid"].clone(), object["metadata"]["name"].clone());
    if !uid.is_string() {
        return;
    }
    let spec = &mut object["spec"];
    let labels = &mut spec["template"]["metadata"]["labels"];
    for (key, value) in [
        ("controller-uid", &uid),
        ("job-name", &name),
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
    ] {
        labels[key] = value.clone();
    }
    spec["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"] = uid;
}

fn keep(new: &mut Value, old: &Value, field: &str) {
    match (old.get(field), new.as_object_mut()) {
        (Some(value), Some(fields)) => drop(fields.insert(field.to_owned(), value.clone())),
        (None, Some(fields)) => drop(fields.remove(field)),
        _ => {}
    }
}

/// A namespace is active and carries its own name as a label.
pub fn namespace_create(object: &mut Value) {
    create(object);
    let name = object["metadata"]["name"].clone();
    object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
    let finalizers = &mut object["spec"]["finalizers"];
    match finalizers.as_array_mut() {
        Some(list) if list.iter().all(|one| one != "kubernetes") => list.push("kubernetes".into()),
        Some(_) => {}
        None => *finalizers = json!(["kubernetes"]),
    }
    object["status"] = json!({"phase": "Active"});
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.remove("generation");
    }
}

/// Finalizers of a namespace change through `/finalize` alone; its name's label cannot be lost.
pub fn namespace_update(new: &mut Value, old: &Value) {
    update(new, old);
    keep(new, old, "spec");
    let name = new["metadata"]["name"].clone();
    new["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
}

/// A new pod is pending, and of the class of its requests.
pub fn pod_create(object: &mut Value) {
    create(object);
    let class = crate::qos::class(&object["spec"]);
    object["status"] = json!({"phase": "Pending", "qosClass": class});
    if object["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        object["status"]["conditions"] = json!([{"type": "PodScheduled", "status": "False",
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates"}]);
    }
}

/// The status of a pod is the node's to write.
pub fn pod_update(new: &mut Value, old: &Value) {
    update(new, old);
}

/// A new Service has a status without addresses; Services have no generation.
pub fn service_create(object: &mut Value) {
    create(object);
    object["status"] = json!({"loadBalancer": {}});
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.remove("generation");
    }
}

/// Addresses of load balancers go when the Service is no LoadBalancer any more.
pub fn service_update(new: &mut Value, old: &Value) {
    update(new, old);
    if old["spec"]["type"] == "LoadBalancer" && new["spec"]["type"] != "LoadBalancer" {
        new["status"]["loadBalancer"] = json!({});
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_changes_nothing_else() {
        let old = json!({"metadata": {"name": "a", "labels": {"l": "1"}, "ownerReferences": [1]}, "spec": 1, "status": 1});
        let mut new =
            json!({"metadata": {"name": "a", "annotations": {"x": "y"}}, "spec": 2, "status": 2});
        status(&mut new, &old);
        let wanted = json!({"metadata": {"name": "a", "labels": {"l": "1"}, "ownerReferences": [1], "annotations": {"x": "y"}}, "spec": 1, "status": 2});
        assert_eq!(new, wanted);
    }

    #[test]
    fn generations_count_what_upstreams_count() {
        let old = json!({"metadata": {"generation": 3}, "spec": {"a": 1}});
        let mut new =
            json!({"metadata": {"generation": 3, "annotations": {"x": "y"}}, "spec": {"a": 1}});
        update(&mut new, &old);
        assert_eq!(new["metadata"]["generation"], 3);
        deployment_update(&mut new, &old);
        assert_eq!(new["metadata"]["generation"], 4);
        let slice = json!({"metadata": {"generation": 1}, "endpoints": []});
        let mut new = json!({"metadata": {"generation": 1}, "endpoints": [1]});
        counted_update(&mut new, &slice);
        assert_eq!(new["metadata"]["generation"], 2);
    }

    #[test]
    fn a_new_object_has_a_status_that_says_nothing() {
        let mut set = json!({"kind": "ReplicaSet", "spec": {}, "status": {"replicas": 7}});
        create(&mut set);
        assert_eq!(set["status"], json!({"replicas": 0}));
        let mut policy = json!({"kind": "NetworkPolicy", "spec": {}, "status": {}});
        create(&mut policy);
        assert_eq!(policy.get("status"), None);
    }

    #[test]
    fn the_pods_of_a_job_carry_its_uid() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {}}});
        job_create(&mut job);
        assert_eq!(
            job["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})
        );
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
    }
}
