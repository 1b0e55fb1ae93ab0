//! The life of a pod on its node: what to do next, and its status.
//!
//! [`plan`] is a pure function of the pod's object, what the node agent has seen of it, and the time. Upstream
//! counterparts: `pkg/kubelet/kuberuntime` (`computePodActions`), `pkg/kubelet/status`, `kubelet_pods.go`.

pub mod backoff;
mod containers;
pub mod env;
pub mod files;
pub mod probe;
pub mod resources;
mod status;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod text_tests;
pub mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use api::Kind;
use api::core::{Container, Pod, PodSpec, PodStatus};
use jiff::Timestamp;

use backoff::{Backoff, later};
pub use containers::{is_sidecar, restart_policy};
pub use status::OWNED as OWNED_CONDITIONS;

/// The pod's network namespace and volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// Nothing is there yet.
    #[default]
    Absent,
    /// Being made or taken down.
    Busy,
    /// Could not be made; tried again at this time.
    Failed(Timestamp),
    /// Containers can start.
    Ready,
    /// Network and volumes are given back; containers and logs remain.
    Closed,
    /// Nothing is left on the node.
    Gone,
}

/// Where one run of a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Its process runs.
    Running {
        /// Since when.
        started_at: Timestamp,
    },
    /// Its process ended.
    Exited {
        /// When it began; `None` when it never did.
        started_at: Option<Timestamp>,
        /// When it ended.
        finished_at: Timestamp,
        /// The exit code; 128 + signal when killed.
        exit_code: i32,
        /// `Completed`, `Error`, `OOMKilled`, `StartError`.
        reason: String,
        /// The termination message.
        message: String,
    },
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The runtime's id.
    pub id: String,
    /// 0 for the first run.
    pub attempt: i32,
    /// The image's id.
    pub image_id: String,
    /// Where it is.
    pub state: RunState,
}

impl Run {
    /// Whether its process runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.state, RunState::Running { .. })
    }

    /// Exit code and end of a run that is over.
    #[must_use]
    pub fn exit(&self) -> Option<(i32, Timestamp)> {
        match self.state {
            RunState::Exited { exit_code, finished_at, .. } => Some((exit_code, finished_at)),
            RunState::Running { .. } => None,
        }
    }
}

/// Why the last try to start a container failed before its process ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `ErrImagePull`, `CreateContainerConfigError`, `RunContainerError`, …
    pub reason: String,
    /// The cause, in words.
    pub message: String,
    /// When.
    pub at: Timestamp,
    /// When it is tried again.
    pub retry_at: Timestamp,
}

/// What the agent has seen of one container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerSeen {
    /// A start (pull, create, start, postStart) is under way.
    pub starting: bool,
    /// A stop is under way and kills at this time.
    pub stopping: Option<Timestamp>,
    /// Why the last try to start failed.
    pub refusal: Option<Refusal>,
    /// The newest run.
    pub run: Option<Run>,
    /// The run before it.
    pub previous: Option<Run>,
    /// The delay between runs.
    pub crash: Option<Backoff>,
    /// The delay between pulls.
    pub pull: Option<Backoff>,
    /// The startup probe's verdict on the newest run; `None` before there is one.
    pub startup: Option<bool>,
    /// The readiness probe's verdict on the newest run.
    pub readiness: Option<bool>,
    /// The liveness probe's verdict on the newest run.
    pub liveness: Option<bool>,
}

/// What the agent has seen of one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// Network and volumes.
    pub sandbox: Sandbox,
    /// The pod's addresses; with `hostNetwork` the node's.
    pub ips: Vec<IpAddr>,
    /// When the agent first saw the pod.
    pub start_time: Option<Timestamp>,
    /// Containers by name, init containers among them.
    pub containers: BTreeMap<String, ContainerSeen>,
    /// The status last computed, for transition times.
    pub before: PodStatus,
    /// Whether every node sends connections to the pod; `None` where that is not asked.
    pub reachable: Option<bool>,
    /// The object is gone from the API.
    pub orphaned: bool,
}

/// Facts of the node that end up in the status of its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The node's addresses, the first of the primary family.
    pub ips: Vec<IpAddr>,
}

/// A step for the agent to carry out.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make network and volumes.
    Prepare,
    /// Pull if needed, create and start a container, run its postStart hook.
    Start {
        /// The container's name.
        container: String,
        /// The number of the run.
        attempt: i32,
        /// The crash delay from now on.
        crash: Option<Backoff>,
    },
    /// Run preStop, signal, and kill when the grace is over.
    Stop {
        /// The container's name.
        container: String,
        /// Seconds from now until the kill.
        grace_seconds: i64,
        /// The text of the `Killing` event.
        message: String,
    },
    /// Give network and volumes back.
    Close,
    /// Remove containers, logs and directories.
    Remove,
    /// Delete the object without grace, if it still has this uid.
    DeleteObject,
}

/// Something to tell the user once: an event that repeats only when `round` changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    /// The container; empty for the pod.
    pub container: String,
    /// A `Warning` rather than `Normal`.
    pub warning: bool,
    /// The event's reason.
    pub reason: &'static str,
    /// The event's message.
    pub message: String,
    /// Which occasion it is.
    pub round: i64,
}

