//! The proxy of this node: carries connections to Services to their endpoints. Upstream: kube-proxy.
//!
//! Services, EndpointSlices and the Node come in through reflectors; `plan::proxy` decides; a backend tells the
//! kernel what differs, by nftables or in another way. What the kernel has goes on forwarding while this is not running.

mod backend;
mod ebpf;
mod health;
mod iptables;
mod ipvs;
mod leave;
mod metrics;
mod nftables;
mod prepare;
mod progress;
mod reset;
mod sink;
mod udp;
mod unanswered;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Objects;
use api::core::{Node, Service};
use api::discovery::EndpointSlice;
use api::networking::ServiceCIDR;
use client::{
    Applied, ApplyError, Client, Inputs, ListParams, Next, Reconcile, Recorder, Reflector,
};
use ipnet::IpNet;
use parking_lot::Mutex;
use plan::podnet::internal_addresses;
use plan::proxy::{Dirty, Settings, Snapshot};
use tokio_util::sync::CancellationToken;

use crate::liveness::Silence;
use backend::Backend;
use leave::Others;
use progress::Progress;

pub use backend::Plan;
pub use ebpf::{Namespaces, Plan as EbpfPlan};
pub use health::Health;
pub use iptables::Plan as IptablesPlan;
pub use ipvs::{Plan as IpvsPlan, check_ipvs};
pub use metrics::Metrics;
pub use nftables::Plan as NftablesPlan;
pub use prepare::{ConntrackLimits, prepare};
pub use sink::{IpvsMissing, Sink, SinkError};

/// Where upstream's proxy answers `/healthz` and `/livez`.
const HEALTH_PORT: u16 = 10256;
/// Where upstream's proxy answers `/metrics` and `/proxyMode`.
const METRICS_PORT: u16 = 10249;

/// How to run the proxy.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the plan depends on besides objects.
    pub settings: Settings,
    /// Where `/healthz` and `/livez` answer; upstream's is `0.0.0.0:10256`.
    pub health: SocketAddr,
    /// Where `/metrics` and `/proxyMode` answer; upstream's is `127.0.0.1:10249`.
    pub metrics: SocketAddr,
    /// Connection tracking.
    pub conntrack: ConntrackLimits,
    /// Learns how far the kernel is with the EndpointSlices.
    pub applied: Applied,
    /// Whose the network namespaces on this node are.
    pub namespaces: Namespaces,
    /// Nodes to which no new connections go.
    pub silence: Silence,
}

impl Config {
    /// The defaults around `settings`.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let health = SocketAddr::from(([0, 0, 0, 0], HEALTH_PORT));
        let metrics = SocketAddr::from(([127, 0, 0, 1], METRICS_PORT));
        let (conntrack, applied) = (ConntrackLimits::default(), Applied::default());
        let namespaces = tokio::sync::watch::Sender::default().subscribe();
        let silence = Silence::default();
        Self { settings, health, metrics, conntrack, applied, namespaces, silence }
    }
}

/// The reflectors that the rules come from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// All Services.
    pub services: Reflector<Service>,
    /// All EndpointSlices.
    pub slices: Reflector<EndpointSlice>,
    /// All Nodes.
    pub nodes: Reflector<Node>,
}

/// The component.
#[derive(Debug)]
pub struct Proxy {
    backend: Backend,
    others: Others,
    udp: udp::Cleaner,
    unanswered: unanswered::Unanswered,
    resetter: reset::Resetter,
    health: Health,
    progress: Progress,
}

impl Proxy {
    /// A proxy for the network namespace of the calling thread. Takes the kernel's state over at its first apply.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn open(settings: Settings, health: Health) -> Result<Self, SinkError> {
        health.carries_by(settings.mode);
        let others = Others::open()?;
        let backend = Backend::open(settings)?;
        let udp = udp::Cleaner::open()?;
        let unanswered = unanswered::Unanswered::open()?;
        let resetter = reset::Resetter::open()?;
        let progress = Progress::new();
        Ok(Self { backend, others, udp, unanswered, resetter, health, progress })
    }

    /// Makes the next apply look at what the kernel holds, also where that was done a moment ago.
    pub fn distrust(&mut self) {
        self.backend.distrust();
    }

    /// Learns whose the network namespaces on this node are, for data planes at sockets.
    pub fn follow(&mut self, namespaces: Namespaces) {
        self.backend.follow(namespaces);
    }

    fn act(&mut self, plan: Plan) -> Result<Next, SinkError> {
        let mut applied = self.backend.apply(plan)?;
        if applied.whole {
            let flavor = self.backend.flavor();
            let settings = self.backend.views().settings();
            applied.before.extend(self.others.remove(settings, flavor));
        }
        self.others.look(self.backend.views().settings());
        self.udp.retire(applied.before);
        if applied.udp {
            self.udp.clean(self.backend.views())?;
        }
        self.backend.verify()?;
        self.health.carries_by(self.backend.mode());
        if let Some(trouble) = self.backend.trouble() {
            self.health.complain_of_mode(&trouble);
        }
        if let Some(done) = self.backend.done() {
            self.progress.metrics.programs_did(done);
        }
        self.progress.done(applied.whole);
        let views = self.backend.views();
        let told = self.resetter.look(views, applied.resets);
        self.progress.metrics.reset(told);
        let led_anew = self.unanswered.look(views, applied.moved);
        self.progress.metrics.led_anew(led_anew);
        self.health.publish(views.health(), &views.node().addresses);
        let sooner = [self.resetter.wait(), self.unanswered.wait()].into_iter().flatten();
        Ok(Next::After(sooner.fold(self.backend.wait(), Duration::min)))
    }
}

