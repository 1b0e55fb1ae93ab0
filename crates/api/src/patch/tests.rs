//! Each directive once, and the property that a strategic diff of two pods turns the one into the other.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::Reason;

fn pod(patch: Value) -> Result<Value, crate::StatusError> {
    let pod = json!({
        "metadata": {"name": "a", "labels": {"x": "1", "y": "2"}, "finalizers": ["f1", "f2"]},
        "spec": {
            "containers": [
                {"name": "a", "image": "a:1", "args": ["1", "2"], "ports": [{"containerPort": 80}]},
                {"name": "b", "image": "b:1"},
            ],
            "volumes": [{"name": "v", "emptyDir": {}}],
            "tolerations": [{"key": "k"}],
        },
    });
    super::strategic("", "v1", "Pod", &pod, &patch)
}

#[test]
fn containers_merge_by_name_and_new_ones_stand_where_the_patch_puts_them() {
    let patched = pod(json!({"spec": {"containers": [
        {"name": "c", "image": "c:1"}, {"name": "a", "image": "a:2", "args": null}]}}));
    let containers = &patched.expect("applies")["spec"]["containers"];
    assert_eq!(
        *containers,
        json!([
            {"name": "c", "image": "c:1"},
            {"name": "a", "image": "a:2", "ports": [{"containerPort": 80}]},
            {"name": "b", "image": "b:1"},
        ])
    );
}

#[test]
fn set_element_order_places_the_elements() {
    let patched = pod(json!({"spec": {
        "$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}],
        "containers": [{"name": "c", "image": "c:1"}]}}))
    .expect("applies");
    let names: Vec<&str> = patched["spec"]["containers"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|container| container["name"].as_str())
        .collect();
    assert_eq!(names, ["c", "b", "a"]);
}

#[test]
fn patch_delete_and_replace_act_on_maps_and_lists() {
    let patched = pod(json!({
        "metadata": {"labels": {"$patch": "replace", "z": "3"}},
        "spec": {"containers": [{"name": "b", "$patch": "delete"}], "volumes": [{"$patch": "replace"}, {"name": "w"}]},
    }))
    .expect("applies");
    assert_eq!(patched["metadata"]["labels"], json!({"z": "3"}));
    assert_eq!(patched["spec"]["containers"].as_array().map(Vec::len), Some(1));
    assert_eq!(patched["spec"]["volumes"], json!([{"name": "w"}]));
}

#[test]
fn lists_without_a_strategy_are_replaced() {
    let patched = pod(json!({"spec": {"tolerations": [{"key": "l"}]}})).expect("applies");
    assert_eq!(patched["spec"]["tolerations"], json!([{"key": "l"}]));
}

#[test]
fn primitive_lists_merge_and_delete() {
    let patched = pod(
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["f1"], "finalizers": ["f3"]}}),
    );
    assert_eq!(patched.expect("applies")["metadata"]["finalizers"], json!(["f3", "f2"]));
    let patched = pod(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["f1"]}}));
    assert_eq!(patched.expect("applies")["metadata"]["finalizers"], json!(["f2"]));
}

#[test]
fn retain_keys_clears_the_rest_of_a_union() {
    let deployment =
        json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    let patched =
        super::strategic("apps", "v1", "Deployment", &deployment, &patch).expect("applies");
    assert_eq!(patched["spec"]["strategy"], json!({"type": "Recreate"}));
    let bad = json!({"spec": {"strategy": {"$retainKeys": ["x"], "type": "Recreate"}}});
    let error =
        super::strategic("apps", "v1", "Deployment", &deployment, &bad).expect_err("is malformed");
    assert_eq!(
        (error.reason, error.message.as_str()),
        (Reason::BadRequest, "invalid patch format of retainKeys")
    );
}

#[test]
fn null_removes_and_new_maps_are_stripped_of_nulls() {
    let patched =
        pod(json!({"metadata": {"labels": {"x": null}, "annotations": {"a": "b", "c": null}}}));
    let patched = patched.expect("applies");
    assert_eq!(patched["metadata"]["labels"], json!({"y": "2"}));
    assert_eq!(patched["metadata"]["annotations"], json!({"a": "b"}));
}

