//! ClusterIPs and node ports of Services, chosen by `plan::alloc` under the registry's lock.

use api::StatusError;
use plan::alloc::Allocator;
use rand::Rng;
use serde_json::Value;

use super::{Operation, Request};
use crate::Registry;
use crate::lookup::SERVICES;

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
    let allocator = allocator(registry);
    allocator.allocate(new, request.old, rand::rng().random())
}

/// What is taken now.
fn allocator(registry: &Registry) -> Allocator {
    let config = registry.config();
    let mut allocator = Allocator::new(&config.service_cidrs, config.node_port_range.clone());
    for service in SERVICES.list(registry.cache(), "") {
        allocator.take(&service);
    }
    allocator
}
