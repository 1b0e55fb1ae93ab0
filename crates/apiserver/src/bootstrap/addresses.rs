//! An IPAddress for every ClusterIP, and none without one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{ensure, server};
use crate::lookup::{IP_ADDRESSES, SERVICES, text, texts};
use crate::{DeleteOptions, Registry};

const MANAGED_BY: (&str, &str) = ("ipaddress.kubernetes.io/managed-by", "ipallocator.k8s.io");

/// Objects that are made at a time.
const TOGETHER_MAX: usize = 64;

/// Brings IPAddresses in line with the stored Services.
pub(super) async fn sync(registry: &Registry) {
    let Some(resource) = IP_ADDRESSES.resource() else { return };
    let cache = registry.cache();
    let services = SERVICES.list(cache, "");
    let wanted: BTreeMap<String, &Value> = services
        .iter()
        .flat_map(|service| {
            let addresses = texts(service, "/spec/clusterIPs")
                .into_iter()
                .filter_map(|text| text.parse::<IpAddr>().ok());
            addresses.map(|address| (object_name(address), &**service))
        })
        .collect();
    let missing: Vec<_> =
        wanted.iter().filter(|(name, _)| IP_ADDRESSES.get(cache, "", name).is_none()).collect();
    // Together, so that they share the store's syncs with each other, and do not keep others waiting one by one.
    for some in missing.chunks(TOGETHER_MAX) {
        let made = some.iter().map(async |(name, service)| {
            if let Err(error) = ensure(registry, IP_ADDRESSES, object(name, service)).await {
                tracing::warn!(component = "apiserver", %error, name, "cannot make an IPAddress");
            }
        });
        futures_util::future::join_all(made).await;
    }
    for present in IP_ADDRESSES.list(cache, "") {
        let name = text(&present, "/metadata/name");
        let ours = present["metadata"]["labels"][MANAGED_BY.0] == MANAGED_BY.1;
        if ours && !wanted.contains_key(name) {
            let deleted =
                registry.delete(&server(), resource, "", name, &DeleteOptions::default()).await;
            if let Err(error) = deleted {
                tracing::debug!(component = "apiserver", %error, name, "cannot delete an IPAddress");
            }
        }
    }
}

/// The name of an address's object: its canonical text.
fn object_name(address: IpAddr) -> String {
    address.to_string()
}

fn object(name: &str, service: &Value) -> Value {
    let family = if name.contains(':') { "IPv6" } else { "IPv4" };
    json!({
        "metadata": {"name": name, "labels": {"ipaddress.kubernetes.io/ip-family": family, MANAGED_BY.0: MANAGED_BY.1}},
        "spec": {"parentRef": {"group": "", "resource": "services",
            "namespace": text(service, "/metadata/namespace"), "name": text(service, "/metadata/name")}},
    })
}
