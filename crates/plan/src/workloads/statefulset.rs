//! StatefulSets: pods with lasting names and storage, made and removed in order. Upstream: `pkg/controller/statefulset`.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::apps::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus};
use api::core::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use api::{Kind, Name, Objects};
use jiff::Timestamp;

use super::revisions::{History, REVISION_HASH, history, template_of};
use super::{Claim, claim};
use crate::action::{Action, Plan, delete};
use crate::objects::{in_namespace, is_controlled_by, label, reference};
use crate::podfacts;

mod identity;

/// What StatefulSets are planned from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All StatefulSets.
    pub stateful_sets: Objects<StatefulSet>,
    /// All pods.
    pub pods: Objects<Pod>,
    /// All claims.
    pub claims: Objects<PersistentVolumeClaim>,
    /// All revisions.
    pub revisions: Objects<ControllerRevision>,
    /// The time of the plan.
    pub now: Timestamp,
}

/// One StatefulSet while it is planned.
struct Walk<'a> {
    snapshot: &'a Snapshot,
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    history: History,
    /// The revision that pods below the partition keep.
    current: String,
    /// Pods by ordinal.
    pods: BTreeMap<i32, Arc<Pod>>,
    plan: Plan,
}

/// Makes or removes the next pod, and writes the status.
#[must_use]
pub fn plan(snapshot: &Snapshot, key: &Name) -> Plan {
    let Some(set) = snapshot.stateful_sets.get(key) else { return Plan::none() };
    let Some(spec) = &set.spec else { return Plan::none() };
    let named = in_namespace(&snapshot.pods, set.namespace());
    let named = named.filter(|pod| identity::ordinal(set, pod).is_some());
    let Claim { owned, mut actions } = claim(set.as_ref(), &spec.selector, named);
    let revisions: Vec<_> = in_namespace(&snapshot.revisions, set.namespace())
        .filter(|revision| is_controlled_by(revision.as_ref(), set.as_ref()))
        .cloned()
        .collect();
    let status = set.status.as_ref();
    let collisions = status.and_then(|status| status.collision_count).unwrap_or(0);
    let mut history = history(set.as_ref(), &spec.template, &revisions, collisions);
    actions.append(&mut history.actions);
    let current = status.and_then(|status| status.current_revision.clone());
    let current = current.filter(|name| history.get(name).is_some());
    let current = current.unwrap_or_else(|| history.newest().to_owned());
    let pods = owned.iter().filter_map(|pod| Some((identity::ordinal(set, pod)?, Arc::clone(pod))));
    let mut walk = Walk {
        snapshot,
        set,
        spec,
        history,
        current,
        pods: pods.collect(),
        plan: Plan { actions, again: None },
    };
    if set.is_deleting() {
        return walk.plan;
    }
    if walk.history.collided {
        let mut set = StatefulSet::clone(set);
        set.status.get_or_insert_default().collision_count = Some(collisions + 1);
        walk.plan.push(Action::UpdateStatus(set.into()));
        return walk.plan;
    }
    walk.write_status();
    walk.fix_retention();
    walk.step();
    walk.clean_up();
    walk.plan
}

