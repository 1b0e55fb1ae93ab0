//! The proxy's HTTP answers: `/healthz` and `/livez` for the node, and a port for each Service that asks for one.
//!
//! Load balancers ask a Service's `healthCheckNodePort` whether this node has endpoints; external ones ask `/healthz`
//! whether this node is to get traffic at all. Upstream counterpart: `pkg/proxy/healthcheck`.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::metrics::Metrics;
use crate::liveness::Silence;
use api::core::{Node, ObjectReference};
use api::{Kind, Name};
use bytes::Bytes;
use client::{EventKind, Recorder};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use plan::proxy::Mode;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// Between tries to listen on a port that somebody else has: at first, and at most. A proxy that is restarted finds its
/// predecessor's sockets for a moment.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// A change that waits for longer makes the proxy unhealthy: upstream's two periods of 30 seconds.
const OVERDUE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct State {
    /// When the kernel last had everything; `None` before the first time.
    updated: Option<jiff::Timestamp>,
    /// Since when a change waits that no sync has taken up.
    queued: Option<Instant>,
    /// Since when a change waits that a sync has taken up, and has not ended.
    syncing: Option<Instant>,
    /// Whether the node is to keep its traffic.
    eligible: bool,
    services: BTreeMap<u16, (Name, usize)>,
    listeners: BTreeMap<SocketAddr, CancellationToken>,
    recorder: Option<Recorder>,
    node: Option<String>,
    /// What answers `/metrics`, and where.
    metrics: Option<(u16, Metrics, Silence)>,
    mode: Mode,
}

impl State {
    fn is_healthy(&self) -> bool {
        let in_time = |since: Instant| since.elapsed() <= OVERDUE;
        self.updated.is_some() && self.queued.into_iter().chain(self.syncing).all(in_time)
    }
}

/// What the HTTP answers say. Clones share it.
#[derive(Clone, Debug)]
pub struct Health {
    state: Arc<Mutex<State>>,
    shutdown: CancellationToken,
}

impl Health {
    /// Starts to answer at `address` until `shutdown`. Needs a tokio runtime.
    #[must_use]
    pub fn start(address: SocketAddr, shutdown: CancellationToken) -> Self {
        let health = Self { state: Arc::default(), shutdown: shutdown.clone() };
        health.state.lock().eligible = true;
        tokio::spawn(health.clone().listen(address, shutdown));
        health
    }

    /// Tells Services whose port is not to be had, and the node, with events.
    pub fn report_to(&self, recorder: Recorder, node: &str) {
        let mut state = self.state.lock();
        state.recorder = Some(recorder);
        state.node = Some(node.to_owned());
    }

    /// What `/proxyMode` is to say.
    pub(super) fn carries_by(&self, mode: Mode) {
        self.state.lock().mode = mode;
    }

