//! The server: owns the registry, listens with TLS, answers requests.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::StatusError;
use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use store::{Embedded, Store};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{Attributes, Authenticator, Authorizer, User};
use crate::body::discard;
use crate::metrics::Metrics;
use crate::negotiate;
use crate::pki::{Pki, PkiError};
use crate::request::RequestInfo;
use crate::{
    Body, BoxError, Config, Registry, auth, bootstrap, discovery, expiry, paths, reply, rest,
};

/// Bound on a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bound on the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(32);
/// How long a shutdown waits for connections to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The data directory could not be made.
    #[error("cannot make the data directory {path}")]
    Directory {
        /// The directory.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The store did not open.
    #[error("cannot open the store at {path}")]
    Store {
        /// The store's file.
        path: String,
        /// Why.
        #[source]
        source: store::StoreError,
    },
    /// Keys, certificates or the first objects could not be made.
    #[error("cannot prepare {what}")]
    Prepare {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: BoxError,
    },
}

/// One API server.
pub struct Server {
    registry: Arc<Registry>,
    authenticator: Arc<Authenticator>,
    authorizer: Arc<Authorizer>,
    metrics: Metrics,
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// Opens the store under `config.data_dir` and reads it.
    ///
    /// # Errors
    /// When the directory or the store cannot be opened.
    pub async fn open_registry(config: Config) -> Result<Arc<Registry>, ServerError> {
        let directory = config.data_dir.display().to_string();
        std::fs::create_dir_all(&config.data_dir)
            .map_err(|source| ServerError::Directory { path: directory, source })?;
        let path = config.data_dir.join("store.redb");
        let failed = |source| ServerError::Store { path: path.display().to_string(), source };
        let store: Arc<dyn Store> = Arc::new(Embedded::open(&path).map_err(failed)?);
        Registry::open(config, store).await.map_err(failed)
    }

