//! The objects that a cluster begins with, and those that the server itself keeps.
//!
//! Upstream counterparts: `pkg/controlplane` (system namespaces, the `kubernetes` Service and its endpoints, default
//! ServiceCIDR), `pkg/registry/rbac/rest`, `pkg/registry/scheduling/rest`, kubeadm's addons, and the Services' repair
//! loop as far as IPAddresses go.

pub(crate) mod addresses;
mod roles;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::{Reason, StatusError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};

use crate::auth::User;
use crate::lookup::{
    CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, ENDPOINT_SLICES, ENDPOINTS, NAMESPACES, PRIORITY_CLASSES,
    Row, SECRETS, SERVICE_CIDRS, SERVICES, STORAGE_CLASSES,
};
use crate::{Registry, WriteOptions};

/// Namespaces that every cluster has.
const SYSTEM_NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// Seconds between looks at the kept objects when nothing seems to change.
const KEEP_INTERVAL: Duration = Duration::from_secs(10);
/// Wait after a change, so that many changes are one look.
const SETTLE_INTERVAL: Duration = Duration::from_millis(20);
/// Bytes of the key by which nodes know each other.
const LIVENESS_KEY_BYTES: usize = 32;
/// Offset of the cluster DNS address within the service range, as kubeadm's.
const DNS_OFFSET: u32 = 10;

/// The first usable address of a service range: the `kubernetes` Service's.
pub(crate) fn first_address(range: &IpNet) -> Option<IpAddr> {
    nth_address(range, 1)
}

/// The address of the cluster's DNS: the tenth of the primary service range.
#[must_use]
pub fn dns_address(range: &IpNet) -> Option<IpAddr> {
    nth_address(range, DNS_OFFSET)
}

/// The address `offset` after a range's own; `None` beyond its end.
fn nth_address(range: &IpNet, offset: u32) -> Option<IpAddr> {
    let address = match range.network() {
        IpAddr::V4(network) => IpAddr::from(u32::from(network).checked_add(offset)?.to_be_bytes()),
        IpAddr::V6(network) => {
            IpAddr::from(u128::from(network).checked_add(u128::from(offset))?.to_be_bytes())
        }
    };
    range.contains(&address).then_some(address)
}

/// Makes the objects that are missing.
///
/// # Errors
/// When one of them cannot be stored.
pub(crate) async fn objects(registry: &Arc<Registry>) -> Result<(), StatusError> {
    kept(registry).await?;
    for role in roles::roles() {
        ensure(registry, CLUSTER_ROLES, role).await?;
    }
    for binding in roles::bindings() {
        ensure(registry, CLUSTER_ROLE_BINDINGS, binding).await?;
    }
    for class in priority_classes() {
        ensure(registry, PRIORITY_CLASSES, class).await?;
    }
    ensure(registry, STORAGE_CLASSES, storage_class()).await?;
    ensure(registry, SECRETS, liveness_key()?).await?;
    if let Some(service) = dns_service(registry) {
        ensure(registry, SERVICES, service).await?;
    }
    Ok(())
}

/// Makes kept objects again when they are deleted, and IPAddresses follow Services; run as a task of its own.
pub(crate) async fn keep(registry: Arc<Registry>) {
    let rows = [SERVICES, ENDPOINTS, ENDPOINT_SLICES, NAMESPACES];
    let mut addresses = addresses::Addresses::default();
    loop {
        let before = rows.map(|row| row.revision(registry.cache()));
        if let Err(error) = kept(&registry).await {
            tracing::warn!(component = "apiserver", %error, "cannot keep the server's own objects");
        }
        addresses.sync(&registry).await;
        let changed = async {
            let mut seen = registry.cache().revision();
            while rows.map(|row| row.revision(registry.cache())) == before {
                registry.cache().wait_for(seen + 1).await;
                seen = registry.cache().revision();
            }
        };
        let _elapsed = tokio::time::timeout(KEEP_INTERVAL, changed).await;
        tokio::time::sleep(SETTLE_INTERVAL).await;
    }
}