#[test]
fn errors_have_upstreams_codes() {
    assert_eq!(pod(json!([])).expect_err("not a map").reason, Reason::BadRequest);
    assert_eq!(
        pod(json!({"spec": {"containers": [{"image": "x"}]}})).expect_err("no key").reason,
        Reason::Invalid
    );
    assert_eq!(
        pod(json!({"spec": {"$patch": "x"}})).expect_err("unknown").reason,
        Reason::BadRequest
    );
    let custom =
        super::strategic("x.io", "v1", "Foo", &json!({}), &json!({})).expect_err("no table");
    assert_eq!(custom.reason, Reason::UnsupportedMediaType);
    let failed = super::json(&json!({}), &json!([{"op": "test", "path": "/a", "value": 1}]))
        .expect_err("test fails");
    assert_eq!(failed.reason, Reason::Invalid);
    assert_eq!(
        super::json(&json!({}), &json!({"op": 1})).expect_err("malformed").reason,
        Reason::BadRequest
    );
    assert_eq!(
        super::merge(&json!({}), &json!([])).expect_err("not a map").reason,
        Reason::BadRequest
    );
}

#[test]
fn json_and_merge_patches_follow_their_rfcs() {
    let object = json!({"a": {"b": 1, "c": [1, 2]}});
    let patch =
        json!([{"op": "replace", "path": "/a/b", "value": 2}, {"op": "remove", "path": "/a/c/0"}]);
    assert_eq!(super::json(&object, &patch), Ok(json!({"a": {"b": 2, "c": [2]}})));
    assert_eq!(
        super::merge(&object, &json!({"a": {"b": null, "c": [3]}})),
        Ok(json!({"a": {"c": [3]}}))
    );
}

/// A strategic patch from one pod to another, as `kubectl apply` makes it, for containers and finalizers.
fn diff(from: &Value, to: &Value) -> Value {
    let list = |value: &Value, path: &str| {
        value.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let (old, new) = (list(from, "/spec/containers"), list(to, "/spec/containers"));
    let mut containers: Vec<Value> =
        new.iter().filter(|item| !old.contains(item)).map(|item| with_nulls(item, &old)).collect();
    for item in &old {
        if !new.iter().any(|other| other["name"] == item["name"]) {
            containers.push(json!({"name": item["name"], "$patch": "delete"}));
        }
    }
    let order: Vec<Value> = new.iter().map(|item| json!({"name": item["name"]})).collect();
    let (old, new) = (list(from, "/metadata/finalizers"), list(to, "/metadata/finalizers"));
    let gone: Vec<&Value> = old.iter().filter(|item| !new.contains(item)).collect();
    let added: Vec<&Value> = new.iter().filter(|item| !old.contains(item)).collect();
    json!({
        "metadata": {"finalizers": added, "$deleteFromPrimitiveList/finalizers": gone, "$setElementOrder/finalizers": new},
        "spec": {"containers": containers, "$setElementOrder/containers": order},
    })
}

fn with_nulls(item: &Value, old: &[Value]) -> Value {
    let mut item = item.clone();
    if let Some(old) = old.iter().find(|old| old["name"] == item["name"]).and_then(Value::as_object)
    {
        for name in old.keys() {
            if item.get(name).is_none() {
                item[name] = Value::Null;
            }
        }
    }
    item
}

fn any_pod() -> impl Strategy<Value = Value> {
    let names = Just(vec!["a", "b", "c", "d"]).prop_shuffle();
    let images = proptest::collection::vec(proptest::option::of("[x-z]"), 4);
    (names, 0..5_usize, images, proptest::sample::subsequence(vec!["f1", "f2", "f3"], 0..=3))
        .prop_map(|(names, count, images, finalizers)| {
            let containers: Vec<Value> = names
                .iter()
                .zip(images)
                .take(count)
                .map(|(name, image)| match image {
                    Some(image) => json!({"name": name, "image": image}),
                    None => json!({"name": name}),
                })
                .collect();
            json!({"metadata": {"finalizers": finalizers}, "spec": {"containers": containers}})
        })
}

proptest! {
    #[test]
    fn a_strategic_diff_turns_one_pod_into_the_other(from in any_pod(), to in any_pod()) {
        let patched = super::strategic("", "v1", "Pod", &from, &diff(&from, &to)).expect("applies");
        prop_assert_eq!(patched, to);
    }
}
