//! `status` of a pod: phase, conditions, containers. Upstream: `generateAPIPodStatus`, `pkg/kubelet/status/generate.go`.

use api::Kind;
use api::core::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, PodCondition, PodIP, PodStatus,
};
use api::meta::Time;

use crate::guard;

use super::backoff::{Backoff, later};
use super::containers::{
    ERROR_SHOWN_SECONDS, crash_until, init_done, is_initialized, is_sidecar, is_started, pod_text,
    policy_of, restarts,
};
use super::{ContainerSeen, NodeFacts, Run, RunState, Sandbox, Scene, resources};

/// Everything but the final touches of [`refine`].
pub(super) fn compute(scene: &Scene<'_>, node: &NodeFacts) -> PodStatus {
    let ips: Vec<String> = scene.seen.ips.iter().map(ToString::to_string).collect();
    let hosts: Vec<String> = node.ips.iter().map(ToString::to_string).collect();
    let start = scene.pod.status.as_ref().and_then(|status| status.start_time.clone());
    let mut status = PodStatus {
        host_ip: hosts.first().cloned(),
        host_ips: some(hosts.into_iter().map(|ip| HostIP { ip }).collect()),
        pod_ip: ips.first().cloned(),
        pod_ips: some(ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: start.or_else(|| scene.seen.start_time.map(Time)),
        qos_class: qos_class(scene),
        observed_generation: scene.pod.meta().generation,
        container_statuses: some(statuses(scene, &scene.spec.containers)),
        init_container_statuses: some(statuses(scene, scene.init_containers())),
        ..PodStatus::default()
    };
    decide_phase(scene, &mut status);
    status
}

/// Conditions, which need the phase; and no end is reported while a container still runs.
pub(super) fn refine(scene: &Scene<'_>, status: &mut PodStatus) {
    let over = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
    let runs = scene.all_containers().any(|c| scene.run(&c.name).is_some_and(Run::is_running));
    let before = scene.seen.before.phase.as_deref();
    if over && runs && !matches!(before, Some("Failed" | "Succeeded")) {
        status.phase = Some(before.unwrap_or("Pending").to_owned());
        status.reason = None;
        status.message = None;
    }
    status.conditions = Some(conditions(scene, status));
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// The class that the API server gave the pod, which never changes.
fn qos_class(scene: &Scene<'_>) -> Option<String> {
    let given = scene.pod.status.as_ref().and_then(|status| status.qos_class.clone());
    given.or_else(|| Some(resources::qos_class(scene.spec).to_owned()))
}

fn decide_phase(scene: &Scene<'_>, status: &mut PodStatus) {
    let reported = [Some(&scene.seen.before), scene.pod.status.as_ref()];
    for before in reported.into_iter().flatten() {
        if matches!(before.phase.as_deref(), Some("Failed" | "Succeeded")) {
            status.phase.clone_from(&before.phase);
            status.reason.clone_from(&before.reason);
            status.message.clone_from(&before.message);
            return;
        }
    }
    let limit = scene.spec.active_deadline_seconds;
    if let (Some(limit), Some(start)) = (limit, &status.start_time)
        && later(start.0, limit) <= scene.now
    {
        status.phase = Some("Failed".to_owned());
        status.reason = Some("DeadlineExceeded".to_owned());
        let text = "Pod was active on the node longer than the specified deadline";
        status.message = Some(text.to_owned());
        return;
    }
    status.phase = Some(phase(scene).to_owned());
}

/// `Pending`, `Running`, `Succeeded` or `Failed`, from the runs of the containers.
fn phase(scene: &Scene<'_>) -> &'static str {
    let failed_for_good = |container: &Container| {
        scene
            .run(&container.name)
            .and_then(Run::exit)
            .is_some_and(|(code, _)| code != 0 && !restarts(policy_of(scene, container), code))
    };
    if !is_initialized(scene) {
        let mut inits = scene.init_containers().iter().filter(|init| !is_sidecar(init));
        return if inits.any(failed_for_good) { "Failed" } else { "Pending" };
    }
    let mains = &scene.spec.containers;
    if mains.iter().any(|main| scene.run(&main.name).is_none()) {
        return "Pending";
    }
    let over = |main: &Container| {
        scene
            .run(&main.name)
            .and_then(Run::exit)
            .is_some_and(|(code, _)| scene.is_ending() || !restarts(policy_of(scene, main), code))
    };
    if !mains.iter().all(over) {
        return "Running";
    }
    let succeeded = |main: &Container| {
        scene.run(&main.name).and_then(Run::exit).is_some_and(|(code, _)| code == 0)
    };
    if mains.iter().all(succeeded) {
        // A pod that always restarts never succeeds; one that is deleted may have ended well.
        "Succeeded"
    } else {
        "Failed"
    }
}

fn statuses(scene: &Scene<'_>, containers: &[Container]) -> Vec<ContainerStatus> {
    containers.iter().map(|container| container_status(scene, container)).collect()
}

fn container_status(scene: &Scene<'_>, container: &Container) -> ContainerStatus {
    let fresh = ContainerSeen::default();
    let seen = scene.container(&container.name).unwrap_or(&fresh);
    let run = seen.run.as_ref();
    let waiting = waiting(scene, container, seen);
    let is_init = scene.init_containers().iter().any(|init| init.name == container.name);
    let started = is_started(container, Some(seen));
    let ready = if is_init && !is_sidecar(container) {
        init_done(scene, container)
    } else {
        started && (container.readiness_probe.is_none() || seen.readiness == Some(true))
    };
    let (state, last_run) = match (waiting, run) {
        (Some(waiting), _) => (waiting_state(waiting), run),
        (None, Some(run)) => (run_state(run), seen.previous.as_ref()),
        (None, None) => (waiting_state(Waiting::default()), None),
    };
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        image_id: run.map(|run| run.image_id.clone()).unwrap_or_default(),
        container_id: run.map(|run| container_id(&run.id)),
        restart_count: run.map_or(0, |run| run.attempt),
        started: Some(started),
        ready: ready && !(scene.is_ending() && !run.is_some_and(Run::is_running) && !is_init),
        state: Some(state),
        last_state: Some(
            last_run.filter(|run| !run.is_running()).map(run_state).unwrap_or_default(),
        ),
        resources: run.filter(|run| run.is_running()).and(container.resources.clone()),
        ..ContainerStatus::default()
    }
}

/// `rhumb://<id>`, as in `containerID`.
fn container_id(id: &str) -> String {
    format!("rhumb://{id}")
}

#[derive(Default)]
struct Waiting {
    reason: String,
    message: Option<String>,
}

fn waiting_state(waiting: Waiting) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: Some(waiting.reason), message: waiting.message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

/// Why a container waits, if it does; a run that is over and is not followed by another does not wait.
fn waiting(scene: &Scene<'_>, container: &Container, seen: &ContainerSeen) -> Option<Waiting> {
    if seen.run.as_ref().is_some_and(Run::is_running) {
        return None;
    }
    if let Some(refusal) = &seen.refusal
        && !scene.is_ending()
    {
        let fresh = scene.now < later(refusal.at, ERROR_SHOWN_SECONDS);
        let ran = seen.run.as_ref().and_then(Run::exit).is_some();
        let pulls = refusal.reason == "ErrImagePull";
        if fresh || !(pulls || (ran && refusal.retry_at <= scene.now)) {
            let (reason, message) = (refusal.reason.clone(), Some(refusal.message.clone()));
            return Some(Waiting { reason, message });
        }
        if pulls {
            let image = container.image.as_deref().unwrap_or_default();
            let cause = &refusal.message;
            return Some(Waiting {
                reason: "ImagePullBackOff".to_owned(),
                message: Some(format!("Back-off pulling image {image:?}: ErrImagePull: {cause}")),
            });
        }
    }
    let Some(run) = &seen.run else {
        let initialized = is_initialized(scene);
        let is_init = scene.init_containers().iter().any(|init| init.name == container.name);
        let behind = !scene.init_containers().is_empty() && (is_init || !initialized);
        let reason = if behind { "PodInitializing" } else { "ContainerCreating" };
        return Some(Waiting { reason: reason.to_owned(), message: None });
    };
    let (exit_code, finished_at) = run.exit()?;
    if seen.starting || scene.is_ending() || !restarts(policy_of(scene, container), exit_code) {
        return None;
    }
    let phase = scene.seen.before.phase.as_deref();
    if matches!(phase, Some("Failed" | "Succeeded")) {
        return None;
    }
    crash_until(seen, finished_at, scene.now)?;
    let delay = seen.crash.map(Backoff::text).unwrap_or_default();
    Some(Waiting {
        reason: "CrashLoopBackOff".to_owned(),
        message: Some(format!(
            "back-off {delay} restarting failed container={} pod={}",
            container.name,
            pod_text(scene)
        )),
    })
}

fn run_state(run: &Run) -> ContainerState {
    match &run.state {
        RunState::Running { started_at } => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(*started_at)) }),
            ..ContainerState::default()
        },
        RunState::Exited { started_at, finished_at, exit_code, reason, message } => {
            ContainerState {
                terminated: Some(ContainerStateTerminated {
                    container_id: Some(container_id(&run.id)),
                    exit_code: *exit_code,
                    started_at: Some(Time(started_at.unwrap_or(*finished_at))),
                    finished_at: Some(Time(*finished_at)),
                    reason: Some(reason.clone()),
                    message: Some(message.clone()).filter(|text| !text.is_empty()),
                    signal: None,
                }),
                ..ContainerState::default()
            }
        }
    }
}

