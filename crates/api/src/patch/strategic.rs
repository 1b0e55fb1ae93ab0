//! Strategic merge: maps merge, lists merge by key where the table says so, and `$` directives say the rest.

use serde_json::{Map, Value};

use super::rejected;
use crate::schema::table::{Field, Message, Type};
use crate::{Reason, StatusError};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;

/// Merges `patch` into `object`; `message` is `None` where the table does not reach.
pub(super) fn merge_object(
    message: Option<&'static Message>,
    object: &mut Object,
    patch: &Object,
) -> Result<(), StatusError> {
    match patch.get(PATCH) {
        None => {}
        Some(Value::String(directive)) => match directive.as_str() {
            "merge" => {}
            "replace" => {
                *object = patch.clone();
                object.remove(PATCH);
                return Ok(());
            }
            "delete" => {
                object.clear();
                return Ok(());
            }
            _ => return Err(unknown_directive(directive, patch)),
        },
        Some(other) => return Err(unknown_directive(&other.to_string(), patch)),
    }
    retain_keys(object, patch)?;
    for (name, value) in patch.iter().filter(|(name, _)| !name.starts_with('$')) {
        let field = message.and_then(|message| message.field(name));
        merge_field(field, name, value, object, patch)?;
    }
    for (directive, value) in patch {
        let name = directive
            .strip_prefix(ELEMENT_ORDER)
            .or_else(|| directive.strip_prefix(DELETE_PRIMITIVES));
        let Some(name) = name.filter(|name| !patch.contains_key(*name)) else { continue };
        if !value.is_array() {
            return Err(bad_list_directive(directive));
        }
        let field = message.and_then(|message| message.field(name));
        if let (Some(Value::Array(items)), Some(field)) = (object.get(name), field) {
            let merged = merge_list(field, items, &[], ListDirectives::of(patch, name)?)?;
            object.insert(name.to_owned(), Value::Array(merged));
        }
    }
    Ok(())
}

fn merge_field(
    field: Option<&Field>,
    name: &str,
    value: &Value,
    object: &mut Object,
    patch: &Object,
) -> Result<(), StatusError> {
    let strategy = field.map_or("", |field| field.strategy);
    let replaces = strategy.split(',').any(|word| word == "replace");
    match (value, object.get_mut(name)) {
        (Value::Null, _) => {
            object.remove(name);
        }
        (Value::Object(patch), Some(Value::Object(object))) if !replaces => {
            merge_typed(field.map(|field| &field.ty), object, patch)?;
        }
        (Value::Object(patch), _) => {
            let mut fresh = Object::new();
            merge_typed(field.map(|field| &field.ty), &mut fresh, patch)?;
            object.insert(name.to_owned(), Value::Object(fresh));
        }
        (Value::Array(items), current) => {
            let merges = field.filter(|_| strategy.split(',').any(|word| word == "merge"));
            let list = match (merges, current) {
                (Some(field), current) => {
                    let old = current.and_then(|list| list.as_array().cloned()).unwrap_or_default();
                    merge_list(field, &old, items, ListDirectives::of(patch, name)?)?
                }
                (None, _) => without_directives(items),
            };
            object.insert(name.to_owned(), Value::Array(list));
        }
        (scalar, _) => {
            object.insert(name.to_owned(), scalar.clone());
        }
    }
    Ok(())
}

fn merge_typed(ty: Option<&Type>, object: &mut Object, patch: &Object) -> Result<(), StatusError> {
    match ty.map(Type::bare) {
        Some(Type::Map(_, inner)) if inner.message().is_some() && !patch.contains_key(PATCH) => {
            for (key, value) in patch {
                match (value, object.get_mut(key)) {
                    (Value::Null, _) => {
                        object.remove(key);
                    }
                    (Value::Object(patch), Some(Value::Object(object))) => {
                        merge_typed(Some(inner), object, patch)?;
                    }
                    (other, _) => {
                        object.insert(key.clone(), other.clone());
                    }
                }
            }
            Ok(())
        }
        _ => merge_object(ty.and_then(Type::message), object, patch),
    }
}

/// `$retainKeys`: of a union, all but the named keys go.
fn retain_keys(object: &mut Object, patch: &Object) -> Result<(), StatusError> {
    let Some(keys) = patch.get(RETAIN_KEYS) else { return Ok(()) };
    let bad = || StatusError::bad_request("invalid patch format of retainKeys");
    let keys = keys.as_array().ok_or_else(bad)?;
    let named = |name: &str| keys.iter().any(|key| key.as_str() == Some(name));
    let stray = patch
        .iter()
        .any(|(name, value)| !name.starts_with('$') && !value.is_null() && !named(name));
    if stray {
        return Err(bad());
    }
    object.retain(|name, _| named(name));
    Ok(())
}

/// What a patch says about one list beside its elements.
#[derive(Clone, Copy)]
struct ListDirectives<'a> {
    order: Option<&'a [Value]>,
    delete: &'a [Value],
}

impl<'a> ListDirectives<'a> {
    fn of(patch: &'a Object, name: &str) -> Result<Self, StatusError> {
        let list = |prefix: &str| match patch.get(&format!("{prefix}{name}")) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items.as_slice())),
            Some(_) => Err(bad_list_directive(prefix)),
        };
        Ok(Self { order: list(ELEMENT_ORDER)?, delete: list(DELETE_PRIMITIVES)?.unwrap_or(&[]) })
    }
}

