//! Deployments: rolls pods from one template to the next. Upstream counterpart: `pkg/controller/deployment`.
//!
//! One step per plan: whatever is scaled shows up in the next snapshot, and the next plan goes on from there.

use std::sync::Arc;

use api::apps::{Deployment, ReplicaSet, ReplicaSetSpec};
use api::core::Pod;
use api::meta::ObjectMeta;
use api::{IntOrString, Kind, Name, Objects};
use jiff::Timestamp;

use super::{
    Claim, POD_TEMPLATE_HASH, claim, content_hash, is_same_template, resolve, with_template_hash,
};
use crate::action::{Action, Plan, delete};
use crate::objects::{Labels, annotation, in_namespace, is_controlled_by, reference};
use crate::podfacts;

mod rollout;
mod scale;
mod status;

/// The annotation that numbers the revisions of a Deployment.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that its ReplicaSets do not copy.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.revision",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
];

/// What Deployments are planned from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All Deployments.
    pub deployments: Objects<Deployment>,
    /// All ReplicaSets.
    pub replica_sets: Objects<ReplicaSet>,
    /// All pods.
    pub pods: Objects<Pod>,
    /// The time of the plan.
    pub now: Timestamp,
}

/// One Deployment with its ReplicaSets, while it is planned.
struct Rollout<'a> {
    snapshot: &'a Snapshot,
    deployment: &'a Deployment,
    /// The set of the current template.
    new: Option<ReplicaSet>,
    /// All others, oldest first.
    old: Vec<ReplicaSet>,
    /// A reason and message for `Progressing`, when this step gives one.
    news: Option<(&'static str, String)>,
    /// Names that are taken by another template: the next hash must differ.
    collided: bool,
    /// The Deployment's own revision annotation, written after the status, which needs the present resourceVersion.
    annotate: Option<Action>,
    plan: Plan,
}

/// Rolls the Deployment one step on, and writes its status.
#[must_use]
pub fn plan(snapshot: &Snapshot, key: &Name) -> Plan {
    let Some(deployment) = snapshot.deployments.get(key) else { return Plan::none() };
    let Some(spec) = &deployment.spec else { return Plan::none() };
    if spec.selector == api::meta::LabelSelector::default() {
        let mut plan = Plan::none();
        let message = "This deployment is selecting all pods. A non-empty selector is required.";
        plan.warn(reference(deployment.as_ref()), "SelectingAll", message.into());
        return plan;
    }
    let candidates = in_namespace(&snapshot.replica_sets, deployment.namespace());
    let Claim { owned, actions } = claim(deployment.as_ref(), &spec.selector, candidates);
    let mut rollout = Rollout::new(snapshot, deployment, &owned, actions);
    if !deployment.is_deleting() {
        rollout.step();
    }
    rollout.write_status();
    rollout.plan.actions.extend(rollout.annotate);
    rollout.plan
}

impl<'a> Rollout<'a> {
    fn new(
        snapshot: &'a Snapshot,
        deployment: &'a Deployment,
        owned: &[Arc<ReplicaSet>],
        actions: Vec<Action>,
    ) -> Self {
        let mut sets: Vec<ReplicaSet> =
            owned.iter().map(|set| ReplicaSet::clone(set.as_ref())).collect();
        sets.sort_by_key(|set| (podfacts::created(set), set.name().to_owned()));
        let template = deployment.spec.as_ref().map(|spec| &spec.template);
        let is_new = |set: &ReplicaSet| {
            let own = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            own.zip(template).is_some_and(|(one, two)| is_same_template(one, two))
        };
        let new = sets.iter().position(is_new).map(|index| sets.remove(index));
        let plan = Plan { actions, again: None };
        Self {
            snapshot,
            deployment,
            new,
            old: sets,
            news: None,
            collided: false,
            annotate: None,
            plan,
        }
    }

    fn step(&mut self) {
        let spec = self.deployment.spec.clone().unwrap_or_default();
        if spec.paused == Some(true) {
            self.news = Some(("DeploymentPaused", "Deployment is paused".into()));
            self.keep_revision();
            self.scale_in_proportion();
            self.clean_up();
        } else if self.is_scaling() {
            self.keep_revision();
            self.scale_in_proportion();
        } else if spec.strategy.as_ref().and_then(|one| one.type_.as_deref()) == Some("Recreate") {
            self.recreate();
        } else {
            self.roll();
        }
    }

    /// Whether `spec.replicas` changed since the sets were scaled last.
    fn is_scaling(&self) -> bool {
        let wanted = self.replicas();
        self.sets().filter(|set| replicas(set) > 0).any(|set| {
            let seen = annotation(set, DESIRED_REPLICAS).and_then(|text| text.parse::<i32>().ok());
            seen.is_some_and(|seen| seen != wanted)
        })
    }

    fn recreate(&mut self) {
        let mut scaled = false;
        for index in 0..self.old.len() {
            if replicas(&self.old[index]) > 0 {
                self.scale_old(index, 0);
                scaled = true;
            }
        }
        if scaled || self.old_pods_run() {
            self.keep_revision();
            return;
        }
        if self.ensure_new(self.replicas()) && self.new_replicas() != self.replicas() {
            self.scale_new(self.replicas());
        }
        self.clean_up();
    }

    fn old_pods_run(&self) -> bool {
        in_namespace(&self.snapshot.pods, self.deployment.namespace()).any(|pod| {
            !podfacts::is_terminal(pod)
                && self.old.iter().any(|set| is_controlled_by(pod.as_ref(), set))
        })
    }

