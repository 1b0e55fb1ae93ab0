//! The field tables themselves: reads `schema/fields.txt` once into an index.
//!
//! The text is checked in and written by `schema/generate.py`; names are slices of it, so the index owns few strings.

use std::collections::BTreeMap;
use std::sync::LazyLock;

static TEXT: &str = include_str!("../../schema/fields.txt");
static TABLE: LazyLock<Table> = LazyLock::new(|| Table::parse(TEXT));

/// All tables.
#[derive(Debug)]
pub(crate) struct Table {
    messages: Vec<Message>,
    packages: BTreeMap<&'static str, Package>,
    kinds: BTreeMap<(&'static str, &'static str, &'static str), usize>,
}

/// A package of types: a group version or a support package.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Package {
    /// What OpenAPI definitions of the package begin with: `io.k8s.api.core.v1`.
    pub(crate) prefix: &'static str,
    /// The Go package's own name: `v1`.
    pub(crate) go: &'static str,
}

/// An object type.
#[derive(Debug)]
pub(crate) struct Message {
    /// Its package: `core/v1`.
    pub(crate) package: &'static str,
    /// Its name: `ServicePort`.
    pub(crate) name: &'static str,
    /// Owned as a whole under server-side apply.
    pub(crate) atomic: bool,
    /// Fields as declared, embedded structs included; protobuf's view.
    pub(crate) fields: Vec<Field>,
    /// Fields by JSON name with embedded structs flattened, sorted; JSON's view.
    flat: Vec<Field>,
}

/// A field of a message.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    /// JSON name.
    pub(crate) name: &'static str,
    /// Protobuf tag; 0 when the field is not in protobuf.
    pub(crate) tag: u32,
    /// What it holds.
    pub(crate) ty: Type,
    /// A Go pointer: an explicit zero is kept.
    pub(crate) pointer: bool,
    /// Embedded: its fields belong to the parent in JSON.
    pub(crate) inline: bool,
    /// A zero value is not written.
    pub(crate) omit_empty: bool,
    /// Required by the OpenAPI schema.
    pub(crate) required: bool,
    /// How a list merges under server-side apply.
    pub(crate) list: ListType,
    /// `atomic` or `granular`; empty when not said.
    pub(crate) map_type: &'static str,
    /// Patch strategies: `merge`, `retainKeys`, comma-separated.
    pub(crate) strategy: &'static str,
    /// Key of list elements in strategic merge; empty when none.
    pub(crate) merge_key: &'static str,
    /// Default as JSON text; empty when none.
    pub(crate) default: &'static str,
}

/// How a list merges under server-side apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ListType {
    /// As one value; also when the type does not say.
    #[default]
    Unset,
    /// As one value.
    Atomic,
    /// As a set of scalars.
    Set,
    /// As a map from the named keys to elements.
    Map(Vec<&'static str>),
}

/// What a field holds.
#[derive(Clone, Debug)]
pub(crate) enum Type {
    String,
    Int32,
    Int64,
    Bool,
    Double,
    Bytes,
    Time,
    MicroTime,
    Duration,
    Quantity,
    IntOrString,
    /// A JSON object of a type known elsewhere.
    RawExtension,
    FieldsV1,
    /// Any JSON value.
    Json,
    /// JSONSchemaProps or a list of them.
    OrArray,
    /// JSONSchemaProps or a boolean.
    OrBool,
    /// JSONSchemaProps or a list of strings.
    OrStringArray,
    /// A named type with its Go package and name.
    Named(&'static str, &'static str, Box<Type>),
    List(Box<Type>),
    /// Go name of the key type, and the value.
    Map(&'static str, Box<Type>),
    /// Index of a message; `message()` finds it.
    Message(usize),
}

impl Type {
    /// The type behind a name.
    pub(crate) fn bare(&self) -> &Type {
        match self {
            Self::Named(_, _, inner) => inner.bare(),
            other => other,
        }
    }

