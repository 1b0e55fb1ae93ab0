//! Kubernetes object types and their rules: defaults, validation, selectors, quantities, patches, table columns.
//!
//! Pure: no socket, clock, file or randomness. Upstream counterparts: `k8s.io/api`, `k8s.io/apimachinery` and
//! `pkg/apis/*` of kubernetes/kubernetes. This is the only crate that names `k8s_openapi`; everybody else reaches the
//! types through the modules below.

pub mod apply;
mod columns;
pub mod defaults;
pub mod duration;
pub mod field;
mod kind;
mod name;
pub mod openapi;
pub mod patch;
pub mod pod;
pub mod protobuf;
pub mod qos;
pub mod quantity;
pub mod resource;
pub mod schema;
pub mod selector;
pub mod service;
mod status;
mod validation;

pub use kind::{Kind, ResourceScope, Scoped};
pub use name::{Name, Objects};
pub use status::{Reason, StatusError};

/// Raw bytes that are base64 on the wire.
pub use k8s_openapi::ByteString;
/// `apps/v1`: Deployment, ReplicaSet, StatefulSet, DaemonSet.
pub use k8s_openapi::api::apps::v1 as apps;
/// `authentication.k8s.io/v1`: TokenRequest, TokenReview.
pub use k8s_openapi::api::authentication::v1 as authentication;
/// `authorization.k8s.io/v1`: SubjectAccessReview and its siblings.
pub use k8s_openapi::api::authorization::v1 as authorization;
/// `batch/v1`: Job, CronJob.
pub use k8s_openapi::api::batch::v1 as batch;
/// `coordination.k8s.io/v1`: Lease.
pub use k8s_openapi::api::coordination::v1 as coordination;
/// `v1` of the core group: Pod, Service, Node, ConfigMap, …
pub use k8s_openapi::api::core::v1 as core;
/// `discovery.k8s.io/v1`: EndpointSlice.
pub use k8s_openapi::api::discovery::v1 as discovery;
/// `networking.k8s.io/v1`: Ingress, NetworkPolicy, ServiceCIDR, IPAddress.
pub use k8s_openapi::api::networking::v1 as networking;
/// `policy/v1`: PodDisruptionBudget, Eviction.
pub use k8s_openapi::api::policy::v1 as policy;
/// `rbac.authorization.k8s.io/v1`: Role, RoleBinding, ClusterRole, ClusterRoleBinding.
pub use k8s_openapi::api::rbac::v1 as rbac;
/// `storage.k8s.io/v1`: StorageClass.
pub use k8s_openapi::api::storage::v1 as storage;
/// Quantities as strings on the wire (`100m`, `1Gi`).
pub use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
/// `meta/v1`: ObjectMeta, LabelSelector, OwnerReference, Time, …
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
/// A number or a name, as in `targetPort`.
pub use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
