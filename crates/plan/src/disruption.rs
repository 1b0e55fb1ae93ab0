//! How many pods of a PodDisruptionBudget may be evicted now. Upstream counterpart: `pkg/controller/disruption`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::apps::{Deployment, ReplicaSet, StatefulSet};
use api::core::Pod;
use api::meta::{Condition, LabelSelector, Time};
use api::policy::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use api::{IntOrString, Kind, Name, Objects};
use jiff::{SignedDuration, Timestamp};

use crate::action::{Action, Plan};
use crate::objects::{in_namespace, matches, reference};
use crate::podfacts;
use crate::workloads::resolve;

/// How long an eviction that was allowed may take until the pod is marked (upstream's `DeletionTimeout`: 2 min).
const DELETION_MAX: SignedDuration = SignedDuration::from_secs(120);
/// The condition that says whether evictions are allowed.
const ALLOWED: &str = "DisruptionAllowed";

/// What budgets are planned from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All budgets.
    pub budgets: Objects<PodDisruptionBudget>,
    /// All pods.
    pub pods: Objects<Pod>,
    /// All Deployments: how many pods they want.
    pub deployments: Objects<Deployment>,
    /// All ReplicaSets.
    pub replica_sets: Objects<ReplicaSet>,
    /// All StatefulSets.
    pub stateful_sets: Objects<StatefulSet>,
    /// The time of the plan.
    pub now: Timestamp,
}

/// Whether the budget is about the pod: an empty selector selects all pods of the namespace, a missing one none.
#[must_use]
pub fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    budget.namespace() == pod.namespace()
        && selector.is_some_and(|selector| matches(selector, pod.meta().labels.as_ref()))
}

/// Writes the status of one budget.
#[must_use]
pub fn plan(snapshot: &Snapshot, key: &Name) -> Plan {
    let mut plan = Plan::none();
    let Some(budget) = snapshot.budgets.get(key) else { return plan };
    let Some(spec) = budget.spec.as_ref().filter(|_| !budget.is_deleting()) else { return plan };
    let pods: Vec<&Arc<Pod>> = in_namespace(&snapshot.pods, budget.namespace())
        .filter(|pod| selects(budget, pod) && !podfacts::is_terminal(pod))
        .collect();
    if pods.is_empty() {
        plan.event(reference(budget.as_ref()), "NoPods", "No matching pods found".into());
    }
    let look = Look { snapshot, budget, spec, pods };
    let before = budget.status.clone().unwrap_or_default();
    let status = match look.expected(&mut plan) {
        Ok((expected, desired)) => look.status(&before, expected, desired, &mut plan),
        Err(message) => look.failed(&before, message, &mut plan),
    };
    if budget.status.as_ref() == Some(&status) {
        // Events accompany a change; the same state is told once.
        plan.actions.clear();
        return plan;
    }
    let mut changed = PodDisruptionBudget::clone(budget);
    changed.status = Some(status);
    plan.actions.insert(0, Action::UpdateStatus(changed.into()));
    plan
}

/// One budget with its pods.
struct Look<'a> {
    snapshot: &'a Snapshot,
    budget: &'a PodDisruptionBudget,
    spec: &'a PodDisruptionBudgetSpec,
    pods: Vec<&'a Arc<Pod>>,
}

