//! The embedded backend: an ordered map in memory, made durable in one redb file by a single writer thread.
//!
//! Group commit: while one batch is being synced, the next one gathers, so that many transactions share one fsync. A
//! transaction is decided against the state that earlier ones in the queue will leave; nothing becomes visible before
//! the fsync that makes it durable. redb's quick repair stays off: it costs 40 % of the single-client commits, and saves
//! 60 ms of opening 35,000 keys after a crash.

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use imbl::OrdMap;
use parking_lot::{Mutex, RwLock};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use crate::{Entry, Event, History, Op, Outcome, Range, Revision, Store, StoreError, Txn, Watch};

/// Key to `created`, `modified` (8 bytes each, big endian) and value.
const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
/// Names to numbers: `revision`.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Bytes before the value.
const HEADER_BYTES: usize = 16;
/// Transactions of one fsync: bounds the time that the first of them waits.
const BATCH_TXNS_MAX: usize = 512;
/// Waiting transactions; more than that wait in their callers.
const QUEUE_TXNS_MAX: usize = 4096;
/// Changes kept for watches; the API server's cache, the one reader, is seldom more than a batch behind.
const HISTORY_EVENTS_MAX: usize = 16_384;
/// Value bytes kept for watches.
const HISTORY_BYTES_MAX: usize = 16 << 20;

/// Opens the database file, also again after the disk failed.
type Open = Box<dyn Fn() -> Result<Database, redb::Error> + Send>;
type Reply = oneshot::Sender<Result<Outcome, StoreError>>;

/// What reads see.
#[derive(Clone)]
struct State {
    entries: OrdMap<Arc<str>, Arc<Entry>>,
    revision: Revision,
}

/// The embedded store.
pub struct Embedded {
    state: Arc<RwLock<State>>,
    history: Arc<History>,
    queue: Mutex<Option<mpsc::Sender<(Txn, Reply)>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Embedded {
    /// Opens or makes the store in a file.
    ///
    /// # Errors
    /// When the file cannot be opened, is held by another process, or is damaged.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_owned();
        Self::open_with(Box::new(move || Ok(Database::create(&path)?)))
    }

    fn open_with(open: Open) -> Result<Self, StoreError> {
        let database = open().map_err(disk_error)?;
        let state = load(&database)?;
        let history = History::new(state.revision, HISTORY_EVENTS_MAX, HISTORY_BYTES_MAX);
        let state = Arc::new(RwLock::new(state));
        let (sender, receiver) = mpsc::channel(QUEUE_TXNS_MAX);
        let writer = Writer {
            open,
            database: Some(database),
            state: Arc::clone(&state),
            history: Arc::clone(&history),
            suspect: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(receiver))
            .map_err(|error| disk_error(redb::Error::Io(error)))?;
        Ok(Self {
            state,
            history,
            queue: Mutex::new(Some(sender)),
            writer: Mutex::new(Some(thread)),
        })
    }

    /// The revision that reads see.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.state.read().revision
    }
}

impl Store for Embedded {
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>> {
        let queue = self.queue.lock().clone();
        async move {
            let (reply, answer) = oneshot::channel();
            queue
                .ok_or(StoreError::Closed)?
                .send((txn, reply))
                .await
                .map_err(|_gone| StoreError::Closed)?;
            answer.await.map_err(|_gone| StoreError::Closed)?
        }
        .boxed()
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Arc<Entry>>, StoreError>> {
        async move { Ok(self.state.read().entries.get(key).cloned()) }.boxed()
    }

    fn range<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Range, StoreError>> {
        async move {
            let state = self.state.read().clone();
            let entries = state
                .entries
                .range::<_, str>((Bound::Included(prefix), Bound::Unbounded))
                .take_while(|(key, _)| key.starts_with(prefix))
                .map(|(_, entry)| Arc::clone(entry))
                .collect();
            Ok(Range { entries, revision: state.revision })
        }
        .boxed()
    }

    fn watch(&self, prefix: &str, revision: Revision) -> Result<Watch, StoreError> {
        self.history.watch(prefix, revision)
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.history.compact(revision);
        std::future::ready(Ok(())).boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.queue.lock().take();
        let writer = self.writer.lock().take();
        async move {
            if let Some(writer) = writer {
                // A panicked writer has already failed every caller.
                let _joined = tokio::task::spawn_blocking(move || writer.join()).await;
            }
        }
        .boxed()
    }
}

impl Drop for Embedded {
    /// Waits for accepted writes, so that the file is free to be opened again.
    fn drop(&mut self) {
        self.queue.lock().take();
        if let Some(writer) = self.writer.lock().take() {
            let _joined = writer.join();
        }
    }
}

/// Owns the file.
struct Writer {
    open: Open,
    /// `None` after a failure, until it opens again.
    database: Option<Database>,
    state: Arc<RwLock<State>>,
    history: Arc<History>,
    /// Keys of failed batches: the file may or may not have them, so the next batch sets them right.
    suspect: Vec<Arc<str>>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<(Txn, Reply)>) {
        let mut batch = Vec::new();
        while queue.blocking_recv_many(&mut batch, BATCH_TXNS_MAX) > 0 {
            self.commit(std::mem::take(&mut batch));
        }
    }

