//! Begins what a plan asks for: each operation is a task that reports to its worker.

use std::sync::Arc;
use std::time::Duration;

use api::Kind;
use api::core::{Container, Pod};
use client::{DeleteOptions, EventKind};
use jiff::Timestamp;
use plan::pods::backoff::later;
use plan::pods::{Action, Sandbox};
use tokio::time::Instant;

use super::context::{PodContext, find, with_ips};
use super::handlers::{Target, hook};
use super::sandbox;
use super::start::{Refused, Start, start};
use super::worker::{Message, Worker};

/// How soon a failed removal is tried again.
const RETRY: Duration = Duration::from_secs(1);

impl Worker {
    /// Begins one step of a plan.
    pub(super) fn begin(&mut self, action: Action) {
        match action {
            Action::Prepare => self.begin_prepare(false),
            Action::Start { container, attempt, crash } => {
                let seen = self.seen.containers.entry(container.clone()).or_default();
                seen.starting = true;
                seen.crash = crash;
                self.begin_start(&container, attempt);
            }
            Action::Stop { container, grace_seconds, message } => {
                self.begin_stop(&container, grace_seconds, message);
            }
            Action::Close => self.begin_close(),
            Action::Remove => self.begin_remove(),
            Action::DeleteObject => self.begin_delete(),
        }
    }

    /// Makes the sandbox; `in_background` when the pod runs already and only must be made sure of.
    pub(super) fn begin_prepare(&mut self, in_background: bool) {
        if !in_background {
            self.seen.sandbox = Sandbox::Busy;
        }
        let (context, outbox) = (Arc::clone(&self.context), self.outbox.clone());
        let (pod, status) = (Arc::clone(&self.pod), self.seen.before.clone());
        tokio::spawn(async move {
            let result = Box::pin(sandbox::prepare(&context, &pod, &status)).await;
            if let Err(error) = &result {
                let (namespace, name) = (pod.namespace(), pod.name());
                tracing::warn!(component = "kubelet", namespace, name, error, "sandbox not ready");
            }
            let _ = outbox.send(Message::Prepared(result)).await;
        });
    }

    /// Writes the object volumes again, in the background.
    pub(super) fn refresh(&mut self) {
        if self.seen.sandbox != Sandbox::Ready {
            return;
        }
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
        let status = with_ips(&self.seen.before, &self.seen.ips);
        tokio::spawn(async move {
            if let Err(error) = Box::pin(sandbox::refresh(&context, &pod, &status)).await {
                let (namespace, name) = (pod.namespace(), pod.name());
                tracing::warn!(
                    component = "kubelet",
                    namespace,
                    name,
                    error,
                    "volumes not updated"
                );
            }
            // The worker looks again: the next renewal of a token may have moved.
            context.waker.wake();
        });
    }

    fn begin_start(&mut self, name: &str, attempt: i32) {
        let Some(container) = find(&self.pod, name).cloned() else { return };
        let what = Start {
            pod: Arc::clone(&self.pod),
            status: with_ips(&self.seen.before, &self.seen.ips),
            container,
            attempt: u32::try_from(attempt).unwrap_or(0),
        };
        let (context, outbox) = (Arc::clone(&self.context), self.outbox.clone());
        let (cancelled, container) = (self.starts.clone(), name.to_owned());
        tokio::spawn(async move {
            let result = tokio::select! {
                result = Box::pin(start(&context, &what)) => result,
                () = cancelled.cancelled() => Err(Refused {
                    reason: "ContainerCreating",
                    message: "the pod is being deleted".to_owned(),
                }),
            };
            let _ = outbox.send(Message::Started { container, result }).await;
        });
    }

    fn begin_stop(&mut self, name: &str, grace_seconds: i64, message: String) {
        let Some(container) = find(&self.pod, name).cloned() else { return };
        let Some(seen) = self.seen.containers.get_mut(name) else { return };
        let Some(run) = seen.run.as_ref().map(|run| run.id.clone()) else { return };
        let first = seen.stopping.is_none();
        seen.stopping = Some(later(Timestamp::now(), grace_seconds));
        if first {
            let kind = EventKind::Normal;
            self.context.event(&self.pod, Some(name), kind, "Killing", message);
        } else if let Some(task) = self.stops.remove(name) {
            task.abort();
        }
        let stop = Stop {
            context: Arc::clone(&self.context),
            pod: Arc::clone(&self.pod),
            ip: self.seen.ips.first().copied(),
            container,
            run,
            grace: Duration::from_secs(u64::try_from(grace_seconds).unwrap_or(1)),
            // A stop that was begun before has run its hook.
            with_hook: first,
        };
        let (outbox, container) = (self.outbox.clone(), name.to_owned());
        let task = tokio::spawn(async move {
            stop.run().await;
            let _ = outbox.send(Message::Stopped { container }).await;
        });
        self.stops.insert(name.to_owned(), task.abort_handle());
    }

