//! The rules that all kinds share; a kind's own replace them field by field.

use super::{Rules, fields, prepare};
use crate::columns;
use crate::defaults;
use crate::validation::{
    config, endpoints, job, meta, network, pod, policy, rbac, service, storage, workload,
};

/// A kind without rules of its own: any content, with spec and status told apart.
pub const GENERIC: Rules = Rules {
    default: |_| {},
    prepare_create: prepare::create,
    prepare_update: prepare::update,
    prepare_status: prepare::status,
    validate_create: |_| Vec::new(),
    validate_update: meta::update,
    validate_status: meta::update,
    warnings: |_| Vec::new(),
    fields: |_| Vec::new(),
    columns: columns::CREATED,
    row: columns::created,
};

/// `pods`.
pub const POD: Rules = Rules {
    default: defaults::pod::pod,
    prepare_create: prepare::pod_create,
    prepare_update: prepare::pod_update,
    fields: fields::pod,
    validate_create: pod::create,
    validate_update: pod::update,
    validate_status: pod::status,
    warnings: pod::warnings,
    columns: columns::pod::POD,
    row: columns::pod::pod,
    ..GENERIC
};

/// `services`.
pub const SERVICE: Rules = Rules {
    default: defaults::core::service,
    prepare_create: prepare::service_create,
    prepare_update: prepare::service_update,
    fields: fields::service,
    validate_create: service::create,
    validate_update: service::update,
    validate_status: service::status,
    warnings: service::warnings,
    columns: columns::service::SERVICE,
    row: columns::service::service,
    ..GENERIC
};

/// `nodes`.
pub const NODE: Rules = Rules {
    default: defaults::core::node,
    fields: fields::node,
    validate_create: config::create_node,
    validate_update: config::update_node,
    validate_status: config::status_node,
    columns: columns::cluster::NODE,
    row: columns::cluster::node,
    prepare_create: prepare::node_create,
    ..GENERIC
};

/// `namespaces`.
pub const NAMESPACE: Rules = Rules {
    default: defaults::core::namespace,
    prepare_create: prepare::namespace_create,
    prepare_update: prepare::namespace_update,
    fields: fields::namespace,
    validate_create: config::create_namespace,
    validate_status: config::status_namespace,
    columns: columns::cluster::NAMESPACE,
    row: columns::cluster::namespace,
    ..GENERIC
};

/// `events`.
pub const EVENT: Rules = Rules {
    fields: fields::event,
    validate_create: config::create_event,
    validate_update: config::update_event,
    columns: columns::cluster::EVENT,
    row: columns::cluster::event,
    ..GENERIC
};

/// `secrets`.
pub const SECRET: Rules = Rules {
    default: defaults::core::secret,
    fields: fields::secret,
    validate_create: config::create_secret,
    validate_update: config::update_secret,
    columns: columns::cluster::SECRET,
    row: columns::cluster::secret,
    ..GENERIC
};

/// `configmaps`.
pub const CONFIG_MAP: Rules = Rules {
    validate_create: config::create_config_map,
    validate_update: config::update_config_map,
    columns: columns::cluster::CONFIG_MAP,
    row: columns::cluster::config_map,
    ..GENERIC
};

/// `serviceaccounts`.
pub const SERVICE_ACCOUNT: Rules = Rules {
    validate_create: config::create_service_account,
    columns: columns::cluster::SERVICE_ACCOUNT,
    row: columns::cluster::service_account,
    ..GENERIC
};

/// `endpoints`.
pub const ENDPOINTS: Rules = Rules {
    default: defaults::core::endpoints,
    validate_create: endpoints::create,
    validate_update: endpoints::update,
    columns: columns::service::ENDPOINTS,
    row: columns::service::endpoints,
    ..GENERIC
};

/// `persistentvolumes`.
pub const PERSISTENT_VOLUME: Rules = Rules {
    default: defaults::core::persistent_volume,
    validate_create: storage::create_volume,
    validate_update: storage::update_volume,
    columns: columns::storage::VOLUME,
    row: columns::storage::volume,
    prepare_create: prepare::pending_create,
    ..GENERIC
};

/// `persistentvolumeclaims`.
pub const PERSISTENT_VOLUME_CLAIM: Rules = Rules {
    default: defaults::core::persistent_volume_claim,
    validate_create: storage::create_claim,
    validate_update: storage::update_claim,
    validate_status: storage::status_claim,
    columns: columns::storage::CLAIM,
    row: columns::storage::claim,
    prepare_create: prepare::pending_create,
    ..GENERIC
};

