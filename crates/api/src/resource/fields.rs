//! Fields that field selectors know, beyond name and namespace. Upstream: each strategy's `GetAttrs`.

use serde_json::Value;

type Fields = Vec<(&'static str, String)>;

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// `pods`
#[must_use]
pub fn pod(object: &Value) -> Fields {
    let (spec, status) = (&object["spec"], &object["status"]);
    let host_network = spec["hostNetwork"].as_bool().unwrap_or(false);
    vec![
        ("spec.nodeName", text(&spec["nodeName"])),
        ("spec.restartPolicy", text(&spec["restartPolicy"])),
        ("spec.schedulerName", text(&spec["schedulerName"])),
        ("spec.serviceAccountName", text(&spec["serviceAccountName"])),
        ("spec.hostNetwork", host_network.to_string()),
        ("status.phase", text(&status["phase"])),
        ("status.podIP", text(&status["podIP"])),
        ("status.nominatedNodeName", text(&status["nominatedNodeName"])),
    ]
}

/// `nodes`
#[must_use]
pub fn node(object: &Value) -> Fields {
    vec![(
        "spec.unschedulable",
        object["spec"]["unschedulable"].as_bool().unwrap_or(false).to_string(),
    )]
}

/// `namespaces`
#[must_use]
pub fn namespace(object: &Value) -> Fields {
    vec![
        ("status.phase", text(&object["status"]["phase"])),
        ("name", text(&object["metadata"]["name"])),
    ]
}

/// `secrets`
#[must_use]
pub fn secret(object: &Value) -> Fields {
    vec![("type", text(&object["type"]))]
}

/// `services`
#[must_use]
pub fn service(object: &Value) -> Fields {
    vec![
        ("spec.clusterIP", text(&object["spec"]["clusterIP"])),
        ("spec.type", text(&object["spec"]["type"])),
    ]
}

/// `replicasets` and `replicationcontrollers`
#[must_use]
pub fn replicas(object: &Value) -> Fields {
    vec![("status.replicas", object["status"]["replicas"].as_i64().unwrap_or(0).to_string())]
}

/// `jobs`
#[must_use]
pub fn job(object: &Value) -> Fields {
    vec![("status.successful", object["status"]["succeeded"].as_i64().unwrap_or(0).to_string())]
}

/// `events` of both groups
#[must_use]
pub fn event(object: &Value) -> Fields {
    let about = if object["involvedObject"].is_object() {
        &object["involvedObject"]
    } else {
        &object["regarding"]
    };
    let source = text(&object["source"]["component"]);
    // The group events.k8s.io has other words for the same fields.
    let reporter = [&object["reportingComponent"], &object["reportingController"]];
    let reporter = reporter.map(text).into_iter().find(|one| !one.is_empty()).unwrap_or_default();
    vec![
        ("involvedObject.kind", text(&about["kind"])),
        ("involvedObject.namespace", text(&about["namespace"])),
        ("involvedObject.name", text(&about["name"])),
        ("involvedObject.uid", text(&about["uid"])),
        ("involvedObject.apiVersion", text(&about["apiVersion"])),
        ("involvedObject.resourceVersion", text(&about["resourceVersion"])),
        ("involvedObject.fieldPath", text(&about["fieldPath"])),
        ("regarding.kind", text(&about["kind"])),
        ("regarding.namespace", text(&about["namespace"])),
        ("regarding.name", text(&about["name"])),
        ("regarding.uid", text(&about["uid"])),
        ("regarding.apiVersion", text(&about["apiVersion"])),
        ("regarding.resourceVersion", text(&about["resourceVersion"])),
        ("regarding.fieldPath", text(&about["fieldPath"])),
        ("reason", text(&object["reason"])),
        ("reportingComponent", reporter.clone()),
        ("reportingController", reporter.clone()),
        ("source", if source.is_empty() { reporter } else { source }),
        ("type", text(&object["type"])),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_selected_by_the_words_of_both_groups() {
        let core = json!({"involvedObject": {"kind": "Pod"}, "reportingComponent": "kubelet"});
        let new = json!({"regarding": {"kind": "Pod"}, "reportingController": "kubelet"});
        for event in [event(&core), event(&new)] {
            for field in ["reportingComponent", "reportingController", "source"] {
                assert!(event.contains(&(field, "kubelet".to_owned())), "{field}");
            }
            for field in ["involvedObject.kind", "regarding.kind"] {
                assert!(event.contains(&(field, "Pod".to_owned())), "{field}");
            }
        }
    }
}
