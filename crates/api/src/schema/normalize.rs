//! What a decode into a kind's Go type and an encode would leave of an object.

use serde_json::{Map, Value};

use super::table::{Field, Message, Type};

pub(super) fn normalize(message: &'static Message, object: &mut Value) {
    if let Value::Object(fields) = object {
        walk(message, fields);
    }
}

fn walk(message: &'static Message, fields: &mut Map<String, Value>) {
    fields.retain(|name, value| {
        let Some(field) = message.field(name) else { return false };
        if value.is_null() {
            return false;
        }
        convert(&field.ty, value);
        !(field.omit_empty && !field.pointer && is_zero(field, value))
    });
}

/// Whether Go's `omitempty` would leave the value out.
pub(crate) fn is_zero(field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        // Go never leaves a struct out; only empty maps go.
        Value::Object(fields) => fields.is_empty() && matches!(field.ty.bare(), Type::Map(..)),
    }
}

fn convert(ty: &Type, value: &mut Value) {
    match (ty.bare(), value) {
        (Type::Message(_), Value::Object(fields)) => {
            if let Some(message) = ty.message() {
                walk(message, fields);
            }
        }
        (Type::List(item), Value::Array(items)) => {
            for value in items {
                convert(item, value);
            }
        }
        (Type::Map(_, inner), Value::Object(entries)) => {
            for value in entries.values_mut() {
                if value.is_null() && matches!(inner.bare(), Type::String | Type::Bytes) {
                    *value = Value::String(String::new());
                }
                convert(inner, value);
            }
        }
        (Type::Quantity, value @ Value::Number(_)) => *value = Value::String(value.to_string()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn normalizing_drops_what_the_go_type_would_not_keep() {
        let mut deployment = json!({
            "metadata": {"name": "a", "creationTimestamp": null, "labels": {}, "generateName": ""},
            "spec": {
                "replicas": 0, "minReadySeconds": 0, "paused": false, "foo": 1, "strategy": {},
                "template": {"spec": {
                    "hostNetwork": false, "terminationGracePeriodSeconds": 0, "restartPolicy": "",
                    "containers": [{"name": "", "resources": {"limits": {"cpu": 1}}, "extra": true}],
                    "volumes": [{"name": "v", "emptyDir": {}}],
                }},
            },
        });
        crate::schema::normalize("apps", "v1", "Deployment", &mut deployment);
        let wanted = json!({
            "metadata": {"name": "a"},
            "spec": {
                "replicas": 0, "strategy": {},
                "template": {"spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "", "resources": {"limits": {"cpu": "1"}}}],
                    "volumes": [{"name": "v", "emptyDir": {}}],
                }},
            },
        });
        assert_eq!(deployment, wanted);
    }
}
