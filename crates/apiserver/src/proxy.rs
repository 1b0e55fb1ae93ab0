//! Requests that others answer: node agents (logs, exec, attach, port-forward, `nodes/proxy`), pods and Services.
//!
//! Upstream counterpart: `pkg/registry/core/{pod,node,service}/…` with `k8s.io/apimachinery/pkg/util/proxy`. The server
//! only carries bytes: after a 101 both directions are copied until one side ends, whatever protocol they speak.

mod connect;
mod rewrite;
mod target;

use api::StatusError;
use api::resource::Subresource;
use futures_util::future::BoxFuture;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;

use crate::rest::Context;
use crate::{Body, empty_body, reply};
use target::Target;

/// Bytes of an agent's error text that are passed on.
const ERROR_BYTES_MAX: usize = 2048;
/// Headers that concern one connection only.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Answers log, exec, attach, portforward and proxy.
///
/// # Errors
/// The Status that upstream answers when there is nobody to ask.
pub(crate) fn respond<'a>(
    context: &'a Context<'_>,
    part: Subresource,
    request: Request<Body>,
) -> BoxFuture<'a, Result<Response<Body>, StatusError>> {
    Box::pin(answer(context, part, request))
}

async fn answer(
    context: &Context<'_>,
    part: Subresource,
    mut request: Request<Body>,
) -> Result<Response<Body>, StatusError> {
    let allowed = match part {
        Subresource::Log => request.method() == Method::GET,
        Subresource::Exec | Subresource::Attach | Subresource::PortForward => {
            [Method::GET, Method::POST].contains(request.method())
        }
        _ => true,
    };
    if !allowed {
        return Err(reply::method_not_allowed());
    }
    if part == Subresource::Proxy && wants_slash(&request) {
        return Ok(moved(request.uri()));
    }
    let Some(target) = target::find(context, part, request.uri())? else {
        // Nothing can have been logged yet; upstream's LocationStreamer without a location.
        let mut response = Response::new(empty_body());
        *response.status_mut() = StatusCode::NO_CONTENT;
        return Ok(response);
    };
    let prefix = prefix(part, &target, request.uri(), request.headers());
    let asked = prefix.as_ref().and_then(|_| HeaderValue::from_str(request.uri().path()).ok());
    if let Some(asked) = asked {
        request.headers_mut().insert("x-forwarded-uri", asked);
    }
    let response =
        send(context, &target, request).await.map_err(|why| unreachable(part, &target, &why))?;
    if part == Subresource::Log && !response.status().is_success() {
        return Err(agent_error(response).await);
    }
    match prefix {
        Some(prefix) => Ok(rewrite::answer(&prefix, response).await),
        None => Ok(response),
    }
}

/// How the backend of a `proxy` is seen from outside; none for other parts.
fn prefix(
    part: Subresource,
    target: &Target,
    uri: &Uri,
    headers: &HeaderMap,
) -> Option<rewrite::Prefix> {
    if part != Subresource::Proxy {
        return None;
    }
    let own = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let own = own.or(uri.authority().map(http::uri::Authority::as_str)).unwrap_or_default();
    let (asked, sent) = (uri.path(), target.path.split('?').next().unwrap_or_default());
    let path = asked.strip_suffix(sent).unwrap_or(asked).to_owned();
    Some(rewrite::Prefix { path, hosts: [target.authority(), own.to_owned()] })
}

async fn send(
    context: &Context<'_>,
    target: &Target,
    mut request: Request<Body>,
) -> Result<Response<Body>, String> {
    let upgrades = is_upgrade(request.headers());
    let waiting = upgrades.then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    parts.uri = target.path.parse::<Uri>().map_err(|error| error.to_string())?;
    parts.version = http::Version::HTTP_11;
    clean(&mut parts.headers, upgrades);
    let host = HeaderValue::from_str(&target.authority()).map_err(|error| error.to_string())?;
    parts.headers.insert(header::HOST, host);
    let mut sender = connect::open(context.authenticator.pki(), target).await?;
    let sent = sender.send_request(Request::from_parts(parts, body)).await;
    let mut response = sent.map_err(|error| error.to_string())?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = waiting else {
            return Err("the backend switched protocols unasked".to_owned());
        };
        let backend = hyper::upgrade::on(&mut response);
        let closing = context.closing.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = carry(client, backend) => {}
                () = closing.cancelled() => {}
            }
        });
        let (parts, _body) = response.into_parts();
        return Ok(Response::from_parts(parts, empty_body()));
    }
    clean_hops(response.headers_mut());
    Ok(response
        .map(|body| body.map_err(|error| -> crate::BoxError { Box::new(error) }).boxed_unsync()))
}

