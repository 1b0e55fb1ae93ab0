//! WATCH: a stream of changes from a revision. Upstream: `handlers.WatchServer` and the cacher's watchers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use api::StatusError;
use api::resource::Resource;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::list::wait_fresh;
use super::{Context, partial};
use crate::cache::{Change, ChangeKind, Changes, Object, event_line, list_prefix};
use crate::negotiate::Form;
use crate::options::{ListOptions, too_old};
use crate::registry::api_version;
use crate::select::Selector;
use crate::{Body, BoxError, convert, object, table};

/// Seconds until a watch ends that names no timeout: spread so that clients do not all come back at once.
const TIMEOUT_SECONDS: std::ops::Range<u64> = 1800..3600;
/// How often a quiet watch tells its revision.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// Bytes of one chunk of the answer; more waits for the next one.
const CHUNK_BYTES_MAX: usize = 256 << 10;

/// Answers a WATCH.
pub(super) async fn watch(context: &Context<'_>) -> Result<Response<Body>, StatusError> {
    let resource = context.resource;
    let options = ListOptions::parse(context.info, resource)?;
    let cache = context.registry.cache();
    let encoder = Encoder {
        resource,
        form: context.accept.form,
        include: table::Include::parse(&context.info.query)?,
        columns_sent: false,
    };
    let mut watcher = Watcher::new(context, encoder, &options);
    let wanted = options.revision.unwrap_or(0);
    if options.initial_events == Some(true) {
        wait_fresh(cache, wanted).await?;
    }
    let initial = match options.initial_events {
        Some(initial) => initial,
        None => wanted == 0,
    };
    let start = if wanted == 0 || initial {
        let snapshot = cache.snapshot(resource);
        if initial {
            watcher.queue.extend(snapshot.range(&watcher.prefix, "").cloned());
            watcher.initial_end = options.initial_events.is_some() && options.bookmarks;
        }
        snapshot.revision
    } else {
        wanted
    };
    watcher.revision = start;
    match cache.watch(resource, start) {
        Ok(changes) => watcher.changes = Some(changes),
        Err(oldest) => watcher.failed = Some(too_old(start, oldest)),
    }
    let body = stream::unfold(watcher, |mut watcher| async move {
        let chunk = watcher.next().await?;
        Some((Ok::<_, BoxError>(Frame::data(chunk)), watcher))
    });
    let mut response = Response::new(StreamBody::new(body).boxed_unsync());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// One client's watch.
struct Watcher {
    encoder: Encoder,
    selector: Selector,
    prefix: String,
    /// Objects of the initial state that are still to be sent.
    queue: VecDeque<Arc<Object>>,
    /// The bookmark that ends the initial state is still to be sent.
    initial_end: bool,
    changes: Option<Changes>,
    /// What ends the watch as an ERROR event.
    failed: Option<StatusError>,
    /// Everything up to here has been sent.
    revision: u64,
    bookmarks: bool,
    bookmark_at: Instant,
    end_at: Instant,
    closing: CancellationToken,
}

impl Watcher {
    fn new(context: &Context<'_>, encoder: Encoder, options: &ListOptions) -> Self {
        let seconds =
            options.timeout_seconds.unwrap_or_else(|| rand::rng().random_range(TIMEOUT_SECONDS));
        let mut selector = options.selector.clone();
        if !context.info.name.is_empty() {
            selector.require_name(&context.info.name);
        }
        Self {
            encoder,
            selector,
            prefix: list_prefix(context.resource, &context.info.namespace),
            queue: VecDeque::new(),
            initial_end: false,
            changes: None,
            failed: None,
            revision: 0,
            bookmarks: options.bookmarks,
            bookmark_at: Instant::now() + BOOKMARK_PERIOD,
            end_at: Instant::now() + Duration::from_secs(seconds),
            closing: context.closing.clone(),
        }
    }

    /// The next bytes; `None` ends the watch.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(chunk) = self.initial() {
                return Some(chunk);
            }
            if let Some(error) = self.failed.take() {
                self.changes = None;
                return Some(json_line("ERROR", &error.to_value()));
            }
            let changes = self.changes.as_mut()?;
            match changes.ready() {
                Ok((batch, revision)) => {
                    self.revision = revision;
                    if let Some(chunk) = self.encode(&batch) {
                        return Some(chunk);
                    }
                }
                Err(oldest) => {
                    self.failed = Some(too_old(self.revision, oldest));
                    continue;
                }
            }
            let changes = self.changes.as_mut()?;
            tokio::select! {
                () = changes.changed() => {}
                () = self.closing.cancelled() => return None,
                () = sleep_until(self.end_at) => return None,
                () = sleep_until(self.bookmark_at), if self.bookmarks => {
                    self.bookmark_at = Instant::now() + BOOKMARK_PERIOD;
                    // What happened meanwhile to this resource comes first.
                    if let Ok((batch, revision)) = changes.ready() {
                        self.revision = revision;
                        let events = self.encode(&batch).unwrap_or_default();
                        let bookmark = self.encoder.bookmark(self.revision, false);
                        return Some([events, bookmark].concat().into());
                    }
                }
            }
        }
    }

    /// A chunk of the initial state.
    fn initial(&mut self) -> Option<Bytes> {
        let mut chunk = BytesMut::new();
        while let Some(next) = self.queue.pop_front() {
            if self.selector.matches(&next) {
                chunk.extend_from_slice(&self.encoder.event(ChangeKind::Added, &next));
                if chunk.len() > CHUNK_BYTES_MAX {
                    return Some(chunk.freeze());
                }
            }
        }
        if std::mem::take(&mut self.initial_end) {
            chunk.extend_from_slice(&self.encoder.bookmark(self.revision, true));
        }
        (!chunk.is_empty()).then(|| chunk.freeze())
    }

    fn encode(&mut self, batch: &[Arc<Change>]) -> Option<Bytes> {
        let mut only: Option<Bytes> = None;
        let mut chunk = BytesMut::new();
        for change in batch {
            if !change.object.key.starts_with(&self.prefix) {
                continue;
            }
            if let Some(line) = self.line(change) {
                // One line is passed on as it is, shared with all other watchers.
                if let Some(first) = only.take() {
                    chunk.extend_from_slice(&first);
                    chunk.extend_from_slice(&line);
                } else if chunk.is_empty() {
                    only = Some(line);
                } else {
                    chunk.extend_from_slice(&line);
                }
            }
        }
        only.or_else(|| (!chunk.is_empty()).then(|| chunk.freeze()))
    }

    /// The event as this watcher sees it: moving into the selection is ADDED, moving out is DELETED.
    fn line(&mut self, change: &Change) -> Option<Bytes> {
        if self.selector.is_everything() {
            return Some(self.encoder.change(change));
        }
        let before = change.previous.as_ref().is_some_and(|object| self.selector.matches(object));
        let after = change.kind != ChangeKind::Deleted && self.selector.matches(&change.object);
        match (before, after) {
            (false, false) => None,
            (true, true) => Some(self.encoder.change(change)),
            (false, true) if change.kind == ChangeKind::Added => Some(self.encoder.change(change)),
            (false, true) => Some(self.encoder.event(ChangeKind::Added, &change.object)),
            (true, false) if change.kind == ChangeKind::Deleted => {
                Some(self.encoder.change(change))
            }
            (true, false) => {
                let previous = change.previous.as_ref()?;
                let mut last = Value::clone(&previous.value());
                let revision = change.object.revision.to_string();
                object::meta_mut(&mut last).insert("resourceVersion".to_owned(), revision.into());
                Some(self.encoder.value_event(ChangeKind::Deleted, &Arc::new(last)))
            }
        }
    }
}