impl Walk<'_> {
    fn is_parallel(&self) -> bool {
        self.spec.pod_management_policy.as_deref() == Some("Parallel")
    }

    fn ordinals(&self) -> std::ops::Range<i32> {
        let start = self.spec.ordinals.as_ref().and_then(|one| one.start).unwrap_or(0);
        start..start + self.spec.replicas.unwrap_or(1)
    }

    fn partition(&self) -> i32 {
        let strategy = self.spec.update_strategy.as_ref();
        let partition = strategy.and_then(|one| one.rolling_update.as_ref()?.partition);
        self.ordinals().start + partition.unwrap_or(0)
    }

    fn is_on_delete(&self) -> bool {
        let strategy = self.spec.update_strategy.as_ref();
        strategy.and_then(|one| one.type_.as_deref()) == Some("OnDelete")
    }

    /// Up in order, then down in reverse, then the update, one pod at a time unless parallel.
    fn step(&mut self) {
        if self.make_replicas() && self.remove_condemned() && !self.is_on_delete() {
            self.update();
        }
    }

    /// Whether the walk may go on to removals.
    fn make_replicas(&mut self) -> bool {
        for ordinal in self.ordinals() {
            let Some(pod) = self.pods.get(&ordinal).cloned() else {
                self.create(ordinal);
                if self.is_parallel() {
                    continue;
                }
                return false;
            };
            if podfacts::is_terminal(&pod) && !pod.is_deleting() {
                let message = format!(
                    "StatefulSet {}/{} is recreating {} Pod {}",
                    self.set.namespace(),
                    self.set.name(),
                    if podfacts::phase(&pod) == "Failed" { "failed" } else { "terminated" },
                    pod.name()
                );
                self.plan.warn(reference(self.set), "RecreatingFailedPod", message);
                self.plan.push(delete(pod.as_ref()));
                if !self.is_parallel() {
                    return false;
                }
            }
            self.fix_identity(&pod, ordinal);
            if !self.is_parallel() && !self.is_healthy(&pod) {
                return false;
            }
        }
        true
    }

    fn remove_condemned(&mut self) -> bool {
        let range = self.ordinals();
        let condemned: Vec<_> = self.pods.iter().filter(|(at, _)| !range.contains(at)).collect();
        let condemned: Vec<_> =
            condemned.into_iter().rev().map(|(_, pod)| Arc::clone(pod)).collect();
        let first_unhealthy = condemned.iter().rev().find(|pod| !self.is_healthy(pod));
        let first_unhealthy = first_unhealthy.map(|pod| pod.name().to_owned());
        for pod in &condemned {
            if pod.is_deleting() {
                if self.is_parallel() {
                    continue;
                }
                return false;
            }
            let healthy = self.is_healthy(pod);
            if !self.is_parallel() && !healthy && Some(pod.name()) != first_unhealthy.as_deref() {
                return false;
            }
            self.delete(pod);
            if !self.is_parallel() {
                return false;
            }
        }
        condemned.is_empty()
    }

    /// Replaces the highest pod of an older revision, once all above it are healthy.
    fn update(&mut self) {
        let newest = self.history.newest().to_owned();
        let partition = self.partition();
        for ordinal in self.ordinals().rev().take_while(|at| *at >= partition) {
            let Some(pod) = self.pods.get(&ordinal).cloned() else { return };
            if label(pod.as_ref(), REVISION_HASH) != Some(&newest) && !pod.is_deleting() {
                self.delete(&pod);
                return;
            }
            if !self.is_healthy(&pod) {
                return;
            }
        }
    }

    /// Running, ready for long enough, and staying.
    fn is_healthy(&mut self, pod: &Pod) -> bool {
        let seconds = self.spec.min_ready_seconds.unwrap_or(0);
        let available = match podfacts::availability(pod, seconds, self.snapshot.now) {
            Ok(()) => true,
            Err(missing) => {
                missing.into_iter().for_each(|missing| self.plan.after(missing));
                false
            }
        };
        available && podfacts::phase(pod) == "Running" && !pod.is_deleting()
    }

    fn create(&mut self, ordinal: i32) {
        let newest = self.history.newest().to_owned();
        let old = ordinal < self.partition() && !self.is_on_delete() && self.current != newest;
        let name = if old { self.current.clone() } else { newest };
        let template = self.history.get(&name).filter(|_| old).and_then(template_of);
        let template: PodTemplateSpec = template.unwrap_or_else(|| self.spec.template.clone());
        self.create_claims(ordinal);
        let pod = identity::pod(self.set, &template, ordinal, &name);
        let message =
            format!("create Pod {} in StatefulSet {} successful", pod.name(), self.set.name());
        self.plan.push(Action::Create(pod.into()));
        self.plan.event(reference(self.set), "SuccessfulCreate", message);
    }

    fn create_claims(&mut self, ordinal: i32) {
        for claim in identity::claims(self.set, ordinal) {
            if !self.snapshot.claims.contains_key(&claim.object_name()) {
                let message = format!(
                    "create Claim {} Pod {} in StatefulSet {} success",
                    claim.name(),
                    identity::pod_name(self.set, ordinal),
                    self.set.name()
                );
                self.plan.push(Action::Create(claim.into()));
                self.plan.event(reference(self.set), "SuccessfulCreate", message);
            }
        }
    }

    fn delete(&mut self, pod: &Arc<Pod>) {
        let message =
            format!("delete Pod {} in StatefulSet {} successful", pod.name(), self.set.name());
        self.plan.push(delete(pod.as_ref()));
        self.plan.event(reference(self.set), "SuccessfulDelete", message);
    }

    /// Gives adopted pods the labels of their place.
    fn fix_identity(&mut self, pod: &Pod, ordinal: i32) {
        let wanted = identity::labels(self.set, ordinal);
        let present = pod.metadata.labels.clone().unwrap_or_default();
        if wanted.iter().any(|(key, value)| present.get(key) != Some(value)) && !pod.is_deleting() {
            let labels = serde_json::json!({ "labels": wanted });
            self.plan.push(crate::action::patch_meta(pod, labels));
        }
    }

    /// Lets claims go with the set, or with a pod that is scaled away, as the retention policy says.
    fn fix_retention(&mut self) {
        let range = self.ordinals();
        for (ordinal, pod) in &self.pods {
            for wanted in identity::claims(self.set, *ordinal) {
                let Some(claim) = self.snapshot.claims.get(&wanted.object_name()) else { continue };
                let condemned = !range.contains(ordinal);
                let owners =
                    identity::retention(self.set, claim, condemned.then_some(pod.as_ref()));
                if owners != claim.metadata.owner_references.clone().unwrap_or_default() {
                    let owners = serde_json::json!({ "ownerReferences": owners });
                    self.plan.push(crate::action::patch_meta(claim.as_ref(), owners));
                }
            }
        }
    }

    fn write_status(&mut self) {
        let old = self.set.status.clone().unwrap_or_default();
        let newest = self.history.newest().to_owned();
        let mut status = StatefulSetStatus {
            observed_generation: self.set.metadata.generation,
            collision_count: old.collision_count.or(Some(0)),
            conditions: old.conditions.clone(),
            update_revision: Some(newest.clone()),
            available_replicas: Some(0),
            ..StatefulSetStatus::default()
        };
        let raise = |count: &mut Option<i32>| *count = Some(count.unwrap_or(0) + 1);
        let mut again = Vec::new();
        for pod in self.pods.values() {
            status.replicas += 1;
            if podfacts::phase(pod) == "Running" && podfacts::is_ready(pod) {
                raise(&mut status.ready_replicas);
                let seconds = self.spec.min_ready_seconds.unwrap_or(0);
                match podfacts::availability(pod, seconds, self.snapshot.now) {
                    Ok(()) => raise(&mut status.available_replicas),
                    Err(missing) => again.extend(missing),
                }
            }
            if pod.is_deleting() {
                continue;
            }
            let revision = label(pod.as_ref(), REVISION_HASH);
            if revision == Some(&newest) {
                raise(&mut status.updated_replicas);
            }
            if revision == Some(&self.current) {
                raise(&mut status.current_replicas);
            }
        }
        again.into_iter().for_each(|missing| self.plan.after(missing));
        let wanted = self.spec.replicas.unwrap_or(1);
        let complete = status.updated_replicas.unwrap_or(0) == wanted
            && status.replicas == wanted
            && status.ready_replicas.unwrap_or(0) == wanted;
        if complete && !self.is_on_delete() {
            self.current.clone_from(&newest);
            status.current_replicas = status.updated_replicas;
        }
        status.current_revision = Some(self.current.clone());
        if status != old {
            let mut set = self.set.clone();
            set.status = Some(status);
            self.plan.push(Action::UpdateStatus(set.into()));
        }
    }

    fn clean_up(&mut self) {
        let limit = self.spec.revision_history_limit.unwrap_or(10);
        let limit = usize::try_from(limit).unwrap_or(0);
        let newest = self.history.newest().to_owned();
        let used = |name: &str| {
            name == newest
                || name == self.current
                || self.pods.values().any(|pod| label(pod.as_ref(), REVISION_HASH) == Some(name))
        };
        let surplus = self.history.surplus(limit, used);
        self.plan.actions.extend(surplus);
    }
}

#[cfg(test)]
mod tests;
