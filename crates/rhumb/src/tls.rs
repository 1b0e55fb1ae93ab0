//! TLS of the node agent's own API: only the API server may ask.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::cli::Agent;

/// The configuration of the flags; `None` when they are not given.
pub(crate) fn kubelet(args: &Agent) -> Result<Option<Arc<rustls::ServerConfig>>> {
    let files = (&args.tls_cert_file, &args.tls_private_key_file, &args.client_ca_file);
    let (Some(certificate), Some(key), Some(authority)) = files else { return Ok(None) };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(authority)? {
        roots.add(certificate)?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()?;
    let key = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("{} is not a private key", key.display()))?;
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(certificate)?, key)?;
    Ok(Some(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    all.with_context(|| format!("{} is not a certificate", path.display()))
}
