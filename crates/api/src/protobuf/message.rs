//! Messages, lists and maps by the field tables.

use serde_json::{Map, Value};

use super::scalar;
use super::wire::{Payload, Reader, text};
use crate::schema::normalize::is_zero;
use crate::schema::table::{Field, Message, Type, json_schema_props};

/// Deeper nesting is refused: CRD schemas nest, nothing else does; Go's stack allows more, a request needs less.
const DEPTH_MAX: usize = 100;

pub(super) fn decode(
    message: &'static Message,
    bytes: &[u8],
    depth: usize,
) -> Result<Map<String, Value>, String> {
    if depth > DEPTH_MAX {
        return Err(format!("exceeded max depth: {DEPTH_MAX}"));
    }
    let mut object = Map::new();
    let mut reader = Reader::new(bytes);
    while let Some((tag, payload)) = reader.next()? {
        if let Some(field) = message.tagged(tag) {
            read_field(field, payload, &mut object, depth)?;
        }
    }
    object.retain(|name, value| message.field(name).is_none_or(|field| keeps(field, value)));
    Ok(object)
}

/// Whether Go would write the field: not when a zero value is left out or an empty metadata says nothing.
fn keeps(field: &Field, value: &Value) -> bool {
    if value.is_null() {
        return false;
    }
    let hollow = field.name == "metadata" && value.as_object().is_some_and(Map::is_empty);
    let omitted = field.omit_empty && !field.pointer && is_zero(field, value);
    !(hollow || omitted)
}

fn read_field(
    field: &Field,
    payload: Payload<'_>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), String> {
    match (&field.ty, field.ty.bare()) {
        (_, Type::Message(_)) if field.inline => {
            let Value::Object(inner) = read_value(&field.ty, payload, depth)? else {
                return Ok(());
            };
            object.extend(inner);
        }
        // A named list of strings is a message of its own (ExtraValue, Verbs); other lists repeat the tag.
        (Type::Named(..), Type::List(item)) if matches!(**item, Type::String) => {
            object.insert(field.name.to_owned(), read_value(&field.ty, payload, depth)?);
        }
        (_, Type::List(item)) => {
            let entry = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(items) = entry {
                read_items(item, payload, items, depth)?;
            }
        }
        (_, Type::Map(_, inner)) => {
            let (key, value) = read_entry(inner, payload, depth)?;
            let entry = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(entries) = entry {
                entries.insert(key, value);
            }
        }
        _ => {
            object.insert(field.name.to_owned(), read_value(&field.ty, payload, depth)?);
        }
    }
    Ok(())
}

/// One element, or several packed integers.
fn read_items(
    item: &Type,
    payload: Payload<'_>,
    items: &mut Vec<Value>,
    depth: usize,
) -> Result<(), String> {
    if let (Type::Int32 | Type::Int64 | Type::Bool, Payload::Bytes(bytes)) = (item.bare(), payload)
    {
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            items.push(read_value(item, Payload::Varint(reader.varint()?), depth)?);
        }
        return Ok(());
    }
    items.push(read_value(item, payload, depth)?);
    Ok(())
}

fn read_entry(inner: &Type, payload: Payload<'_>, depth: usize) -> Result<(String, Value), String> {
    let mut key = String::new();
    let mut value = None;
    let mut reader = Reader::new(bytes_of(payload)?);
    while let Some((tag, payload)) = reader.next()? {
        match (tag, payload) {
            (1, Payload::Bytes(bytes)) => text(bytes)?.clone_into(&mut key),
            (2, payload) => value = Some(read_value(inner, payload, depth)?),
            _ => {}
        }
    }
    let value = match value {
        Some(value) => value,
        None => read_value(inner, Payload::Bytes(&[]), depth)?,
    };
    Ok((key, value))
}

fn read_value(ty: &Type, payload: Payload<'_>, depth: usize) -> Result<Value, String> {
    match ty.bare() {
        Type::Message(_) => match ty.message() {
            Some(message) => decode(message, bytes_of(payload)?, depth + 1).map(Value::Object),
            None => Ok(Value::Null),
        },
        Type::List(item) => {
            let mut items = Vec::new();
            let mut reader = Reader::new(bytes_of(payload)?);
            while let Some((tag, payload)) = reader.next()? {
                if tag == 1 {
                    read_items(item, payload, &mut items, depth + 1)?;
                }
            }
            Ok(Value::Array(items))
        }
        Type::Map(..) => Err("proto: a map cannot stand here".to_owned()),
        Type::OrArray | Type::OrBool | Type::OrStringArray => {
            schema_or(ty.bare(), bytes_of(payload)?, depth)
        }
        scalar => scalar::read(scalar, payload),
    }
}

/// JSONSchemaProps (tag 1, or 2 beside a boolean) or what may stand in their place.
fn schema_or(ty: &Type, bytes: &[u8], depth: usize) -> Result<Value, String> {
    let props = json_schema_props().ok_or_else(|| "no table of JSONSchemaProps".to_owned())?;
    let mut value = if matches!(ty, Type::OrBool) { Value::Bool(false) } else { Value::Null };
    let mut items = Vec::new();
    let mut reader = Reader::new(bytes);
    while let Some((tag, payload)) = reader.next()? {
        match (ty, tag, payload) {
            (Type::OrBool, 1, Payload::Varint(allows)) if !value.is_object() => {
                value = Value::Bool(allows != 0);
            }
            (Type::OrBool, 2, Payload::Bytes(bytes)) | (_, 1, Payload::Bytes(bytes)) => {
                value = Value::Object(decode(props, bytes, depth + 1)?);
            }
            (Type::OrArray, 2, Payload::Bytes(bytes)) => {
                items.push(Value::Object(decode(props, bytes, depth + 1)?));
            }
            (Type::OrStringArray, 2, Payload::Bytes(bytes)) => items.push(text(bytes)?.into()),
            _ => {}
        }
    }
    Ok(if items.is_empty() { value } else { Value::Array(items) })
}

pub(super) fn bytes_of(payload: Payload<'_>) -> Result<&[u8], String> {
    match payload {
        Payload::Bytes(bytes) => Ok(bytes),
        _ => Err("proto: wrong wireType for a message or string".to_owned()),
    }
}