/// Copies both directions until one ends.
async fn carry(client: hyper::upgrade::OnUpgrade, backend: hyper::upgrade::OnUpgrade) {
    match tokio::try_join!(client, backend) {
        Ok((client, backend)) => {
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut backend).await {
                tracing::debug!(component = "apiserver", %error, "a proxied stream broke");
            }
        }
        Err(error) => {
            tracing::debug!(component = "apiserver", %error, "a connection was not upgraded");
        }
    }
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.to_ascii_lowercase().contains("upgrade"))
}

/// Drops what is not for the backend: credentials, impersonation, and hops unless the connection is upgraded.
fn clean(headers: &mut HeaderMap, upgrades: bool) {
    headers.remove(header::AUTHORIZATION);
    headers.remove(header::HOST);
    let impersonation: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    for name in impersonation {
        headers.remove(name);
    }
    if !upgrades {
        clean_hops(headers);
    }
}

fn clean_hops(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Pages behind a proxy have relative links: their root ends in a slash.
fn wants_slash(request: &Request<Body>) -> bool {
    let page =
        [Method::GET, Method::HEAD].contains(request.method()) && !is_upgrade(request.headers());
    page && is_root(request.uri().path())
}

/// Whether nothing follows the `proxy` of the API's own path; what is asked of the target may end in that word too.
fn is_root(path: &str) -> bool {
    let pieces: Vec<&str> = path.split('/').collect();
    matches!(
        pieces[..],
        ["", "api", _, "nodes", _, "proxy"] | ["", "api", _, "namespaces", _, _, _, "proxy"]
    )
}

fn moved(uri: &Uri) -> Response<Body> {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = Response::new(empty_body());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&format!("{}/{query}", uri.path())) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// Nobody answers there.
fn unreachable(part: Subresource, target: &Target, why: &str) -> StatusError {
    match part {
        Subresource::Log => StatusError::internal(format!("Get {:?}: {why}", target.url())),
        Subresource::Proxy => StatusError::new(
            api::Reason::ServiceUnavailable,
            format!("error trying to reach service: {why}"),
        ),
        _ => StatusError::internal(format!("error dialing backend: {why}")),
    }
}

/// An agent's refusal as a Status.
async fn agent_error(response: Response<Body>) -> StatusError {
    let status = response.status();
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        text.extend(frame.into_data().unwrap_or_default());
        if text.len() > ERROR_BYTES_MAX {
            break;
        }
    }
    text.truncate(ERROR_BYTES_MAX);
    let text = String::from_utf8_lossy(&text).trim_end().to_owned();
    match status {
        StatusCode::BAD_REQUEST => StatusError::bad_request(text),
        StatusCode::NOT_FOUND => {
            let message =
                format!("the server could not find the requested resource ( pods/log {text})");
            StatusError::new(api::Reason::NotFound, message)
        }
        _ => StatusError::internal(text),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_the_root_of_a_target_is_moved() {
        assert!(is_root("/api/v1/nodes/n1/proxy"));
        assert!(is_root("/api/v1/namespaces/a/services/b:80/proxy"));
        assert!(!is_root("/api/v1/nodes/n1/proxy/"));
        assert!(!is_root("/api/v1/nodes/n1/proxy/config/proxy"));
        assert!(!is_root("/api/v1/namespaces/a/pods/b/proxy/x/proxy"));
    }

    #[test]
    fn credentials_and_hops_stay_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("impersonate-user", "a"),
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("accept", "*/*"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        assert!(is_upgrade(&headers));
        clean(&mut headers, true);
        assert_eq!(headers.len(), 3);
        clean(&mut headers, false);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
    }
}
