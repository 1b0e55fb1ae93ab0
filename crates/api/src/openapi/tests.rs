//! What kubectl looks for in the documents.

use serde_json::{Value, json};

use super::{Served, v2, v2_protobuf, v3_group, v3_index};

const RESOURCES: [Served<'static>; 3] = [
    Served { group: "", version: "v1", kind: "Service", plural: "services", namespaced: true },
    Served { group: "", version: "v1", kind: "Node", plural: "nodes", namespaced: false },
    Served {
        group: "apps",
        version: "v1",
        kind: "Deployment",
        plural: "deployments",
        namespaced: true,
    },
];

#[test]
fn the_index_names_each_group_version() {
    let index = v3_index(&RESOURCES);
    let paths: Vec<&String> = index["paths"].as_object().expect("an object").keys().collect();
    assert_eq!(paths, ["api/v1", "apis/apps/v1"]);
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("a URL");
    assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash="), "{url}");
}

#[test]
fn a_group_document_serves_explain_and_validation() {
    let document = v3_group("apps", "v1", &RESOURCES).expect("apps is served");
    let schemas = &document["components"]["schemas"];
    let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(
        deployment["x-kubernetes-group-version-kind"],
        json!([{"group": "apps", "kind": "Deployment", "version": "v1"}])
    );
    let patch =
        &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "kind": "Deployment", "version": "v1"})
    );
    let names: Vec<&str> = patch["parameters"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|p| p["name"].as_str())
        .collect();
    assert!(names.contains(&"fieldValidation") && names.contains(&"dryRun"), "{names:?}");
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    let replicas =
        &schemas["io.k8s.api.apps.v1.DeploymentSpec"]["properties"]["replicas"]["description"];
    assert!(replicas.as_str().is_some_and(|text| text.contains("desired pods")), "{replicas}");
    assert_eq!(v3_group("x.io", "v1", &RESOURCES), None);
}

#[test]
fn every_reference_resolves() {
    let v3 = v3_group("apps", "v1", &RESOURCES).expect("served");
    for (document, prefix, place) in [
        (v2(&RESOURCES), "#/definitions/", "/definitions"),
        (v3, "#/components/schemas/", "/components/schemas"),
    ] {
        let definitions =
            document.pointer(place).and_then(Value::as_object).expect("has definitions");
        let mut references = Vec::new();
        collect(&document, &mut references);
        assert!(references.len() > 100);
        for reference in references {
            let name = reference.strip_prefix(prefix).expect("refers to a definition");
            assert!(definitions.contains_key(name), "{name}");
        }
    }
}

fn collect(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "$ref" => out.push(text.clone()),
                    other => collect(other, out),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, out)),
        _ => {}
    }
}

#[test]
fn the_protobuf_form_begins_as_a_document() {
    let bytes = v2_protobuf(&v2(&RESOURCES));
    assert_eq!(&bytes[..5], b"\x0a\x032.0");
    assert!(bytes.len() > 100_000);
}
