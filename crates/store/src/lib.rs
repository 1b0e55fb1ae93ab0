//! Revisioned keys, transactions and watches; the embedded backend.
//!
//! Upstream counterpart: etcd behind `k8s.io/apiserver/pkg/storage`. Keys are upstream's (`/registry/pods/ns/name`),
//! values are opaque bytes. Every committed transaction gets the next revision; a watch replays changes from a revision.

mod embedded;
mod history;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use embedded::Embedded;
pub use history::{History, Watch};

/// A point in the store's history; the first transaction makes revision 2, as in etcd.
pub type Revision = u64;

/// One key as of its last change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// The value.
    pub value: Bytes,
    /// Revision at which the key was made.
    pub created: Revision,
    /// Revision of the last change.
    pub modified: Revision,
}

/// A condition of a transaction: the key was last changed at `modified`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Arc<str>,
    /// The revision of its last change; 0: the key is absent.
    pub modified: Revision,
}

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Set a key.
    Put(Arc<str>, Bytes),
    /// Remove a key; nothing happens when it is absent.
    Delete(Arc<str>),
}

/// Changes that happen together when all conditions hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub compare: Vec<Compare>,
    /// Done in order, at one revision; a key may appear once.
    pub ops: Vec<Op>,
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Durable and visible at this revision.
    Committed(Revision),
    /// A condition failed; the entries of the compared keys, in order.
    Conflict(Vec<Option<Arc<Entry>>>),
}

/// Keys under a prefix, ordered, at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The entries by key.
    pub entries: Vec<Arc<Entry>>,
    /// The store's revision.
    pub revision: Revision,
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key.
    pub key: Arc<str>,
    /// The revision of the change.
    pub revision: Revision,
    /// The key after the change; `None`: removed.
    pub entry: Option<Arc<Entry>>,
    /// The key before the change; `None`: it was absent.
    pub previous: Option<Arc<Entry>>,
}

/// A store operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// No room for the write; reads go on, and so do writes once there is room.
    #[error("the disk is full: nothing was written")]
    DiskFull,
    /// The disk failed.
    #[error("the store's file failed: nothing was written")]
    Disk(#[source] Arc<redb::Error>),
    /// The history before this revision is gone.
    #[error("the requested revision has been compacted; the oldest is {0}")]
    Compacted(Revision),
    /// The stored bytes are not a store of ours.
    #[error("the entry {0:?} is damaged")]
    Damaged(String),
    /// The store is shut down.
    #[error("the store is closed")]
    Closed,
}

/// A revisioned key-value store.
pub trait Store: Send + Sync + 'static {
    /// Does a transaction; the answer comes when it is durable and visible to reads.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Outcome, StoreError>>;
    /// The entry of a key.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Arc<Entry>>, StoreError>>;
    /// All entries whose keys start with `prefix`.
    fn range<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Range, StoreError>>;
    /// Changes after `revision` of keys that start with `prefix`.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when changes after `revision` have been forgotten.
    fn watch(&self, prefix: &str, revision: Revision) -> Result<Watch, StoreError>;
    /// Forgets the changes up to `revision`.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>>;
    /// Ends the store: writes that were accepted are finished first, later ones get [`StoreError::Closed`].
    fn close(&self) -> BoxFuture<'_, ()>;
}