/// The conditions that the kubelet owns, and after them those of others, unchanged.
fn reachable(holds: bool) -> Verdict {
    if holds {
        Verdict::yes()
    } else {
        Verdict::no("NotConfirmed", "not every node sends connections here yet")
    }
}

fn conditions(scene: &Scene<'_>, status: &PodStatus) -> Vec<PodCondition> {
    let verdict = |holds: bool| if holds { Verdict::yes() } else { Verdict::no("", "") };
    let phase = status.phase.as_deref().unwrap_or_default();
    let containers = containers_ready(scene, status, phase);
    let network = matches!(scene.seen.sandbox, Sandbox::Ready);
    let reachable = scene.seen.reachable.map(|holds| (guard::REACHABLE, reachable(holds)));
    let owned = [
        ("PodReadyToStartContainers", verdict(network)),
        ("Initialized", initialized(scene, status, phase)),
        ("Ready", ready(scene, &containers)),
        ("ContainersReady", containers),
        ("PodScheduled", Verdict::yes()),
    ];
    let generation = scene.pod.meta().generation;
    let mut conditions: Vec<PodCondition> = Vec::new();
    for (type_, verdict) in owned.into_iter().chain(reachable) {
        let holds = if verdict.holds { "True" } else { "False" };
        conditions.push(PodCondition {
            type_: type_.to_owned(),
            status: holds.to_owned(),
            reason: Some(verdict.reason).filter(|text| !text.is_empty()),
            message: Some(verdict.message).filter(|text| !text.is_empty()),
            last_transition_time: Some(transition(scene, type_, holds)),
            last_probe_time: None,
            observed_generation: generation,
        });
    }
    let foreign = scene.pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let is_owned = |condition: &&PodCondition| OWNED.contains(&condition.type_.as_str());
    conditions.extend(foreign.filter(|condition| !is_owned(condition)).cloned());
    conditions
}