impl Look<'_> {
    /// How many pods there should be, and how many of them healthy; or why that cannot be said.
    fn expected(&self, plan: &mut Plan) -> Result<(i32, i32), String> {
        if let Some(most) = &self.spec.max_unavailable {
            let expected = self.scale(plan)?;
            let desired = expected - resolve(most, expected, true);
            return Ok((expected, desired.max(0)));
        }
        match &self.spec.min_available {
            Some(IntOrString::Int(least)) => {
                Ok((i32::try_from(self.pods.len()).unwrap_or(i32::MAX), *least))
            }
            Some(percent) => {
                let expected = self.scale(plan)?;
                Ok((expected, resolve(percent, expected, true)))
            }
            None => Ok((0, 0)),
        }
    }

    /// The pods that the controllers of the budget's pods want, together. Pods without a controller count for nothing.
    fn scale(&self, plan: &mut Plan) -> Result<i32, String> {
        let mut wanted: BTreeMap<String, i32> = BTreeMap::new();
        let mut unmanaged = BTreeSet::new();
        for pod in &self.pods {
            let Some(owner) = pod.controller() else {
                unmanaged.insert(pod.name());
                continue;
            };
            if wanted.contains_key(&owner.uid) {
                continue;
            }
            let name = Name::new(pod.namespace(), &owner.name);
            let (uid, replicas) = match owner.kind.as_str() {
                "ReplicaSet" => self.replica_set(&name, &owner.uid),
                "StatefulSet" => self.snapshot.stateful_sets.get(&name).map(|set| {
                    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas);
                    (set.uid().to_owned(), replicas.unwrap_or(1))
                }),
                kind => {
                    let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
                    let plural = format!("{}s", kind.to_lowercase());
                    let resource =
                        if group.is_empty() { plural } else { format!("{plural}.{group}") };
                    return Err(format!("{resource} does not implement the scale subresource"));
                }
            }
            .ok_or_else(|| format!("found no controllers for pod {:?}", pod.name()))?;
            wanted.insert(uid, replicas);
        }
        if !unmanaged.is_empty() {
            let selector = self.spec.selector.as_ref().map(shown).unwrap_or_default();
            let message = format!(
                "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a \
                 result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. \
                 To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value."
            );
            plan.warn(reference(self.budget), "UnmanagedPods", message);
        }
        Ok(wanted.values().sum())
    }

    /// A ReplicaSet counts as the Deployment that controls it.
    fn replica_set(&self, name: &Name, uid: &str) -> Option<(String, i32)> {
        let set = self.snapshot.replica_sets.get(name).filter(|set| set.uid() == uid)?;
        let own = || {
            let replicas = set.spec.as_ref().and_then(|spec| spec.replicas);
            (set.uid().to_owned(), replicas.unwrap_or(1))
        };
        let Some(owner) = set.controller().filter(|owner| owner.kind == "Deployment") else {
            return Some(own());
        };
        let deployment = self.snapshot.deployments.get(&Name::new(&name.namespace, &owner.name))?;
        let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas);
        Some((deployment.uid().to_owned(), replicas.unwrap_or(1)))
    }

    /// Evictions that were allowed and have not shown yet; late ones are given up.
    fn disrupted(
        &self,
        before: &PodDisruptionBudgetStatus,
        plan: &mut Plan,
    ) -> BTreeMap<String, Time> {
        let mut kept = BTreeMap::new();
        let Some(known) = &before.disrupted_pods else { return kept };
        for pod in self.pods.iter().filter(|pod| !pod.is_deleting()) {
            let Some(since) = known.get(pod.name()) else { continue };
            let left = DELETION_MAX - self.snapshot.now.duration_since(since.0);
            match Duration::try_from(left) {
                Ok(left) if !left.is_zero() => {
                    kept.insert(pod.name().to_owned(), since.clone());
                    plan.after(left);
                }
                _ => {
                    let (namespace, name) = (self.budget.namespace(), self.budget.name());
                    let message = format!(
                        "Pod was expected by PDB {namespace}/{name} to be deleted but it wasn't"
                    );
                    plan.warn(reference(pod.as_ref()), "NotDeleted", message);
                }
            }
        }
        kept
    }

    fn status(
        &self,
        before: &PodDisruptionBudgetStatus,
        expected: i32,
        desired: i32,
        plan: &mut Plan,
    ) -> PodDisruptionBudgetStatus {
        let disrupted = self.disrupted(before, plan);
        let healthy = self.pods.iter().filter(|pod| {
            !pod.is_deleting() && !disrupted.contains_key(pod.name()) && podfacts::is_ready(pod)
        });
        let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
        let spare = healthy.saturating_sub(desired);
        let allowed = if expected <= 0 || spare <= 0 { 0 } else { spare };
        let (holds, reason) =
            if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
        PodDisruptionBudgetStatus {
            conditions: Some(self.conditions(before, (holds, reason), "")),
            current_healthy: Some(healthy),
            desired_healthy: Some(desired),
            disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
            disruptions_allowed: Some(allowed),
            expected_pods: Some(expected),
            observed_generation: self.budget.meta().generation,
        }
    }

    /// Nothing may be evicted while the budget cannot be reckoned.
    fn failed(
        &self,
        before: &PodDisruptionBudgetStatus,
        message: String,
        plan: &mut Plan,
    ) -> PodDisruptionBudgetStatus {
        let told = format!("Failed to calculate the number of expected pods: {message}");
        plan.warn(reference(self.budget), "CalculateExpectedPodCountFailed", told);
        PodDisruptionBudgetStatus {
            conditions: Some(self.conditions(before, ("False", "SyncFailed"), &message)),
            disruptions_allowed: Some(0),
            observed_generation: self.budget.meta().generation,
            ..before.clone()
        }
    }

    fn conditions(
        &self,
        before: &PodDisruptionBudgetStatus,
        (holds, reason): (&str, &str),
        message: &str,
    ) -> Vec<Condition> {
        let known = before.conditions.iter().flatten();
        let old = known.clone().find(|one| one.type_ == ALLOWED).filter(|one| one.status == holds);
        let since = old.map_or(Time(self.snapshot.now), |one| one.last_transition_time.clone());
        let own = Condition {
            type_: ALLOWED.to_owned(),
            status: holds.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: since,
            observed_generation: self.budget.meta().generation,
        };
        let others = known.filter(|one| one.type_ != ALLOWED).cloned();
        others.chain([own]).collect()
    }
}

/// A selector as events show it.
fn shown(selector: &LabelSelector) -> String {
    let pairs: Vec<String> = selector
        .match_labels
        .iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.join(",")
}

#[cfg(test)]
mod tests;
