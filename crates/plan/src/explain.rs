//! The whole chain of one packet in words: the name, the address, each rule, the endpoints, NAT, route, kernel, listener.
//!
//! Pure: a [`Cluster`] and a [`Question`] in, an [`Explanation`] out. What must happen is what [`crate::decide`] says;
//! here it is told. What only a node knows (what its kernel holds, who listens) comes as [`Facts`], if anybody asked.

mod ask;
mod change;
mod endpoints;
mod exposed;
mod files;
mod hostport;
pub mod kernel;
mod miss;
mod name;
mod path;
mod rules;
mod source;
#[cfg(test)]
mod tests;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::core::{Event, Namespace, Node, Pod, Service};
use api::discovery::EndpointSlice;
use api::{Kind, Name, Objects};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use ask::{AskError, From, PortRef, Question, To};
pub use change::{Difference, Lost, Moved, difference};
pub use exposed::{Exposure, exposed};
pub use files::{FilesError, Manifests, UNPLACED};
pub use kernel::{Frontend, Held, Listener};
pub use words::{Line, Tone};

use crate::podfacts;
use crate::podnet;
use crate::proxy::Settings;
use crate::service::NodeView;

/// Who asks from outside without saying its address: a client of RFC 5737's range for examples.
const SOMEBODY: [u8; 4] = [198, 51, 100, 1];
/// Nodes without an answer that are named.
const UNHEARD_NAMED_MAX: usize = 5;

/// Everything that an explanation depends on, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// All Services.
    pub services: Objects<Service>,
    /// All EndpointSlices.
    pub slices: Objects<EndpointSlice>,
    /// All pods.
    pub pods: Objects<Pod>,
    /// All nodes.
    pub nodes: Objects<Node>,
    /// All namespaces.
    pub namespaces: Objects<Namespace>,
    /// Events, for what probes said; may be empty.
    pub events: Objects<Event>,
    /// The DNS domain, `cluster.local`.
    pub domain: String,
    /// Addresses that are Services' or nobody's; empty when that is not known.
    pub service_cidrs: Vec<IpNet>,
    /// Addresses of pods; those of the nodes count as well.
    pub pod_cidrs: Vec<IpNet>,
    /// What the nodes' proxies are told, by node, where that is known; others have the defaults.
    pub told: BTreeMap<String, Told>,
    /// Nodes that were asked for that and did not say.
    pub unheard: BTreeSet<String>,
    /// Addresses that stand for ones which nobody has allocated yet.
    pub invented: BTreeSet<IpAddr>,
}

/// What a node alone knows of its proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// What it was told at start.
    pub settings: Settings,
    /// The addresses that the node has.
    pub addresses: BTreeSet<IpAddr>,
    /// Nodes that it leaves alone because they have fallen silent.
    #[serde(default)]
    pub silent: BTreeSet<String>,
}

impl Cluster {
    /// The proxy's settings on a node.
    #[must_use]
    pub fn settings(&self, node: &str) -> Settings {
        if let Some(told) = self.told.get(node) {
            let ranges = self.service_cidrs.iter().chain(&told.settings.service_cidrs);
            let service_cidrs: BTreeSet<IpNet> = ranges.copied().collect();
            let service_cidrs = service_cidrs.into_iter().collect();
            return Settings { service_cidrs, ..told.settings.clone() };
        }
        let nodes = self.nodes.values().flat_map(|node| podnet::pod_cidrs(node));
        let pod_cidrs: BTreeSet<IpNet> = self.pod_cidrs.iter().copied().chain(nodes).collect();
        Settings {
            node: node.to_owned(),
            service_cidrs: self.service_cidrs.clone(),
            pod_cidrs: IpNet::aggregate(&pod_cidrs.into_iter().collect()),
            ..Settings::default()
        }
    }

    /// The node as its proxy sees it.
    pub(crate) fn node_view(&self, node: &str) -> NodeView {
        let object = self.nodes.get(&Name::cluster(node)).map(AsRef::as_ref);
        let view = self.settings(node).node_view(object, &self.addresses(node));
        NodeView { silent: Arc::new(self.silent(node)), ..view }
    }

    /// The nodes that a node says it leaves alone.
    fn silent(&self, node: &str) -> BTreeSet<String> {
        self.told.get(node).map(|told| told.silent.clone()).unwrap_or_default()
    }

    /// The addresses that a node says it has.
    fn addresses(&self, node: &str) -> BTreeSet<IpAddr> {
        self.told.get(node).map(|told| told.addresses.clone()).unwrap_or_default()
    }

    /// The address as a person reads it.
    #[must_use]
    pub fn address(&self, address: IpAddr) -> String {
        if self.invented.contains(&address) {
            return "(to be allocated)".to_owned();
        }
        address.to_string()
    }

