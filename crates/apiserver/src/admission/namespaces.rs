//! Nothing is made in a namespace that is missing or going, and some namespaces stay (`NamespaceLifecycle`).

use api::{ResourceScope, StatusError};
use serde_json::{Value, json};

use super::{Operation, Request};
use crate::Cache;
use crate::lookup::{NAMESPACES, text};

/// Namespaces that may not be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) fn admit(cache: &Cache, request: &Request<'_>, new: &Value) -> Result<(), StatusError> {
    let resource = request.resource;
    if NAMESPACES.is(resource) {
        let old = request.old.unwrap_or(&Value::Null);
        if request.operation == Operation::Delete && IMMORTAL.contains(&text(old, "/metadata/name"))
        {
            return Err(request.forbidden(old, "this namespace may not be deleted"));
        }
        return Ok(());
    }
    if resource.scope == ResourceScope::Cluster || request.operation != Operation::Create {
        return Ok(());
    }
    let name = text(new, "/metadata/namespace");
    let namespace = NAMESPACES
        .get(cache, "", name)
        .ok_or_else(|| StatusError::not_found("", "namespaces", name))?;
    if text(&namespace, "/metadata/deletionTimestamp").is_empty()
        && text(&namespace, "/status/phase") != "Terminating"
    {
        return Ok(());
    }
    let why =
        format!("unable to create new content in namespace {name} because it is being terminated");
    let mut error = request.forbidden(new, why);
    error.details["causes"] = json!([{"reason": "NamespaceTerminating",
        "message": format!("namespace {name} is being terminated"), "field": "metadata.namespace"}]);
    Err(error)
}
