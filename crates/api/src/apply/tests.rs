//! Ownership as upstream's users see it: golden managedFields, conflicts, and round trips as properties.

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Context, apply, track_update};
use crate::Reason;

fn context(manager: &str) -> Context<'_> {
    let time = Timestamp::from_second(1_700_000_000).expect("in range");
    Context {
        manager,
        force: false,
        time,
        subresource: "",
        group: "apps",
        version: "v1",
        kind: "Deployment",
    }
}

fn forced(manager: &str) -> Context<'_> {
    Context { force: true, ..context(manager) }
}

fn deployment(replicas: u32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": image, "ports": [{"containerPort": 80}]}]},
            },
        },
    })
}

fn fields<'a>(object: &'a Value, manager: &str) -> Option<&'a Value> {
    let entries = object.pointer("/metadata/managedFields")?.as_array()?;
    entries.iter().find(|entry| entry["manager"] == manager)?.get("fieldsV1")
}

#[test]
fn an_applier_owns_what_it_names() {
    let live = apply(&context("kubectl"), None, &deployment(3, "nginx")).expect("creates");
    let wanted = json!({
        "f:metadata": {"f:labels": {"f:app": {}}},
        "f:spec": {
            "f:replicas": {},
            "f:selector": {},
            "f:template": {
                "f:metadata": {"f:labels": {"f:app": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {
                    ".": {}, "f:image": {}, "f:name": {},
                    "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                }}},
            },
        },
    });
    assert_eq!(fields(&live, "kubectl"), Some(&wanted));
    let entry = &live["metadata"]["managedFields"][0];
    assert_eq!(entry["operation"], "Apply");
    assert_eq!(entry["time"], "2023-11-14T22:13:20Z");
    assert_eq!(entry["apiVersion"], "apps/v1");
}

#[test]
fn a_create_is_tracked_as_upstream_writes_it() {
    let mut live = deployment(3, "nginx");
    live["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({});
    track_update(&context("kubectl-create"), None, &mut live);
    let wanted = json!({
        "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
        "f:spec": {
            "f:replicas": {},
            "f:selector": {},
            "f:template": {
                "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {
                    ".": {}, "f:image": {}, "f:name": {}, "f:resources": {},
                    "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
                }}},
            },
        },
    });
    assert_eq!(fields(&live, "kubectl-create"), Some(&wanted));
}

#[test]
fn another_value_for_an_owned_field_conflicts_in_upstreams_words() {
    let mut live = deployment(3, "nginx");
    track_update(&context("kubectl-client-side-apply"), None, &mut live);
    let error = apply(&context("ci"), Some(&live), &deployment(5, "nginx")).expect_err("conflicts");
    assert_eq!(error.reason, Reason::Conflict);
    assert_eq!(
        error.message,
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    let cause = json!({
        "reason": "FieldManagerConflict",
        "message": "conflict with \"kubectl-client-side-apply\" using apps/v1",
        "field": ".spec.replicas",
    });
    assert_eq!(error.details, json!({"causes": [cause]}));
    let error =
        apply(&context("ci"), Some(&live), &deployment(5, "httpd")).expect_err("conflicts twice");
    assert_eq!(
        error.message,
        "Apply failed with 2 conflicts: conflicts with \"kubectl-client-side-apply\" using apps/v1:\n\
         - .spec.replicas\n- .spec.template.spec.containers[name=\"web\"].image"
    );
}

#[test]
fn force_takes_the_field() {
    let live = apply(&context("a"), None, &deployment(3, "nginx")).expect("creates");
    let error = apply(&context("b"), Some(&live), &deployment(5, "nginx")).expect_err("conflicts");
    assert_eq!(error.message, "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas");
    let live = apply(&forced("b"), Some(&live), &deployment(5, "nginx")).expect("takes");
    assert_eq!(live["spec"]["replicas"], 5);
    assert_eq!(fields(&live, "a").and_then(|set| set.pointer("/f:spec/f:replicas")), None);
    assert!(fields(&live, "a").and_then(|set| set.pointer("/f:spec/f:selector")).is_some());
}

#[test]
fn fields_owned_only_by_the_applier_go_when_it_drops_them() {
    let live = apply(&context("a"), None, &deployment(3, "nginx")).expect("creates");
    let mut less = deployment(3, "nginx");
    less["spec"].as_object_mut().expect("object").remove("replicas");
    less["metadata"].as_object_mut().expect("object").remove("labels");
    let after = apply(&context("a"), Some(&live), &less).expect("applies");
    assert_eq!(after["spec"].get("replicas"), None);
    assert_eq!(after["metadata"].get("labels"), None, "an emptied map goes too");
}

#[test]
fn shared_fields_stay_until_the_last_owner_drops_them() {
    let live = apply(&context("a"), None, &deployment(3, "nginx")).expect("creates");
    let live =
        apply(&context("b"), Some(&live), &deployment(3, "nginx")).expect("same values share");
    let mut less = deployment(3, "nginx");
    less["spec"].as_object_mut().expect("object").remove("replicas");
    let live = apply(&context("a"), Some(&live), &less).expect("applies");
    assert_eq!(live["spec"]["replicas"], 3);
    let live = apply(&context("b"), Some(&live), &less).expect("applies");
    assert_eq!(live["spec"].get("replicas"), None);
}

#[test]
fn a_dropped_container_goes_with_its_defaults() {
    let mut two = deployment(1, "nginx");
    let containers = two
        .pointer_mut("/spec/template/spec/containers")
        .and_then(Value::as_array_mut)
        .expect("a list");
    containers.push(json!({"name": "side", "image": "s"}));
    let mut live = apply(&context("a"), None, &two).expect("creates");
    live["spec"]["template"]["spec"]["containers"][1]["imagePullPolicy"] = "Always".into();
    let live = apply(&context("a"), Some(&live), &deployment(1, "nginx")).expect("applies");
    assert_eq!(live["spec"]["template"]["spec"]["containers"].as_array().map(Vec::len), Some(1));
}

#[test]
fn the_status_door_owns_status_only() {
    let mut live = deployment(1, "nginx");
    track_update(&context("kubectl-create"), None, &mut live);
    let mut new = live.clone();
    new["status"] = json!({"replicas": 1, "conditions": [{"type": "Available", "status": "True"}]});
    let door = Context { subresource: "status", ..context("controller") };
    track_update(&door, Some(&live), &mut new);
    let wanted = json!({"f:status": {
        "f:conditions": {".": {}, "k:{\"type\":\"Available\"}": {".": {}, "f:status": {}, "f:type": {}}},
        "f:replicas": {},
    }});
    assert_eq!(fields(&new, "controller"), Some(&wanted));
    assert_eq!(new["metadata"]["managedFields"][0]["subresource"], "status");
    let config = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "status": {"replicas": 2}});
    let applier = Context { subresource: "status", ..context("x") };
    let error = apply(&applier, Some(&new), &config).expect_err("conflicts");
    assert_eq!(
        error.message,
        "Apply failed with 1 conflict: conflict with \"controller\" with subresource \"status\" using apps/v1: .status.replicas"
    );
}

