//! Typed requests to an API server.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::meta::ListMeta;
use api::{Kind, Reason, StatusError};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::transport::{Body, Transport, TransportError};
use crate::watch::status_error;

/// Answers above this size are refused: a list page of every Service of a large cluster fits many times.
const ANSWER_BYTES_MAX: usize = 512 << 20;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server answered with a `Status`.
    #[error("{0}")]
    Status(StatusError),
    /// There was no answer.
    #[error("the request got no answer")]
    Transport(#[from] TransportError),
    /// The answer is not what was asked for.
    #[error("the answer of the API server does not decode")]
    Decode(#[from] serde_json::Error),
    /// The answer broke off.
    #[error("the answer of the API server broke off")]
    Body(#[source] crate::transport::BoxError),
}

impl Error {
    /// The reason that the API server gave, if it answered.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Status(status) => Some(status.reason),
            _ => None,
        }
    }

    /// The object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.reason() == Some(Reason::NotFound)
    }

    /// The object changed meanwhile.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.reason() == Some(Reason::Conflict)
    }

    /// The name is taken.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.reason() == Some(Reason::AlreadyExists)
    }
}

/// What to list or watch. Empty means everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListParams {
    /// Only this namespace; empty for all.
    pub namespace: String,
    /// A label selector such as `app=web,tier in (a,b)`.
    pub labels: String,
    /// A field selector such as `spec.nodeName=n1`.
    pub fields: String,
}

impl ListParams {
    /// Objects whose fields match, in all namespaces.
    #[must_use]
    pub fn fields(selector: impl Into<String>) -> Self {
        Self { fields: selector.into(), ..Self::default() }
    }

    /// Objects whose labels match, in all namespaces.
    #[must_use]
    pub fn labels(selector: impl Into<String>) -> Self {
        Self { labels: selector.into(), ..Self::default() }
    }

    /// Objects of one namespace.
    #[must_use]
    pub fn namespace(namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), ..Self::default() }
    }

    pub(crate) fn query(&self) -> Vec<(&'static str, &str)> {
        let mut query = Vec::new();
        for (key, value) in [("labelSelector", &self.labels), ("fieldSelector", &self.fields)] {
            if !value.is_empty() {
                query.push((key, value.as_str()));
            }
        }
        query
    }
}

/// A page of objects.
#[derive(Clone, Debug, Deserialize)]
#[serde(bound = "K: DeserializeOwned")]
pub struct List<K> {
    /// The revision of the list and the token of the next page.
    #[serde(default)]
    pub metadata: ListMeta,
    /// The objects, by name.
    #[serde(default = "Vec::new")]
    pub items: Vec<K>,
}

/// A change to an object, in one of the four encodings of the API.
#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 7386.
    Merge(Value),
    /// RFC 6902.
    Json(Value),
    /// Strategic merge patch: lists merge by key.
    Strategic(Value),
    /// Server-side apply.
    Apply {
        /// Who owns the fields.
        manager: String,
        /// Take fields from other managers.
        force: bool,
        /// The fields.
        object: Value,
    },
}

/// How to delete an object.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteOptions {
    /// Seconds of grace; `None` for the object's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<i64>,
    /// Only if the object still is this one (`uid`, `resourceVersion`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub preconditions: BTreeMap<&'static str, String>,
    /// `Background`, `Foreground` or `Orphan`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub propagation_policy: Option<&'static str>,
}

impl DeleteOptions {
    /// Only the object with this uid.
    #[must_use]
    pub fn uid(uid: &str) -> Self {
        Self { preconditions: BTreeMap::from([("uid", uid.to_owned())]), ..Self::default() }
    }
}

/// A handle to an API server. Clones share the connection and the journal of writes.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    manager: Arc<str>,
    /// The highest revision this component wrote, by kind; see [`crate::run`].
    journal: Arc<Mutex<BTreeMap<&'static str, u64>>>,
}

impl Client {
    /// A client whose writes are recorded under the field manager `component`.
    pub fn new(transport: Arc<dyn Transport>, component: &str) -> Self {
        Self { transport, manager: component.into(), journal: Arc::default() }
    }

