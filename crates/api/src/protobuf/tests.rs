//! Bodies that kubectl 1.36 sent, beside what the same command prints with `--dry-run=client -o json`; and noise.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::decode;
use crate::schema::table::{self, Field, Message, Type};

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
        "deployment",
        "configmap",
        "secret",
        "service-clusterip",
        "service-nodeport",
        "namespace",
        "serviceaccount",
        "ingress",
        "cronjob",
        "job",
        "quota",
        "pdb",
        "role",
        "rolebinding",
        "priorityclass",
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
        (
            b"{}".to_vec(),
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]",
        ),
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

/// A value that a field may hold, small and never zero; `seed` picks among them.
fn sample(ty: &Type, seed: &mut u32, depth: usize) -> Value {
    *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    let pick = *seed >> 16;
    match ty.bare() {
        Type::String => format!("s{}", pick % 9).into(),
        Type::Int32 => (i64::from(pick % 90) * 2 - 89).into(),
        Type::Int64 => (i64::from(pick) * -100_003 - 1).into(),
        Type::Bool => true.into(),
        Type::Double => (f64::from(pick) + 0.5).into(),
        Type::Bytes => "aGk=".into(),
        Type::Time => "2026-11-21T04:05:06Z".into(),
        Type::MicroTime => "2026-11-21T04:05:06.000007Z".into(),
        Type::Duration => "1m0.5s".into(),
        Type::Quantity => format!("{pick}m").into(),
        Type::IntOrString if pick.is_multiple_of(2) => 80.into(),
        Type::IntOrString => "http".into(),
        Type::OrBool => pick.is_multiple_of(2).into(),
        Type::OrArray | Type::OrStringArray => json!({"type": "string"}),
        Type::RawExtension | Type::FieldsV1 | Type::Json => json!({"f:a": {}}),
        Type::Named(..) => Value::Null,
        Type::List(item) => {
            Value::Array((0..=pick % 2).map(|_| sample(item, seed, depth)).collect())
        }
        Type::Map(_, inner) => json!({"k": sample(inner, seed, depth)}),
        Type::Message(_) => {
            ty.message().map_or(Value::Null, |message| sample_message(message, seed, depth + 1))
        }
    }
}

fn sample_message(message: &'static Message, seed: &mut u32, depth: usize) -> Value {
    let mut object = json!({});
    for field in
        message.json_fields().iter().filter(|field| field.tag > 0 || is_inline(message, field))
    {
        *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Thinner the deeper, and an end to what contains itself.
        let scalar = !matches!(field.ty.bare(), Type::Message(_) | Type::List(_) | Type::Map(..));
        if (scalar || depth < 7) && *seed >> 24 < 200 / (u32::try_from(depth).expect("small") + 1)
            || depth == 0
        {
            object[field.name] = sample(&field.ty, seed, depth);
        }
    }
    object
}

fn is_inline(message: &'static Message, field: &Field) -> bool {
    message
        .fields
        .iter()
        .filter(|other| other.inline)
        .any(|other| other.ty.message().is_some_and(|inner| inner.field(field.name).is_some()))
}

fn varint(tag: u32, value: u64) -> Vec<u8> {
    let mut out = raw_varint(u64::from(tag) << 3);
    out.extend(raw_varint(value));
    out
}

fn raw_varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).expect("seven bits") | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).expect("seven bits"));
    out
}

fn block(tag: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = raw_varint(u64::from(tag) << 3 | 2);
    out.extend(raw_varint(bytes.len() as u64));
    out.extend_from_slice(bytes);
    out
}

fn encode_message(message: &'static Message, object: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for field in &message.fields {
        match field.ty.bare() {
            Type::Message(_) if field.inline => {
                let inner = field.ty.message().expect("a message");
                let fields: serde_json::Map<String, Value> = object
                    .as_object()
                    .expect("an object")
                    .iter()
                    .filter(|(name, _)| inner.field(name).is_some())
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect();
                out.extend(block(field.tag, &encode_message(inner, &Value::Object(fields))));
            }
            _ => out.extend(
                object.get(field.name).map(|value| encode_field(field, value)).unwrap_or_default(),
            ),
        }
    }
    out
}

