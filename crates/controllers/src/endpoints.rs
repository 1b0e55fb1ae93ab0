//! The older Endpoints. Decision: [`plan::endpoints`].

use api::Name;
use client::{ApplyError, Inputs, Next, Reconcile, run};
use plan::action::Plan;
use plan::endpoints::{Snapshot, plan};
use plan::endpointslice::services_of;

use crate::{Context, Reflectors, write::Writer};

struct Endpoints(Writer);

impl Reconcile for Endpoints {
    const NAME: &'static str = "endpoint-controller";
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
    let writer = context.writer(Endpoints::NAME);
    let Reflectors { services, pods, endpoints, .. } = context.reflectors;
    let all = services.clone();
    let inputs = Inputs::new()
        .on(&services, |change, dirty| {
            dirty.insert(change.name.clone());
        })
        .on(&pods, move |change, dirty| {
            let all = all.view();
            dirty.extend(change.states().flat_map(|pod| services_of(&all.objects, pod)));
        })
        .on(&endpoints, |change, dirty| {
            dirty.insert(change.name.clone());
        });
    let client = writer.client.clone();
    let snapshot = move || Snapshot {
        services: services.view().objects.clone(),
        pods: pods.view().objects.clone(),
        endpoints: endpoints.view().objects.clone(),
    };
    run(Endpoints(writer), client, inputs, snapshot, context.shutdown).await;
}
