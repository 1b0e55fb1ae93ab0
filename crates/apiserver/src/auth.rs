//! PLACEHOLDER until the authentication piece lands; its author replaces this file.

use std::collections::BTreeMap;

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The uid, or empty.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// Anything else.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What is asked: of a resource, or of a path when `resource` is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Who asks.
    pub user: User,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; the HTTP verb for paths.
    pub verb: String,
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural.
    pub resource: String,
    /// Subresource or empty.
    pub subresource: String,
    /// Namespace or empty.
    pub namespace: String,
    /// Name or empty.
    pub name: String,
    /// The path, for requests that name no resource.
    pub path: String,
}

/// Finds out who asks.
#[derive(Debug, Default)]
pub struct Authenticator {}

impl Authenticator {
    /// The user of a request; `None`: nobody said who they are.
    ///
    /// # Errors
    /// 401 for credentials that are wrong.
    pub fn authenticate(
        &self,
        _peer: &[rustls_pki_types::CertificateDer<'static>],
        _headers: &http::HeaderMap,
    ) -> Result<Option<User>, api::StatusError> {
        Ok(None)
    }
}

/// Decides who may do what.
#[derive(Debug, Default)]
pub struct Authorizer {}

impl Authorizer {
    /// Whether the request may go on.
    ///
    /// # Errors
    /// The reason why not; may be empty.
    pub fn authorize(&self, _attributes: &Attributes) -> Result<(), String> {
        Ok(())
    }
}
