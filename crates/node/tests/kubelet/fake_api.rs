//! As much of an API server as the kubelet speaks to: objects in memory, patches, watches, deletion with grace.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Name;
use bytes::Bytes;
use client::{Body, Client, InProcess, full_body};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

type Key = (String, Name);

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Key, Value>,
    watchers: Vec<(Query, mpsc::UnboundedSender<Bytes>)>,
    /// Every change, in order: a watch begins where its list ended.
    changes: Vec<Change>,
}

struct Change {
    revision: u64,
    key: Key,
    object: Value,
    line: Bytes,
}

/// A shared fake API server.
#[derive(Clone, Default)]
pub(crate) struct FakeApi {
    state: Arc<Mutex<State>>,
}

/// What a path and query ask for.
#[derive(Clone, Debug, Default)]
struct Query {
    plural: String,
    namespace: String,
    name: String,
    subresource: String,
    fields: Vec<(String, String)>,
    watch: bool,
    /// The revision after which a watch begins.
    since: u64,
}

impl Query {
    fn parse(path: &str, query: &str) -> Self {
        let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        parts.drain(..if parts[0] == "api" { 2 } else { 3 });
        let mut parsed = Self::default();
        if parts[0] == "namespaces" && parts.len() > 2 {
            parsed.namespace = parts[1].to_owned();
            parts.drain(..2);
        }
        let part = |index: usize| parts.get(index).map(ToString::to_string).unwrap_or_default();
        (parsed.plural, parsed.name, parsed.subresource) = (part(0), part(1), part(2));
        let query = query.replace("%3D", "=").replace("%2F", "/");
        for pair in query.split('&') {
            if let Some(selector) = pair.strip_prefix("fieldSelector=")
                && let Some((field, value)) = selector.split_once('=')
            {
                parsed.fields.push((field.to_owned(), value.to_owned()));
            }
            if let Some(revision) = pair.strip_prefix("resourceVersion=") {
                parsed.since = revision.parse().unwrap_or_default();
            }
            parsed.watch |= pair == "watch=true";
        }
        parsed
    }

    fn selects(&self, key: &Key, object: &Value) -> bool {
        let fits = |(field, value): &(String, String)| {
            let pointer = format!("/{}", field.replace('.', "/"));
            object.pointer(&pointer).and_then(Value::as_str) == Some(value)
        };
        key.0 == self.plural
            && (self.namespace.is_empty() || *key.1.namespace == *self.namespace)
            && self.fields.iter().all(fits)
    }

    fn key(&self) -> Key {
        (self.plural.clone(), Name::new(&self.namespace, &self.name))
    }
}

impl State {
    /// Stores (or removes) an object and tells the watchers.
    fn commit(&mut self, key: &Key, mut object: Value, kind: &str) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        if kind == "DELETED" {
            self.objects.remove(key);
        } else {
            self.objects.insert(key.clone(), object.clone());
        }
        let line = Bytes::from(format!("{}\n", json!({"type": kind, "object": object})));
        for (query, watcher) in &self.watchers {
            if query.selects(key, &object) {
                let _ = watcher.send(line.clone());
            }
        }
        let (revision, key) = (self.revision, key.clone());
        self.changes.push(Change { revision, key, object: object.clone(), line });
        object
    }
}

fn answer(code: u16, body: &Value) -> Response<Body> {
    Response::builder().status(code).body(full_body(body.to_string())).unwrap()
}

fn failure(code: u16, reason: &str) -> Response<Body> {
    answer(code, &json!({"kind": "Status", "code": code, "reason": reason, "message": reason}))
}

