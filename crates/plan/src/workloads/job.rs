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

mod failures;

use failures::Failures;

/// The annotation, and label, with the index of an indexed Job's pod.
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// The annotation that tells how often pods of the index failed before.
const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// The value of `spec.managedBy` that is this controller.
const MANAGER: &str = "kubernetes.io/job-controller";
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
    if spec.managed_by.as_deref().is_some_and(|manager| manager != MANAGER) {
        return Plan::none();
    }
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

/// The index of an indexed Job's pod.
fn index_of(pod: &Pod) -> Option<i32> {
    annotation(pod, INDEX)?.parse().ok()
}

/// The condition that ends a Job, its reason and message.
type End = (&'static str, &'static str, String);

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
        own.filter_map(|pod| index_of(pod)).collect()
    }

    fn succeeded_indexes(&self) -> BTreeSet<i32> {
        self.indexes(|pod| podfacts::phase(pod) == "Succeeded")
    }

    fn step(&mut self) {
        let active: Vec<_> =
            self.pods.iter().filter(|pod| podfacts::is_active(pod)).cloned().collect();
        let succeeded = if self.is_indexed() {
            self.succeeded_indexes().len()
        } else {
            self.phase("Succeeded")
        };
        let failures = failures::sum(self.spec, self.pods.iter().map(AsRef::as_ref));
        let end = self.end(succeeded, &failures, active.len());
        let suspended = self.spec.suspend == Some(true);
        let stop = suspended || end.is_some();
        let wanted = if stop { 0 } else { self.wanted(succeeded, &failures) };
        self.write_status(&active, (succeeded, &failures), end);
        // Pods on their way out keep their place where only failed pods are replaced.
        let places = active.len() + if self.replaces_failed_only() { self.going() } else { 0 };
        if active.len() > wanted {
            let surplus = active.iter().skip(wanted);
            let pods = surplus.map(|pod| (pod.object_name(), pod.uid().to_owned())).collect();
            self.plan.push(Action::DeletePods { owner: reference(self.job), pods });
        } else if places < wanted {
            let pods = self.missing(wanted - places, &failures);
            if !pods.is_empty() {
                self.plan.push(Action::CreatePods { owner: reference(self.job), pods });
            }
        }
    }

    fn replaces_failed_only(&self) -> bool {
        let default = if self.spec.pod_failure_policy.is_some() { "Failed" } else { "" };
        self.spec.pod_replacement_policy.as_deref().unwrap_or(default) == "Failed"
    }

    /// How many pods are on their way out.
    fn going(&self) -> usize {
        let going = |pod: &&Arc<Pod>| pod.is_deleting() && !podfacts::is_terminal(pod);
        self.pods.iter().filter(going).count()
    }

    /// How many pods should run now.
    fn wanted(&self, succeeded: usize, failures: &Failures) -> usize {
        let parallelism = usize::try_from(self.spec.parallelism.unwrap_or(1)).unwrap_or(0);
        match self.spec.completions {
            Some(completions) => {
                let completions = usize::try_from(completions).unwrap_or(0);
                parallelism.min(completions.saturating_sub(succeeded + failures.indexes.len()))
            }
            // A work queue: once one pod succeeds, no new ones are started.
            None if succeeded > 0 => {
                self.pods.iter().filter(|pod| podfacts::is_active(pod)).count()
            }
            None => parallelism,
        }
    }

    /// Whether and how the Job ends now.
    fn end(&self, succeeded: usize, failures: &Failures, active: usize) -> Option<End> {
        if let Some(why) = &failures.fatal {
            return Some(("Failed", "PodFailurePolicy", why.clone()));
        }
        let per_index = self.spec.backoff_limit_per_index.is_some();
        let default = if per_index { i32::MAX } else { 6 };
        let limit = usize::try_from(self.spec.backoff_limit.unwrap_or(default)).unwrap_or(0);
        if failures.counted > limit {
            let message = "Job has reached the specified backoff limit";
            return Some(("Failed", "BackoffLimitExceeded", message.into()));
        }
        let started = self.job.status.as_ref().and_then(|status| status.start_time.as_ref());
        if let (Some(seconds), Some(started)) = (self.spec.active_deadline_seconds, started)
            && self.spec.suspend != Some(true)
            && self.snapshot.now.as_second() - started.0.as_second() >= seconds
        {
            let message = "Job was active longer than specified deadline";
            return Some(("Failed", "DeadlineExceeded", message.into()));
        }
        if let Some(position) = failures::success_rule(self.spec, &self.succeeded_indexes()) {
            let message = format!("Matched rules at index {position}");
            return Some(("Complete", "SuccessPolicy", message));
        }
        let lost = failures.indexes.len();
        let most = self.spec.max_failed_indexes.and_then(|most| usize::try_from(most).ok());
        if most.is_some_and(|most| lost > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(("Failed", "MaxFailedIndexesExceeded", message.into()));
        }
        let complete = match self.spec.completions {
            Some(completions) => succeeded + lost >= usize::try_from(completions).unwrap_or(0),
            None => succeeded > 0 && active == 0,
        };
        if complete && lost > 0 {
            return Some(("Failed", "FailedIndexes", "Job has failed indexes".into()));
        }
        let message = "Reached expected number of succeeded pods";
        complete.then(|| ("Complete", "CompletionsReached", message.to_owned()))
    }

    /// Whether a new pod may start after `failed` ones among those that `of` chooses; else when it may is planned.
    fn backoff_is_over(&mut self, failed: usize, of: impl Fn(&Pod) -> bool) -> bool {
        let ended = self.pods.iter().filter(|pod| podfacts::phase(pod) == "Failed" && of(pod));
        let last = ended.filter_map(|pod| {
            let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
            let ends = statuses.iter().filter_map(|one| one.state.as_ref()?.terminated.as_ref());
            ends.filter_map(|one| one.finished_at.as_ref()).map(|time| time.0).max()
        });
        let (Some(last), 1..) = (last.max(), failed) else { return true };
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

    fn missing(&mut self, number: usize, failures: &Failures) -> Vec<Pod> {
        let per_index = self.spec.backoff_limit_per_index.is_some();
        if !per_index && !self.backoff_is_over(failures.counted, |_| true) {
            return Vec::new();
        }
        let mut template = pod_of(&self.spec.template, self.job);
        template.metadata.generate_name = Some(pod_prefix(self.job.name()));
        if !self.is_indexed() {
            return vec![template; number];
        }
        let only_failed = self.replaces_failed_only();
        let taken = self
            .indexes(|pod| (only_failed || !pod.is_deleting()) && podfacts::phase(pod) != "Failed");
        let mut pods = Vec::new();
        for index in 0..self.spec.completions.unwrap_or(0) {
            if taken.contains(&index) || failures.indexes.contains(&index) {
                continue;
            }
            let before = failures.by_index.get(&index).copied().unwrap_or(0);
            if per_index && !self.backoff_is_over(before, |pod| index_of(pod) == Some(index)) {
                continue;
            }
            let mut pod = indexed(&template, self.job, index);
            if per_index {
                let annotations = pod.metadata.annotations.get_or_insert_default();
                annotations.insert(INDEX_FAILURES.to_owned(), before.to_string());
            }
            pods.push(pod);
            if pods.len() == number {
                break;
            }
        }
        pods
    }

    fn write_status(
        &mut self,
        active: &[Arc<Pod>],
        (succeeded, failures): (usize, &Failures),
        end: Option<End>,
    ) {
        let old = self.job.status.clone().unwrap_or_default();
        let some = |number: usize| (number != 0).then(|| count(number));
        let now = Time(self.snapshot.now);
        let suspended = self.spec.suspend == Some(true);
        let running = if end.is_some() || suspended { 0 } else { active.len() };
        let ready = active.iter().filter(|pod| podfacts::is_ready(pod)).count();
        // Pods that a failed Job takes down have failed too.
        let stopped = end.as_ref().is_some_and(|end| end.0 == "Failed");
        let failed = failures.counted + if stopped { active.len() } else { 0 };
        let resumed = !suspended && is_true(&old, "Suspended");
        let start = old.start_time.clone().filter(|_| !resumed);
        let mut status = JobStatus {
            active: some(running),
            ready: Some(count(if running == 0 { 0 } else { ready })),
            succeeded: some(succeeded),
            failed: some(failed),
            terminating: Some(count(self.going())),
            start_time: start.or_else(|| (!suspended).then(|| now.clone())),
            ..old.clone()
        };
        if self.is_indexed() {
            let done = self.succeeded_indexes();
            status.completed_indexes = (!done.is_empty()).then(|| ranges(&done));
            let limited = self.spec.backoff_limit_per_index;
            status.failed_indexes = limited.map(|_| ranges(&failures.indexes));
        }
        let left = self.spec.active_deadline_seconds.filter(|_| !suspended);
        if let Some((seconds, start)) = left.zip(status.start_time.as_ref()) {
            let left = start.0.as_second() + seconds - self.snapshot.now.as_second();
            if let Ok(left @ 1..) = u64::try_from(left) {
                self.plan.after(Duration::from_secs(left));
            }
        }
        let notice = self.set_conditions(&mut status, end);
        if status != old {
            let mut job = self.job.clone();
            job.status = Some(status);
            self.plan.push(Action::UpdateStatus(job.into()));
        }
        match notice {
            Some((true, reason, message)) => self.plan.warn(reference(self.job), reason, message),
            Some((_, reason, message)) => self.plan.event(reference(self.job), reason, message),
            None => {}
        }
    }

    /// Writes how the Job stands; what to tell about it, and whether that needs attention.
    fn set_conditions(
        &self,
        status: &mut JobStatus,
        end: Option<End>,
    ) -> Option<(bool, &'static str, String)> {
        let now = &self.snapshot.now;
        if let Some((type_, reason, message)) = end {
            let complete = type_ == "Complete";
            if complete {
                status.completion_time = Some(Time(*now));
            }
            let before = if complete { "SuccessCriteriaMet" } else { "FailureTarget" };
            for type_ in [before, type_] {
                set_condition(status, type_, "True", (reason, &message), *now);
            }
            return Some(if complete {
                (false, "Completed", "Job completed".to_owned())
            } else {
                (true, reason, message)
            });
        }
        let was = is_true(status, "Suspended");
        match (self.spec.suspend == Some(true), was) {
            (true, false) => {
                set_condition(status, "Suspended", "True", ("JobSuspended", "Job suspended"), *now);
                Some((false, "Suspended", "Job suspended".to_owned()))
            }
            (false, true) => {
                set_condition(status, "Suspended", "False", ("JobResumed", "Job resumed"), *now);
                Some((false, "Resumed", "Job resumed".to_owned()))
            }
            _ => None,
        }
    }
}

fn is_true(status: &JobStatus, type_: &str) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|one| one.type_ == type_ && one.status == "True")
}

fn set_condition(
    status: &mut JobStatus,
    type_: &str,
    value: &str,
    (reason, message): (&str, &str),
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|one| one.type_ != type_);
    conditions.push(JobCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    });
}

fn indexed(template: &Pod, job: &Job, index: i32) -> Pod {
    let mut pod = template.clone();
    let text = index.to_string();
    pod.metadata.generate_name = Some(pod_prefix(&format!("{}-{index}", job.name())));
    pod.metadata.annotations.get_or_insert_default().insert(INDEX.to_owned(), text.clone());
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), text.clone());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{}-{index}", job.name()));
    let first = spec.init_containers.iter_mut().flatten();
    for container in first.chain(&mut spec.containers) {
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