#[test]
fn an_update_takes_what_it_changes_and_drops_what_it_removes() {
    let live = apply(&context("a"), None, &deployment(3, "nginx")).expect("creates");
    let mut new = live.clone();
    new["spec"]["replicas"] = 7.into();
    new["metadata"].as_object_mut().expect("object").remove("labels");
    track_update(&context("scaler"), Some(&live), &mut new);
    assert_eq!(fields(&new, "scaler"), Some(&json!({"f:spec": {"f:replicas": {}}})));
    let set = fields(&new, "a").expect("still owns the rest");
    assert_eq!(set.pointer("/f:metadata"), None);
    assert_eq!(set.pointer("/f:spec/f:replicas"), None);
}

#[test]
fn untracked_objects_stay_untracked_until_the_first_apply() {
    let live = deployment(3, "nginx");
    let mut new = deployment(4, "nginx");
    track_update(&context("x"), Some(&live), &mut new);
    assert_eq!(new["metadata"].get("managedFields"), None);
    let error = apply(&context("a"), Some(&live), &deployment(9, "nginx")).expect_err("conflicts");
    assert_eq!(
        error.message,
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using apps/v1: .spec.replicas"
    );
}

#[test]
fn an_empty_entry_clears_the_record() {
    let live = apply(&context("a"), None, &deployment(3, "nginx")).expect("creates");
    let mut new = live.clone();
    new["metadata"]["managedFields"] = json!([{}]);
    track_update(&context("x"), Some(&live), &mut new);
    assert_eq!(new["metadata"].get("managedFields"), None);
}

