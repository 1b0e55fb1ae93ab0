//! The local copies that all loops of one process share.

use api::apps::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use api::batch::{CronJob, Job};
use api::coordination::Lease;
use api::core::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
    ReplicationController, ResourceQuota, Secret, Service, ServiceAccount,
};
use api::discovery::EndpointSlice;
use api::networking::{IPAddress, ServiceCIDR};
use api::policy::PodDisruptionBudget;
use api::storage::StorageClass;
use client::{Client, ListParams, Reflector};

/// One reflector of each kind that a loop needs.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the fields are the kinds")]
pub struct Reflectors {
    pub pods: Reflector<Pod>,
    pub nodes: Reflector<Node>,
    pub namespaces: Reflector<Namespace>,
    pub services: Reflector<Service>,
    pub endpoints: Reflector<Endpoints>,
    pub slices: Reflector<EndpointSlice>,
    pub config_maps: Reflector<ConfigMap>,
    pub secrets: Reflector<Secret>,
    pub service_accounts: Reflector<ServiceAccount>,
    pub volumes: Reflector<PersistentVolume>,
    pub claims: Reflector<PersistentVolumeClaim>,
    pub classes: Reflector<StorageClass>,
    pub deployments: Reflector<Deployment>,
    pub replica_sets: Reflector<ReplicaSet>,
    pub stateful_sets: Reflector<StatefulSet>,
    pub daemon_sets: Reflector<DaemonSet>,
    pub revisions: Reflector<ControllerRevision>,
    pub jobs: Reflector<Job>,
    pub cron_jobs: Reflector<CronJob>,
    pub budgets: Reflector<PodDisruptionBudget>,
    pub leases: Reflector<Lease>,
    pub service_cidrs: Reflector<ServiceCIDR>,
    pub addresses: Reflector<IPAddress>,
    pub quotas: Reflector<ResourceQuota>,
    pub replication_controllers: Reflector<ReplicationController>,
}

impl Reflectors {
    /// Starts to list and watch every kind.
    #[must_use]
    pub fn start(client: &Client) -> Self {
        Self {
            pods: all(client),
            nodes: all(client),
            namespaces: all(client),
            services: all(client),
            endpoints: all(client),
            slices: all(client),
            config_maps: all(client),
            secrets: all(client),
            service_accounts: all(client),
            volumes: all(client),
            claims: all(client),
            classes: all(client),
            deployments: all(client),
            replica_sets: all(client),
            stateful_sets: all(client),
            daemon_sets: all(client),
            revisions: all(client),
            jobs: all(client),
            cron_jobs: all(client),
            budgets: all(client),
            service_cidrs: all(client),
            addresses: all(client),
            quotas: all(client),
            replication_controllers: all(client),
            leases: Reflector::start(client, ListParams::namespace("kube-node-lease")),
        }
    }
}

fn all<K: api::Kind>(client: &Client) -> Reflector<K> {
    Reflector::start(client, ListParams::default())
}
