//! Every object in memory, kept current from the store: what reads, lists and watches are served from.
//!
//! Upstream counterpart: the watch cache of `k8s.io/apiserver/pkg/storage/cacher`. Objects are kept as the bytes that
//! go on the wire and parsed at first need; a change is encoded once for all its watchers. A write is acknowledged only
//! after the cache has it, so reads from memory are as fresh as reads from the store.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, OnceLock, Weak};

use api::resource::{RESOURCES, Resource};
use bytes::{BufMut, Bytes, BytesMut};
use imbl::OrdMap;
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use store::{Entry, Event, Store, StoreError};
use tokio::sync::watch;

use crate::{keys, object};

/// Changes kept per resource for watches; a watcher further behind starts over (410).
const CHANGES_MAX: usize = 4096;
/// Object bytes of changes kept per resource.
const CHANGES_BYTES_MAX: usize = 8 << 20;
/// Snapshots kept for lists that are read in chunks; the oldest goes first (its reader gets 410).
const SNAPSHOTS_MAX: usize = 64;

/// An object at one revision.
pub struct Object {
    /// The store's key.
    pub key: Arc<str>,
    /// The revision of its last change: its resourceVersion.
    pub revision: u64,
    /// As served.
    pub json: Bytes,
    parsed: Mutex<Weak<Value>>,
}

/// What was parsed last stays for whoever asks next; a parsed object is ten times as large as its bytes.
static PARSED: Mutex<VecDeque<Arc<Value>>> = Mutex::new(VecDeque::new());
/// Parsed objects that stay.
const PARSED_MAX: usize = 256;

impl Object {
    fn new(entry: &Entry, revision: u64) -> Arc<Self> {
        Arc::new(Self {
            key: Arc::clone(&entry.key),
            revision,
            json: object::splice(&entry.value, revision),
            parsed: Mutex::default(),
        })
    }

    /// The object parsed, with its resourceVersion; parsed once for all who ask at about the same time.
    #[must_use]
    pub fn value(&self) -> Arc<Value> {
        let mut parsed = self.parsed.lock();
        if let Some(value) = parsed.upgrade() {
            return value;
        }
        let value = Arc::new(serde_json::from_slice(&self.json).unwrap_or(Value::Null));
        *parsed = Arc::downgrade(&value);
        let mut kept = PARSED.lock();
        kept.push_back(Arc::clone(&value));
        let oldest = if kept.len() > PARSED_MAX { kept.pop_front() } else { None };
        drop(kept);
        drop(oldest);
        value
    }
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It was changed.
    Modified,
    /// It is gone.
    Deleted,
}

impl ChangeKind {
    /// The `type` of a watch event.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One change of one object.
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// The object after the change; after a deletion, its last state at the revision of the deletion.
    pub object: Arc<Object>,
    /// The object before the change.
    pub previous: Option<Arc<Object>>,
    encoded: OnceLock<Bytes>,
}

impl Change {
    /// The line that watchers get, encoded once for all of them.
    #[must_use]
    pub fn line(&self) -> Bytes {
        self.encoded.get_or_init(|| event_line(self.kind, &self.object.json)).clone()
    }
}

/// A watch event on a line of its own.
pub(crate) fn event_line(kind: ChangeKind, json: &[u8]) -> Bytes {
    let mut line = BytesMut::with_capacity(json.len() + 40);
    line.put_slice(b"{\"type\":\"");
    line.put_slice(kind.name().as_bytes());
    line.put_slice(b"\",\"object\":");
    line.put_slice(json);
    line.put_slice(b"}\n");
    line.freeze()
}

/// Objects of one resource by key: ordered, and cloned in constant time.
pub type ObjectMap = OrdMap<Arc<str>, Arc<Object>>;

/// Objects of one resource at one revision of the store.
#[derive(Clone)]
pub struct Snapshot {
    /// The objects.
    pub objects: ObjectMap,
    /// The store's revision: nothing up to it is missing.
    pub revision: u64,
    /// Revision of the newest change among them.
    pub changed: u64,
}

