//! DaemonSets. Decision: [`plan::workloads::daemonset`].

use api::Name;
use client::{ApplyError, Inputs, Next, Reconcile, run};
use plan::action::Plan;
use plan::workloads::daemonset::{Snapshot, plan};

use crate::owners::{controller, selecting};
use crate::{Context, Reflectors, write::Writer};

struct DaemonSets(Writer);

impl Reconcile for DaemonSets {
    const NAME: &'static str = "daemonset-controller";
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
    let writer = context.writer(DaemonSets::NAME);
    let Reflectors { daemon_sets, pods, nodes, revisions, .. } = context.reflectors;
    let (all, every) = (daemon_sets.clone(), daemon_sets.clone());
    let inputs = Inputs::new()
        .on(&daemon_sets, |change, dirty| {
            dirty.insert(change.name.clone());
        })
        .on(&pods, move |change, dirty| {
            dirty.extend(change.states().filter_map(|pod| controller(pod, "DaemonSet")));
            let all = all.view();
            dirty.extend(change.states().flat_map(|pod| selecting(&all.objects, pod)));
        })
        .on(&nodes, move |change, dirty| {
            let facts = |node: &api::core::Node| (node.spec.clone(), node.metadata.labels.clone());
            if change.old.map(|node| facts(node)) != change.new.map(|node| facts(node)) {
                dirty.extend(every.view().objects.keys().cloned());
            }
        })
        .on(&revisions, |change, dirty| {
            dirty.extend(change.states().filter_map(|one| controller(one, "DaemonSet")));
        });
    let client = writer.client.clone();
    let snapshot = move || Snapshot {
        daemon_sets: daemon_sets.view().objects.clone(),
        pods: pods.view().objects.clone(),
        nodes: nodes.view().objects.clone(),
        revisions: revisions.view().objects.clone(),
        now: jiff::Timestamp::now(),
    };
    run(DaemonSets(writer), client, inputs, snapshot, context.shutdown).await;
}
