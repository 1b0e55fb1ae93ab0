//! Changing objects. Upstream: `rest.BeforeUpdate` and `Store.Update`.

use std::sync::Arc;

use api::StatusError;
use api::resource::{Resource, Subresource};
use serde_json::Value;
use store::{Compare, Op, Outcome, Txn};

use super::{Registry, WriteOptions, Written, api_version, check, scoped, store_key};
use crate::auth::User;
use crate::cache::Object;
use crate::{admission, convert, object};

/// Attempts of a change that names no resourceVersion, before it gives up with a conflict.
const ATTEMPTS: usize = 5;

/// What is to be changed, and by whom.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    /// Who asks.
    pub user: &'a User,
    /// The resource.
    pub resource: &'static Resource,
    /// The part that is changed; `None`: the object itself.
    pub subresource: Option<Subresource>,
    /// Empty for cluster-scoped resources.
    pub namespace: &'a str,
    /// The object's name.
    pub name: &'a str,
}

/// Whether a PUT to a missing object makes it (`AllowCreateOnUpdate`).
pub(super) fn creates(resource: &Resource) -> bool {
    matches!(
        (resource.group, resource.plural),
        ("", "services" | "endpoints" | "events" | "limitranges")
            | ("events.k8s.io", "events")
            | ("coordination.k8s.io", "leases")
            | ("rbac.authorization.k8s.io", _)
    )
}

/// Whether a PUT must name a resourceVersion (`AllowUnconditionalUpdate` is false).
fn conditional(resource: &Resource) -> bool {
    matches!(
        (resource.group, resource.plural),
        ("coordination.k8s.io", "leases") | ("apiextensions.k8s.io" | "apiregistration.k8s.io", _)
    )
}

impl Registry {
    /// Changes an object: `change` makes the new state from the present one, again when another write came between.
    pub(crate) async fn change(
        &self,
        target: &Target<'_>,
        options: &WriteOptions,
        mut change: impl FnMut(&Value) -> Result<Value, StatusError>,
    ) -> Result<Written, StatusError> {
        let Target { resource, name, .. } = *target;
        let namespace = scoped(resource, target.namespace);
        for _ in 0..ATTEMPTS {
            let old = self.object(resource, namespace, name)?;
            let old_value = convert::from_stored(resource, &old.value());
            let new = change(&old_value)?;
            // A patch carries the revision of the state it was made from; a stale one was named by the caller.
            if ![0, old.revision].contains(&object::revision(&new)) {
                return Err(StatusError::modified(resource.group, resource.plural, name));
            }
            if let Some(written) =
                self.change_once(target, options, (&old, &old_value), new).await?
            {
                return Ok(written);
            }
        }
        Err(StatusError::modified(resource.group, resource.plural, name))
    }

    /// One attempt; `None` when another write came between.
    async fn change_once(
        &self,
        target: &Target<'_>,
        options: &WriteOptions,
        (old, old_value): (&Object, &Value),
        mut new: Value,
    ) -> Result<Option<Written>, StatusError> {
        let Target { resource, subresource, name, .. } = *target;
        check_identity(target, old_value, &new)?;
        keep_meta(&mut new, old_value, resource);
        let supplied = object::meta_mut(&mut new).remove("managedFields");
        api::schema::normalize(resource.group, resource.version, resource.kind, &mut new);
        (resource.rules.default)(&mut new);
        match subresource {
            None | Some(Subresource::Scale) => (resource.rules.prepare_update)(&mut new, old_value),
            Some(Subresource::Status) => (resource.rules.prepare_status)(&mut new, old_value),
            Some(_) => {}
        }
        let request = admission::Request {
            operation: admission::Operation::Update,
            resource,
            subresource,
            user: target.user,
            old: Some(old_value),
            dry_run: options.dry_run,
        };
        let reservation = admission::admit(self, request, &mut new).await?;
        let errors = match subresource {
            Some(Subresource::Status) => (resource.rules.validate_status)(&new, old_value),
            None | Some(Subresource::Scale) => (resource.rules.validate_update)(&new, old_value),
            Some(_) => Vec::new(),
        };
        check(resource, name, &errors)?;
        let warnings =
            if subresource.is_none() { (resource.rules.warnings)(&new) } else { Vec::new() };
        if let Some(fields) = supplied {
            object::meta_mut(&mut new).insert("managedFields".to_owned(), fields);
        }
        if !options.tracked {
            let door = subresource.map_or("", Subresource::name);
            api::apply::track_update(&options.context(resource, door), Some(old_value), &mut new);
        }
        let written = self.commit_change(target, options, (old, old_value), new).await?;
        Ok(written.map(|mut written| {
            if let Some(reservation) = reservation {
                reservation.keep();
            }
            written.warnings.extend(warnings);
            written
        }))
    }

