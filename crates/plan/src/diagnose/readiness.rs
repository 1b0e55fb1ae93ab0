//! Why one pod is not ready, in the words of its own status and of the last answer of its probe.

use api::core::{Container, ContainerStatus, Event, Pod};
use api::{Kind, Name, Objects};

use crate::podfacts;

/// Why a pod is not ready.
pub(super) struct Cause {
    /// The same for every pod that has the same trouble: no name or address of the pod in it.
    pub(super) words: String,
    /// Whether it is likely to pass by itself.
    pub(super) passing: bool,
}

fn stuck(words: impl Into<String>) -> Cause {
    Cause { words: words.into(), passing: false }
}

fn passing(words: impl Into<String>) -> Cause {
    Cause { words: words.into(), passing: true }
}

/// Why `pod` is not ready.
pub(super) fn cause(pod: &Pod, events: &Objects<Event>) -> Cause {
    if podfacts::node_name(pod).is_empty() {
        return unscheduled(pod);
    }
    let status = pod.status.as_ref();
    let inits = status.and_then(|status| status.init_container_statuses.as_ref());
    let mains = status.and_then(|status| status.container_statuses.as_ref());
    let (inits, mains) = (inits.into_iter().flatten(), mains.into_iter().flatten());
    let init = inits.filter_map(|one| init_cause(pod, one)).next();
    init.or_else(|| {
        mains.filter(|one| !one.ready).filter_map(|one| container(pod, one, events)).next()
    })
    .unwrap_or_else(|| from_conditions(pod))
}

fn unscheduled(pod: &Pod) -> Cause {
    let condition = podfacts::condition(pod, "PodScheduled");
    match condition.filter(|one| one.status == "False") {
        Some(why) => {
            let reason = why.reason.as_deref().unwrap_or("Pending");
            let message = why.message.as_deref().map(|message| format!(": {message}"));
            stuck(format!("{reason}{}", message.unwrap_or_default()))
        }
        None => passing("not scheduled yet"),
    }
}

/// An init container that does not come to its end.
fn init_cause(pod: &Pod, status: &ContainerStatus) -> Option<Cause> {
    let ended = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    let sidecar = spec_of(pod, &status.name)
        .is_some_and(|one| one.restart_policy.as_deref() == Some("Always"));
    if ended.is_some_and(|ended| ended.exit_code == 0)
        || (sidecar && (status.ready || status.started == Some(true)))
    {
        return None;
    }
    let state = status.state.as_ref()?;
    if state.running.is_some() {
        return Some(passing(format!("init container {} is still running", status.name)));
    }
    halted(pod, status).map(|cause| Cause { words: format!("init {}", cause.words), ..cause })
}

/// A container that is not ready.
fn container(pod: &Pod, status: &ContainerStatus, events: &Objects<Event>) -> Option<Cause> {
    if let Some(cause) = halted(pod, status) {
        return Some(cause);
    }
    status.state.as_ref()?.running.as_ref()?;
    let spec = spec_of(pod, &status.name);
    let startup = spec.is_some_and(|one| one.startup_probe.is_some());
    let kind = if startup && status.started != Some(true) { "Startup" } else { "Readiness" };
    let name = &status.name;
    let probe = kind.to_lowercase();
    if let Some(answer) = answer(pod, name, kind, events) {
        return Some(stuck(format!("{probe} probe of {name} fails with {answer}")));
    }
    let probed = startup || spec.is_some_and(|one| one.readiness_probe.is_some());
    probed.then(|| stuck(format!("{probe} probe of {name} has not succeeded")))
}

/// A container that does not run.
fn halted(pod: &Pod, status: &ContainerStatus) -> Option<Cause> {
    let name = &status.name;
    let state = status.state.as_ref()?;
    if let Some(ended) = &state.terminated {
        let reason = ended.reason.as_deref().unwrap_or("Error");
        return Some(stuck(format!(
            "container {name} has ended with exit code {} ({reason})",
            ended.exit_code
        )));
    }
    let waiting = state.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().unwrap_or("ContainerCreating");
    Some(match reason {
        "ContainerCreating" | "PodInitializing" => {
            passing(format!("container {name} is being created"))
        }
        "CrashLoopBackOff" => {
            let last = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
            let last = last.map(|last| format!(", last exit code {}", last.exit_code));
            stuck(format!("container {name} is in CrashLoopBackOff{}", last.unwrap_or_default()))
        }
        "ImagePullBackOff" | "ErrImagePull" | "InvalidImageName" | "ErrImageNeverPull" => {
            let image = spec_of(pod, name).and_then(|one| one.image.as_deref()).unwrap_or("?");
            stuck(format!("container {name} has no image {image} ({reason})"))
        }
        other => {
            let message = waiting.message.as_deref().map(|message| format!(": {message}"));
            stuck(format!("container {name} waits: {other}{}", message.unwrap_or_default()))
        }
    })
}

/// The containers say nothing: the pod's own conditions, readiness gates among them.
fn from_conditions(pod: &Pod) -> Cause {
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let gate = gates.map(|gate| gate.condition_type.as_str()).find(|gate| {
        podfacts::condition(pod, gate).is_none_or(|condition| condition.status != "True")
    });
    let unready = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let containers_ready = unready.clone().next().is_some() && unready.clone().all(|one| one.ready);
    if let (Some(gate), true) = (gate, containers_ready) {
        return stuck(format!("readiness gate {gate} is not true"));
    }
    let Some(ready) = podfacts::condition(pod, "Ready").filter(|ready| ready.status != "True")
    else {
        return passing("not started yet");
    };
    let said = [ready.reason.as_deref(), ready.message.as_deref()];
    let said: Vec<&str> = said.into_iter().flatten().filter(|text| !text.is_empty()).collect();
    if said.is_empty() { passing("not ready yet") } else { stuck(said.join(": ")) }
}

fn spec_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    let inits = spec.init_containers.iter().flatten();
    spec.containers.iter().chain(inits).find(|container| container.name == name)
}

/// The last failure of a probe, from the pod's events, shortened to what is the same for all pods: `503`,
/// `connection refused`.
fn answer(pod: &Pod, container: &str, kind: &str, events: &Objects<Event>) -> Option<String> {
    // Events are named by their object, a dot and a stamp.
    let first = Name::new(pod.namespace(), &format!("{}.", pod.name()));
    let (prefix, path) =
        (format!("{kind} probe failed: "), format!("spec.containers{{{container}}}"));
    let own = events
        .range(first.clone()..)
        .take_while(|(name, _)| {
            name.namespace == first.namespace && name.name.starts_with(&*first.name)
        })
        .map(|(_, event)| event);
    let failures = own.filter(|event| {
        let about = &event.involved_object;
        about.uid.as_deref() == Some(pod.uid())
            && about.field_path.as_deref().is_none_or(|found| found == path)
            && event.message.as_deref().is_some_and(|message| message.starts_with(&prefix))
    });
    let last = failures.max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0))?;
    let text = last.message.as_deref()?.strip_prefix(&prefix)?.trim();
    let tail = text.rsplit(": ").next().unwrap_or(text).trim();
    let short: String = tail.chars().take(100).collect();
    Some(short)
}
