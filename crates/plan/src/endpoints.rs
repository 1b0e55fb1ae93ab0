//! The older Endpoints objects, one per Service with a selector. Upstream counterpart: `pkg/controller/endpoint`.

use std::collections::BTreeMap;

use api::core::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use api::meta::ObjectMeta;
use api::{IntOrString, Kind, Name, Objects};
use jiff::Timestamp;

use crate::action::{Action, Plan, delete};
use crate::endpointslice::{
    HEADLESS, TRIGGER_TIME, has_selector, is_headless, selected, trigger_time,
};
use crate::objects::label;
use crate::podfacts;

/// The label of Endpoints that this loop writes.
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses in one object; the rest is cut off and an annotation says so.
const ADDRESSES_MAX: usize = 1000;

/// What Endpoints are planned from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All Services.
    pub services: Objects<Service>,
    /// All pods.
    pub pods: Objects<Pod>,
    /// All Endpoints.
    pub endpoints: Objects<Endpoints>,
}

/// Brings the Endpoints of one Service to what its pods say.
#[must_use]
pub fn plan(snapshot: &Snapshot, key: &Name) -> Plan {
    let mut plan = Plan::none();
    let existing = snapshot.endpoints.get(key);
    let Some(service) = snapshot.services.get(key) else {
        // Hand-written Endpoints go with their Service, as upstream.
        let leads = |one: &&std::sync::Arc<Endpoints>| {
            crate::objects::annotation(one.as_ref(), "control-plane.alpha.kubernetes.io/leader")
                .is_some()
        };
        let ours = existing.filter(|one| !leads(one) && label(one.as_ref(), MANAGED_BY).is_some());
        plan.actions.extend(ours.map(|one| delete(one.as_ref())));
        return plan;
    };
    if !has_selector(service) || service.is_deleting() {
        return plan;
    }
    let mut wanted = wanted(snapshot, service, existing.map(AsRef::as_ref));
    if existing.is_some_and(|existing| without_trigger(existing) == wanted) {
        return plan;
    }
    let seen = existing
        .and_then(|existing| crate::objects::annotation(existing.as_ref(), TRIGGER_TIME))
        .and_then(|text| text.parse::<Timestamp>().ok());
    let trigger = trigger_time(&snapshot.pods, service);
    if let Some(time) = trigger.filter(|time| seen.is_none_or(|seen| *time > seen)) {
        let annotations = wanted.metadata.annotations.get_or_insert_default();
        annotations.insert(TRIGGER_TIME.to_owned(), time.to_string());
    }
    plan.push(match existing {
        None => Action::Create(wanted.into()),
        Some(_) => Action::Update(wanted.into()),
    });
    plan
}

/// What changes of the trigger time alone do not count as a change of.
fn without_trigger(endpoints: &Endpoints) -> Endpoints {
    let mut endpoints = endpoints.clone();
    if let Some(annotations) = &mut endpoints.metadata.annotations {
        annotations.remove(TRIGGER_TIME);
        if annotations.is_empty() {
            endpoints.metadata.annotations = None;
        }
    }
    endpoints
}

fn wanted(snapshot: &Snapshot, service: &Service, existing: Option<&Endpoints>) -> Endpoints {
    let mut subsets: BTreeMap<Vec<(String, i32, String)>, EndpointSubset> = BTreeMap::new();
    for pod in selected(&snapshot.pods, service) {
        let publish = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses);
        let publish = publish == Some(true);
        if podfacts::is_terminal(pod) || (pod.is_deleting() && !publish) {
            continue;
        }
        let Some(address) = address(service, pod) else { continue };
        let ports = ports(service, pod);
        let none_found = ports.is_empty();
        if none_found && has_ports(service) {
            continue;
        }
        let key = ports
            .iter()
            .map(|port| {
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                (text(&port.name), port.port, text(&port.protocol))
            })
            .collect();
        let subset = subsets.entry(key).or_insert_with(|| EndpointSubset {
            ports: (!ports.is_empty()).then_some(ports),
            ..EndpointSubset::default()
        });
        let list = if publish || podfacts::is_ready(pod) {
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        list.get_or_insert_default().push(address);
    }
    let mut subsets: Vec<_> = subsets.into_values().collect();
    subsets.iter_mut().for_each(sort);
    let over = truncate(&mut subsets);
    framed(service, existing, subsets, over)
}

fn sort(subset: &mut EndpointSubset) {
    for list in [&mut subset.addresses, &mut subset.not_ready_addresses].into_iter().flatten() {
        list.sort_by(|one, two| one.ip.cmp(&two.ip));
    }
}

/// Cuts to the limit: ready addresses are kept before others, and each subset gives way in proportion to what it has.
/// Whether something was cut. Upstream counterpart: `truncateEndpoints`.
fn truncate(subsets: &mut [EndpointSubset]) -> bool {
    let count = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
    let ready: usize = subsets.iter().map(|subset| count(&subset.addresses)).sum();
    let others: usize = subsets.iter().map(|subset| count(&subset.not_ready_addresses)).sum();
    if ready + others <= ADDRESSES_MAX {
        return false;
    }
    let cut_ready = ready > ADDRESSES_MAX;
    let (all, room) =
        if cut_ready { (ready, ADDRESSES_MAX) } else { (others, ADDRESSES_MAX - ready) };
    let mut left = room;
    for subset in subsets {
        if cut_ready {
            subset.not_ready_addresses = None;
        }
        let list = if cut_ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        let Some(addresses) = list else { continue };
        let share = (addresses.len() * room).div_ceil(all).min(left);
        addresses.truncate(share);
        left -= share;
        if addresses.is_empty() {
            *list = None;
        }
    }
    true
}

fn framed(
    service: &Service,
    existing: Option<&Endpoints>,
    subsets: Vec<EndpointSubset>,
    over: bool,
) -> Endpoints {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    let mut metadata = existing.map_or_else(
        || ObjectMeta {
            name: Some(service.name().to_owned()),
            namespace: Some(service.namespace().to_owned()),
            ..ObjectMeta::default()
        },
        |existing| existing.metadata.clone(),
    );
    metadata.labels = Some(labels);
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.remove(TRIGGER_TIME);
    if over {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    if annotations.is_empty() {
        metadata.annotations = None;
    }
    Endpoints { metadata, subsets: (!subsets.is_empty()).then_some(subsets) }
}

fn address(service: &Service, pod: &Pod) -> Option<EndpointAddress> {
    let six = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ip_families.as_ref()?.first().cloned())
        .is_some_and(|family| family == "IPv6");
    let ip = podfacts::addresses(pod).find(|address| address.contains(':') == six)?;
    let spec = pod.spec.as_ref()?;
    let hostname = spec
        .hostname
        .clone()
        .filter(|name| !name.is_empty() && spec.subdomain.as_deref() == Some(service.name()));
    Some(EndpointAddress {
        ip: ip.to_owned(),
        hostname,
        node_name: spec.node_name.clone(),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some(pod.namespace().to_owned()),
            name: Some(pod.name().to_owned()),
            uid: Some(pod.uid().to_owned()),
            ..ObjectReference::default()
        }),
    })
}

fn has_ports(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.ports.as_ref())
        .is_some_and(|ports| !ports.is_empty())
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let listed = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    listed
        .filter_map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let target = port.target_port.clone().unwrap_or(IntOrString::Int(port.port));
            Some(EndpointPort {
                name: port.name.clone(),
                port: podfacts::target_port(pod, &target, protocol)?,
                protocol: Some(protocol.to_owned()),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