    fn begin_close(&mut self) {
        self.seen.sandbox = Sandbox::Busy;
        let (context, outbox) = (Arc::clone(&self.context), self.outbox.clone());
        tokio::spawn(async move {
            while let Err(error) = sandbox::close(&context).await {
                tracing::warn!(component = "kubelet", uid = context.uid, error, "pod not closed");
                tokio::time::sleep(RETRY).await;
            }
            let _ = outbox.send(Message::Closed).await;
        });
    }

    fn begin_remove(&mut self) {
        self.seen.sandbox = Sandbox::Busy;
        let (context, outbox) = (Arc::clone(&self.context), self.outbox.clone());
        let logs = context.agent.paths.logs(&self.pod);
        tokio::spawn(async move {
            while let Err(error) = sandbox::remove(&context, &logs).await {
                tracing::warn!(component = "kubelet", uid = context.uid, error, "pod not removed");
                tokio::time::sleep(RETRY).await;
            }
            let _ = outbox.send(Message::Removed).await;
        });
    }

    /// Deletes the object once its last status is written.
    fn begin_delete(&mut self) {
        if std::mem::replace(&mut self.delete_asked, true) {
            return;
        }
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
        let flushed = self.reporter.flushed();
        tokio::spawn(async move {
            flushed.await;
            let options =
                DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::uid(pod.uid()) };
            let client = &context.agent.client;
            loop {
                match client.delete::<Pod>(pod.namespace(), pod.name(), &options).await {
                    Err(error) if !error.is_conflict() => {
                        complain("pod not deleted", &error);
                        tokio::time::sleep(RETRY).await;
                    }
                    _ => return,
                }
            }
        });
    }
}

/// One container that stops.
struct Stop {
    context: Arc<PodContext>,
    pod: Arc<Pod>,
    ip: Option<std::net::IpAddr>,
    container: Container,
    run: String,
    grace: Duration,
    with_hook: bool,
}

impl Stop {
    /// Guard and hook, signal, wait, kill: all within the grace period.
    async fn run(&self) {
        let end = Instant::now() + self.grace;
        tokio::join!(self.guard(end), self.hook(end));
        // Upstream grants two seconds even when the hook used up everything.
        let rest = end.saturating_duration_since(Instant::now());
        let has_hook = self.with_hook && self.container.lifecycle.is_some();
        let rest = if has_hook { rest.max(Duration::from_secs(2)) } else { rest };
        let runtime = self.context.agent.runtime();
        if let Err(error) = runtime.stop_container(&self.run, rest).await {
            complain("container not stopped", &error);
            tokio::time::sleep(RETRY).await;
        }
    }

    /// A container that stops because its pod goes does so when nobody connects to it any more.
    async fn guard(&self, end: Instant) {
        if self.pod.is_deleting() {
            let _ = tokio::time::timeout_at(end, self.context.leave(&self.pod, self.grace)).await;
        }
    }

    async fn hook(&self, end: Instant) {
        let lifecycle = self.container.lifecycle.as_ref().filter(|_| self.with_hook);
        let runtime = self.context.agent.runtime();
        if let Some(handler) = lifecycle.and_then(|lifecycle| lifecycle.pre_stop.as_ref()) {
            let target = Target { runtime, container: &self.container, id: &self.run, ip: self.ip };
            let outcome = tokio::time::timeout_at(end, hook(&target, handler)).await;
            if let Ok(Err(error)) = outcome {
                let name = Some(self.container.name.as_str());
                let message = format!("PreStopHook failed: {error}");
                let kind = EventKind::Warning;
                self.context.event(&self.pod, name, kind, "FailedPreStopHook", message);
            }
        }
    }
}

fn complain(what: &str, error: &(dyn std::error::Error + 'static)) {
    tracing::warn!(component = "kubelet", error, "{what}");
}
