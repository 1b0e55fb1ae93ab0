//! The one loop: dirty key → snapshot → plan → apply.
//!
//! A key is planned from a snapshot that includes the component's own last writes (it waits for its reflectors to
//! catch up), so no plan acts twice on the same lack. Failures retry with a growing delay; an event only says which
//! key is dirty, so a lost or repeated one changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::Future;
use std::ops::Bound;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::Kind;
use futures_util::future::{join_all, select_all};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::applied::Applied;
use crate::client::{Client, Error};
use crate::reflector::{Change, Reflector};

/// First wait before a failed key is tried again; doubled up to [`RETRY_MAX`] (upstream's rate limiter: 5 ms).
const RETRY_MIN: Duration = Duration::from_millis(5);
/// Longest wait between tries of one key.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Longest wait for the component's own writes to come back; past it the plan is made anyway and a conflict retries.
const CATCH_UP_MAX: Duration = Duration::from_secs(5);

/// What a key needs after a successful apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing until an event.
    Wait,
    /// Another plan after this time, if no event comes first.
    After(Duration),
}

/// Why an apply failed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The API server refused or could not be reached.
    #[error("the API write failed")]
    Api(#[from] Error),
    /// The kernel, the runtime or another sink refused.
    #[error("{what}")]
    Sink {
        /// What failed, naming the object.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ApplyError {
    /// A failure outside the API.
    pub fn sink(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Sink { what: what.into(), source: source.into() }
    }

    /// Whether another write came first: it retries in silence, because the next snapshot has the other's write.
    #[must_use]
    pub fn is_race(&self) -> bool {
        match self {
            Self::Api(error) => {
                error.is_conflict() || error.is_not_found() || error.is_already_exists()
            }
            Self::Sink { .. } => false,
        }
    }
}

/// A component: a pure `plan` and an effectful `apply`.
pub trait Reconcile: Send + 'static {
    /// The component's name in logs and metrics.
    const NAME: &'static str;
    /// An object's name, or `()` for whole-state components.
    type Key: Ord + Clone + Debug + Send + 'static;
    /// Immutable view of the watched objects.
    type Snapshot;
    /// Inert data: printable, comparable.
    type Plan: Debug + PartialEq + Send;

    /// Decides. Never fails: bad objects become issues carried in the plan.
    fn plan(&self, snapshot: &Self::Snapshot, key: &Self::Key) -> Self::Plan;

    /// Acts, and decides nothing. Idempotent.
    fn apply(
        &mut self,
        key: &Self::Key,
        plan: Self::Plan,
    ) -> impl Future<Output = Result<Next, ApplyError>> + Send;
}

struct Dirty<Key> {
    keys: Mutex<BTreeSet<Key>>,
    wake: Notify,
}

impl<Key: Ord + Clone> Dirty<Key> {
    /// Takes the first key after `last`, or else the first of all.
    fn take_after(&self, last: Option<&Key>) -> Option<Key> {
        let mut keys = self.keys.lock();
        let after = |last| keys.range((Bound::Excluded(last), Bound::Unbounded)).next();
        let next = last.and_then(after).or_else(|| keys.first()).cloned()?;
        keys.take(&next)
    }
}

type Boxed<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A reflector of any kind, as the loop needs it.
trait Source: Send + Sync {
    fn synced(&self) -> Boxed<'_>;
    fn caught_up<'a>(&'a self, written: &BTreeMap<&'static str, u64>) -> Boxed<'a>;
    fn seen(&self) -> u64;
    fn passed(&self, revision: u64) -> Boxed<'_>;
}

impl<K: Kind> Source for Reflector<K> {
    fn synced(&self) -> Boxed<'_> {
        Box::pin(Self::synced(self))
    }

    fn caught_up<'a>(&'a self, written: &BTreeMap<&'static str, u64>) -> Boxed<'a> {
        let revision =
            if self.is_filtered() { 0 } else { written.get(K::KIND).copied().unwrap_or(0) };
        Box::pin(self.reached(revision))
    }

    /// Every change up to this revision has made its keys dirty: it moves after the listeners.
    fn seen(&self) -> u64 {
        self.revision().unwrap_or(0)
    }

    fn passed(&self, revision: u64) -> Boxed<'_> {
        Box::pin(self.reached(revision + 1))
    }
}

/// What makes keys dirty: the component's reflectors and how their changes map to keys.
pub struct Inputs<Key> {
    dirty: Arc<Dirty<Key>>,
    sources: Vec<Box<dyn Source>>,
    told: Vec<(Box<dyn Source>, Applied)>,
}

