//! EndpointSlices: where each Service's pods answer. Upstream counterpart: `staging/src/k8s.io/endpointslice`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::core::{Node, Pod, Service};
use api::discovery::{Endpoint, EndpointPort, EndpointSlice};
use api::{Kind, Name, Objects};
use jiff::Timestamp;

use crate::action::{Action, Notice, Plan, delete};
use crate::objects::{in_namespace, label, map_matches, reference};

mod desired;
mod hints;
pub mod mirror;
mod pack;
mod topology;

pub(crate) use desired::{families, trigger_time};
pub use topology::{is_wanted as follows_cpus, weight};

/// The label that names a slice's Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that says who writes a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Our value of [`MANAGED_BY`].
pub const CONTROLLER: &str = "endpointslice-controller.k8s.io";
/// The label of slices, and Endpoints, of headless Services.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// The annotation with the time of the change that a write answers to.
pub const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// Endpoints in one slice (upstream's `--max-endpoints-per-slice`).
const ENDPOINTS_MAX: usize = 100;

/// What slices are planned from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All Services.
    pub services: Objects<Service>,
    /// All pods.
    pub pods: Objects<Pod>,
    /// All slices.
    pub slices: Objects<EndpointSlice>,
    /// All nodes, for zones.
    pub nodes: Objects<Node>,
}

/// Whether the Service's endpoints are found by its selector.
#[must_use]
pub fn has_selector(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.selector.as_ref().is_some_and(|selector| !selector.is_empty())
            && spec.type_.as_deref() != Some("ExternalName")
    })
}

/// Whether the Service has no address of its own.
#[must_use]
pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.cluster_ip.as_deref() == Some("None"))
}

/// The pods that a Service selects.
pub fn selected<'a>(
    pods: &'a Objects<Pod>,
    service: &Service,
) -> impl Iterator<Item = &'a Arc<Pod>> + use<'a> {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone());
    let selector = selector.unwrap_or_default();
    in_namespace(pods, service.namespace())
        .filter(move |pod| map_matches(&selector, pod.meta().labels.as_ref()))
}

/// The Services whose selector matches labels of a pod: what a change of the pod makes dirty.
pub fn services_of<'a>(
    services: &'a Objects<Service>,
    pod: &'a Pod,
) -> impl Iterator<Item = Name> + use<'a> {
    in_namespace(services, pod.namespace())
        .filter(|service| {
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            has_selector(service)
                && selector.is_some_and(|one| map_matches(one, pod.meta().labels.as_ref()))
        })
        .map(|service| service.object_name())
}

/// Brings the slices of one Service to what its pods say, in as few writes as possible.
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
    let Some(service) = service.filter(|service| has_selector(service)) else {
        plan.actions.extend(existing.into_iter().map(|slice| delete(slice.as_ref())));
        return plan;
    };
    if service.is_deleting() {
        return plan;
    }
    let trigger = trigger_time(&snapshot.pods, service);
    let families = families(service);
    let mut writes = pack::Writes::default();
    let mut hinted = existing.iter().any(|slice| topology::is_hinted(slice));
    let distribution = service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_ref());
    for slice in &existing {
        if !families.contains(&slice.address_type.as_str()) {
            writes.delete.push(EndpointSlice::clone(slice));
        }
    }
    for family in families.iter().copied() {
        let own: Vec<EndpointSlice> = existing
            .iter()
            .filter(|slice| slice.address_type == family)
            .map(|slice| EndpointSlice::clone(slice))
            .collect();
        let mut own = family_writes(snapshot, service, family, own);
        if topology::is_wanted(service) {
            let done = topology::spread(&snapshot.nodes, &mut own);
            let now = hinted || done.is_ok();
            plan.actions.extend(hints_notice(service, family, hinted, done));
            hinted = now;
        }
        writes.merge(own);
    }
    if hinted && !topology::is_wanted(service) && distribution.is_none() {
        let done = Err(topology::DISABLED.to_owned());
        plan.actions
            .extend(families.first().and_then(|one| hints_notice(service, one, true, done)));
    }
    finish(&mut plan, writes, &existing, trigger);
    plan
}

