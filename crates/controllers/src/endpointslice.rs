//! EndpointSlices, and the mirror of hand-written Endpoints. Decision: [`plan::endpointslice`].

use std::collections::BTreeSet;

use api::Name;
use client::{ApplyError, Inputs, Next, Reconcile, run};
use plan::action::Plan;
use plan::endpointslice::{Snapshot, follows_cpus, mirror, plan, service_of, services_of, weight};

use crate::{Context, Reflectors, write::Writer};

struct Slices(Writer);

impl Reconcile for Slices {
    const NAME: &'static str = "endpoint-slice-controller";
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
    let writer = context.writer(Slices::NAME);
    let Reflectors { services, pods, slices, nodes, .. } = context.reflectors;
    let (all, every) = (services.clone(), services.clone());
    let inputs = Inputs::new()
        .on(&services, |change, dirty| {
            dirty.insert(change.name.clone());
        })
        .on(&pods, move |change, dirty| {
            let all = all.view();
            dirty.extend(change.states().flat_map(|pod| services_of(&all.objects, pod)));
        })
        .on(&slices, |change, dirty| dirty.extend(change.states().filter_map(service_of)))
        // Zones: a node that appears, goes or moves may be in any slice. Its CPUs count where hints follow them.
        .on(&nodes, move |change, dirty| {
            let labels = change.states().map(|node| node.metadata.labels.clone());
            let labels: BTreeSet<_> = labels.collect();
            let weights: BTreeSet<_> = change.states().map(weight).collect();
            let moved = labels.len() > 1 || change.old.is_none() || change.new.is_none();
            if moved || weights.len() > 1 {
                let services = every.view().objects.clone();
                let concerned = services.iter().filter(|(_, one)| moved || follows_cpus(one));
                dirty.extend(concerned.map(|(name, _)| name.clone()));
            }
        });
    let client = writer.client.clone();
    let snapshot = move || Snapshot {
        services: services.view().objects.clone(),
        pods: pods.view().objects.clone(),
        slices: slices.view().objects.clone(),
        nodes: nodes.view().objects.clone(),
    };
    run(Slices(writer), client, inputs, snapshot, context.shutdown).await;
}

struct Mirror(Writer);

impl Reconcile for Mirror {
    const NAME: &'static str = "endpoint-slice-mirroring-controller";
    type Key = Name;
    type Snapshot = mirror::Snapshot;
    type Plan = Plan;

    fn plan(&self, snapshot: &mirror::Snapshot, key: &Name) -> Plan {
        mirror::plan(snapshot, key)
    }

    async fn apply(&mut self, _: &Name, plan: Plan) -> Result<Next, ApplyError> {
        self.0.write(plan).await
    }
}

pub(crate) async fn start_mirror(context: Context) {
    let writer = context.writer(Mirror::NAME);
    let Reflectors { services, endpoints, slices, .. } = context.reflectors;
    let inputs = Inputs::new()
        .on(&services, |change, dirty| {
            dirty.insert(change.name.clone());
        })
        .on(&endpoints, |change, dirty| {
            dirty.insert(change.name.clone());
        })
        .on(&slices, |change, dirty| dirty.extend(change.states().filter_map(service_of)));
    let client = writer.client.clone();
    let snapshot = move || mirror::Snapshot {
        services: services.view().objects.clone(),
        endpoints: endpoints.view().objects.clone(),
        slices: slices.view().objects.clone(),
    };
    run(Mirror(writer), client, inputs, snapshot, context.shutdown).await;
}