    /// A server over a registry; must be called within a tokio runtime.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        authenticator: Arc<Authenticator>,
        authorizer: Arc<Authorizer>,
    ) -> Arc<Self> {
        let server = Arc::new(Self {
            registry,
            authenticator,
            authorizer,
            metrics: Metrics::default(),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let (cache, closing) = (Arc::clone(server.registry.cache()), server.closing.clone());
        let registry = Arc::clone(&server.registry);
        server.tasks.spawn(async move {
            tokio::select! {
                () = cache.follow() => {}
                () = expiry::run(registry) => {}
                () = closing.cancelled() => {}
            }
        });
        server
    }

    /// Opens everything under `config.data_dir` and makes what is missing: store, keys, the first objects. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// When something under the directory cannot be opened or made.
    pub async fn open(config: Config) -> Result<Arc<Self>, ServerError> {
        let server = Self::prepare(config).await?;
        let registry = Arc::clone(&server.registry);
        bootstrap::objects(&registry).await.map_err(|source| ServerError::Prepare {
            what: "the first objects",
            source: Box::new(source),
        })?;
        server.spawn(bootstrap::keep(registry));
        Ok(server)
    }

    /// [`Server::open`] without the first objects.
    ///
    /// # Errors
    /// When something under the directory cannot be opened or made.
    pub async fn prepare(config: Config) -> Result<Arc<Self>, ServerError> {
        let registry = Self::open_registry(config).await?;
        let failed = |source: PkiError| ServerError::Prepare {
            what: "keys and certificates",
            source: Box::new(source),
        };
        let pki = Arc::new(Pki::open(registry.config()).map_err(failed)?);
        let authorizer = Arc::new(Authorizer::new(Arc::clone(registry.cache())));
        let authenticator = Authenticator::new(Arc::clone(&registry), Arc::clone(&authorizer), pki)
            .map_err(failed)?;
        Ok(Self::new(registry, Arc::new(authenticator), authorizer))
    }

    /// The cluster's keys and certificates; [`Pki::server_tls`] is what [`Server::serve`] wants.
    #[must_use]
    pub fn pki(&self) -> &Arc<Pki> {
        self.authenticator.pki()
    }

    /// Runs a task until [`Server::shutdown`].
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let closing = self.closing.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = closing.cancelled() => {}
            }
        });
    }

    /// What verifiers of ServiceAccount tokens elsewhere read.
    fn openid(&self, path: &str) -> Option<Response<Body>> {
        let tokens = self.authenticator.tokens();
        let (content_type, document) = match path {
            "/.well-known/openid-configuration" => {
                let config = self.registry.config();
                let server =
                    SocketAddr::new(config.advertise_address, config.advertise_port).to_string();
                ("application/json", tokens.openid_configuration(&server))
            }
            "/openid/v1/jwks" => ("application/jwk-set+json", tokens.key_set()),
            _ => return None,
        };
        Some(reply::reply(StatusCode::OK, content_type, document.to_string()))
    }

    /// The objects and their rules.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Answers one request of an authenticated user: authorization, admission, storage. Both the TLS listener and
    /// components of the same process come through here.
    pub async fn respond(&self, user: User, request: Request<Body>) -> Response<Body> {
        let started = Instant::now();
        let info = RequestInfo::parse(request.method(), request.uri(), request.headers());
        let response = match Box::pin(self.route(&user, &info, request)).await {
            Ok(response) => response,
            Err(error) => reply::failure(&error),
        };
        let parts = info.resource.map_or(&[][..], |resource| resource.subresources);
        let known = parts.iter().any(|part| part.name() == info.subresource);
        let part = if known { info.subresource.as_str() } else { "" };
        self.metrics.count(
            info.verb,
            info.resource,
            part,
            response.status().as_u16(),
            started.elapsed(),
        );
        response
    }

    async fn route(
        &self,
        user: &User,
        info: &RequestInfo,
        request: Request<Body>,
    ) -> Result<Response<Body>, StatusError> {
        if let Err(refused) = self.authorize(user, info) {
            discard(request.into_body()).await;
            return Err(refused);
        }
        if let Some(resource) = info.resource {
            let part = info.subresource.as_str();
            let streamed = resource
                .subresources
                .iter()
                .any(|own| own.name() == part && rest::is_streamed(*own));
            let accept = if part.is_empty() || (info.verb != "get" && !streamed) {
                negotiate::accept(request.headers())?
            } else {
                // Logs and proxied answers have types of their own.
                negotiate::accept(request.headers())
                    .unwrap_or(negotiate::Accept { form: negotiate::Form::Plain, yaml: false })
            };
            let context = rest::Context {
                registry: &self.registry,
                user,
                info,
                resource,
                accept,
                authenticator: &self.authenticator,
                authorizer: &self.authorizer,
                closing: &self.closing,
            };
            let response = rest::respond(&context, request)
                .await
                .unwrap_or_else(|error| reply::failure(&error));
            return Ok(reply::with_deprecation(response, resource));
        }
        let headers = request.headers();
        Ok(paths::respond(&info.path, &info.query, headers, &self.metrics)
            .or_else(|| discovery::respond(&info.path, headers, self.registry.config()))
            .or_else(|| self.openid(&info.path))
            .unwrap_or_else(reply::page_not_found))
    }

    fn authorize(&self, user: &User, info: &RequestInfo) -> Result<(), StatusError> {
        let attributes = attributes(user, info);
        self.authorizer
            .authorize(&attributes)
            .map_err(|reason| auth::forbidden(&attributes, &reason))
    }

    /// Serves connections until [`Server::shutdown`].
    pub async fn serve(self: &Arc<Self>, listener: TcpListener, tls: Arc<ServerConfig>) {
        let acceptor = TlsAcceptor::from(tls);
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.closing.cancelled() => return,
            };
            match stream {
                Ok((stream, _peer)) => {
                    let (server, acceptor) = (Arc::clone(self), acceptor.clone());
                    self.tasks.spawn(async move { server.connection(stream, acceptor).await });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: let some connections end.
                    tracing::warn!(component = "apiserver", %error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, acceptor: TlsAcceptor) {
        // Without it small answers wait for acknowledgements; a socket that refuses is served all the same.
        let _ignored = stream.set_nodelay(true);
        let tls = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                tracing::debug!(component = "apiserver", %error, "TLS handshake failed");
                return;
            }
            Err(_elapsed) => return,
        };
        let peer: Arc<[CertificateDer<'static>]> =
            tls.get_ref().1.peer_certificates().unwrap_or_default().iter().cloned().collect();
        let server = Arc::clone(&self);
        let service = service_fn(move |request: Request<Incoming>| {
            let (server, peer) = (Arc::clone(&server), Arc::clone(&peer));
            let answer: BoxFuture<'static, Result<Response<Body>, Infallible>> =
                Box::pin(async move { Ok(server.answer(&peer, request).await) });
            answer
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1000);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
        tokio::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(component = "apiserver", error, "connection ended");
        }
    }

    /// Authenticates and answers one request of a connection.
    async fn answer(
        &self,
        peer: &[CertificateDer<'static>],
        request: Request<Incoming>,
    ) -> Response<Body> {
        let user = match self.authenticator.authenticate(peer, request.headers()) {
            Ok(Some(user)) => user,
            Ok(None) => User::anonymous(),
            Err(error) => return reply::failure(&error),
        };
        let request = request
            .map(|body| body.map_err(|error| -> BoxError { Box::new(error) }).boxed_unsync());
        self.respond(user, request).await
    }

    /// Ends watches and connections, finishes accepted writes, closes the store.
    pub async fn shutdown(&self) {
        self.closing.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::warn!(component = "apiserver", "connections were still open at shutdown");
        }
        self.registry.store().close().await;
    }
}

/// What the authorizer is asked.
fn attributes(user: &User, info: &RequestInfo) -> Attributes {
    let of_resource = info.resource.is_some();
    let text = |value: &str| if of_resource { value.to_owned() } else { String::new() };
    Attributes {
        user: user.clone(),
        verb: info.verb.to_owned(),
        group: text(&info.group),
        version: text(&info.version),
        resource: info.resource.map_or("", |resource| resource.plural).to_owned(),
        subresource: text(&info.subresource),
        // A namespace is asked for within itself.
        namespace: if info.resource.is_some_and(|resource| resource.plural == "namespaces") {
            text(&info.name)
        } else {
            text(&info.namespace)
        },
        name: text(&info.name),
        path: info.path.clone(),
    }
}
