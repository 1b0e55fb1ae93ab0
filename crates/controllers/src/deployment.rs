//! Deployments. Decision: [`plan::workloads::deployment`].

use api::Name;
use client::{ApplyError, Inputs, Next, Reconcile, run};
use plan::action::Plan;
use plan::workloads::deployment::{Snapshot, plan};

use crate::owners::{controller, selecting};
use crate::{Context, Reflectors, write::Writer};

struct Deployments(Writer);

impl Reconcile for Deployments {
    const NAME: &'static str = "deployment-controller";
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
    let writer = context.writer(Deployments::NAME);
    let Reflectors { deployments, replica_sets, pods, .. } = context.reflectors;
    let (all, sets) = (deployments.clone(), replica_sets.clone());
    let inputs = Inputs::new()
        .on(&deployments, |change, dirty| {
            dirty.insert(change.name.clone());
        })
        .on(&replica_sets, move |change, dirty| {
            dirty.extend(change.states().filter_map(|set| controller(set, "Deployment")));
            let all = all.view();
            dirty.extend(change.states().flat_map(|set| selecting(&all.objects, set)));
        })
        // A Recreate rollout goes on when the last old pod is gone.
        .on(&pods, move |change, dirty| {
            if change.new.is_none()
                && let Some(owner) = controller(change.object(), "ReplicaSet")
                && let Some(set) = sets.view().objects.get(&owner)
            {
                dirty.extend(controller(set.as_ref(), "Deployment"));
            }
        });
    let client = writer.client.clone();
    let snapshot = move || Snapshot {
        deployments: deployments.view().objects.clone(),
        replica_sets: replica_sets.view().objects.clone(),
        pods: pods.view().objects.clone(),
        now: jiff::Timestamp::now(),
    };
    run(Deployments(writer), client, inputs, snapshot, context.shutdown).await;
}
