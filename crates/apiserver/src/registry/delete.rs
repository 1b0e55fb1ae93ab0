//! Deleting objects: preconditions, grace, finalizers. Upstream: `rest.BeforeDelete` and `Store.Delete`.

use std::sync::Arc;

use api::StatusError;
use api::resource::Resource;
use jiff::ToSpan;
use serde_json::{Value, json};
use store::{Compare, Op, Outcome, Txn};

use super::update::released;
use super::{DeleteOptions, Registry, Written, scoped, store_key};
use crate::auth::User;
use crate::cache::Object;
use crate::{admission, convert, object};

/// Attempts when other writes come between.
const ATTEMPTS: usize = 5;
/// A pod's grace when its spec names none (`v1.DefaultTerminationGracePeriodSeconds`).
const POD_GRACE_SECONDS: i64 = 30;

/// What a deletion does to an object.
enum Step {
    /// It goes now.
    Remove,
    /// It stays, changed: marked as being deleted, with its finalizers.
    Mark(Value),
    /// Nothing more to do: it is being deleted already.
    Wait,
}

impl Registry {
    /// Deletes an object, or marks it as being deleted when finalizers or grace keep it.
    ///
    /// # Errors
    /// The Status that upstream answers.
    pub async fn delete(
        &self,
        user: &User,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Written, StatusError> {
        let namespace = scoped(resource, namespace);
        for _ in 0..ATTEMPTS {
            let old = self.object(resource, namespace, name)?;
            check_preconditions(resource, name, &old, options)?;
            let old_value = convert::from_stored(resource, &old.value());
            let request = admission::Request {
                operation: admission::Operation::Delete,
                resource,
                subresource: None,
                user,
                old: Some(&old_value),
                dry_run: options.dry_run,
            };
            admission::admit(self, request, &mut Value::Null).await?;
            let (op, new, deleted) = match plan(resource, &old_value, options) {
                Step::Wait => {
                    return Ok(Written {
                        object: Arc::new(old_value),
                        created: false,
                        deleted: false,
                        warnings: Vec::new(),
                    });
                }
                Step::Remove => (Op::Delete(store_key(resource, namespace, name)), old_value, true),
                Step::Mark(new) => {
                    let stored = convert::encode_stored(resource, &new);
                    (Op::Put(store_key(resource, namespace, name), stored), new, false)
                }
            };
            if options.dry_run {
                return Ok(Written {
                    object: Arc::new(new),
                    created: false,
                    deleted,
                    warnings: vec![],
                });
            }
            let compare = vec![Compare { key: Arc::clone(&old.key), modified: old.revision }];
            if let Outcome::Committed(revision) =
                self.commit(Txn { compare, ops: vec![op] }).await?
            {
                let mut new = new;
                object::meta_mut(&mut new)
                    .insert("resourceVersion".to_owned(), revision.to_string().into());
                return Ok(Written {
                    object: Arc::new(new),
                    created: false,
                    deleted,
                    warnings: vec![],
                });
            }
        }
        Err(StatusError::modified(resource.group, resource.plural, name))
    }
}

fn check_preconditions(
    resource: &Resource,
    name: &str,
    old: &Object,
    options: &DeleteOptions,
) -> Result<(), StatusError> {
    let value = old.value();
    let failed = |what: &str, wanted: &str, found: &str| {
        let why = format!(
            "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
        );
        Err(StatusError::conflict(resource.group, resource.plural, name, why))
    };
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != object::meta_str(&value, "uid"))
    {
        return failed("UID", uid, object::meta_str(&value, "uid"));
    }
    let found = old.revision.to_string();
    if let Some(revision) =
        options.resource_version.as_deref().filter(|revision| *revision != found)
    {
        return failed("ResourceVersion", revision, &found);
    }
    Ok(())
}