    async fn commit_change(
        &self,
        target: &Target<'_>,
        options: &WriteOptions,
        (old, old_value): (&Object, &Value),
        mut new: Value,
    ) -> Result<Option<Written>, StatusError> {
        let resource = target.resource;
        let revision = |new: &mut Value, revision: u64| {
            object::meta_mut(new).insert("resourceVersion".to_owned(), revision.to_string().into());
        };
        revision(&mut new, old.revision);
        let written = |object, deleted| {
            Some(Written { object: Arc::new(object), created: false, deleted, warnings: vec![] })
        };
        let gone = released(resource, &new);
        if !gone && unchanged(old_value, &new) {
            return Ok(written(old_value.clone(), false));
        }
        if options.dry_run {
            return Ok(written(new, gone));
        }
        let key = store_key(resource, scoped(resource, target.namespace), target.name);
        let compare = vec![Compare { key: Arc::clone(&key), modified: old.revision }];
        let stored = convert::encode_stored(resource, &new);
        let put = Op::Put(Arc::clone(&key), stored);
        // The last finalizer left an object that is being deleted: it goes now.
        let op = if gone { Op::Delete(key) } else { put };
        match self.commit(Txn { compare, ops: vec![op] }).await? {
            Outcome::Committed(at) => {
                revision(&mut new, at);
                Ok(written(new, gone))
            }
            Outcome::Conflict(_) => Ok(None),
        }
    }
}

impl WriteOptions {
    /// Who is recorded for the fields that a write changes.
    pub(crate) fn context<'a>(
        &'a self,
        resource: &'a Resource,
        subresource: &'a str,
    ) -> api::apply::Context<'a> {
        api::apply::Context {
            manager: if self.field_manager.is_empty() { "unknown" } else { &self.field_manager },
            force: false,
            time: jiff::Timestamp::now(),
            subresource,
            group: resource.group,
            version: resource.version,
            kind: resource.kind,
        }
    }
}

fn check_identity(target: &Target<'_>, old: &Value, new: &Value) -> Result<(), StatusError> {
    let Target { resource, name, .. } = *target;
    let (old_uid, new_uid) = (object::meta_str(old, "uid"), object::meta_str(new, "uid"));
    if !new_uid.is_empty() && new_uid != old_uid {
        let why = format!(
            "Precondition failed: UID in precondition: {new_uid}, UID in object meta: {old_uid}"
        );
        return Err(StatusError::conflict(resource.group, resource.plural, name, why));
    }
    if object::revision(new) == 0 && conditional(resource) && target.subresource.is_none() {
        let error = api::resource::FieldError::invalid(
            "metadata.resourceVersion",
            &Value::from("0x0"),
            "must be specified for an update",
        );
        return Err(StatusError::invalid(resource.group, resource.kind, name, &[error]));
    }
    Ok(())
}

/// What no update changes: identity and times.
fn keep_meta(new: &mut Value, old: &Value, resource: &Resource) {
    let old_meta = object::meta(old);
    let meta = object::meta_mut(new);
    for field in [
        "name",
        "namespace",
        "generateName",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
    ] {
        match old_meta.get(field) {
            Some(value) => meta.insert(field.to_owned(), value.clone()),
            None => meta.remove(field),
        };
    }
    meta.remove("selfLink");
    new["kind"] = resource.kind.into();
    new["apiVersion"] = api_version(resource).into();
}

/// Whether nothing holds an object that is being deleted.
pub(super) fn released(resource: &Resource, object: &Value) -> bool {
    let held_by_spec = resource.group.is_empty()
        && resource.plural == "namespaces"
        && object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
    object::is_deleting(object)
        && object::finalizers(object).is_empty()
        && object::meta(object)["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && !held_by_spec
}

/// Equal but for the times of managed fields.
fn unchanged(old: &Value, new: &Value) -> bool {
    if old == new {
        return true;
    }
    let timeless = |object: &Value| {
        let mut object = object.clone();
        let fields =
            object::meta_mut(&mut object).get_mut("managedFields").and_then(Value::as_array_mut);
        for field in fields.into_iter().flatten().filter_map(Value::as_object_mut) {
            field.remove("time");
        }
        object
    };
    timeless(old) == timeless(new)
}