    /// The address and port as a person reads them.
    #[must_use]
    pub fn socket(&self, socket: SocketAddr) -> String {
        if self.invented.contains(&socket.ip()) {
            return format!("(to be allocated):{}", socket.port());
        }
        socket.to_string()
    }

    /// The pod with an address. Of several (that ended, or share their node's address) the one that runs in a network
    /// of its own.
    pub(crate) fn pod_at(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        let text = address.to_string();
        let has = |pod: &&Arc<Pod>| {
            !podfacts::is_terminal(pod) && podfacts::addresses(pod).any(|one| one == text)
        };
        self.pods.values().filter(has).min_by_key(|pod| is_host_network(pod))
    }

    /// The node with an address.
    pub(crate) fn node_at(&self, address: IpAddr) -> Option<&Arc<Node>> {
        let has = |node: &&Arc<Node>| podnet::internal_addresses(node).contains(&address);
        self.nodes.values().find(has)
    }

    /// The primary address of a node.
    pub(crate) fn node_address(&self, node: &str) -> Option<IpAddr> {
        let node = self.nodes.get(&Name::cluster(node))?;
        podnet::internal_addresses(node).first().copied()
    }

    /// The slices of a Service.
    pub(crate) fn slices_of(&self, service: &Name) -> Vec<&EndpointSlice> {
        let slices = crate::objects::in_namespace(&self.slices, &service.namespace);
        let label = crate::service::LABEL_SERVICE_NAME;
        slices
            .filter(|slice| crate::objects::label(slice.as_ref(), label) == Some(&service.name))
            .map(AsRef::as_ref)
            .collect()
    }
}

/// What only nodes know.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What a node's kernel holds for the packet's frontend, by node; or why that is not known.
    pub kernels: BTreeMap<String, Result<Held, String>>,
    /// The listening sockets in a pod's network, by pod; or why they are not known.
    pub listeners: BTreeMap<Name, Result<Vec<Listener>, String>>,
}

/// What the client sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Sees {
    /// The packet arrives at a pod that listens, or at one of which nothing else is known.
    Answer,
    /// Some connections are answered, others refused.
    Mixed,
    /// At once: connection refused.
    Refused,
    /// Nothing, until it gives up.
    Silence,
    /// Whatever is outside the cluster: nothing inside stops it.
    Outside,
    /// The name does not resolve.
    NoName,
    /// Nothing is sent: there is no such client.
    NoClient,
    /// A kernel does not hold what is planned.
    Unsure,
}

/// A question and its answer in the name's lookup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lookup {
    /// The name asked for.
    pub name: String,
    /// What came back.
    pub answer: String,
}

/// An endpoint that may get the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// Where it listens.
    pub address: String,
    /// Its pod, if it is one.
    pub pod: Option<String>,
    /// Its node.
    pub node: Option<String>,
    /// Which part of new connections goes there, in thousandths.
    pub share_permille: u32,
}

/// An endpoint or pod that cannot get the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Excluded {
    /// Where it would listen.
    pub address: Option<String>,
    /// Its pod, if it is one.
    pub pod: Option<String>,
    /// Its node.
    pub node: Option<String>,
    /// Why not.
    pub why: String,
}

/// How one endpoint is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// The endpoint.
    pub to: String,
    /// The way.
    pub way: String,
}

/// Whether one pod listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listens {
    /// Where the packet arrives.
    pub address: String,
    /// Whether a socket listens there; `None` when that is not known.
    pub open: Option<bool>,
    /// The same in words.
    pub words: String,
}

