//! ReplicaSets. Decision: [`plan::workloads::replicaset`].

use api::Name;
use api::apps::ReplicaSet;
use client::{ApplyError, Inputs, Next, Reconcile, Reflector, run};
use plan::action::Plan;
use plan::workloads::replicaset::{Snapshot, failed, plan};

use crate::owners::{controller, selecting};
use crate::{Context, Reflectors, write::Writer};

struct ReplicaSets {
    writer: Writer,
    sets: Reflector<ReplicaSet>,
}

impl Reconcile for ReplicaSets {
    const NAME: &'static str = "replicaset-controller";
    type Key = Name;
    type Snapshot = Snapshot;
    type Plan = Plan;

    fn plan(&self, snapshot: &Snapshot, key: &Name) -> Plan {
        plan(snapshot, key)
    }

    async fn apply(&mut self, key: &Name, plan: Plan) -> Result<Next, ApplyError> {
        // As it is then: the plan may have written it, too.
        let told = |message: &str| {
            let set = self.sets.view().objects.get(key).cloned()?;
            failed(&set, "FailedCreate", message, jiff::Timestamp::now()).map(Into::into)
        };
        self.writer.write_or_tell(plan, told).await
    }
}

pub(crate) async fn start(context: Context) {
    let writer = context.writer(ReplicaSets::NAME);
    let Reflectors { replica_sets: sets, pods, .. } = context.reflectors;
    let all = sets.clone();
    let inputs = Inputs::new()
        .on(&sets, |change, dirty| {
            dirty.insert(change.name.clone());
        })
        .on(&pods, move |change, dirty| {
            dirty.extend(change.states().filter_map(|pod| controller(pod, "ReplicaSet")));
            let all = all.view();
            dirty.extend(change.states().flat_map(|pod| selecting(&all.objects, pod)));
        });
    let (client, sets_read) = (writer.client.clone(), sets.clone());
    let snapshot = move || Snapshot {
        replica_sets: sets_read.view().objects.clone(),
        pods: pods.view().objects.clone(),
        now: jiff::Timestamp::now(),
    };
    run(ReplicaSets { writer, sets }, client, inputs, snapshot, context.shutdown).await;
}
