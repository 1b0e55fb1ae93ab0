//! A local copy of a collection, kept in step by list and watch.
//!
//! Readers get an immutable [`View`] in constant time and never see half a list. Listeners learn which objects changed;
//! what changed they read from the view (level, not edge). Upstream counterpart: client-go's reflector and informer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use api::{Kind, Name, Objects, Reason};
use bytes::BytesMut;
use http_body_util::BodyExt;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::client::{Client, Error, ListParams};
use crate::watch::{WatchEvent, parse};

/// First wait after a failed list or watch; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest wait between tries, so that a restarted API server is found again within a second.
const RETRY_MAX: Duration = Duration::from_secs(1);
/// One event larger than this ends the watch: the API server's own limit for an object is 3 MiB.
const LINE_BYTES_MAX: usize = 16 << 20;

/// All objects of a kind at one revision.
#[derive(Debug)]
pub struct View<K> {
    /// The revision that the objects are complete up to.
    pub revision: u64,
    /// The objects by name.
    pub objects: Objects<K>,
}

impl<K: Kind> View<K> {
    /// One object by name.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<K>> {
        self.objects.get(&Name::new(namespace, name))
    }
}

/// What happened to one object, as listeners see it.
#[derive(Debug)]
pub struct Change<'a, K> {
    /// The object's name.
    pub name: &'a Name,
    /// The state before; `None` when the object is new.
    pub old: Option<&'a Arc<K>>,
    /// The state now; `None` when the object is gone.
    pub new: Option<&'a Arc<K>>,
}

impl<K> Change<'_, K> {
    /// The newest known state.
    #[must_use]
    pub fn object(&self) -> &K {
        self.new.or(self.old).expect("a change has a state before or after")
    }

    /// Both states, for keys that either of them points at.
    pub fn states(&self) -> impl Iterator<Item = &K> {
        self.old.into_iter().chain(self.new).map(AsRef::as_ref)
    }
}

type Listener<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;

struct Shared<K> {
    view: RwLock<Arc<View<K>>>,
    listeners: Mutex<Vec<Listener<K>>>,
    /// Revision of the view; `None` until the first list is complete.
    progress: watch::Sender<Option<u64>>,
    filtered: bool,
    task: Mutex<Option<AbortHandle>>,
}

impl<K> Drop for Shared<K> {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }
}

/// A handle to a local copy of a collection; the copy is dropped with its last handle.
pub struct Reflector<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Reflector<K> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<K: Kind> fmt::Debug for Reflector<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reflector")
            .field("kind", &K::KIND)
            .field("revision", &self.revision())
            .finish()
    }
}

impl<K: Kind> Reflector<K> {
    /// Starts to list and watch what `params` select.
    #[must_use]
    pub fn start(client: &Client, params: ListParams) -> Self {
        let reflector = Self::idle(params != ListParams::default());
        let weak = Arc::downgrade(&reflector.shared);
        let task = tokio::spawn(follow(client.clone(), params, weak));
        *reflector.shared.task.lock() = Some(task.abort_handle());
        reflector
    }

    /// A copy that nothing feeds but [`Reflector::replace`]: for tests and for objects that come from files.
    #[must_use]
    pub fn fixed(objects: impl IntoIterator<Item = K>) -> Self {
        let reflector = Self::idle(false);
        reflector.replace(objects.into_iter().collect(), 1);
        reflector
    }

    fn idle(filtered: bool) -> Self {
        let view = RwLock::new(Arc::new(View { revision: 0, objects: Objects::new() }));
        let (progress, _) = watch::channel(None);
        let shared = Shared {
            view,
            listeners: Mutex::default(),
            progress,
            filtered,
            task: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// All objects at one revision.
    #[must_use]
    pub fn view(&self) -> Arc<View<K>> {
        Arc::clone(&self.shared.view.read())
    }

    /// The revision of the view; `None` until the first list is complete.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        *self.shared.progress.borrow()
    }

    /// Waits until the first list is complete.
    pub async fn synced(&self) {
        self.reached(0).await;
    }

    /// Waits until the view has reached `revision`.
    pub async fn reached(&self, revision: u64) {
        let mut progress = self.shared.progress.subscribe();
        let done = progress.wait_for(|now| now.is_some_and(|now| now >= revision)).await;
        done.expect("the reflector holds the sender while it is borrowed");
    }

    /// Whether a selector hides objects, so that a write of one's own may never show up here.
    #[must_use]
    pub fn is_filtered(&self) -> bool {
        self.shared.filtered
    }

    /// Calls `listener` for every change from now on, and once for each object that is already there.
    pub fn listen(&self, listener: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        let mut listeners = self.shared.listeners.lock();
        for (name, object) in &self.view().objects {
            listener(&Change { name, old: None, new: Some(object) });
        }
        listeners.push(Box::new(listener));
    }

    /// Replaces the whole collection, as after a list.
    pub fn replace(&self, objects: Vec<K>, revision: u64) {
        let objects = objects.into_iter().map(kept);
        let objects: Objects<K> =
            objects.map(|object| (object.object_name(), Arc::new(object))).collect();
        self.swap(objects, revision);
    }

    fn apply(&self, event: WatchEvent<K>) {
        let (object, gone) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
            WatchEvent::Deleted(object) => (object, true),
            WatchEvent::Bookmark { revision, .. } => {
                let objects = self.view().objects.clone();
                return self.swap_quietly(objects, revision);
            }
            WatchEvent::Error(_) => return,
        };
        let (name, revision) = (object.object_name(), object.revision());
        let listeners = self.shared.listeners.lock();
        let mut objects = self.view().objects.clone();
        let object = Arc::new(kept(object));
        let old = if gone {
            objects.remove(&name)
        } else {
            objects.insert(name.clone(), Arc::clone(&object))
        };
        *self.shared.view.write() = Arc::new(View { revision, objects });
        let old = if gone { Some(old.unwrap_or_else(|| Arc::clone(&object))) } else { old };
        let change = Change { name: &name, old: old.as_ref(), new: (!gone).then_some(&object) };
        listeners.iter().for_each(|listener| listener(&change));
        self.shared.progress.send_replace(Some(revision));
    }

