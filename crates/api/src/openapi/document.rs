//! Definitions and paths, in the dialect of either version.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::Served;
use super::descriptions::Descriptions;
use crate::schema::table::{self, Field, ListType, Message, Type};

/// Which version's words to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

impl Dialect {
    /// A reference with words beside it: v3 needs `allOf` around it.
    fn reference(self, definition: &str) -> Map<String, Value> {
        let (name, value) = match self {
            Self::V2 => ("$ref", format!("#/definitions/{definition}").into()),
            Self::V3 => ("allOf", json!([{"$ref": format!("#/components/schemas/{definition}")}])),
        };
        Map::from_iter([(name.to_owned(), value)])
    }

    /// A reference that stands alone.
    fn bare_reference(self, definition: &str) -> Value {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{definition}")}),
            Self::V3 => json!({"$ref": format!("#/components/schemas/{definition}")}),
        }
    }
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const CRD: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

/// All definitions that the kinds reach, by name.
pub(super) fn definitions(resources: &[Served<'_>], dialect: Dialect) -> Value {
    let mut builder = Builder { dialect, descriptions: Descriptions::load(), out: Map::new() };
    let mut seen = BTreeSet::new();
    for resource in resources {
        let list = format!("{}List", resource.kind);
        for kind in [resource.kind, &list, "DeleteOptions", "Status"] {
            if let Some(message) = table::find(resource.group, resource.version, kind) {
                builder.message(message, &mut seen);
            }
        }
    }
    Value::Object(builder.out)
}

struct Builder {
    dialect: Dialect,
    descriptions: Descriptions,
    out: Map<String, Value>,
}

impl Builder {
    fn message(&mut self, message: &'static Message, seen: &mut BTreeSet<String>) {
        let definition = message.definition();
        if !seen.insert(definition.clone()) {
            return;
        }
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in message.json_fields() {
            let mut schema = self.field(field, seen);
            if let Some(text) = self.descriptions.of_field(&definition, field.name) {
                schema.insert("description".to_owned(), text.into());
            }
            properties.insert(field.name.to_owned(), Value::Object(schema));
            if field.required {
                required.push(Value::from(field.name));
            }
        }
        let mut schema = json!({"type": "object"});
        if !properties.is_empty() {
            schema["properties"] = Value::Object(properties);
        }
        if !required.is_empty() {
            schema["required"] = Value::Array(required);
        }
        if let Some(text) = self.descriptions.of_message(&definition) {
            schema["description"] = text.into();
        }
        if message.atomic {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        let kinds = kinds_of(message);
        if !kinds.is_empty() {
            schema["x-kubernetes-group-version-kind"] = Value::Array(kinds);
        }
        self.out.insert(definition, schema);
    }

    fn field(&mut self, field: &'static Field, seen: &mut BTreeSet<String>) -> Map<String, Value> {
        let mut schema = self.schema(&field.ty, seen, false);
        let mut set = |name: &str, value: Value| {
            schema.insert(format!("x-kubernetes-{name}"), value);
        };
        match &field.list {
            ListType::Unset => {}
            ListType::Atomic => set("list-type", "atomic".into()),
            ListType::Set => set("list-type", "set".into()),
            ListType::Map(keys) => {
                set("list-type", "map".into());
                set("list-map-keys", json!(keys));
            }
        }
        for (name, value) in [
            ("map-type", field.map_type),
            ("patch-strategy", field.strategy),
            ("patch-merge-key", field.merge_key),
        ] {
            if !value.is_empty() {
                set(name, value.into());
            }
        }
        if let Ok(default) = serde_json::from_str::<Value>(field.default) {
            schema.insert("default".to_owned(), default);
        }
        schema
    }

    /// `alone`: nothing will stand beside a reference.
    fn schema(
        &mut self,
        ty: &'static Type,
        seen: &mut BTreeSet<String>,
        alone: bool,
    ) -> Map<String, Value> {
        let plain = |schema: Value| schema.as_object().cloned().unwrap_or_default();
        match ty.bare() {
            Type::String => plain(json!({"type": "string"})),
            Type::Int32 => plain(json!({"type": "integer", "format": "int32"})),
            Type::Int64 => plain(json!({"type": "integer", "format": "int64"})),
            Type::Bool => plain(json!({"type": "boolean"})),
            Type::Double => plain(json!({"type": "number", "format": "double"})),
            Type::Bytes => plain(json!({"type": "string", "format": "byte"})),
            Type::List(item) => {
                plain(json!({"type": "array", "items": self.schema(item, seen, true)}))
            }
            Type::Map(_, inner) => plain(
                json!({"type": "object", "additionalProperties": self.schema(inner, seen, true)}),
            ),
            Type::Message(_) => match ty.message() {
                Some(message) => {
                    self.message(message, seen);
                    self.refer(&message.definition(), alone)
                }
                None => Map::new(),
            },
            special => {
                let (definition, schema) = special_definition(special, self.dialect);
                self.out.entry(definition.clone()).or_insert(schema);
                self.refer(&definition, alone)
            }
        }
    }

    fn refer(&self, definition: &str, alone: bool) -> Map<String, Value> {
        if alone {
            self.dialect.bare_reference(definition).as_object().cloned().unwrap_or_default()
        } else {
            self.dialect.reference(definition)
        }
    }
}

/// Types with an encoding of their own.
fn special_definition(ty: &Type, dialect: Dialect) -> (String, Value) {
    let either = |format: Option<&str>, first: &str| match (dialect, format) {
        (Dialect::V2, Some(format)) => json!({"type": "string", "format": format}),
        (Dialect::V2, None) => json!({"type": "string"}),
        (Dialect::V3, format) => {
            let mut schema = json!({"oneOf": [{"type": first}, {"type": if first == "string" { "number" } else { "string" }}]});
            if let Some(format) = format {
                schema["format"] = format.into();
            }
            schema
        }
    };
    match ty {
        Type::Time => (format!("{META}.Time"), json!({"type": "string", "format": "date-time"})),
        Type::MicroTime => {
            (format!("{META}.MicroTime"), json!({"type": "string", "format": "date-time"}))
        }
        Type::Duration => (format!("{META}.Duration"), json!({"type": "string"})),
        Type::FieldsV1 => (format!("{META}.FieldsV1"), json!({"type": "object"})),
        Type::Quantity => {
            ("io.k8s.apimachinery.pkg.api.resource.Quantity".to_owned(), either(None, "string"))
        }
        Type::IntOrString => (
            "io.k8s.apimachinery.pkg.util.intstr.IntOrString".to_owned(),
            either(Some("int-or-string"), "integer"),
        ),
        Type::RawExtension => {
            ("io.k8s.apimachinery.pkg.runtime.RawExtension".to_owned(), json!({"type": "object"}))
        }
        Type::OrArray => (format!("{CRD}.JSONSchemaPropsOrArray"), json!({})),
        Type::OrBool => (format!("{CRD}.JSONSchemaPropsOrBool"), json!({})),
        Type::OrStringArray => (format!("{CRD}.JSONSchemaPropsOrStringArray"), json!({})),
        _ => (format!("{CRD}.JSON"), json!({})),
    }
}

/// The kinds that a message stands for; meta's own are core's.
fn kinds_of(message: &'static Message) -> Vec<Value> {
    table::kinds()
        .filter(|(_, other)| std::ptr::eq(*other, message))
        .map(|((group, version, kind), _)| {
            let group = if group == "meta.k8s.io" { "" } else { group };
            json!({"group": group, "kind": kind, "version": version})
        })
        .collect()
}

/// The paths of every resource with its actions.
pub(super) fn paths(resources: &[Served<'_>], dialect: Dialect) -> Value {
    let mut out = Map::new();
    for resource in resources {
        let root = format!("/{}", resource.root());
        let collection = if resource.namespaced {
            out.insert(
                format!("{root}/{}", resource.plural),
                item(resource, &[("get", "list")], dialect),
            );
            format!("{root}/namespaces/{{namespace}}/{}", resource.plural)
        } else {
            format!("{root}/{}", resource.plural)
        };
        let named = [("get", "get"), ("put", "put"), ("patch", "patch"), ("delete", "delete")];
        let all = [("get", "list"), ("post", "post"), ("delete", "deletecollection")];
        out.insert(format!("{collection}/{{name}}"), item(resource, &named, dialect));
        out.insert(collection, item(resource, &all, dialect));
    }
    Value::Object(out)
}

/// One path: its operations by HTTP verb and action.
fn item(resource: &Served<'_>, operations: &[(&str, &str)], dialect: Dialect) -> Value {
    operations
        .iter()
        .map(|(verb, action)| ((*verb).to_owned(), operation(resource, action, dialect)))
        .collect::<Map<String, Value>>()
        .into()
}

fn operation(resource: &Served<'_>, action: &str, dialect: Dialect) -> Value {
    let kind = resource.kind;
    let mut operation = json!({
        "operationId": format!("{action}{}{}{kind}", pascal(resource.group), pascal(resource.version)),
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": resource.group, "kind": kind, "version": resource.version},
    });
    let names: &[&str] = match action {
        "post" | "put" => &["dryRun", "fieldManager", "fieldValidation"],
        "patch" => &["dryRun", "fieldManager", "fieldValidation", "force"],
        "delete" | "deletecollection" => &["dryRun", "gracePeriodSeconds", "propagationPolicy"],
        _ => &[],
    };
    if !names.is_empty() {
        operation["parameters"] = names.iter().map(|name| parameter(name, dialect)).collect();
    }
    if dialect == Dialect::V3
        && matches!(action, "post" | "put")
        && let Some(message) = table::find(resource.group, resource.version, kind)
    {
        let schema = dialect.bare_reference(&message.definition());
        operation["requestBody"] =
            json!({"content": {"*/*": {"schema": schema}}, "required": true});
    }
    operation
}

fn parameter(name: &str, dialect: Dialect) -> Value {
    let kind = match name {
        "force" => "boolean",
        "gracePeriodSeconds" => "integer",
        _ => "string",
    };
    match dialect {
        Dialect::V2 => json!({"name": name, "in": "query", "type": kind, "uniqueItems": true}),
        Dialect::V3 => {
            json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
        }
    }
}

/// `networking.k8s.io` as `NetworkingK8sIo`; `Core` for the core group.
fn pascal(text: &str) -> String {
    if text.is_empty() {
        return "Core".to_owned();
    }
    text.split('.')
        .map(|part| {
            let mut letters = part.chars();
            letters.next().map_or_else(String::new, |first| {
                first.to_ascii_uppercase().to_string() + letters.as_str()
            })
        })
        .collect()
}
