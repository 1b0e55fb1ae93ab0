//! StatefulSets. Decision: [`plan::workloads::statefulset`].

use api::Name;
use client::{ApplyError, Inputs, Next, Reconcile, run};
use plan::action::Plan;
use plan::workloads::statefulset::{Snapshot, plan};

use crate::owners::{controller, selecting};
use crate::{Context, Reflectors, write::Writer};

struct StatefulSets(Writer);

impl Reconcile for StatefulSets {
    const NAME: &'static str = "statefulset-controller";
    type Key = Name;
    type Snapshot = Snapshot;
    type Plan = Plan;

    fn plan(&self, snapshot: &Snapshot, key: &Name) -> Plan {
        plan(snapshot, key)
    }

    async fn apply(&mut self, _: &Name, plan: Plan) -> Result<Next, ApplyError> {
        self.0.write(plan).await
    }
}

pub(crate) async fn start(context: Context) {
    let writer = context.writer(StatefulSets::NAME);
    let Reflectors { stateful_sets, pods, claims, revisions, .. } = context.reflectors;
    let all = stateful_sets.clone();
    let inputs = Inputs::new()
        .on(&stateful_sets, |change, dirty| {
            dirty.insert(change.name.clone());
        })
        .on(&pods, move |change, dirty| {
            dirty.extend(change.states().filter_map(|pod| controller(pod, "StatefulSet")));
            let all = all.view();
            dirty.extend(change.states().flat_map(|pod| selecting(&all.objects, pod)));
        })
        .on(&claims, |_, _| {})
        .on(&revisions, |change, dirty| {
            dirty.extend(change.states().filter_map(|one| controller(one, "StatefulSet")));
        });
    let client = writer.client.clone();
    let snapshot = move || Snapshot {
        stateful_sets: stateful_sets.view().objects.clone(),
        pods: pods.view().objects.clone(),
        claims: claims.view().objects.clone(),
        revisions: revisions.view().objects.clone(),
        now: jiff::Timestamp::now(),
    };
    run(StatefulSets(writer), client, inputs, snapshot, context.shutdown).await;
}
