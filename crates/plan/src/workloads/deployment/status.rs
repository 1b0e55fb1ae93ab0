//! The status of a Deployment: counts, and the conditions Available, Progressing and ReplicaFailure.

use std::time::Duration;

use api::Kind;
use api::apps::{DeploymentCondition, DeploymentStatus, ReplicaSet};
use api::meta::Time;

use super::{Rollout, available, replicas};
use crate::action::Action;

type Conditions = Vec<DeploymentCondition>;

impl Rollout<'_> {
    /// Writes the status if it changed.
    pub(super) fn write_status(&mut self) {
        let old = self.deployment.status.clone().unwrap_or_default();
        let mut status = self.counts(&old);
        let mut conditions = old.conditions.clone().unwrap_or_default();
        self.set_available(&mut conditions, &status);
        self.set_progressing(&mut conditions, &old, &status);
        self.set_failure(&mut conditions);
        status.conditions = Some(conditions);
        if status != old {
            let mut deployment = self.deployment.clone();
            deployment.status = Some(status);
            self.plan.push(Action::UpdateStatus(deployment.into()));
        }
    }

    fn counts(&self, old: &DeploymentStatus) -> DeploymentStatus {
        let of = |set: &ReplicaSet| set.status.clone().unwrap_or_default();
        let sum = |count: fn(&ReplicaSet) -> i32| self.sets().map(count).sum::<i32>();
        let some = |number: i32| (number != 0).then_some(number);
        let ready = self.sets().map(|set| of(set).ready_replicas.unwrap_or(0)).sum();
        let total = sum(replicas);
        let terminating: i32 =
            self.sets().map(|set| of(set).terminating_replicas.unwrap_or(0)).sum();
        DeploymentStatus {
            observed_generation: self.deployment.metadata.generation,
            replicas: some(self.sets().map(|set| of(set).replicas).sum()),
            updated_replicas: some(self.new.as_ref().map_or(0, |set| of(set).replicas)),
            ready_replicas: some(ready),
            available_replicas: some(sum(available)),
            unavailable_replicas: some((total - sum(available)).max(0)),
            terminating_replicas: Some(terminating),
            collision_count: if self.collided {
                Some(old.collision_count.unwrap_or(0) + 1)
            } else {
                old.collision_count
            },
            conditions: None,
        }
    }

    fn set_available(&self, conditions: &mut Conditions, status: &DeploymentStatus) {
        let (_, max_unavailable) = self.fenceposts();
        let enough = status.available_replicas.unwrap_or(0) >= self.replicas() - max_unavailable;
        let (value, reason, message) = if enough {
            ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        } else {
            (
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
            )
        };
        self.set(conditions, "Available", value, reason, message);
    }

    fn set_progressing(
        &mut self,
        conditions: &mut Conditions,
        old: &DeploymentStatus,
        status: &DeploymentStatus,
    ) {
        let spec = self.deployment.spec.as_ref();
        let deadline = spec.and_then(|spec| spec.progress_deadline_seconds);
        let Some(deadline) = deadline.filter(|seconds| *seconds != i32::MAX) else {
            conditions.retain(|one| one.type_ != "Progressing");
            return;
        };
        let paused = spec.and_then(|spec| spec.paused) == Some(true);
        let current = conditions.iter().find(|one| one.type_ == "Progressing").cloned();
        let reason = current.as_ref().and_then(|one| one.reason.as_deref()).unwrap_or("");
        if paused {
            self.set(
                conditions,
                "Progressing",
                "Unknown",
                "DeploymentPaused",
                "Deployment is paused",
            );
            return;
        }
        if reason == "DeploymentPaused" {
            let news = "Deployment is resumed";
            self.set(conditions, "Progressing", "Unknown", "DeploymentResumed", news);
        }
        if let Some((reason, message)) = self.news.take() {
            self.set(conditions, "Progressing", "True", reason, &message);
            return;
        }
        if let (Some(set), None) = (&self.new, &current) {
            let message = format!("Found new replica set \"{}\"", set.name());
            self.set(conditions, "Progressing", "True", "FoundNewReplicaSet", &message);
        }
        let settled =
            status.replicas == status.updated_replicas && reason == "NewReplicaSetAvailable";
        if settled || self.deployment.is_deleting() {
            return;
        }
        let what = match &self.new {
            Some(set) => format!("ReplicaSet \"{}\"", set.name()),
            None => format!("Deployment \"{}\"", self.deployment.name()),
        };
        let wanted = Some(self.replicas()).filter(|number| *number != 0);
        if status.updated_replicas == wanted
            && status.replicas == wanted
            && status.available_replicas == wanted
        {
            let message = format!("{what} has successfully progressed.");
            self.set(conditions, "Progressing", "True", "NewReplicaSetAvailable", &message);
        } else if progressed(old, status) {
            let message = format!("{what} is progressing.");
            // Progress renews the deadline: the update time moves even when the reason stays.
            let since = current.filter(|one| one.status == "True");
            let since = since.and_then(|one| one.last_transition_time);
            conditions.retain(|one| one.type_ != "Progressing");
            self.set(conditions, "Progressing", "True", "ReplicaSetUpdated", &message);
            if let (Some(since), Some(last)) = (since, conditions.last_mut()) {
                last.last_transition_time = Some(since);
            }
        } else {
            self.watch_deadline(conditions, deadline, &what);
        }
    }

    /// Past the deadline: `ProgressDeadlineExceeded`. Before it: plan again then.
    fn watch_deadline(&mut self, conditions: &mut Conditions, deadline: i32, what: &str) {
        let Some(current) = conditions.iter().find(|one| one.type_ == "Progressing") else {
            return;
        };
        let reason = current.reason.as_deref().unwrap_or("");
        if matches!(reason, "NewReplicaSetAvailable" | "ProgressDeadlineExceeded") {
            return;
        }
        let Some(from) = &current.last_update_time else { return };
        let end = from.0.as_millisecond() + i64::from(deadline) * 1000;
        match u64::try_from(end - self.snapshot.now.as_millisecond()) {
            Ok(left) if left > 0 => self.plan.after(Duration::from_millis(left)),
            _ => {
                let message = format!("{what} has timed out progressing.");
                let reason = "ProgressDeadlineExceeded";
                self.set(conditions, "Progressing", "False", reason, &message);
            }
        }
    }

    /// The sets' ReplicaFailure, the new set's first.
    fn set_failure(&self, conditions: &mut Conditions) {
        let failure = self.new.iter().chain(&self.old).find_map(|set| {
            let conditions = set.status.as_ref()?.conditions.as_ref()?;
            conditions.iter().find(|one| one.type_ == "ReplicaFailure")
        });
        match failure {
            None => conditions.retain(|one| one.type_ != "ReplicaFailure"),
            Some(failure) => {
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                let (reason, message) = (text(&failure.reason), text(&failure.message));
                self.set(conditions, "ReplicaFailure", &failure.status, &reason, &message);
            }
        }
    }

    /// Sets a condition; one of equal status and reason stays as it is.
    fn set(
        &self,
        conditions: &mut Conditions,
        type_: &str,
        status: &str,
        reason: &str,
        message: &str,
    ) {
        let now = Some(Time(self.snapshot.now));
        let mut transition = now.clone();
        if let Some(old) = conditions.iter().find(|one| one.type_ == type_) {
            if old.status == status && old.reason.as_deref() == Some(reason) {
                return;
            }
            if old.status == status {
                transition = old.last_transition_time.clone();
            }
        }
        conditions.retain(|one| one.type_ != type_);
        conditions.push(DeploymentCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_update_time: now,
            last_transition_time: transition,
        });
    }
}

fn progressed(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let number = |count: Option<i32>| count.unwrap_or(0);
    let left =
        |status: &DeploymentStatus| number(status.replicas) - number(status.updated_replicas);
    number(new.updated_replicas) > number(old.updated_replicas)
        || left(new) < left(old)
        || number(new.ready_replicas) > number(old.ready_replicas)
        || number(new.available_replicas) > number(old.available_replicas)
}
