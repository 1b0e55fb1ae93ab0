//! The task of one pod: looks, plans, acts, waits. Upstream: `pkg/kubelet/pod_workers.go` and `SyncPod`.
//!
//! It wakes when the object changes, when the runtime, a probe or an operation reports, and when the plan asked for a
//! time; it polls nothing. Operations run as tasks beside it and report through its inbox.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::Kind;
use api::core::{Pod, PodStatus};
use client::EventKind;
use jiff::{SignedDuration, Timestamp};
use plan::pods::backoff::{Backoff, later};
use plan::pods::probe::ProbeKind;
use plan::pods::{NodeFacts, Notice, PodPlan, ProbeKey, Refusal, Sandbox, Seen, plan};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::context::{Agent, PodContext, find, is_host_network};
use super::handle::{KubeletHandle, PodEntry};
use super::network::PodAttachment;
use super::prober::Prober;
use super::report::Reporter;
use super::runs::{self, Entries, Messages};
use super::sandbox::Record;
use super::start::Refused;

/// Messages that wait for a worker; senders wait beyond it.
const INBOX_MAX: usize = 64;
/// A container that could not be started for its configuration is tried again after this many seconds.
const REFUSED_SECONDS: i64 = 10;
/// First wait before a sandbox is tried again, in milliseconds; doubled up to [`PREPARE_MS_MAX`].
const PREPARE_MS_MIN: i64 = 500;
/// Longest wait between tries of a sandbox (upstream's bound for volumes is 2 m 2 s).
const PREPARE_MS_MAX: i64 = 122_000;

/// The pod as the API has it.
#[derive(Clone, Debug)]
pub(super) struct Input {
    pub(super) pod: Arc<Pod>,
    /// The object is gone (or another pod has its name).
    pub(super) gone: bool,
}

/// What operations and probes report.
pub(super) enum Message {
    Prepared(Result<PodAttachment, String>),
    Started {
        container: String,
        result: Result<(), Refused>,
    },
    Stopped {
        container: String,
    },
    Probed {
        key: ProbeKey,
        passed: bool,
    },
    /// Every node sends connections to the pod.
    Reached,
    Closed,
    Removed,
}

/// The worker of one pod.
pub(super) struct Worker {
    pub(super) context: Arc<PodContext>,
    pub(super) handle: KubeletHandle,
    pub(super) seen: Seen,
    pub(super) outbox: mpsc::Sender<Message>,
    pub(super) reporter: Arc<Reporter>,
    pub(super) pod: Arc<Pod>,
    pub(super) stops: BTreeMap<String, AbortHandle>,
    /// Cancelled when the pod ends, so that no start outlives it.
    pub(super) starts: CancellationToken,
    pub(super) delete_asked: bool,
    input: watch::Receiver<Input>,
    inbox: mpsc::Receiver<Message>,
    netns: Option<PathBuf>,
    entries: Entries,
    messages: Messages,
    told: BTreeSet<Notice>,
    probes: BTreeMap<ProbeKey, AbortHandle>,
    failures: u32,
    /// Waits for [`Message::Reached`].
    reach: Option<AbortHandle>,
}

impl Worker {
    pub(super) fn new(
        agent: &Arc<Agent>,
        handle: KubeletHandle,
        context: Arc<PodContext>,
        input: watch::Receiver<Input>,
    ) -> Self {
        let pod = Arc::clone(&input.borrow().pod);
        let (outbox, inbox) = mpsc::channel(INBOX_MAX);
        let reporter = Arc::new(Reporter::start(agent.client.clone(), &pod));
        let before = pod.status.clone().unwrap_or_default();
        let seen = Seen { start_time: Some(Timestamp::now()), before, ..Seen::default() };
        Self {
            context,
            handle,
            seen,
            outbox,
            reporter,
            pod,
            stops: BTreeMap::new(),
            starts: CancellationToken::new(),
            delete_asked: false,
            input,
            inbox,
            netns: None,
            entries: Entries::default(),
            messages: Messages::new(),
            told: BTreeSet::new(),
            probes: BTreeMap::new(),
            failures: 0,
            reach: None,
        }
    }