impl Snapshot {
    /// The objects whose keys start with `prefix` and come after `after` (empty: from the start).
    pub fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Object>> {
        let start = if after > prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
        self.objects
            .range::<_, str>((start, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(_, object)| object)
    }
}

/// One resource's part of the cache.
struct Shelf {
    objects: ObjectMap,
    /// Revision of the newest change.
    changed: u64,
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    /// Changes up to here are forgotten.
    floor: u64,
    /// Wakes the watchers of this resource.
    signal: watch::Sender<u64>,
}

impl Shelf {
    fn new(revision: u64) -> Self {
        Self {
            objects: OrdMap::new(),
            changed: revision,
            changes: VecDeque::new(),
            bytes: 0,
            floor: revision,
            signal: watch::Sender::new(revision),
        }
    }

    fn apply(&mut self, event: &Event) {
        let change = match (&event.entry, self.objects.get(&event.key)) {
            (Some(entry), previous) => {
                let kind =
                    if previous.is_some() { ChangeKind::Modified } else { ChangeKind::Added };
                let object = Object::new(entry, event.revision);
                Change { kind, object, previous: previous.cloned(), encoded: OnceLock::new() }
            }
            (None, Some(previous)) => {
                let Some(entry) = &event.previous else { return };
                let object = Object::new(entry, event.revision);
                let previous = Some(Arc::clone(previous));
                Change { kind: ChangeKind::Deleted, object, previous, encoded: OnceLock::new() }
            }
            (None, None) => return,
        };
        if change.kind == ChangeKind::Deleted {
            self.objects.remove(&event.key);
        } else {
            self.objects.insert(Arc::clone(&event.key), Arc::clone(&change.object));
        }
        self.changed = event.revision;
        self.bytes += change.object.json.len();
        self.changes.push_back(Arc::new(change));
        while self.changes.len() > CHANGES_MAX || self.bytes > CHANGES_BYTES_MAX {
            let Some(first) = self.changes.pop_front() else { break };
            self.bytes -= first.object.json.len();
            self.floor = first.object.revision;
        }
    }
}

struct Shelves {
    shelves: Vec<Shelf>,
    revision: u64,
}

/// A list that somebody reads in chunks.
struct Kept {
    shelf: usize,
    snapshot: Snapshot,
}

/// Objects of all resources, current as of one revision.
pub struct Cache {
    shelves: RwLock<Shelves>,
    /// Group and plural to shelf.
    index: BTreeMap<(&'static str, &'static str), usize>,
    /// Key prefix to shelf.
    prefixes: BTreeMap<String, usize>,
    feed: Mutex<store::Watch>,
    store: Arc<dyn Store>,
    revision: watch::Sender<u64>,
    kept: Mutex<VecDeque<Kept>>,
    /// The last whole list of each shelf, joined.
    joined: Mutex<BTreeMap<usize, Joined>>,
}

/// The items of a whole list as one piece, for as long as nothing changes.
struct Joined {
    prefix: String,
    changed: u64,
    /// Made when the same list is asked for a second time.
    items: Option<Bytes>,
}

/// Largest list that is kept joined, in bytes.
const JOINED_BYTES_MAX: usize = 4 << 20;

impl Cache {
    /// Reads the whole store.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let mut prefixes = BTreeMap::new();
        let mut index = BTreeMap::new();
        for resource in RESOURCES {
            let next = prefixes.len();
            let shelf = *prefixes.entry(keys::prefix(resource)).or_insert(next);
            index.insert((resource.group, resource.plural), shelf);
        }
        let range = store.range(keys::ROOT).await?;
        let feed = store.watch(keys::ROOT, range.revision)?;
        let cache = Self {
            shelves: RwLock::new(Shelves { shelves: Vec::new(), revision: 0 }),
            index,
            prefixes,
            feed: Mutex::new(feed),
            store,
            revision: watch::Sender::new(range.revision),
            kept: Mutex::new(VecDeque::new()),
            joined: Mutex::new(BTreeMap::new()),
        };
        cache.fill(&range);
        Ok(cache)
    }

    fn fill(&self, range: &store::Range) {
        let mut objects = vec![Vec::new(); self.prefixes.len()];
        for entry in &range.entries {
            if let Some(shelf) = self.shelf_of_key(&entry.key) {
                objects[shelf].push((Arc::clone(&entry.key), Object::new(entry, entry.modified)));
            }
        }
        let mut shelves = self.shelves.write();
        shelves.revision = range.revision;
        shelves.shelves.resize_with(objects.len(), || Shelf::new(range.revision));
        for (shelf, objects) in shelves.shelves.iter_mut().zip(objects) {
            shelf.objects = objects.into_iter().collect();
            shelf.changes.clear();
            shelf.bytes = 0;
            shelf.changed = range.revision;
            shelf.floor = range.revision;
            shelf.signal.send_replace(range.revision);
        }
    }

