//! What rollouts cost their clients. Decision: [`plan::rollout`].

use api::core::Event;
use client::{ApplyError, Inputs, ListParams, Next, Reconcile, Reflector, run};
use plan::action::Plan;
use plan::rollout::{Key, NOT_STOPPED, STOPPED, Snapshot, plan, workload};

use crate::{Context, Reflectors, write::Writer};

struct Rollouts(Writer);

impl Reconcile for Rollouts {
    const NAME: &'static str = "rollout-controller";
    type Key = Key;
    type Snapshot = Snapshot;
    type Plan = Plan;

    fn plan(&self, snapshot: &Snapshot, key: &Key) -> Plan {
        plan(snapshot, key)
    }

    async fn apply(&mut self, _: &Key, plan: Plan) -> Result<Next, ApplyError> {
        self.0.write(plan).await
    }
}

pub(crate) async fn start(context: Context) {
    let writer = context.writer(Rollouts::NAME);
    let client = writer.client.clone();
    let events = |reason| -> Reflector<Event> {
        let fields = format!("reason={reason}");
        Reflector::start(&client, ListParams { fields, ..ListParams::default() })
    };
    let (stopped, not_stopped) = (events(STOPPED), events(NOT_STOPPED));
    let Reflectors { deployments, replica_sets, stateful_sets, revisions, pods, .. } =
        context.reflectors;
    let sets = replica_sets.clone();
    // A rollout is over when its workload says so and the last old pod is gone.
    let inputs = Inputs::new()
        .on(&deployments, |change, dirty| {
            dirty.insert(Key::Deployment(change.name.clone()));
        })
        .on(&stateful_sets, |change, dirty| {
            dirty.insert(Key::StatefulSet(change.name.clone()));
        })
        .on(&pods, move |change, dirty| {
            if change.new.is_none() {
                dirty.extend(workload(&sets.view().objects, change.object()));
            }
        });
    let snapshot = move || Snapshot {
        deployments: deployments.view().objects.clone(),
        replica_sets: replica_sets.view().objects.clone(),
        stateful_sets: stateful_sets.view().objects.clone(),
        revisions: revisions.view().objects.clone(),
        pods: pods.view().objects.clone(),
        stopped: stopped.view().objects.clone(),
        not_stopped: not_stopped.view().objects.clone(),
        now: jiff::Timestamp::now(),
    };
    run(Rollouts(writer), client, inputs, snapshot, context.shutdown).await;
}
