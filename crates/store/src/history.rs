//! The recent changes, in order, shared by all watches; bounded, so that a slow watch is told instead of fed late.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;

use crate::{Event, Revision, StoreError};

/// Changes of one store; a backend appends, watches read.
pub struct History {
    recent: RwLock<Recent>,
    revision: watch::Sender<Revision>,
    events_max: usize,
    bytes_max: usize,
}

struct Recent {
    /// By revision.
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Changes up to here are forgotten.
    floor: Revision,
}

impl History {
    /// An empty history that knows nothing up to `revision` and keeps at most so many events and value bytes.
    #[must_use]
    pub fn new(revision: Revision, events_max: usize, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            recent: RwLock::new(Recent { events: VecDeque::new(), bytes: 0, floor: revision }),
            revision: watch::Sender::new(revision),
            events_max,
            bytes_max,
        })
    }

    /// Adds changes, whose revisions are not below earlier ones, and wakes the watches.
    pub fn append(&self, events: impl IntoIterator<Item = Event>, revision: Revision) {
        {
            let mut recent = self.recent.write();
            for event in events {
                recent.bytes += weight(&event);
                recent.events.push_back(Arc::new(event));
            }
            while recent.events.len() > self.events_max || recent.bytes > self.bytes_max {
                let Some(first) = recent.events.pop_front() else { break };
                recent.bytes -= weight(&first);
                recent.floor = first.revision;
            }
        }
        self.revision.send_replace(revision);
    }

    /// Forgets the changes up to `revision`.
    pub fn compact(&self, revision: Revision) {
        let mut recent = self.recent.write();
        while recent.events.front().is_some_and(|event| event.revision <= revision) {
            if let Some(first) = recent.events.pop_front() {
                recent.bytes -= weight(&first);
            }
        }
        recent.floor = recent.floor.max(revision.min(*self.revision.borrow()));
    }

    /// A watch of the changes after `revision`.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when some of them are forgotten.
    pub fn watch(self: &Arc<Self>, prefix: &str, revision: Revision) -> Result<Watch, StoreError> {
        let floor = self.recent.read().floor;
        if revision < floor {
            return Err(StoreError::Compacted(floor));
        }
        Ok(Watch {
            history: Arc::clone(self),
            prefix: prefix.into(),
            seen: revision,
            revision: self.revision.subscribe(),
        })
    }
}

/// What an event costs to keep, in bytes.
fn weight(event: &Event) -> usize {
    event.entry.as_ref().map_or(0, |entry| entry.value.len()) + event.key.len() + size_of::<Event>()
}

/// A reader of the history.
pub struct Watch {
    history: Arc<History>,
    prefix: Box<str>,
    seen: Revision,
    revision: watch::Receiver<Revision>,
}

impl Watch {
    /// The changes that happened since the last call, without waiting.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when this watch was too slow.
    pub fn ready(&mut self) -> Result<Vec<Arc<Event>>, StoreError> {
        let recent = self.history.recent.read();
        if self.seen < recent.floor {
            return Err(StoreError::Compacted(recent.floor));
        }
        let start = recent.events.partition_point(|event| event.revision <= self.seen);
        if let Some(last) = recent.events.back() {
            self.seen = self.seen.max(last.revision);
        }
        Ok(recent
            .events
            .range(start..)
            .filter(|event| event.key.starts_with(&*self.prefix))
            .cloned()
            .collect())
    }

    /// The next changes.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when this watch was too slow, [`StoreError::Closed`] when the store is gone.
    pub async fn next(&mut self) -> Result<Vec<Arc<Event>>, StoreError> {
        loop {
            self.revision.borrow_and_update();
            let events = self.ready()?;
            if !events.is_empty() {
                return Ok(events);
            }
            self.revision.changed().await.map_err(|_gone| StoreError::Closed)?;
        }
    }

    /// Everything up to here has been returned.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.seen
    }

    /// A signal of the store's revision, for waiting without holding the watch.
    #[must_use]
    pub fn signal(&self) -> watch::Receiver<Revision> {
        self.revision.clone()
    }
}
