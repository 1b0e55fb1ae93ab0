//! PodDisruptionBudgets. Decision: [`plan::disruption`].

use std::collections::BTreeSet;

use api::policy::PodDisruptionBudget;
use api::{Kind, Name};
use client::{ApplyError, Inputs, Next, Reconcile, Reflector, run};
use plan::action::Plan;
use plan::disruption::{Snapshot, plan, selects};
use plan::objects::in_namespace;

use crate::{Context, Reflectors, write::Writer};

struct Disruption(Writer);

impl Reconcile for Disruption {
    const NAME: &'static str = "disruption-controller";
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

/// All budgets of a namespace: what a controller of pods wants may concern each of them, and there are few.
fn near(
    budgets: &Reflector<PodDisruptionBudget>,
) -> impl Fn(&Name, &mut BTreeSet<Name>) + Send + Sync + 'static {
    let budgets = budgets.clone();
    move |changed, dirty| {
        let view = budgets.view();
        let here = in_namespace(&view.objects, &changed.namespace);
        dirty.extend(here.map(|budget| budget.object_name()));
    }
}

pub(crate) async fn start(context: Context) {
    let writer = context.writer(Disruption::NAME);
    let Reflectors { budgets, pods, deployments, replica_sets, stateful_sets, .. } =
        context.reflectors;
    let all = budgets.clone();
    let (first, second, third) = (near(&budgets), near(&budgets), near(&budgets));
    let inputs = Inputs::new()
        .on(&budgets, |change, dirty| {
            dirty.insert(change.name.clone());
        })
        .on(&pods, move |change, dirty| {
            let view = all.view();
            let here = in_namespace(&view.objects, &change.name.namespace);
            let concerned = here.filter(|budget| change.states().any(|pod| selects(budget, pod)));
            dirty.extend(concerned.map(|budget| budget.object_name()));
        })
        .on(&deployments, move |change, dirty| first(change.name, dirty))
        .on(&replica_sets, move |change, dirty| second(change.name, dirty))
        .on(&stateful_sets, move |change, dirty| third(change.name, dirty));
    let client = writer.client.clone();
    let snapshot = move || Snapshot {
        budgets: budgets.view().objects.clone(),
        pods: pods.view().objects.clone(),
        deployments: deployments.view().objects.clone(),
        replica_sets: replica_sets.view().objects.clone(),
        stateful_sets: stateful_sets.view().objects.clone(),
        now: jiff::Timestamp::now(),
    };
    run(Disruption(writer), client, inputs, snapshot, context.shutdown).await;
}
