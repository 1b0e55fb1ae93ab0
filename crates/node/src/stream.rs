//! The kubelet's HTTPS API: logs, exec, attach, port-forward and the list of pods, for the API server; and what
//! `rhumb explain` asks a node.
//!
//! Upstream counterpart: `pkg/kubelet/server`. The TLS configuration asks for and verifies the API server's client
//! certificate or another node's; `callers` says what each may ask.

mod callers;
mod command;
mod forward;
mod inspect;
mod logs;
mod mux;
mod query;
mod spdy;
#[cfg(test)]
mod tests;
mod upgrade;
mod wire;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use plan::proxy::Settings;
use runtime::Runtime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::kubelet::{KubeletHandle, LookupError};
use crate::liveness::Silence;
use callers::Caller;
use client::Applied;
use logs::{LogOptions, OptionsError};
use query::Query;

/// Connections at a time; the API server opens one for each request and session.
const CONNECTIONS_MAX: usize = 1024;
/// For a TLS handshake, and for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Parts of a log that wait for the client, each 64 KiB or so.
const LOG_PARTS_MAX: usize = 8;

/// `GET ?revision=N`: waits until this node's proxy and DNS have the EndpointSlices up to N, and says how far they are.
pub(crate) const APPLIED: &str = "/rhumb/v1/applied";
/// The longest wait of an answer about [`APPLIED`].
const APPLIED_WAIT: Duration = Duration::from_secs(10);

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// How the API is served.
#[derive(Clone)]
pub struct Options {
    /// Where it listens.
    pub address: SocketAddr,
    /// The pods of this node.
    pub handle: KubeletHandle,
    /// Their containers.
    pub runtime: Runtime,
    /// What the proxy of this node is told.
    pub settings: Settings,
    /// How far this node's proxy and DNS are with the EndpointSlices.
    pub applied: Vec<Applied>,
    /// Nodes that this one leaves alone.
    pub silence: Silence,
    /// Requires and verifies a client certificate.
    pub tls: Arc<rustls::ServerConfig>,
}

/// Why the API is not served.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The port is not to be had.
    #[error("cannot listen at {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// What all connections share.
struct Shared {
    handle: KubeletHandle,
    runtime: Runtime,
    settings: Settings,
    applied: Vec<Applied>,
    silence: Silence,
    shutdown: CancellationToken,
}

/// Binds, then serves in the background until `shutdown`. Needs a tokio runtime.
///
/// # Errors
/// When the address cannot be bound.
pub async fn start(options: Options, shutdown: CancellationToken) -> Result<(), StreamError> {
    let address = options.address;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| StreamError::Listen { address, source })?;
    let Options { handle, runtime, settings, applied, silence, tls, .. } = options;
    let stop = shutdown.clone();
    let shared = Arc::new(Shared { handle, runtime, settings, applied, silence, shutdown: stop });
    tokio::spawn(async move {
        let tls = TlsAcceptor::from(tls);
        tokio::select! {
            () = accept(&listener, &tls, &shared) => {}
            () = shutdown.cancelled() => {}
        }
    });
    Ok(())
}

async fn accept(listener: &TcpListener, tls: &TlsAcceptor, shared: &Arc<Shared>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(component = "kubelet", %error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await; // out of descriptors, say
                continue;
            }
        };
        let (tls, shared) = (tls.clone(), Arc::clone(shared));
        tokio::spawn(async move {
            serve_tls(stream, &tls, shared).await;
            drop(slot);
        });
    }
}

async fn serve_tls(stream: TcpStream, tls: &TlsAcceptor, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true); // keystrokes go at once; without it they only go later
    match tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            let caller = Caller::of(stream.get_ref().1.peer_certificates());
            serve(stream, caller, shared).await;
        }
        Ok(Err(error)) => {
            tracing::debug!(component = "kubelet", %error, "a TLS handshake failed");
        }
        Err(_) => tracing::debug!(component = "kubelet", "a TLS handshake took too long"),
    }
}

