//! Server-side apply and `metadata.managedFields`. Upstream: `structured-merge-diff` and `apimachinery/managedfields`.
//!
//! Each manager owns a set of field paths. Applying merges the configuration into the live object, takes its fields,
//! fails where others own them with other values, and removes what the manager no longer names and nobody else owns.
//! Other writes are compared with the object before; what they changed becomes theirs.

mod managers;
mod set;
mod shape;
mod typed;

use serde_json::{Value, json};

use crate::schema::table;
use crate::{Reason, StatusError};
use managers::{BEFORE_FIRST_APPLY, Manager, Managers, Operation, Owned};
use set::{Element, Set, path_text};
use shape::Shape;

/// Who writes, when, and through which door.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// The field manager's name.
    pub manager: &'a str,
    /// Take fields from other managers instead of failing with a conflict.
    pub force: bool,
    /// When the write happens; seconds are kept.
    pub time: jiff::Timestamp,
    /// `status`, `scale`, … or empty for the main resource.
    pub subresource: &'a str,
    /// API group; empty for core.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
}

impl Context<'_> {
    fn shape(&self) -> Shape {
        Shape::root(table::find(self.group, self.version, self.kind))
    }

    fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    fn time_text(&self) -> String {
        self.time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    fn manager(&self, operation: Operation) -> Manager {
        Manager {
            name: self.manager.to_owned(),
            operation,
            subresource: self.subresource.to_owned(),
            api_version: if operation == Operation::Apply {
                String::new()
            } else {
                self.api_version()
            },
        }
    }

    /// Drops what this door cannot write, as the server puts it back: status through the main resource, spec through
    /// status. Custom resources are left alone: whether they have a status door is not known here.
    fn reset(&self, set: &mut Set) {
        managers::strip(set);
        let closed = match (self.subresource, self.shape()) {
            ("", Shape::Struct(message)) if message.field("status").is_some() => "status",
            ("status", _) => "spec",
            _ => return,
        };
        set.remove_below(&[Element::Field(closed.to_owned())]);
    }
}

/// Merges an applied configuration into the live object and records what its manager owns.
///
/// The result is not defaulted: what the caller's defaults add afterwards is owned by nobody.
///
/// # Errors
/// 409 when other managers own fields with other values and `force` is off; 400 when the configuration carries
/// managedFields; 500, as upstream, for a configuration that does not fit the kind's schema.
pub fn apply(
    context: &Context<'_>,
    live: Option<&Value>,
    applied: &Value,
) -> Result<Value, StatusError> {
    let managed = applied.pointer("/metadata/managedFields");
    if managed.is_some_and(|entries| !entries.is_null() && *entries != json!([])) {
        return Err(StatusError::bad_request("metadata.managedFields must be nil"));
    }
    let shape = context.shape();
    let applied = without_nulls(applied);
    let errors = typed::errors(&applied, shape);
    if !errors.is_empty() {
        return Err(untyped(context, &applied, &errors));
    }
    let mut managers = live.and_then(managers::decode).unwrap_or_default();
    let bare = live.map(without_managed_fields);
    if let Some(live) = bare.as_ref().filter(|_| managers.is_empty()) {
        managers.insert(before_first_apply(context), before_set(context, live, shape));
    }
    let manager = context.manager(Operation::Apply);
    let last = managers.remove(&manager).map(|owned| owned.set).unwrap_or_default();
    let mut set = typed::to_set(&applied, shape);
    context.reset(&mut set);

    let mut merged = match &bare {
        Some(live) => typed::merge(live, &applied, shape),
        None => applied,
    };
    let kept = managers.values().fold(set.clone(), |kept, owned| kept.union(&owned.set));
    typed::remove(&mut merged, shape, &last.difference(&set), &kept);

    if let Some(live) = &bare {
        settle(context, live, &merged, &mut managers)?;
    }
    managers.insert(
        manager,
        Owned { api_version: context.api_version(), time: context.time_text(), set },
    );
    managers::encode(&managers, &mut merged);
    Ok(match live {
        Some(live) if is_same_but_time(live, &merged) => live.clone(),
        _ => merged,
    })
}

