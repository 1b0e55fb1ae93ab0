//! Keys and certificates of a cluster: its authority, the server's and kubelets' serving certificates, client
//! certificates, the key that signs ServiceAccount tokens. Upstream counterpart: kubeadm's `phases/certs`.
//!
//! Everything lives under `pki/` of the data directory, files readable by their owner alone. The authority and the
//! token key are made once; leaf certificates are made anew at each start, so that they always fit the settings.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::ToSpan;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::crypto::ring::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::Config;

/// Years that the authority is valid, as kubeadm's.
const AUTHORITY_YEARS: i64 = 10;
/// Years that other certificates are valid; they are made anew at every start.
const LEAF_YEARS: i64 = 1;

/// Keys or certificates could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("cannot access {path}")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make the certificate of {subject}")]
    Make {
        /// For whom.
        subject: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A file holds something else than it should.
    #[error("cannot use {what}: {why}")]
    Damaged {
        /// What is damaged.
        what: &'static str,
        /// Why.
        why: String,
    },
}

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its private key, PKCS #8.
    pub key: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    fn chain(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        let damaged = |why: rustls_pki_types::pem::Error| PkiError::Damaged {
            what: "an identity",
            why: why.to_string(),
        };
        let certificate =
            CertificateDer::from_pem_slice(self.certificate.as_bytes()).map_err(damaged)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(damaged)?;
        Ok((vec![certificate], key))
    }
}

/// The keys and certificates of one cluster.
pub struct Pki {
    directory: PathBuf,
    authority: String,
    issuer: Issuer<'static, KeyPair>,
    serving: Identity,
    kubelet_client: Identity,
    token_key: Vec<u8>,
}

impl Pki {
    /// Reads `pki/` of the data directory and makes what is missing.
    ///
    /// # Errors
    /// When files cannot be read or written, or hold no keys.
    pub fn open(config: &Config) -> Result<Self, PkiError> {
        let directory = config.data_dir.join("pki");
        let failed = |source| PkiError::File { path: directory.display().to_string(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed)?;
        let authority_key = load_key(&directory.join("ca.key"))?;
        let authority = load_authority(&directory.join("ca.crt"), &authority_key)?;
        let issuer = Issuer::from_ca_cert_pem(&authority, authority_key)
            .map_err(|source| PkiError::Make { subject: "the authority".to_owned(), source })?;
        let token_key = load_key(&directory.join("sa.key"))?;
        write(&directory.join("sa.pub"), &token_key.public_key_pem())?;
        let serving = issue(
            &issuer,
            "kube-apiserver",
            "",
            &server_names(config),
            ExtendedKeyUsagePurpose::ServerAuth,
        )?;
        let client = ExtendedKeyUsagePurpose::ClientAuth;
        let kubelet_client =
            issue(&issuer, "kube-apiserver-kubelet-client", "system:masters", &[], client)?;
        let token_key = token_key.serialize_der();
        let pki = Self { directory, authority, issuer, serving, kubelet_client, token_key };
        pki.save("apiserver", &pki.serving)?;
        pki.save("apiserver-kubelet-client", &pki.kubelet_client)?;
        Ok(pki)
    }

    fn save(&self, name: &str, identity: &Identity) -> Result<(), PkiError> {
        write(&self.directory.join(format!("{name}.crt")), &identity.certificate)?;
        write(&self.directory.join(format!("{name}.key")), &identity.key)
    }

    /// The authority's certificate, PEM: `ca.crt` of kubeconfigs and of `kube-root-ca.crt`.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The key of ServiceAccount tokens, PKCS #8 DER.
    #[must_use]
    pub fn token_key(&self) -> &[u8] {
        &self.token_key
    }

    /// A client certificate: the common name is the user, the organization its group (none when empty).
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn client(&self, user: &str, group: &str) -> Result<Identity, PkiError> {
        issue(&self.issuer, user, group, &[], ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// The administrator's client certificate.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn admin(&self) -> Result<Identity, PkiError> {
        self.client("kubernetes-admin", "system:masters")
    }

    /// A node agent's client certificate: `system:node:NAME` of `system:nodes`.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn node(&self, name: &str) -> Result<Identity, PkiError> {
        self.client(&format!("system:node:{name}"), "system:nodes")
    }

    /// The serving certificate of a node agent, for its name and addresses.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn kubelet_serving(&self, name: &str, addresses: &[IpAddr]) -> Result<Identity, PkiError> {
        let mut names = vec![name.to_owned()];
        names.extend(addresses.iter().map(IpAddr::to_string));
        let user = format!("system:node:{name}");
        issue(&self.issuer, &user, "system:nodes", &names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// TLS of the API's listener: HTTP/2 and HTTP/1.1; client certificates are asked for and verified, not demanded.
    ///
    /// # Errors
    /// When the certificates do not fit together.
    pub fn server_tls(&self) -> Result<Arc<ServerConfig>, PkiError> {
        let damaged = |why: String| PkiError::Damaged { what: "the server's certificate", why };
        let provider = Arc::new(default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::new(self.roots()?),
            Arc::clone(&provider),
        )
        .allow_unauthenticated()
        .build()
        .map_err(|error| damaged(error.to_string()))?;
        let (chain, key) = self.serving.chain()?;
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder.with_client_cert_verifier(verifier).with_single_cert(chain, key)
            })
            .map_err(|error| damaged(error.to_string()))?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(tls))
    }

    /// TLS towards node agents: their serving certificates must come from this authority; ours says who we are.
    ///
    /// # Errors
    /// When the certificates do not fit together.
    pub fn kubelet_tls(&self) -> Result<Arc<ClientConfig>, PkiError> {
        let damaged = |error: rustls::Error| PkiError::Damaged {
            what: "the client certificate",
            why: error.to_string(),
        };
        let (chain, key) = self.kubelet_client.chain()?;
        let tls = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(damaged)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(chain, key)
            .map_err(damaged)?;
        Ok(Arc::new(tls))
    }

    fn roots(&self) -> Result<RootCertStore, PkiError> {
        let damaged = |why: String| PkiError::Damaged { what: "the authority", why };
        let certificate = CertificateDer::from_pem_slice(self.authority.as_bytes())
            .map_err(|error| damaged(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate).map_err(|error| damaged(error.to_string()))?;
        Ok(roots)
    }

    /// A kubeconfig with everything embedded, YAML; `server` is the URL of the API, `context` names cluster, user and
    /// context.
    #[must_use]
    pub fn kubeconfig(
        &self,
        server: &str,
        context: &str,
        user: &str,
        identity: &Identity,
    ) -> String {
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let (server, cluster, user) = (quoted(server), quoted(context), quoted(user));
        let authority = STANDARD.encode(&self.authority);
        let certificate = STANDARD.encode(&identity.certificate);
        let key = STANDARD.encode(&identity.key);
        format!(
            "apiVersion: v1\nkind: Config\n\
             clusters:\n- name: {cluster}\n  cluster:\n    certificate-authority-data: {authority}\n    server: {server}\n\
             contexts:\n- name: {cluster}\n  context:\n    cluster: {cluster}\n    user: {user}\n\
             current-context: {cluster}\npreferences: {{}}\n\
             users:\n- name: {user}\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n"
        )
    }
}