fn plan(resource: &Resource, old: &Value, options: &DeleteOptions) -> Step {
    let mut new = old.clone();
    set_propagation(&mut new, options);
    if resource.group.is_empty() && resource.plural == "namespaces" {
        return plan_namespace(old, new);
    }
    let grace = grace_seconds(resource, old, options);
    if object::is_deleting(old) {
        let left = object::meta(old)["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        if grace < left {
            shorten(&mut new, left, grace);
        } else if new == *old {
            return if released(resource, old) { Step::Remove } else { Step::Wait };
        }
        return if released(resource, &new) { Step::Remove } else { Step::Mark(new) };
    }
    if grace == 0 && object::finalizers(&new).is_empty() {
        return Step::Remove;
    }
    mark(&mut new, grace);
    Step::Mark(new)
}

/// A namespace stays until its content is gone: `spec.finalizers` is emptied by the namespace controller.
fn plan_namespace(old: &Value, mut new: Value) -> Step {
    if object::is_deleting(old) {
        return if released_namespace(&new) {
            Step::Remove
        } else if new == *old {
            Step::Wait
        } else {
            Step::Mark(new)
        };
    }
    if new["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty)
        && object::finalizers(&new).is_empty()
    {
        return Step::Remove;
    }
    mark(&mut new, 0);
    object::meta_mut(&mut new).remove("deletionGracePeriodSeconds");
    new["status"]["phase"] = "Terminating".into();
    Step::Mark(new)
}

fn released_namespace(namespace: &Value) -> bool {
    object::finalizers(namespace).is_empty()
        && namespace["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty)
}

/// Seconds until the object may go: only pods have any.
fn grace_seconds(resource: &Resource, old: &Value, options: &DeleteOptions) -> i64 {
    if !(resource.group.is_empty() && resource.plural == "pods") {
        return 0;
    }
    let unscheduled = old["spec"]["nodeName"].as_str().unwrap_or("").is_empty();
    let ended = matches!(old["status"]["phase"].as_str(), Some("Failed" | "Succeeded"));
    if unscheduled || ended {
        return 0;
    }
    let own = old["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(POD_GRACE_SECONDS);
    // Upstream: a negative grace means one second.
    match options.grace_period_seconds.unwrap_or(own) {
        seconds if seconds < 0 => 1,
        seconds => seconds,
    }
}

/// Marks the object as being deleted, `grace` seconds from now.
fn mark(new: &mut Value, grace: i64) {
    let generation = object::meta(new)["generation"].as_i64();
    let until =
        jiff::Timestamp::now().saturating_add(grace.seconds()).unwrap_or(jiff::Timestamp::MAX);
    let meta = object::meta_mut(new);
    meta.insert("deletionTimestamp".to_owned(), object::timestamp(until).into());
    meta.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
    if let Some(generation) = generation.filter(|generation| *generation > 0) {
        meta.insert("generation".to_owned(), (generation + 1).into());
    }
}

/// Brings an earlier deletion forward.
fn shorten(new: &mut Value, left: i64, grace: i64) {
    let until = object::meta_str(new, "deletionTimestamp")
        .parse()
        .unwrap_or_else(|_| jiff::Timestamp::now());
    let until = until.saturating_add((grace - left).seconds()).unwrap_or(until);
    let meta = object::meta_mut(new);
    meta.insert("deletionTimestamp".to_owned(), object::timestamp(until).into());
    meta.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
}

/// The finalizers by which the garbage collector knows what to do with dependents.
fn set_propagation(new: &mut Value, options: &DeleteOptions) {
    let Some(policy) = options.propagation_policy.as_deref() else { return };
    let mut finalizers = object::finalizers(new);
    finalizers.retain(|finalizer| finalizer != "orphan" && finalizer != "foregroundDeletion");
    match policy {
        "Orphan" => finalizers.push("orphan".to_owned()),
        "Foreground" => finalizers.push("foregroundDeletion".to_owned()),
        _ => {}
    }
    let meta = object::meta_mut(new);
    if finalizers.is_empty() {
        meta.remove("finalizers");
    } else {
        meta.insert("finalizers".to_owned(), json!(finalizers));
    }
}
