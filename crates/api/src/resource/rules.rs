//! The rules that all kinds share; a kind's own replace them field by field.

use super::{Column, Rules, fields, prepare};
use crate::defaults;

/// The columns of kinds without columns of their own.
pub const NAME_AGE: &[Column] = &[
    Column { name: "Name", kind: "string", format: "name", description: "The name of the object.", priority: 0 },
    Column { name: "Age", kind: "date", format: "", description: "The time since the object was created.", priority: 0 },
];

/// A kind without rules of its own: any content, with spec and status told apart.
pub const GENERIC: Rules = Rules {
    default: |_| {},
    prepare_create: prepare::create,
    prepare_update: prepare::update,
    prepare_status: prepare::status,
    validate_create: |_| Vec::new(),
    validate_update: |_, _| Vec::new(),
    validate_status: |_, _| Vec::new(),
    warnings: |_| Vec::new(),
    fields: |_| Vec::new(),
    columns: NAME_AGE,
    row: |object, _| vec![object["metadata"]["name"].clone(), object["metadata"]["creationTimestamp"].clone()],
};

/// `pods`.
pub const POD: Rules = Rules {
    default: defaults::pod::pod,
    prepare_create: prepare::pod_create,
    prepare_update: prepare::pod_update,
    fields: fields::pod,
    ..GENERIC
};

/// `services`.
pub const SERVICE: Rules = Rules {
    default: defaults::core::service,
    prepare_create: prepare::service_create,
    prepare_update: prepare::service_update,
    fields: fields::service,
    ..GENERIC
};

/// `nodes`.
pub const NODE: Rules = Rules {
    default: defaults::core::node,
    fields: fields::node,
    ..GENERIC
};

/// `namespaces`.
pub const NAMESPACE: Rules = Rules {
    default: defaults::core::namespace,
    prepare_create: prepare::namespace_create,
    prepare_update: prepare::namespace_update,
    fields: fields::namespace,
    ..GENERIC
};

/// `events`.
pub const EVENT: Rules = Rules {
    fields: fields::event,
    ..GENERIC
};

/// `secrets`.
pub const SECRET: Rules = Rules {
    default: defaults::core::secret,
    fields: fields::secret,
    ..GENERIC
};

/// `configmaps`.
pub const CONFIG_MAP: Rules = Rules {
    ..GENERIC
};

/// `serviceaccounts`.
pub const SERVICE_ACCOUNT: Rules = Rules {
    ..GENERIC
};

/// `endpoints`.
pub const ENDPOINTS: Rules = Rules {
    default: defaults::core::endpoints,
    ..GENERIC
};

/// `persistentvolumes`.
pub const PERSISTENT_VOLUME: Rules = Rules {
    default: defaults::core::persistent_volume,
    ..GENERIC
};

/// `persistentvolumeclaims`.
pub const PERSISTENT_VOLUME_CLAIM: Rules = Rules {
    default: defaults::core::persistent_volume_claim,
    ..GENERIC
};

/// `replicationcontrollers`.
pub const REPLICATION_CONTROLLER: Rules = Rules {
    default: defaults::workloads::replication_controller,
    fields: fields::replicas,
    ..GENERIC
};

/// `resourcequotas`.
pub const RESOURCE_QUOTA: Rules = Rules {
    ..GENERIC
};

/// `limitranges`.
pub const LIMIT_RANGE: Rules = Rules {
    default: defaults::core::limit_range,
    ..GENERIC
};

/// `podtemplates`.
pub const POD_TEMPLATE: Rules = Rules {
    default: defaults::workloads::pod_template,
    ..GENERIC
};

/// `deployments`.
pub const DEPLOYMENT: Rules = Rules {
    default: defaults::workloads::deployment,
    ..GENERIC
};

/// `replicasets`.
pub const REPLICA_SET: Rules = Rules {
    default: defaults::workloads::replica_set,
    fields: fields::replicas,
    ..GENERIC
};

/// `statefulsets`.
pub const STATEFUL_SET: Rules = Rules {
    default: defaults::workloads::stateful_set,
    ..GENERIC
};

/// `daemonsets`.
pub const DAEMON_SET: Rules = Rules {
    default: defaults::workloads::daemon_set,
    ..GENERIC
};

/// `controllerrevisions`.
pub const CONTROLLER_REVISION: Rules = Rules {
    ..GENERIC
};

/// `jobs`.
pub const JOB: Rules = Rules {
    default: defaults::workloads::job,
    fields: fields::job,
    ..GENERIC
};

/// `cronjobs`.
pub const CRON_JOB: Rules = Rules {
    default: defaults::workloads::cron_job,
    ..GENERIC
};

/// `endpointslices`.
pub const ENDPOINT_SLICE: Rules = Rules {
    default: defaults::core::endpoint_slice,
    ..GENERIC
};

/// `leases`.
pub const LEASE: Rules = Rules {
    ..GENERIC
};

/// `ingresses`.
pub const INGRESS: Rules = Rules {
    ..GENERIC
};

/// `ingressclasses`.
pub const INGRESS_CLASS: Rules = Rules {
    ..GENERIC
};

/// `networkpolicies`.
pub const NETWORK_POLICY: Rules = Rules {
    default: defaults::core::network_policy,
    ..GENERIC
};

/// `servicecidrs`.
pub const SERVICE_CIDR: Rules = Rules {
    ..GENERIC
};

/// `ipaddresses`.
pub const IP_ADDRESS: Rules = Rules {
    ..GENERIC
};

/// `roles`.
pub const ROLE: Rules = Rules {
    ..GENERIC
};

/// `rolebindings`.
pub const ROLE_BINDING: Rules = Rules {
    default: defaults::core::role_binding,
    ..GENERIC
};

/// `clusterroles`.
pub const CLUSTER_ROLE: Rules = Rules {
    ..GENERIC
};

/// `clusterrolebindings`.
pub const CLUSTER_ROLE_BINDING: Rules = Rules {
    default: defaults::core::role_binding,
    ..GENERIC
};

/// `storageclasses`.
pub const STORAGE_CLASS: Rules = Rules {
    default: defaults::core::storage_class,
    ..GENERIC
};

/// `poddisruptionbudgets`.
pub const POD_DISRUPTION_BUDGET: Rules = Rules {
    ..GENERIC
};

/// `priorityclasses`.
pub const PRIORITY_CLASS: Rules = Rules {
    default: defaults::core::priority_class,
    ..GENERIC
};
