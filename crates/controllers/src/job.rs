//! Jobs. Decision: [`plan::workloads::job`].

use api::Name;
use client::{ApplyError, Inputs, Next, Reconcile, run};
use plan::action::Plan;
use plan::workloads::job::{Snapshot, plan};

use crate::owners::{controller, selecting};
use crate::{Context, Reflectors, write::Writer};

struct Jobs(Writer);

impl Reconcile for Jobs {
    const NAME: &'static str = "job-controller";
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
    let writer = context.writer(Jobs::NAME);
    let Reflectors { jobs, pods, .. } = context.reflectors;
    let all = jobs.clone();
    let inputs = Inputs::new()
        .on(&jobs, |change, dirty| {
            dirty.insert(change.name.clone());
        })
        .on(&pods, move |change, dirty| {
            dirty.extend(change.states().filter_map(|pod| controller(pod, "Job")));
            let all = all.view();
            dirty.extend(change.states().flat_map(|pod| selecting(&all.objects, pod)));
        });
    let client = writer.client.clone();
    let snapshot = move || Snapshot {
        jobs: jobs.view().objects.clone(),
        pods: pods.view().objects.clone(),
        now: jiff::Timestamp::now(),
    };
    run(Jobs(writer), client, inputs, snapshot, context.shutdown).await;
}
