//! The distribution protocol: manifests and blobs over HTTP, with tokens (upstream: containerd's
//! `remotes/docker`, the OCI distribution specification).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::unpack::digest_text;
use super::{Credentials, Reference};

/// Redirects followed for one request.
const REDIRECTS_MAX: usize = 10;
/// Longest manifest or config, bytes (the specification's advice is 4 MiB).
const DOCUMENT_BYTES_MAX: usize = 8 << 20;
/// Where Debian keeps the trusted roots.
const ROOTS_FILE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// How long a connection or a silent server is waited for.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);
/// Manifests that are understood.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// A pointer to a blob.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) platform: Option<Platform>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Platform {
    pub(crate) architecture: String,
    pub(crate) os: String,
}

/// An image index, or docker's manifest list.
#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

/// An image manifest.
#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// Whether a document is an index, by its type or, when that says nothing, by its content.
pub(crate) fn is_index(media_type: &str, blob: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Probe {
        manifests: Option<serde::de::IgnoredAny>,
    }
    media_type.contains("image.index")
        || media_type.contains("manifest.list")
        || serde_json::from_slice::<Probe>(blob).is_ok_and(|probe| probe.manifests.is_some())
}

/// The image of an index for this machine; the only one when it names no platform.
pub(crate) fn pick(index: &Index) -> Option<&Descriptor> {
    let own = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let fits = |one: &&Descriptor| {
        one.platform.as_ref().is_some_and(|on| on.os == "linux" && on.architecture == own)
    };
    let unnamed = |one: &&Descriptor| one.platform.is_none();
    index.manifests.iter().find(fits).or_else(|| index.manifests.iter().find(unnamed))
}

/// Why a request failed, in the words of Go's HTTP client and containerd.
#[derive(Debug)]
pub(crate) enum Failure {
    NotFound,
    Denied(String),
    Other(String),
}

/// One repository of one registry.
#[derive(Debug)]
pub(crate) struct Repository {
    base: String,
    repository: String,
    credentials: Option<Credentials>,
    authorization: tokio::sync::Mutex<Option<String>>,
}

impl Repository {
    /// `mirror` is asked instead of the registry when given.
    pub(crate) fn new(
        reference: &Reference,
        mirror: Option<&String>,
        credentials: Option<&Credentials>,
    ) -> Self {
        let host = match reference.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let local = ["localhost", "127.", "[::1]"].iter().any(|start| host.starts_with(start));
        let scheme = if local { "http" } else { "https" };
        let base = mirror.map_or_else(|| format!("{scheme}://{host}"), Clone::clone);
        Self {
            base: base.trim_end_matches('/').to_owned(),
            repository: reference.repository.clone(),
            credentials: credentials.cloned(),
            authorization: tokio::sync::Mutex::default(),
        }
    }

    /// A manifest or index by tag or digest: its type, bytes and digest.
    pub(crate) async fn manifest(&self, name: &str) -> Result<(String, Bytes, String), Failure> {
        let url = format!("{}/v2/{}/manifests/{name}", self.base, self.repository);
        let response = self.get(&url).await?;
        let kind = response.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
        let body = collect(response).await?;
        let mut hash = Sha256::new();
        hash.update(&body);
        let digest = digest_text(hash);
        if name.starts_with("sha256:") && name != digest {
            return Err(Failure::Other(format!("manifest {name} has digest {digest}")));
        }
        Ok((kind, body, digest))
    }

    /// A small blob, checked.
    pub(crate) async fn blob(&self, digest: &str) -> Result<Bytes, Failure> {
        let url = format!("{}/v2/{}/blobs/{digest}", self.base, self.repository);
        let body = collect(self.get(&url).await?).await?;
        let mut hash = Sha256::new();
        hash.update(&body);
        check(digest, hash)?;
        Ok(body)
    }

