//! How far the kernel is: for metrics, and for whoever waits until this node has taken a change of endpoints.

use std::sync::Arc;
use std::time::Instant;

use api::Kind;
use api::discovery::EndpointSlice;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::metrics::Metrics;

/// When the change of endpoints happened that a slice tells of, as its controller writes it.
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Moments of changes that wait for one sync; more are not measured.
const TRIGGERS_MAX: usize = 4_096;

/// The revision of EndpointSlices that the kernel has. Clones share it.
#[derive(Clone, Debug)]
pub struct Programmed(Arc<watch::Sender<u64>>);

impl Default for Programmed {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

impl Programmed {
    /// The kernel has everything up to `revision`.
    pub fn tell(&self, revision: u64) {
        self.0.send_if_modified(|known| std::mem::replace(known, revision) != revision);
    }

    /// Waits until the kernel has everything up to `revision`; tells how far it is then.
    pub async fn reached(&self, revision: u64) -> u64 {
        let mut follow = self.0.subscribe();
        let now = follow.wait_for(|now| *now >= revision).await;
        now.map_or(0, |now| *now)
    }
}

/// One proxy's progress. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub(super) metrics: Metrics,
    programmed: Programmed,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// Changes before this one was there are not its own.
    born: Timestamp,
    waiting: Vec<Timestamp>,
    /// What the sync under way was given, and when it began.
    taken: Vec<Timestamp>,
    revision: u64,
    began: Instant,
}

impl Progress {
    pub(super) fn new(programmed: Programmed) -> Self {
        let state = State {
            born: Timestamp::now(),
            waiting: Vec::new(),
            taken: Vec::new(),
            revision: 0,
            began: Instant::now(),
        };
        Self { metrics: Metrics::default(), programmed, state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn endpoints_changed(&self, slice: Option<&EndpointSlice>) {
        self.metrics.endpoints_changed();
        let annotations = slice.and_then(|slice| slice.meta().annotations.as_ref());
        let trigger = annotations.and_then(|all| all.get(TRIGGER)?.parse::<Timestamp>().ok());
        let mut state = self.state.lock();
        if let Some(trigger) = trigger
            && trigger >= state.born
            && state.waiting.len() < TRIGGERS_MAX
        {
            state.waiting.push(trigger);
        }
    }

    /// A sync begins with the slices of `revision`.
    pub(super) fn begin(&self, revision: u64) {
        let mut state = self.state.lock();
        let waiting = std::mem::take(&mut state.waiting);
        state.taken.extend(waiting);
        state.revision = revision;
        state.began = Instant::now();
    }

    /// The kernel has taken it.
    pub(super) fn done(&self, whole: bool) {
        let mut state = self.state.lock();
        let triggers = std::mem::take(&mut state.taken);
        self.metrics.synced(whole, state.began.elapsed(), &triggers);
        self.programmed.tell(state.revision);
    }
}
