//! Starts one run of a container: image, environment, mounts, create, start, postStart.
//! Upstream: `startContainer` of `pkg/kubelet/kuberuntime`.

use std::sync::Arc;
use std::time::Duration;

use api::Kind;
use api::core::{Container, Pod, PodStatus};
use client::EventKind;
use plan::pods::env::{Subject, container_env};
use runtime::ContainerState;

use super::context::PodContext;
use super::handlers::{Target, hook};
use super::{images, spec};

/// Why a container did not start: reason and message of its `waiting` state.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// What is started.
pub(super) struct Start {
    pub(super) pod: Arc<Pod>,
    /// The status that the downward API shows.
    pub(super) status: PodStatus,
    pub(super) container: Container,
    pub(super) attempt: u32,
}

/// Starts the container; the events are written on the way.
pub(super) async fn start(context: &PodContext, start: &Start) -> Result<(), Refused> {
    let Start { pod, status, container, attempt } = start;
    let runtime = context.agent.runtime();
    let event = |kind, reason: &str, message: String| {
        context.event(pod, Some(&container.name), kind, reason, message);
    };
    let refuse = |reason: &'static str, message: String| {
        event(EventKind::Warning, "Failed", format!("Error: {message}"));
        Refused { reason, message }
    };
    let sources = context.sources(pod).await;
    let image = images::ensure(context, pod, container, &sources).await?;
    let config = |message| refuse("CreateContainerConfigError", message);
    let env = container_env(Subject { pod, status }, container, &sources).map_err(config)?;
    let mounted = context.mounted.lock().clone();
    let parts = spec::Parts {
        pod,
        paths: &context.agent.paths,
        mounted: &mounted,
        env,
        image: &image,
        memory_bytes: context.agent.machine.memory_bytes,
    };
    let spec = spec::container(parts, container, *attempt).map_err(config)?;
    let id = runtime
        .create_container(spec)
        .await
        .map_err(|error| refuse("CreateContainerError", error.to_string()))?;
    event(EventKind::Normal, "Created", format!("Created container: {}", container.name));
    if let Err(error) = runtime.start_container(&id).await {
        let message = error.to_string();
        if runtime.container(&id).is_some_and(|seen| seen.state == ContainerState::Created) {
            let _ = runtime.remove_container(&id).await;
        }
        return Err(refuse("RunContainerError", message));
    }
    event(EventKind::Normal, "Started", format!("Started container {}", container.name));
    sweep(context, pod, &container.name, *attempt).await;
    post_start(context, start, &id).await
}

/// Runs the postStart hook; a container whose hook fails is stopped.
async fn post_start(context: &PodContext, start: &Start, id: &str) -> Result<(), Refused> {
    let Start { pod, status, container, .. } = start;
    let lifecycle = container.lifecycle.as_ref();
    let Some(handler) = lifecycle.and_then(|lifecycle| lifecycle.post_start.as_ref()) else {
        return Ok(());
    };
    let runtime = context.agent.runtime();
    let ip = status.pod_ip.as_deref().and_then(|ip| ip.parse().ok());
    let target = Target { runtime, container, id, ip };
    let Err(error) = hook(&target, handler).await else { return Ok(()) };
    let message = format!(
        "PostStartHook failed: lifecycle hook for Container {:?} in Pod \"{}_{}({})\" failed - error: {error}",
        container.name,
        pod.name(),
        pod.namespace(),
        pod.uid()
    );
    let name = Some(container.name.as_str());
    context.event(pod, name, EventKind::Warning, "FailedPostStartHook", message.clone());
    context.event(pod, name, EventKind::Normal, "Killing", "FailedPostStartHook".to_owned());
    let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let grace = u64::try_from(grace.unwrap_or(30)).unwrap_or(30);
    let _ = runtime.stop_container(id, Duration::from_secs(grace)).await;
    Err(Refused { reason: "PostStartHookError", message })
}

/// Removes runs older than the one before this, with their logs.
async fn sweep(context: &PodContext, pod: &Pod, container: &str, attempt: u32) {
    let runtime = context.agent.runtime();
    let Some(seen) = runtime.pod(&context.uid) else { return };
    for run in seen.containers {
        if run.name != container || run.attempt + 1 >= attempt {
            continue;
        }
        let _ = runtime.remove_container(&run.id).await;
        let _ = std::fs::remove_file(context.agent.paths.log(pod, container, run.attempt));
        let message = context.agent.paths.termination(&context.uid, container, run.attempt);
        let _ = std::fs::remove_file(message);
    }
}