    /// A blob into a file, checked.
    pub(crate) async fn download(&self, blob: &Descriptor, path: &Path) -> Result<(), Failure> {
        let url = format!("{}/v2/{}/blobs/{}", self.base, self.repository, blob.digest);
        let mut body = self.get(&url).await?.into_body();
        let disk = |error: std::io::Error| Failure::Other(format!("write layer: {error}"));
        let mut file = tokio::fs::File::create(path).await.map_err(disk)?;
        let mut hash = Sha256::new();
        let mut bytes = 0u64;
        loop {
            let frame = tokio::time::timeout(TIMEOUT, body.frame()).await;
            let frame = frame.map_err(|_| Failure::Other("i/o timeout".into()))?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| Failure::Other(error.to_string()))?;
            if let Ok(data) = frame.into_data() {
                bytes += u64::try_from(data.len()).unwrap_or(u64::MAX);
                if blob.size > 0 && bytes > blob.size {
                    return Err(Failure::Other(format!("layer {} is too long", blob.digest)));
                }
                hash.update(&data);
                file.write_all(&data).await.map_err(disk)?;
            }
        }
        file.flush().await.map_err(disk)?;
        check(&blob.digest, hash)
    }

    /// GET with authorization and redirects.
    async fn get(&self, url: &str) -> Result<Response<Incoming>, Failure> {
        let mut challenged = false;
        loop {
            let authorization = self.authorization.lock().await.clone();
            let response = follow(url, authorization.as_deref()).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && !challenged {
                challenged = true;
                self.answer(response.headers()).await?;
                continue;
            }
            return Err(match status {
                StatusCode::NOT_FOUND => Failure::NotFound,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    let said = "insufficient_scope: authorization failed";
                    Failure::Denied(said.into())
                }
                _ => {
                    Failure::Other(format!("unexpected status from GET request to {url}: {status}"))
                }
            });
        }
    }

    /// Answers a challenge: asks for a token, or uses the password itself.
    async fn answer(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let challenge = headers.get(header::WWW_AUTHENTICATE).and_then(|one| one.to_str().ok());
        let denied = || Failure::Denied("authorization failed: no basic auth credentials".into());
        let basic = self.credentials.as_ref().map(|have| {
            format!("Basic {}", STANDARD.encode(format!("{}:{}", have.username, have.password)))
        });
        let authorization = match challenge.and_then(|one| one.split_once(' ')) {
            Some((scheme, fields)) if scheme.eq_ignore_ascii_case("bearer") => {
                let fields = parse_challenge(fields);
                let realm = fields.get("realm").ok_or_else(denied)?;
                let scope = format!("repository:{}:pull", self.repository);
                let scope = fields.get("scope").unwrap_or(&scope);
                let service = fields.get("service").map(String::as_str).unwrap_or_default();
                let mark = if realm.contains('?') { '&' } else { '?' };
                let url =
                    format!("{realm}{mark}service={}&scope={}", escape(service), escape(scope));
                let response = follow(&url, basic.as_deref()).await?;
                if !response.status().is_success() {
                    return Err(Failure::Denied(format!(
                        "failed to fetch oauth token: unexpected status: {}",
                        response.status()
                    )));
                }
                let body = collect(response).await?;
                let token: Token = serde_json::from_slice(&body).map_err(|_| denied())?;
                let token = token.token.or(token.access_token).ok_or_else(denied)?;
                format!("Bearer {token}")
            }
            _ => basic.ok_or_else(denied)?,
        };
        *self.authorization.lock().await = Some(authorization);
        Ok(())
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

fn check(digest: &str, hash: Sha256) -> Result<(), Failure> {
    let found = digest_text(hash);
    if found == digest {
        return Ok(());
    }
    let words = format!("unexpected commit digest {found}, expected {digest}: failed precondition");
    Err(Failure::Other(words))
}

/// `key="value"` pairs of a challenge.
fn parse_challenge(text: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        fields.insert(key.trim_matches([' ', ',']).to_lowercase(), value.to_owned());
        rest = after;
    }
    fields
}

/// Percent-encodes a query value.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:,".contains(&byte);
    let piece =
        |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(piece).collect()
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, Failure> {
    let limited = http_body_util::Limited::new(response.into_body(), DOCUMENT_BYTES_MAX);
    let collected = tokio::time::timeout(TIMEOUT, limited.collect()).await;
    let collected = collected.map_err(|_| Failure::Other("i/o timeout".into()))?;
    collected.map(|body| body.to_bytes()).map_err(|error| Failure::Other(error.to_string()))
}

