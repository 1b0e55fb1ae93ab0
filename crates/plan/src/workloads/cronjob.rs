//! CronJobs: a Job at each time of a schedule. Upstream counterpart: `pkg/controller/cronjob`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::batch::{CronJob, CronJobSpec, CronJobStatus, Job};
use api::meta::{ObjectMeta, Time};
use api::{Kind, Name, Objects};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::job::finished;
use crate::action::{Action, ObjectKind, Plan};
use crate::objects::{annotation, in_namespace, is_controlled_by, reference};
use crate::podfacts;

mod schedule;

pub use schedule::Schedule;

/// The annotation of a Job with the time that it was made for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed times than this are told.
const MISSED_MAX: usize = 100;
/// How far back the last time is looked for, in hours: short spans first, so that the walk is short.
const SPANS_HOURS: [i64; 5] = [1, 24, 24 * 32, 24 * 367, 24 * 366 * 5];
/// Clocks differ: the next plan is made this much after the next time (upstream: 100 ms).
const LATE: Duration = Duration::from_millis(100);

/// What CronJobs are planned from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All CronJobs.
    pub cron_jobs: Objects<CronJob>,
    /// All Jobs.
    pub jobs: Objects<Job>,
    /// The time zones that CronJobs name; those that do not exist are missing.
    pub zones: BTreeMap<String, TimeZone>,
    /// The zone of CronJobs that name none: the control plane's.
    pub local: TimeZone,
    /// The time of the plan.
    pub now: Timestamp,
}

/// Follows the Jobs of one CronJob, removes old ones, and makes the one whose time has come.
#[must_use]
pub fn plan(snapshot: &Snapshot, key: &Name) -> Plan {
    let Some(cron) = snapshot.cron_jobs.get(key) else { return Plan::none() };
    let spec = &cron.spec;
    let mut jobs: Vec<&Arc<Job>> = in_namespace(&snapshot.jobs, cron.namespace())
        .filter(|job| is_controlled_by(job.as_ref(), cron.as_ref()))
        .collect();
    jobs.sort_by_key(|job| podfacts::created(job.as_ref()));
    let status = cron.status.clone().unwrap_or_default();
    let mut step = Step { snapshot, cron, spec, jobs, status, plan: Plan::none() };
    step.clean();
    step.follow();
    let made = if cron.is_deleting() { None } else { step.schedule() };
    step.finish(made)
}

struct Step<'a> {
    snapshot: &'a Snapshot,
    cron: &'a Arc<CronJob>,
    spec: &'a CronJobSpec,
    jobs: Vec<&'a Arc<Job>>,
    status: CronJobStatus,
    plan: Plan,
}

/// The condition type that ended a Job.
fn ended(job: &Job) -> Option<&str> {
    finished(job).map(|condition| condition.type_.as_str())
}

