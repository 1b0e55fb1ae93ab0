//! Between the stored form of an object and the group that serves it: events of `events.k8s.io` are core events.

use std::sync::Arc;

use api::resource::Resource;
use bytes::Bytes;
use serde_json::Value;

use crate::object;

/// Core field, events.k8s.io field.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Whether objects are stored in another form than this resource serves.
pub(crate) fn is_converted(resource: &Resource) -> bool {
    resource.group == "events.k8s.io"
}

/// The object as the resource serves it.
pub(crate) fn from_stored(resource: &Resource, stored: &Arc<Value>) -> Value {
    let mut object = Value::clone(stored);
    if is_converted(resource) {
        rename(&mut object, |(core, served)| (core, served));
        object["apiVersion"] = "events.k8s.io/v1".into();
    }
    object
}

/// The bytes to store.
pub(crate) fn encode_stored(resource: &Resource, object: &Value) -> Bytes {
    if is_converted(resource) {
        object::encode_stored(&to_stored(resource, object.clone()))
    } else {
        object::encode_stored(object)
    }
}

/// The object as it is stored.
fn to_stored(resource: &Resource, mut object: Value) -> Value {
    if is_converted(resource) {
        rename(&mut object, |(core, served)| (served, core));
        object["apiVersion"] = "v1".into();
    }
    object
}

fn rename(
    object: &mut Value,
    direction: fn((&'static str, &'static str)) -> (&'static str, &'static str),
) {
    let Some(map) = object.as_object_mut() else { return };
    for (from, to) in EVENT_FIELDS.map(direction) {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
}