/// A probe that must be running.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeKey {
    /// The container's name.
    pub container: String,
    /// The run that is probed.
    pub run: String,
    /// Which probe.
    pub kind: probe::ProbeKind,
}

/// What to do now, what to report, and when to look again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodPlan {
    /// Steps to begin, in order.
    pub actions: Vec<Action>,
    /// The status to report.
    pub status: PodStatus,
    /// Events.
    pub notices: BTreeSet<Notice>,
    /// Probes that must run; all others must not.
    pub probes: BTreeSet<ProbeKey>,
    /// When to plan again if nothing happens.
    pub wake: Option<Timestamp>,
}

/// What is decided while a plan is made.
#[derive(Default)]
struct Draft {
    actions: Vec<Action>,
    notices: BTreeSet<Notice>,
    wake: Option<Timestamp>,
}

impl Draft {
    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |before| before.min(at)));
    }
}

/// A pod, what was seen of it, and the time: what every decision looks at.
struct Scene<'a> {
    pod: &'a Pod,
    spec: &'a PodSpec,
    seen: &'a Seen,
    now: Timestamp,
}

impl<'a> Scene<'a> {
    fn init_containers(&self) -> &'a [Container] {
        self.spec.init_containers.as_deref().unwrap_or_default()
    }

    fn all_containers(&self) -> impl Iterator<Item = &'a Container> {
        self.init_containers().iter().chain(&self.spec.containers)
    }

    fn container(&self, name: &str) -> Option<&'a ContainerSeen> {
        self.seen.containers.get(name)
    }

    fn run(&self, name: &str) -> Option<&'a Run> {
        self.container(name)?.run.as_ref()
    }

    fn is_ending(&self) -> bool {
        self.pod.is_deleting() || self.seen.orphaned
    }

    /// The grace that the pod's containers get when the pod ends.
    fn grace_seconds(&self) -> i64 {
        let asked = self.pod.meta().deletion_grace_period_seconds;
        asked.or(self.spec.termination_grace_period_seconds).unwrap_or(30).max(1)
    }
}

/// Decides the next steps for `pod` and computes its status.
///
/// Never fails; a pod without a spec gets an empty plan.
#[must_use]
pub fn plan(pod: &Pod, seen: &Seen, node: &NodeFacts, now: Timestamp) -> PodPlan {
    let Some(spec) = pod.spec.as_ref() else { return PodPlan::default() };
    let scene = Scene { pod, spec, seen, now };
    let mut draft = Draft::default();
    let mut status = status::compute(&scene, node);
    let over = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
    if scene.is_ending() {
        end(&scene, &mut draft, true);
    } else if over {
        end(&scene, &mut draft, false);
    } else {
        go_on(&scene, &mut draft, &status);
    }
    status::refine(&scene, &mut status);
    let probes = if scene.is_ending() || over { BTreeSet::new() } else { probes(&scene) };
    PodPlan { actions: draft.actions, status, notices: draft.notices, probes, wake: draft.wake }
}

/// A pod that should run.
fn go_on(scene: &Scene<'_>, draft: &mut Draft, status: &PodStatus) {
    if let (Some(limit), Some(start)) = (scene.spec.active_deadline_seconds, &status.start_time) {
        draft.wake_at(later(start.0, limit));
    }
    match scene.seen.sandbox {
        Sandbox::Absent => draft.actions.push(Action::Prepare),
        Sandbox::Failed(retry_at) if retry_at <= scene.now => draft.actions.push(Action::Prepare),
        Sandbox::Failed(retry_at) => draft.wake_at(retry_at),
        Sandbox::Ready => containers::advance(scene, draft),
        Sandbox::Busy | Sandbox::Closed | Sandbox::Gone => {}
    }
}

/// A pod whose containers must stop: main containers first, then sidecars in reverse, then network and volumes.
fn end(scene: &Scene<'_>, draft: &mut Draft, remove: bool) {
    if containers::stop_all(scene, draft) {
        return;
    }
    match (&scene.seen.sandbox, remove) {
        (Sandbox::Ready | Sandbox::Failed(_), _) => draft.actions.push(Action::Close),
        (Sandbox::Absent | Sandbox::Closed, true) => draft.actions.push(Action::Remove),
        (Sandbox::Gone, true) if !scene.seen.orphaned => draft.actions.push(Action::DeleteObject),
        _ => {}
    }
}

/// The probes of every running container. Liveness and readiness wait for the startup probe.
fn probes(scene: &Scene<'_>) -> BTreeSet<ProbeKey> {
    use probe::ProbeKind;
    let mut wanted = BTreeSet::new();
    for container in scene.all_containers() {
        let Some(seen) = scene.container(&container.name) else { continue };
        let Some(run) = seen.run.as_ref().filter(|run| run.is_running()) else { continue };
        if seen.starting || seen.stopping.is_some() {
            continue;
        }
        let mut want = |kind| {
            wanted.insert(ProbeKey {
                container: container.name.clone(),
                run: run.id.clone(),
                kind,
            });
        };
        if container.startup_probe.is_some() && seen.startup != Some(true) {
            want(ProbeKind::Startup);
            continue;
        }
        if container.liveness_probe.is_some() {
            want(ProbeKind::Liveness);
        }
        if container.readiness_probe.is_some() {
            want(ProbeKind::Readiness);
        }
    }
    wanted
}
