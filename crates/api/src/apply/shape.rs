//! How a place in an object merges: as one value, by fields, by keys, or as a set.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::set::Element;
use crate::schema::table::{Field, ListType, Message, Type};

/// How a place merges.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// As one value.
    Leaf,
    /// By the fields of a message.
    Struct(&'static Message),
    /// By keys; the values' type.
    Map(&'static Type),
    /// A list of distinct scalars.
    Set,
    /// A list of messages told apart by these fields.
    Keyed(&'static [&'static str], Option<&'static Message>),
    /// No table: objects by field, everything else as one value.
    Deduced,
}

/// The children of a value with their steps and shapes.
pub(super) type Children<'a> = Vec<(Element, &'a Value, Shape)>;

impl Shape {
    /// The root of a kind.
    pub(super) fn root(message: Option<&'static Message>) -> Self {
        message.map_or(Self::Deduced, Self::Struct)
    }

    pub(super) fn of_field(field: &'static Field) -> Self {
        if field.map_type == "atomic" {
            return Self::Leaf;
        }
        match (&field.list, field.ty.bare()) {
            (ListType::Set, Type::List(_)) => Self::Set,
            (ListType::Map(keys), Type::List(item)) => Self::Keyed(keys, item.message()),
            (_, Type::Message(_)) if field.map_type == "granular" => {
                field.ty.message().map_or(Self::Leaf, Self::Struct)
            }
            _ => Self::of_type(&field.ty),
        }
    }

    fn of_type(ty: &'static Type) -> Self {
        match ty.bare() {
            Type::Message(_) => match ty.message() {
                Some(message) if !message.atomic => Self::Struct(message),
                _ => Self::Leaf,
            },
            Type::Map(_, inner) => Self::Map(inner),
            _ => Self::Leaf,
        }
    }

    /// The shape of a named field.
    pub(super) fn field(self, name: &str) -> Self {
        match self {
            Self::Struct(message) => message.field(name).map_or(Self::Deduced, Self::of_field),
            Self::Map(inner) => Self::of_type(inner),
            Self::Deduced => Self::Deduced,
            Self::Leaf | Self::Set | Self::Keyed(..) => Self::Leaf,
        }
    }

    /// The children of a value of this shape; `None` when it merges as one value.
    pub(super) fn children<'a>(self, value: &'a Value) -> Option<Children<'a>> {
        match (self, value) {
            (Self::Struct(_) | Self::Map(_) | Self::Deduced, Value::Object(fields)) => Some(
                fields
                    .iter()
                    .filter(|(_, value)| !value.is_null())
                    .map(|(name, value)| (Element::Field(name.clone()), value, self.field(name)))
                    .collect(),
            ),
            (Self::Set | Self::Keyed(..), Value::Array(items)) => Some(
                items
                    .iter()
                    .filter_map(|item| Some((self.element(item)?, item, self.item())))
                    .collect(),
            ),
            _ => None,
        }
    }

    /// The shape of a list's elements.
    pub(super) fn item(self) -> Self {
        match self {
            Self::Keyed(_, message) => message.map_or(Self::Deduced, Self::Struct),
            _ => Self::Leaf,
        }
    }

    /// The step to an element of a list; `None` when it lacks a key.
    pub(super) fn element(self, item: &Value) -> Option<Element> {
        match self {
            Self::Set => Some(Element::Value(item.to_string())),
            Self::Keyed(keys, message) => {
                let fields = item.as_object()?;
                let mut found = Map::new();
                for key in keys {
                    if let Some(value) = key_value(key, message, fields) {
                        found.insert((*key).to_owned(), value.into_owned());
                    }
                }
                let optional = |key: &str| {
                    message.and_then(|m| m.field(key)).is_some_and(|field| !field.required)
                };
                let complete = keys
                    .iter()
                    .all(|key| found.contains_key(*key) || (optional(key) && !found.is_empty()));
                complete.then(|| Element::Key(Value::Object(found).to_string()))
            }
            _ => None,
        }
    }

    /// The first key field that an element lacks.
    pub(super) fn missing_key(self, item: &Value) -> Option<&'static str> {
        let Self::Keyed(keys, message) = self else { return None };
        let empty = Map::new();
        let fields = item.as_object().unwrap_or(&empty);
        keys.iter().find(|key| key_value(key, message, fields).is_none()).copied()
    }
}

/// A key field's value or its default.
fn key_value<'a>(
    key: &str,
    message: Option<&'static Message>,
    fields: &'a Map<String, Value>,
) -> Option<Cow<'a, Value>> {
    if let Some(value) = fields.get(key).filter(|value| !value.is_null()) {
        return Some(Cow::Borrowed(value));
    }
    let default = message?.field(key)?.default;
    serde_json::from_str(default).ok().map(Cow::Owned)
}