/// Serves one connection.
async fn serve<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: T,
    caller: Caller,
    shared: Arc<Shared>,
) {
    let shutdown = shared.shutdown.clone();
    let service = service_fn(|request| {
        let shared = Arc::clone(&shared);
        async move {
            let path = request.uri().path();
            if !caller.may_ask(path) {
                return Ok::<_, Infallible>(plain(StatusCode::FORBIDDEN, "Forbidden"));
            }
            if path == APPLIED && request.method() == Method::GET {
                return Ok(applied(&shared, &request).await);
            }
            if path.starts_with(inspect::ROOT) && request.method() == Method::GET {
                return Ok(inspect(shared, request).await);
            }
            Ok(respond(&shared, request))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::select! {
        served = connection => {
            if let Err(error) = served {
                tracing::debug!(component = "kubelet", %error, "a connection broke");
            }
        }
        () = shutdown.cancelled() => {}
    }
}

/// What a path names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    verb: String,
    namespace: String,
    pod: String,
    uid: Option<String>,
    /// Empty for a port-forward.
    container: String,
}

impl Place {
    /// `/verb/namespace/pod[/uid][/container]`.
    fn parse(path: &str) -> Option<Self> {
        let pieces: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (verb, rest) = pieces.split_first()?;
        let (namespace, pod, uid, container) = match (*verb, rest) {
            ("containerLogs" | "exec" | "attach", [namespace, pod, container]) => {
                (namespace, pod, None, *container)
            }
            ("exec" | "attach", [namespace, pod, uid, container]) => {
                (namespace, pod, Some((*uid).to_owned()), *container)
            }
            ("portForward", [namespace, pod]) => (namespace, pod, None, ""),
            ("portForward", [namespace, pod, uid]) => (namespace, pod, Some((*uid).to_owned()), ""),
            _ => return None,
        };
        let [verb, namespace, pod, container] =
            [*verb, *namespace, *pod, container].map(str::to_owned);
        Some(Self { verb, namespace, pod, uid, container })
    }
}

fn respond(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let get = request.method() == Method::GET;
    match request.uri().path() {
        "/healthz" if get => return plain(StatusCode::OK, "ok"),
        "/pods" | "/pods/" if get => return pods(&shared.handle),
        _ => {}
    }
    let Some(place) = Place::parse(request.uri().path()) else {
        return plain(StatusCode::NOT_FOUND, "404 page not found");
    };
    let query = Query::parse(request.uri().query().unwrap_or(""));
    match place.verb.as_str() {
        "containerLogs" if get => container_logs(shared, &place, &query),
        "exec" | "attach" if get || request.method() == Method::POST => {
            command::respond(shared, &place, &query, request)
        }
        "portForward" if get || request.method() == Method::POST => {
            forward::respond(shared, &place, request)
        }
        _ => plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"),
    }
}

/// What `rhumb explain` asks: the kernel's answer takes a while, so others are not kept waiting for it.
async fn inspect(shared: Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let answer = tokio::task::spawn_blocking(move || {
        let query = Query::parse(request.uri().query().unwrap_or(""));
        inspect::respond(&shared, request.uri().path(), &query)
    });
    let broken = |_| plain(StatusCode::INTERNAL_SERVER_ERROR, "the answer broke off");
    answer.await.unwrap_or_else(broken)
}

/// What the guard of another node's pods asks.
async fn applied(shared: &Shared, request: &Request<Incoming>) -> Response<Body> {
    let query = Query::parse(request.uri().query().unwrap_or(""));
    let Some(revision) = query.get("revision").and_then(|text| text.parse().ok()) else {
        return plain(StatusCode::BAD_REQUEST, "revision is needed");
    };
    let all = join_all(shared.applied.iter().map(|one| one.reached(revision)));
    let _ = tokio::time::timeout(APPLIED_WAIT, all).await;
    let now = join_all(shared.applied.iter().map(|one| one.reached(0))).await;
    plain(StatusCode::OK, &now.into_iter().min().unwrap_or(0).to_string())
}

fn pods(handle: &KubeletHandle) -> Response<Body> {
    let items = handle.pods();
    let list =
        serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    let mut response = Response::new(boxed(Full::new(list.to_string().into())));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn container_logs(shared: &Arc<Shared>, place: &Place, query: &Query) -> Response<Body> {
    let options = match LogOptions::parse(query, jiff::Timestamp::now()) {
        Ok(options) => options,
        Err(error @ OptionsError::Decode) => {
            return plain(StatusCode::BAD_REQUEST, &error.to_string());
        }
        Err(error @ OptionsError::Invalid) => {
            return plain(StatusCode::UNPROCESSABLE_ENTITY, &error.to_string());
        }
    };
    let Place { namespace, pod, container, .. } = place;
    let path = match shared.handle.log_path(namespace, pod, container, options.previous) {
        Ok(path) => path,
        Err(LookupError::NoPod) => {
            return plain(StatusCode::NOT_FOUND, &format!("pod {pod:?} does not exist"));
        }
        Err(error @ LookupError::NoContainer { .. }) => {
            return plain(StatusCode::NOT_FOUND, &error.to_string());
        }
        Err(error) => return plain(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let (out, parts) = mpsc::channel(LOG_PARTS_MAX);
    let (shared, place) = (Arc::clone(shared), place.clone());
    tokio::spawn(async move {
        let runs = || is_running(&shared.handle, &place, &path);
        let follow = options.follow && !options.previous;
        let live: Option<&(dyn Fn() -> bool + Send + Sync)> =
            if follow { Some(&runs) } else { None };
        tokio::select! {
            sent = logs::send(path.clone(), &options, live, &out) => {
                if let Err(error) = sent {
                    let Place { namespace, pod: name, .. } = &place;
                    tracing::warn!(component = "kubelet", kind = "Pod", %namespace, %name, %error, "a log was not read");
                }
            }
            () = shared.shutdown.cancelled() => {}
        }
    });
    let parts = futures_util::stream::unfold(parts, |mut parts| async move {
        parts.recv().await.map(|part| (Ok(Frame::data(part)), parts))
    });
    let mut response = Response::new(StreamBody::new(parts).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, TEXT);
    response
}

/// Whether the run that writes this log still runs.
fn is_running(handle: &KubeletHandle, place: &Place, path: &std::path::Path) -> bool {
    let found = handle.lookup(&place.namespace, &place.pod, &place.container);
    found.is_ok_and(|found| found.running && found.log_path.as_deref() == Some(path))
}

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// A short answer.
fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(boxed(Full::new(Bytes::copy_from_slice(text.as_bytes()))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, TEXT);
    response
}

fn boxed<B>(body: B) -> Body
where
    B: hyper::body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    body.map_err(|never| match never {}).boxed_unsync()
}
