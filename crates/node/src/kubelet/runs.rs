//! From what the runtime reports to what the plan looks at.

use std::collections::BTreeMap;
use std::fs;

use api::Kind;
use api::core::{Container, Pod};
use plan::pods::{ContainerSeen, Run, RunState, Seen};
use runtime::{ContainerState, ContainerStatus};

use super::context::find;
use super::handle::RunEntry;
use super::paths::Paths;

/// Upstream's bounds on termination messages: bytes of the file, and of the log when that stands in.
const MESSAGE_BYTES_MAX: usize = 4096;
const LOG_BYTES_MAX: usize = 2048;
const LOG_LINES_MAX: usize = 80;

/// Termination messages by run, each read once.
pub(super) type Messages = BTreeMap<String, String>;

/// Newest and previous run of every container, as log readers need them.
pub(super) type Entries = (BTreeMap<String, RunEntry>, BTreeMap<String, RunEntry>);

/// Brings `seen` up to date with the runtime's report of the pod's containers.
pub(super) fn observe(
    pod: &Pod,
    report: &[ContainerStatus],
    paths: &Paths,
    messages: &mut Messages,
    seen: &mut Seen,
) -> Entries {
    let (mut current, mut previous) = Entries::default();
    let mut by_name: BTreeMap<&str, Vec<&ContainerStatus>> = BTreeMap::new();
    for status in report.iter().filter(|status| status.state != ContainerState::Created) {
        by_name.entry(&status.name).or_default().push(status);
    }
    for (name, mut runs) in by_name {
        let Some(container) = find(pod, name) else { continue };
        runs.sort_by_key(|run| std::cmp::Reverse(run.attempt));
        let entry = seen.containers.entry(name.to_owned()).or_default();
        if entry.starting {
            // A run whose start is not complete is not shown yet.
            let known = entry.run.as_ref().map_or(-1, |run| i64::from(run.attempt));
            runs.retain(|run| i64::from(run.attempt) <= known);
        }
        let mut runs = runs.into_iter();
        let mut convert = |status: &ContainerStatus| {
            let message = match status.state {
                ContainerState::Exited => messages
                    .entry(status.id.clone())
                    .or_insert_with(|| termination_message(pod, container, status, paths))
                    .clone(),
                _ => String::new(),
            };
            (run(status, message), log_entry(status))
        };
        if let Some((run, log)) = runs.next().map(&mut convert) {
            adopt(entry, run);
            current.insert(name.to_owned(), log);
        }
        if let Some((run, log)) = runs.next().map(&mut convert) {
            entry.previous = Some(run);
            previous.insert(name.to_owned(), log);
        }
    }
    (current, previous)
}

fn log_entry(status: &ContainerStatus) -> RunEntry {
    RunEntry {
        id: status.id.clone(),
        running: status.state == ContainerState::Running,
        log_path: status.log_path.clone().unwrap_or_default(),
    }
}

/// Takes over the newest run; the verdicts of probes belong to one run.
fn adopt(entry: &mut ContainerSeen, run: Run) {
    let same = entry.run.as_ref().is_some_and(|known| known.id == run.id);
    if !same {
        if entry.run.is_some() {
            (entry.startup, entry.readiness, entry.liveness) = (None, None, None);
        }
        entry.stopping = None;
    }
    if !run.is_running() {
        entry.stopping = None;
        entry.readiness = None;
    }
    entry.run = Some(run);
}

fn run(status: &ContainerStatus, message: String) -> Run {
    let state = if status.state == ContainerState::Running {
        RunState::Running {
            started_at: status.started_at.or(status.created_at).unwrap_or_default(),
        }
    } else {
        let fallback = if status.exit_code == 0 { "Completed" } else { "Error" };
        let reason = match (status.oom_killed, status.reason.as_str()) {
            (true, _) => "OOMKilled",
            (false, "") => fallback,
            (false, reason) => reason,
        };
        let message = if message.is_empty() { status.message.clone() } else { message };
        RunState::Exited {
            started_at: status.started_at,
            finished_at: status.finished_at.or(status.created_at).unwrap_or_default(),
            exit_code: status.exit_code,
            reason: reason.to_owned(),
            message,
        }
    };
    Run {
        id: status.id.clone(),
        attempt: i32::try_from(status.attempt).unwrap_or(i32::MAX),
        image_id: status.image_id.clone(),
        state,
    }
}

/// What the container left in its termination message file, or at the end of its log when it asked for that.
fn termination_message(
    pod: &Pod,
    container: &Container,
    status: &ContainerStatus,
    paths: &Paths,
) -> String {
    let file = paths.termination(pod.uid(), &container.name, status.attempt);
    let bytes = fs::read(file).unwrap_or_default();
    let end = bytes.len().min(MESSAGE_BYTES_MAX);
    let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let falls_back =
        container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if !text.is_empty() || !falls_back || status.exit_code == 0 {
        return text;
    }
    let log = status.log_path.as_ref().and_then(|path| fs::read_to_string(path).ok());
    log.map(|log| tail(&log)).unwrap_or_default()
}

/// The last lines of a log in CRI's format (`time stream F text`), without their heads.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().rev().take(LOG_LINES_MAX).collect();
    let mut text = String::new();
    for line in lines.into_iter().rev() {
        text.push_str(line.splitn(4, ' ').nth(3).unwrap_or_default());
        text.push('\n');
    }
    let mut start = text.len().saturating_sub(LOG_BYTES_MAX);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text.split_off(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_of_a_log_has_no_heads() {
        let log = "2026-01-01T00:00:00Z stdout F one two\n2026-01-01T00:00:01Z stderr F three\n";
        assert_eq!(tail(log), "one two\nthree\n");
        let long = format!("2026-01-01T00:00:00Z stdout F {}\n", "x".repeat(100));
        assert_eq!(tail(&long.repeat(500)).len(), LOG_BYTES_MAX);
    }
}
