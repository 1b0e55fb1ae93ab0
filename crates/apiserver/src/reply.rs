//! Answers: objects, errors and raw bytes as HTTP responses.

use api::resource::Resource;
use api::{Reason, StatusError};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::body::pieces_body;
use crate::lookup::ENDPOINTS;
use crate::negotiate::Accept;
use crate::{Body, full_body, object};

/// An answer of one content type.
pub(crate) fn reply(
    status: StatusCode,
    content_type: &'static str,
    bytes: impl Into<Bytes>,
) -> Response<Body> {
    let mut response = Response::new(full_body(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Encoded JSON.
pub(crate) fn json_bytes(status: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    reply(status, "application/json", bytes)
}

/// Encoded JSON in pieces.
pub(crate) fn json_pieces(
    status: StatusCode,
    pieces: impl IntoIterator<Item = Bytes>,
) -> Response<Body> {
    let mut response = Response::new(pieces_body(pieces));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A JSON value, or the same as YAML when that was asked for.
pub(crate) fn value(status: StatusCode, accept: Accept, value: &Value) -> Response<Body> {
    if accept.yaml {
        match serde_saphyr::to_string(value) {
            Ok(text) => reply(status, "application/yaml", text),
            Err(error) => failure(&StatusError::internal(error)),
        }
    } else {
        json_bytes(status, object::encode(value))
    }
}

/// A failed request.
pub(crate) fn failure(error: &StatusError) -> Response<Body> {
    let status =
        StatusCode::from_u16(error.reason.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_bytes(status, object::encode(&error.to_value()));
    if let Some(seconds) = error.details["retryAfterSeconds"].as_u64() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// What Go's mux answers for paths that nobody serves; clients turn it into their own sentence.
pub(crate) fn page_not_found() -> Response<Body> {
    reply(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n")
}

/// 405 in upstream's words.
pub(crate) fn method_not_allowed() -> StatusError {
    StatusError::new(
        Reason::MethodNotAllowed,
        "the server does not allow this method on the requested resource",
    )
}

/// Adds `Warning` headers.
pub(crate) fn with_warnings(mut response: Response<Body>, warnings: &[String]) -> Response<Body> {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
        if let Ok(line) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, line);
        }
    }
    response
}

/// Adds the `Warning` header that every answer about a deprecated kind has, also a refusal.
pub(crate) fn with_deprecation(
    response: Response<Body>,
    resource: &'static Resource,
) -> Response<Body> {
    if !ENDPOINTS.is(resource) {
        return response;
    }
    let warning = "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice";
    with_warnings(response, &[warning.to_owned()])
}

/// `Status` of a success.
pub(crate) fn success(details: &Value) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