    /// The same connection for another component, with a journal of its own.
    #[must_use]
    pub fn component(&self, component: &str) -> Self {
        Self::new(Arc::clone(&self.transport), component)
    }

    /// The component's name.
    #[must_use]
    pub fn manager(&self) -> &str {
        &self.manager
    }

    /// The highest revision of each kind that this component wrote, by `KIND`.
    #[must_use]
    pub fn written(&self) -> BTreeMap<&'static str, u64> {
        self.journal.lock().clone()
    }

    /// Reads one object. `namespace` is empty for cluster-scoped kinds.
    pub async fn get<K: Kind>(&self, namespace: &str, name: &str) -> Result<K, Error> {
        self.call(Method::GET, &object_path::<K>(namespace, name, ""), None).await
    }

    /// Reads all objects that match, in one page.
    pub async fn list<K: Kind>(&self, params: &ListParams) -> Result<List<K>, Error> {
        let path = with_query(K::path(&params.namespace), &params.query());
        self.call(Method::GET, &path, None).await
    }

    /// Creates an object in the namespace that it names.
    pub async fn create<K: Kind>(&self, object: &K) -> Result<K, Error> {
        let path = self.managed(K::path(object.namespace()));
        let created: K = self.call(Method::POST, &path, Some(encode(object)?)).await?;
        self.record(&created);
        Ok(created)
    }

    /// Replaces an object; fails with Conflict when its resourceVersion is stale.
    pub async fn update<K: Kind>(&self, object: &K) -> Result<K, Error> {
        self.put(object, "").await
    }

    /// Replaces the status of an object.
    pub async fn update_status<K: Kind>(&self, object: &K) -> Result<K, Error> {
        self.put(object, "/status").await
    }

    /// Patches an object.
    pub async fn patch<K: Kind>(
        &self,
        namespace: &str,
        name: &str,
        patch: &Patch,
    ) -> Result<K, Error> {
        self.patch_path(&object_path::<K>(namespace, name, ""), patch).await
    }

    /// Patches the status of an object.
    pub async fn patch_status<K: Kind>(
        &self,
        namespace: &str,
        name: &str,
        patch: &Patch,
    ) -> Result<K, Error> {
        self.patch_path(&object_path::<K>(namespace, name, "/status"), patch).await
    }

    /// Asks for deletion. An object that is already gone is not an error.
    pub async fn delete<K: Kind>(
        &self,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(), Error> {
        let path = object_path::<K>(namespace, name, "");
        let answer: Result<Value, Error> =
            self.call(Method::DELETE, &path, Some(encode(options)?)).await;
        match answer {
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
            Ok(answer) => {
                let revision = answer["metadata"]["resourceVersion"]
                    .as_str()
                    .and_then(|text| text.parse().ok());
                self.note(K::KIND, revision.unwrap_or(0));
                Ok(())
            }
        }
    }

    /// Posts `body` to a subresource such as `binding`, `token` or `eviction` and decodes the answer.
    pub async fn post<K: Kind, A: DeserializeOwned>(
        &self,
        namespace: &str,
        name: &str,
        subresource: &str,
        body: &impl Serialize,
    ) -> Result<A, Error> {
        let path = object_path::<K>(namespace, name, &format!("/{subresource}"));
        self.call(Method::POST, &path, Some(encode(body)?)).await
    }

    /// Sends any request whose answer is JSON: for discovery and for resources without a type.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Error> {
        let body = body.map(encode).transpose()?;
        self.call(method, path, body).await
    }

    /// Opens a watch stream; see [`crate::Reflector`] for the ordinary use.
    pub(crate) async fn watch_body<K: Kind>(
        &self,
        params: &ListParams,
        revision: u64,
    ) -> Result<Body, Error> {
        let revision = revision.to_string();
        let mut query = params.query();
        query.extend([
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", &revision),
        ]);
        let path = with_query(K::path(&params.namespace), &query);
        let response = self.send(Method::GET, &path, None, "application/json").await?;
        Ok(response.into_body())
    }

    async fn put<K: Kind>(&self, object: &K, subresource: &str) -> Result<K, Error> {
        let path = self.managed(object_path::<K>(object.namespace(), object.name(), subresource));
        let stored: K = self.call(Method::PUT, &path, Some(encode(object)?)).await?;
        self.record(&stored);
        Ok(stored)
    }

    async fn patch_path<K: Kind>(&self, path: &str, patch: &Patch) -> Result<K, Error> {
        let (media_type, path, body) = match patch {
            Patch::Merge(body) => {
                ("application/merge-patch+json", self.managed(path.to_owned()), body)
            }
            Patch::Json(body) => {
                ("application/json-patch+json", self.managed(path.to_owned()), body)
            }
            Patch::Strategic(body) => {
                ("application/strategic-merge-patch+json", self.managed(path.to_owned()), body)
            }
            Patch::Apply { manager, force, object } => {
                let query = [
                    ("fieldManager", manager.as_str()),
                    ("force", if *force { "true" } else { "false" }),
                ];
                ("application/apply-patch+yaml", with_query(path.to_owned(), &query), object)
            }
        };
        let response = self.send(Method::PATCH, &path, Some(encode(body)?), media_type).await?;
        let stored: K = serde_json::from_slice(&collect(response).await?)?;
        self.record(&stored);
        Ok(stored)
    }

    fn managed(&self, path: String) -> String {
        with_query(path, &[("fieldManager", &self.manager)])
    }

    fn record<K: Kind>(&self, object: &K) {
        self.note(K::KIND, object.revision());
    }

    fn note(&self, kind: &'static str, revision: u64) {
        let mut journal = self.journal.lock();
        let highest = journal.entry(kind).or_default();
        *highest = revision.max(*highest);
    }

    async fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<A, Error> {
        let response = self.send(method, path, body, "application/json").await?;
        Ok(serde_json::from_slice(&collect(response).await?)?)
    }

    /// Boxed so that the futures above stay small, and `Send` for every lifetime.
    fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        media_type: &str,
    ) -> BoxFuture<'static, Result<Response<Body>, Error>> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::ACCEPT, "application/json")
            .header(http::header::CONTENT_TYPE, media_type)
            .header(http::header::USER_AGENT, concat!("rhumb/", env!("CARGO_PKG_VERSION")))
            .body(body.unwrap_or_default());
        let transport = Arc::clone(&self.transport);
        Box::pin(async move {
            let request = request.map_err(|error| TransportError(error.into()))?;
            let response = transport.send(request).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            Err(Error::Status(status_error(&collect(response).await?)))
        })
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("manager", &self.manager).finish_non_exhaustive()
    }
}

