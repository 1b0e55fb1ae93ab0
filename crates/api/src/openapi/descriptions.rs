//! Descriptions of messages and fields, out of k8s-openapi's JSON schemas.

use k8s_openapi::api;
use k8s_openapi::schemars::SchemaGenerator;
use serde_json::{Map, Value};

/// JSON schemas by definition name: `io.k8s.api.core.v1.ServicePort`.
pub(super) struct Descriptions(Map<String, Value>);

macro_rules! of {
    ($generator:ident: $($kind:ty),* $(,)?) => { $($generator.subschema_for::<$kind>();)* };
}

impl Descriptions {
    /// Of the kinds that clusters use daily; others are served without.
    pub(super) fn load() -> Self {
        let mut generator = SchemaGenerator::default();
        of!(generator: api::core::v1::Pod, api::core::v1::Service, api::core::v1::Node, api::core::v1::Namespace,
            api::core::v1::ConfigMap, api::core::v1::Secret, api::core::v1::ServiceAccount, api::core::v1::Endpoints,
            api::core::v1::Event, api::core::v1::PersistentVolume, api::core::v1::PersistentVolumeClaim,
            api::core::v1::ResourceQuota, api::core::v1::LimitRange, api::core::v1::ReplicationController);
        of!(generator: api::apps::v1::Deployment, api::apps::v1::ReplicaSet, api::apps::v1::StatefulSet,
            api::apps::v1::DaemonSet, api::apps::v1::ControllerRevision, api::batch::v1::Job, api::batch::v1::CronJob,
            api::coordination::v1::Lease, api::discovery::v1::EndpointSlice, api::storage::v1::StorageClass,
            api::policy::v1::PodDisruptionBudget, api::autoscaling::v2::HorizontalPodAutoscaler);
        of!(generator: api::networking::v1::Ingress, api::networking::v1::IngressClass,
            api::networking::v1::NetworkPolicy, api::networking::v1::IPAddress, api::networking::v1::ServiceCIDR,
            api::rbac::v1::Role, api::rbac::v1::RoleBinding, api::rbac::v1::ClusterRole,
            api::rbac::v1::ClusterRoleBinding);
        Self(generator.take_definitions(true))
    }

    /// What a message is.
    pub(super) fn of_message(&self, definition: &str) -> Option<&str> {
        self.0.get(definition)?.get("description")?.as_str()
    }

    /// What a field is.
    pub(super) fn of_field(&self, definition: &str, field: &str) -> Option<&str> {
        self.0.get(definition)?.get("properties")?.get(field)?.get("description")?.as_str()
    }
}
