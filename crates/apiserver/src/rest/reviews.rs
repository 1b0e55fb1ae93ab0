//! Reviews: questions to authentication and authorization; nothing is stored.
//! Upstream: `registry/authentication` and `registry/authorization`.

use api::StatusError;
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};

use super::Context;
use crate::decode::{self, Expected, FieldValidation};
use crate::negotiate::{Form, not_acceptable};
use crate::{Body, object, reply};

/// Answers a POST of a review; it has neither rows nor metadata, so it is only given as it is.
pub(super) fn create(
    context: &Context<'_>,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response<Body>, StatusError> {
    if context.accept.form != Form::Plain {
        return Err(not_acceptable());
    }
    let validation = FieldValidation::parse(&context.info.query, "CreateOptions")?;
    let decoded = decode::object(headers, body, Expected::of(context.resource), validation)?;
    let mut review = crate::auth::reviews::create(
        (context.authenticator, context.authorizer),
        context.user,
        context.resource,
        &context.info.namespace,
        decoded.object,
    )?;
    object::meta_mut(&mut review);
    let response = super::one(context, StatusCode::CREATED, &review)?;
    Ok(reply::with_warnings(response, &decoded.warnings))
}