    fn swap(&self, objects: Objects<K>, revision: u64) {
        let listeners = self.shared.listeners.lock();
        let before = self.view();
        *self.shared.view.write() = Arc::new(View { revision, objects: objects.clone() });
        let gone = before.objects.iter().filter(|(name, _)| !objects.contains_key(*name));
        let gone = gone.map(|(name, old)| Change { name, old: Some(old), new: None });
        let present = objects.iter().map(|(name, new)| Change {
            name,
            old: before.objects.get(name),
            new: Some(new),
        });
        let changed = gone.chain(present.filter(|change| !unchanged(change)));
        changed.for_each(|change| listeners.iter().for_each(|listener| listener(&change)));
        self.shared.progress.send_replace(Some(revision));
    }

    fn swap_quietly(&self, objects: Objects<K>, revision: u64) {
        *self.shared.view.write() = Arc::new(View { revision, objects });
        self.shared.progress.send_replace(Some(revision));
    }
}

/// Without who owns which field: half of an object's memory, of which nobody here asks, and which a server keeps when a
/// write does not say it.
fn kept<K: Kind>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}

fn unchanged<K: Kind>(change: &Change<'_, K>) -> bool {
    match (change.old, change.new) {
        (Some(old), Some(new)) => old.uid() == new.uid() && old.revision() == new.revision(),
        _ => false,
    }
}

/// Lists, then watches, for as long as somebody holds the reflector.
async fn follow<K: Kind>(client: Client, params: ListParams, shared: std::sync::Weak<Shared<K>>) {
    let mut wait = RETRY_MIN;
    let mut revision = None;
    loop {
        let Some(reflector) = shared.upgrade().map(|shared| Reflector { shared }) else { return };
        let started = Instant::now();
        match round(&client, &params, &reflector, &mut revision).await {
            Ok(()) => {
                wait = RETRY_MIN;
                drop(reflector);
                // A server that is shutting down ends every watch at once; inside one process that would never yield.
                tokio::time::sleep_until(started + RETRY_MIN).await;
            }
            Err(error) => {
                if matches!(error.reason(), Some(Reason::Expired)) {
                    revision = None;
                } else {
                    complain(client.manager(), K::KIND, &error);
                }
                drop(reflector);
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
}

fn complain(component: &str, kind: &str, error: &(dyn std::error::Error + 'static)) {
    tracing::warn!(component, kind, error, "list and watch failed");
}

/// One list, unless the last revision still serves, and one watch until the server ends it.
async fn round<K: Kind>(
    client: &Client,
    params: &ListParams,
    reflector: &Reflector<K>,
    revision: &mut Option<u64>,
) -> Result<(), Error> {
    let from = match *revision {
        Some(from) => from,
        None => {
            let list = client.list::<K>(params).await?;
            let listed =
                list.metadata.resource_version.and_then(|text| text.parse().ok()).unwrap_or(0);
            reflector.replace(list.items, listed);
            listed
        }
    };
    *revision = Some(from);
    let mut body = client.watch_body::<K>(params, from).await?;
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Error::Body)?.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            match parse::<K>(&line)? {
                WatchEvent::Error(status) => return Err(Error::Status(status)),
                event => reflector.apply(event),
            }
            *revision = reflector.revision();
        }
        if buffer.len() > LINE_BYTES_MAX {
            return Err(Error::Body(
                "an event of the watch is larger than an object can be".into(),
            ));
        }
    }
    Ok(())
}