/// Condition types that the kubelet writes.
pub const OWNED: [&str; 6] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    guard::REACHABLE,
];

/// When a condition took its present status: as before, unless the status changes now.
fn transition(scene: &Scene<'_>, type_: &str, holds: &str) -> Time {
    let known = [Some(&scene.seen.before), scene.pod.status.as_ref()];
    let mut known = known.into_iter().flatten().filter_map(|status| {
        status.conditions.iter().flatten().find(|condition| condition.type_ == type_)
    });
    known
        .next()
        .filter(|condition| condition.status == holds)
        .and_then(|condition| condition.last_transition_time.clone())
        .unwrap_or(Time(scene.now))
}

struct Verdict {
    holds: bool,
    reason: String,
    message: String,
}

impl Verdict {
    fn yes() -> Self {
        Self { holds: true, reason: String::new(), message: String::new() }
    }

    fn no(reason: &str, message: impl Into<String>) -> Self {
        Self { holds: false, reason: reason.to_owned(), message: message.into() }
    }
}

fn initialized(scene: &Scene<'_>, status: &PodStatus, phase: &str) -> Verdict {
    let ran = scene.spec.containers.iter().any(|main| scene.run(&main.name).is_some());
    if scene.init_containers().is_empty() || ran {
        return Verdict::yes();
    }
    if phase == "Succeeded" {
        return Verdict { holds: true, reason: "PodCompleted".to_owned(), message: String::new() };
    }
    let inits = status.init_container_statuses.iter().flatten();
    let waiting: Vec<&str> = scene
        .init_containers()
        .iter()
        .zip(inits)
        .filter(|(init, _)| !init_done(scene, init))
        .map(|(_, status)| status.name.as_str())
        .collect();
    if waiting.is_empty() {
        return Verdict::yes();
    }
    let text = format!("containers with incomplete status: [{}]", waiting.join(" "));
    Verdict::no("ContainersNotInitialized", text)
}

fn containers_ready(scene: &Scene<'_>, status: &PodStatus, phase: &str) -> Verdict {
    match phase {
        "Failed" => return Verdict::no("PodFailed", ""),
        "Succeeded" => return Verdict::no("PodCompleted", ""),
        _ => {}
    }
    let sidecars = scene
        .init_containers()
        .iter()
        .zip(status.init_container_statuses.iter().flatten())
        .filter(|(init, _)| is_sidecar(init))
        .map(|(_, status)| status);
    let all = sidecars.chain(status.container_statuses.iter().flatten());
    let unready: Vec<&str> =
        all.filter(|status| !status.ready).map(|status| status.name.as_str()).collect();
    if unready.is_empty() {
        return Verdict::yes();
    }
    let text = format!("containers with unready status: [{}]", unready.join(" "));
    Verdict::no("ContainersNotReady", text)
}

/// `Ready` needs ready containers and every readiness gate.
fn ready(scene: &Scene<'_>, containers: &Verdict) -> Verdict {
    if !containers.holds {
        return Verdict::no(&containers.reason, containers.message.clone());
    }
    let mut lacks = Vec::new();
    for gate in scene.spec.readiness_gates.iter().flatten() {
        let known = scene.pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let gate = &gate.condition_type;
        match known.into_iter().find(|condition| &condition.type_ == gate) {
            None => lacks.push(format!(
                "corresponding condition of pod readiness gate {gate:?} does not exist."
            )),
            Some(condition) if condition.status != "True" => lacks.push(format!(
                "the status of pod readiness gate {gate:?} is not \"True\", but {}",
                condition.status
            )),
            Some(_) => {}
        }
    }
    if lacks.is_empty() {
        Verdict::yes()
    } else {
        Verdict::no("ReadinessGatesNotReady", lacks.join(", "))
    }
}