impl<Key: Ord + Clone + Send + 'static> Inputs<Key> {
    /// No inputs yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            dirty: Arc::new(Dirty { keys: Mutex::default(), wake: Notify::new() }),
            sources: Vec::new(),
            told: Vec::new(),
        }
    }

    /// Every change of `reflector` adds the keys that `map` inserts.
    #[must_use]
    pub fn on<K: Kind>(
        mut self,
        reflector: &Reflector<K>,
        map: impl Fn(&Change<'_, K>, &mut BTreeSet<Key>) + Send + Sync + 'static,
    ) -> Self {
        let dirty = Arc::clone(&self.dirty);
        reflector.listen(move |change| {
            map(change, &mut dirty.keys.lock());
            dirty.wake.notify_one();
        });
        self.sources.push(Box::new(reflector.clone()));
        self
    }

    /// Tells `applied` the revision of `reflector` up to which every change is applied.
    #[must_use]
    pub fn tells<K: Kind>(mut self, reflector: &Reflector<K>, applied: Applied) -> Self {
        self.told.push((Box::new(reflector.clone()), applied));
        self
    }

    /// A key that is dirty from the start.
    #[must_use]
    pub fn with(self, key: Key) -> Self {
        self.dirty.keys.lock().insert(key);
        self
    }

    /// A function that makes keys dirty from outside the reflectors: timers, kernel events, exits of containers.
    pub fn poke(&self) -> impl Fn(Key) + Clone + Send + Sync + use<Key> {
        let dirty = Arc::clone(&self.dirty);
        move |key| {
            dirty.keys.lock().insert(key);
            dirty.wake.notify_one();
        }
    }

    /// Waits until every reflector has its first list.
    pub async fn synced(&self) {
        join_all(self.sources.iter().map(|source| source.synced())).await;
    }

    /// After an apply, when nothing else failed. A change that came meanwhile has its key in the set, so that an empty
    /// set says that all changes seen before are applied.
    fn tell(&self) {
        let seen: Vec<u64> = self.told.iter().map(|(source, _)| source.seen()).collect();
        if self.dirty.keys.lock().is_empty() {
            self.told.iter().zip(seen).for_each(|((_, applied), revision)| applied.tell(revision));
        }
    }

    /// Waits until a reflector that is told about is further than was told. Its revision moves after the keys of a change
    /// are dirty, and so perhaps after they are applied.
    async fn moved(&self) {
        let all = self.told.iter().map(|(source, applied)| source.passed(applied.now()));
        let all: Vec<Boxed<'_>> = all.collect();
        if all.is_empty() {
            return std::future::pending().await;
        }
        select_all(all).await;
    }

    async fn caught_up(&self, written: &BTreeMap<&'static str, u64>) {
        let all = join_all(self.sources.iter().map(|source| source.caught_up(written)));
        let _ = tokio::time::timeout(CATCH_UP_MAX, all).await;
    }
}

impl<Key: Ord + Clone + Send + 'static> Default for Inputs<Key> {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs a component until `shutdown`. `client` is the component's own: its writes are waited for before the next plan.
pub async fn run<R: Reconcile>(
    mut component: R,
    client: Client,
    inputs: Inputs<R::Key>,
    snapshot: impl Fn() -> R::Snapshot + Send,
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = inputs.synced() => {}
    }
    let mut timers = Timers::default();
    let mut failures: BTreeMap<R::Key, u32> = BTreeMap::new();
    let mut last: Option<R::Key> = None;
    loop {
        let key = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            key = next_key(&inputs.dirty, &mut timers, last.as_ref()) => key,
            () = inputs.moved(), if failures.is_empty() => {
                inputs.tell();
                continue;
            }
        };
        last = Some(key.clone());
        inputs.caught_up(&client.written()).await;
        let plan = component.plan(&snapshot(), &key);
        let outcome = component.apply(&key, plan).await;
        if let Some(delay) = settle::<R>(&key, outcome, &mut failures) {
            timers.set(key, Instant::now() + delay);
        }
        if failures.is_empty() {
            inputs.tell();
        }
    }
}

/// The delay before the key's next turn, if it needs one; logs failures that are not lost races.
fn settle<R: Reconcile>(
    key: &R::Key,
    outcome: Result<Next, ApplyError>,
    failures: &mut BTreeMap<R::Key, u32>,
) -> Option<Duration> {
    match outcome {
        Ok(next) => {
            failures.remove(key);
            match next {
                Next::Wait => None,
                Next::After(delay) => Some(delay),
            }
        }
        Err(error) => {
            let count = failures.entry(key.clone()).or_default();
            let delay = RETRY_MIN.saturating_mul(1 << (*count).min(13)).min(RETRY_MAX);
            *count += 1;
            if !error.is_race() {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(component = R::NAME, ?key, error, "apply failed; trying again");
            }
            Some(delay)
        }
    }
}

/// When keys are to be planned again though nothing changes. Thousands of keys may wait, so the first is at hand.
#[derive(Debug)]
struct Timers<Key> {
    at: BTreeMap<Key, Instant>,
    order: BTreeSet<(Instant, Key)>,
}

impl<Key> Default for Timers<Key> {
    fn default() -> Self {
        Self { at: BTreeMap::new(), order: BTreeSet::new() }
    }
}

impl<Key: Ord + Clone> Timers<Key> {
    /// In place of the key's time before, if it had one.
    fn set(&mut self, key: Key, at: Instant) {
        self.remove(&key);
        self.at.insert(key.clone(), at);
        self.order.insert((at, key));
    }

    fn remove(&mut self, key: &Key) {
        if let Some((key, at)) = self.at.remove_entry(key) {
            self.order.remove(&(at, key));
        }
    }

    fn first(&self) -> Option<&(Instant, Key)> {
        self.order.first()
    }
}

/// The next key that is dirty or whose time has come, round and round from `last`: a key that is dirty again and again
/// keeps no other waiting, nor a timer.
async fn next_key<Key: Ord + Clone>(
    dirty: &Dirty<Key>,
    timers: &mut Timers<Key>,
    last: Option<&Key>,
) -> Key {
    loop {
        let now = Instant::now();
        while let Some((_, key)) = timers.first().filter(|(at, _)| *at <= now).cloned() {
            timers.remove(&key);
            dirty.keys.lock().insert(key);
        }
        if let Some(key) = dirty.take_after(last) {
            timers.remove(&key);
            return key;
        }
        match timers.first() {
            Some((at, _)) => {
                let _ = tokio::time::timeout_at(*at, dirty.wake.notified()).await;
            }
            None => dirty.wake.notified().await,
        }
    }
}

#[cfg(test)]
mod tests;
