//! Defaults of the other kinds.

use serde_json::{Value, json};

use super::{canonical, each, set};

/// How long ClientIP affinity lasts, in seconds.
const AFFINITY_SECONDS: u32 = 10_800;

/// `services`. Addresses, families and node ports are allocation's.
pub fn service(object: &mut Value) {
    let spec = &mut object["spec"];
    if spec.is_null() {
        *spec = json!({});
    }
    set(spec, "type", "ClusterIP");
    set(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "None" {
        remove(spec, "sessionAffinityConfig");
    }
    if spec["sessionAffinity"] == "ClientIP" {
        let given = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].clone();
        if given.is_null() {
            spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"] = AFFINITY_SECONDS.into();
        }
    }
    for port in each(spec, "ports") {
        set(port, "protocol", "TCP");
        let number = port["port"].clone();
        if port["targetPort"].is_null() || port["targetPort"] == 0 || port["targetPort"] == "" {
            port["targetPort"] = number;
        }
    }
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    let external_ips =
        spec["externalIPs"].as_array().is_some_and(|addresses| !addresses.is_empty());
    if kind == "NodePort" || kind == "LoadBalancer" || (kind == "ClusterIP" && external_ips) {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        set(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
        for point in each(&mut object["status"]["loadBalancer"], "ingress") {
            if !point["ip"].is_null() {
                set(point, "ipMode", "VIP");
            }
            drop_nulls(point);
        }
        drop_nulls(&mut object["status"]);
    }
    drop_nulls(&mut object["spec"]);
    drop_nulls(object);
}

fn remove(object: &mut Value, field: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(field);
    }
}

/// Looking into a value by name leaves nulls behind.
fn drop_nulls(object: &mut Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
}

/// `namespaces`
pub fn namespace(object: &mut Value) {
    if object["spec"].is_null() {
        object["spec"] = json!({});
    }
}

/// `nodes`: what can be used is what there is, unless the node says less.
pub fn node(object: &mut Value) {
    if object["spec"].is_null() {
        object["spec"] = json!({});
    }
    for list in ["/status/capacity", "/status/allocatable"] {
        canonical(object.pointer_mut(list));
    }
    if let Some(capacity) = object.pointer("/status/capacity").cloned() {
        set(&mut object["status"], "allocatable", capacity);
    }
}

/// `ingressclasses`
pub fn ingress_class(object: &mut Value) {
    if let Some(parameters) = object.pointer_mut("/spec/parameters").filter(|one| one.is_object()) {
        set(parameters, "scope", "Cluster");
    }
}

/// `resourcequotas`
pub fn resource_quota(object: &mut Value) {
    for list in ["/spec/hard", "/status/hard", "/status/used"] {
        canonical(object.pointer_mut(list));
    }
}

/// `secrets`: plain texts of `stringData` become data, which wins nothing: the texts do.
pub fn secret(object: &mut Value) {
    use base64::Engine as _;
    set(object, "type", "Opaque");
    let texts = object.as_object_mut().and_then(|fields| fields.remove("stringData"));
    for (key, text) in texts.as_ref().and_then(Value::as_object).into_iter().flatten() {
        let encoded =
            base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or_default());
        object["data"][key] = encoded.into();
    }
}

/// `endpoints`
pub fn endpoints(object: &mut Value) {
    for subset in each(object, "subsets") {
        for port in each(subset, "ports") {
            set(port, "protocol", "TCP");
        }
    }
}

/// `endpointslices`
pub fn endpoint_slice(object: &mut Value) {
    if object["endpoints"].is_null() {
        object["endpoints"] = json!([]);
    }
    for port in each(object, "ports") {
        set(port, "name", "");
        set(port, "protocol", "TCP");
    }
}

/// `persistentvolumes`
pub fn persistent_volume(object: &mut Value) {
    let spec = &mut object["spec"];
    canonical(spec.get_mut("capacity"));
    set(spec, "persistentVolumeReclaimPolicy", "Retain");
    set(spec, "volumeMode", "Filesystem");
    if spec["hostPath"].is_object() {
        set(&mut spec["hostPath"], "type", "");
    }
    drop_nulls(spec);
    set(object, "status", json!({"phase": "Pending"}));
}

/// `persistentvolumeclaims`
pub fn persistent_volume_claim(object: &mut Value) {
    set(&mut object["spec"], "volumeMode", "Filesystem");
    for list in ["/spec/resources/requests", "/spec/resources/limits", "/status/capacity"] {
        canonical(object.pointer_mut(list));
    }
    set(object, "status", json!({"phase": "Pending"}));
}

/// `networkpolicies`: rules about egress say that the policy is about egress.
pub fn network_policy(object: &mut Value) {
    let egress = object["spec"]["egress"].as_array().is_some_and(|rules| !rules.is_empty());
    let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
    set(&mut object["spec"], "policyTypes", types);
    for list in ["ingress", "egress"] {
        for rule in each(&mut object["spec"], list) {
            for port in each(rule, "ports") {
                set(port, "protocol", "TCP");
            }
        }
    }
    drop_nulls(&mut object["spec"]);
}

/// `rolebindings` and `clusterrolebindings`
pub fn role_binding(object: &mut Value) {
    set(&mut object["roleRef"], "apiGroup", "rbac.authorization.k8s.io");
    for subject in each(object, "subjects") {
        let group =
            if subject["kind"] == "ServiceAccount" { "" } else { "rbac.authorization.k8s.io" };
        if !group.is_empty() {
            set(subject, "apiGroup", group);
        }
    }
}

/// `storageclasses`
pub fn storage_class(object: &mut Value) {
    set(object, "reclaimPolicy", "Delete");
    set(object, "volumeBindingMode", "Immediate");
}

/// `priorityclasses`
pub fn priority_class(object: &mut Value) {
    set(object, "preemptionPolicy", "PreemptLowerPriority");
}

/// `limitranges`: what is the limit by default is the request by default.
pub fn limit_range(object: &mut Value) {
    for limit in each(&mut object["spec"], "limits") {
        for list in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
            canonical(limit.get_mut(list));
        }
        if limit["type"] != "Container" {
            continue;
        }
        for (from, to) in
            [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")]
        {
            let values = limit[from].as_object().cloned().unwrap_or_default();
            for (name, value) in values {
                if limit[to][&name].is_null() {
                    limit[to][&name] = value;
                }
            }
        }
        drop_nulls(limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_get_what_their_type_needs() {
        let mut object = json!({"spec": {"ports": [{"port": 80}], "sessionAffinity": "ClientIP", "type": "NodePort"}});
        service(&mut object);
        let expected = json!({"spec": {
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}, "type": "NodePort",
            "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster",
        }});
        assert_eq!(object, expected);
    }

    #[test]
    fn texts_of_a_secret_become_data() {
        let mut object = json!({"stringData": {"a": "x"}, "data": {"b": "eQ=="}});
        secret(&mut object);
        assert_eq!(object, json!({"data": {"a": "eA==", "b": "eQ=="}, "type": "Opaque"}));
    }
}
