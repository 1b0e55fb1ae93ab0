//! Single checks and hooks: HTTP, TCP, exec, sleep. Upstream: `pkg/probe`, `pkg/kubelet/lifecycle`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::IntOrString;
use api::core::{Container, HTTPGetAction, LifecycleHandler, Probe};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use runtime::{Runtime, RuntimeError};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Most of an answer or of output that goes into a message.
const MESSAGE_BYTES_MAX: usize = 1024;

/// The container that is checked, and where it is.
pub(super) struct Target<'a> {
    pub(super) runtime: &'a Runtime,
    pub(super) container: &'a Container,
    pub(super) id: &'a str,
    pub(super) ip: Option<IpAddr>,
}

/// Runs one probe; an error is the text after `probe failed: `.
pub(super) async fn probe(target: &Target<'_>, probe: &Probe) -> Result<(), String> {
    let seconds = u64::try_from(probe.timeout_seconds.unwrap_or(1).max(1)).unwrap_or(1);
    let limit = Duration::from_secs(seconds);
    if let Some(exec) = &probe.exec {
        return self::exec(target, exec.command.clone().unwrap_or_default(), limit).await;
    }
    if let Some(get) = &probe.http_get {
        return http_get(target, get, limit).await;
    }
    if let Some(socket) = &probe.tcp_socket {
        let host = host(target, socket.host.as_deref())?;
        let port = port(target.container, &socket.port)?;
        return dial(&host, port, limit).await.map(|_| ());
    }
    if let Some(grpc) = &probe.grpc {
        let port = u16::try_from(grpc.port).map_err(|_| "invalid port number".to_owned())?;
        return dial(&host(target, None)?, port, limit).await.map(|_| ());
    }
    Err("missing probe handler".to_owned())
}

/// Runs one lifecycle hook to its end; the caller bounds its time.
pub(super) async fn hook(target: &Target<'_>, handler: &LifecycleHandler) -> Result<(), String> {
    /// Hooks are bounded by the grace period alone; this only keeps a lost one from living for ever.
    const LIMIT: Duration = Duration::from_secs(24 * 3600);
    if let Some(exec) = &handler.exec {
        return self::exec(target, exec.command.clone().unwrap_or_default(), LIMIT).await;
    }
    if let Some(get) = &handler.http_get {
        return http_get(target, get, LIMIT).await;
    }
    if let Some(sleep) = &handler.sleep {
        let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        return Ok(());
    }
    Err("invalid handler".to_owned())
}

async fn exec(target: &Target<'_>, argv: Vec<String>, limit: Duration) -> Result<(), String> {
    match target.runtime.exec_sync(target.id, argv.clone(), limit).await {
        Ok(output) if output.exit_code == 0 => Ok(()),
        Ok(output) => {
            let mut text = output.stdout;
            text.extend_from_slice(&output.stderr);
            text.truncate(MESSAGE_BYTES_MAX);
            Err(String::from_utf8_lossy(&text).into_owned())
        }
        Err(RuntimeError::Timeout { .. }) => Err(format!(
            "command timed out: {:?} timed out after {}s",
            argv.join(" "),
            limit.as_secs()
        )),
        Err(error) => Err(error.to_string()),
    }
}

fn host(target: &Target<'_>, host: Option<&str>) -> Result<String, String> {
    match host.filter(|host| !host.is_empty()) {
        Some(host) => Ok(host.to_owned()),
        None => target.ip.map(|ip| ip.to_string()).ok_or_else(|| "the pod has no IP".to_owned()),
    }
}

fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_deref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())
        }
    };
    let number = number.and_then(|number| u16::try_from(number).ok()).filter(|port| *port > 0);
    number.ok_or_else(|| "invalid port number".to_owned())
}

/// `host:port`, with brackets around an IPv6 address.
fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Connects; errors read as Go's `net` words them.
async fn dial(host: &str, port: u16, limit: Duration) -> Result<TcpStream, String> {
    let address = join(host, port);
    match tokio::time::timeout(limit, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            let cause = match error.kind() {
                std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
                std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
                std::io::ErrorKind::NetworkUnreachable => {
                    "connect: network is unreachable".to_owned()
                }
                _ => error.to_string(),
            };
            Err(format!("dial tcp {address}: {cause}"))
        }
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

async fn http_get(target: &Target<'_>, get: &HTTPGetAction, limit: Duration) -> Result<(), String> {
    let host = host(target, get.host.as_deref())?;
    let port = port(target.container, &get.port)?;
    let secure = get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let scheme = if secure { "https" } else { "http" };
    let url = format!("{scheme}://{}{path}", join(&host, port));
    let failed = |cause: String| format!("Get {url:?}: {cause}");
    let request = request(get, &join(&host, port), &path).map_err(failed)?;
    let exchange = async {
        let stream = dial(&host, port, limit).await?;
        if secure {
            let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
            let tls = tokio_rustls::TlsConnector::from(trust_all()?);
            let stream = tls.connect(name, stream).await.map_err(|error| error.to_string())?;
            send(stream, request).await
        } else {
            send(stream, request).await
        }
    };
    let response = tokio::time::timeout(limit, exchange).await.unwrap_or_else(|_| {
        let text = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
        Err(text.to_owned())
    });
    let status = response.map_err(failed)?;
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {status}"))
    }
}

fn request(
    get: &HTTPGetAction,
    authority: &str,
    path: &str,
) -> Result<Request<Empty<Bytes>>, String> {
    let mut builder = Request::get(path);
    let own: Vec<_> = get.http_headers.iter().flatten().collect();
    let has = |name: &str| own.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    let defaults = [("Host", authority), ("User-Agent", "kube-probe/1.36"), ("Accept", "*/*")];
    for (name, value) in defaults.into_iter().filter(|(name, _)| !has(name)) {
        builder = builder.header(name, value);
    }
    for header in own {
        builder = builder.header(&header.name, &header.value);
    }
    builder.header("Connection", "close").body(Empty::new()).map_err(|error| error.to_string())
}

/// Sends a request and reads the head of the answer: its status code.
async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<u16, String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    // The connection may end as soon as the answer is there: only the exchange says how the probe went.
    let driver = tokio::spawn(connection);
    let response: Result<Response<Incoming>, _> = sender.send_request(request).await;
    let status = match response {
        Ok(response) => {
            let status = response.status().as_u16();
            // One frame is read so that a server does not see its answer refused.
            let _ = response.into_body().frame().await;
            Ok(status)
        }
        Err(error) if error.is_incomplete_message() || error.is_canceled() => Err("EOF".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    driver.abort();
    status
}

/// Probes accept every certificate, as upstream's do.
fn trust_all() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        Arc::new(TrustAll(provider.signature_verification_algorithms.supported_schemes()));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct TrustAll(Vec<SignatureScheme>);

impl ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