impl Step<'_> {
    fn tell(&mut self, reason: &'static str, message: String) {
        self.plan.event(reference(self.cron.as_ref()), reason, message);
    }

    fn warn(&mut self, reason: &'static str, message: String) {
        self.plan.warn(reference(self.cron.as_ref()), reason, message);
    }

    fn delete(&mut self, job: &Job) {
        self.plan.push(Action::Delete {
            kind: ObjectKind::Job,
            name: job.object_name(),
            uid: job.uid().to_owned(),
            grace: None,
            propagation: Some("Background"),
        });
        self.tell("SuccessfulDelete", format!("Deleted job {}", job.name()));
        self.forget(job.uid());
    }

    fn forget(&mut self, uid: &str) {
        let active = self.status.active.get_or_insert_default();
        active.retain(|one| one.uid.as_deref() != Some(uid));
    }

    /// Takes over a Job that this controller made and has not noted yet: of a later time than the last one noted.
    fn adopt(&mut self, job: &Job) -> bool {
        let time = annotation(job, SCHEDULED).and_then(|text| text.parse::<Timestamp>().ok());
        let last = self.status.last_schedule_time.as_ref().map(|last| last.0);
        let Some(time) = time.filter(|time| last.is_none_or(|last| *time > last)) else {
            return false;
        };
        self.status.active.get_or_insert_default().push(reference(job));
        self.status.last_schedule_time = Some(Time(time));
        true
    }

    /// Keeps so many ended Jobs of either kind, the newest.
    fn clean(&mut self) {
        let limits = [
            ("Complete", self.spec.successful_jobs_history_limit),
            ("Failed", self.spec.failed_jobs_history_limit),
        ];
        for (end, limit) in limits {
            let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
            let mut over: Vec<_> = self
                .jobs
                .iter()
                .copied()
                .filter(|job| ended(job) == Some(end) && !job.is_deleting())
                .collect();
            over.sort_by_key(|job| {
                let start = job.status.as_ref().and_then(|status| status.start_time.clone());
                (start.map(|time| time.0), job.object_name())
            });
            let surplus = over.len().saturating_sub(limit);
            over.into_iter().take(surplus).for_each(|job| self.delete(job));
        }
    }

    /// Brings the list of running Jobs up to date.
    fn follow(&mut self) {
        let known = self.status.active.clone().unwrap_or_default();
        let is_known = |job: &Job| known.iter().any(|one| one.uid.as_deref() == Some(job.uid()));
        for job in self.jobs.clone() {
            let is_new = !is_known(job) && self.adopt(job);
            match (is_new || is_known(job), ended(job)) {
                (false, None) => {
                    let why = "Saw a job that the controller did not create or forgot: ";
                    self.warn("UnexpectedJob", format!("{why}{}", job.name()));
                }
                (true, Some(end)) => {
                    let message = format!("Saw completed job: {}, condition: {end}", job.name());
                    self.tell("SawCompletedJob", message);
                    self.forget(job.uid());
                }
                _ => {}
            }
            let success = job.status.as_ref().and_then(|status| status.completion_time.clone());
            let success = success.filter(|_| ended(job) == Some("Complete"));
            if success > self.status.last_successful_time {
                self.status.last_successful_time = success;
            }
        }
        for one in known {
            let is = |job: &&Arc<Job>| Some(job.uid()) == one.uid.as_deref();
            if !self.jobs.iter().any(is) {
                let name = one.name.clone().unwrap_or_default();
                self.tell("MissingJob", format!("Active job went missing: {name}"));
                self.forget(one.uid.as_deref().unwrap_or_default());
            }
        }
    }

    /// The Job to make now, if there is one.
    fn schedule(&mut self) -> Option<Job> {
        let zone = match &self.spec.time_zone {
            None => self.snapshot.local.clone(),
            Some(name) => match self.snapshot.zones.get(name) {
                Some(zone) => zone.clone(),
                None => {
                    let why = format!("invalid timeZone: {name:?}: unknown time zone {name}");
                    self.warn("UnknownTimeZone", why);
                    return None;
                }
            },
        };
        if self.spec.suspend == Some(true) {
            return None;
        }
        let Some(schedule) = Schedule::parse(&self.spec.schedule) else {
            let why = format!("unparseable schedule: {:?}", self.spec.schedule);
            self.warn("UnparseableSchedule", why);
            return None;
        };
        let now = self.snapshot.now;
        if let Some(next) = schedule.next(now, &zone) {
            let left = Duration::try_from(next.duration_since(now)).unwrap_or_default();
            self.plan.after(left + LATE);
        }
        let at = self.due(&schedule, &zone)?;
        self.start(at, &zone)
    }

    /// The newest time that has passed and has no Job yet.
    fn due(&mut self, schedule: &Schedule, zone: &TimeZone) -> Option<Timestamp> {
        let now = self.snapshot.now;
        let last = self.status.last_schedule_time.as_ref().map(|time| time.0);
        let mut earliest = last.unwrap_or_else(|| podfacts::created(self.cron.as_ref()));
        let deadline = self.spec.starting_deadline_seconds.map(SignedDuration::from_secs);
        if let Some(deadline) = deadline {
            earliest = earliest.max(now.checked_sub(deadline).unwrap_or(earliest));
        }
        let at = latest(schedule, zone, earliest, now)?;
        let missed =
            std::iter::successors(schedule.next(earliest, zone), |at| schedule.next(*at, zone));
        if missed.take_while(|at| *at <= now).take(MISSED_MAX + 1).count() > MISSED_MAX {
            let why = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.warn("TooManyMissedTimes", why.to_owned());
        }
        if deadline.is_some_and(|deadline| now.duration_since(at) > deadline) {
            let time = at.to_zoned(zone.clone()).strftime("%a, %d %b %Y %H:%M:%S %z");
            self.warn("MissSchedule", format!("Missed scheduled time to start a job: {time}"));
            return None;
        }
        (last != Some(at)).then_some(at)
    }

    fn start(&mut self, at: Timestamp, zone: &TimeZone) -> Option<Job> {
        let job = self.job(at, zone);
        let active = self.status.active.clone().unwrap_or_default();
        if active.iter().any(|one| one.name == job.metadata.name)
            || self.snapshot.jobs.contains_key(&job.object_name())
        {
            // Names count minutes: a time within a minute that has its Job is that Job's.
            return None;
        }
        match self.spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                let why = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.tell("JobAlreadyActive", why.to_owned());
                return None;
            }
            Some("Replace") => {
                let is = |job: &&Arc<Job>| {
                    active.iter().any(|one| one.uid.as_deref() == Some(job.uid()))
                };
                let running: Vec<_> = self.jobs.iter().copied().filter(is).collect();
                running.into_iter().for_each(|job| self.delete(job));
            }
            _ => {}
        }
        Some(job)
    }

    /// The Job of a time: its name is the same whoever makes it, so that a time never has two.
    fn job(&self, at: Timestamp, zone: &TimeZone) -> Job {
        let template = &self.spec.job_template;
        let meta = template.metadata.clone().unwrap_or_default();
        let mut annotations = meta.annotations.unwrap_or_default();
        let time = at.to_zoned(zone.clone());
        let offset =
            if time.offset().is_zero() { "Z".to_owned() } else { time.strftime("%:z").to_string() };
        annotations.insert(SCHEDULED.to_owned(), format!("{}{offset}", time.strftime("%FT%T")));
        Job {
            metadata: ObjectMeta {
                name: Some(format!("{}-{}", self.cron.name(), at.as_second().div_euclid(60))),
                namespace: Some(self.cron.namespace().to_owned()),
                labels: meta.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![self.cron.as_controller()]),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    }

    /// The Job is noted in the status when it is seen, with its uid: whatever fails between, its name tells its time.
    fn finish(mut self, made: Option<Job>) -> Plan {
        if self.status.active.as_ref().is_some_and(Vec::is_empty) {
            self.status.active = None;
        }
        if self.status != self.cron.status.clone().unwrap_or_default() {
            let mut changed = CronJob::clone(self.cron);
            changed.status = Some(self.status.clone());
            self.plan.actions.insert(0, Action::UpdateStatus(changed.into()));
        }
        if let Some(job) = made {
            let name = job.name().to_owned();
            self.plan.push(Action::Create(job.into()));
            self.tell("SuccessfulCreate", format!("Created job {name}"));
        }
        self.plan
    }
}

/// The last time of the schedule after `earliest` and not after `now`.
fn latest(
    schedule: &Schedule,
    zone: &TimeZone,
    earliest: Timestamp,
    now: Timestamp,
) -> Option<Timestamp> {
    if let Schedule::Every(delay) = schedule {
        let first = schedule.next(earliest, zone).filter(|first| *first <= now)?;
        let steps = now.duration_since(first).as_secs() / delay.as_secs().max(1);
        return first.checked_add(SignedDuration::from_secs(steps * delay.as_secs())).ok();
    }
    let newest = |from: Timestamp| {
        let times = std::iter::successors(schedule.next(from, zone), |at| schedule.next(*at, zone));
        times.take_while(|at| *at <= now).last()
    };
    for hours in SPANS_HOURS {
        let from = now.checked_sub(SignedDuration::from_hours(hours)).unwrap_or(earliest);
        if from <= earliest {
            break;
        }
        if let Some(found) = newest(from) {
            return Some(found);
        }
    }
    newest(earliest)
}

#[cfg(test)]
mod tests;
