//! What namespaces use of their quotas. Decision: [`plan::quota`].
//!
//! Upstream counterpart: `pkg/controller/resourcequota`.

use api::{Kind, Name, Objects};
use client::{ApplyError, Inputs, Next, Reconcile, Reflector, run};
use plan::action::Plan;
use plan::quota::{Contents, Usage, concerns, hard, plan};

use crate::{Context, Reflectors, write::Writer};

struct Quotas(Writer);

impl Reconcile for Quotas {
    const NAME: &'static str = "resourcequota-controller";
    type Key = Name;
    type Snapshot = Reflectors;
    type Plan = Plan;

    fn plan(&self, all: &Reflectors, key: &Name) -> Plan {
        let quota = all.quotas.view().objects.get(key).cloned();
        quota.map_or_else(Plan::none, |quota| {
            let limits = hard(&serde_json::json!(quota.as_ref()));
            plan(&quota, &contents(all, &key.namespace, &limits))
        })
    }

    async fn apply(&mut self, _: &Name, plan: Plan) -> Result<Next, ApplyError> {
        self.0.write(plan).await
    }
}

/// What a namespace has of the kinds that the limits are about.
fn contents(all: &Reflectors, namespace: &str, limits: &Usage) -> Contents {
    let mut contents = Contents::new();
    let into = &mut contents;
    gather(into, &all.pods, namespace, limits);
    gather(into, &all.services, namespace, limits);
    gather(into, &all.endpoints, namespace, limits);
    gather(into, &all.config_maps, namespace, limits);
    gather(into, &all.secrets, namespace, limits);
    gather(into, &all.service_accounts, namespace, limits);
    gather(into, &all.claims, namespace, limits);
    gather(into, &all.replication_controllers, namespace, limits);
    gather(into, &all.quotas, namespace, limits);
    gather(into, &all.deployments, namespace, limits);
    gather(into, &all.replica_sets, namespace, limits);
    gather(into, &all.stateful_sets, namespace, limits);
    gather(into, &all.daemon_sets, namespace, limits);
    gather(into, &all.revisions, namespace, limits);
    gather(into, &all.jobs, namespace, limits);
    gather(into, &all.cron_jobs, namespace, limits);
    gather(into, &all.slices, namespace, limits);
    contents
}

fn gather<K: Kind>(into: &mut Contents, from: &Reflector<K>, namespace: &str, limits: &Usage) {
    let (group, plural) = (K::GROUP, K::URL_PATH_SEGMENT);
    if !concerns(group, plural, limits) {
        return;
    }
    let view = from.view();
    let own = view.objects.iter().filter(|(name, _)| &*name.namespace == namespace);
    let objects = own.map(|(_, object)| serde_json::json!(object.as_ref())).collect();
    into.insert((group.to_owned(), plural.to_owned()), objects);
}

/// A change of any object of a kind wakes the quotas of its namespace that are about the kind.
fn wake<K: Kind>(inputs: Inputs<Name>, all: &Reflectors, kind: &Reflector<K>) -> Inputs<Name> {
    let quotas = all.quotas.clone();
    inputs.on(kind, move |change, dirty| {
        let quotas: Objects<_> = quotas.view().objects.clone();
        let beside = quotas.iter().filter(|(name, quota)| {
            name.namespace == change.name.namespace
                && concerns(
                    K::GROUP,
                    K::URL_PATH_SEGMENT,
                    &hard(&serde_json::json!(quota.as_ref())),
                )
        });
        dirty.extend(beside.map(|(name, _)| name.clone()));
    })
}

pub(crate) async fn start(context: Context) {
    let writer = context.writer(Quotas::NAME);
    let all = context.reflectors;
    let mut inputs = Inputs::new().on(&all.quotas, |change, dirty| {
        dirty.insert(change.name.clone());
    });
    inputs = wake(inputs, &all, &all.quotas);
    inputs = wake(inputs, &all, &all.pods);
    inputs = wake(inputs, &all, &all.services);
    inputs = wake(inputs, &all, &all.endpoints);
    inputs = wake(inputs, &all, &all.config_maps);
    inputs = wake(inputs, &all, &all.secrets);
    inputs = wake(inputs, &all, &all.service_accounts);
    inputs = wake(inputs, &all, &all.claims);
    inputs = wake(inputs, &all, &all.replication_controllers);
    inputs = wake(inputs, &all, &all.deployments);
    inputs = wake(inputs, &all, &all.replica_sets);
    inputs = wake(inputs, &all, &all.stateful_sets);
    inputs = wake(inputs, &all, &all.daemon_sets);
    inputs = wake(inputs, &all, &all.revisions);
    inputs = wake(inputs, &all, &all.jobs);
    inputs = wake(inputs, &all, &all.cron_jobs);
    inputs = wake(inputs, &all, &all.slices);
    let client = writer.client.clone();
    let snapshot = move || all.clone();
    run(Quotas(writer), client, inputs, snapshot, context.shutdown).await;
}
