//! Requests that somebody else answers: a node's agent (logs, exec, attach, port-forward), a pod, or a Service.
//!
//! Bytes pass as they are, also after an upgrade, so every streaming protocol of clients and agents works. Upstream
//! counterpart: `UpgradeAwareHandler` and the `REST` proxies of pods, services and nodes.

mod target;

use std::sync::Arc;

use api::StatusError;
use api::resource::Subresource;
use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderName, TRANSFER_ENCODING, UPGRADE};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::body::BoxError;
use crate::rest::Context;
use crate::{Body, empty_body};
use target::{Target, Trust};

/// How long a connection to a node or pod may take to open.
const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// Headers that are between two neighbours and go no further (RFC 9110, section 7.6.1).
const HOP: [&str; 6] = ["keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "proxy-connection"];

/// Answers log, exec, attach, portforward and proxy.
pub(crate) async fn respond(
    context: &Context<'_>,
    part: Subresource,
    request: Request<Body>,
) -> Result<Response<Body>, StatusError> {
    let target = target::of(context, part, &request)?;
    let stream = connect(&target).await.map_err(|error| unreachable(&target, &error))?;
    match &target.trust {
        Trust::Plain => forward(stream, &target, request).await,
        Trust::Node => {
            let tls = context.authenticator.pki().kubelet_tls().map_err(StatusError::internal)?;
            secure(stream, TlsConnector::from(tls), &target, request).await
        }
        Trust::Any => {
            let tls = target::trusting().map_err(StatusError::internal)?;
            secure(stream, TlsConnector::from(Arc::new(tls)), &target, request).await
        }
    }
}

async fn connect(target: &Target) -> std::io::Result<TcpStream> {
    let connect = TcpStream::connect((target.host.as_str(), target.port));
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect)
        .await
        .map_err(|_elapsed| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn secure(
    stream: TcpStream,
    tls: TlsConnector,
    target: &Target,
    request: Request<Body>,
) -> Result<Response<Body>, StatusError> {
    let name = rustls_pki_types::ServerName::try_from(target.host.clone()).map_err(StatusError::internal)?;
    let stream = tls.connect(name, stream).await.map_err(|error| unreachable(target, &error))?;
    forward(stream, target, request).await
}

/// Sends the request on and brings the answer back; after an upgrade the bytes of both sides.
async fn forward(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &Target,
    mut request: Request<Body>,
) -> Result<Response<Body>, StatusError> {
    let from_client = request.extensions_mut().remove::<OnUpgrade>();
    let failed = |error: hyper::Error| unreachable(target, &error);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(component = "apiserver", %error, "a proxied connection ended");
        }
    });
    let mut response = sender.send_request(rewrite(target, request)?).await.map_err(failed)?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(from_client) = from_client
    {
        let from_target = hyper::upgrade::on(&mut response);
        tokio::spawn(join(from_client, from_target));
        return Ok(response.map(|_| empty_body()));
    }
    strip(response.headers_mut(), false);
    Ok(response.map(|body| body.map_err(|error| -> BoxError { Box::new(error) }).boxed_unsync()))
}

/// Copies both ways until both sides have ended.
async fn join(client: OnUpgrade, target: OnUpgrade) {
    let (Ok(client), Ok(target)) = (client.await, target.await) else { return };
    let (mut client, mut target) = (TokioIo::new(client), TokioIo::new(target));
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut target).await {
        tracing::debug!(component = "apiserver", %error, "an upgraded connection ended");
    }
}

/// The request as the target gets it: its path, and nothing that was meant for the API server.
fn rewrite(target: &Target, request: Request<Body>) -> Result<Request<Body>, StatusError> {
    let (mut parts, body) = request.into_parts();
    parts.uri = Uri::try_from(&target.path).map_err(|error| StatusError::bad_request(error.to_string()))?;
    parts.version = http::Version::HTTP_11;
    let upgrades = parts.headers.contains_key(UPGRADE);
    strip(&mut parts.headers, upgrades);
    parts.headers.remove(AUTHORIZATION);
    let host = format!("{}:{}", target.host, target.port);
    parts.headers.insert(HOST, host.parse().map_err(|_| StatusError::internal("a host that is no header"))?);
    parts.extensions.clear();
    Ok(Request::from_parts(parts, body))
}

fn strip(headers: &mut http::HeaderMap, upgrades: bool) {
    for name in HOP {
        headers.remove(HeaderName::from_static(name));
    }
    if !upgrades {
        headers.remove(CONNECTION);
        headers.remove(UPGRADE);
        headers.remove(TRANSFER_ENCODING);
    }
}

fn unreachable(target: &Target, error: &dyn std::error::Error) -> StatusError {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let text: Vec<String> = causes.map(ToString::to_string).collect();
    let why = format!("error trying to reach service: dial tcp {}:{}: {}", target.host, target.port, text.join(": "));
    StatusError::new(api::Reason::ServiceUnavailable, why)
}
