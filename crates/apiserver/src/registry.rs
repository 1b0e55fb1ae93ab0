//! Reading and writing objects by the rules of their row: defaulting, admission, validation, storage.
//!
//! Upstream counterpart: `k8s.io/apiserver/pkg/registry/generic/registry`.

use std::sync::Arc;

use api::StatusError;
use api::resource::{Resource, Subresource};
use serde_json::Value;

use crate::auth::User;
use crate::{Cache, Config};

/// How an object is to be written.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// `fieldManager`; empty means derived from the user agent.
    pub field_manager: String,
    /// Everything but the write itself.
    pub dry_run: bool,
}

/// What a write did.
#[derive(Clone, Debug)]
pub struct Written {
    /// The object as stored, with its resourceVersion.
    pub object: Arc<Value>,
    /// Whether the object was made by this write.
    pub created: bool,
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
    cache: Cache,
    config: Config,
}

impl Registry {
    /// All objects in memory.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The server's settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The object of that name.
    ///
    /// # Errors
    /// 404 when there is none.
    pub fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Result<Arc<Value>, StatusError> {
        self.cache
            .get(resource, namespace, name)
            .ok_or_else(|| StatusError::not_found(resource.group, resource.plural, name))
    }

    /// Makes an object: defaults, admission, validation, storage.
    ///
    /// # Errors
    /// The Status that upstream answers.
    pub async fn create(
        &self,
        _user: &User,
        _resource: &'static Resource,
        _namespace: &str,
        _object: Value,
        _options: &WriteOptions,
    ) -> Result<Written, StatusError> {
        Err(StatusError::internal("not built yet"))
    }

    /// Replaces an object, or its `subresource` part; a resourceVersion in `object` must be the current one.
    ///
    /// # Errors
    /// The Status that upstream answers.
    pub async fn update(
        &self,
        _user: &User,
        _resource: &'static Resource,
        _subresource: Option<Subresource>,
        _object: Value,
        _options: &WriteOptions,
    ) -> Result<Written, StatusError> {
        Err(StatusError::internal("not built yet"))
    }

    /// Deletes an object, or marks it as being deleted when finalizers or grace keep it.
    ///
    /// # Errors
    /// The Status that upstream answers.
    pub async fn delete(
        &self,
        _user: &User,
        _resource: &'static Resource,
        _namespace: &str,
        _name: &str,
        _options: &DeleteOptions,
    ) -> Result<Written, StatusError> {
        Err(StatusError::internal("not built yet"))
    }
}
