//! Nothing that walks an object by the tables may panic, whatever the object.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// JSON with names that the tables know, in places where they do not belong.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z0-9:=+/ -]{0,8}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        Just("metadata"),
        Just("spec"),
        Just("status"),
        Just("template"),
        Just("containers"),
        Just("ports"),
        Just("name"),
        Just("labels"),
        Just("managedFields"),
        Just("finalizers"),
        Just("resources"),
        Just("limits"),
        Just("$patch"),
        Just("$retainKeys"),
        Just("$setElementOrder/containers"),
        Just("containerPort"),
        Just("$deleteFromPrimitiveList/finalizers"),
        Just("creationTimestamp"),
        Just("fieldsV1"),
        Just("f:spec"),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((name.clone(), inner), 0..5).prop_map(|fields| {
                Value::Object(
                    fields
                        .into_iter()
                        .map(|(name, value)| (name.to_owned(), value))
                        .collect::<Map<_, _>>(),
                )
            }),
        ]
    })
}

proptest! {
    #[test]
    fn no_walk_panics_on_any_object(object in any_json(), patch in any_json()) {
        let _ = crate::schema::check("apps", "v1", "Deployment", &object);
        let mut normal = object.clone();
        crate::schema::normalize("apps", "v1", "Deployment", &mut normal);
        let mut again = normal.clone();
        crate::schema::normalize("apps", "v1", "Deployment", &mut again);
        prop_assert_eq!(again, normal, "normalizing twice changes nothing");
        let _ = crate::patch::strategic("apps", "v1", "Deployment", &object, &patch);
        let _ = crate::patch::merge(&object, &patch);
        let _ = crate::patch::json(&object, &patch);
        let context = crate::apply::Context {
            manager: "m", force: false, time: jiff::Timestamp::UNIX_EPOCH, subresource: "",
            group: "apps", version: "v1", kind: "Deployment",
        };
        let _ = crate::apply::apply(&context, Some(&object), &patch);
        crate::apply::track_update(&context, Some(&object), &mut patch.clone());
        let mut created = patch;
        crate::apply::track_update(&context, None, &mut created);
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60), text in "[\\[\\]{}:,\"a1e.tn \\\\-]{0,40}") {
        let _ = crate::schema::parse_json(&bytes);
        if let Err(error) = crate::schema::parse_json(text.as_bytes()) {
            prop_assert!(
                error.starts_with("invalid character") || error == "unexpected end of JSON input" || error.contains("number out of range"),
                "{text:?}: {error}"
            );
        }
    }

    #[test]
    fn parsing_agrees_with_serde_json(value in any_json()) {
        let text = value.to_string();
        let expected: Value = serde_json::from_str(&text).expect("is JSON");
        prop_assert_eq!(crate::schema::parse_json(text.as_bytes()), Ok((expected, vec![])));
    }
}

#[test]
fn nesting_without_end_is_refused() {
    let deep = "[".repeat(100_000);
    assert!(crate::schema::parse_json(deep.as_bytes()).is_err());
    assert_eq!(crate::schema::check("", "v1", "Pod", &json!({})), Ok(vec![]));
}
