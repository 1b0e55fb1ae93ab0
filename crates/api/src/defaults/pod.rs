//! Defaults of pods and of the pod templates of workloads.

use serde_json::{Value, json};

use super::{canonical, canonical_one, each, set};

/// `pods`
pub fn pod(object: &mut Value) {
    if object["spec"].is_object() {
        spec(&mut object["spec"], true);
    }
}

/// `spec.template` of workloads and `template` of PodTemplates.
pub fn template(object: &mut Value) {
    if object["spec"].is_object() {
        spec(&mut object["spec"], false);
    }
}

/// A pod's spec. Requests follow limits in pods alone, not in templates, so that a template stays as it was written.
fn spec(spec: &mut Value, is_pod: bool) {
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "restartPolicy", "Always");
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "schedulerName", "default-scheduler");
    set(spec, "securityContext", json!({}));
    if is_pod {
        set(spec, "enableServiceLinks", true);
    }
    let host_network = is_pod && spec["hostNetwork"].as_bool().unwrap_or(false);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for one in each(spec, list) {
            container(one, host_network, is_pod);
        }
    }
    for one in each(spec, "volumes") {
        volume(one);
    }
    // The old name of the field is kept in step for old clients.
    for (from, to) in
        [("serviceAccountName", "serviceAccount"), ("serviceAccount", "serviceAccountName")]
    {
        if let Some(name) = spec.get(from).filter(|name| !name.is_null()).cloned() {
            set(spec, to, name);
        }
    }
}

fn container(one: &mut Value, host_network: bool, is_pod: bool) {
    let policy = pull_policy(one["image"].as_str().unwrap_or_default());
    set(one, "imagePullPolicy", policy);
    set(one, "terminationMessagePath", "/dev/termination-log");
    set(one, "terminationMessagePolicy", "File");
    set(one, "resources", json!({}));
    for port in each(one, "ports") {
        set(port, "protocol", "TCP");
        if host_network {
            let number = port["containerPort"].clone();
            set(port, "hostPort", number);
        }
    }
    for variable in each(one, "env") {
        if variable["valueFrom"]["fieldRef"].is_object() {
            set(&mut variable["valueFrom"]["fieldRef"], "apiVersion", "v1");
        }
        if variable["valueFrom"]["resourceFieldRef"].is_object() {
            set(&mut variable["valueFrom"]["resourceFieldRef"], "divisor", "0");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if one[name].is_object() {
            probe(&mut one[name]);
        }
    }
    for hook in ["postStart", "preStop"] {
        if one["lifecycle"][hook]["httpGet"].is_object() {
            http_get(&mut one["lifecycle"][hook]["httpGet"]);
        }
    }
    for list in ["limits", "requests"] {
        canonical(one["resources"].get_mut(list));
    }
    if is_pod {
        requests_follow_limits(one);
    }
}

/// `Always` for `:latest` and for no tag, else `IfNotPresent`.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let last = name.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        Some((_, "latest")) => "Always",
        None if !digest => "Always",
        _ => "IfNotPresent",
    }
}

fn requests_follow_limits(one: &mut Value) {
    let Some(limits) = one["resources"]["limits"].as_object().cloned() else { return };
    for (name, limit) in limits {
        if one["resources"]["requests"][&name].is_null() {
            one["resources"]["requests"][&name] = limit;
        }
    }
}

fn probe(probe: &mut Value) {
    set(probe, "timeoutSeconds", 1);
    set(probe, "periodSeconds", 10);
    set(probe, "successThreshold", 1);
    set(probe, "failureThreshold", 3);
    if probe["httpGet"].is_object() {
        http_get(&mut probe["httpGet"]);
    }
    if probe["grpc"].is_object() {
        set(&mut probe["grpc"], "service", "");
    }
}

fn http_get(action: &mut Value) {
    set(action, "path", "/");
    set(action, "scheme", "HTTP");
}

/// Octal 0644, as upstream.
const MODE: i32 = 0o644;

fn volume(volume: &mut Value) {
    let sources = volume.as_object().map_or(0, |fields| fields.len());
    if sources <= 1 && volume["name"].is_string() {
        volume["emptyDir"] = json!({});
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if volume[source].is_object() {
            set(&mut volume[source], "defaultMode", MODE);
        }
    }
    if volume["hostPath"].is_object() {
        set(&mut volume["hostPath"], "type", "");
    }
    canonical_one(volume.pointer_mut("/emptyDir/sizeLimit"));
    if let Some(claim) = volume.pointer_mut("/ephemeral/volumeClaimTemplate/spec") {
        set(claim, "volumeMode", "Filesystem");
        canonical(claim.pointer_mut("/resources/requests"));
    }
    if let Some(image) = volume.get_mut("image").filter(|image| image.is_object()) {
        let policy = pull_policy(image["reference"].as_str().unwrap_or_default());
        set(image, "pullPolicy", policy);
    }
    for item in each(&mut volume["downwardAPI"], "items") {
        field_ref(item);
    }
    for source in each(&mut volume["projected"], "sources") {
        for item in each(&mut source["downwardAPI"], "items") {
            field_ref(item);
        }
        if source["serviceAccountToken"].is_object() {
            set(&mut source["serviceAccountToken"], "expirationSeconds", 3600);
        }
        drop_nulls(source);
    }
    drop_nulls(volume);
}

fn field_ref(item: &mut Value) {
    if item["fieldRef"].is_object() {
        set(&mut item["fieldRef"], "apiVersion", "v1");
    }
    drop_nulls(item);
}

/// Looking into a value by name leaves nulls behind.
fn drop_nulls(object: &mut Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_pod_becomes_what_upstream_stores() {
        let mut object = json!({"spec": {
            "containers": [{"name": "a", "image": "nginx", "ports": [{"containerPort": 80}],
                "readinessProbe": {"httpGet": {"port": 80}}, "resources": {"limits": {"cpu": "1"}}}],
            "volumes": [{"name": "v"}, {"name": "c", "configMap": {"name": "x"}}],
        }});
        pod(&mut object);
        let expected = json!({"spec": {
            "containers": [{"name": "a", "image": "nginx", "imagePullPolicy": "Always",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                    "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "restartPolicy": "Always",
            "schedulerName": "default-scheduler", "securityContext": {}, "terminationGracePeriodSeconds": 30,
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "c", "configMap": {"name": "x", "defaultMode": 420}}],
        }});
        assert_eq!(object, expected);
        let once = object.clone();
        pod(&mut object);
        assert_eq!(object, once, "defaulting twice changes nothing");
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.25", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("nginx@sha256:abc", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
