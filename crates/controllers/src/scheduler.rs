//! The scheduler. Decision: [`plan::scheduler`].

use std::collections::BTreeMap;

use api::Kind;
use client::{ApplyError, Inputs, Next, Reconcile, Reflector, run};
use plan::action::{Action, Plan};
use plan::podfacts;
use plan::scheduler::{SCHEDULER_NAME, Snapshot, plan};

use crate::{Context, Reflectors, write::Writer};

struct Scheduler {
    writer: Writer,
    pods: Reflector<api::core::Pod>,
    /// Bindings that the reflector may not show yet, by the pod's uid: its name and node.
    assumed: BTreeMap<String, (api::Name, String)>,
}

impl Scheduler {
    /// Forgets bindings that the reflector shows, and pods that are gone.
    fn forget(&mut self) {
        let pods = self.pods.view();
        self.assumed.retain(|uid, (name, _)| {
            let pod = pods.objects.get(name);
            pod.is_some_and(|pod| {
                pod.metadata.uid.as_ref() == Some(uid) && podfacts::node_name(pod).is_empty()
            })
        });
    }
}

impl Reconcile for Scheduler {
    const NAME: &'static str = SCHEDULER_NAME;
    type Key = ();
    type Snapshot = Snapshot;
    type Plan = Plan;

    fn plan(&self, snapshot: &Snapshot, (): &()) -> Plan {
        let assumed = self.assumed.iter().map(|(uid, (_, node))| (uid.clone(), node.clone()));
        plan(&Snapshot { assumed: assumed.collect(), ..snapshot.clone() })
    }

    async fn apply(&mut self, (): &(), plan: Plan) -> Result<Next, ApplyError> {
        let mut failure: Option<ApplyError> = None;
        let mut told = true;
        for action in plan.actions {
            // What is said of a pod follows the write that makes it true.
            if matches!(action, Action::Event(_)) && !told {
                continue;
            }
            let binding = match &action {
                Action::Bind { pod, uid, node } => Some((uid.clone(), (pod.clone(), node.clone()))),
                _ => None,
            };
            let written = self.writer.write(Plan { actions: vec![action], again: None }).await;
            told = written.is_ok();
            match written {
                Ok(_) => self.assumed.extend(binding),
                // One pod that cannot be written holds up no other.
                Err(error) if failure.as_ref().is_none_or(ApplyError::is_race) => {
                    failure = Some(error);
                }
                Err(_) => {}
            }
        }
        self.forget();
        failure.map_or_else(|| Ok(plan.again.map_or(Next::Wait, Next::After)), Err)
    }
}

pub(crate) async fn start(context: Context) {
    let writer = context.writer(Scheduler::NAME);
    let all = context.reflectors;
    let inputs = Inputs::new()
        .on(&all.pods, |change, dirty| {
            // Only what can change a decision: a pod that waits, or one that takes or frees room.
            let node = |pod: &api::core::Pod| podfacts::node_name(pod).to_owned();
            let moved = match (change.old, change.new) {
                (Some(old), Some(new)) => {
                    node(old) != node(new)
                        || podfacts::is_terminal(old) != podfacts::is_terminal(new)
                        || (node(new).is_empty()
                            && old.metadata.generation != new.metadata.generation)
                        || old.metadata.labels != new.metadata.labels
                        || old.is_deleting() != new.is_deleting()
                }
                _ => true,
            };
            if moved {
                dirty.insert(());
            }
        })
        .on(&all.nodes, |change, dirty| {
            let facts = |node: &api::core::Node| {
                let allocatable = node.status.as_ref().and_then(|one| one.allocatable.clone());
                (node.spec.clone(), node.metadata.labels.clone(), allocatable)
            };
            if change.old.map(|node| facts(node)) != change.new.map(|node| facts(node)) {
                dirty.insert(());
            }
        })
        .on(&all.namespaces, |change, dirty| {
            // Namespace selectors of affinity terms.
            let labels = |one: &api::core::Namespace| one.metadata.labels.clone();
            if change.old.map(|one| labels(one)) != change.new.map(|one| labels(one)) {
                dirty.insert(());
            }
        })
        .on(&all.claims, |_, dirty| {
            dirty.insert(());
        })
        .on(&all.volumes, |_, dirty| {
            dirty.insert(());
        })
        .on(&all.classes, |_, dirty| {
            dirty.insert(());
        });
    let client = writer.client.clone();
    let component = Scheduler { writer, pods: all.pods.clone(), assumed: BTreeMap::new() };
    run(component, client, inputs, move || snapshot(&all), context.shutdown).await;
}

fn snapshot(all: &Reflectors) -> Snapshot {
    Snapshot {
        pods: all.pods.view().objects.clone(),
        nodes: all.nodes.view().objects.clone(),
        namespaces: all.namespaces.view().objects.clone(),
        claims: all.claims.view().objects.clone(),
        volumes: all.volumes.view().objects.clone(),
        classes: all.classes.view().objects.clone(),
        services: all.services.view().objects.clone(),
        replica_sets: all.replica_sets.view().objects.clone(),
        stateful_sets: all.stateful_sets.view().objects.clone(),
        assumed: BTreeMap::new(),
        now: jiff::Timestamp::now(),
    }
}
