//! Gives Services of type LoadBalancer an address from the pool, in their status.
//!
//! Upstream counterpart: the cloud provider's service controller, or MetalLB's controller.

use std::collections::BTreeSet;

use api::core::Service;
use api::{Kind, Name, Objects};
use client::{ApplyError, Client, EventKind, Inputs, Next, Patch, Reconcile, Recorder, Reflector};
use plan::loadbalancer::{Assignment, Pool, assign, held, is_ours};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// What to do with one Service.
#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    Give(Box<Service>, String),
    Refuse(Box<Service>, String),
    Clear(Box<Service>),
}

struct LoadBalancer {
    client: Client,
    recorder: Recorder,
    pool: Pool,
}

impl Reconcile for LoadBalancer {
    const NAME: &'static str = "service-lb-controller";
    type Key = Name;
    type Snapshot = Objects<Service>;
    type Plan = Plan;

    fn plan(&self, services: &Objects<Service>, key: &Name) -> Plan {
        let Some(service) = services.get(key) else { return Plan::Nothing };
        let object = || Box::new((**service).clone());
        match assign(services, key, &self.pool) {
            Some(Assignment::Address(address)) if held(service) != [address] => {
                Plan::Give(object(), address.to_string())
            }
            Some(Assignment::Refused(why)) => Plan::Refuse(object(), why),
            None if !is_ours(service) && is_orphaned(service) => Plan::Clear(object()),
            _ => Plan::Nothing,
        }
    }

    async fn apply(&mut self, key: &Name, plan: Plan) -> Result<Next, ApplyError> {
        match plan {
            Plan::Nothing => {}
            Plan::Give(service, address) => {
                self.write(key, &json!([{"ip": address, "ipMode": "VIP"}])).await?;
                self.recorder.event(
                    &*service,
                    EventKind::Normal,
                    "IPAllocated",
                    format!("Assigned IP [\"{address}\"]"),
                );
            }
            Plan::Refuse(service, why) => {
                if !held(&service).is_empty() {
                    self.write(key, &json!([])).await?;
                }
                self.recorder.event(&*service, EventKind::Warning, "AllocationFailed", why);
            }
            Plan::Clear(_) => self.write(key, &json!([])).await?,
        }
        Ok(Next::Wait)
    }
}

impl LoadBalancer {
    async fn write(&self, key: &Name, ingress: &serde_json::Value) -> Result<(), ApplyError> {
        let ingress = if ingress.as_array().is_some_and(Vec::is_empty) {
            &serde_json::Value::Null
        } else {
            ingress
        };
        let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
        self.client.patch_status::<Service>(&key.namespace, &key.name, &patch).await?;
        Ok(())
    }
}

/// A Service that no longer is a LoadBalancer keeps no address (the status of another class is not ours to clear).
fn is_orphaned(service: &Service) -> bool {
    let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
    kind != Some("LoadBalancer") && !held(service).is_empty() && !service.is_deleting()
}

/// Starts the loop. A change of one Service can free an address for any other that waits.
pub fn spawn(
    client: &Client,
    services: &Reflector<Service>,
    pool: Pool,
    shutdown: CancellationToken,
) {
    let client = client.component(LoadBalancer::NAME);
    let recorder = Recorder::new(&client, LoadBalancer::NAME, "");
    let component = LoadBalancer { client: client.clone(), recorder, pool };
    let waiting = services.clone();
    let inputs = Inputs::new().on(services, move |change, dirty: &mut BTreeSet<Name>| {
        dirty.insert(change.name.clone());
        let frees = change.old.is_some_and(|old| !held(old).is_empty());
        if frees {
            let view = waiting.view();
            let hungry = view
                .objects
                .iter()
                .filter(|(_, service)| is_ours(service) && held(service).is_empty());
            dirty.extend(hungry.map(|(name, _)| name.clone()));
        }
    });
    let services = services.clone();
    tokio::spawn(client::run(
        component,
        client,
        inputs,
        move || services.view().objects.clone(),
        shutdown,
    ));
}