    fn shelf_of_key(&self, key: &str) -> Option<usize> {
        let (prefix, shelf) =
            self.prefixes.range::<str, _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        key.starts_with(prefix).then_some(*shelf)
    }

    fn shelf(&self, resource: &Resource) -> usize {
        *self
            .index
            .get(&(resource.group, resource.plural))
            .expect("every row of the table has a shelf")
    }

    /// Takes in what the store has committed, without waiting; false when the store has forgotten some of it.
    fn pump(&self) -> bool {
        let mut feed = self.feed.lock();
        match feed.ready() {
            Ok(events) => {
                if !events.is_empty() {
                    self.apply(&events, feed.revision());
                }
                true
            }
            Err(error) => {
                tracing::error!(component = "apiserver", %error, "the cache lost the store's history");
                false
            }
        }
    }

    fn apply(&self, events: &[Arc<Event>], revision: u64) {
        let mut touched = Vec::new();
        let mut shelves = self.shelves.write();
        for event in events {
            if let Some(shelf) = self.shelf_of_key(&event.key) {
                shelves.shelves[shelf].apply(event);
                touched.push(shelf);
            }
        }
        shelves.revision = revision;
        touched.sort_unstable();
        touched.dedup();
        for shelf in touched {
            shelves.shelves[shelf].signal.send_replace(revision);
        }
        drop(shelves);
        self.revision.send_replace(revision);
    }

    /// Follows the store until it closes; run as a task of its own.
    pub async fn follow(&self) {
        let mut signal = self.feed.lock().signal();
        while signal.changed().await.is_ok() {
            signal.borrow_and_update();
            if !self.pump() {
                self.refill().await;
            }
        }
    }

    /// Starts over from the store's present state; all watchers start over too.
    async fn refill(&self) {
        match self.store.range(keys::ROOT).await {
            Ok(range) => {
                if let Ok(feed) = self.store.watch(keys::ROOT, range.revision) {
                    *self.feed.lock() = feed;
                    self.fill(&range);
                    self.revision.send_replace(range.revision);
                }
            }
            Err(error) => {
                tracing::error!(component = "apiserver", %error, "the cache cannot read the store");
            }
        }
    }

    /// Waits until the cache has everything up to `revision`.
    pub async fn wait_for(&self, revision: u64) {
        self.pump();
        let mut seen = self.revision.subscribe();
        // The sender is part of this cache, so it cannot be gone.
        let _sender = seen.wait_for(|seen| *seen >= revision).await;
    }