fn merge_list(
    field: &Field,
    old: &[Value],
    patch: &[Value],
    directives: ListDirectives<'_>,
) -> Result<Vec<Value>, StatusError> {
    let item = match field.ty.bare() {
        Type::List(item) => item.as_ref(),
        _ => return Ok(patch.to_vec()),
    };
    let (merged, touched) = if item.message().is_some() && !field.merge_key.is_empty() {
        merge_elements(field.merge_key, item, old, patch)?
    } else {
        merge_primitives(old, patch, directives.delete)
    };
    let key = |value: &Value| -> Value {
        value.get(field.merge_key).filter(|_| !field.merge_key.is_empty()).unwrap_or(value).clone()
    };
    let touched: Vec<Value> = touched.iter().map(key).collect();
    let order = match directives.order {
        Some(order) => {
            let keys: Vec<Value> = order.iter().map(key).collect();
            check_order(patch, order, &key)?;
            keys
        }
        None => touched,
    };
    let server: Vec<Value> = old.iter().map(key).collect();
    Ok(ordered(merged, &order, &server, &key))
}

/// The patch's elements must stand in the order that the patch asks for.
fn check_order(
    patch: &[Value],
    order: &[Value],
    key: &dyn Fn(&Value) -> Value,
) -> Result<(), StatusError> {
    let mut rest = order.iter();
    let in_order = patch
        .iter()
        .filter(|item| item.get(PATCH).is_none_or(|directive| directive != "delete"))
        .all(|item| rest.any(|wanted| key(wanted) == key(item)));
    if in_order {
        return Ok(());
    }
    let text = |items: &[Value]| go_text(&Value::Array(items.to_vec()));
    Err(StatusError::new(
        Reason::InternalError,
        format!(
            "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
            text(patch),
            text(order)
        ),
    ))
}

/// A value as Go's `%v` prints it, which is how errors show a patch.
#[must_use]
pub fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" "))
        }
        Value::Object(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|(name, value)| format!("{name}:{}", go_text(value))).collect();
            format!("map[{}]", fields.join(" "))
        }
        other => other.to_string(),
    }
}

/// Scalars: new ones join, then those to delete go. Also returns what the patch named.
fn merge_primitives(old: &[Value], patch: &[Value], delete: &[Value]) -> (Vec<Value>, Vec<Value>) {
    let mut merged = old.to_vec();
    for item in patch {
        if !merged.contains(item) {
            merged.push(item.clone());
        }
    }
    merged.retain(|item| !delete.contains(item));
    (merged, patch.to_vec())
}

/// Objects by their merge key. Also returns the patch's elements that are not directives.
fn merge_elements(
    key: &str,
    item: &Type,
    old: &[Value],
    patch: &[Value],
) -> Result<(Vec<Value>, Vec<Value>), StatusError> {
    let mut merged = old.to_vec();
    let mut elements = Vec::new();
    let mut replace = false;
    for element in patch {
        let Value::Object(fields) = element else { return Err(rejected()) };
        match fields.get(PATCH).map(|directive| directive.as_str().unwrap_or("")) {
            Some("delete") => {
                let wanted = fields.get(key).ok_or_else(rejected)?;
                merged.retain(|element| element.get(key) != Some(wanted));
            }
            Some("replace") => replace = true,
            None | Some("merge") => elements.push(element.clone()),
            Some(other) => return Err(unknown_directive(other, fields)),
        }
    }
    if replace {
        return Ok((without_directives(&elements), elements));
    }
    for element in &elements {
        let Value::Object(patch) = element else { continue };
        let wanted = patch.get(key).ok_or_else(rejected)?;
        match merged.iter_mut().find(|element| element.get(key) == Some(wanted)) {
            Some(Value::Object(object)) => merge_typed(Some(item), object, patch)?,
            _ => {
                let mut fresh = Object::new();
                merge_typed(Some(item), &mut fresh, patch)?;
                merged.push(Value::Object(fresh));
            }
        }
    }
    Ok((merged, elements))
}

/// Elements in the order the patch asks for; those it does not name keep their place among their old neighbours.
fn ordered(
    merged: Vec<Value>,
    order: &[Value],
    server: &[Value],
    key: &dyn Fn(&Value) -> Value,
) -> Vec<Value> {
    let place = |list: &[Value], value: &Value| list.iter().position(|item| *item == key(value));
    let (mut asked, own): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(order, item).is_some());
    asked.sort_by_key(|item| place(order, item).unwrap_or(usize::MAX));
    let mut asked = asked.into_iter().peekable();
    let mut out = Vec::new();
    for item in own {
        let at = place(server, &item);
        // An element that is new to the server stands before every old one.
        while let Some(next) = asked.next_if(|next| place(server, next) <= at) {
            out.push(next);
        }
        out.push(item);
    }
    out.extend(asked);
    out
}

/// A list as it is stored: without `$` keys, nulls dropped from objects.
fn without_directives(items: &[Value]) -> Vec<Value> {
    items
        .iter()
        .filter(|item| item.get(PATCH).is_none_or(|directive| directive == "merge"))
        .map(|item| match item {
            Value::Object(fields) => Value::Object(
                fields
                    .iter()
                    .filter(|(name, _)| !is_directive(name))
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect(),
            ),
            other => other.clone(),
        })
        .collect()
}

fn is_directive(name: &str) -> bool {
    name == PATCH
        || name == RETAIN_KEYS
        || name.starts_with(ELEMENT_ORDER)
        || name.starts_with(DELETE_PRIMITIVES)
}

fn unknown_directive(directive: &str, patch: &Object) -> StatusError {
    StatusError::bad_request(format!(
        "unknown patch type: {directive:?} in: {}",
        Value::Object(patch.clone())
    ))
}

fn bad_list_directive(directive: &str) -> StatusError {
    StatusError::bad_request(if directive.starts_with(ELEMENT_ORDER) {
        "invalid patch format of setElementOrder list"
    } else {
        "invalid patch format of primitive list"
    })
}
