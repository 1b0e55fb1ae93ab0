//! Reads a kubeconfig as far as certificates and tokens go, and makes a client of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;

use crate::client::Client;
use crate::transport::Tcp;

/// Why a kubeconfig gives no client.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a kubeconfig.
    #[error("{path} is not a kubeconfig")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A name points nowhere or a field is missing or wrong.
    #[error("kubeconfig: {0}")]
    Invalid(String),
    /// TLS refuses the certificates.
    #[error("kubeconfig: the certificates cannot be used")]
    Tls(#[from] rustls::Error),
}

/// A parsed kubeconfig (`clientcmd/api/v1.Config`).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kubeconfig {
    #[serde(default)]
    clusters: Vec<Named>,
    #[serde(default)]
    users: Vec<Named>,
    #[serde(default)]
    contexts: Vec<Named>,
    #[serde(default)]
    current_context: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    cluster: Cluster,
    #[serde(default)]
    user: User,
    #[serde(default)]
    context: Context,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("User(…)")
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

impl Kubeconfig {
    /// Reads a kubeconfig file.
    ///
    /// # Errors
    /// When the file cannot be read or is not YAML of this shape.
    pub fn read(path: &Path) -> Result<Self, KubeconfigError> {
        let source = |source| KubeconfigError::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(source)?;
        serde_saphyr::from_str(&text).map_err(|error| KubeconfigError::Parse {
            path: path.to_owned(),
            source: error.to_string().into(),
        })
    }

    /// A client of the current context for `component`.
    ///
    /// # Errors
    /// When the context is incomplete or its certificates do not decode.
    pub fn client(&self, component: &str) -> Result<Client, KubeconfigError> {
        let context = &find(&self.contexts, &self.current_context, "context")?.context;
        let cluster = &find(&self.clusters, &context.cluster, "cluster")?.cluster;
        let user = &find(&self.users, &context.user, "user")?.user;
        let authority = cluster
            .server
            .strip_prefix("https://")
            .ok_or_else(|| {
                KubeconfigError::Invalid(format!(
                    "cluster {:?}: server must be an https:// URL",
                    context.cluster
                ))
            })?
            .trim_end_matches('/');
        let tls = Arc::new(tls(cluster, user)?);
        Ok(Client::new(Arc::new(Tcp::new(authority, tls, user.token.as_deref())), component))
    }

    /// Trust and identity of the current context, for other servers of the same cluster.
    ///
    /// # Errors
    /// As for [`Kubeconfig::client`].
    pub fn tls(&self) -> Result<Arc<rustls::ClientConfig>, KubeconfigError> {
        let context = &find(&self.contexts, &self.current_context, "context")?.context;
        let cluster = &find(&self.clusters, &context.cluster, "cluster")?.cluster;
        let user = &find(&self.users, &context.user, "user")?.user;
        Ok(Arc::new(tls(cluster, user)?))
    }

    /// The server's URL of the current context.
    ///
    /// # Errors
    /// When the current context points nowhere.
    pub fn server(&self) -> Result<&str, KubeconfigError> {
        let context = &find(&self.contexts, &self.current_context, "context")?.context;
        Ok(&find(&self.clusters, &context.cluster, "cluster")?.cluster.server)
    }
}

fn find<'a>(entries: &'a [Named], name: &str, what: &str) -> Result<&'a Named, KubeconfigError> {
    let found = entries.iter().find(|entry| entry.name == name);
    found.ok_or_else(|| KubeconfigError::Invalid(format!("no {what} is named {name:?}")))
}

fn tls(cluster: &Cluster, user: &User) -> Result<rustls::ClientConfig, KubeconfigError> {
    let mut roots = rustls::RootCertStore::empty();
    let authority = material(
        cluster.certificate_authority_data.as_deref(),
        cluster.certificate_authority.as_deref(),
    )?;
    for certificate in certificates(&authority.unwrap_or_default())? {
        roots.add(certificate)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let certificate =
        material(user.client_certificate_data.as_deref(), user.client_certificate.as_deref())?;
    let key = material(user.client_key_data.as_deref(), user.client_key.as_deref())?;
    match (certificate, key) {
        (Some(certificate), Some(key)) => {
            let key = PrivateKeyDer::from_pem_slice(&key)
                .map_err(|error| KubeconfigError::Invalid(format!("client key: {error}")))?;
            Ok(builder.with_client_auth_cert(certificates(&certificate)?, key)?)
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn material(data: Option<&str>, file: Option<&Path>) -> Result<Option<Vec<u8>>, KubeconfigError> {
    if let Some(data) = data {
        let decoded = STANDARD.decode(data.trim());
        return decoded
            .map(Some)
            .map_err(|error| KubeconfigError::Invalid(format!("base64 data: {error}")));
    }
    let Some(path) = file else { return Ok(None) };
    std::fs::read(path)
        .map(Some)
        .map_err(|source| KubeconfigError::Read { path: path.to_owned(), source })
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, KubeconfigError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| KubeconfigError::Invalid(format!("certificate: {error}")))
}