    /// The wanted number of pods.
    fn replicas(&self) -> i32 {
        self.deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn new_replicas(&self) -> i32 {
        self.new.as_ref().map_or(0, replicas)
    }

    fn sets(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.old.iter().chain(&self.new)
    }

    /// `(maxSurge, maxUnavailable)` as numbers; never both zero.
    fn fenceposts(&self) -> (i32, i32) {
        let strategy = self.deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
        if strategy.and_then(|one| one.type_.as_deref()) == Some("Recreate") {
            return (0, 0);
        }
        let rolling = strategy.and_then(|one| one.rolling_update.clone()).unwrap_or_default();
        let quarter = IntOrString::String("25%".into());
        let replicas = self.replicas();
        let surge = resolve(rolling.max_surge.as_ref().unwrap_or(&quarter), replicas, true);
        let unavailable = rolling.max_unavailable.as_ref().unwrap_or(&quarter);
        let unavailable = resolve(unavailable, replicas, false);
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        (surge, unavailable.min(replicas))
    }

    /// Makes the set of the current template, or brings its annotations up to date. Whether it is there already.
    fn ensure_new(&mut self, size: i32) -> bool {
        if self.new.is_some() {
            self.keep_revision();
            return true;
        }
        let Some(spec) = &self.deployment.spec else { return false };
        let collisions = self.deployment.status.as_ref().and_then(|status| status.collision_count);
        let hash = content_hash(&spec.template, collisions.unwrap_or(0));
        let name = format!("{}-{hash}", self.deployment.name());
        if self.snapshot.replica_sets.contains_key(&Name::new(self.deployment.namespace(), &name)) {
            self.collided = true;
            return false;
        }
        let set = self.set_of(&name, &hash, size);
        self.plan.push(Action::Create(set.clone().into()));
        if size > 0 {
            let message = format!("Scaled up replica set {name} from 0 to {size}");
            self.plan.event(reference(self.deployment), "ScalingReplicaSet", message);
        }
        self.news = Some(("NewReplicaSetCreated", format!("Created new replica set \"{name}\"")));
        self.write_revision(self.next_revision());
        self.new = Some(set);
        false
    }

    fn set_of(&self, name: &str, hash: &str, size: i32) -> ReplicaSet {
        let spec = self.deployment.spec.clone().unwrap_or_default();
        let template = with_template_hash(&spec.template, Some(hash));
        let mut selector = spec.selector.clone();
        let exact = selector.match_labels.get_or_insert_default();
        exact.insert(POD_TEMPLATE_HASH.to_owned(), hash.to_owned());
        let mut annotations = copied_annotations(self.deployment);
        annotations.insert(REVISION.to_owned(), self.next_revision().to_string());
        self.annotate_size(&mut annotations);
        ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(self.deployment.namespace().to_owned()),
                labels: template.metadata.as_ref().and_then(|meta| meta.labels.clone()),
                annotations: Some(annotations),
                owner_references: Some(vec![self.deployment.as_controller()]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(size),
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        }
    }

    fn next_revision(&self) -> i64 {
        self.old.iter().map(revision).max().unwrap_or(0) + 1
    }

    /// Keeps the new set's annotations and minReadySeconds, and the Deployment's own revision, in step.
    fn keep_revision(&mut self) {
        let wanted = self.next_revision();
        let Some(set) = &self.new else { return };
        let mut changed = set.clone();
        let annotations = changed.metadata.annotations.get_or_insert_default();
        annotations.extend(copied_annotations(self.deployment));
        let present = revision(set);
        let now = present.max(wanted);
        if present < wanted {
            if present > 0 {
                let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
                if !history.is_empty() {
                    history.push(',');
                }
                history.push_str(&present.to_string());
            }
            annotations.insert(REVISION.to_owned(), wanted.to_string());
        }
        if let Some(spec) = &mut changed.spec {
            let seconds = self.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
            if spec.min_ready_seconds.unwrap_or(0) != seconds.unwrap_or(0) {
                spec.min_ready_seconds = seconds;
            }
        }
        if changed != *set {
            self.plan.push(Action::Update(changed.clone().into()));
            // The stored resourceVersion moved on: further writes of this set wait for the next plan.
            changed.metadata.resource_version = None;
            self.new = Some(changed);
        }
        self.write_revision(now);
    }

    fn write_revision(&mut self, revision: i64) {
        let text = revision.to_string();
        if annotation(self.deployment, REVISION) != Some(&text) {
            let annotations = serde_json::json!({ "annotations": { REVISION: text } });
            self.annotate = Some(Action::Patch {
                kind: crate::action::ObjectKind::Deployment,
                name: self.deployment.object_name(),
                status: false,
                patch: serde_json::json!({ "metadata": annotations }),
            });
        }
    }

    /// Deletes old sets without pods beyond `revisionHistoryLimit`, once the rollout is complete.
    fn clean_up(&mut self) {
        let limit = self.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit);
        let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(0);
        let mut alive: Vec<_> = self.old.iter().filter(|set| !set.is_deleting()).collect();
        alive.sort_by_key(|set| (revision(set), podfacts::created(*set)));
        let surplus = alive.len().saturating_sub(limit);
        let idle = |set: &&ReplicaSet| {
            let status = set.status.clone().unwrap_or_default();
            status.replicas == 0
                && replicas(set) == 0
                && status.observed_generation >= set.metadata.generation
        };
        let gone: Vec<_> = alive.into_iter().take(surplus).filter(idle).map(delete).collect();
        self.plan.actions.extend(gone);
    }
}

fn copied_annotations(deployment: &Deployment) -> Labels {
    let mut annotations = deployment.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    annotations
}

/// The set's wanted number of pods.
fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// The set's number of available pods.
fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

/// The revision that the set was made for.
fn revision(set: &ReplicaSet) -> i64 {
    annotation(set, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
