//! Which container starts, restarts or stops next. Upstream: `computePodActions`, `computeInitContainerActions`,
//! `killContainersWithSyncResult`.

use api::core::Container;
use jiff::Timestamp;

use super::backoff::{Backoff, later};
use super::{Action, ContainerSeen, Draft, Notice, Run, Scene};

/// How long a failed pull shows as `ErrImagePull` before it shows as `ImagePullBackOff`, in seconds.
pub(super) const ERROR_SHOWN_SECONDS: i64 = 2;

/// An init container that runs for the life of the pod.
#[must_use]
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The restart policy of a container: its own, or the pod's.
#[must_use]
pub fn restart_policy<'a>(container: &'a Container, pod: &'a api::core::PodSpec) -> &'a str {
    container.restart_policy.as_deref().or(pod.restart_policy.as_deref()).unwrap_or("Always")
}

/// Whether a run that ended with `exit_code` is followed by another.
pub(super) fn restarts(policy: &str, exit_code: i32) -> bool {
    match policy {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// Whether a container has started as far as its followers are concerned: it runs and its startup probe passed.
pub(super) fn is_started(container: &Container, seen: Option<&ContainerSeen>) -> bool {
    let Some(seen) = seen else { return false };
    let running = seen.run.as_ref().is_some_and(Run::is_running);
    running && !seen.starting && (container.startup_probe.is_none() || seen.startup == Some(true))
}

/// Whether all init containers have done their part; true for good once a main container ran.
pub(super) fn is_initialized(scene: &Scene<'_>) -> bool {
    let main_ran = scene.spec.containers.iter().any(|main| scene.run(&main.name).is_some());
    main_ran || scene.init_containers().iter().all(|init| init_done(scene, init))
}

pub(super) fn init_done(scene: &Scene<'_>, init: &Container) -> bool {
    if is_sidecar(init) {
        return is_started(init, scene.container(&init.name));
    }
    scene.run(&init.name).and_then(Run::exit).is_some_and(|(code, _)| code == 0)
}

/// Starts what may start and restarts what must; at most one container is being started at any time.
pub(super) fn advance(scene: &Scene<'_>, draft: &mut Draft) {
    for container in scene.all_containers() {
        check_health(scene, draft, container);
    }
    if scene.seen.containers.values().any(|seen| seen.starting) {
        return;
    }
    let initialized = is_initialized(scene);
    for init in scene.init_containers() {
        let pending = if initialized { is_sidecar(init) } else { !init_done(scene, init) };
        if pending && consider(scene, draft, init) {
            return;
        }
        if !initialized && !init_done(scene, init) {
            return;
        }
    }
    for main in &scene.spec.containers {
        if consider(scene, draft, main) {
            return;
        }
    }
}

/// Stops a running container whose liveness or startup probe failed.
fn check_health(scene: &Scene<'_>, draft: &mut Draft, container: &Container) {
    let Some(seen) = scene.container(&container.name) else { return };
    let running = seen.run.as_ref().is_some_and(Run::is_running);
    if !running || seen.stopping.is_some() {
        return;
    }
    let (probe, failed) = match (seen.startup, seen.liveness) {
        (Some(false), _) => (&container.startup_probe, "startup"),
        (_, Some(false)) => (&container.liveness_probe, "liveness"),
        _ => return,
    };
    let own = probe.as_ref().and_then(|probe| probe.termination_grace_period_seconds);
    draft.actions.push(Action::Stop {
        container: container.name.clone(),
        grace_seconds: own.or(scene.spec.termination_grace_period_seconds).unwrap_or(30).max(1),
        message: format!("Container {} failed {failed} probe, will be restarted", container.name),
    });
}

/// Starts a container if it must run and may now; returns whether it was started.
fn consider(scene: &Scene<'_>, draft: &mut Draft, container: &Container) -> bool {
    let fresh = ContainerSeen::default();
    let seen = scene.container(&container.name).unwrap_or(&fresh);
    if seen.run.as_ref().is_some_and(Run::is_running) || seen.stopping.is_some() {
        return false;
    }
    if let Some(refusal) = &seen.refusal {
        let turns = later(refusal.at, ERROR_SHOWN_SECONDS);
        if scene.now < turns {
            draft.wake_at(turns);
        }
        if refusal.retry_at > scene.now {
            image_notice(scene, draft, container);
            draft.wake_at(refusal.retry_at);
            return false;
        }
    }
    let Some(run) = &seen.run else {
        draft.actions.push(Action::Start {
            container: container.name.clone(),
            attempt: 0,
            crash: seen.crash,
        });
        return true;
    };
    let Some((exit_code, finished_at)) = run.exit() else { return false };
    if !restarts(policy_of(scene, container), exit_code) {
        return false;
    }
    if let Some(until) = crash_until(seen, finished_at, scene.now) {
        draft.wake_at(until);
        draft.notices.insert(Notice {
            container: container.name.clone(),
            warning: true,
            reason: "BackOff",
            message: format!(
                "Back-off restarting failed container {} in pod {}",
                container.name,
                pod_text(scene)
            ),
            round: i64::from(run.attempt),
        });
        return false;
    }
    draft.actions.push(Action::Start {
        container: container.name.clone(),
        attempt: run.attempt + 1,
        crash: Some(Backoff::next(seen.crash, finished_at, scene.now)),
    });
    true
}

/// Init containers that are no sidecars retry until they succeed, unless the pod never restarts.
pub(super) fn policy_of<'a>(scene: &Scene<'a>, container: &'a Container) -> &'a str {
    let is_init = scene.init_containers().iter().any(|init| init.name == container.name);
    match restart_policy(container, scene.spec) {
        "Always" if is_init && !is_sidecar(container) => "OnFailure",
        policy => policy,
    }
}

/// Until when a crashed container waits, if it still waits.
pub(super) fn crash_until(
    seen: &ContainerSeen,
    finished_at: Timestamp,
    now: Timestamp,
) -> Option<Timestamp> {
    Backoff::until(seen.crash, finished_at).filter(|until| *until > now)
}

/// The event of a pull that waits; one for each round of the back-off.
fn image_notice(scene: &Scene<'_>, draft: &mut Draft, container: &Container) {
    let Some(seen) = scene.container(&container.name) else { return };
    let Some(refusal) = seen.refusal.as_ref().filter(|refusal| refusal.reason == "ErrImagePull")
    else {
        return;
    };
    if scene.now < later(refusal.at, ERROR_SHOWN_SECONDS) {
        return;
    }
    let image = container.image.as_deref().unwrap_or_default();
    draft.notices.insert(Notice {
        container: container.name.clone(),
        warning: false,
        reason: "BackOff",
        message: format!("Back-off pulling image {image:?}"),
        round: refusal.at.as_second(),
    });
    draft.notices.insert(Notice {
        container: container.name.clone(),
        warning: true,
        reason: "Failed",
        message: "Error: ImagePullBackOff".to_owned(),
        round: refusal.at.as_second(),
    });
}

/// `name_namespace(uid)`, as upstream formats a pod in messages.
pub(super) fn pod_text(scene: &Scene<'_>) -> String {
    use api::Kind;
    format!("{}_{}({})", scene.pod.name(), scene.pod.namespace(), scene.pod.uid())
}

/// Stops every container that runs; returns whether any does. Sidecars run until all main containers are over.
pub(super) fn stop_all(scene: &Scene<'_>, draft: &mut Draft) -> bool {
    let busy = |container: &&Container| {
        scene.container(&container.name).is_some_and(|seen| {
            seen.starting
                || seen.stopping.is_some()
                || seen.run.as_ref().is_some_and(Run::is_running)
        })
    };
    let (sidecars, plain): (Vec<_>, Vec<_>) = scene
        .all_containers()
        .filter(busy)
        .partition(|container| is_sidecar(container) && is_init(scene, container));
    for container in &plain {
        stop(scene, draft, container);
    }
    if plain.is_empty()
        && let Some(last) = sidecars.last()
    {
        stop(scene, draft, last);
    }
    !plain.is_empty() || !sidecars.is_empty()
}

fn is_init(scene: &Scene<'_>, container: &Container) -> bool {
    scene.init_containers().iter().any(|init| init.name == container.name)
}

/// Begins to stop a container, or shortens the grace of a stop that is under way.
fn stop(scene: &Scene<'_>, draft: &mut Draft, container: &Container) {
    let Some(seen) = scene.container(&container.name) else { return };
    if !seen.run.as_ref().is_some_and(Run::is_running) {
        return;
    }
    let grace_seconds = scene.grace_seconds();
    let deadline = later(scene.now, grace_seconds);
    if seen.stopping.is_some_and(|at| at <= deadline) {
        return;
    }
    draft.actions.push(Action::Stop {
        container: container.name.clone(),
        grace_seconds,
        message: format!("Stopping container {}", container.name),
    });
}