impl Reconcile for Proxy {
    const NAME: &'static str = "proxy";
    type Key = ();
    type Snapshot = Snapshot;
    type Plan = Plan;

    fn plan(&self, snapshot: &Snapshot, (): &()) -> Plan {
        self.backend.plan(snapshot)
    }

    async fn apply(&mut self, (): &(), plan: Plan) -> Result<Next, ApplyError> {
        self.act(plan).map_err(|error| {
            self.backend.forget();
            self.progress.metrics.failed(self.backend.views().settings().mode);
            ApplyError::sink("the kernel did not take the Services", error)
        })
    }
}

/// Runs the proxy in the network namespace of the calling thread until `shutdown`.
///
/// # Errors
/// When the kernel gives no netlink socket.
pub async fn run(
    client: Client,
    sources: Sources,
    config: Config,
    shutdown: CancellationToken,
) -> Result<(), SinkError> {
    prepare(&config.settings, config.conntrack);
    let health = Health::start(config.health, shutdown.clone());
    let recorder = Recorder::new(&client, "kube-proxy", &config.settings.node);
    health.report_to(recorder, &config.settings.node);
    let mut proxy = Proxy::open(config.settings.clone(), health.clone())?;
    proxy.follow(config.namespaces.clone());
    let progress = Progress::new();
    proxy.progress = progress.clone();
    health.serve_metrics(config.metrics, progress.metrics.clone(), config.silence.clone());
    let Sources { services, slices, nodes } = sources;
    let only = format!("metadata.name={}", config.settings.node);
    let node: Reflector<Node> =
        Reflector::start(&client, ListParams { fields: only, ..ListParams::default() });
    // Listeners are called after the view has the change, so what is named here is in the next snapshot.
    let dirty: Arc<Mutex<Dirty>> = Arc::default();
    let (of_services, of_slices) = (Arc::clone(&dirty), Arc::clone(&dirty));
    let (services_wait, slices_wait) = (health.clone(), health.clone());
    let (count_services, count_slices) = (progress.metrics.clone(), progress.clone());
    let inputs = Inputs::new()
        .with(())
        .on(&nodes, |change, keys| keys.extend(has_moved(change).then_some(())))
        .tells(&slices, config.applied)
        .on(&services, move |change, keys| {
            of_services.lock().services.insert(change.name.clone());
            services_wait.queued(Instant::now());
            count_services.service_changed();
            keys.insert(());
        })
        .on(&slices, move |change, keys| {
            of_slices.lock().slices.insert(change.name.clone());
            slices_wait.queued(Instant::now());
            count_slices.endpoints_changed(change.new.map(AsRef::as_ref));
            keys.insert(());
        })
        .on(&node, |_, keys| keys.extend([()]));
    let asks_addresses = !config.settings.node_port_addresses.is_empty();
    let name = config.settings.node;
    // Clusters before Kubernetes 1.33 have none: nobody waits for them.
    let ranges: Reflector<ServiceCIDR> = Reflector::start(&client, ListParams::default());
    let poke = inputs.poke();
    ranges.listen(move |_| poke(()));
    ebpf::listen(config.namespaces, inputs.poke(), shutdown.clone());
    let (silence, poke) = (config.silence, inputs.poke());
    silence.listen(move || poke(()));
    let told = config.settings.service_cidrs;
    let snapshot = move || {
        health.syncing();
        let dirty = Some(std::mem::take(&mut *dirty.lock()));
        let node = node.view().get("", &name).cloned();
        health.observe(node.as_deref());
        progress.begin();
        Snapshot {
            services: services.view().objects.clone(),
            slices: slices.view().objects.clone(),
            node,
            nodes: node_addresses(&nodes.view().objects),
            silent: silence.now(),
            service_cidrs: service_cidrs(&told, &ranges.view().objects),
            addresses: if asks_addresses { addresses() } else { BTreeSet::new() },
            dirty,
        }
    };
    client::run(proxy, client, inputs, snapshot, shutdown).await;
    Ok(())
}

/// Whether a node has other addresses now. Most changes of Nodes are news of their health.
fn has_moved(change: &client::Change<'_, Node>) -> bool {
    let addresses = |node: Option<&Arc<Node>>| node.map(|node| internal_addresses(node));
    addresses(change.old) != addresses(change.new)
}

fn node_addresses(nodes: &Objects<Node>) -> BTreeSet<IpAddr> {
    nodes.values().flat_map(|node| internal_addresses(node)).collect()
}

/// The ranges that the agent was told of, and those of all ServiceCIDRs.
fn service_cidrs(told: &[IpNet], ranges: &Objects<ServiceCIDR>) -> Vec<IpNet> {
    let added = ranges.values().flat_map(|range| plan::servicecidr::prefixes(range));
    told.iter().copied().chain(added).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The addresses of this node. Read anew at every look: the proxy looks every few seconds.
pub(crate) fn addresses() -> BTreeSet<IpAddr> {
    let links = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let addresses = links.filter_map(|link| {
        let address = link.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    addresses.collect()
}
