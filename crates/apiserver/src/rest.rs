//! Requests for resources: from verb and subresource to the code that answers.

mod list;
mod parts;
mod patch;
mod reviews;
mod watch;
mod write;

use std::sync::Arc;

use api::StatusError;
use api::resource::{Resource, Subresource};
use http::{HeaderMap, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::auth::{Authenticator, Authorizer, User};
use crate::body::discard;
use crate::negotiate::{Accept, Form};
use crate::request::RequestInfo;
use crate::{Body, Registry, read_body, reply, table};

/// What every answer needs.
pub(crate) struct Context<'a> {
    /// The objects.
    pub registry: &'a Arc<Registry>,
    /// Who asks.
    pub user: &'a User,
    /// What is asked.
    pub info: &'a RequestInfo,
    /// The row.
    pub resource: &'static Resource,
    /// The form of the answer.
    pub accept: Accept,
    /// Finds out who asks; for reviews.
    pub authenticator: &'a Authenticator,
    /// Decides who may do what; for reviews.
    pub authorizer: &'a Authorizer,
    /// The server is shutting down.
    pub closing: &'a CancellationToken,
}

/// Answers a request for a resource.
///
/// # Errors
/// The Status that upstream answers.
pub(crate) async fn respond(
    context: &Context<'_>,
    request: Request<Body>,
) -> Result<Response<Body>, StatusError> {
    let resource = context.resource;
    let info = context.info;
    if !info.is_main() {
        let part =
            resource.subresources.iter().copied().find(|part| part.name() == info.subresource);
        return match part {
            Some(part) => parts::respond(context, part, request).await,
            None => Ok(reply::page_not_found()),
        };
    }
    let misplaced = match info.verb {
        "create" => !info.name.is_empty(),
        "update" | "patch" => info.name.is_empty(),
        _ => false,
    };
    if misplaced || !resource.verbs.contains(&info.verb) {
        discard(request.into_body()).await;
        return Err(reply::method_not_allowed());
    }
    match info.verb {
        "get" => list::get(context).await,
        "list" => list::list(context).await,
        "watch" => watch::watch(context).await,
        verb => {
            let (head, body) = request.into_parts();
            let body = read_body(body).await?;
            write(context, verb, &head.headers, &body).await
        }
    }
}

async fn write(
    context: &Context<'_>,
    verb: &str,
    headers: &HeaderMap,
    body: &bytes::Bytes,
) -> Result<Response<Body>, StatusError> {
    match verb {
        "create" if context.resource.plural == "bindings" => {
            parts::bind_any(context, headers, body).await
        }
        "create" if !context.resource.is_stored() => reviews::create(context, headers, body),
        "create" => write::create(context, headers, body).await,
        "update" => write::update(context, None, headers, body).await,
        "patch" => patch::patch(context, None, headers, body).await,
        "delete" => write::delete(context, headers, body).await,
        "deletecollection" => write::delete_collection(context, headers, body).await,
        _ => Err(reply::method_not_allowed()),
    }
}

/// One object in the form that was asked for.
pub(crate) fn one(
    context: &Context<'_>,
    status: StatusCode,
    object: &Value,
) -> Result<Response<Body>, StatusError> {
    let value = match context.accept.form {
        Form::Plain => return Ok(reply::value(status, context.accept, object)),
        Form::Partial(version) => partial(object, version),
        Form::Table(version) => {
            let include = table::Include::parse(&context.info.query)?;
            let rows = table::Rows { resource: context.resource, version, include };
            let revision = &object["metadata"]["resourceVersion"];
            rows.table(std::iter::once(object), json!({"resourceVersion": revision}))
        }
    };
    Ok(reply::value(status, context.accept, &value))
}

/// Only the metadata of an object.
pub(crate) fn partial(object: &Value, version: &str) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": object["metadata"]})
}

/// Whether a subresource is a stream or proxied, so that its body is not read here.
pub(crate) fn is_streamed(part: Subresource) -> bool {
    matches!(
        part,
        Subresource::Log
            | Subresource::Exec
            | Subresource::Attach
            | Subresource::PortForward
            | Subresource::Proxy
    )
}
