//! Jobs: pods until enough of them succeed. Upstream counterpart: `pkg/controller/job` and `ttlafterfinished`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::batch::{Job, JobCondition, JobSpec, JobStatus};
use api::core::Pod;
use api::meta::Time;
use api::{Kind, Name, Objects};
use jiff::Timestamp;

use super::{Claim, claim, count, pod_of, pod_prefix};
use crate::action::{Action, ObjectKind, Plan};
use crate::objects::{annotation, in_namespace, reference};
use crate::podfacts;

/// The annotation, and label, with the index of an indexed Job's pod.
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// First wait after a failed pod, doubled with each (upstream: 10 s, at most 10 min).
const BACKOFF_SECONDS: i64 = 10;
const BACKOFF_SECONDS_MAX: i64 = 600;

/// What Jobs are planned from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All Jobs.
    pub jobs: Objects<Job>,
    /// All pods.
    pub pods: Objects<Pod>,
    /// The time of the plan.
    pub now: Timestamp,
}

pub(super) fn finished(job: &Job) -> Option<&JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let ends = |one: &&JobCondition| matches!(one.type_.as_str(), "Complete" | "Failed");
    conditions.iter().filter(ends).find(|one| one.status == "True")
}

/// Creates or deletes pods, counts results, ends the Job, and deletes it when its time is up.
#[must_use]
pub fn plan(snapshot: &Snapshot, key: &Name) -> Plan {
    let Some(job) = snapshot.jobs.get(key) else { return Plan::none() };
    let (Some(spec), false) = (&job.spec, job.is_deleting()) else { return Plan::none() };
    if let Some(end) = finished(job) {
        return expire(snapshot, job, end);
    }
    let Some(selector) = &spec.selector else { return Plan::none() };
    let candidates = in_namespace(&snapshot.pods, job.namespace());
    let Claim { owned, actions } = claim(job.as_ref(), selector, candidates);
    let mut walk = Walk { snapshot, job, spec, pods: owned, plan: Plan { actions, again: None } };
    walk.step();
    walk.plan
}

/// Deletes a finished Job `ttlSecondsAfterFinished` after its end.
fn expire(snapshot: &Snapshot, job: &Job, end: &JobCondition) -> Plan {
    let mut plan = Plan::none();
    let seconds = job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished);
    let (Some(seconds), Some(ended)) = (seconds, &end.last_transition_time) else { return plan };
    let due = ended.0.as_millisecond() + i64::from(seconds) * 1000;
    match u64::try_from(due - snapshot.now.as_millisecond()) {
        Ok(left) if left > 0 => plan.after(Duration::from_millis(left)),
        _ => plan.push(Action::Delete {
            kind: ObjectKind::Job,
            name: job.object_name(),
            uid: job.uid().to_owned(),
            grace: None,
            propagation: Some("Foreground"),
        }),
    }
    plan
}

struct Walk<'a> {
    snapshot: &'a Snapshot,
    job: &'a Job,
    spec: &'a JobSpec,
    pods: Vec<Arc<Pod>>,
    plan: Plan,
}