/// GET, following redirects; the authorization stays with the first host.
async fn follow(url: &str, authorization: Option<&str>) -> Result<Response<Incoming>, Failure> {
    let mut url = url.to_owned();
    let mut authorization = authorization;
    for _ in 0..REDIRECTS_MAX {
        let response = tokio::time::timeout(TIMEOUT, send(&url, authorization)).await;
        let words =
            |why: String| Failure::Other(format!("failed to do request: Get {url:?}: {why}"));
        let response = response.map_err(|_| words("i/o timeout".into()))?.map_err(words)?;
        if !response.status().is_redirection() {
            return Ok(response);
        }
        let location = response.headers().get(header::LOCATION).and_then(|one| one.to_str().ok());
        let location =
            location.ok_or_else(|| Failure::Other("redirect without location".into()))?;
        let host = |url: &str| url.parse::<Uri>().ok().and_then(|uri| uri.authority().cloned());
        let next = match location.strip_prefix('/') {
            Some(path) => {
                let scheme = url.split("://").next().unwrap_or("https");
                let authority = host(&url).map(|one| one.to_string()).unwrap_or_default();
                format!("{scheme}://{authority}/{path}")
            }
            None => location.to_owned(),
        };
        if host(&next) != host(&url) {
            authorization = None;
        }
        url = next;
    }
    Err(Failure::Other("stopped after 10 redirects".into()))
}

/// One request on a connection of its own.
async fn send(url: &str, authorization: Option<&str>) -> Result<Response<Incoming>, String> {
    let uri: Uri = url.parse().map_err(|_| "invalid URL".to_owned())?;
    let host = uri.host().ok_or("no host in URL")?.trim_matches(['[', ']']).to_owned();
    let tls = uri.scheme_str() != Some("http");
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let path = uri.path_and_query().map_or("/", |one| one.as_str()).to_owned();
    let mut addresses = tokio::net::lookup_host((host.as_str(), port))
        .await
        .map_err(|_| format!("dial tcp: lookup {host}: no such host"))?;
    let address =
        addresses.next().ok_or_else(|| format!("dial tcp: lookup {host}: no such host"))?;
    let stream = TcpStream::connect(address).await.map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            _ => error.to_string(),
        };
        format!("dial tcp {address}: connect: {why}")
    })?;
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header(header::HOST, authority)
        .header(header::ACCEPT, ACCEPT)
        .header(header::USER_AGENT, "rhumb");
    if let Some(authorization) = authorization {
        request = request.header(header::AUTHORIZATION, authorization);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    if tls {
        let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
        let connector = tokio_rustls::TlsConnector::from(tls_config()?);
        let stream =
            connector.connect(name, stream).await.map_err(|error| format!("tls: {error}"))?;
        exchange(TokioIo::new(stream), request).await
    } else {
        exchange(TokioIo::new(stream), request).await
    }
}

async fn exchange<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, String>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection); // ends with the response's body
    sender.send_request(request).await.map_err(|error| error.to_string())
}

/// Trusts the machine's roots; read once.
fn tls_config() -> Result<Arc<rustls::ClientConfig>, String> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let mut roots = rustls::RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(ROOTS_FILE)
        .map_err(|error| format!("tls: read {ROOTS_FILE}: {error}"))?;
    roots.add_parsable_certificates(certificates.flatten());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_taken_apart() {
        let fields = parse_challenge(
            r#"realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
        );
        assert_eq!(fields["realm"], "https://auth.docker.io/token");
        assert_eq!(fields["service"], "registry.docker.io");
        assert_eq!(fields["scope"], "repository:a/b:pull,push");
    }

    #[test]
    fn the_machines_platform_is_picked() {
        let index: Index = serde_json::from_str(
            r#"{"manifests":[{"digest":"a","platform":{"os":"windows","architecture":"amd64"}},
                {"digest":"b","platform":{"os":"linux","architecture":"s390x"}},
                {"digest":"c","platform":{"os":"linux","architecture":"amd64"}},
                {"digest":"d","platform":{"os":"linux","architecture":"arm64"}}]}"#,
        )
        .unwrap();
        let expected = if cfg!(target_arch = "aarch64") { "d" } else { "c" };
        assert_eq!(pick(&index).unwrap().digest, expected);
    }
}