/// One step of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Step {
    /// Who sends.
    From {
        /// `pod default/a`.
        who: String,
        /// Its address.
        address: Option<String>,
        /// Its node.
        node: Option<String>,
        /// Why it cannot send.
        trouble: Option<String>,
    },
    /// The name becomes an address.
    Name {
        /// The DNS server that the client asks.
        server: Option<String>,
        /// In the order in which they are asked.
        lookups: Vec<Lookup>,
        /// Where that leads, or why nowhere.
        words: String,
        /// Whether there is an address.
        found: bool,
    },
    /// Whose the address is.
    Address {
        /// Address, port and protocol.
        address: String,
        /// The Service, if it is one's.
        service: Option<String>,
        /// Why it is that Service's.
        words: String,
        /// Whether the packet goes on from here.
        passes: bool,
    },
    /// The node that the packet comes to.
    Entry {
        /// The node.
        node: String,
        /// Why there.
        words: String,
    },
    /// A rule that the packet meets.
    Rule {
        /// The field of the Service that says so.
        field: String,
        /// What it means here.
        words: String,
        /// Whether the packet passes.
        passes: bool,
    },
    /// Who may get the packet.
    Endpoints {
        /// They may.
        candidates: Vec<Candidate>,
        /// They may not.
        left_out: Vec<Excluded>,
    },
    /// What becomes of the packet's addresses.
    Nat {
        /// The destination.
        destination: String,
        /// The source.
        source: String,
    },
    /// How it gets there.
    Route {
        /// By endpoint.
        hops: Vec<Hop>,
    },
    /// What the kernel of a node holds.
    Kernel {
        /// The node.
        node: String,
        /// Whether that is what was planned; `None` when it is not known.
        agrees: Option<bool>,
        /// In words.
        words: String,
        /// Elements that are missing, other, or too many.
        differences: Vec<String>,
    },
    /// Whether the pods listen.
    Listening {
        /// By endpoint.
        endpoints: Vec<Listens>,
    },
    /// Nodes that did not say how they carry Services.
    Unheard {
        /// Their names.
        nodes: Vec<String>,
        /// In words.
        words: String,
    },
    /// What is probably wrong.
    Why {
        /// Sentences.
        hints: Vec<String>,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Who sends.
    pub from: String,
    /// To whom.
    pub to: String,
    /// Whether the packet arrives, every time. One that leaves the cluster does, as far as the cluster goes.
    pub arrives: bool,
    /// What the client sees.
    pub client_sees: Sees,
    /// In one sentence.
    pub verdict: String,
    /// The chain.
    pub steps: Vec<Step>,
    /// What to ask nodes for, to know more.
    #[serde(skip)]
    pub wanted: Wanted,
}

/// What nodes can add to an explanation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Nodes that judge the packet, and the frontend that they judge it at.
    pub kernels: Vec<(String, Frontend)>,
    /// Pods that may get it, with their nodes.
    pub pods: Vec<(Name, String)>,
}

/// Explains what happens to the first packet of a connection.
#[must_use]
pub fn explain(cluster: &Cluster, question: &Question, facts: &Facts) -> Explanation {
    let mut chain = Chain { cluster, facts, steps: Vec::new(), wanted: Wanted::default() };
    let (mut client_sees, mut verdict) = match chain.run(question) {
        Ok(end) | Err(end) => end,
    };
    chain.unheard();
    let differs = chain.steps.iter().find_map(|step| match step {
        Step::Kernel { node, agrees: Some(false), .. } => Some(node),
        _ => None,
    });
    if let Some(node) = differs {
        client_sees = Sees::Unsure;
        verdict = format!(
            "What is planned is this: {verdict} But node {node} holds something else, so what happens may differ until its agent has put that right."
        );
    }
    Explanation {
        from: question.from.to_string(),
        to: format!("{}, {}", question.to, question.protocol.word()),
        arrives: matches!(client_sees, Sees::Answer | Sees::Outside),
        client_sees,
        verdict,
        steps: chain.steps,
        wanted: chain.wanted,
    }
}

/// How a chain ends: what the client sees, and one sentence.
type End = (Sees, String);

/// An explanation in the making.
struct Chain<'a> {
    cluster: &'a Cluster,
    facts: &'a Facts,
    steps: Vec<Step>,
    wanted: Wanted,
}

/// Who sends, once found.
#[derive(Clone, Debug)]
struct Client {
    /// At most one of each family.
    addresses: Vec<IpAddr>,
    /// The node that it is on; `None` outside.
    node: Option<String>,
    /// Whether it is the node itself, or a pod in the node's network.
    is_node: bool,
    /// The pod, if it is one.
    pod: Option<Arc<Pod>>,
    /// Whether its address is only an example.
    is_anybody: bool,
}

impl Chain<'_> {
    fn run(&mut self, question: &Question) -> Result<End, End> {
        let client = self.source(&question.from)?;
        let destination = self.destination(question, &client)?;
        self.send(question, &client, destination)
    }

    /// Says of which nodes only the defaults are known.
    fn unheard(&mut self) {
        if self.cluster.unheard.is_empty() {
            return;
        }
        let nodes: Vec<String> = self.cluster.unheard.iter().cloned().collect();
        let mut named =
            nodes.iter().take(UNHEARD_NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
        if nodes.len() > UNHEARD_NAMED_MAX {
            named.push_str(&format!(" and {} more", nodes.len() - UNHEARD_NAMED_MAX));
        }
        let words = format!("no answer from {named}: the defaults are believed there");
        self.steps.push(Step::Unheard { nodes, words });
    }
}

/// Whether a pod has its node's network.
pub(crate) fn is_host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

/// `pod default/a`.
pub(crate) fn called<K: Kind>(object: &K) -> String {
    format!("{} {}", K::KIND.to_lowercase(), object.object_name())
}

/// `1 pod`, `3 pods`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}