async fn collect(response: Response<Body>) -> Result<Bytes, Error> {
    let mut body = response.into_body();
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(Error::Body)?.into_data() {
            bytes.extend_from_slice(&data);
        }
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(Error::Body("the answer is too large".into()));
        }
    }
    Ok(bytes.freeze())
}

fn encode(value: &(impl Serialize + ?Sized)) -> Result<Bytes, Error> {
    Ok(serde_json::to_vec(value)?.into())
}

fn object_path<K: Kind>(namespace: &str, name: &str, subresource: &str) -> String {
    format!("{}/{}{subresource}", K::path(namespace), escape(name))
}

/// Appends a query to a path that has none.
fn with_query(mut path: String, query: &[(&str, &str)]) -> String {
    for (index, (key, value)) in query.iter().enumerate() {
        path.push(if index == 0 { '?' } else { '&' });
        path.push_str(key);
        path.push('=');
        path.push_str(&escape(value));
    }
    path
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "%{byte:02X}").expect("a String takes everything");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::{escape, object_path, with_query};
    use api::core::{Node, Pod};

    #[test]
    fn paths_follow_group_scope_and_namespace() {
        assert_eq!(
            object_path::<Pod>("default", "a", "/status"),
            "/api/v1/namespaces/default/pods/a/status"
        );
        assert_eq!(object_path::<Node>("", "n1", ""), "/api/v1/nodes/n1");
        assert_eq!(
            object_path::<api::apps::Deployment>("x", "d", ""),
            "/apis/apps/v1/namespaces/x/deployments/d"
        );
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(escape("a=b,c in (d)"), "a%3Db%2Cc%20in%20%28d%29");
        assert_eq!(with_query("/x".into(), &[("a", "1"), ("b", "2")]), "/x?a=1&b=2");
    }
}