    /// Runs the pod until nothing is left of it, here and in the API.
    pub(super) async fn run(mut self) {
        self.adopt();
        loop {
            let before = Arc::clone(&self.pod);
            let input = self.input.borrow_and_update().clone();
            (self.pod, self.seen.orphaned) = (input.pod, input.gone);
            if before.metadata.labels != self.pod.metadata.labels
                || before.metadata.annotations != self.pod.metadata.annotations
            {
                self.refresh();
            }
            if self.seen.orphaned && self.seen.sandbox == Sandbox::Gone {
                break;
            }
            self.observe();
            let facts = NodeFacts { ips: self.context.agent.options.node_ips.clone() };
            let mut plan = plan(&self.pod, &self.seen, &facts, Timestamp::now());
            if self.becomes_ready(&plan.status) && self.watch_reach() {
                plan = plan::pods::plan(&self.pod, &self.seen, &facts, Timestamp::now());
            }
            let wake = plan.wake;
            self.act(plan);
            self.wait(wake).await;
        }
        self.context.agent.objects.release(&self.context.uid);
        self.handle.forget(&self.pod.object_name(), &self.context.uid);
    }

    /// Takes over a pod that ran before the agent started: its containers, addresses and verdicts stay.
    fn adopt(&mut self) {
        let agent = &self.context.agent;
        let Some(record) = Record::read(&agent.paths, &self.context.uid) else { return };
        if agent.runtime().pod(&self.context.uid).is_none() {
            return;
        }
        self.netns = record.netns;
        self.seen.ips = record.ips;
        self.seen.sandbox = Sandbox::Ready;
        let status = self.pod.status.iter();
        let known = status.flat_map(|status| {
            let inits = status.init_container_statuses.iter().flatten();
            status.container_statuses.iter().flatten().chain(inits)
        });
        for status in known {
            let seen = self.seen.containers.entry(status.name.clone()).or_default();
            let running = status.state.as_ref().is_some_and(|state| state.running.is_some());
            seen.startup = status.started.filter(|started| *started && running);
            seen.readiness = Some(status.ready).filter(|ready| *ready && running);
        }
        let reached = plan::podfacts::condition(&self.pod, plan::guard::REACHABLE);
        self.seen.reachable = reached.map(|reached| reached.status == "True");
        if self.seen.reachable == Some(false) {
            self.watch_reach();
        }
        let ends = self.pod.is_deleting() || self.input.borrow().gone;
        if !ends {
            // Volumes, network and shim are made sure of in the background, while the containers run on.
            self.begin_prepare(true);
        }
    }

    fn observe(&mut self) {
        let agent = &self.context.agent;
        let report = agent.runtime().pod(&self.context.uid);
        if self.seen.sandbox == Sandbox::Ready && !report.as_ref().is_some_and(|pod| pod.ready) {
            let lost = !self.pod.is_deleting() && !self.seen.orphaned;
            if lost {
                let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
                let kind = EventKind::Normal;
                self.context.event(&self.pod, None, kind, "SandboxChanged", message);
                self.seen.sandbox = Sandbox::Absent;
            }
        }
        let Some(report) = report else { return };
        let containers = &report.containers;
        let (paths, messages) = (&agent.paths, &mut self.messages);
        self.entries = runs::observe(&self.pod, containers, paths, messages, &mut self.seen);
    }

