//! PLACEHOLDER until its author replaces this file.

use api::StatusError;
use api::resource::Subresource;
use http::{Request, Response};

use crate::Body;
use crate::rest::Context;

/// Answers log, exec, attach, portforward and proxy.
pub(crate) async fn respond(
    _context: &Context<'_>,
    _part: Subresource,
    _request: Request<Body>,
) -> Result<Response<Body>, StatusError> {
    Err(crate::reply::method_not_allowed())
}