    /// The message, if it is one.
    pub(crate) fn message(&self) -> Option<&'static Message> {
        match self.bare() {
            Self::Message(index) => TABLE.messages.get(*index),
            _ => None,
        }
    }

    /// As Go's reflection prints it: `v1.Protocol`, `[]v1.ServicePort`.
    pub(crate) fn go_name(&self) -> String {
        match self {
            Self::String => "string".to_owned(),
            Self::Int32 => "int32".to_owned(),
            Self::Int64 => "int64".to_owned(),
            Self::Bool => "bool".to_owned(),
            Self::Double => "float64".to_owned(),
            Self::Bytes => "[]uint8".to_owned(),
            Self::Time => "v1.Time".to_owned(),
            Self::MicroTime => "v1.MicroTime".to_owned(),
            Self::Duration => "v1.Duration".to_owned(),
            Self::Quantity => "resource.Quantity".to_owned(),
            Self::IntOrString => "intstr.IntOrString".to_owned(),
            Self::RawExtension => "runtime.RawExtension".to_owned(),
            Self::FieldsV1 => "v1.FieldsV1".to_owned(),
            Self::Json => "v1.JSON".to_owned(),
            Self::OrArray => "v1.JSONSchemaPropsOrArray".to_owned(),
            Self::OrBool => "v1.JSONSchemaPropsOrBool".to_owned(),
            Self::OrStringArray => "v1.JSONSchemaPropsOrStringArray".to_owned(),
            Self::Named(package, name, _) => format!("{package}.{name}"),
            Self::List(item) => format!("[]{}", item.go_name()),
            Self::Map(key, value) => format!("map[{}]{}", key_name(key), value.go_name()),
            Self::Message(_) => self.message().map(Message::go_name).unwrap_or_default(),
        }
    }
}

/// `core/v1.ResourceName` as Go prints it.
fn key_name(key: &str) -> String {
    key.rsplit_once('/').map_or_else(|| key.to_owned(), |(_, name)| name.to_owned())
}

/// What `OrArray`, `OrBool` and `OrStringArray` hold besides.
pub(crate) fn json_schema_props() -> Option<&'static Message> {
    TABLE.messages.iter().find(|message| message.name == "JSONSchemaProps")
}

impl Message {
    /// The field of a JSON name, embedded structs included.
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        self.flat.binary_search_by(|field| field.name.cmp(name)).ok().map(|index| &self.flat[index])
    }

    /// All fields in JSON's view, sorted by name.
    pub(crate) fn json_fields(&self) -> &[Field] {
        &self.flat
    }

    /// The field of a protobuf tag.
    pub(crate) fn tagged(&self, tag: u32) -> Option<&Field> {
        self.fields.iter().find(|field| field.tag == tag && tag != 0)
    }

    /// `v1.ServicePort`.
    pub(crate) fn go_name(&self) -> String {
        let go = TABLE.packages.get(self.package).map_or("v1", |package| package.go);
        format!("{go}.{}", self.name)
    }

    /// `io.k8s.api.core.v1.ServicePort`.
    pub(crate) fn definition(&self) -> String {
        let prefix = TABLE.packages.get(self.package).map_or("", |package| package.prefix);
        format!("{prefix}.{}", self.name)
    }
}

/// The message of a kind; options and Status are found in every group version.
pub(crate) fn find(group: &str, version: &str, kind: &str) -> Option<&'static Message> {
    let index = TABLE
        .kinds
        .get(&(group, version, kind))
        .or_else(|| TABLE.kinds.get(&("meta.k8s.io", "v1", kind)))?;
    TABLE.messages.get(*index)
}

