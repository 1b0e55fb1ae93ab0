//! The proxy's HTTP answers: `/healthz` and `/livez` for the node, and a port for each Service that asks for one.
//!
//! Load balancers ask a Service's `healthCheckNodePort` whether this node has endpoints; external ones ask `/healthz`
//! whether this node is to get traffic at all. Upstream counterpart: `pkg/proxy/healthcheck`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::core::Node;
use api::{Kind, Name};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// Between tries to listen on a port that somebody else has.
const RETRY: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct State {
    /// Whether the kernel has had a whole state once.
    programmed: bool,
    /// Whether the node is to keep its traffic.
    eligible: bool,
    services: BTreeMap<u16, (Name, usize)>,
    listeners: BTreeMap<u16, CancellationToken>,
}

/// What the HTTP answers say. Clones share it.
#[derive(Clone, Debug)]
pub struct Health {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    shutdown: CancellationToken,
}

impl Health {
    /// Starts to answer at `address` until `shutdown`. Needs a tokio runtime.
    #[must_use]
    pub fn start(address: SocketAddr, shutdown: CancellationToken) -> Self {
        let health = Self { state: Arc::default(), address, shutdown: shutdown.clone() };
        health.state.lock().eligible = true;
        tokio::spawn(health.clone().listen(address, shutdown));
        health
    }

    /// Takes the node's state: a node that goes away asks for no more traffic.
    pub fn observe(&self, node: Option<&Node>) {
        let Some(node) = node else { return };
        let spec = node.spec.as_ref();
        let taints = spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
        let tainted = taints.into_iter().any(|taint| taint.key == TAINT_TO_BE_DELETED);
        self.state.lock().eligible = !tainted && !node.is_deleting();
    }

    /// The kernel has the state that these Services belong to. Opens and closes their ports.
    pub fn publish(&self, services: BTreeMap<u16, (Name, usize)>) {
        let mut state = self.state.lock();
        state.programmed = true;
        if state.services == services {
            return;
        }
        state.listeners.retain(|port, listener| {
            let keep = services.contains_key(port);
            if !keep {
                listener.cancel();
            }
            keep
        });
        for port in services.keys() {
            if !state.listeners.contains_key(port) {
                let token = self.shutdown.child_token();
                let address = SocketAddr::new(self.address.ip(), *port);
                tokio::spawn(self.clone().listen(address, token.clone()));
                state.listeners.insert(*port, token);
            }
        }
        state.services = services;
    }

    async fn listen(self, address: SocketAddr, shutdown: CancellationToken) {
        loop {
            let listener = TcpListener::bind(address).await;
            match listener {
                Ok(listener) => {
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = self.accept(&listener, &shutdown) => {}
                    }
                }
                Err(error) => {
                    tracing::warn!(component = "proxy", %address, %error, "the health check port is not to be had");
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
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
            let healthy = state.programmed && *count > 0;
            let body = serde_json::json!({
                "service": { "namespace": &*name.namespace, "name": &*name.name },
                "localEndpoints": count,
                "serviceProxyHealthy": state.programmed,
            });
            return respond(healthy, &body);
        }
        let healthy = match path {
            "/livez" => state.programmed,
            "/healthz" => state.programmed && state.eligible,
            _ => {
                let mut response =
                    Response::new(Full::new(Bytes::from_static(b"404 page not found\n")));
                *response.status_mut() = StatusCode::NOT_FOUND;
                return response;
            }
        };
        let body =
            serde_json::json!({ "nodeEligible": state.eligible, "programmed": state.programmed });
        respond(healthy, &body)
    }
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