/// The event about topology hints: that there are some now, or why there are none.
fn hints_notice(
    service: &Service,
    family: &str,
    before: bool,
    done: Result<(), String>,
) -> Option<Action> {
    let (warning, reason, why) = match done {
        Ok(()) if before => return None,
        Ok(()) => (false, "TopologyAwareHintsEnabled", topology::ENABLED.to_owned()),
        Err(why) => (true, "TopologyAwareHintsDisabled", why),
    };
    let message = format!("{why}, addressType: {family}");
    Some(Action::Event(Notice { about: reference(service), warning, reason, message }))
}

/// The writes of one address family: port maps one by one, and a placeholder when there is nothing.
fn family_writes(
    snapshot: &Snapshot,
    service: &Service,
    family: &'static str,
    existing: Vec<EndpointSlice>,
) -> pack::Writes {
    let template = desired::template(service, family);
    let mut groups = desired::endpoints(snapshot, service, family);
    if groups.is_empty() {
        // A Service without endpoints still has one empty slice.
        groups.insert(String::new(), (None, BTreeMap::new()));
    }
    if topology::is_wanted(service) {
        topology::remember(&mut groups, &existing);
    }
    let mut by_ports: BTreeMap<String, Vec<EndpointSlice>> = BTreeMap::new();
    for slice in existing {
        by_ports.entry(desired::port_key(slice.ports.as_deref())).or_default().push(slice);
    }
    let mut writes = pack::Writes::default();
    for (key, (ports, endpoints)) in groups {
        let own = by_ports.remove(&key).unwrap_or_default();
        writes.merge(pack::pack(&template, ports, endpoints, own, ENDPOINTS_MAX));
    }
    writes.delete.extend(by_ports.into_values().flatten());
    writes.reuse();
    writes
}

/// Turns the writes into actions: updates only where something differs, with the trigger time.
fn finish(
    plan: &mut Plan,
    writes: pack::Writes,
    existing: &[&Arc<EndpointSlice>],
    trigger: Option<Timestamp>,
) {
    let seen = existing.iter().filter_map(|slice| {
        crate::objects::annotation(slice.as_ref(), TRIGGER_TIME)?.parse::<Timestamp>().ok()
    });
    let seen = seen.max();
    let trigger = trigger.filter(|time| seen.is_none_or(|seen| *time > seen));
    for mut slice in writes.create {
        set_trigger(&mut slice, trigger);
        plan.push(Action::Create(slice.into()));
    }
    for mut slice in writes.update {
        let before = existing.iter().find(|old| old.name() == slice.name());
        if before.is_some_and(|old| ***old == slice) {
            continue;
        }
        set_trigger(&mut slice, trigger);
        plan.push(Action::Update(slice.into()));
    }
    plan.actions.extend(writes.delete.iter().map(delete));
}

fn set_trigger(slice: &mut EndpointSlice, trigger: Option<Timestamp>) {
    let annotations = slice.metadata.annotations.get_or_insert_default();
    match trigger {
        Some(time) => annotations.insert(TRIGGER_TIME.to_owned(), time.to_string()),
        None => annotations.remove(TRIGGER_TIME),
    };
    if annotations.is_empty() {
        slice.metadata.annotations = None;
    }
}

/// Endpoints by identity: address and pod.
type Endpoints = BTreeMap<(String, String), Endpoint>;
/// Endpoints by the ports that they share.
type Groups = BTreeMap<String, (Option<Vec<EndpointPort>>, Endpoints)>;

/// What identifies an endpoint while its conditions change.
fn identity(endpoint: &Endpoint) -> (String, String) {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
    (endpoint.addresses.first().cloned().unwrap_or_default(), uid.unwrap_or_default())
}

/// Names of all slices' Services, for keys that only a slice knows.
#[must_use]
pub fn service_of(slice: &EndpointSlice) -> Option<Name> {
    label(slice, SERVICE_NAME).map(|name| Name::new(slice.namespace(), name))
}

/// The Services that a set of pods belongs to.
pub fn services_of_all<'a>(
    services: &Objects<Service>,
    pods: impl Iterator<Item = &'a Pod>,
) -> BTreeSet<Name> {
    pods.flat_map(|pod| services_of(services, pod).collect::<Vec<_>>()).collect()
}

#[cfg(test)]
mod tests;