/// All kinds as (group, version, kind) with their messages.
pub(crate) fn kinds()
-> impl Iterator<Item = ((&'static str, &'static str, &'static str), &'static Message)> {
    TABLE.kinds.iter().map(|(kind, index)| (*kind, &TABLE.messages[*index]))
}

/// The text's items before names are resolved.
#[derive(Default)]
struct Raw {
    packages: BTreeMap<&'static str, Package>,
    aliases: BTreeMap<&'static str, &'static str>,
    messages: Vec<(&'static str, bool, Vec<&'static str>)>,
    kinds: Vec<(&'static str, &'static str, &'static str)>,
}

impl Raw {
    fn read(text: &'static str) -> Self {
        let mut raw = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split(' ');
            let (head, rest): (&str, Vec<&'static str>) =
                (words.next().unwrap_or(""), words.collect());
            match (head, rest.as_slice()) {
                ("P", [name, prefix, go]) => {
                    raw.packages.insert(name, Package { prefix, go });
                }
                ("A", [name, ty]) => {
                    raw.aliases.insert(name, ty);
                }
                ("M", [name, rest @ ..]) => {
                    raw.messages.push((name, rest == ["atomic"], Vec::new()));
                }
                ("K", [group, version, name]) => {
                    raw.kinds.push((if *group == "-" { "" } else { group }, version, name));
                }
                _ => raw.messages.last_mut().expect("fields follow a message").2.push(line),
            }
        }
        raw
    }

    /// Resolves a type expression; the leading `*` is the caller's.
    fn ty(&self, text: &'static str, index: &BTreeMap<&'static str, usize>) -> Type {
        match text {
            "string" => Type::String,
            "int" | "int64" | "uint64" | "uint32" => Type::Int64,
            "int32" | "uint8" => Type::Int32,
            "bool" => Type::Bool,
            "float64" => Type::Double,
            "[]byte" => Type::Bytes,
            "Time" => Type::Time,
            "MicroTime" => Type::MicroTime,
            "Duration" => Type::Duration,
            "Quantity" => Type::Quantity,
            "IntOrString" => Type::IntOrString,
            "RawExtension" => Type::RawExtension,
            "FieldsV1" => Type::FieldsV1,
            "JSON" | "any" | "interface{}" => Type::Json,
            "OrArray" => Type::OrArray,
            "OrBool" => Type::OrBool,
            "OrStringArray" => Type::OrStringArray,
            _ => self.compound(text, index),
        }
    }

    fn compound(&self, text: &'static str, index: &BTreeMap<&'static str, usize>) -> Type {
        if let Some(item) = text.strip_prefix("[]") {
            return Type::List(Box::new(self.ty(item.trim_start_matches('*'), index)));
        }
        if let Some((key, value)) = text.strip_prefix("map[").and_then(|rest| rest.split_once(']'))
        {
            return Type::Map(key, Box::new(self.ty(value.trim_start_matches('*'), index)));
        }
        if let Some(inner) = self.aliases.get(text) {
            let (package, name) = text.rsplit_once('.').unwrap_or(("", text));
            let go = self.packages.get(package).map_or(package, |package| package.go);
            return Type::Named(go, name, Box::new(self.ty(inner, index)));
        }
        index.get(text).map_or(Type::Json, |index| Type::Message(*index))
    }

    fn field(&self, line: &'static str, index: &BTreeMap<&'static str, usize>) -> Field {
        let (line, default) = line.split_once(" D:").unwrap_or((line, ""));
        let mut words = line.split(' ');
        let name = words.next().unwrap_or("");
        let tag = words.next().and_then(|tag| tag.parse().ok()).unwrap_or(0);
        let text = words.next().unwrap_or("");
        let mut field = Field {
            name,
            tag,
            ty: self.ty(text.trim_start_matches('*'), index),
            pointer: text.starts_with('*'),
            inline: false,
            omit_empty: false,
            required: false,
            list: ListType::Unset,
            map_type: "",
            strategy: "",
            merge_key: "",
            default,
        };
        for flag in words {
            match flag.split_once(':') {
                None if flag == "i" => field.inline = true,
                None if flag == "o" || flag == "z" => field.omit_empty = true,
                None if flag == "r" => field.required = true,
                Some(("L", list)) => field.list = list_type(list),
                Some(("X", kind)) => field.map_type = kind,
                Some(("S", strategy)) => field.strategy = strategy,
                Some(("G", key)) => field.merge_key = key,
                _ => {}
            }
        }
        field
    }
}

fn list_type(text: &'static str) -> ListType {
    match text.split_once(':') {
        Some(("map", keys)) => ListType::Map(keys.split(',').collect()),
        _ if text == "set" => ListType::Set,
        _ => ListType::Atomic,
    }
}

impl Table {
    fn parse(text: &'static str) -> Self {
        let raw = Raw::read(text);
        let index: BTreeMap<&'static str, usize> = raw
            .messages
            .iter()
            .enumerate()
            .map(|(position, (name, _, _))| (*name, position))
            .collect();
        let mut messages: Vec<Message> = Vec::with_capacity(raw.messages.len());
        for (full, atomic, lines) in &raw.messages {
            let (package, name) = full.rsplit_once('.').unwrap_or(("", full));
            let fields = lines.iter().map(|line| raw.field(line, &index)).collect();
            messages.push(Message { package, name, atomic: *atomic, fields, flat: Vec::new() });
        }
        let mut kinds = BTreeMap::new();
        for (group, version, full) in &raw.kinds {
            let (_, name) = full.rsplit_once('.').unwrap_or(("", full));
            if let Some(position) = index.get(full) {
                kinds.insert((*group, *version, name), *position);
            }
        }
        let flats: Vec<Vec<Field>> = (0..messages.len())
            .map(|position| {
                let mut flat = flatten(&messages, position);
                if kinds.values().any(|kind| *kind == position) {
                    flat.push(raw.field("apiVersion 0 string o", &index));
                    flat.push(raw.field("kind 0 string o", &index));
                }
                flat.sort_by_key(|field| field.name);
                flat
            })
            .collect();
        for (message, flat) in messages.iter_mut().zip(flats) {
            message.flat = flat;
        }
        Self { messages, packages: raw.packages, kinds }
    }
}

fn flatten(messages: &[Message], position: usize) -> Vec<Field> {
    let mut flat = Vec::new();
    for field in &messages[position].fields {
        match field.ty {
            Type::Message(inner) if field.inline => flat.extend(flatten(messages, inner)),
            _ => flat.push(field.clone()),
        }
    }
    flat
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_the_table_is_found() {
        assert!(kinds().count() > 100);
        for (_, message) in kinds() {
            assert!(message.field("kind").is_some(), "{}", message.name);
        }
    }

    #[test]
    fn no_type_of_the_table_is_left_unresolved() {
        let raw = Raw::read(TEXT);
        let messages: Vec<&str> = raw.messages.iter().map(|message| message.0).collect();
        for line in raw.messages.iter().flat_map(|message| &message.2) {
            let word = line.split(' ').nth(2).unwrap_or("");
            let bare = word.rsplit(']').next().unwrap_or("").trim_start_matches('*');
            let known =
                !bare.contains('.') || messages.contains(&bare) || raw.aliases.contains_key(bare);
            assert!(known, "{line}");
        }
    }

    #[test]
    fn embedded_structs_are_flattened_for_json() {
        let pod = find("", "v1", "Pod")
            .and_then(|pod| pod.field("spec")?.ty.message())
            .expect("Pod has a spec");
        let Type::List(volume) = &pod.field("volumes").expect("has volumes").ty else {
            panic!("not a list")
        };
        let volume = volume.message().expect("is a message");
        assert!(volume.field("configMap").is_some());
        assert_eq!(volume.tagged(2).map(|field| field.inline), Some(true));
    }

    #[test]
    fn options_are_found_in_every_group_version() {
        assert_eq!(
            find("apps", "v1", "DeleteOptions").map(|message| message.package),
            Some("meta/v1")
        );
        assert_eq!(
            find("apps", "v1", "Deployment").map(Message::definition).as_deref(),
            Some("io.k8s.api.apps.v1.Deployment")
        );
    }
}
