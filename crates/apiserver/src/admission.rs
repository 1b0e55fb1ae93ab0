//! What stands between a valid request and the store: defaults that need other objects, and refusals.
//!
//! Upstream counterpart: `plugin/pkg/admission/*`, in the order of `AllOrderedPlugins`; the allocation of ClusterIPs
//! and node ports, which upstream does in the Services' storage, comes last.

mod limits;
mod namespaces;
mod nodes;
mod pods;
mod quota;
mod service_accounts;
mod services;
mod storage;

use api::resource::{Resource, Subresource};
use api::{Reason, StatusError};
use serde_json::Value;

use crate::Registry;
use crate::auth::{self, User};
use crate::lookup::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, PODS, ROLE_BINDINGS, ROLES, text};
use services::Reservation;
pub(crate) use services::Taken;

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

impl Request<'_> {
    /// Whether an object itself is made.
    fn creates(&self) -> bool {
        self.operation == Operation::Create && self.subresource.is_none()
    }

    /// 403 about the object of the request.
    fn forbidden(&self, object: &Value, why: impl std::fmt::Display) -> StatusError {
        let name = text(object, "/metadata/name");
        StatusError::forbidden(self.resource.group, self.resource.plural, name, why)
    }
}

/// Completes `new` and refuses what may not be. For deletions `new` is null. What a Service was given is its own only while
/// the reservation lives, or once it is stored.
///
/// # Errors
/// The Status that upstream answers.
pub(crate) async fn admit<'a>(
    registry: &'a Registry,
    request: Request<'_>,
    new: &mut Value,
) -> Result<Option<Reservation<'a>>, StatusError> {
    let cache = registry.cache();
    namespaces::admit(cache, &request, new)?;
    nodes::admit(cache, &request, new)?;
    if request.operation == Operation::Delete {
        return Ok(None);
    }
    if PODS.is(request.resource) && request.creates() {
        limits::complete(cache, &request, new)?;
        service_accounts::admit(cache, &request, new).await?;
        pods::admit(cache, &request, new)?;
    }
    storage::admit(cache, &request, new);
    let role = [ROLES, CLUSTER_ROLES, ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS]
        .iter()
        .any(|row| row.is(request.resource));
    if role {
        auth::check_escalation(cache, request.user, request.resource, request.old, new)?;
    }
    pods::admit_class(cache, &request, new)?;
    limits::check(cache, &request, new)?;
    let reservation = services::admit(registry, &request, new)?;
    if request.creates() {
        quota::check(cache, &request, new)?;
    }
    Ok(reservation)
}

/// 403 whose message stands alone.
fn refuse(message: impl Into<String>) -> StatusError {
    StatusError::new(Reason::Forbidden, message)
}

/// Letters of generated names: no vowels, so no words.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Five random letters, as `kube-api-access-xxxxx` ends in.
fn suffix() -> String {
    use rand::Rng;
    let mut random = rand::rng();
    (0..5)
        .map(|_| char::from(SUFFIX_LETTERS[random.random_range(0..SUFFIX_LETTERS.len())]))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
