//! The default ServiceAccount and `kube-root-ca.crt` of every namespace. Decision: [`plan::serviceaccounts`].

use std::sync::Arc;

use client::{ApplyError, Inputs, Next, Reconcile, run};
use plan::action::Plan;
use plan::serviceaccounts::{ROOT_CA, Snapshot, plan};

use crate::{Context, Reflectors, write::Writer};

struct ServiceAccounts(Writer);

impl Reconcile for ServiceAccounts {
    const NAME: &'static str = "serviceaccount-controller";
    /// A namespace.
    type Key = Arc<str>;
    type Snapshot = Snapshot;
    type Plan = Plan;

    fn plan(&self, snapshot: &Snapshot, key: &Arc<str>) -> Plan {
        plan(snapshot, key)
    }

    async fn apply(&mut self, _: &Arc<str>, plan: Plan) -> Result<Next, ApplyError> {
        self.0.write(plan).await
    }
}

pub(crate) async fn start(context: Context) {
    let writer = context.writer(ServiceAccounts::NAME);
    let Reflectors { namespaces, service_accounts, config_maps, .. } = context.reflectors;
    let inputs = Inputs::new()
        .on(&namespaces, |change, dirty| {
            dirty.insert(Arc::clone(&change.name.name));
        })
        .on(&service_accounts, |change, dirty| {
            if change.new.is_none() && &*change.name.name == "default" {
                dirty.insert(Arc::clone(&change.name.namespace));
            }
        })
        .on(&config_maps, |change, dirty| {
            if &*change.name.name == ROOT_CA {
                dirty.insert(Arc::clone(&change.name.namespace));
            }
        });
    let client = writer.client.clone();
    let root_ca = context.options.root_ca;
    let snapshot = move || Snapshot {
        namespaces: namespaces.view().objects.clone(),
        service_accounts: service_accounts.view().objects.clone(),
        config_maps: config_maps.view().objects.clone(),
        root_ca: Arc::clone(&root_ca),
    };
    run(ServiceAccounts(writer), client, inputs, snapshot, context.shutdown).await;
}
