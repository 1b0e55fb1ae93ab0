//! Control loops that write to the API, one short file each.
//!
//! Upstream counterparts: kube-controller-manager and kube-scheduler. Every loop is a decision in the crate `plan` and the
//! same sink, `write`. [`spawn`] starts them all.

use std::sync::Arc;

use client::Client;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

mod cronjob;
mod daemonset;
mod deployment;
mod diagnosis;
mod disruption;
mod endpoints;
mod endpointslice;
mod gc;
mod job;
pub mod loadbalancer;
mod namespaces;
mod nodes;
mod owners;
mod quota;
mod reflectors;
mod repair;
mod replicaset;
mod replicationcontroller;
mod rollout;
mod scheduler;
mod serviceaccounts;
mod servicecidr;
mod statefulset;
mod volumes;
mod write;

pub use reflectors::Reflectors;

/// How the loops behave.
#[derive(Clone, Debug)]
pub struct Options {
    /// The certificate authority of the API server, as PEM: the content of every `kube-root-ca.crt`.
    pub root_ca: Arc<str>,
    /// Pod addresses of the cluster, such as `10.244.0.0/16`; each node gets a /24 of it.
    pub pod_cidr: Arc<str>,
    /// Where nodes keep node-local volumes; `{node}` stands for the node's name.
    pub volumes_directory: Arc<str>,
    /// How long a node may be silent before it counts as unreachable, in seconds (upstream: 40).
    pub node_grace_seconds: u32,
    /// Addresses for Services of type LoadBalancer; `None` leaves them to somebody else.
    pub load_balancer_pool: Option<plan::loadbalancer::Pool>,
    /// Ports for Services of type NodePort, as the API server gives them.
    pub node_ports: std::ops::RangeInclusive<u16>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            root_ca: "".into(),
            pod_cidr: "10.244.0.0/16".into(),
            volumes_directory: "/var/lib/rhumb/volumes".into(),
            node_grace_seconds: 40,
            load_balancer_pool: None,
            node_ports: 30000..=32767,
        }
    }
}

/// What each loop is started with.
#[derive(Clone)]
struct Context {
    clients: Arc<dyn Fn(&str) -> Client + Send + Sync>,
    reflectors: Reflectors,
    options: Options,
    shutdown: CancellationToken,
}

impl Context {
    /// The sink of one component.
    fn writer(&self, component: &str) -> write::Writer {
        write::Writer::new((self.clients)(component), component)
    }
}

/// Starts every loop, the scheduler included, until `shutdown`. `clients` gives the client of a component by its name, such
/// as `deployment-controller`. Must be called inside a tokio runtime.
pub fn spawn(
    clients: impl Fn(&str) -> Client + Send + Sync + 'static,
    options: Options,
    shutdown: CancellationToken,
) -> Vec<JoinHandle<()>> {
    let reflectors = Reflectors::start(&clients("kube-controller-manager"));
    if let Some(pool) = options.load_balancer_pool {
        let client = clients("service-lb-controller");
        loadbalancer::spawn(&client, &reflectors.services, pool, shutdown.clone());
    }
    let context = Context { clients: Arc::new(clients), reflectors, options, shutdown };
    vec![
        tokio::spawn(deployment::start(context.clone())),
        tokio::spawn(replicaset::start(context.clone())),
        tokio::spawn(replicationcontroller::start(context.clone())),
        tokio::spawn(endpointslice::start(context.clone())),
        tokio::spawn(endpointslice::start_mirror(context.clone())),
        tokio::spawn(endpoints::start(context.clone())),
        tokio::spawn(diagnosis::start(context.clone())),
        tokio::spawn(rollout::start(context.clone())),
        tokio::spawn(scheduler::start(context.clone())),
        tokio::spawn(statefulset::start(context.clone())),
        tokio::spawn(daemonset::start(context.clone())),
        tokio::spawn(job::start(context.clone())),
        tokio::spawn(cronjob::start(context.clone())),
        tokio::spawn(disruption::start(context.clone())),
        tokio::spawn(serviceaccounts::start(context.clone())),
        tokio::spawn(servicecidr::start(context.clone())),
        tokio::spawn(repair::start(context.clone())),
        tokio::spawn(quota::start(context.clone())),
        tokio::spawn(namespaces::start(context.clone())),
        tokio::spawn(nodes::start(context.clone())),
        tokio::spawn(nodes::start_orphans(context.clone())),
        tokio::spawn(gc::start(context.clone())),
        tokio::spawn(volumes::start(context)),
    ]
}
