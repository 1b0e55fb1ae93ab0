//! An IPAddress for every ClusterIP, and none without one. A new Service is stored together with its own; all other
//! changes are followed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use api::Name;
use api::resource::Resource;
use serde_json::{Value, json};

use super::{ensure, server};
use crate::cache::{ChangeKind, Changes, Object};
use crate::lookup::{IP_ADDRESSES, Row, SERVICES, text, texts};
use crate::{DeleteOptions, Registry};

const MANAGED_BY: (&str, &str) = ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io");

/// Objects that are made at a time.
const TOGETHER_MAX: usize = 64;

/// What was in line before, so that a changed Service costs the work of one Service.
#[derive(Default)]
pub(super) struct Addresses(Option<Followed>);

/// The Services that hold addresses, brought up to date by changes.
struct Followed {
    services: Changes,
    addresses: Changes,
    /// The Service by the name of the address's object.
    holders: BTreeMap<String, Name>,
}

impl Addresses {
    /// Brings IPAddresses in line with the stored Services.
    pub(super) async fn sync(&mut self, registry: &Registry) {
        let Some(resource) = IP_ADDRESSES.resource() else { return };
        let followed = self.0.take().and_then(Followed::follow);
        let Some((followed, doubtful)) = followed.or_else(|| Followed::read(registry)) else {
            return;
        };
        // After a failure everything is looked at anew.
        if followed.settle(registry, resource, doubtful).await {
            self.0 = Some(followed);
        }
    }
}

impl Followed {
    /// Everything there is; all of it is doubtful.
    fn read(registry: &Registry) -> Option<(Self, BTreeSet<String>)> {
        let cache = registry.cache();
        let watch = |row: Row| {
            let snapshot = cache.snapshot(row.resource()?);
            let changes = cache.watch(row.resource()?, snapshot.revision).ok()?;
            Some((snapshot, changes))
        };
        let (services, changed_services) = watch(SERVICES)?;
        let (present, changed_addresses) = watch(IP_ADDRESSES)?;
        let mut followed = Self {
            services: changed_services,
            addresses: changed_addresses,
            holders: BTreeMap::new(),
        };
        for service in services.objects.values() {
            followed.hold(&service.value());
        }
        let names = present.objects.values().map(object_name);
        let doubtful = names.chain(followed.holders.keys().cloned()).collect();
        Some((followed, doubtful))
    }

    /// Takes in what changed; answers the names of objects that may be missing or too many. `None` when some changes
    /// are forgotten.
    fn follow(mut self) -> Option<(Self, BTreeSet<String>)> {
        let (addresses, _revision) = self.addresses.ready().ok()?;
        let (services, _revision) = self.services.ready().ok()?;
        let names = addresses.iter().map(|change| object_name(&change.object));
        let mut doubtful: BTreeSet<String> = names.collect();
        for change in services {
            if let Some(previous) = &change.previous {
                doubtful.extend(self.release(&previous.value()));
            }
            if change.kind != ChangeKind::Deleted {
                doubtful.extend(self.hold(&change.object.value()));
            }
        }
        Some((self, doubtful))
    }

    fn hold(&mut self, service: &Value) -> Vec<String> {
        let names = address_names(service);
        let holder = identity(service);
        self.holders.extend(names.iter().map(|name| (name.clone(), holder.clone())));
        names
    }

    fn release(&mut self, service: &Value) -> Vec<String> {
        let names = address_names(service);
        for name in &names {
            // Another Service may have taken the address since.
            if self.holders.get(name) == Some(&identity(service)) {
                self.holders.remove(name);
            }
        }
        names
    }

    /// Makes what is missing and deletes what is too many; answers whether all went well.
    async fn settle(
        &self,
        registry: &Registry,
        resource: &'static Resource,
        doubtful: BTreeSet<String>,
    ) -> bool {
        let cache = registry.cache();
        let (held, free): (Vec<String>, Vec<String>) =
            doubtful.into_iter().partition(|name| self.holders.contains_key(name));
        let missing: Vec<&String> =
            held.iter().filter(|name| IP_ADDRESSES.get(cache, "", name).is_none()).collect();
        let mut good = true;
        // Together, so that they share the store's syncs with each other, and do not keep others waiting one by one.
        for some in missing.chunks(TOGETHER_MAX) {
            let made = some.iter().map(async |name| {
                let made = ensure(registry, IP_ADDRESSES, object(name, &self.holders[*name])).await;
                made.inspect_err(|error| {
                    tracing::warn!(component = "apiserver", %error, name, "cannot make an IPAddress");
                })
            });
            good &= futures_util::future::join_all(made).await.iter().all(Result::is_ok);
        }
        for name in free {
            let Some(present) = IP_ADDRESSES.get(cache, "", &name) else { continue };
            if !is_ours(&present) {
                continue;
            }
            let deleted =
                registry.delete(&server(), resource, "", &name, &DeleteOptions::default()).await;
            if let Err(error) = deleted {
                good = false;
                tracing::debug!(component = "apiserver", %error, name, "cannot delete an IPAddress");
            }
        }
        good
    }
}

/// The IPAddresses of a Service that is about to be stored for the first time, each with the revision of the one that it
/// replaces: a Service that is gone may have left it. Nothing for other objects.
pub(crate) fn of_new_service(
    registry: &Registry,
    resource: &Resource,
    new: &Value,
) -> Vec<(&'static Resource, Value, u64)> {
    let Some(own) = IP_ADDRESSES.resource().filter(|_| SERVICES.is(resource)) else {
        return Vec::new();
    };
    let holder = identity(new);
    let left = |name: &str| {
        let present = registry.cache().object(own, "", name)?;
        is_ours(&present.value()).then_some(present.revision)
    };
    let names = address_names(new).into_iter();
    let objects = names.map(|name| (own, object(&name, &holder), left(&name).unwrap_or(0)));
    objects.collect()
}

fn is_ours(address: &Value) -> bool {
    address["metadata"]["labels"][MANAGED_BY.0] == MANAGED_BY.1
}

fn identity(service: &Value) -> Name {
    Name::new(text(service, "/metadata/namespace"), text(service, "/metadata/name"))
}

fn object_name(object: &Arc<Object>) -> String {
    text(&object.value(), "/metadata/name").to_owned()
}

/// The names of the objects of a Service's addresses: their canonical text.
fn address_names(service: &Value) -> Vec<String> {
    let addresses = texts(service, "/spec/clusterIPs");
    addresses
        .iter()
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .map(|address| address.to_string())
        .collect()
}

fn object(name: &str, service: &Name) -> Value {
    let family = if name.contains(':') { "IPv6" } else { "IPv4" };
    let (namespace, service) = (&*service.namespace, &*service.name);
    json!({
        "metadata": {"name": name, "labels": {"ipaddress.kubernetes.io/ip-family": family, MANAGED_BY.0: MANAGED_BY.1}},
        "spec": {"parentRef": {"group": "", "resource": "services", "namespace": namespace, "name": service}},
    })
}