    fn act(&mut self, plan: PodPlan) {
        for notice in plan.notices.difference(&self.told) {
            let kind = if notice.warning { EventKind::Warning } else { EventKind::Normal };
            let container = Some(notice.container.as_str()).filter(|name| !name.is_empty());
            let message = notice.message.clone();
            self.context.event(&self.pod, container, kind, notice.reason, message);
        }
        self.told = plan.notices;
        self.publish(&plan.status);
        if !self.seen.orphaned {
            self.reporter.report(&self.pod, &plan.status);
        }
        self.seen.before = plan.status;
        self.set_probes(&plan.probes);
        if self.pod.is_deleting() || self.seen.orphaned {
            self.starts.cancel();
        }
        for action in plan.actions {
            self.begin(action);
        }
    }

    /// Whether this status is the first that says so.
    fn becomes_ready(&self, status: &PodStatus) -> bool {
        self.seen.reachable.is_none() && is_ready(status) && !is_ready(&self.seen.before)
    }

    /// Begins to wait until connections reach the pod, if it is behind a Service.
    fn watch_reach(&mut self) -> bool {
        let Some(guard) = self.context.agent.options.guard.clone() else { return false };
        let pod = Arc::clone(&self.pod);
        if plan::guard::budget(&pod, Duration::MAX).is_zero() || !guard.concerns(&pod) {
            return false;
        }
        self.seen.reachable = Some(false);
        let outbox = self.outbox.clone();
        let task = tokio::spawn(async move {
            while !guard.joined(&pod, plan::guard::BUDGET_MAX).await.is_complete() {}
            let _ = outbox.send(Message::Reached).await;
        });
        self.reach = Some(task.abort_handle());
        true
    }

    fn publish(&self, status: &PodStatus) {
        let (current, previous) = self.entries.clone();
        self.handle.publish(PodEntry {
            pod: Arc::clone(&self.pod),
            status: status.clone(),
            netns: self.netns.clone(),
            ips: self.seen.ips.clone(),
            current,
            previous,
        });
    }

    /// Starts the probes that must run and ends all others.
    fn set_probes(&mut self, wanted: &BTreeSet<ProbeKey>) {
        self.probes.retain(|key, task| {
            let keep = wanted.contains(key);
            if !keep {
                task.abort();
            }
            keep
        });
        for key in wanted {
            if self.probes.contains_key(key) {
                continue;
            }
            let Some(container) = find(&self.pod, &key.container).cloned() else { continue };
            let run = self.seen.containers.get(&key.container).and_then(|seen| seen.run.as_ref());
            let started = run.and_then(|run| match run.state {
                plan::pods::RunState::Running { started_at } => Some(started_at),
                plan::pods::RunState::Exited { .. } => None,
            });
            let age = started.map(|at| Timestamp::now().duration_since(at));
            let prober = Prober {
                context: Arc::clone(&self.context),
                pod: Arc::clone(&self.pod),
                container,
                key: key.clone(),
                ip: self.seen.ips.first().copied(),
                age: age.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default(),
                outbox: self.outbox.clone(),
            };
            let task = tokio::spawn(prober.run());
            self.probes.insert(key.clone(), task.abort_handle());
        }
    }

    async fn wait(&mut self, wake: Option<Timestamp>) {
        let until = |at: Timestamp| {
            Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
        };
        let wake = wake.map(until);
        let renewal = self.context.tokens.renewal();
        tokio::select! {
            changed = self.input.changed() => {
                if changed.is_err() {
                    // The agent is shutting down: containers run on, the task is dropped with the agent's runtime.
                    std::future::pending::<()>().await;
                }
            }
            Some(message) = self.inbox.recv() => self.take(message),
            () = self.context.waker.woken() => {
                if self.context.waker.take_sources_changed() {
                    self.sources_changed();
                }
            }
            () = sleep(wake) => {}
            () = sleep(renewal) => self.refresh(),
        }
    }

    /// A config map or secret changed: what failed for lack of it is tried again at once, volumes are written again.
    fn sources_changed(&mut self) {
        let now = Timestamp::now();
        for seen in self.seen.containers.values_mut() {
            if let Some(refusal) = &mut seen.refusal
                && refusal.reason == "CreateContainerConfigError"
            {
                refusal.retry_at = now;
            }
        }
        match self.seen.sandbox {
            Sandbox::Failed(_) => self.seen.sandbox = Sandbox::Failed(now),
            Sandbox::Ready => self.refresh(),
            _ => {}
        }
    }

