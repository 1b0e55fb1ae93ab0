//! Events: what a component tells the user about an object (`kubectl describe`).
//!
//! Upstream counterpart: client-go's `record.EventRecorder`. Equal events within the window raise the count of one object
//! instead of adding more.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Kind;
use api::core::{Event, EventSource, ObjectReference};
use api::meta::{ObjectMeta, Time};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::client::{Client, Patch};

/// Events that wait to be written; more are dropped, because they must never hold up the work.
const QUEUE_MAX: usize = 1024;
/// Events remembered for counting; the oldest are forgotten first.
const SEEN_MAX: usize = 4096;

/// Whether an event needs attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// Something happened as it should.
    Normal,
    /// Something needs attention.
    Warning,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Signature {
    namespace: String,
    kind: String,
    name: String,
    uid: String,
    event: EventKind,
    reason: String,
    message: String,
}

/// Writes events of one component, in the background.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<Event>,
    dropped: Arc<Mutex<u64>>,
    component: Arc<str>,
    host: Arc<str>,
}

impl Recorder {
    /// A recorder for `component` on `host` (a node's name, or empty in the control plane).
    #[must_use]
    pub fn new(client: &Client, component: &str, host: &str) -> Self {
        let (queue, events) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(write(client.component(component), events));
        Self { queue, dropped: Arc::default(), component: component.into(), host: host.into() }
    }

    /// Records an event about `object`; never waits and never fails.
    pub fn event<K: Kind>(
        &self,
        object: &K,
        kind: EventKind,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.event_at(reference(object), kind, reason, message);
    }

    /// As [`Recorder::event`], about a part of an object such as `spec.containers{web}`.
    pub fn event_at(
        &self,
        about: ObjectReference,
        kind: EventKind,
        reason: &str,
        message: impl Into<String>,
    ) {
        let event = self.compose(about, kind, reason, message.into());
        self.queue(event);
    }

    /// As [`Recorder::event`], with the object that controls this one as the related one.
    pub fn event_of_controlled<K: Kind>(
        &self,
        object: &K,
        kind: EventKind,
        reason: &str,
        message: impl Into<String>,
    ) {
        let mut event = self.compose(reference(object), kind, reason, message.into());
        event.related = object.controller().map(|owner| ObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: Some(owner.kind.clone()),
            namespace: event.metadata.namespace.clone(),
            name: Some(owner.name.clone()),
            uid: Some(owner.uid.clone()),
            ..ObjectReference::default()
        });
        self.queue(event);
    }

    fn compose(
        &self,
        about: ObjectReference,
        kind: EventKind,
        reason: &str,
        message: String,
    ) -> Event {
        let now = Time(jiff::Timestamp::now());
        let namespace = about
            .namespace
            .clone()
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".to_owned());
        Event {
            metadata: ObjectMeta { namespace: Some(namespace), ..ObjectMeta::default() },
            involved_object: about,
            reason: Some(reason.to_owned()),
            message: Some(message),
            type_: Some(format!("{kind:?}")),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            source: Some(EventSource {
                component: Some(self.component.to_string()),
                host: (!self.host.is_empty()).then(|| self.host.to_string()),
            }),
            reporting_component: Some(self.component.to_string()),
            reporting_instance: Some(self.host.to_string()),
            ..Event::default()
        }
    }

    fn queue(&self, event: Event) {
        if self.queue.try_send(event).is_err() {
            *self.dropped.lock() += 1;
        }
    }
}

/// A reference to a whole object.
pub(crate) fn reference<K: Kind>(object: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::API_VERSION.to_owned()),
        kind: Some(K::KIND.to_owned()),
        namespace: Some(object.namespace().to_owned()).filter(|namespace| !namespace.is_empty()),
        name: Some(object.name().to_owned()),
        uid: Some(object.uid().to_owned()).filter(|uid| !uid.is_empty()),
        resource_version: object.meta().resource_version.clone(),
        field_path: None,
    }
}

fn signature(event: &Event) -> Signature {
    let about = &event.involved_object;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let warning = event.type_.as_deref() == Some("Warning");
    Signature {
        namespace: text(&event.metadata.namespace),
        kind: text(&about.kind),
        name: text(&about.name),
        uid: format!("{}{}", text(&about.uid), text(&about.field_path)),
        event: if warning { EventKind::Warning } else { EventKind::Normal },
        reason: text(&event.reason),
        message: text(&event.message),
    }
}

fn complain(component: &str, error: &(dyn std::error::Error + 'static)) {
    tracing::debug!(component, error, "an event was not written");
}

async fn write(client: Client, mut events: mpsc::Receiver<Event>) {
    let mut seen: BTreeMap<Signature, (String, i32)> = BTreeMap::new();
    let mut order = std::collections::VecDeque::new();
    while let Some(mut event) = events.recv().await {
        let signature = signature(&event);
        let namespace = signature.namespace.clone();
        if let Some((name, count)) = seen.get_mut(&signature) {
            *count += 1;
            let patch = Patch::Merge(
                serde_json::json!({"count": *count, "lastTimestamp": event.last_timestamp}),
            );
            if client.patch::<Event>(&namespace, name, &patch).await.is_ok() {
                continue;
            }
        }
        let stamp = jiff::Timestamp::now().as_nanosecond();
        let name = format!("{}.{stamp:x}", signature.name);
        event.metadata.name = Some(name.clone());
        if let Err(error) = client.create(&event).await {
            complain(client.manager(), &error);
            continue;
        }
        seen.insert(signature.clone(), (name, 1));
        order.push_back(signature);
        if order.len() > SEEN_MAX
            && let Some(oldest) = order.pop_front()
        {
            seen.remove(&oldest);
        }
    }
}
