//! Nodes, and pods whose node is gone. Decision: [`plan::nodes`].

use std::time::Duration;

use api::{Kind, Name};
use client::{ApplyError, Inputs, Next, Reconcile, run};
use plan::action::Plan;
use plan::nodes::{Snapshot, orphans, plan};
use plan::podfacts;

use crate::{Context, Reflectors, write::Writer};

struct Nodes(Writer);

impl Reconcile for Nodes {
    const NAME: &'static str = "node-controller";
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
    let writer = context.writer(Nodes::NAME);
    let Reflectors { nodes, leases, pods, .. } = context.reflectors;
    let inputs = Inputs::new()
        .on(&nodes, |change, dirty| {
            dirty.insert(change.name.clone());
        })
        .on(&leases, |change, dirty| {
            dirty.insert(Name::cluster(&change.name.name));
        })
        .on(&pods, |change, dirty| {
            let node = change.new.map(|pod| podfacts::node_name(pod).to_owned());
            let node = node.filter(|node| !node.is_empty());
            dirty.extend(node.map(|node| Name::cluster(&node)));
        });
    let client = writer.client.clone();
    let (pod_cidr, started) = (context.options.pod_cidr, jiff::Timestamp::now());
    let grace = Duration::from_secs(u64::from(context.options.node_grace_seconds));
    let snapshot = move || Snapshot {
        nodes: nodes.view().objects.clone(),
        leases: leases.view().objects.clone(),
        pods: pods.view().objects.clone(),
        pod_cidr: pod_cidr.clone(),
        grace,
        started,
        now: jiff::Timestamp::now(),
    };
    run(Nodes(writer), client, inputs, snapshot, context.shutdown).await;
}

struct Orphans(Writer);

impl Reconcile for Orphans {
    const NAME: &'static str = "pod-garbage-collector";
    type Key = ();
    type Snapshot = orphans::Snapshot;
    type Plan = orphans::Plans;

    fn plan(&self, snapshot: &orphans::Snapshot, (): &()) -> orphans::Plans {
        orphans::plan(snapshot)
    }

    async fn apply(&mut self, (): &(), plans: orphans::Plans) -> Result<Next, ApplyError> {
        let mut next = Next::Wait;
        for (node, plan) in plans {
            // The pods may be newer than the nodes here: a node counts as gone when the API says so.
            if !node.is_empty() {
                let found = self.0.client.get::<api::core::Node>("", &node).await;
                match found {
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error.into()),
                    Ok(_) => {
                        next = Next::After(Duration::from_secs(1));
                        continue;
                    }
                }
            }
            self.0.write(plan).await?;
        }
        Ok(next)
    }
}

pub(crate) async fn start_orphans(context: Context) {
    let writer = context.writer(Orphans::NAME);
    let Reflectors { nodes, pods, .. } = context.reflectors;
    let known = nodes.clone();
    let inputs = Inputs::new()
        .on(&nodes, |change, dirty| {
            if change.new.is_none() {
                dirty.insert(());
            }
        })
        .on(&pods, move |change, dirty| {
            let Some(pod) = change.new else { return };
            let node = podfacts::node_name(pod);
            let lost = !node.is_empty() && !known.view().objects.contains_key(&Name::cluster(node));
            if lost || (pod.is_deleting() && node.is_empty()) {
                dirty.insert(());
            }
        })
        .with(());
    let client = writer.client.clone();
    let snapshot = move || orphans::Snapshot {
        pods: pods.view().objects.clone(),
        nodes: nodes.view().objects.clone(),
        now: jiff::Timestamp::now(),
    };
    run(Orphans(writer), client, inputs, snapshot, context.shutdown).await;
}
