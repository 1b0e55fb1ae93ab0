//! Type errors and unknown fields in the words of Go's JSON decoder (`sigs.k8s.io/json`).

use serde_json::Value;

use super::scalar;
use super::table::{Field, Message, Type, json_schema_props};

/// At most this many strict errors are reported, as upstream does.
const STRICT_ERRORS_MAX: usize = 100;

pub(super) fn check(message: &'static Message, object: &Value) -> Result<Vec<String>, String> {
    let mut walk = Walk::default();
    let root = Place { holder: "", go_path: "", path: "" };
    walk.object(message, object, root, &message.go_name());
    match walk.error {
        Some(error) => Err(error),
        None => Ok(walk.unknown),
    }
}

/// Where a value stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// Go name of the struct that holds the field; empty at the root.
    holder: &'a str,
    /// Field names from the root joined by dots, without indices.
    go_path: &'a str,
    /// The same with indices and map keys.
    path: &'a str,
}

#[derive(Default)]
struct Walk {
    unknown: Vec<String>,
    error: Option<String>,
}

impl Walk {
    fn fail(&mut self, error: String) {
        self.error.get_or_insert(error);
    }

    fn mismatch(&mut self, found: &str, place: Place<'_>, ty: &str) {
        let target = if place.holder.is_empty() {
            format!("Go value of type {ty}")
        } else {
            format!("Go struct field {}.{} of type {ty}", place.holder, place.go_path)
        };
        self.fail(format!("json: cannot unmarshal {found} into {target}"));
    }

    fn object(&mut self, message: &'static Message, value: &Value, place: Place<'_>, ty: &str) {
        let fields = match value {
            Value::Null => return,
            Value::Object(fields) => fields,
            other => return self.mismatch(kind_of(other), place, ty),
        };
        for (name, value) in fields {
            let path = join(place.path, name);
            let Some(field) = message.field(name) else {
                if self.unknown.len() < STRICT_ERRORS_MAX {
                    self.unknown.push(format!("unknown field {path:?}"));
                }
                continue;
            };
            let go_path = join(place.go_path, name);
            let place = Place { holder: message.name, go_path: &go_path, path: &path };
            self.field(field, value, place);
        }
    }

    fn field(&mut self, field: &Field, value: &Value, place: Place<'_>) {
        self.value(&field.ty, value, place);
    }

    fn value(&mut self, ty: &Type, value: &Value, place: Place<'_>) {
        if value.is_null() {
            return;
        }
        match ty.bare() {
            Type::Message(_) => {
                if let Some(message) = ty.message() {
                    self.object(message, value, place, &ty.go_name());
                }
            }
            Type::List(item) => self.list(item, value, place, &ty.go_name()),
            Type::Map(_, inner) => self.map(inner, value, place, &ty.go_name()),
            Type::OrArray | Type::OrBool | Type::OrStringArray => self.schema_or(value, place),
            Type::Json | Type::RawExtension | Type::FieldsV1 => {}
            scalar => self.scalar(scalar, ty, value, place),
        }
    }

    fn list(&mut self, item: &Type, value: &Value, place: Place<'_>, ty: &str) {
        let Value::Array(items) = value else { return self.mismatch(kind_of(value), place, ty) };
        for (index, value) in items.iter().enumerate() {
            let path = format!("{}[{index}]", place.path);
            self.value(item, value, Place { path: &path, ..place });
        }
    }

    fn map(&mut self, inner: &Type, value: &Value, place: Place<'_>, ty: &str) {
        let Value::Object(entries) = value else { return self.mismatch(kind_of(value), place, ty) };
        for (key, value) in entries {
            let path = join(place.path, key);
            self.value(inner, value, Place { path: &path, ..place });
        }
    }

    /// JSONSchemaProps or something simpler: only objects are looked into.
    fn schema_or(&mut self, value: &Value, place: Place<'_>) {
        let Some(props) = json_schema_props() else { return };
        match value {
            Value::Object(_) => self.object(props, value, place, &props.go_name()),
            Value::Array(items) => {
                for item in items.iter().filter(|item| item.is_object()) {
                    self.object(props, item, place, &props.go_name());
                }
            }
            _ => {}
        }
    }

    fn scalar(&mut self, bare: &Type, ty: &Type, value: &Value, place: Place<'_>) {
        let fits = match bare {
            Type::String | Type::Time | Type::MicroTime | Type::Duration | Type::Bytes => {
                value.is_string()
            }
            Type::Bool => value.is_boolean(),
            Type::Double => value.is_number(),
            Type::Int32 | Type::Int64 => return self.integer(bare, &ty.go_name(), value, place),
            Type::IntOrString if value.is_string() => true,
            Type::IntOrString => return self.integer(&Type::Int32, "int32", value, place),
            Type::Quantity => return self.quantity(value),
            _ => true,
        };
        if !fits {
            // Go decodes the text of a time or duration as a plain string first.
            let plain = matches!(bare, Type::Time | Type::MicroTime | Type::Duration);
            let target = if plain { "string".to_owned() } else { ty.go_name() };
            return self.mismatch(kind_of(value), place, &target);
        }
        let text = value.as_str().unwrap_or("");
        let error = match bare {
            Type::Time => scalar::time_error(text, "2006-01-02T15:04:05Z07:00"),
            Type::MicroTime => scalar::time_error(text, "2006-01-02T15:04:05.000000Z07:00"),
            Type::Duration => scalar::duration_error(text),
            Type::Bytes => scalar::base64_error(text),
            _ => None,
        };
        if let Some(error) = error {
            self.fail(error);
        }
    }