fn encode_field(field: &Field, value: &Value) -> Vec<u8> {
    match (&field.ty, field.ty.bare(), value) {
        (Type::Named(..), Type::List(item), _) if matches!(**item, Type::String) => {
            encode(field.tag, &field.ty, value)
        }
        (_, Type::List(item), Value::Array(items)) => {
            items.iter().flat_map(|value| encode(field.tag, item, value)).collect()
        }
        (_, Type::Map(_, inner), Value::Object(entries)) => entries
            .iter()
            .flat_map(|(key, value)| {
                block(field.tag, &[block(1, key.as_bytes()), encode(2, inner, value)].concat())
            })
            .collect(),
        _ => encode(field.tag, &field.ty, value),
    }
}

fn encode(tag: u32, ty: &Type, value: &Value) -> Vec<u8> {
    let text = || value.as_str().expect("text").as_bytes();
    let seconds = |nanos: u64| [varint(1, 1_795_233_906), varint(2, nanos)].concat();
    match ty.bare() {
        Type::String => block(tag, text()),
        Type::Int32 | Type::Int64 => varint(tag, value.as_i64().expect("a number").cast_unsigned()),
        Type::Bool => varint(tag, 1),
        Type::Double => [
            raw_varint(u64::from(tag) << 3 | 1),
            value.as_f64().expect("a number").to_le_bytes().to_vec(),
        ]
        .concat(),
        Type::Bytes => block(tag, b"hi"),
        Type::Time => block(tag, &seconds(0)),
        Type::MicroTime => block(tag, &seconds(7_000)),
        Type::Duration => block(tag, &varint(1, 60_500_000_000)),
        Type::Quantity => block(tag, &block(1, text())),
        Type::IntOrString if value.is_string() => {
            block(tag, &[varint(1, 1), block(3, text())].concat())
        }
        Type::IntOrString => block(tag, &[varint(1, 0), varint(2, 80), block(3, b"")].concat()),
        Type::OrBool => block(tag, &varint(1, u64::from(value == &json!(true)))),
        Type::OrArray | Type::OrStringArray => {
            let props = table::json_schema_props().expect("in the table");
            block(tag, &block(1, &encode_message(props, value)))
        }
        Type::RawExtension | Type::FieldsV1 | Type::Json => {
            block(tag, &block(1, value.to_string().as_bytes()))
        }
        Type::List(item) => {
            let items = value.as_array().expect("a list");
            block(tag, &items.iter().flat_map(|value| encode(1, item, value)).collect::<Vec<u8>>())
        }
        Type::Message(_) => block(tag, &encode_message(ty.message().expect("a message"), value)),
        Type::Map(..) | Type::Named(..) => panic!("a map or name cannot stand here"),
    }
}

#[test]
fn every_kind_reads_back_as_encoded() {
    let mut checked = 0;
    for ((group, version, kind), message) in table::kinds() {
        let api_version =
            if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        for round in 0..20 {
            let mut seed = round;
            let mut object = sample_message(message, &mut seed, 0);
            let mut body = super::MAGIC.to_vec();
            let meta = [block(1, api_version.as_bytes()), block(2, kind.as_bytes())].concat();
            body.extend(block(1, &meta));
            body.extend(block(2, &encode_message(message, &object)));
            let mut found =
                decode(&body).unwrap_or_else(|error| panic!("{api_version} {kind}: {error}"));
            drop_empty_metadata(&mut object);
            drop_empty_metadata(&mut found);
            for object in [&mut object, &mut found] {
                object["apiVersion"] = api_version.as_str().into();
                object["kind"] = kind.into();
                if object.get("status").is_some_and(super::is_hollow) {
                    object.as_object_mut().expect("an object").remove("status");
                }
            }
            assert_eq!(found, object, "{api_version} {kind}");
            checked += 1;
        }
    }
    assert!(checked > 2000);
}
