//! Connections to node agents, pods and Services' endpoints.

use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::target::{Security, Target};
use crate::Body;
use crate::pki::Pki;

/// Bound on reaching a backend.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection of its own for one request.
///
/// # Errors
/// Why the backend cannot be reached, in Go's words where they are known.
pub(super) async fn open(pki: &Pki, target: &Target) -> Result<SendRequest<Body>, String> {
    let address = (target.address, target.port);
    let dialed = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = match dialed {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return Err(format!("dial tcp {}: connect: {}", target.authority(), words(&error)));
        }
        Err(_elapsed) => return Err(format!("dial tcp {}: i/o timeout", target.authority())),
    };
    // Without it small messages of a terminal wait; a socket that refuses is used all the same.
    let _ignored = stream.set_nodelay(true);
    let config = match target.security {
        Security::Plain => return speak(stream).await,
        Security::Agent => pki.kubelet_tls().map_err(|error| error.to_string())?,
        Security::Unverified => unverified()?,
    };
    let name = ServerName::IpAddress(target.address.into());
    let secured = TlsConnector::from(config).connect(name, stream).await;
    speak(secured.map_err(|error| format!("tls: {error}"))?).await
}

async fn speak<S>(stream: S) -> Result<SendRequest<Body>, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) =
        handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(component = "apiserver", %error, "a proxied connection ended");
        }
    });
    Ok(sender)
}

fn words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        _ => error.to_string(),
    }
}

/// TLS to pods and Services: their certificates are their own affair, as upstream.
fn unverified() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(default_provider());
    let verifier = Arc::new(Unverified(Arc::clone(&provider)));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// Accepts every certificate whose key the backend holds.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