impl Walk<'_> {
    fn phase(&self, phase: &str) -> usize {
        self.pods.iter().filter(|pod| podfacts::phase(pod) == phase).count()
    }

    fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    /// Indexes of pods that hold a condition.
    fn indexes(&self, of: impl Fn(&Pod) -> bool) -> BTreeSet<i32> {
        let own = self.pods.iter().filter(|pod| of(pod));
        own.filter_map(|pod| annotation(pod.as_ref(), INDEX)?.parse().ok()).collect()
    }

    fn step(&mut self) {
        let active: Vec<_> =
            self.pods.iter().filter(|pod| podfacts::is_active(pod)).cloned().collect();
        let succeeded = if self.is_indexed() {
            self.indexes(|pod| podfacts::phase(pod) == "Succeeded").len()
        } else {
            self.phase("Succeeded")
        };
        let failed = self.phase("Failed");
        let end = self.end(succeeded, failed, active.len());
        let suspended = self.spec.suspend == Some(true);
        let stop = suspended || end.is_some();
        let wanted = if stop { 0 } else { self.wanted(succeeded) };
        self.write_status(&active, (succeeded, failed), end);
        if active.len() > wanted {
            let surplus = active.iter().skip(wanted);
            let pods = surplus.map(|pod| (pod.object_name(), pod.uid().to_owned())).collect();
            self.plan.push(Action::DeletePods { owner: reference(self.job), pods });
        } else if active.len() < wanted && self.backoff_is_over(failed) {
            let pods = self.missing(wanted - active.len());
            if !pods.is_empty() {
                self.plan.push(Action::CreatePods { owner: reference(self.job), pods });
            }
        }
    }

    /// How many pods should run now.
    fn wanted(&self, succeeded: usize) -> usize {
        let parallelism = usize::try_from(self.spec.parallelism.unwrap_or(1)).unwrap_or(0);
        match self.spec.completions {
            Some(completions) => {
                let completions = usize::try_from(completions).unwrap_or(0);
                parallelism.min(completions.saturating_sub(succeeded))
            }
            // A work queue: once one pod succeeds, no new ones are started.
            None if succeeded > 0 => {
                self.pods.iter().filter(|pod| podfacts::is_active(pod)).count()
            }
            None => parallelism,
        }
    }

    /// The condition that ends the Job, its reason and message.
    fn end(
        &self,
        succeeded: usize,
        failed: usize,
        active: usize,
    ) -> Option<(&'static str, &'static str, String)> {
        let limit = usize::try_from(self.spec.backoff_limit.unwrap_or(6)).unwrap_or(0);
        if failed > limit {
            let message = "Job has reached the specified backoff limit";
            return Some(("Failed", "BackoffLimitExceeded", message.into()));
        }
        let started = self.job.status.as_ref().and_then(|status| status.start_time.as_ref());
        if let (Some(seconds), Some(started)) = (self.spec.active_deadline_seconds, started)
            && self.snapshot.now.as_second() - started.0.as_second() >= seconds
        {
            let message = "Job was active longer than specified deadline";
            return Some(("Failed", "DeadlineExceeded", message.into()));
        }
        let complete = match self.spec.completions {
            Some(completions) => succeeded >= usize::try_from(completions).unwrap_or(0),
            None => succeeded > 0 && active == 0,
        };
        let message = "Reached expected number of succeeded pods";
        complete.then(|| ("Complete", "CompletionsReached", message.to_owned()))
    }

    fn backoff_is_over(&mut self, failed: usize) -> bool {
        let ended = self.pods.iter().filter(|pod| podfacts::phase(pod) == "Failed");
        let last = ended.filter_map(|pod| {
            let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
            let ends = statuses.iter().filter_map(|one| one.state.as_ref()?.terminated.as_ref());
            ends.filter_map(|one| one.finished_at.as_ref()).map(|time| time.0).max()
        });
        let Some(last) = last.max() else { return true };
        let doublings = u32::try_from(failed.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
        let wait = (BACKOFF_SECONDS << doublings).min(BACKOFF_SECONDS_MAX);
        let left = last.as_millisecond() + wait * 1000 - self.snapshot.now.as_millisecond();
        match u64::try_from(left) {
            Ok(left) if left > 0 => {
                self.plan.after(Duration::from_millis(left));
                false
            }
            _ => true,
        }
    }

    fn missing(&self, number: usize) -> Vec<Pod> {
        let mut template = pod_of(&self.spec.template, self.job);
        template.metadata.generate_name = Some(pod_prefix(self.job.name()));
        if !self.is_indexed() {
            return vec![template; number];
        }
        let taken = self.indexes(|pod| !pod.is_deleting() && podfacts::phase(pod) != "Failed");
        let all = 0..self.spec.completions.unwrap_or(0);
        all.filter(|index| !taken.contains(index))
            .take(number)
            .map(|index| indexed(&template, self.job, index))
            .collect()
    }

    fn write_status(
        &mut self,
        active: &[Arc<Pod>],
        (succeeded, failed): (usize, usize),
        end: Option<(&'static str, &'static str, String)>,
    ) {
        let old = self.job.status.clone().unwrap_or_default();
        let some = |number: usize| (number != 0).then(|| count(number));
        let now = Time(self.snapshot.now);
        let suspended = self.spec.suspend == Some(true);
        let running = if end.is_some() || suspended { 0 } else { active.len() };
        let ready = active.iter().filter(|pod| podfacts::is_ready(pod)).count();
        let going = self.pods.iter().filter(|pod| pod.is_deleting() && !podfacts::is_terminal(pod));
        let mut status = JobStatus {
            active: some(running),
            ready: Some(count(if running == 0 { 0 } else { ready })),
            succeeded: some(succeeded),
            failed: some(failed),
            terminating: Some(count(going.count())),
            start_time: old.start_time.clone().or_else(|| (!suspended).then(|| now.clone())),
            ..old.clone()
        };
        if self.is_indexed() {
            let done = self.indexes(|pod| podfacts::phase(pod) == "Succeeded");
            status.completed_indexes = (!done.is_empty()).then(|| ranges(&done));
        }
        if let Some(left) = self.spec.active_deadline_seconds.zip(status.start_time.as_ref()) {
            let left = left.1.0.as_second() + left.0 - self.snapshot.now.as_second();
            if let Ok(left @ 1..) = u64::try_from(left) {
                self.plan.after(Duration::from_secs(left));
            }
        }
        let mut told = None;
        if let Some((type_, reason, message)) = end {
            if type_ == "Complete" {
                status.completion_time = Some(now.clone());
            }
            let conditions = status.conditions.get_or_insert_default();
            let before = if type_ == "Complete" { "SuccessCriteriaMet" } else { "FailureTarget" };
            for type_ in [before, type_] {
                conditions.push(JobCondition {
                    type_: type_.into(),
                    status: "True".into(),
                    reason: Some(reason.into()),
                    message: Some(message.clone()),
                    last_probe_time: Some(now.clone()),
                    last_transition_time: Some(now.clone()),
                });
            }
            told = Some((type_, reason, message));
        }
        if status != old {
            let mut job = self.job.clone();
            job.status = Some(status);
            self.plan.push(Action::UpdateStatus(job.into()));
        }
        match told {
            Some(("Complete", ..)) => {
                self.plan.event(reference(self.job), "Completed", "Job completed".into());
            }
            Some((_, reason, message)) => self.plan.warn(reference(self.job), reason, message),
            None => {}
        }
    }
}

fn indexed(template: &Pod, job: &Job, index: i32) -> Pod {
    let mut pod = template.clone();
    let text = index.to_string();
    pod.metadata.generate_name = Some(pod_prefix(&format!("{}-{index}", job.name())));
    pod.metadata.annotations.get_or_insert_default().insert(INDEX.to_owned(), text.clone());
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), text.clone());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{}-{index}", job.name()));
    for container in &mut spec.containers {
        let env = container.env.get_or_insert_default();
        env.push(api::core::EnvVar {
            name: "JOB_COMPLETION_INDEX".into(),
            value: Some(text.clone()),
            value_from: None,
        });
    }
    pod
}

/// `0-2,4`: runs of consecutive numbers.
fn ranges(numbers: &BTreeSet<i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let text = |(first, last): &(i32, i32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    runs.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
