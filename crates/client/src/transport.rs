//! How requests travel: over TCP with TLS, or inside the process.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A connection without traffic is probed after this time.
const IDLE_MAX: Duration = Duration::from_secs(15);
/// How often it is probed.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// Probes without an answer after which the connection is given up.
const PROBES: u32 = 3;
/// What is sent must be acknowledged within this time (upstream's HTTP/2 health check: 30 s of silence, 15 s for a ping).
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Any error that ends a body or a connection.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A streamed request or response body.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body of known content.
pub fn full_body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body without content.
#[must_use]
pub fn empty_body() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// The request did not get an answer.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach the API server")]
pub struct TransportError(#[source] pub BoxError);

/// Carries one request to an API server and brings back the head of the answer with a streamed body.
pub trait Transport: Send + Sync + 'static {
    /// Sends `request`, whose URI has only a path and query.
    fn send(
        &self,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Response<Body>, TransportError>>;
}

type Respond = dyn Fn(Request<Bytes>) -> BoxFuture<'static, Response<Body>> + Send + Sync;

/// Calls the API server of this very process, as a fixed user.
#[derive(Clone)]
pub struct InProcess {
    respond: Arc<Respond>,
}

impl InProcess {
    /// A transport over a function that answers requests.
    pub fn new(
        respond: impl Fn(Request<Bytes>) -> BoxFuture<'static, Response<Body>> + Send + Sync + 'static,
    ) -> Self {
        Self { respond: Arc::new(respond) }
    }
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InProcess")
    }
}

impl Transport for InProcess {
    fn send(
        &self,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Response<Body>, TransportError>> {
        let answer = (self.respond)(request);
        Box::pin(async move { Ok(answer.await) })
    }
}

/// HTTP/1.1 over TLS with pooled connections; every long watch has a connection of its own.
#[derive(Clone, Debug)]
pub struct Tcp {
    pool: Pool<TlsConnect, Full<Bytes>>,
    authority: String,
    token: Option<Arc<str>>,
}

impl Tcp {
    /// A transport to `host:port` that trusts and presents what `tls` says.
    #[must_use]
    pub fn new(authority: &str, tls: Arc<rustls::ClientConfig>, token: Option<&str>) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(Duration::from_secs(10)));
        // A watch only listens: without this it would never learn that the other side, or the way to it, is gone.
        http.set_keepalive(Some(IDLE_MAX));
        http.set_keepalive_interval(Some(PROBE_EVERY));
        http.set_keepalive_retries(Some(PROBES));
        #[cfg(target_os = "linux")]
        http.set_tcp_user_timeout(Some(SILENCE_MAX));
        let connect = TlsConnect { http, tls: TlsConnector::from(tls) };
        let pool = Pool::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connect);
        Self { pool, authority: authority.to_owned(), token: token.map(Into::into) }
    }
}

impl Transport for Tcp {
    fn send(
        &self,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Response<Body>, TransportError>> {
        let this = self.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
            parts.uri = Uri::builder()
                .scheme("https")
                .authority(this.authority.as_str())
                .path_and_query(path)
                .build()
                .map_err(|error| TransportError(error.into()))?;
            if let Some(token) = &this.token {
                let value = format!("Bearer {token}")
                    .parse()
                    .map_err(|_| TransportError("the token is not a header value".into()))?;
                parts.headers.insert(http::header::AUTHORIZATION, value);
            }
            let request = Request::from_parts(parts, Full::new(body));
            let response =
                this.pool.request(request).await.map_err(|error| TransportError(error.into()))?;
            Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
        })
    }
}

/// Connects with TLS and hands the stream to hyper's pool.
#[derive(Clone)]
struct TlsConnect {
    http: HttpConnector,
    tls: TlsConnector,
}

impl tower_service::Service<Uri> for TlsConnect {
    type Response = TlsIo;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<TlsIo, BoxError>> + Send>>;

    fn poll_ready(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), BoxError>> {
        tower_service::Service::poll_ready(&mut self.http, context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let host = uri.host().unwrap_or("").trim_matches(['[', ']']).to_owned();
        let connect = tower_service::Service::call(&mut self.http, uri);
        let tls = self.tls.clone();
        Box::pin(async move {
            let tcp = connect.await?.into_inner();
            let name = ServerName::try_from(host)?;
            Ok(TlsIo(TokioIo::new(tls.connect(name, tcp).await?)))
        })
    }
}

/// A TLS connection as hyper wants it.
struct TlsIo(TokioIo<TlsStream<TcpStream>>);

impl Connection for TlsIo {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for TlsIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for TlsIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, buffer)
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
