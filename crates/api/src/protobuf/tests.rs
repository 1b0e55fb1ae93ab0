//! Bodies that kubectl 1.36 sent, beside what the same command prints with `--dry-run=client -o json`; and noise.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::decode;

macro_rules! bodies {
    ($($name:literal),* $(,)?) => {
        [$(($name,
            include_bytes!(concat!("../../schema/bodies/", $name, ".pb")).as_slice(),
            include_str!(concat!("../../schema/bodies/", $name, ".json")))),*]
    };
}

#[test]
fn what_kubectl_sends_decodes_to_what_it_prints() {
    let bodies = bodies![
        "deployment", "configmap", "secret", "service-clusterip", "service-nodeport", "namespace", "serviceaccount",
        "ingress", "cronjob", "job", "quota", "pdb", "role", "rolebinding", "priorityclass",
    ];
    for (name, body, printed) in bodies {
        let found = decode(body).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut wanted: Value = serde_json::from_str(printed).expect("kubectl prints JSON");
        if wanted.get("status").is_some_and(super::is_hollow) {
            wanted.as_object_mut().expect("an object").remove("status");
        }
        drop_empty_metadata(&mut wanted);
        // kubectl prints the namespace it would use; the body leaves it to the path.
        if found.pointer("/metadata/namespace").is_none() {
            wanted["metadata"].as_object_mut().expect("an object").remove("namespace");
        }
        assert_eq!(found, wanted, "{name}");
    }
}

/// Go prints `metadata: {}` in templates; we leave it out.
fn drop_empty_metadata(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, value| name != "metadata" || *value != json!({}));
            fields.values_mut().for_each(drop_empty_metadata);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_empty_metadata),
        _ => {}
    }
}

#[test]
fn token_requests_keep_their_null_free_spec() {
    let body = include_bytes!("../../schema/bodies/token.pb");
    let found = decode(body).expect("decodes");
    assert_eq!(found["kind"], "TokenRequest");
    assert_eq!(found["apiVersion"], "authentication.k8s.io/v1");
    assert!(found["spec"].is_object());
}

/// A field with a length: tag, length, bytes.
fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![tag << 3 | 2, u8::try_from(bytes.len()).expect("short")];
    out.extend_from_slice(bytes);
    out
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
    [super::MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
}

#[test]
fn delete_options_decode_in_any_group() {
    let raw = [vec![0x08, 0x00], field(4, b"Background")].concat();
    for api_version in ["v1", "apps/v1", "meta.k8s.io/v1"] {
        let found = decode(&envelope(api_version, "DeleteOptions", &raw)).expect("decodes");
        let wanted = json!({"apiVersion": api_version, "kind": "DeleteOptions",
            "gracePeriodSeconds": 0, "propagationPolicy": "Background"});
        assert_eq!(found, wanted);
    }
}

#[test]
fn broken_bodies_say_what_is_wrong() {
    let cases = [
        (b"{}".to_vec(), "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"),
        (
            envelope("x.io/v1", "Foo", b""),
            "no kind \"Foo\" is registered for version \"x.io/v1\" in scheme \"pkg/api/legacyscheme/scheme.go\"",
        ),
        (envelope("v1", "Pod", &[0x0a, 0x05]), "unexpected EOF"),
        (envelope("v1", "Pod", &[0x0b]), "proto: illegal wireType 3"),
    ];
    for (body, wanted) in cases {
        assert_eq!(decode(&body).expect_err("is broken"), wanted);
    }
}

proptest! {
    #[test]
    fn noise_never_panics(raw in proptest::collection::vec(any::<u8>(), 0..100), kind in 0..3_usize) {
        let (api_version, kind) = [("v1", "Pod"), ("apps/v1", "Deployment"),
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition")][kind];
        let _ = decode(&envelope(api_version, kind, &raw));
        let _ = decode(&raw);
    }

    #[test]
    fn damaged_bodies_never_panic(at in 0..225_usize, byte in any::<u8>()) {
        let mut body = include_bytes!("../../schema/bodies/deployment.pb").to_vec();
        body[at] = byte;
        let _ = decode(&body);
    }
}
