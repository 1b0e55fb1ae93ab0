//! ReplicationControllers. Decision: [`plan::workloads::replicationcontroller`].

use api::Name;
use api::core::ReplicationController;
use client::{ApplyError, Inputs, Next, Reconcile, Reflector, run};
use plan::action::{Action, Plan};
use plan::objects::{in_namespace, matches};
use plan::workloads::replicationcontroller::{Snapshot, failed, plan, selector};

use crate::owners::controller;
use crate::{Context, Reflectors, write::Writer};

struct ReplicationControllers {
    writer: Writer,
    controllers: Reflector<ReplicationController>,
}

impl Reconcile for ReplicationControllers {
    const NAME: &'static str = "replication-controller";
    type Key = Name;
    type Snapshot = Snapshot;
    type Plan = Plan;

    fn plan(&self, snapshot: &Snapshot, key: &Name) -> Plan {
        plan(snapshot, key)
    }

    async fn apply(&mut self, key: &Name, plan: Plan) -> Result<Next, ApplyError> {
        let creates = plan.actions.iter().any(|action| matches!(action, Action::CreatePods { .. }));
        let result = self.writer.write(plan).await;
        if let Err(ApplyError::Api(client::Error::Status(error))) = &result
            && creates
            && let Some(one) = self.controllers.view().objects.get(key)
            && let Some(one) = failed(one, "FailedCreate", &error.message, jiff::Timestamp::now())
        {
            let status = Action::UpdateStatus(one.into());
            // The creation's own failure is the one to report and to retry.
            let _ = self.writer.write(Plan { actions: vec![status], again: None }).await;
        }
        result
    }
}

pub(crate) async fn start(context: Context) {
    let writer = context.writer(ReplicationControllers::NAME);
    let Reflectors { replication_controllers: controllers, pods, .. } = context.reflectors;
    let all = controllers.clone();
    let inputs = Inputs::new()
        .on(&controllers, |change, dirty| {
            dirty.insert(change.name.clone());
        })
        .on(&pods, move |change, dirty| {
            let all = all.view();
            for pod in change.states() {
                dirty.extend(controller(pod, "ReplicationController"));
                let labels = pod.metadata.labels.as_ref();
                let orphan = api::Kind::controller(pod).is_none();
                let adopting = in_namespace(&all.objects, &change.name.namespace).filter(|one| {
                    orphan && selector(one).is_some_and(|selector| matches(&selector, labels))
                });
                dirty.extend(adopting.map(|one| api::Kind::object_name(one.as_ref())));
            }
        });
    let (client, read) = (writer.client.clone(), controllers.clone());
    let snapshot = move || Snapshot {
        controllers: read.view().objects.clone(),
        pods: pods.view().objects.clone(),
        now: jiff::Timestamp::now(),
    };
    let loop_ = ReplicationControllers { writer, controllers };
    run(loop_, client, inputs, snapshot, context.shutdown).await;
}
