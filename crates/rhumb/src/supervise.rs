//! Keeps the processes of a cluster on this machine as its file wants them: snapshot, plan, apply.
//!
//! The processes do not depend on it: when it is killed they go on, and the next one finds them by their files.

use std::collections::BTreeMap;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::cli::Which;
use crate::cluster::{Cluster, LabNode, NodeState};
use crate::processes::{self, Running};
use crate::{lab, telemetry};

/// How often a look is taken when nothing calls: a process that another supervisor started tells nobody that it ended.
const LOOK: Duration = Duration::from_secs(5);
/// First wait before a process that ended is started again; doubled up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest wait before a process is started again.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// The processes that a cluster's file wants, by name: the server and the agents of running nodes.
fn wanted(cluster: &Cluster) -> BTreeMap<String, Option<LabNode>> {
    let running = cluster.nodes.iter().filter(|node| node.state == NodeState::Running);
    let agents = running.map(|node| (node.name.clone(), Some(node.clone())));
    std::iter::once(("server".to_owned(), None)).chain(agents).collect()
}

/// A process as the supervisor knows it.
struct Entry {
    running: Running,
    /// Present when this supervisor started it, and must reap it.
    child: Option<Child>,
    started: Instant,
}

#[derive(Default)]
struct Supervisor {
    entries: BTreeMap<String, Entry>,
    /// When a process that ended may start again, and how long the wait after that would be.
    waits: BTreeMap<String, (Instant, Duration)>,
}

impl Supervisor {
    /// One round: stops what is not wanted, starts what is missing. Returns the time to the next start.
    async fn round(&mut self, cluster: &Cluster) -> Duration {
        let wanted = wanted(cluster);
        self.reap();
        let unwanted: Vec<String> =
            self.entries.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        for name in unwanted {
            self.stop(&name).await;
        }
        let mut next = LOOK;
        for (name, node) in &wanted {
            // One after the other: Services are carried meanwhile, but each node's DNS is its agent.
            if let Some(node) = node
                && self.is_outdated(cluster, node)
            {
                tracing::info!(
                    component = "supervisor",
                    process = name,
                    "starts anew with other flags"
                );
                self.stop(name).await;
            }
            if !self.entries.contains_key(name) {
                next = next.min(self.start(cluster, name, node.as_ref()).await);
            }
        }
        next
    }

    /// Whether an agent runs with other flags than the cluster's file says.
    fn is_outdated(&self, cluster: &Cluster, node: &LabNode) -> bool {
        let entry = self.entries.get(&node.name);
        entry.is_some_and(|entry| {
            processes::agent_command(cluster, node)
                .is_ok_and(|command| entry.running.is_of(&command) == Some(false))
        })
    }

    async fn stop(&mut self, name: &str) {
        let Some(mut entry) = self.entries.remove(name) else { return };
        entry.running.signal(Signal::SIGTERM);
        let reaped = tokio::task::spawn_blocking(move || {
            entry.running.stop();
            entry.child.as_mut().map(Child::wait)
        });
        if let Err(error) = reaped.await {
            tracing::warn!(component = "supervisor", process = name, %error, "a process was not stopped");
        }
    }

    /// Forgets processes that have ended; one that lived long is started again at once.
    fn reap(&mut self) {
        let now = Instant::now();
        let ended = |entry: &mut Entry| {
            let exited =
                entry.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))));
            exited || !entry.running.is_alive()
        };
        let names: Vec<String> = self
            .entries
            .iter_mut()
            .filter_map(|(name, entry)| ended(entry).then(|| name.clone()))
            .collect();
        for name in names {
            let Some(entry) = self.entries.remove(&name) else { continue };
            tracing::warn!(
                component = "supervisor",
                process = name,
                pid = entry.running.pid,
                "a process has ended"
            );
            let calm = now.duration_since(entry.started) > BACKOFF_MAX;
            let wait = self
                .waits
                .get(&name)
                .map_or(BACKOFF_MIN, |(_, wait)| if calm { BACKOFF_MIN } else { *wait });
            self.waits.insert(name, (now + wait, (wait * 2).min(BACKOFF_MAX)));
        }
    }

    /// Starts a process, or adopts the one that runs already. Returns the time until it should be tried again.
    async fn start(&mut self, cluster: &Cluster, name: &str, node: Option<&LabNode>) -> Duration {
        let now = Instant::now();
        if let Some((at, _)) = self.waits.get(name)
            && *at > now
        {
            return *at - now;
        }
        if let Some(running) = processes::find(cluster, name) {
            self.entries.insert(name.to_owned(), Entry { running, child: None, started: now });
            return LOOK;
        }
        match launch(cluster, name, node).await {
            Ok((running, child)) => {
                self.entries
                    .insert(name.to_owned(), Entry { running, child: Some(child), started: now });
                LOOK
            }
            Err(error) => {
                tracing::warn!(
                    component = "supervisor",
                    process = name,
                    error = format!("{error:#}"),
                    "a process was not started"
                );
                self.waits.insert(name.to_owned(), (now + BACKOFF_MAX, BACKOFF_MAX));
                BACKOFF_MAX
            }
        }
    }
}

async fn launch(cluster: &Cluster, name: &str, node: Option<&LabNode>) -> Result<(Running, Child)> {
    let command = match node {
        None => processes::server_command(cluster)?,
        Some(node) => {
            lab::build_node(cluster, node).await?;
            crate::kubeconfig::write_node(cluster, node)?;
            processes::agent_command(cluster, node)?
        }
    };
    let child = processes::start(cluster, name, command)?;
    let running = Running::of(i32::try_from(child.id())?).context("it ended at once")?;
    Ok((running, child))
}

/// `rhumb supervise`: until SIGTERM, which stops the processes too; SIGHUP says that the cluster's file has changed.
pub(crate) fn run(which: &Which) -> Result<()> {
    telemetry::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise(which))
}

async fn supervise(which: &Which) -> Result<()> {
    let mut cluster = Cluster::existing(&which.data_dir, &which.name)?;
    processes::remember(&cluster, "supervisor", i32::try_from(std::process::id())?)?;
    let mut changed = signal(SignalKind::hangup())?;
    let mut ended = signal(SignalKind::child())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut supervisor = Supervisor::default();
    loop {
        let wait = supervisor.round(&cluster).await;
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => {}
            _ = changed.recv() => cluster = Cluster::existing(&which.data_dir, &which.name)?,
            _ = ended.recv() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
    stop_all(supervisor).await
}

/// Agents first, so that the last word of each still reaches the server.
async fn stop_all(mut supervisor: Supervisor) -> Result<()> {
    let server = supervisor.entries.remove("server");
    let stop = |mut entry: Entry| {
        tokio::task::spawn_blocking(move || {
            entry.running.stop();
            entry.child.as_mut().map(Child::wait)
        })
    };
    let agents: Vec<_> = supervisor.entries.into_values().map(stop).collect();
    for agent in agents {
        let _ = agent.await?;
    }
    if let Some(server) = server {
        let _ = stop(server).await?;
    }
    Ok(())
}