    /// What `/proxyMode` says.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.state.lock().mode
    }

    /// Answers `/metrics` and `/proxyMode` at `address`, too.
    pub(super) fn serve_metrics(&self, address: SocketAddr, metrics: Metrics, silence: Silence) {
        self.state.lock().metrics = Some((address.port(), metrics, silence));
        tokio::spawn(self.clone().listen(address, self.shutdown.clone()));
    }

    /// Takes the node's state: a node that goes away asks for no more traffic.
    pub fn observe(&self, node: Option<&Node>) {
        let Some(node) = node else { return };
        let spec = node.spec.as_ref();
        let taints = spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
        let tainted = taints.into_iter().any(|taint| taint.key == TAINT_TO_BE_DELETED);
        self.state.lock().eligible = !tainted && !node.is_deleting();
    }

    /// A change waits since `since`.
    pub fn queued(&self, since: Instant) {
        let mut state = self.state.lock();
        state.queued = Some(state.queued.map_or(since, |queued| queued.min(since)));
    }

    /// A sync takes up what waits. It ends with [`Health::publish`].
    pub fn syncing(&self) {
        let mut state = self.state.lock();
        let waiting = state.queued.take().into_iter().chain(state.syncing).min();
        state.syncing = waiting;
    }

    /// The kernel has the state that these Services belong to. Opens and closes their ports at `addresses`: where node
    /// ports answer.
    pub fn publish(&self, services: BTreeMap<u16, (Name, usize)>, addresses: &[IpAddr]) {
        let mut state = self.state.lock();
        state.updated = Some(jiff::Timestamp::now());
        state.syncing = None;
        let wanted: BTreeSet<SocketAddr> = services
            .keys()
            .flat_map(|port| addresses.iter().map(|address| SocketAddr::new(*address, *port)))
            .collect();
        state.services = services;
        state.listeners.retain(|at, listener| {
            let keep = wanted.contains(at);
            if !keep {
                listener.cancel();
            }
            keep
        });
        for at in wanted {
            state.listeners.entry(at).or_insert_with(|| {
                let token = self.shutdown.child_token();
                tokio::spawn(self.clone().listen(at, token.clone()));
                token
            });
        }
    }

    async fn listen(self, address: SocketAddr, shutdown: CancellationToken) {
        let mut retry = RETRY_MIN;
        loop {
            let listener = TcpListener::bind(address).await;
            match listener {
                Ok(listener) => {
                    retry = RETRY_MIN;
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = self.accept(&listener, &shutdown) => {}
                    }
                }
                Err(error) if retry >= RETRY_MAX => self.complain(address, &error),
                Err(_) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(retry) => {}
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    /// A port that is not to be had: the log knows, and the Service whose port it is.
    fn complain(&self, address: SocketAddr, error: &std::io::Error) {
        tracing::warn!(component = "proxy", %address, %error, "the health check port is not to be had");
        let state = self.state.lock();
        let about = state.services.get(&address.port());
        let (Some((name, _)), Some(recorder)) = (about, &state.recorder) else { return };
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(name.namespace.to_string()),
            name: Some(name.name.to_string()),
            ..ObjectReference::default()
        };
        let (host, port) = (address.ip(), address.port());
        let message = format!(
            "node {host} failed to start healthcheck {:?} on port {port}: {error}",
            format!("{}/{}", name.namespace, name.name)
        );
        recorder.event_at(about, EventKind::Warning, "FailedToStartServiceHealthcheck", message);
    }

    /// The mode that was asked for is not to be had, or not whole: the node's events say so.
    pub(super) fn complain_of_mode(&self, trouble: &str) {
        let state = self.state.lock();
        let (Some(node), Some(recorder)) = (&state.node, &state.recorder) else { return };
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.clone()),
            ..ObjectReference::default()
        };
        recorder.event_at(about, EventKind::Warning, "ProxyModeUnavailable", trouble.to_owned());
    }

    /// Serves connections until the listener fails.
    async fn accept(&self, listener: &TcpListener, shutdown: &CancellationToken) {
        while let Ok((stream, _)) = listener.accept().await {
            let port = stream.local_addr().map_or(0, |address| address.port());
            tokio::spawn(self.clone().serve(stream, port, shutdown.clone()));
        }
    }

    async fn serve(self, stream: TcpStream, port: u16, shutdown: CancellationToken) {
        let service = service_fn(|request: Request<Incoming>| {
            let answer = self.answer(port, request.uri().path());
            async move { Ok::<_, Infallible>(answer) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            () = shutdown.cancelled() => {}
            // A client that hangs up needs no word.
            _ = connection => {}
        }
    }

    fn answer(&self, port: u16, path: &str) -> Response<Full<Bytes>> {
        let state = self.state.lock();
        if let Some((name, count)) = state.services.get(&port) {
            let body = serde_json::json!({
                "service": { "namespace": &*name.namespace, "name": &*name.name },
                "localEndpoints": count,
                "serviceProxyHealthy": state.is_healthy(),
            });
            let mut response = respond(state.is_healthy() && *count > 0, &body);
            let weight = http::HeaderValue::from(*count);
            response.headers_mut().insert("x-load-balancing-endpoint-weight", weight);
            return response;
        }
        let own = state.metrics.as_ref().filter(|(own, ..)| *own == port);
        if let Some((_, metrics, silence)) = own {
            return match path {
                "/metrics" => text(
                    silence.metrics() + &metrics.render(),
                    "application/openmetrics-text; version=1.0.0; charset=utf-8",
                ),
                "/proxyMode" => text(state.mode.word().to_owned(), "text/plain; charset=utf-8"),
                _ => not_found(),
            };
        }
        let mut body = serde_json::json!({
            "lastUpdated": state.updated.map(|time| time.to_string()),
            "currentTime": jiff::Timestamp::now().to_string(),
        });
        match path {
            "/livez" => respond(state.is_healthy(), &body),
            "/healthz" => {
                body["nodeEligible"] = state.eligible.into();
                respond(state.is_healthy() && state.eligible, &body)
            }
            _ => not_found(),
        }
    }
}

fn text(body: String, media: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static(media));
    response
}

fn not_found() -> Response<Full<Bytes>> {
    let mut response = text("404 page not found\n".to_owned(), "text/plain; charset=utf-8");
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

fn respond(healthy: bool, body: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    if !healthy {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert("content-type", http::HeaderValue::from_static("application/json"));
    headers.insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    response
}