    fn commit(&mut self, batch: Vec<(Txn, Reply)>) {
        let mut working = self.state.read().clone();
        let mut events = Vec::new();
        let mut answers = Vec::with_capacity(batch.len());
        for (txn, reply) in batch {
            answers.push((decide(&mut working, txn, &mut events), reply));
        }
        let result = if events.is_empty() { Ok(()) } else { self.persist(&working, &events) };
        if result.is_ok() {
            let revision = working.revision;
            *self.state.write() = working;
            if !events.is_empty() {
                self.history.append(events, revision);
            }
        }
        for (outcome, reply) in answers {
            // A caller that went away does not want its answer.
            let _unwanted = reply.send(result.clone().map(|()| outcome));
        }
    }

    fn persist(&mut self, working: &State, events: &[Event]) -> Result<(), StoreError> {
        let result = self.write(working, events);
        match result {
            Ok(()) => {
                self.suspect.clear();
                Ok(())
            }
            Err(error) => {
                self.suspect.extend(events.iter().map(|event| Arc::clone(&event.key)));
                self.suspect.sort_unstable();
                self.suspect.dedup();
                // redb refuses work after a failed write; the next batch opens the file again.
                self.database = None;
                tracing::error!(component = "store", %error, "commit failed");
                Err(disk_error(error))
            }
        }
    }

    fn write(&mut self, working: &State, events: &[Event]) -> Result<(), redb::Error> {
        if self.database.is_none() {
            self.database = Some((self.open)()?);
        }
        let database = self.database.as_ref().expect("it was opened above");
        let txn = database.begin_write()?;
        {
            let mut table = txn.open_table(ENTRIES)?;
            let mut buffer = Vec::new();
            for key in self.suspect.iter().chain(events.iter().map(|event| &event.key)) {
                match working.entries.get(key) {
                    Some(entry) => {
                        buffer.clear();
                        buffer.extend_from_slice(&entry.created.to_be_bytes());
                        buffer.extend_from_slice(&entry.modified.to_be_bytes());
                        buffer.extend_from_slice(&entry.value);
                        table.insert(&**key, buffer.as_slice())?;
                    }
                    None => {
                        table.remove(&**key)?;
                    }
                }
            }
            txn.open_table(META)?.insert("revision", working.revision)?;
        }
        txn.commit()?;
        Ok(())
    }
}

/// Applies a transaction to the working state when its conditions hold.
fn decide(working: &mut State, txn: Txn, events: &mut Vec<Event>) -> Outcome {
    let modified = |key: &Arc<str>| working.entries.get(key).map_or(0, |entry| entry.modified);
    if txn.compare.iter().any(|compare| modified(&compare.key) != compare.modified) {
        return Outcome::Conflict(
            txn.compare.iter().map(|compare| working.entries.get(&compare.key).cloned()).collect(),
        );
    }
    let revision = working.revision + 1;
    let before = events.len();
    for op in txn.ops {
        let (key, entry, previous) = match op {
            Op::Put(key, value) => {
                let previous = working.entries.get(&key).cloned();
                let created = previous.as_ref().map_or(revision, |entry| entry.created);
                let entry =
                    Arc::new(Entry { key: Arc::clone(&key), value, created, modified: revision });
                working.entries.insert(Arc::clone(&key), Arc::clone(&entry));
                (key, Some(entry), previous)
            }
            Op::Delete(key) => match working.entries.remove(&key) {
                Some(previous) => (key, None, Some(previous)),
                None => continue,
            },
        };
        events.push(Event { key, revision, entry, previous });
    }
    if events.len() > before {
        working.revision = revision;
    }
    Outcome::Committed(working.revision)
}

fn load(database: &Database) -> Result<State, StoreError> {
    let read = || -> Result<Result<State, StoreError>, redb::Error> {
        let txn = database.begin_read()?;
        let table = match txn.open_table(ENTRIES) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => {
                return Ok(Ok(State { entries: OrdMap::new(), revision: 1 }));
            }
            Err(error) => return Err(error.into()),
        };
        let revision =
            txn.open_table(META)?.get("revision")?.map_or(1, |revision| revision.value());
        let mut entries = Vec::new();
        for row in table.iter()? {
            let (key, value) = row?;
            let (key, value) = (key.value(), value.value());
            let Some(entry) = parse(key, value) else {
                return Ok(Err(StoreError::Damaged(key.to_owned())));
            };
            entries.push((Arc::clone(&entry.key), Arc::new(entry)));
        }
        Ok(Ok(State { entries: entries.into_iter().collect(), revision }))
    };
    read().map_err(disk_error)?
}

fn parse(key: &str, stored: &[u8]) -> Option<Entry> {
    let (header, value) = stored.split_at_checked(HEADER_BYTES)?;
    let (created, modified) = header.split_at(HEADER_BYTES / 2);
    Some(Entry {
        key: key.into(),
        value: Bytes::copy_from_slice(value),
        created: Revision::from_be_bytes(created.try_into().ok()?),
        modified: Revision::from_be_bytes(modified.try_into().ok()?),
    })
}

fn disk_error(error: redb::Error) -> StoreError {
    match &error {
        redb::Error::Io(io)
            if matches!(
                io.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            ) =>
        {
            StoreError::DiskFull
        }
        _ => StoreError::Disk(Arc::new(error)),
    }
}

#[cfg(test)]
mod tests;
