//! The embedded store against a plain model, and with a disk that fills up.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use redb::{Builder, StorageBackend, backends::InMemoryBackend};

use super::*;
use crate::Compare;

fn key(number: u8) -> Arc<str> {
    format!("/registry/things/{number}").into()
}

fn put(number: u8, text: &str) -> Txn {
    Txn {
        compare: vec![],
        ops: vec![Op::Put(key(number), Bytes::copy_from_slice(text.as_bytes()))],
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// The whole store by key: value, created, modified.
fn content(store: &Embedded) -> BTreeMap<String, (Bytes, u64, u64)> {
    let range = runtime().block_on(store.range("/registry/")).unwrap();
    range
        .entries
        .iter()
        .map(|entry| (entry.key.to_string(), (entry.value.clone(), entry.created, entry.modified)))
        .collect()
}

/// Each op: key, value (none: delete), and how far the compare's revision is off (none: no compare).
type Step = Vec<(u8, Option<u8>, Option<u64>)>;

fn step() -> impl Strategy<Value = Step> {
    prop::collection::btree_map(
        0..6_u8,
        (prop::option::of(any::<u8>()), prop::option::of(0..2_u64)),
        1..4,
    )
    .prop_map(|ops| ops.into_iter().map(|(key, (value, off))| (key, value, off)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn behaves_like_a_map_and_survives_reopening(steps in prop::collection::vec(step(), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let mut model: BTreeMap<String, (Bytes, u64, u64)> = BTreeMap::new();
        let mut revision = 1;
        let store = Embedded::open(&path).unwrap();
        let mut watch = store.watch("/registry/", revision).unwrap();
        for step in steps {
            let mut txn = Txn::default();
            let mut holds = true;
            let mut next = model.clone();
            let mut changed = false;
            for (number, value, off) in step {
                let key = key(number);
                let now = model.get(&*key).map_or(0, |entry| entry.2);
                if let Some(off) = off {
                    holds &= off == 0;
                    txn.compare.push(Compare { key: Arc::clone(&key), modified: now + off });
                }
                match value {
                    Some(value) => {
                        let value = Bytes::copy_from_slice(&[value]);
                        let created = model.get(&*key).map_or(revision + 1, |entry| entry.1);
                        next.insert(key.to_string(), (value.clone(), created, revision + 1));
                        txn.ops.push(Op::Put(key, value));
                        changed = true;
                    }
                    None => {
                        changed |= next.remove(&*key).is_some();
                        txn.ops.push(Op::Delete(key));
                    }
                }
            }
            let outcome = runtime().block_on(store.commit(txn)).unwrap();
            if holds {
                revision += u64::from(changed);
                model = next;
                prop_assert_eq!(outcome, Outcome::Committed(revision));
            } else {
                prop_assert!(matches!(outcome, Outcome::Conflict(_)));
            }
            prop_assert_eq!(&content(&store), &model);
        }
        let mut replayed: BTreeMap<String, (Bytes, u64, u64)> = BTreeMap::new();
        for event in watch.ready().unwrap() {
            match &event.entry {
                Some(entry) => replayed.insert(event.key.to_string(), (entry.value.clone(), entry.created, entry.modified)),
                None => replayed.remove(&*event.key),
            };
        }
        prop_assert_eq!(&replayed, &model, "the watch replays to the same state");
        drop(store);
        let store = Embedded::open(&path).unwrap();
        prop_assert_eq!(content(&store), model);
        prop_assert_eq!(store.revision(), revision);
        prop_assert!(matches!(store.watch("/", revision - 1), Err(StoreError::Compacted(_))));
    }
}

/// A disk that can fill up.
#[derive(Debug, Clone)]
struct Disk {
    bytes: Arc<InMemoryBackend>,
    full: Arc<AtomicBool>,
}

impl Disk {
    fn check(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.bytes.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.bytes.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.bytes.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.bytes.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.bytes.write(offset, data)
    }
}

#[test]
fn full_disk_fails_writes_clearly_and_shows_none_of_them() {
    let disk = Disk { bytes: Arc::new(InMemoryBackend::new()), full: Arc::default() };
    let again = disk.clone();
    let open = move || {
        Box::new({
            let disk = again.clone();
            move || Ok(Builder::new().create_with_backend(disk.clone())?)
        })
    };
    let store = Embedded::open_with(open()).unwrap();
    let runtime = runtime();
    runtime.block_on(store.commit(put(1, "kept"))).unwrap();
    disk.full.store(true, Ordering::SeqCst);
    for number in 1..4 {
        let error = runtime.block_on(store.commit(put(number, "lost"))).unwrap_err();
        assert!(matches!(error, StoreError::DiskFull), "{error:?}");
    }
    assert_eq!(content(&store).len(), 1, "reads go on, and nothing that failed is visible");
    disk.full.store(false, Ordering::SeqCst);
    runtime.block_on(store.commit(put(9, "later"))).unwrap();
    let before = content(&store);
    assert_eq!(
        before.keys().cloned().collect::<Vec<_>>(),
        ["/registry/things/1", "/registry/things/9"]
    );
    drop(store);
    assert_eq!(content(&Embedded::open_with(open()).unwrap()), before, "the file agrees");
}

#[test]
fn compacted_revisions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store")).unwrap();
    let runtime = runtime();
    for _ in 0..4 {
        runtime.block_on(store.commit(put(1, "x"))).unwrap();
    }
    assert_eq!(store.watch("/registry/", 2).unwrap().ready().unwrap().len(), 3);
    runtime.block_on(store.compact(3)).unwrap();
    assert!(matches!(store.watch("/registry/", 2), Err(StoreError::Compacted(3))));
    assert_eq!(store.watch("/registry/", 3).unwrap().ready().unwrap().len(), 2);
    assert!(store.watch("/registry/", 5).unwrap().ready().unwrap().is_empty());
}