/// Records in `new` which fields this create, update or patch changed. Call it last, with the object as it will be
/// stored.
///
/// An object that was never tracked stays so; `managedFields: [{}]` in `new` clears the record.
pub fn track_update(context: &Context<'_>, old: Option<&Value>, new: &mut Value) {
    if new.pointer("/metadata/managedFields").is_some_and(|entries| *entries == json!([{}])) {
        managers::encode(&Managers::new(), new);
        return;
    }
    let before = old.and_then(managers::decode).unwrap_or_default();
    let mut managers =
        managers::decode(new).filter(|managers| !managers.is_empty()).unwrap_or(before);
    if old.is_some() && managers.is_empty() {
        managers::encode(&managers, new);
        return;
    }
    let shape = context.shape();
    let bare_old = old.map(without_managed_fields);
    let bare_new = without_managed_fields(new);
    let changes = typed::compare(bare_old.as_ref(), &bare_new, shape);
    let mut taken = changes.added.union(&changes.modified);
    // Without an object before, everything in `new` was written here; status doors tell otherwise by being closed.
    context.reset(&mut taken);
    for owned in managers.values_mut() {
        owned.set = owned.set.difference(&taken).difference(&changes.removed);
    }
    if !taken.is_empty() {
        let entry = managers.entry(context.manager(Operation::Update)).or_default();
        entry.set = entry.set.union(&taken);
        entry.time = context.time_text();
        entry.api_version = context.api_version();
    }
    managers.retain(|_, owned| !owned.set.is_empty());
    managers::cap(&mut managers);
    managers::encode(&managers, new);
}

/// Takes from the other managers what the apply changed, or says that it may not.
fn settle(
    context: &Context<'_>,
    live: &Value,
    merged: &Value,
    managers: &mut Managers,
) -> Result<(), StatusError> {
    let changes = typed::compare(Some(live), merged, context.shape());
    let mut taken = changes.added.union(&changes.modified);
    // What this door cannot write is put back by the server and is no conflict.
    context.reset(&mut taken);
    let conflicts: Vec<(&Manager, Vec<Vec<Element>>)> = managers
        .iter()
        .map(|(manager, owned)| (manager, owned.set.intersection(&taken).paths()))
        .filter(|(_, paths)| !paths.is_empty())
        .collect();
    if !context.force && !conflicts.is_empty() {
        return Err(conflict(&conflicts));
    }
    for owned in managers.values_mut() {
        owned.set = owned.set.difference(&taken).difference(&changes.removed);
    }
    managers.retain(|_, owned| !owned.set.is_empty());
    Ok(())
}

/// The manager that owns everything of an object nobody tracked.
fn before_first_apply(context: &Context<'_>) -> Manager {
    Manager {
        name: BEFORE_FIRST_APPLY.to_owned(),
        operation: Operation::Update,
        subresource: String::new(),
        api_version: context.api_version(),
    }
}

fn before_set(context: &Context<'_>, live: &Value, shape: Shape) -> Owned {
    let mut set = typed::to_set(live, shape);
    managers::strip(&mut set);
    Owned { api_version: context.api_version(), time: context.time_text(), set }
}

/// 409 with a cause for each field.
fn conflict(conflicts: &[(&Manager, Vec<Vec<Element>>)]) -> StatusError {
    let causes: Vec<Value> = conflicts
        .iter()
        .flat_map(|(manager, paths)| {
            paths.iter().map(move |path| {
                json!({
                    "reason": "FieldManagerConflict",
                    "message": format!("conflict with {manager}"),
                    "field": path_text(path),
                })
            })
        })
        .collect();
    let message = match conflicts {
        [(manager, paths)] if paths.len() == 1 => {
            format!(
                "Apply failed with 1 conflict: conflict with {manager}: {}",
                path_text(&paths[0])
            )
        }
        _ => {
            let parts: Vec<String> = conflicts
                .iter()
                .map(|(manager, paths)| {
                    let paths: Vec<String> =
                        paths.iter().map(|path| format!("- {}", path_text(path))).collect();
                    format!("conflicts with {manager}:\n{}", paths.join("\n"))
                })
                .collect();
            format!("Apply failed with {} conflicts: {}", causes.len(), parts.join("\n"))
        }
    };
    StatusError { reason: Reason::Conflict, message, details: json!({"causes": causes}) }
}

fn untyped(context: &Context<'_>, applied: &Value, errors: &[String]) -> StatusError {
    let text = |pointer: &str| applied.pointer(pointer).and_then(Value::as_str).unwrap_or("");
    let errors = match errors {
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    StatusError::new(
        Reason::InternalError,
        format!(
            "failed to create typed patch object ({}/{}; {}, Kind={}): {errors}",
            text("/metadata/namespace"),
            text("/metadata/name"),
            context.api_version(),
            context.kind
        ),
    )
}

fn without_managed_fields(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.remove("managedFields");
    }
    object
}

/// Nulls in objects say nothing.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| (name.clone(), without_nulls(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

/// Whether two objects differ in nothing but the times of their managed fields.
fn is_same_but_time(a: &Value, b: &Value) -> bool {
    let timeless = |object: &Value| {
        let mut object = object.clone();
        if let Some(Value::Array(entries)) = object.pointer_mut("/metadata/managedFields") {
            for entry in entries {
                if let Value::Object(entry) = entry {
                    entry.remove("time");
                }
            }
        }
        object
    };
    timeless(a) == timeless(b)
}

#[cfg(test)]
mod tests;
