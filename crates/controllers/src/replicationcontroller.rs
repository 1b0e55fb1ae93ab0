//! ReplicationControllers. Decision: [`plan::workloads::replicationcontroller`].

use api::Name;
use api::core::ReplicationController;
use client::{ApplyError, Inputs, Next, Reconcile, Reflector, run};
use plan::action::Plan;
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
        // As it is then: the plan may have written it, too.
        let told = |message: &str| {
            let one = self.controllers.view().objects.get(key).cloned()?;
            failed(&one, "FailedCreate", message, jiff::Timestamp::now()).map(Into::into)
        };
        self.writer.write_or_tell(plan, told).await
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