/// `replicationcontrollers`.
pub const REPLICATION_CONTROLLER: Rules = Rules {
    default: defaults::workloads::replication_controller,
    fields: fields::replicas,
    validate_create: workload::create_controller,
    validate_update: workload::update_controller,
    validate_status: workload::status_replica_set,
    warnings: pod::of_workload,
    columns: columns::workload::REPLICA_SET,
    row: columns::workload::controller,
    ..GENERIC
};

/// `resourcequotas`.
pub const RESOURCE_QUOTA: Rules = Rules {
    validate_create: config::create_quota,
    validate_update: config::update_quota,
    columns: columns::cluster::QUOTA,
    row: columns::cluster::quota,
    prepare_create: prepare::plain_create,
    default: defaults::core::resource_quota,
    ..GENERIC
};

/// `limitranges`.
pub const LIMIT_RANGE: Rules = Rules {
    default: defaults::core::limit_range,
    validate_create: config::create_limits,
    validate_update: config::update_limits,
    prepare_create: prepare::plain_create,
    ..GENERIC
};

/// `podtemplates`.
pub const POD_TEMPLATE: Rules = Rules {
    default: defaults::workloads::pod_template,
    validate_create: workload::create_template,
    validate_update: workload::update_template,
    warnings: pod::of_template,
    columns: columns::pod::TEMPLATE,
    row: columns::pod::template,
    ..GENERIC
};

/// `deployments`.
pub const DEPLOYMENT: Rules = Rules {
    default: defaults::workloads::deployment,
    validate_create: workload::create_deployment,
    validate_update: workload::update_deployment,
    validate_status: workload::status_deployment,
    warnings: pod::of_workload,
    columns: columns::workload::DEPLOYMENT,
    row: columns::workload::deployment,
    prepare_update: prepare::deployment_update,
    prepare_status: prepare::workload_status,
    ..GENERIC
};

/// `replicasets`.
pub const REPLICA_SET: Rules = Rules {
    default: defaults::workloads::replica_set,
    fields: fields::replicas,
    validate_create: workload::create_replica_set,
    validate_update: workload::update_replica_set,
    validate_status: workload::status_replica_set,
    warnings: pod::of_workload,
    columns: columns::workload::REPLICA_SET,
    row: columns::workload::replica_set,
    prepare_status: prepare::workload_status,
    ..GENERIC
};

/// `statefulsets`.
pub const STATEFUL_SET: Rules = Rules {
    default: defaults::workloads::stateful_set,
    validate_create: workload::create_stateful_set,
    validate_update: workload::update_stateful_set,
    validate_status: workload::status_stateful_set,
    warnings: pod::of_workload,
    columns: columns::workload::STATEFUL_SET,
    row: columns::workload::stateful_set,
    prepare_status: prepare::workload_status,
    ..GENERIC
};

/// `daemonsets`.
pub const DAEMON_SET: Rules = Rules {
    default: defaults::workloads::daemon_set,
    validate_create: workload::create_daemon_set,
    validate_update: workload::update_daemon_set,
    validate_status: workload::status_daemon_set,
    warnings: pod::of_workload,
    columns: columns::workload::DAEMON_SET,
    row: columns::workload::daemon_set,
    prepare_status: prepare::workload_status,
    ..GENERIC
};

/// `controllerrevisions`.
pub const CONTROLLER_REVISION: Rules = Rules {
    validate_create: workload::create_revision,
    validate_update: workload::update_revision,
    columns: columns::workload::REVISION,
    row: columns::workload::revision,
    ..GENERIC
};

/// `jobs`.
pub const JOB: Rules = Rules {
    default: defaults::workloads::job,
    fields: fields::job,
    validate_create: job::create,
    validate_update: job::update,
    validate_status: job::status,
    warnings: pod::of_workload,
    columns: columns::workload::JOB,
    row: columns::workload::job,
    prepare_create: prepare::job_create,
    ..GENERIC
};

/// `cronjobs`.
pub const CRON_JOB: Rules = Rules {
    default: defaults::workloads::cron_job,
    validate_create: job::create_cron,
    validate_update: job::update_cron,
    warnings: pod::of_cron_job,
    columns: columns::workload::CRON_JOB,
    row: columns::workload::cron_job,
    ..GENERIC
};

