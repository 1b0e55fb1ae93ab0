//! ClusterIPs and node ports of Services, chosen by `plan::alloc` under the registry's lock.

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
use crate::lookup::{SERVICE_CIDRS, SERVICES, texts};
use crate::object::is_deleting;

/// What the stored Services hold, brought up to date by their changes; made anew from them at any doubt.
#[derive(Default)]
pub(crate) struct Taken(Mutex<Option<(Changes, Allocator)>>);

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
    let current = match taken.take() {
        Some((mut changes, mut allocator)) => {
            follow(&mut changes, &mut allocator).then_some((changes, allocator))
        }
        None => None,
    };
    let (changes, mut allocator) = match current {
        Some(current) => current,
        None => read(registry, request.resource)?,
    };
    allocator.set_added(&added_ranges(registry));
    let result = allocator.allocate(new, request.old, rand::rng().random());
    *taken = Some((changes, allocator));
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

/// Takes in what changed; false when some of it is forgotten.
fn follow(changes: &mut Changes, allocator: &mut Allocator) -> bool {
    let Ok((changes, _revision)) = changes.ready() else { return false };
    for change in changes {
        if let Some(previous) = &change.previous {
            allocator.release(previous.value());
        }
        if change.kind != ChangeKind::Deleted {
            allocator.take(change.object.value());
        }
    }
    true
}

/// Everything from the stored Services.
fn read(registry: &Registry, resource: &Resource) -> Result<(Changes, Allocator), StatusError> {
    let config = registry.config();
    let cache = registry.cache();
    let mut allocator = Allocator::new(&config.service_cidrs, config.node_port_range.clone());
    let snapshot = cache.snapshot(resource);
    for object in snapshot.objects.values() {
        allocator.take(object.value());
    }
    let changes = cache
        .watch(resource, snapshot.revision)
        .map_err(|floor| StatusError::internal(format!("services before {floor} are forgotten")))?;
    Ok((changes, allocator))
}
