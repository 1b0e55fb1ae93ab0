//! Waits until all live nodes send new connections past a pod, or to it. Decisions: [`plan::guard`].
//!
//! What the EndpointSlices say comes from this node's copy; whether the nodes follow, the nodes are asked themselves:
//! each says up to which revision its proxy and its DNS have the slices.

mod peers;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::core::{Node, Pod, Service};
use api::discovery::EndpointSlice;
use api::{Kind, Name, Objects};
use client::{Applied, Index, Reflector};
use futures_util::future::join_all;
use plan::endpointslice::service_of;
use plan::guard::Standing;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::liveness::Silence;
use peers::Peers;

/// A pod is looked at so often although nothing changed: what is waited for depends on time; see
/// [`plan::guard::passed_by`].
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Connections that were under way when the last node confirmed get this long to be answered.
const LINGER: Duration = Duration::from_millis(100);

/// What the guard reads.
#[derive(Clone, Debug)]
pub struct Sources {
    /// All Services.
    pub services: Reflector<Service>,
    /// All EndpointSlices.
    pub slices: Reflector<EndpointSlice>,
    /// All nodes.
    pub nodes: Reflector<Node>,
    /// Nodes that are not waited for.
    pub silence: Silence,
}

/// How a wait ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The slices say what was waited for.
    pub settled: bool,
    /// Nodes that were asked.
    pub nodes: usize,
    /// Those that had not confirmed in time.
    pub missing: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// Whether everybody confirmed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.settled && self.missing.is_empty()
    }
}

/// What is waited for.
#[derive(Clone, Copy)]
enum Goal<'a> {
    Left(&'a Pod),
    Joined(&'a Pod),
}

impl Goal<'_> {
    fn judge(self, slices: &Objects<EndpointSlice>, since: Duration) -> Standing {
        match self {
            Self::Left(pod) => plan::guard::passed_by(pod, slices, since),
            Self::Joined(pod) => plan::guard::reached(pod, slices),
        }
    }
}

/// The guard of this node's pods. Clones share it.
#[derive(Clone)]
pub struct Guard(Arc<Inner>);

struct Inner {
    node: String,
    services: Reflector<Service>,
    nodes: Reflector<Node>,
    silence: Silence,
    slices: Index<EndpointSlice>,
    /// Moves with every change of a slice.
    changed: watch::Sender<()>,
    here: Vec<Applied>,
    peers: Peers,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("node", &self.0.node).finish_non_exhaustive()
    }
}

impl Guard {
    /// A guard for the pods of `node`, whose own components are as far as `here` says. Other nodes are asked over `tls`,
    /// which must say that this is a node.
    #[must_use]
    pub fn new(
        node: &str,
        sources: Sources,
        here: Vec<Applied>,
        tls: Arc<rustls::ClientConfig>,
    ) -> Self {
        let Sources { services, slices, nodes, silence } = sources;
        let (changed, _) = watch::channel(());
        let index = Index::new(&slices, service_of);
        let tell = changed.clone();
        slices.listen(move |_| {
            tell.send_replace(());
        });
        let (node, peers) = (node.to_owned(), Peers::new(tls));
        let inner = Inner { node, services, nodes, silence, slices: index, changed, here, peers };
        Self(Arc::new(inner))
    }

    /// Whether connections through Services may reach the pod, so that there is something to wait for.
    #[must_use]
    pub fn concerns(&self, pod: &Pod) -> bool {
        !self.services(pod).is_empty()
    }

    /// Waits until no live node sends new connections to `pod`, for at most `budget`; nothing for a pod behind no Service.
    pub async fn left(&self, pod: &Pod, budget: Duration) -> Option<Outcome> {
        let services = self.services(pod);
        if services.is_empty() || budget.is_zero() {
            return None;
        }
        let outcome = self.wait(&services, budget, Goal::Left(pod)).await;
        tokio::time::sleep(LINGER.min(budget)).await;
        Some(outcome)
    }

