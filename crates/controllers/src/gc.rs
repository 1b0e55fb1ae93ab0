//! Garbage collection by owner references. Decision: [`plan::gc`].

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{ApplyError, Change, Inputs, Next, Reconcile, Reflector, run};
use plan::action::Known;
use plan::gc::{Graph, Item, Plan, plan};

use crate::{Context, write::Writer};

/// How long the graph may lag behind an owner that the API still has.
const LAG: Duration = Duration::from_secs(1);

struct Collector(Writer);

impl Reconcile for Collector {
    const NAME: &'static str = "generic-garbage-collector";
    /// A uid.
    type Key = String;
    type Snapshot = Graph;
    type Plan = Plan;

    fn plan(&self, snapshot: &Graph, key: &String) -> Plan {
        plan(snapshot, key)
    }

    async fn apply(&mut self, _: &String, plan: Plan) -> Result<Next, ApplyError> {
        if plan.writes.actions.is_empty() {
            return Ok(Next::Wait);
        }
        for (kind, name, uid) in &plan.absent {
            if self.0.exists(*kind, name, uid).await? {
                return Ok(Next::After(LAG));
            }
        }
        self.0.write(plan.writes).await
    }
}

type Shared = Arc<Mutex<Graph>>;

/// Keeps the graph in step with one kind; the object, its owners and its dependents are to be looked at.
fn follow<K: Known>(
    inputs: Inputs<String>,
    reflector: &Reflector<K>,
    graph: &Shared,
) -> Inputs<String> {
    let graph = Arc::clone(graph);
    inputs.on(reflector, move |change: &Change<'_, K>, dirty: &mut BTreeSet<String>| {
        let mut graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
        for object in change.states() {
            let item = Item::new(K::KNOWN, change.name.clone(), object.meta());
            let ends = item.deleting || change.new.is_none();
            if item.owners.is_empty() && !ends {
                continue;
            }
            dirty.insert(item.uid.clone());
            dirty.extend(item.owners.iter().map(|owner| owner.uid.clone()));
            if ends {
                dirty.extend(graph.dependents(&item.uid).map(ToOwned::to_owned));
            }
        }
        if let Some(old) = change.old
            && change.new.is_none_or(|new| new.uid() != old.uid())
        {
            graph.remove(old.uid());
        }
        if let Some(new) = change.new {
            graph.insert(Item::new(K::KNOWN, change.name.clone(), new.meta()));
        }
    })
}

pub(crate) async fn start(context: Context) {
    let writer = context.writer(Collector::NAME);
    let all = context.reflectors;
    let graph = Shared::default();
    let inputs = follow(Inputs::new(), &all.pods, &graph);
    let inputs = follow(inputs, &all.nodes, &graph);
    let inputs = follow(inputs, &all.services, &graph);
    let inputs = follow(inputs, &all.endpoints, &graph);
    let inputs = follow(inputs, &all.slices, &graph);
    let inputs = follow(inputs, &all.config_maps, &graph);
    let inputs = follow(inputs, &all.secrets, &graph);
    let inputs = follow(inputs, &all.service_accounts, &graph);
    let inputs = follow(inputs, &all.volumes, &graph);
    let inputs = follow(inputs, &all.claims, &graph);
    let inputs = follow(inputs, &all.deployments, &graph);
    let inputs = follow(inputs, &all.replica_sets, &graph);
    let inputs = follow(inputs, &all.stateful_sets, &graph);
    let inputs = follow(inputs, &all.daemon_sets, &graph);
    let inputs = follow(inputs, &all.revisions, &graph);
    let inputs = follow(inputs, &all.jobs, &graph);
    let inputs = follow(inputs, &all.cron_jobs, &graph);
    let client = writer.client.clone();
    let snapshot = move || graph.lock().unwrap_or_else(PoisonError::into_inner).clone();
    run(Collector(writer), client, inputs, snapshot, context.shutdown).await;
}
