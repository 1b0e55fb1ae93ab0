//! `metadata.managedFields` as a map from managers to sets. Upstream: `apimachinery/pkg/util/managedfields`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::set::{Element, Set};

/// More update managers than this are folded into one, so that the field stays bounded.
const UPDATE_MANAGERS_MAX: usize = 10;
/// What they are folded into.
const ANCIENT: &str = "ancient-changes";
/// Who owned everything before the first apply of an untracked object.
pub(super) const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// How a manager writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// Who owns fields: a name, how it writes, and through which door.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Manager {
    pub(super) name: String,
    pub(super) operation: Operation,
    pub(super) subresource: String,
    /// Empty for appliers: they are the same manager in every version.
    pub(super) api_version: String,
}

/// `"kubelet" with subresource "status" using v1`.
impl std::fmt::Display for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.name)?;
        if !self.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.subresource)?;
        }
        if self.operation == Operation::Update {
            write!(f, " using {}", self.api_version)?;
        }
        Ok(())
    }
}

/// What a manager owns.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Owned {
    pub(super) api_version: String,
    /// RFC 3339; empty when unknown.
    pub(super) time: String,
    pub(super) set: Set,
}

pub(super) type Managers = BTreeMap<Manager, Owned>;

/// Reads an object's managed fields; `None` when an entry is malformed.
pub(super) fn decode(object: &Value) -> Option<Managers> {
    let mut managers = Managers::new();
    let Some(entries) =
        object.pointer("/metadata/managedFields").filter(|entries| !entries.is_null())
    else {
        return Some(managers);
    };
    for entry in entries.as_array()? {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
        let operation = match text("operation").as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        let api_version = text("apiVersion");
        let set = entry.get("fieldsV1").map_or_else(|| Some(Set::default()), Set::decode_root)?;
        let manager = Manager {
            name: text("manager"),
            operation,
            subresource: text("subresource"),
            api_version: if operation == Operation::Apply {
                String::new()
            } else {
                api_version.clone()
            },
        };
        managers.insert(manager, Owned { api_version, time: text("time"), set });
    }
    Some(managers)
}

/// Writes managed fields into an object, the field away when nobody owns anything.
pub(super) fn encode(managers: &Managers, object: &mut Value) {
    let mut entries: Vec<(&Manager, &Owned)> =
        managers.iter().filter(|(_, owned)| !owned.set.is_empty()).collect();
    entries.sort_by(|(a, x), (b, y)| {
        (a.operation, &x.time, &a.name, &x.api_version, &a.subresource).cmp(&(
            b.operation,
            &y.time,
            &b.name,
            &y.api_version,
            &b.subresource,
        ))
    });
    let entries: Vec<Value> =
        entries.into_iter().map(|(manager, owned)| encode_entry(manager, owned)).collect();
    let Value::Object(fields) = object else { return };
    if !entries.is_empty() {
        let metadata = fields.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
        if metadata.is_object() {
            metadata["managedFields"] = Value::Array(entries);
        }
    } else if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
        metadata.remove("managedFields");
    }
}

fn encode_entry(manager: &Manager, owned: &Owned) -> Value {
    let mut entry = json!({
        "manager": manager.name,
        "operation": manager.operation.name(),
        "apiVersion": owned.api_version,
        "fieldsType": "FieldsV1",
        "fieldsV1": owned.set.encode(),
    });
    if !owned.time.is_empty() {
        entry["time"] = owned.time.as_str().into();
    }
    if !manager.subresource.is_empty() {
        entry["subresource"] = manager.subresource.as_str().into();
    }
    entry
}

/// Drops what nobody manages: the object's identity and what the server keeps.
pub(super) fn strip(set: &mut Set) {
    let field = |name: &str| Element::Field(name.to_owned());
    set.remove_below(&[field("apiVersion")]);
    set.remove_below(&[field("kind")]);
    set.remove(&[field("metadata")]);
    for name in [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ] {
        set.remove_below(&[field("metadata"), field(name)]);
    }
}

/// Folds the oldest update managers of a version into one when there are too many.
pub(super) fn cap(managers: &mut Managers) {
    let mut updates: Vec<(String, Manager)> = managers
        .iter()
        .filter(|(manager, _)| manager.operation == Operation::Update)
        .map(|(manager, owned)| (owned.time.clone(), manager.clone()))
        .collect();
    if updates.len() <= UPDATE_MANAGERS_MAX {
        return;
    }
    updates.sort();
    // The bucket itself counts, so one more goes.
    let excess = updates.len() - UPDATE_MANAGERS_MAX + 1;
    let oldest: Vec<Manager> = updates
        .into_iter()
        .map(|(_, manager)| manager)
        .filter(|manager| manager.name != ANCIENT)
        .take(excess)
        .collect();
    for manager in oldest {
        let Some(owned) = managers.remove(&manager) else { continue };
        let bucket = Manager { name: ANCIENT.to_owned(), subresource: String::new(), ..manager };
        let entry = managers
            .entry(bucket)
            .or_insert_with(|| Owned { set: Set::default(), ..owned.clone() });
        entry.set = entry.set.union(&owned.set);
        entry.time = entry.time.clone().max(owned.time);
    }
}
