//! ClusterIPs and node ports of Services, chosen by `plan::alloc` under the registry's lock.

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
use crate::lookup::{IP_ADDRESSES, SERVICE_CIDRS, SERVICES, texts};
use crate::object::is_deleting;

/// What the stored Services hold, brought up to date by their changes; made anew from them at any doubt.
#[derive(Default)]
pub(crate) struct Taken(Mutex<Option<Followed>>);

struct Followed {
    services: Changes,
    /// `None` when this server has no IPAddresses.
    addresses: Option<Changes>,
    allocator: Allocator,
}

/// The label of the IPAddresses that follow Services, and its value.
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";

pub(super) fn admit(
    registry: &Registry,
    request: &Request<'_>,
    new: &mut Value,
) -> Result<(), StatusError> {
    if !SERVICES.is(request.resource)
        || request.operation == Operation::Delete
        || request.subresource.is_some()
    {
        return Ok(());
    }
    // The committed Services are all in the cache: the lock is held from here until the next one is.
    let mut taken = registry.taken().0.lock();
    let current = taken.take().and_then(follow);
    let mut current = match current {
        Some(current) => current,
        None => read(registry, request.resource)?,
    };
    current.allocator.set_added(&added_ranges(registry));
    let result = current.allocator.allocate(new, request.old, rand::rng().random());
    *taken = Some(current);
    result
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
            allocator.release(previous.value());
        }
        if change.kind != ChangeKind::Deleted {
            allocator.take(change.object.value());
        }
    }
    if let Some(addresses) = &mut current.addresses {
        for change in addresses.ready().ok()?.0 {
            let previous = change.previous.as_ref().and_then(|one| reserved(one.value()));
            previous.into_iter().for_each(|address| allocator.unreserve(address));
            if change.kind != ChangeKind::Deleted {
                let address = reserved(change.object.value());
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
        allocator.take(object.value());
    }
    let mut addresses = None;
    if let Some(resource) = IP_ADDRESSES.resource() {
        let (snapshot, changes) = watch(resource)?;
        let held = snapshot.objects.values().filter_map(|object| reserved(object.value()));
        held.for_each(|address| allocator.reserve(address));
        addresses = Some(changes);
    }
    Ok(Followed { services, addresses, allocator })
}
