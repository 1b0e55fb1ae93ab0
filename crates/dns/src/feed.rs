//! Keeps the zone in step with Services, EndpointSlices and namespaces.

use std::sync::Arc;

use api::core::{Namespace, Service};
use api::discovery::EndpointSlice;
use api::{Kind as _, Name, Objects};
use client::{Applied, ApplyError, Client, Index, Inputs, Next, Reconcile, Reflector};
use plan::dns::{ServiceRecords, service_records};
use tokio_util::sync::CancellationToken;

use crate::SharedZone;

/// The reflectors that names come from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// All Services.
    pub services: Reflector<Service>,
    /// All EndpointSlices.
    pub slices: Reflector<EndpointSlice>,
    /// All namespaces.
    pub namespaces: Reflector<Namespace>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Service(Name),
    Namespace(String),
}

#[derive(Debug, PartialEq)]
enum Plan {
    Service(Option<ServiceRecords>),
    Namespace(bool),
}

struct Snapshot {
    services: Objects<Service>,
    slices: Index<EndpointSlice>,
    namespaces: Objects<Namespace>,
}

struct Feed {
    zone: SharedZone,
}

impl Reconcile for Feed {
    const NAME: &'static str = "dns";
    type Key = Key;
    type Snapshot = Snapshot;
    type Plan = Plan;

    fn plan(&self, snapshot: &Snapshot, key: &Key) -> Plan {
        match key {
            Key::Namespace(name) => {
                Plan::Namespace(snapshot.namespaces.contains_key(&Name::cluster(name)))
            }
            Key::Service(name) => {
                let slices = snapshot.slices.get(name);
                let service = snapshot.services.get(name);
                Plan::Service(service.and_then(|service| {
                    service_records(service, slices.values().map(|slice| &**slice))
                }))
            }
        }
    }

    async fn apply(&mut self, key: &Key, plan: Plan) -> Result<Next, ApplyError> {
        let mut zone = (**self.zone.load()).clone();
        match (key, plan) {
            (Key::Service(name), Plan::Service(records)) => zone.set_service(name, records),
            (Key::Namespace(name), Plan::Namespace(exists)) => zone.set_namespace(name, exists),
            _ => {}
        }
        self.zone.store(Arc::new(zone));
        Ok(Next::Wait)
    }
}

/// The Service that a slice belongs to.
fn owner(slice: &EndpointSlice) -> Option<Name> {
    let service = slice.meta().labels.as_ref()?.get("kubernetes.io/service-name")?;
    Some(Name::new(slice.namespace(), service))
}

/// Starts to keep `zone` in step; `applied` learns how far it is with the EndpointSlices.
pub fn follow(
    client: &Client,
    sources: Sources,
    zone: SharedZone,
    applied: Applied,
    shutdown: CancellationToken,
) {
    let slices = Index::new(&sources.slices, owner);
    let inputs = Inputs::new()
        .tells(&sources.slices, applied)
        .on(&sources.services, |change, dirty| {
            dirty.insert(Key::Service(change.name.clone()));
        })
        .on(&sources.slices, |change, dirty| {
            dirty.extend(change.states().filter_map(owner).map(Key::Service));
        })
        .on(&sources.namespaces, |change, dirty| {
            dirty.insert(Key::Namespace(change.name.name.to_string()));
        });
    let snapshot = move || Snapshot {
        services: sources.services.view().objects.clone(),
        slices: slices.clone(),
        namespaces: sources.namespaces.view().objects.clone(),
    };
    tokio::spawn(client::run(
        Feed { zone },
        client.component(Feed::NAME),
        inputs,
        snapshot,
        shutdown,
    ));
}
