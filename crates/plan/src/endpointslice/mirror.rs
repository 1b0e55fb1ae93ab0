//! Mirrors hand-written Endpoints of Services without selector into slices. Upstream: `endpointslicemirroring`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::core::{EndpointAddress, EndpointSubset, Endpoints as LegacyEndpoints};
use api::discovery::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use api::meta::ObjectMeta;
use api::{Kind, Name, Objects};

use super::{
    Endpoints, HEADLESS, MANAGED_BY, SERVICE_NAME, TRIGGER_TIME, has_selector, identity, pack,
};
use crate::action::{Action, Notice, Plan, delete};
use crate::objects::{annotation, in_namespace, label, reference};

/// Our value of [`MANAGED_BY`] for mirrored slices.
pub const CONTROLLER: &str = "endpointslicemirroring-controller.k8s.io";
/// What `kubectl apply` keeps for itself.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
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
    let Groups { by_ports, invalid, skipped } = groups(source);
    plan.actions.extend(notices(source, invalid, skipped));
    let mut left: Vec<EndpointSlice> =
        existing.iter().map(|slice| EndpointSlice::clone(slice)).collect();
    let mut writes = pack::Writes::default();
    for ((family, _), (ports, wanted)) in by_ports {
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
    let annotations = frame(source, "").metadata.annotations;
    let unchanged = writes.unchanged.into_iter();
    for mut slice in writes.update.into_iter().chain(unchanged) {
        // Slices carry the annotations of their source, and no others.
        slice.metadata.annotations = annotations.clone();
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

/// What is mirrored, by family and ports, and what is not.
#[derive(Default)]
struct Groups {
    by_ports: BTreeMap<(&'static str, String), Group>,
    invalid: usize,
    /// Those that are invalid among them.
    skipped: usize,
}

fn groups(source: &LegacyEndpoints) -> Groups {
    let mut groups = Groups::default();
    for subset in source.subsets.iter().flatten() {
        let ports = ports(subset);
        let key = super::desired::port_key(Some(&ports));
        let ready = subset.addresses.iter().flatten().map(|one| (one, true));
        let others = subset.not_ready_addresses.iter().flatten().map(|one| (one, false));
        let mut added = 0;
        for (address, ready) in ready.chain(others) {
            if added >= MIRRORED_MAX {
                groups.skipped += 1;
                continue;
            }
            let family = match address.ip.parse() {
                Ok(IpAddr::V4(_)) => "IPv4",
                Ok(IpAddr::V6(_)) => "IPv6",
                Err(_) => {
                    groups.invalid += 1;
                    groups.skipped += 1;
                    continue;
                }
            };
            added += 1;
            let group = groups.by_ports.entry((family, key.clone()));
            let (_, wanted) = group.or_insert_with(|| (ports.clone(), Endpoints::new()));
            let endpoint = endpoint(address, ready);
            wanted.insert(identity(&endpoint), endpoint);
        }
    }
    groups
}

/// Events about addresses that are not mirrored.
fn notices(source: &LegacyEndpoints, invalid: usize, skipped: usize) -> Vec<Action> {
    let notice = |reason, message| {
        Action::Event(Notice { about: reference(source), warning: true, reason, message })
    };
    let mut notices = Vec::new();
    if invalid > 0 {
        let message =
            format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices");
        notices.push(notice("InvalidIPAddress", message));
    }
    if skipped > invalid {
        let message = format!(
            "A max of {MIRRORED_MAX} addresses can be mirrored to EndpointSlices per Endpoints subset. {skipped} addresses were skipped"
        );
        notices.push(notice("TooManyAddressesToMirror", message));
    }
    notices
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
    let mut annotations = source.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| key != TRIGGER_TIME && key != LAST_APPLIED);
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", source.name())),
            namespace: Some(source.namespace().to_owned()),
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            owner_references: Some(vec![source.as_controller()]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(Vec::new()),
        ports: None,
    }
}

#[cfg(test)]
mod tests;