/// Writes events in the form that the client asked for.
struct Encoder {
    resource: &'static Resource,
    form: Form,
    include: table::Include,
    /// Only the first Table has column definitions.
    columns_sent: bool,
}

impl Encoder {
    fn is_plain(&self) -> bool {
        self.form == Form::Plain && !convert::is_converted(self.resource)
    }

    fn change(&mut self, change: &Change) -> Bytes {
        if self.is_plain() { change.line() } else { self.event(change.kind, &change.object) }
    }

    fn event(&mut self, kind: ChangeKind, object: &Object) -> Bytes {
        if self.is_plain() {
            event_line(kind, &object.json)
        } else {
            self.value_event(kind, &object.value())
        }
    }

    fn value_event(&mut self, kind: ChangeKind, stored: &Arc<Value>) -> Bytes {
        let value = convert::from_stored(self.resource, stored);
        let value = match self.form {
            Form::Plain => value,
            Form::Partial(version) => partial(&value, version),
            Form::Table(version) => {
                let rows = table::Rows { resource: self.resource, version, include: self.include };
                let mut table = rows.table(
                    std::iter::once(&value),
                    json!({"resourceVersion": value["metadata"]["resourceVersion"]}),
                );
                if std::mem::replace(&mut self.columns_sent, true) {
                    table["columnDefinitions"] = Value::Null;
                }
                table
            }
        };
        json_line(kind.name(), &value)
    }

    /// Tells a revision up to which nothing is missing.
    fn bookmark(&self, revision: u64, initial_end: bool) -> Bytes {
        let mut meta = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.form {
            Form::Plain => {
                json!({"kind": self.resource.kind, "apiVersion": api_version(self.resource), "metadata": meta})
            }
            Form::Partial(version) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": meta})
            }
            Form::Table(version) => {
                json!({"kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": meta, "columnDefinitions": null, "rows": []})
            }
        };
        json_line("BOOKMARK", &object)
    }
}

fn json_line(kind: &str, value: &Value) -> Bytes {
    let mut line = format!("{{\"type\":\"{kind}\",\"object\":").into_bytes();
    line.extend_from_slice(&object::encode(value));
    line.extend_from_slice(b"}\n");
    line.into()
}
