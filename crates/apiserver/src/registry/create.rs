//! Making objects. Upstream: `rest.BeforeCreate` and `Store.Create`.

use std::sync::Arc;

use api::StatusError;
use api::resource::Resource;
use rand::Rng;
use serde_json::Value;
use store::{Compare, Op, Outcome, Txn};

use super::{Registry, WriteOptions, Written, api_version, check, scoped, store_key};
use crate::auth::User;
use crate::bootstrap::addresses;
use crate::{admission, convert, object};

/// Letters of generated names: no vowels, so no words.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Letters appended to `generateName`.
const SUFFIX_LENGTH: usize = 5;
/// `generateName` is cut so that the whole name stays a DNS label.
const GENERATE_NAME_LENGTH_MAX: usize = 63 - SUFFIX_LENGTH;
/// Attempts at a free generated name, as upstream.
const GENERATE_ATTEMPTS: usize = 8;

impl Registry {
    /// Makes an object: defaults, admission, validation, storage.
    ///
    /// # Errors
    /// The Status that upstream answers.
    pub async fn create(
        &self,
        user: &User,
        resource: &'static Resource,
        namespace: &str,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Written, StatusError> {
        let generated = object::meta_str(&object, "name").is_empty()
            && !object::meta_str(&object, "generateName").is_empty();
        let mut attempt = 1;
        loop {
            let made = self.create_once(user, resource, namespace, object.clone(), options).await;
            match made {
                Err(error)
                    if generated
                        && attempt < GENERATE_ATTEMPTS
                        && error.reason == api::Reason::AlreadyExists =>
                {
                    attempt += 1;
                }
                made => return made,
            }
        }
    }

    async fn create_once(
        &self,
        user: &User,
        resource: &'static Resource,
        namespace: &str,
        mut new: Value,
        options: &WriteOptions,
    ) -> Result<Written, StatusError> {
        let namespace = scoped(resource, namespace);
        if !object::meta_str(&new, "resourceVersion").is_empty() {
            return Err(StatusError::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let supplied = Supplied::take(&mut new);
        prepare_meta(&mut new, resource, namespace);
        api::schema::normalize(resource.group, resource.version, resource.kind, &mut new);
        (resource.rules.default)(&mut new);
        (resource.rules.prepare_create)(&mut new);
        let request = admission::Request {
            operation: admission::Operation::Create,
            resource,
            subresource: None,
            user,
            old: None,
            dry_run: options.dry_run,
        };
        let reservation = admission::admit(self, request, &mut new).await?;
        let name = object::meta_str(&new, "name").to_owned();
        check(resource, &name, &(resource.rules.validate_create)(&new))?;
        let warnings = (resource.rules.warnings)(&new);
        supplied.put_back(&mut new);
        if !options.tracked {
            api::apply::track_update(&options.context(resource, ""), None, &mut new);
        }
        if options.dry_run {
            if self.cache.object(resource, namespace, &name).is_some() {
                return Err(StatusError::already_exists(resource.group, resource.plural, &name));
            }
            return Ok(Written { object: Arc::new(new), created: true, deleted: false, warnings });
        }
        match self.store_new(resource, namespace, &new).await? {
            Outcome::Committed(revision) => {
                if let Some(reservation) = reservation {
                    reservation.keep();
                }
                object::meta_mut(&mut new)
                    .insert("resourceVersion".to_owned(), revision.to_string().into());
                Ok(Written { object: Arc::new(new), created: true, deleted: false, warnings })
            }
            Outcome::Conflict(_) => {
                Err(StatusError::already_exists(resource.group, resource.plural, &name))
            }
        }
    }
}

impl Registry {
    /// Stores an object that is not there yet, and what it brings along. Where something of that is in the way, it is
    /// left to whoever follows the object.
    async fn store_new(
        &self,
        resource: &'static Resource,
        namespace: &str,
        new: &Value,
    ) -> Result<Outcome, StatusError> {
        let alone = added(resource, namespace, new, 0);
        let companions = addresses::of_new_service(self, resource, new);
        if companions.is_empty() {
            return self.commit(alone).await;
        }
        let mut all = alone.clone();
        for (resource, object, replaced) in companions {
            let Txn { compare, ops } = added(resource, "", &born(resource, object), replaced);
            all.compare.extend(compare);
            all.ops.extend(ops);
        }
        match self.commit(all).await? {
            Outcome::Conflict(found) if found.first().is_some_and(Option::is_none) => {
                self.commit(alone).await
            }
            outcome => Ok(outcome),
        }
    }
}

/// The transaction that stores an object where the one with its name has the revision `replaced`; 0 for none.
fn added(resource: &Resource, namespace: &str, new: &Value, replaced: u64) -> Txn {
    let key = store_key(resource, namespace, object::meta_str(new, "name"));
    Txn {
        compare: vec![Compare { key: Arc::clone(&key), modified: replaced }],
        ops: vec![Op::Put(key, convert::encode_stored(resource, new))],
    }
}

/// An object of the server's own, complete.
fn born(resource: &Resource, mut new: Value) -> Value {
    prepare_meta(&mut new, resource, "");
    api::schema::normalize(resource.group, resource.version, resource.kind, &mut new);
    (resource.rules.default)(&mut new);
    (resource.rules.prepare_create)(&mut new);
    let options = WriteOptions::by_server();
    api::apply::track_update(&options.context(resource, ""), None, &mut new);
    new
}

/// Managed fields that came with the object: kept out of defaulting and validation.
struct Supplied(Option<Value>);

impl Supplied {
    fn take(object: &mut Value) -> Self {
        Self(object::meta_mut(object).remove("managedFields"))
    }

    fn put_back(self, object: &mut Value) {
        if let Some(fields) = self.0 {
            object::meta_mut(object).insert("managedFields".to_owned(), fields);
        }
    }
}

/// What the server alone decides: identity, times, the generated name.
fn prepare_meta(new: &mut Value, resource: &Resource, namespace: &str) {
    let meta = object::meta_mut(new);
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "resourceVersion",
        "generation",
    ] {
        meta.remove(field);
    }
    meta.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
    meta.insert("creationTimestamp".to_owned(), object::timestamp(jiff::Timestamp::now()).into());
    if namespace.is_empty() {
        meta.remove("namespace");
    } else {
        meta.insert("namespace".to_owned(), namespace.into());
    }
    let named = meta.get("name").and_then(Value::as_str).is_some_and(|name| !name.is_empty());
    let base = meta.get("generateName").and_then(Value::as_str).unwrap_or("").to_owned();
    if !named && !base.is_empty() {
        meta.insert("name".to_owned(), generate_name(&base).into());
    }
    new["kind"] = resource.kind.into();
    new["apiVersion"] = api_version(resource).into();
}

fn generate_name(base: &str) -> String {
    let mut random = rand::rng();
    let mut name: String = base.chars().take(GENERATE_NAME_LENGTH_MAX).collect();
    for _ in 0..SUFFIX_LENGTH {
        name.push(char::from(SUFFIX_LETTERS[random.random_range(0..SUFFIX_LETTERS.len())]));
    }
    name
}
