//! The task of one probe of one run: waits, checks, counts, reports. Upstream: `pkg/kubelet/prober/worker.go`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::core::{Container, Pod, Probe};
use client::EventKind;
use plan::pods::ProbeKey;
use plan::pods::probe::{ProbeKind, Tally};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::context::PodContext;
use super::handlers::{self, Target};
use super::worker::Message;

/// First wait between the quick tries before a container's first success; doubled up to [`QUICK_MAX`].
const QUICK_MIN: Duration = Duration::from_millis(20);
/// Longest wait between quick tries.
const QUICK_MAX: Duration = Duration::from_secs(1);

/// One probe of one run.
pub(super) struct Prober {
    pub(super) context: Arc<PodContext>,
    pub(super) pod: Arc<Pod>,
    pub(super) container: Container,
    pub(super) key: ProbeKey,
    pub(super) ip: Option<IpAddr>,
    /// How long the container has been running already.
    pub(super) age: Duration,
    pub(super) outbox: mpsc::Sender<Message>,
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default))
}

impl Prober {
    /// Probes until the task is aborted.
    pub(super) async fn run(self) {
        let Some(probe) = self.key.kind.of(&self.container).cloned() else { return };
        let delay = seconds(probe.initial_delay_seconds, 0).saturating_sub(self.age);
        tokio::time::sleep(delay).await;
        let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
        let mut tally = Tally::default();
        let mut next = Instant::now() + period;
        if self.key.kind != ProbeKind::Liveness && self.warm_up(&probe, next).await {
            self.passed(&probe, &mut tally).await;
        } else if self.key.kind == ProbeKind::Liveness {
            next = Instant::now();
        }
        loop {
            tokio::time::sleep_until(next).await;
            next = Instant::now() + period;
            match handlers::probe(&self.target(), &probe).await {
                Ok(()) => self.passed(&probe, &mut tally).await,
                Err(error) => self.failed(&probe, &mut tally, &error).await,
            }
        }
    }

    /// Quick tries during the first period, so that a fast server is ready at once; their failures do not count.
    async fn warm_up(&self, probe: &Probe, until: Instant) -> bool {
        let mut wait = QUICK_MIN;
        loop {
            if handlers::probe(&self.target(), probe).await.is_ok() {
                return true;
            }
            if Instant::now() + wait >= until {
                return false;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(QUICK_MAX);
        }
    }

    fn target(&self) -> Target<'_> {
        let runtime = self.context.agent.runtime();
        Target { runtime, container: &self.container, id: &self.key.run, ip: self.ip }
    }

    async fn passed(&self, probe: &Probe, tally: &mut Tally) {
        if tally.count(probe, true).is_some() {
            self.send(true).await;
        }
    }

    async fn failed(&self, probe: &Probe, tally: &mut Tally, error: &str) {
        let message = format!("{} probe failed: {error}", self.key.kind.title());
        let name = Some(self.container.name.as_str());
        self.context.event(&self.pod, name, EventKind::Warning, "Unhealthy", message);
        if tally.count(probe, false).is_some() {
            self.send(false).await;
        }
    }

    async fn send(&self, passed: bool) {
        let _ = self.outbox.send(Message::Probed { key: self.key.clone(), passed }).await;
    }
}
