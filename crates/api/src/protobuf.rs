//! Decodes Kubernetes protobuf request bodies by the field tables. Upstream: `runtime/serializer/protobuf`.
//!
//! Clients built on typed Go code (kubectl create, helm, controller-runtime) send these bodies and do not fall back to
//! JSON. What comes out is what the same client would have sent as JSON: zero values that Go's `omitempty` leaves out
//! are left out here too.

mod message;
mod scalar;
mod wire;

use serde_json::{Map, Value};

use crate::schema::table;
use wire::{Payload, Reader};

/// What every body begins with: `k8s` and a zero byte.
pub const MAGIC: [u8; 4] = [0x6b, 0x38, 0x73, 0x00];

/// Decodes a `k8s\0` envelope into the JSON object it stands for, with `apiVersion` and `kind`.
///
/// # Errors
/// A sentence saying what is wrong with the bytes or which kind is unknown.
pub fn decode(bytes: &[u8]) -> Result<Value, String> {
    let envelope = bytes.strip_prefix(&MAGIC).ok_or_else(|| {
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
            .to_owned()
    })?;
    let unknown = Unknown::read(envelope)?;
    if unknown.content_type == "application/json" {
        return serde_json::from_slice(unknown.raw).map_err(|error| error.to_string());
    }
    let (group, version) =
        unknown.api_version.rsplit_once('/').unwrap_or(("", unknown.api_version));
    let message = table::find(group, version, unknown.kind).ok_or_else(|| {
        format!(
            "no kind {:?} is registered for version {:?} in scheme \"pkg/api/legacyscheme/scheme.go\"",
            unknown.kind, unknown.api_version
        )
    })?;
    let mut object = message::decode(message, unknown.raw, 0)?;
    if object.get("status").is_some_and(is_hollow) {
        object.remove("status");
    }
    object.insert("apiVersion".to_owned(), unknown.api_version.into());
    object.insert("kind".to_owned(), unknown.kind.into());
    Ok(Value::Object(object))
}

/// Whether nothing but empty objects is inside.
fn is_hollow(value: &Value) -> bool {
    value.as_object().is_some_and(|fields: &Map<String, Value>| fields.values().all(is_hollow))
}

/// The envelope, `runtime.Unknown`.
#[derive(Default)]
struct Unknown<'a> {
    api_version: &'a str,
    kind: &'a str,
    raw: &'a [u8],
    content_type: &'a str,
}

impl<'a> Unknown<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut unknown = Self::default();
        let mut reader = Reader::new(bytes);
        while let Some((tag, payload)) = reader.next()? {
            match (tag, payload) {
                (1, Payload::Bytes(meta)) => unknown.read_type(meta)?,
                (2, Payload::Bytes(raw)) => unknown.raw = raw,
                (4, Payload::Bytes(text)) => unknown.content_type = wire::text(text)?,
                _ => {}
            }
        }
        Ok(unknown)
    }

    fn read_type(&mut self, bytes: &'a [u8]) -> Result<(), String> {
        let mut reader = Reader::new(bytes);
        while let Some((tag, payload)) = reader.next()? {
            match (tag, payload) {
                (1, Payload::Bytes(text)) => self.api_version = wire::text(text)?,
                (2, Payload::Bytes(text)) => self.kind = wire::text(text)?,
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