    /// The store's revision as far as the cache has it.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.shelves.read().revision
    }

    /// The object of that name; the namespace is empty for cluster-scoped resources.
    #[must_use]
    pub fn object(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let key = keys::key(resource, namespace, name);
        let shelf = self.shelf(resource);
        self.shelves.read().shelves[shelf].objects.get(key.as_str()).cloned()
    }

    /// The object of that name, parsed, with its resourceVersion.
    #[must_use]
    pub fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.object(resource, namespace, name).map(|object| object.value())
    }

    /// All objects of a namespace, or of the cluster when `namespace` is empty, by namespace and name.
    #[must_use]
    pub fn list(&self, resource: &Resource, namespace: &str) -> Vec<Arc<Value>> {
        let prefix = list_prefix(resource, namespace);
        self.snapshot(resource).range(&prefix, "").map(|object| object.value()).collect()
    }

    /// Revision of the newest change to any object of the resource: unchanged means nothing of it changed.
    #[must_use]
    pub fn revision_of(&self, resource: &Resource) -> u64 {
        let shelf = self.shelf(resource);
        self.shelves.read().shelves[shelf].changed
    }

    /// All objects of the resource, at one revision.
    #[must_use]
    pub fn snapshot(&self, resource: &Resource) -> Snapshot {
        let shelf = self.shelf(resource);
        let shelves = self.shelves.read();
        Snapshot {
            objects: shelves.shelves[shelf].objects.clone(),
            revision: shelves.revision,
            changed: shelves.shelves[shelf].changed,
        }
    }

    /// The encodings of all objects under `prefix`, joined by commas; repeated lists share one piece of memory.
    pub(crate) fn joined(&self, resource: &Resource, snapshot: &Snapshot, prefix: &str) -> Bytes {
        let shelf = self.shelf(resource);
        let same =
            |joined: &&mut Joined| joined.prefix == prefix && joined.changed == snapshot.changed;
        if let Some(Joined { items: Some(items), .. }) =
            self.joined.lock().get_mut(&shelf).filter(same)
        {
            return items.clone();
        }
        let size = snapshot.range(prefix, "").map(|object| object.json.len() + 1).sum();
        let mut items = BytesMut::with_capacity(size);
        for object in snapshot.range(prefix, "") {
            if !items.is_empty() {
                items.put_u8(b',');
            }
            object::put_item(&mut items, &object.json);
        }
        let items = items.freeze();
        let mut all = self.joined.lock();
        let again = all.get_mut(&shelf).filter(same).is_some() && items.len() <= JOINED_BYTES_MAX;
        let kept = again.then(|| items.clone());
        all.insert(
            shelf,
            Joined { prefix: prefix.to_owned(), changed: snapshot.changed, items: kept },
        );
        items
    }

    /// Keeps a snapshot for the next chunks of a list.
    pub(crate) fn keep(&self, resource: &Resource, snapshot: &Snapshot) {
        let shelf = self.shelf(resource);
        let mut kept = self.kept.lock();
        if kept
            .iter()
            .any(|kept| kept.shelf == shelf && kept.snapshot.revision == snapshot.revision)
        {
            return;
        }
        if kept.len() == SNAPSHOTS_MAX {
            kept.pop_front();
        }
        kept.push_back(Kept { shelf, snapshot: snapshot.clone() });
    }

    /// A snapshot that was kept, or the present one when nothing changed since.
    pub(crate) fn kept(&self, resource: &Resource, revision: u64) -> Option<Snapshot> {
        let shelf = self.shelf(resource);
        let kept = self.kept.lock();
        let found =
            kept.iter().find(|kept| kept.shelf == shelf && kept.snapshot.revision == revision);
        if let Some(found) = found {
            return Some(found.snapshot.clone());
        }
        drop(kept);
        let shelves = self.shelves.read();
        let present = &shelves.shelves[shelf];
        (present.changed <= revision && revision <= shelves.revision).then(|| Snapshot {
            objects: present.objects.clone(),
            revision,
            changed: present.changed,
        })
    }

    /// Changes of the resource after `revision`.
    ///
    /// # Errors
    /// The oldest revision from which a watch can start, when some changes are forgotten.
    pub fn watch(self: &Arc<Self>, resource: &Resource, revision: u64) -> Result<Changes, u64> {
        let shelf = self.shelf(resource);
        let shelves = self.shelves.read();
        let floor = shelves.shelves[shelf].floor;
        if revision < floor {
            return Err(floor);
        }
        let signal = shelves.shelves[shelf].signal.subscribe();
        Ok(Changes { cache: Arc::clone(self), shelf, seen: revision, signal })
    }
}

/// The key prefix of a list.
pub(crate) fn list_prefix(resource: &Resource, namespace: &str) -> String {
    let mut prefix = keys::prefix(resource);
    if !namespace.is_empty() && resource.scope == api::ResourceScope::Namespaced {
        prefix.push_str(namespace);
        prefix.push('/');
    }
    prefix
}

/// A reader of one resource's changes.
pub struct Changes {
    cache: Arc<Cache>,
    shelf: usize,
    seen: u64,
    signal: watch::Receiver<u64>,
}

impl Changes {
    /// The changes since the last call, without waiting, and the revision up to which nothing is missing now.
    ///
    /// # Errors
    /// The oldest revision from which a watch can start, when this reader was too slow.
    pub fn ready(&mut self) -> Result<(Vec<Arc<Change>>, u64), u64> {
        self.signal.borrow_and_update();
        let shelves = self.cache.shelves.read();
        let shelf = &shelves.shelves[self.shelf];
        if self.seen < shelf.floor {
            return Err(shelf.floor);
        }
        let start = shelf.changes.partition_point(|change| change.object.revision <= self.seen);
        self.seen = self.seen.max(shelves.revision);
        Ok((shelf.changes.range(start..).cloned().collect(), self.seen))
    }

    /// Waits until there may be changes.
    pub async fn changed(&mut self) {
        // The sender is part of the cache that this reader holds, so it cannot be gone.
        let _sender = self.signal.changed().await;
    }
}