/// Names and addresses at which clients reach the server.
fn server_names(config: &Config) -> Vec<String> {
    let domain = &config.cluster_domain;
    let mut names: Vec<String> =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned).into();
    names.push(format!("kubernetes.default.svc.{domain}"));
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    for cidr in &config.service_cidrs {
        names.extend(crate::bootstrap::first_address(cidr).map(|address| address.to_string()));
    }
    if !config.advertise_address.is_unspecified() {
        names.push(config.advertise_address.to_string());
    }
    names.extend(config.certificate_names.iter().cloned());
    names.sort();
    names.dedup();
    names
}

fn issue(
    issuer: &Issuer<'static, KeyPair>,
    user: &str,
    group: &str,
    names: &[String],
    usage: ExtendedKeyUsagePurpose,
) -> Result<Identity, PkiError> {
    let failed = |source| PkiError::Make { subject: user.to_owned(), source };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = params(user, group, LEAF_YEARS);
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into().map_err(failed)?),
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, issuer).map_err(failed)?;
    Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn params(user: &str, group: &str, years: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if !group.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, user);
    let today = jiff::Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC).date();
    let midnight = |date: jiff::civil::Date| {
        rcgen::date_time_ymd(
            i32::from(date.year()),
            date.month().unsigned_abs(),
            date.day().unsigned_abs(),
        )
    };
    params.not_before = midnight(today.saturating_sub(1.day()));
    params.not_after = midnight(today.saturating_add(years.years()));
    params
}

fn load_key(path: &Path) -> Result<KeyPair, PkiError> {
    let failed = |source| PkiError::Make { subject: path.display().to_string(), source };
    if let Some(pem) = read(path)? {
        return KeyPair::from_pem(&pem).map_err(failed);
    }
    let key = KeyPair::generate().map_err(failed)?;
    write(path, &key.serialize_pem())?;
    Ok(key)
}

fn load_authority(path: &Path, key: &KeyPair) -> Result<String, PkiError> {
    if let Some(pem) = read(path)? {
        return Ok(pem);
    }
    let mut params = params("kubernetes", "", AUTHORITY_YEARS);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    let certificate = params
        .self_signed(key)
        .map_err(|source| PkiError::Make { subject: "kubernetes".to_owned(), source })?;
    let pem = certificate.pem();
    write(path, &pem)?;
    Ok(pem)
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File { path: path.display().to_string(), source }),
    }
}

/// Replaces a file whole, readable by its owner alone.
fn write(path: &Path, text: &str) -> Result<(), PkiError> {
    let failed = |source| PkiError::File { path: path.display().to_string(), source };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn authority_and_token_key_survive_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::new(directory.path());
        let first = Pki::open(&config).unwrap();
        let second = Pki::open(&config).unwrap();
        assert_eq!(first.authority(), second.authority());
        assert_eq!(first.token_key(), second.token_key());
        for entry in fs::read_dir(directory.path().join("pki")).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(
                entry.metadata().unwrap().permissions().mode() & 0o777,
                0o600,
                "{:?}",
                entry.path()
            );
        }
        second.server_tls().unwrap();
        second.kubelet_tls().unwrap();
    }

    #[test]
    fn serving_certificate_names_the_first_service_address() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::new(directory.path());
        let names = server_names(&config);
        assert!(names.contains(&"10.96.0.1".to_owned()));
        assert!(names.contains(&"kubernetes.default.svc.cluster.local".to_owned()));
    }

    #[test]
    fn kubeconfig_is_yaml_with_embedded_data() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(&Config::new(directory.path())).unwrap();
        let text = pki.kubeconfig(
            "https://127.0.0.1:6443",
            "rhumb",
            "kubernetes-admin",
            &pki.admin().unwrap(),
        );
        let parsed: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(parsed["current-context"], "rhumb");
        let authority =
            parsed["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap();
        assert_eq!(STANDARD.decode(authority).unwrap(), pki.authority().as_bytes());
    }
}
