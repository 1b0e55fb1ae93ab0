//! Objects as JSON: their metadata, and the stored and served encodings.
//!
//! Stored bytes carry no resourceVersion; it is the store's own revision, spliced in once when the object enters the
//! cache (upstream: `storage.Versioner`).

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Map, Value, json};

/// `metadata`, or `Null`.
pub(crate) fn meta(object: &Value) -> &Value {
    &object["metadata"]
}

/// A string of `metadata`, or empty.
pub(crate) fn meta_str<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or("")
}

/// `metadata` for changing it; made when missing or not an object.
pub(crate) fn meta_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let meta = &mut object["metadata"];
    if !meta.is_object() {
        *meta = json!({});
    }
    meta.as_object_mut().expect("made an object above")
}

/// Whether deletion has been asked for.
pub(crate) fn is_deleting(object: &Value) -> bool {
    meta(object)["deletionTimestamp"].is_string()
}

/// `metadata.finalizers`.
pub(crate) fn finalizers(object: &Value) -> Vec<String> {
    let list = meta(object)["finalizers"].as_array();
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// `metadata.resourceVersion` as a number; 0 when absent.
pub(crate) fn revision(object: &Value) -> u64 {
    meta_str(object, "resourceVersion").parse().unwrap_or(0)
}

/// A time as the API writes it: RFC 3339 with seconds.
pub(crate) fn timestamp(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// An object with kind, apiVersion and metadata first, so that the splice finds its place without parsing.
struct Ordered<'a> {
    object: &'a Map<String, Value>,
    /// Leaves the resourceVersion out.
    stored: bool,
}

/// `metadata` without its resourceVersion.
struct StoredMeta<'a>(&'a Value);

impl Serialize for StoredMeta<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Value::Object(meta) = self.0 else { return self.0.serialize(serializer) };
        serializer.collect_map(meta.iter().filter(|(key, _)| *key != "resourceVersion"))
    }
}

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const FIRST: [&str; 3] = ["kind", "apiVersion", "metadata"];
        let mut map = serializer.serialize_map(None)?;
        for key in FIRST {
            match self.object.get(key) {
                Some(meta) if self.stored && key == "metadata" => {
                    map.serialize_entry(key, &StoredMeta(meta))?;
                }
                Some(value) => map.serialize_entry(key, value)?,
                None => {}
            }
        }
        for (key, value) in self.object {
            if !FIRST.contains(&key.as_str()) {
                map.serialize_entry(key, value)?;
            }
        }
        map.end()
    }
}

/// JSON with kind, apiVersion and metadata first.
pub(crate) fn encode(object: &Value) -> Bytes {
    encode_as(object, false)
}

/// The bytes to store: without resourceVersion.
pub(crate) fn encode_stored(object: &Value) -> Bytes {
    encode_as(object, true)
}

fn encode_as(object: &Value, stored: bool) -> Bytes {
    let encoded = match object {
        Value::Object(map) => serde_json::to_vec(&Ordered { object: map, stored }),
        other => serde_json::to_vec(other),
    };
    encoded.expect("a JSON value always encodes").into()
}

/// Adds an object's served bytes to a list's: without kind and apiVersion, which the list says for all of them
/// (upstream: typed lists carry none on their items).
pub(crate) fn put_item(list: &mut BytesMut, json: &[u8]) {
    const MARK: &[u8] = b"\"metadata\":{";
    let at = json.windows(MARK.len()).position(|window| window == MARK);
    list.put_u8(b'{');
    list.put_slice(&json[at.unwrap_or(1)..]);
}

/// An item of a list, as [`put_item`] writes it.
pub(crate) fn as_item(mut object: Value) -> Value {
    if let Some(map) = object.as_object_mut() {
        map.remove("kind");
        map.remove("apiVersion");
    }
    object
}

/// The bytes to serve: stored bytes with the resourceVersion.
pub(crate) fn splice(stored: &[u8], revision: u64) -> Bytes {
    const MARK: &[u8] = b"\"metadata\":{";
    let Some(at) = stored.windows(MARK.len()).position(|window| window == MARK) else {
        return Bytes::copy_from_slice(stored);
    };
    let (head, tail) = stored.split_at(at + MARK.len());
    let mut served = BytesMut::with_capacity(stored.len() + 42);
    served.put_slice(head);
    served.put_slice(format!("\"resourceVersion\":\"{revision}\"").as_bytes());
    if tail.first() != Some(&b'}') {
        served.put_u8(b',');
    }
    served.put_slice(tail);
    served.freeze()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn splice_puts_the_revision_into_the_objects_own_metadata() {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "\"metadata\":{"},
            "metadata": {"name": "x", "annotations": {"b": "\"metadata\":{"}, "resourceVersion": "3"}});
        let stored = encode_stored(&object);
        assert!(!stored.windows(15).any(|window| window == b"resourceVersion"));
        let served: Value = serde_json::from_slice(&splice(&stored, 7)).unwrap();
        assert_eq!(served["metadata"]["resourceVersion"], "7");
        assert_eq!(served["data"], object["data"]);
        assert_eq!(served["metadata"]["annotations"], object["metadata"]["annotations"]);
    }
}
