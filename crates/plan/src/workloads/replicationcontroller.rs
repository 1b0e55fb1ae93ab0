//! ReplicationControllers: ReplicaSets of the first days, planned as one. Upstream counterpart: `pkg/controller/replication`,
//! which is an adapter too.

use std::sync::Arc;

use api::apps::{ReplicaSet, ReplicaSetSpec};
use api::core::{Pod, ReplicationController, ReplicationControllerStatus};
use api::meta::LabelSelector;
use api::{Kind, Name, Objects};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::replicaset;
use crate::action::{Action, Object, Plan};
use crate::objects::reference;

/// What ReplicationControllers are planned from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All ReplicationControllers.
    pub controllers: Objects<ReplicationController>,
    /// All pods.
    pub pods: Objects<Pod>,
    /// The time of the plan.
    pub now: Timestamp,
}

/// Creates or deletes pods until the count is right, and writes the status.
#[must_use]
pub fn plan(snapshot: &Snapshot, key: &Name) -> Plan {
    let Some(controller) = snapshot.controllers.get(key) else { return Plan::none() };
    let Some(set) = as_set(controller) else { return Plan::none() };
    let as_sets = replicaset::Snapshot {
        replica_sets: [(key.clone(), Arc::new(set))].into_iter().collect(),
        pods: snapshot.pods.clone(),
        now: snapshot.now,
    };
    let mut plan = replicaset::plan(&as_sets, key);
    plan.actions = plan.actions.into_iter().map(|action| own(action, controller)).collect();
    plan
}

/// The ReplicationController with a condition that tells why pods were not created.
#[must_use]
pub fn failed(
    controller: &ReplicationController,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Option<ReplicationController> {
    let failed = replicaset::failed(&as_set(controller)?, reason, message, now)?;
    Some(with_status(controller, &failed))
}

/// The labels that a ReplicationController selects by.
#[must_use]
pub fn selector(controller: &ReplicationController) -> Option<LabelSelector> {
    let labels = controller.spec.as_ref()?.selector.clone()?;
    Some(LabelSelector { match_labels: Some(labels), match_expressions: None })
}

fn as_set(controller: &ReplicationController) -> Option<ReplicaSet> {
    let spec = controller.spec.as_ref()?;
    Some(ReplicaSet {
        metadata: controller.metadata.clone(),
        spec: Some(ReplicaSetSpec {
            replicas: spec.replicas,
            min_ready_seconds: spec.min_ready_seconds,
            selector: selector(controller)?,
            template: spec.template.clone(),
        }),
        // The fields of the two are the same.
        status: serde_json::from_value(json!(controller.status)).ok(),
    })
}

fn with_status(controller: &ReplicationController, set: &ReplicaSet) -> ReplicationController {
    let mut controller = controller.clone();
    let mut status = json!(set.status);
    status.as_object_mut().map(|status| status.remove("terminatingReplicas"));
    controller.status =
        serde_json::from_value::<Option<ReplicationControllerStatus>>(status).ok().flatten();
    controller
}

/// An action about the set as one about the controller.
fn own(action: Action, controller: &ReplicationController) -> Action {
    match action {
        Action::UpdateStatus(Object::ReplicaSet(set)) => {
            Action::UpdateStatus(with_status(controller, &set).into())
        }
        Action::CreatePods { mut pods, .. } => {
            for pod in &mut pods {
                pod.metadata.owner_references = Some(vec![controller.as_controller()]);
            }
            Action::CreatePods { owner: reference(controller), pods }
        }
        Action::DeletePods { pods, .. } => {
            Action::DeletePods { owner: reference(controller), pods }
        }
        Action::Patch { kind, name, status, mut patch } => {
            let owners = patch.pointer_mut("/metadata/ownerReferences");
            for owner in owners.and_then(Value::as_array_mut).into_iter().flatten() {
                if owner["uid"] == controller.uid() {
                    *owner = json!(controller.as_controller());
                }
            }
            Action::Patch { kind, name, status, patch }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::ObjectKind;
    use crate::world::World;

    fn step(world: &mut World, name: &Name) {
        let snapshot = Snapshot { controllers: world.all(), pods: world.all(), now: world.time() };
        world.apply(plan(&snapshot, name));
    }

    fn controller(world: &mut World) -> Name {
        world.add::<ReplicationController>(json!({
            "metadata": {"name": "rc", "namespace": "a"},
            "spec": {"replicas": 2, "selector": {"app": "x"}, "template": {
                "metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c"}]}}},
        }))
    }

    #[test]
    fn pods_are_the_controllers_own() {
        let mut world = World::at(0);
        let name = controller(&mut world);
        for _ in 0..3 {
            step(&mut world, &name);
        }
        let pods = world.all::<Pod>();
        assert_eq!(pods.len(), 2);
        for pod in pods.values() {
            let owner = pod.controller().expect("owned");
            assert_eq!((&*owner.kind, &*owner.api_version), ("ReplicationController", "v1"));
        }
        let status = world.all::<ReplicationController>()[&name].status.clone().expect("written");
        assert_eq!(status.replicas, 2);

        world.edit(ObjectKind::ReplicationController, &name, &json!({"spec": {"replicas": 0}}));
        step(&mut world, &name);
        assert!(
            world.all::<Pod>().values().all(|pod| pod.is_deleting())
                || world.all::<Pod>().is_empty()
        );
    }

    #[test]
    fn orphans_are_adopted_and_released_by_their_labels() {
        let mut world = World::at(0);
        let orphan = world.add::<Pod>(json!({
            "metadata": {"name": "p", "namespace": "a", "labels": {"app": "x"}},
            "spec": {"containers": [{"name": "c"}]},
        }));
        let name = controller(&mut world);
        step(&mut world, &name);
        let owner = world.all::<Pod>()[&orphan].controller().cloned().expect("adopted");
        assert_eq!(owner.kind, "ReplicationController");

        world.edit(ObjectKind::Pod, &orphan, &json!({"metadata": {"labels": {"app": "y"}}}));
        step(&mut world, &name);
        assert!(world.all::<Pod>()[&orphan].controller().is_none());
    }
}
