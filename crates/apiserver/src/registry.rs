//! Reading and writing objects by the rules of their row: defaulting, admission, validation, storage.
//!
//! Upstream counterpart: `k8s.io/apiserver/pkg/registry/generic/registry`.

mod create;
mod delete;
mod update;

use std::sync::Arc;

use api::resource::{FieldError, Resource, Subresource};
use api::{Reason, ResourceScope, StatusError};
use serde_json::Value;
use store::{Outcome, Store, StoreError, Txn};

use crate::auth::User;
use crate::cache::Object;
use crate::{Cache, Config, keys, object};

pub(crate) use update::Target;

/// How an object is to be written.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// `fieldManager`; empty: changes are recorded for `unknown`.
    pub field_manager: String,
    /// Everything but the write itself.
    pub dry_run: bool,
    /// The object brings its own managed fields (server-side apply).
    pub tracked: bool,
}

impl WriteOptions {
    /// For what the server writes by itself.
    pub(crate) fn by_server() -> Self {
        Self { field_manager: "kube-apiserver".to_owned(), ..Self::default() }
    }
}

/// What a write did.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object as stored, with its resourceVersion; after a deletion, its last state.
    pub object: Arc<Value>,
    /// Whether the object was made by this write.
    pub created: bool,
    /// Whether the object is gone after this write.
    pub deleted: bool,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

/// `metav1.DeleteOptions`.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds until the object is to be gone; `None` takes the kind's own.
    pub grace_period_seconds: Option<i64>,
    /// Only when the object has this uid.
    pub uid: Option<String>,
    /// Only when the object has this resourceVersion.
    pub resource_version: Option<String>,
    /// `Orphan`, `Background` or `Foreground`.
    pub propagation_policy: Option<String>,
    /// Everything but the write itself.
    pub dry_run: bool,
}

/// The objects and the rules for changing them.
pub struct Registry {
    cache: Arc<Cache>,
    config: Config,
    store: Arc<dyn Store>,
    taken: crate::admission::Taken,
}

impl Registry {
    /// A registry over a store; reads the whole store.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn open(config: Config, store: Arc<dyn Store>) -> Result<Arc<Self>, StoreError> {
        let cache = Arc::new(Cache::open(Arc::clone(&store)).await?);
        Ok(Arc::new(Self { cache, config, store, taken: crate::admission::Taken::default() }))
    }

    /// All objects in memory.
    #[must_use]
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// The server's settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The store beneath.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What the stored Services hold.
    pub(crate) fn taken(&self) -> &crate::admission::Taken {
        &self.taken
    }

    /// The object of that name.
    ///
    /// # Errors
    /// 404 when there is none.
    pub fn get(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Value>, StatusError> {
        self.object(resource, namespace, name).map(|object| object.value())
    }

    /// The object of that name with its encoding.
    pub(crate) fn object(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Object>, StatusError> {
        self.cache
            .object(resource, namespace, name)
            .ok_or_else(|| StatusError::not_found(resource.group, resource.plural, name))
    }

    /// Replaces an object, or its `subresource` part; a resourceVersion in `object` must be the current one. An
    /// object that is missing is made when upstream does so.
    ///
    /// # Errors
    /// The Status that upstream answers.
    pub async fn update(
        &self,
        user: &User,
        resource: &'static Resource,
        subresource: Option<Subresource>,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Written, StatusError> {
        let namespace = object::meta_str(&object, "namespace").to_owned();
        let name = object::meta_str(&object, "name").to_owned();
        let missing = self.cache.object(resource, &namespace, &name).is_none();
        if missing && subresource.is_none() && update::creates(resource) {
            if object::revision(&object) != 0 {
                return Err(StatusError::modified(resource.group, resource.plural, &name));
            }
            return self.create(user, resource, &namespace, object, options).await;
        }
        let target = Target { user, resource, subresource, namespace: &namespace, name: &name };
        self.change(&target, options, |_old| Ok(object.clone())).await
    }

    /// Commits one transaction and waits until reads see it, or see what was in its way.
    async fn commit(&self, txn: Txn) -> Result<Outcome, StatusError> {
        let outcome = self.store.commit(txn).await.map_err(|error| store_status(&error))?;
        let seen = match &outcome {
            Outcome::Committed(revision) => Some(*revision),
            // Whoever tries again must see what came between.
            Outcome::Conflict(entries) => {
                entries.iter().flatten().map(|entry| entry.modified).max()
            }
        };
        if let Some(revision) = seen {
            self.cache.wait_for(revision).await;
        }
        Ok(outcome)
    }
}

/// The key of an object as the store wants it.
fn store_key(resource: &Resource, namespace: &str, name: &str) -> Arc<str> {
    keys::key(resource, namespace, name).into()
}

/// The namespace as the object's key and metadata have it.
fn scoped<'a>(resource: &Resource, namespace: &'a str) -> &'a str {
    if resource.scope == ResourceScope::Namespaced { namespace } else { "" }
}

/// A failed store as clients see it.
fn store_status(error: &StoreError) -> StatusError {
    match error {
        StoreError::DiskFull => StatusError::internal("etcdserver: mvcc: database space exceeded"),
        StoreError::Closed => {
            StatusError::new(Reason::ServiceUnavailable, "the server is shutting down")
        }
        other => StatusError::internal(other),
    }
}

/// 422 when there are errors.
fn check(resource: &Resource, name: &str, errors: &[FieldError]) -> Result<(), StatusError> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(StatusError::invalid(resource.group, resource.kind, name, errors))
    }
}

/// `apps/v1`, or `v1` in the core group.
pub(crate) fn api_version(resource: &Resource) -> String {
    if resource.group.is_empty() {
        resource.version.to_owned()
    } else {
        format!("{}/{}", resource.group, resource.version)
    }
}