#[test]
fn bad_configurations_are_refused() {
    let mut bad = deployment(1, "nginx");
    bad["metadata"]["managedFields"] = json!([{"manager": "x"}]);
    let error = apply(&context("a"), None, &bad).expect_err("managed");
    assert_eq!(
        (error.reason, error.message.as_str()),
        (Reason::BadRequest, "metadata.managedFields must be nil")
    );
    let mut bad = deployment(1, "nginx");
    bad["spec"]["foo"] = 1.into();
    bad["spec"]["template"]["spec"]["containers"] = json!([{"image": "x"}]);
    assert_eq!(
        apply(&context("a"), None, &bad).expect_err("untyped").message,
        "failed to create typed patch object (/web; apps/v1, Kind=Deployment): errors:\n  \
         .spec.foo: field not declared in schema\n  \
         .spec.template.spec.containers: element 0: associative list with keys has an element that omits key field \
         \"name\" (and doesn't have default value)"
    );
    let mut bad = deployment(1, "nginx");
    bad["spec"]["template"]["spec"]["containers"] = json!([{"name": "a"}, {"name": "a"}]);
    assert_eq!(
        apply(&context("a"), None, &bad).expect_err("duplicates").message,
        "failed to create typed patch object (/web; apps/v1, Kind=Deployment): \
         .spec.template.spec.containers: duplicate entries for key [name=\"a\"]"
    );
}

#[test]
fn unknown_kinds_are_deduced_with_atomic_lists() {
    let context = Context { group: "x.io", version: "v1", kind: "Foo", ..context("a") };
    let foo = json!({"apiVersion": "x.io/v1", "kind": "Foo", "metadata": {"name": "f"}, "spec": {"a": {"b": 1}, "l": [{"name": "x"}]}});
    let live = apply(&context, None, &foo).expect("creates");
    assert_eq!(fields(&live, "a"), Some(&json!({"f:spec": {"f:a": {"f:b": {}}, "f:l": {}}})));
}

#[test]
fn too_many_updaters_become_ancient_changes() {
    let mut live = deployment(0, "nginx");
    track_update(&context("creator"), None, &mut live);
    for n in 0..20_i64 {
        let name = format!("m{n}");
        let time = Timestamp::from_second(1_700_000_001 + n).expect("in range");
        let mut new = live.clone();
        new["metadata"]["labels"][&name] = "x".into();
        track_update(&Context { time, ..context(&name) }, Some(&live), &mut new);
        live = new;
    }
    let entries = live["metadata"]["managedFields"].as_array().expect("a list");
    assert_eq!(entries.len(), 10);
    assert!(entries.iter().any(|entry| entry["manager"] == "ancient-changes"));
}

fn any_config() -> impl Strategy<Value = Value> {
    let labels = proptest::collection::btree_map("[a-c]", "[xy]", 0..3);
    let containers = proptest::collection::btree_map("[a-c]", proptest::option::of("[xy]"), 0..3);
    (labels, containers, proptest::option::of(0..3_u32)).prop_map(|(labels, containers, replicas)| {
        let containers: Vec<Value> = containers
            .iter()
            .map(|(name, image)| match image {
                Some(image) => json!({"name": name, "image": image}),
                None => json!({"name": name}),
            })
            .collect();
        let mut out = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {}}});
        if !labels.is_empty() {
            out["metadata"]["labels"] = json!(labels);
        }
        if !containers.is_empty() {
            out["spec"]["template"]["spec"] = json!({"containers": containers});
        }
        if let Some(replicas) = replicas {
            out["spec"]["replicas"] = replicas.into();
        }
        out
    })
}

fn bare(object: &Value) -> Value {
    super::without_managed_fields(object)
}

proptest! {
    #[test]
    fn a_sole_applier_gets_exactly_its_last_configuration(configs in proptest::collection::vec(any_config(), 1..4)) {
        let mut live = None;
        for config in &configs {
            live = Some(apply(&context("a"), live.as_ref(), config).expect("nobody else owns anything"));
        }
        prop_assert_eq!(Some(bare(live.as_ref().expect("applied"))), configs.last().cloned());
    }

    #[test]
    fn applying_again_changes_nothing(first in any_config(), second in any_config()) {
        let live = apply(&context("a"), None, &first).expect("creates");
        let live = apply(&forced("b"), Some(&live), &second).expect("takes");
        let again = apply(&context("b"), Some(&live), &second).expect("owns what it needs");
        prop_assert_eq!(again, live);
    }

    #[test]
    fn every_applied_field_is_in_the_result(first in any_config(), second in any_config()) {
        let live = apply(&context("a"), None, &first).expect("creates");
        let live = apply(&forced("b"), Some(&live), &second).expect("takes");
        let merged = super::typed::merge(&bare(&live), &second, context("b").shape());
        prop_assert_eq!(merged, bare(&live));
    }
}