    /// Waits until all live nodes send connections to `pod`, for at most `budget`.
    pub async fn joined(&self, pod: &Pod, budget: Duration) -> Outcome {
        self.wait(&self.services(pod), budget, Goal::Joined(pod)).await
    }

    fn services(&self, pod: &Pod) -> Vec<Name> {
        plan::guard::services(&self.0.services.view().objects, pod)
    }

    async fn wait(&self, services: &[Name], budget: Duration, goal: Goal<'_>) -> Outcome {
        let begun = Instant::now();
        let settled = tokio::time::timeout(budget, self.settled(services, begun, goal)).await;
        let (nodes, missing) = match settled {
            Ok(revision) => self.confirm(revision, begun + budget).await,
            Err(_) => (0, Vec::new()),
        };
        Outcome { settled: settled.is_ok(), nodes, missing, took: begun.elapsed() }
    }

    /// Waits until the slices of all `services` are as they should be.
    async fn settled(&self, services: &[Name], begun: Instant, goal: Goal<'_>) -> u64 {
        let mut changes = self.0.changed.subscribe();
        loop {
            changes.mark_unchanged();
            let since = begun.elapsed();
            if let Standing::Settled { revision } = self.standing(services, since, goal) {
                return revision;
            }
            let _ = tokio::time::timeout(LOOK_AGAIN, changes.changed()).await;
        }
    }

    fn standing(&self, services: &[Name], since: Duration, goal: Goal<'_>) -> Standing {
        let slices = services.iter().map(|service| self.0.slices.get(service));
        plan::guard::all(slices.map(|slices| goal.judge(&slices, since)))
    }

    /// Asks every live node; gives their number and the names of those that did not confirm.
    async fn confirm(&self, revision: u64, deadline: Instant) -> (usize, Vec<String>) {
        let view = self.0.nodes.view();
        let mut questions = Vec::new();
        let silent = self.0.silence.now();
        for node in plan::guard::live(&view.objects, &self.0.node, &silent) {
            let (name, address) = (node.name().to_owned(), address(node));
            questions.push(self.clone().ask(name, address, revision, deadline));
        }
        let asked = questions.len();
        (asked, join_all(questions).await.into_iter().flatten().collect())
    }

    /// Gives the node's name back when it does not confirm in time; one that falls silent meanwhile need not.
    async fn ask(
        self,
        node: String,
        address: Option<SocketAddr>,
        revision: u64,
        deadline: Instant,
    ) -> Option<String> {
        let confirmed = async {
            tokio::select! {
                () = self.reached(&node, address, revision) => {}
                () = self.0.silence.falls(&node), if node != self.0.node => {}
            }
        };
        let confirmed = tokio::time::timeout_at(deadline, confirmed).await.is_ok();
        (!confirmed).then_some(node)
    }

    /// Waits until the node has the slices up to `revision`, for as long as it takes.
    async fn reached(&self, node: &str, address: Option<SocketAddr>, revision: u64) {
        if node == self.0.node {
            for one in &self.0.here {
                one.reached(revision).await;
            }
        } else if let Some(address) = address {
            self.0.peers.reached(node, address, revision).await;
        } else {
            std::future::pending::<()>().await;
        }
    }
}

/// Where the node's kubelet answers.
fn address(node: &Node) -> Option<SocketAddr> {
    let status = node.status.as_ref()?;
    let addresses = status.addresses.iter().flatten();
    let ip: IpAddr = addresses
        .filter(|address| address.type_ == "InternalIP")
        .find_map(|address| address.address.parse().ok())?;
    let endpoint = status.daemon_endpoints.as_ref().and_then(|all| all.kubelet_endpoint.as_ref());
    let port = endpoint.and_then(|endpoint| u16::try_from(endpoint.port).ok());
    Some(SocketAddr::new(ip, port.unwrap_or(crate::kubelet::PORT)))
}
