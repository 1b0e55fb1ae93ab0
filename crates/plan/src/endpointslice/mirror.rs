//! Mirrors hand-written Endpoints of Services without selector into slices. Upstream: `endpointslicemirroring`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::core::{EndpointAddress, EndpointSubset, Endpoints as LegacyEndpoints};
use api::discovery::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use api::meta::ObjectMeta;
use api::{Kind, Name, Objects};

use super::{Endpoints, HEADLESS, MANAGED_BY, SERVICE_NAME, has_selector, identity, pack};
use crate::action::{Action, Plan, delete};
use crate::objects::{annotation, in_namespace, label};

/// Our value of [`MANAGED_BY`] for mirrored slices.
pub const CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints mirrored from one subset (upstream's `--mirroring-max-endpoints-per-subset`).
const MIRRORED_MAX: usize = 1000;

/// What mirrored slices are planned from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All Services.
    pub services: Objects<api::core::Service>,
    /// All Endpoints.
    pub endpoints: Objects<LegacyEndpoints>,
    /// All slices.
    pub slices: Objects<EndpointSlice>,
}

/// Brings the mirrored slices of one Endpoints object to what it says.
#[must_use]
pub fn plan(snapshot: &Snapshot, key: &Name) -> Plan {
    let mut plan = Plan::none();
    let existing: Vec<&Arc<EndpointSlice>> = in_namespace(&snapshot.slices, &key.namespace)
        .filter(|slice| {
            label(slice.as_ref(), SERVICE_NAME) == Some(&key.name)
                && label(slice.as_ref(), MANAGED_BY) == Some(CONTROLLER)
                && !slice.is_deleting()
        })
        .collect();
    let service = snapshot.services.get(key);
    let mirrored = service.is_some_and(|service| !has_selector(service));
    let source = snapshot.endpoints.get(key).filter(|one| mirrored && is_mirrored(one));
    let Some(source) = source else {
        plan.actions.extend(existing.into_iter().map(|slice| delete(slice.as_ref())));
        return plan;
    };
    let mut left: Vec<EndpointSlice> =
        existing.iter().map(|slice| EndpointSlice::clone(slice)).collect();
    let mut writes = pack::Writes::default();
    for ((family, _), (ports, wanted)) in groups(source) {
        let ports_key = super::desired::port_key(Some(&ports));
        let same = |slice: &EndpointSlice| {
            slice.address_type == family
                && super::desired::port_key(slice.ports.as_deref()) == ports_key
        };
        let (own, others) = left.into_iter().partition(same);
        left = others;
        let frame = frame(source, family);
        writes.merge(pack::pack(&frame, Some(ports), wanted, own, MIRRORED_MAX));
    }
    writes.delete.extend(left);
    for slice in writes.create {
        plan.push(Action::Create(slice.into()));
    }
    for slice in writes.update {
        if !existing.iter().any(|old| ***old == slice) {
            plan.push(Action::Update(slice.into()));
        }
    }
    plan.actions.extend(writes.delete.iter().map(delete));
    plan
}

fn is_mirrored(endpoints: &LegacyEndpoints) -> bool {
    label(endpoints, SKIP) != Some("true")
        && annotation(endpoints, "control-plane.alpha.kubernetes.io/leader").is_none()
        && !endpoints.is_deleting()
}

type Group = (Vec<EndpointPort>, Endpoints);

fn groups(source: &LegacyEndpoints) -> BTreeMap<(&'static str, String), Group> {
    let mut groups: BTreeMap<(&'static str, String), Group> = BTreeMap::new();
    for subset in source.subsets.iter().flatten() {
        let ports = ports(subset);
        let key = super::desired::port_key(Some(&ports));
        let ready = subset.addresses.iter().flatten().map(|one| (one, true));
        let others = subset.not_ready_addresses.iter().flatten().map(|one| (one, false));
        for (address, ready) in ready.chain(others).take(MIRRORED_MAX) {
            let family = match address.ip.parse() {
                Ok(IpAddr::V4(_)) => "IPv4",
                Ok(IpAddr::V6(_)) => "IPv6",
                Err(_) => continue,
            };
            let group = groups.entry((family, key.clone()));
            let (_, wanted) = group.or_insert_with(|| (ports.clone(), Endpoints::new()));
            let endpoint = endpoint(address, ready);
            wanted.insert(identity(&endpoint), endpoint);
        }
    }
    groups
}

fn ports(subset: &EndpointSubset) -> Vec<EndpointPort> {
    let listed = subset.ports.iter().flatten();
    listed
        .map(|port| EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(port.port),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
            app_protocol: port.app_protocol.clone(),
        })
        .collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: None,
            terminating: None,
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn frame(source: &LegacyEndpoints, family: &str) -> EndpointSlice {
    let mut labels = source.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.to_owned(), source.name().to_owned());
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", source.name())),
            namespace: Some(source.namespace().to_owned()),
            labels: Some(labels),
            owner_references: Some(vec![source.as_controller()]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(Vec::new()),
        ports: None,
    }
}