impl FakeApi {
    /// A client of this server.
    pub(crate) fn client(&self) -> Client {
        let this = self.clone();
        let respond = move |request: Request<Bytes>| -> BoxFuture<'static, Response<Body>> {
            let this = this.clone();
            Box::pin(async move { this.respond(&request) })
        };
        Client::new(Arc::new(InProcess::new(respond)), "test")
    }

    /// Stores an object from outside, as a user does.
    pub(crate) fn put(&self, plural: &str, mut object: Value) {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or("").to_owned();
        let key = (plural.to_owned(), Name::new(&text("namespace"), &text("name")));
        let mut state = self.state.lock();
        let known = state.objects.contains_key(&key);
        if text("uid").is_empty() {
            object["metadata"]["uid"] = format!("uid-{}", state.revision + 1).into();
        }
        state.commit(&key, object, if known { "MODIFIED" } else { "ADDED" });
    }

    pub(crate) fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (plural.to_owned(), Name::new(namespace, name));
        self.state.lock().objects.get(&key).cloned()
    }

    pub(crate) fn list(&self, plural: &str) -> Vec<Value> {
        let state = self.state.lock();
        let found = state.objects.iter().filter(|(key, _)| key.0 == plural);
        found.map(|(_, object)| object.clone()).collect()
    }

    /// Removes an object at once, as `kubectl delete --force` does.
    pub(crate) fn remove(&self, plural: &str, namespace: &str, name: &str) {
        let key = (plural.to_owned(), Name::new(namespace, name));
        let mut state = self.state.lock();
        if let Some(object) = state.objects.get(&key).cloned() {
            state.commit(&key, object, "DELETED");
        }
    }

    fn respond(&self, request: &Request<Bytes>) -> Response<Body> {
        let uri = request.uri();
        let query = Query::parse(uri.path(), uri.query().unwrap_or(""));
        let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        let media = request.headers()["content-type"].to_str().unwrap_or("").to_owned();
        match *request.method() {
            Method::GET if query.watch => self.watch(query),
            Method::GET if query.name.is_empty() => self.page(&query),
            Method::GET => match self.get(&query.plural, &query.namespace, &query.name) {
                Some(object) => answer(200, &object),
                None => failure(404, "NotFound"),
            },
            Method::POST if query.subresource == "token" => {
                let ends = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3600);
                let ends = ends.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                let mut request = body;
                request["status"] = json!({"token": "the-token", "expirationTimestamp": ends});
                answer(201, &request)
            }
            Method::POST => self.create(query, body),
            Method::PATCH => self.patch(&query, &body, &media),
            Method::DELETE => self.delete(&query, &body),
            _ => failure(405, "MethodNotAllowed"),
        }
    }

    fn page(&self, query: &Query) -> Response<Body> {
        let state = self.state.lock();
        let items: Vec<_> = state.objects.iter().filter(|(key, o)| query.selects(key, o)).collect();
        let items: Vec<_> = items.into_iter().map(|(_, object)| object.clone()).collect();
        let revision = state.revision.to_string();
        answer(200, &json!({"metadata": {"resourceVersion": revision}, "items": items}))
    }

    /// A watch: first what has happened since its list, then what happens.
    fn watch(&self, query: Query) -> Response<Body> {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let mut state = self.state.lock();
        for change in &state.changes {
            if change.revision > query.since && query.selects(&change.key, &change.object) {
                let _ = sender.send(change.line.clone());
            }
        }
        state.watchers.push((query, sender));
        drop(state);
        let stream = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
        let frames = stream.map(|line| Ok(hyper::body::Frame::data(line)));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }

    fn create(&self, mut query: Query, mut object: Value) -> Response<Body> {
        query.name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
        let mut state = self.state.lock();
        if state.objects.contains_key(&query.key()) {
            return failure(409, "AlreadyExists");
        }
        object["metadata"]["uid"] = format!("uid-{}", state.revision + 1).into();
        answer(201, &state.commit(&query.key(), object, "ADDED"))
    }

    fn patch(&self, query: &Query, patch: &Value, media: &str) -> Response<Body> {
        let mut state = self.state.lock();
        let Some(object) = state.objects.get(&query.key()).cloned() else {
            return failure(404, "NotFound");
        };
        let uid = &patch["metadata"]["uid"];
        if uid.is_string() && *uid != object["metadata"]["uid"] {
            return failure(409, "Conflict");
        }
        let kind = if query.plural == "nodes" { "Node" } else { "Pod" };
        let patched = if media.starts_with("application/strategic") {
            api::patch::strategic("", "v1", kind, &object, patch)
        } else {
            api::patch::merge(&object, patch)
        };
        match patched {
            Ok(patched) if patched == object => answer(200, &object),
            Ok(patched) => answer(200, &state.commit(&query.key(), patched, "MODIFIED")),
            Err(error) => failure(400, &error.message),
        }
    }

    fn delete(&self, query: &Query, options: &Value) -> Response<Body> {
        let mut state = self.state.lock();
        let Some(mut object) = state.objects.get(&query.key()).cloned() else {
            return failure(404, "NotFound");
        };
        let uid = &options["preconditions"]["uid"];
        if uid.is_string() && *uid != object["metadata"]["uid"] {
            return failure(409, "Conflict");
        }
        let grace = options["gracePeriodSeconds"].as_i64().unwrap_or(30);
        if grace == 0 {
            return answer(200, &state.commit(&query.key(), object, "DELETED"));
        }
        object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        answer(200, &state.commit(&query.key(), object, "MODIFIED"))
    }
}