/// What is made again whenever it is missing or wrong.
async fn kept(registry: &Registry) -> Result<(), StatusError> {
    for name in SYSTEM_NAMESPACES {
        ensure(registry, NAMESPACES, json!({"metadata": {"name": name}})).await?;
    }
    let config = registry.config();
    let cidrs: Vec<String> = config.service_cidrs.iter().map(IpNet::to_string).collect();
    ensure(
        registry,
        SERVICE_CIDRS,
        json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}}),
    )
    .await?;
    ensure(registry, SERVICES, kubernetes_service(registry)).await?;
    // Clients would be sent to themselves.
    if config.advertise_address.is_loopback() || config.advertise_address.is_unspecified() {
        return Ok(());
    }
    let (address, port) = (config.advertise_address, config.advertise_port);
    let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
    let endpoints = json!({
        "metadata": {"namespace": "default", "name": "kubernetes",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": address}], "ports": ports}],
    });
    put(registry, ENDPOINTS, endpoints, &["subsets"]).await?;
    let slice = json!({
        "metadata": {"namespace": "default", "name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": ports,
    });
    put(registry, ENDPOINT_SLICES, slice, &["endpoints", "ports"]).await
}

fn kubernetes_service(registry: &Registry) -> Value {
    let config = registry.config();
    let addresses: Vec<IpAddr> =
        config.service_cidrs.iter().take(1).filter_map(first_address).collect();
    json!({
        "metadata": {"namespace": "default", "name": "kubernetes",
            "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": addresses.first(), "clusterIPs": addresses,
            "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": config.advertise_port}],
        },
    })
}

/// Cluster DNS: every node answers at this address itself, so that proxies leave it alone.
fn dns_service(registry: &Registry) -> Option<Value> {
    let address = dns_address(registry.config().service_cidrs.first()?)?;
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol, "targetPort": 53});
    Some(json!({
        "metadata": {"namespace": "kube-system", "name": "kube-dns",
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
            "annotations": {"rhumb.dev/node-local": "true"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ipFamilyPolicy": "SingleStack",
            "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
    }))
}

/// The key by which nodes know each other when they watch each other. Whoever has it can make them leave a node alone.
fn liveness_key() -> Result<Value, StatusError> {
    let mut key = [0; LIVENESS_KEY_BYTES];
    SystemRandom::new()
        .fill(&mut key)
        .map_err(|_| StatusError::internal("the system gives no random bytes"))?;
    Ok(json!({
        "metadata": {"namespace": "kube-system", "name": "rhumb-node-liveness"},
        "type": "Opaque", "data": {"key": STANDARD.encode(key)},
    }))
}

fn storage_class() -> Value {
    json!({
        "metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "rhumb.dev/local", "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
    })
}

fn priority_classes() -> [Value; 2] {
    let class = |name: &str, value: i64, description: &str| {
        json!({"metadata": {"name": name}, "value": value, "description": description,
            "preemptionPolicy": "PreemptLowerPriority"})
    };
    [
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
}

/// Makes an object unless there is one of its name.
async fn ensure(registry: &Registry, row: Row, object: Value) -> Result<(), StatusError> {
    let Some(resource) = row.resource() else { return Ok(()) };
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("").to_owned();
    let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
    if registry.cache().get(resource, &namespace, &name).is_some() {
        return Ok(());
    }
    let (user, options) = (server(), WriteOptions::by_server());
    match registry.create(&user, resource, &namespace, object, &options).await {
        Err(error) if error.reason != Reason::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Makes an object, or sets its `fields` where they differ.
async fn put(
    registry: &Registry,
    row: Row,
    object: Value,
    fields: &[&str],
) -> Result<(), StatusError> {
    let Some(resource) = row.resource() else { return Ok(()) };
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or("").to_owned();
    let Some(present) = registry.cache().get(resource, &text("namespace"), &text("name")) else {
        return ensure(registry, row, object).await;
    };
    if fields.iter().all(|field| present[field] == object[field]) {
        return Ok(());
    }
    let mut changed = Value::clone(&present);
    for field in fields {
        changed[*field] = object[field].clone();
    }
    if let Some(meta) = changed["metadata"].as_object_mut() {
        meta.remove("resourceVersion");
    }
    let options =
        WriteOptions { field_manager: "kube-apiserver".to_owned(), ..WriteOptions::default() };
    registry.update(&server(), resource, None, changed, &options).await.map(|_| ())
}

/// Who writes here.
fn server() -> User {
    User::component("system:apiserver")
}