/// `endpointslices`.
pub const ENDPOINT_SLICE: Rules = Rules {
    default: defaults::core::endpoint_slice,
    validate_create: endpoints::create_slice,
    validate_update: endpoints::update_slice,
    columns: columns::service::SLICE,
    row: columns::service::slice,
    prepare_create: prepare::counted_create,
    prepare_update: prepare::counted_update,
    ..GENERIC
};

/// `leases`.
pub const LEASE: Rules = Rules {
    validate_create: config::create_lease,
    validate_update: config::update_lease,
    columns: columns::cluster::LEASE,
    row: columns::cluster::lease,
    prepare_create: prepare::plain_create,
    ..GENERIC
};

/// `ingresses`.
pub const INGRESS: Rules = Rules {
    validate_create: network::create_ingress,
    validate_update: network::update_ingress,
    validate_status: network::status_ingress,
    columns: columns::network::INGRESS,
    row: columns::network::ingress,
    ..GENERIC
};

/// `ingressclasses`.
pub const INGRESS_CLASS: Rules = Rules {
    validate_create: network::create_class,
    validate_update: network::update_class,
    columns: columns::network::CLASS,
    row: columns::network::class,
    default: defaults::core::ingress_class,
    ..GENERIC
};

/// `networkpolicies`.
pub const NETWORK_POLICY: Rules = Rules {
    default: defaults::core::network_policy,
    validate_create: network::create_policy,
    validate_update: network::update_policy,
    columns: columns::network::POLICY,
    row: columns::network::policy,
    ..GENERIC
};

/// `servicecidrs`.
pub const SERVICE_CIDR: Rules = Rules {
    validate_create: network::create_service_cidr,
    validate_update: network::update_service_cidr,
    columns: columns::network::SERVICE_CIDR,
    row: columns::network::service_cidr,
    prepare_create: prepare::plain_create,
    ..GENERIC
};

/// `ipaddresses`.
pub const IP_ADDRESS: Rules = Rules {
    validate_create: network::create_ip_address,
    validate_update: network::update_ip_address,
    columns: columns::network::IP_ADDRESS,
    row: columns::network::ip_address,
    prepare_create: prepare::plain_create,
    ..GENERIC
};

/// `roles`.
pub const ROLE: Rules =
    Rules { validate_create: rbac::create_role, validate_update: rbac::update_role, ..GENERIC };

/// `rolebindings`.
pub const ROLE_BINDING: Rules = Rules {
    default: defaults::core::role_binding,
    validate_create: rbac::create_binding,
    validate_update: rbac::update_binding,
    columns: columns::cluster::BINDING,
    row: columns::cluster::binding,
    ..GENERIC
};

/// `clusterroles`.
pub const CLUSTER_ROLE: Rules = Rules {
    validate_create: rbac::create_cluster_role,
    validate_update: rbac::update_cluster_role,
    ..GENERIC
};

/// `clusterrolebindings`.
pub const CLUSTER_ROLE_BINDING: Rules = Rules {
    default: defaults::core::role_binding,
    validate_create: rbac::create_cluster_binding,
    validate_update: rbac::update_cluster_binding,
    columns: columns::cluster::BINDING,
    row: columns::cluster::binding,
    ..GENERIC
};

/// `storageclasses`.
pub const STORAGE_CLASS: Rules = Rules {
    default: defaults::core::storage_class,
    validate_create: storage::create_class,
    validate_update: storage::update_class,
    columns: columns::storage::CLASS,
    row: columns::storage::class_row,
    ..GENERIC
};

/// `poddisruptionbudgets`.
pub const POD_DISRUPTION_BUDGET: Rules = Rules {
    validate_create: policy::create_budget,
    validate_update: policy::update_budget,
    validate_status: policy::status_budget,
    columns: columns::pod::BUDGET,
    row: columns::pod::budget,
    ..GENERIC
};

/// `priorityclasses`.
pub const PRIORITY_CLASS: Rules = Rules {
    default: defaults::core::priority_class,
    validate_create: policy::create_priority,
    validate_update: policy::update_priority,
    columns: columns::cluster::PRIORITY,
    row: columns::cluster::priority,
    prepare_create: prepare::counted_create,
    prepare_update: prepare::counted_update,
    ..GENERIC
};
