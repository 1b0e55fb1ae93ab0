//! ClusterIPs and node ports of Services, chosen by `plan::alloc` and held until they are stored.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::StatusError;
use api::resource::Resource;
use ipnet::IpNet;
use parking_lot::Mutex;
use plan::alloc::Allocator;
use rand::Rng;
use serde_json::Value;

use super::{Operation, Request};
use crate::Registry;
use crate::cache::{ChangeKind, Changes};
use crate::lookup::{IP_ADDRESSES, SERVICE_CIDRS, SERVICES, text, texts};
use crate::object::is_deleting;

/// What the stored Services hold, brought up to date by their changes; made anew from them at any doubt. What is about to
/// be stored is held as well, so that nobody waits for another's write.
#[derive(Default)]
pub(crate) struct Taken(Mutex<State>);

#[derive(Default)]
struct State {
    followed: Option<Followed>,
    /// Services that are about to be stored, by the number of their request.
    pending: BTreeMap<u64, Value>,
    number: u64,
}

struct Followed {
    services: Changes,
    /// `None` when this server has no IPAddresses.
    addresses: Option<Changes>,
    allocator: Allocator,
}

/// The label of the IPAddresses that follow Services, and its value.
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";

/// What one request holds until its Service is stored; given back when it never is.
pub(crate) struct Reservation<'a> {
    registry: &'a Registry,
    number: u64,
}

impl Reservation<'_> {
    /// The Service is stored: from now on its changes say what it holds.
    pub(crate) fn keep(self) {
        self.registry.taken().0.lock().pending.remove(&self.number);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut state = self.registry.taken().0.lock();
        let Some(service) = state.pending.remove(&self.number) else { return };
        let State { followed: Some(followed), pending, .. } = &mut *state else { return };
        followed.allocator.release(&service);
        // Others of its name, stored or about to be, may hold the same.
        let (namespace, name) =
            (text(&service, "/metadata/namespace"), text(&service, "/metadata/name"));
        if let Some(stored) = SERVICES.get(self.registry.cache(), namespace, name) {
            followed.allocator.take(&stored);
        }
        pending.values().for_each(|other| followed.allocator.take(other));
    }
}

pub(super) fn admit<'a>(
    registry: &'a Registry,
    request: &Request<'_>,
    new: &mut Value,
) -> Result<Option<Reservation<'a>>, StatusError> {
    if !SERVICES.is(request.resource)
        || request.operation == Operation::Delete
        || request.subresource.is_some()
    {
        return Ok(None);
    }
    let mut state = registry.taken().0.lock();
    let mut followed = match state.followed.take().and_then(follow) {
        Some(followed) => followed,
        None => read(registry, request.resource)?,
    };
    followed.allocator.set_added(&added_ranges(registry));
    // A change may have given back what another Service of the same name is about to hold.
    state.pending.values().for_each(|other| followed.allocator.take(other));
    let result = followed.allocator.allocate(new, request.old, rand::rng().random());
    let hold = result.is_ok() && !request.dry_run;
    if hold {
        followed.allocator.take(new);
    }
    state.followed = Some(followed);
    result?;
    if !hold {
        return Ok(None);
    }
    state.number += 1;
    let number = state.number;
    state.pending.insert(number, new.clone());
    Ok(Some(Reservation { registry, number }))
}

/// The prefixes of all ServiceCIDRs that are not being deleted, by name.
fn added_ranges(registry: &Registry) -> Vec<IpNet> {
    let ranges = SERVICE_CIDRS.list(registry.cache(), "");
    let stays = ranges.iter().filter(|range| !is_deleting(range));
    stays
        .flat_map(|range| texts(range, "/spec/cidrs"))
        .filter_map(|cidr| cidr.parse().ok())
        .collect()
}

/// Takes in what changed; `None` when some of it is forgotten.
fn follow(mut current: Followed) -> Option<Followed> {
    let allocator = &mut current.allocator;
    for change in current.services.ready().ok()?.0 {
        if let Some(previous) = &change.previous {
            allocator.release(&previous.value());
        }
        if change.kind != ChangeKind::Deleted {
            allocator.take(&change.object.value());
        }
    }
    if let Some(addresses) = &mut current.addresses {
        for change in addresses.ready().ok()?.0 {
            let previous = change.previous.as_ref().and_then(|one| reserved(&one.value()));
            previous.into_iter().for_each(|address| allocator.unreserve(address));
            if change.kind != ChangeKind::Deleted {
                let address = reserved(&change.object.value());
                address.into_iter().for_each(|address| allocator.reserve(address));
            }
        }
    }
    Some(current)
}

/// The address of an IPAddress that belongs to something else than a Service.
fn reserved(object: &Value) -> Option<IpAddr> {
    let ours = object["metadata"]["labels"][MANAGED_BY] == ALLOCATOR;
    let name = object["metadata"]["name"].as_str().filter(|_| !ours)?;
    name.parse().ok()
}

/// Everything from the stored Services and IPAddresses.
fn read(registry: &Registry, resource: &Resource) -> Result<Followed, StatusError> {
    let config = registry.config();
    let cache = registry.cache();
    let mut allocator = Allocator::new(&config.service_cidrs, config.node_port_range.clone());
    let watch = |resource: &Resource| {
        let snapshot = cache.snapshot(resource);
        let changes = cache.watch(resource, snapshot.revision).map_err(|floor| {
            let plural = resource.plural;
            StatusError::internal(format!("{plural} before {floor} are forgotten"))
        })?;
        Ok::<_, StatusError>((snapshot, changes))
    };
    let (snapshot, services) = watch(resource)?;
    for object in snapshot.objects.values() {
        allocator.take(&object.value());
    }
    let mut addresses = None;
    if let Some(resource) = IP_ADDRESSES.resource() {
        let (snapshot, changes) = watch(resource)?;
        let held = snapshot.objects.values().filter_map(|object| reserved(&object.value()));
        held.for_each(|address| allocator.reserve(address));
        addresses = Some(changes);
    }
    Ok(Followed { services, addresses, allocator })
}
