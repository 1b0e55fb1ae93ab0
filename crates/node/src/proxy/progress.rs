//! What a sync of the kernel takes, for metrics.

use std::sync::Arc;
use std::time::Instant;

use api::Kind;
use api::discovery::EndpointSlice;
use jiff::Timestamp;
use parking_lot::Mutex;

use super::metrics::Metrics;

/// When the change of endpoints happened that a slice tells of, as its controller writes it.
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Moments of changes that wait for one sync; more are not measured.
const TRIGGERS_MAX: usize = 4_096;

/// One proxy's progress. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Progress {
    pub(super) metrics: Metrics,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// Changes before this one was there are not its own.
    born: Timestamp,
    waiting: Vec<Timestamp>,
    /// What the sync under way was given, and when it began.
    taken: Vec<Timestamp>,
    began: Instant,
}

impl Progress {
    pub(super) fn new() -> Self {
        let state = State {
            born: Timestamp::now(),
            waiting: Vec::new(),
            taken: Vec::new(),
            began: Instant::now(),
        };
        Self { metrics: Metrics::default(), state: Arc::new(Mutex::new(state)) }
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

    /// A sync begins.
    pub(super) fn begin(&self) {
        let mut state = self.state.lock();
        let waiting = std::mem::take(&mut state.waiting);
        state.taken.extend(waiting);
        state.began = Instant::now();
    }

    /// The kernel has taken it.
    pub(super) fn done(&self, whole: bool) {
        let mut state = self.state.lock();
        let triggers = std::mem::take(&mut state.taken);
        self.metrics.synced(whole, state.began.elapsed(), &triggers);
    }
}