    fn integer(&mut self, bare: &Type, ty: &str, value: &Value, place: Place<'_>) {
        let Value::Number(number) = value else { return self.mismatch(kind_of(value), place, ty) };
        let fits = match bare {
            Type::Int32 => number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
            _ => number.is_i64(),
        };
        if !fits {
            self.mismatch(&format!("number {}", number), place, ty);
        }
    }

    fn quantity(&mut self, value: &Value) {
        let error = match value {
            Value::String(text) => scalar::quantity_error(text),
            Value::Number(number) => scalar::quantity_error(&number.to_string()),
            _ => Some(scalar::QUANTITY_FORMAT.to_owned()),
        };
        if let Some(error) = error {
            self.fail(error);
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    fn error(kind: (&str, &str, &str), object: serde_json::Value) -> String {
        crate::schema::check(kind.0, kind.1, kind.2, &object).expect_err("does not fit")
    }

    const SERVICE: (&str, &str, &str) = ("", "v1", "Service");
    const DEPLOYMENT: (&str, &str, &str) = ("apps", "v1", "Deployment");

    #[test]
    fn type_errors_are_worded_as_gos_decoder_words_them() {
        let cases = [
            (
                error(SERVICE, json!({"spec": {"ports": [{"port": "http"}]}})),
                "json: cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32",
            ),
            (
                error(SERVICE, json!({"spec": {"ports": [{"port": 1.5}]}})),
                "json: cannot unmarshal number 1.5 into Go struct field ServicePort.spec.ports.port of type int32",
            ),
            (
                error(SERVICE, json!({"spec": {"ports": [{"port": 1, "protocol": 6}]}})),
                "json: cannot unmarshal number into Go struct field ServicePort.spec.ports.protocol of type v1.Protocol",
            ),
            (
                error(SERVICE, json!({"spec": {"ports": [{"targetPort": true}]}})),
                "json: cannot unmarshal bool into Go struct field ServicePort.spec.ports.targetPort of type int32",
            ),
            (
                error(SERVICE, json!({"spec": {"ports": {}}})),
                "json: cannot unmarshal object into Go struct field ServiceSpec.spec.ports of type []v1.ServicePort",
            ),
            (
                error(SERVICE, json!({"spec": "x"})),
                "json: cannot unmarshal string into Go struct field Service.spec of type v1.ServiceSpec",
            ),
            (
                error(SERVICE, json!({"metadata": {"labels": {"a": 1}}})),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                error(SERVICE, json!({"metadata": {"labels": ["a"]}})),
                "json: cannot unmarshal array into Go struct field ObjectMeta.metadata.labels of type map[string]string",
            ),
            (
                error(SERVICE, json!([])),
                "json: cannot unmarshal array into Go value of type v1.Service",
            ),
            (
                error(DEPLOYMENT, json!({"spec": {"replicas": "3"}})),
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                error(DEPLOYMENT, json!({"spec": {"replicas": 99999999999_i64}})),
                "json: cannot unmarshal number 99999999999 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                error(
                    DEPLOYMENT,
                    json!({"spec": {"template": {"spec": {"containers": [{"env": [{"name": "a", "value": 1}]}]}}}}),
                ),
                "json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string",
            ),
        ];
        for (found, wanted) in cases {
            assert_eq!(found, wanted);
        }
    }

    #[test]
    fn texts_that_do_not_parse_are_worded_as_gos_parsers_word_them() {
        let cases = [
            (
                error(
                    DEPLOYMENT,
                    json!({"spec": {"template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}}}),
                ),
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
            (
                error(SERVICE, json!({"metadata": {"creationTimestamp": "yesterday"}})),
                "parsing time \"yesterday\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"yesterday\" as \"2006\"",
            ),
            (
                error(("", "v1", "Secret"), json!({"data": {"a": "%%"}})),
                "illegal base64 data at input byte 0",
            ),
        ];
        for (found, wanted) in cases {
            assert_eq!(found, wanted);
        }
    }

    #[test]
    fn unknown_fields_are_named_by_their_path() {
        let service =
            json!({"spec": {"foo": 1, "ports": [{"port": 80, "prot": "TCP"}]}, "nope": {}});
        let found = crate::schema::check("", "v1", "Service", &service).expect("types fit");
        assert_eq!(
            found,
            [
                "unknown field \"nope\"",
                "unknown field \"spec.foo\"",
                "unknown field \"spec.ports[0].prot\""
            ]
        );
    }

    #[test]
    fn unknown_kinds_are_not_checked() {
        assert_eq!(crate::schema::check("x.io", "v1", "Foo", &json!({"a": 1})), Ok(vec![]));
    }
}
