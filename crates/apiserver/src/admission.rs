//! PLACEHOLDER until its author replaces this file.

use api::StatusError;
use api::resource::{Resource, Subresource};
use serde_json::Value;

use crate::Registry;
use crate::auth::User;

/// What a request does to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// POST.
    Create,
    /// PUT and PATCH.
    Update,
    /// DELETE.
    Delete,
}

/// A write that is about to happen.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What happens.
    pub operation: Operation,
    /// To which kind.
    pub resource: &'static Resource,
    /// To which part of it.
    pub subresource: Option<Subresource>,
    /// Who asks.
    pub user: &'a User,
    /// The object before; `None` for creates.
    pub old: Option<&'a Value>,
    /// Nothing will be stored.
    pub dry_run: bool,
}

/// Completes `new` and refuses what may not be.
///
/// # Errors
/// The Status that upstream answers.
pub fn admit(
    _registry: &Registry,
    _request: Request<'_>,
    _new: &mut Value,
) -> Result<Vec<String>, StatusError> {
    Ok(Vec::new())
}