    fn take(&mut self, message: Message) {
        let now = Timestamp::now();
        match message {
            Message::Prepared(Ok(attachment)) => {
                self.failures = 0;
                self.netns = (!is_host_network(&self.pod)).then_some(attachment.netns);
                self.seen.ips = attachment.ips;
                self.seen.sandbox = Sandbox::Ready;
                let _ = self.context.waker.take_sources_changed();
            }
            Message::Prepared(Err(_)) => {
                let wait = PREPARE_MS_MIN.saturating_mul(1 << self.failures.min(10));
                let wait = SignedDuration::from_millis(wait.min(PREPARE_MS_MAX));
                self.failures += 1;
                let at = now.saturating_add(wait).unwrap_or(now);
                if self.seen.sandbox == Sandbox::Busy {
                    self.seen.sandbox = Sandbox::Failed(at);
                }
            }
            Message::Started { container, result } => self.started(&container, result, now),
            Message::Stopped { container } => {
                self.stops.remove(&container);
                if let Some(seen) = self.seen.containers.get_mut(&container) {
                    seen.stopping = None;
                }
            }
            Message::Probed { key, passed } => self.probed(&key, passed),
            Message::Reached => self.seen.reachable = Some(true),
            Message::Closed => self.seen.sandbox = Sandbox::Closed,
            Message::Removed => self.seen.sandbox = Sandbox::Gone,
        }
    }

    fn started(&mut self, container: &str, result: Result<(), Refused>, now: Timestamp) {
        let seen = self.seen.containers.entry(container.to_owned()).or_default();
        seen.starting = false;
        let Err(refused) = result else {
            (seen.refusal, seen.pull) = (None, None);
            return;
        };
        let seconds = match refused.reason {
            "ErrImagePull" => {
                let next = Backoff::next(seen.pull, now, now);
                seen.pull = Some(next);
                next.seconds
            }
            // The run exists and ended: the delay between runs applies.
            "PostStartHookError" => 0,
            "RunContainerError" if self.has_newer_run(container) => 0,
            _ => REFUSED_SECONDS,
        };
        let seen = self.seen.containers.entry(container.to_owned()).or_default();
        seen.refusal = Some(Refusal {
            reason: refused.reason.to_owned(),
            message: refused.message,
            at: now,
            retry_at: later(now, seconds),
        });
    }

    /// Whether the runtime keeps a run that ended and is newer than the one known before.
    fn has_newer_run(&self, container: &str) -> bool {
        let known = self.seen.containers.get(container).and_then(|seen| seen.run.as_ref());
        let known = known.map_or(-1, |run| i64::from(run.attempt));
        let report = self.context.agent.runtime().pod(&self.context.uid);
        let mut runs = report.into_iter().flat_map(|pod| pod.containers);
        runs.any(|run| {
            let ended = run.state == runtime::ContainerState::Exited;
            run.name == container && ended && i64::from(run.attempt) > known
        })
    }

    fn probed(&mut self, key: &ProbeKey, passed: bool) {
        let Some(seen) = self.seen.containers.get_mut(&key.container) else { return };
        if seen.run.as_ref().is_none_or(|run| run.id != key.run) {
            return;
        }
        match key.kind {
            ProbeKind::Startup => seen.startup = Some(passed),
            ProbeKind::Liveness => seen.liveness = Some(passed),
            ProbeKind::Readiness => seen.readiness = Some(passed),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.probes.values().chain(&self.reach).for_each(AbortHandle::abort);
    }
}

fn is_ready(status: &PodStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|one| one.type_ == "Ready" && one.status == "True")
}

/// Sleeps this long, or for ever.
async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
