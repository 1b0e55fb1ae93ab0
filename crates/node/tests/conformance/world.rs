//! A cluster under test: the network, a data plane on each node, and the objects; questions to the kernel and to the
//! specification.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use api::Kind;
use kernel::netns;
use net::nft::Family;
use node::proxy::Health;
use plan::action::Action;
use plan::decide::{Decision, Packet, State, Verdict, decide};
use plan::portuse;
use plan::proxy::{FAMILIES, Settings, Snapshot};
use plan::service::Protocol;
use tokio_util::sync::CancellationToken;

use super::mode::{DataPlane, Mode};
use super::objects::Sketch;
use super::topology::{
    CLIENTS, NODES, Network, PODS, node_ip, node_object, node_of, node_second, on_link, pins,
    pod_cidrs, pod_ip, service_cidrs,
};
use super::traffic::{Asker, Reply, serve};

/// Questions for every endpoint that may answer, before one that never did counts as left out: of eight, the chance
/// that one stays unseen by accident is below one in a million.
const TRIES: usize = 16;

pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// A cluster with a data plane on each node.
pub(crate) struct World {
    pub(crate) mode: &'static dyn Mode,
    pub(crate) network: Network,
    pub(crate) settings: Settings,
    planes: BTreeMap<&'static str, Box<dyn DataPlane>>,
    pub(crate) healths: BTreeMap<&'static str, Health>,
    snapshot: Snapshot,
    shutdown: CancellationToken,
}

impl World {
    pub(crate) fn new(mode: &'static dyn Mode) -> Self {
        let network = Network::new();
        for (pod, ..) in PODS {
            serve(&network.path(pod), pod);
        }
        let settings = Settings {
            node: String::new(),
            service_cidrs: service_cidrs(),
            pod_cidrs: pod_cidrs(),
            external_ips: true,
            ..Settings::default()
        };
        let mut world = Self {
            mode,
            network,
            settings,
            planes: BTreeMap::new(),
            healths: BTreeMap::new(),
            snapshot: Snapshot::default(),
            shutdown: CancellationToken::new(),
        };
        world.restart();
        world
    }

    /// Ends the agents, as a crash would: the kernel goes on.
    pub(crate) fn kill(&mut self) {
        self.planes.clear();
        self.healths.clear();
        self.shutdown.cancel();
        self.shutdown = CancellationToken::new();
    }

    /// Starts new agents, which find what the last ones left.
    pub(crate) fn restart(&mut self) {
        self.kill();
        for (name, ..) in NODES {
            let place = self.network.place(name);
            let settings = Settings { node: name.to_owned(), ..self.settings.clone() };
            let guard = place.runtime.enter();
            let any = "0.0.0.0:10256".parse().unwrap();
            let health = Health::start(any, self.shutdown.clone());
            drop(guard);
            self.healths.insert(name, health.clone());
            self.planes.insert(name, self.mode.start(&place, settings, health));
        }
        self.settle();
    }

    /// Starts new agents with other settings.
    pub(crate) fn configure(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        self.restart();
    }

    /// The settings of the beginning, and living agents.
    pub(crate) fn reset(&mut self) {
        let settings = Settings {
            node_port_addresses: Vec::new(),
            masquerade_all: false,
            ..self.settings.clone()
        };
        if self.planes.is_empty() || settings != self.settings {
            self.settings = settings;
            self.restart();
        }
    }

    /// These Services and no others.
    pub(crate) fn apply(&mut self, sketches: &[Sketch]) {
        self.snapshot.services.clear();
        self.snapshot.slices.clear();
        for sketch in sketches {
            let service = sketch.object();
            self.snapshot.services.insert(service.object_name(), Arc::new(service));
            for slice in sketch.slices() {
                self.snapshot.slices.insert(slice.object_name(), Arc::new(slice));
            }
        }
        self.settle();
    }

    /// Lets every data plane act until there is nothing to do.
    pub(crate) fn settle(&mut self) {
        for health in self.healths.values() {
            health.syncing();
        }
        let names: Vec<&'static str> = self.planes.keys().copied().collect();
        for name in names {
            let snapshot = self.known_at(name);
            self.planes.get_mut(name).expect("it was there").apply(&snapshot);
        }
    }

    /// What the agent of a node knows.
    pub(crate) fn known_at(&self, node: &str) -> Snapshot {
        Snapshot {
            node: Some(Arc::new(node_object(node))),
            nodes: FAMILIES
                .into_iter()
                .flat_map(|family| NODES.map(|(name, ..)| node_ip(family, name)))
                .collect(),
            addresses: own_addresses(node),
            ..self.snapshot.clone()
        }
    }

    /// Runs a command on a node.
    pub(crate) fn on_node(&self, node: &str, command: &str) -> String {
        let path = self.network.path(node);
        let command = command.replace("{pins}", &pins(&path).to_string_lossy());
        let words: Vec<&str> = command.split(' ').collect();
        let run = || Command::new(words[0]).args(&words[1..]).output().unwrap();
        let output = netns::within(&path, run).unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a script of nft on a node.
    pub(crate) fn nft(&self, node: &str, script: &str) {
        let run = || Command::new("nft").arg(script).output().unwrap();
        let output = netns::within(&self.network.path(node), run).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// What a node tells of node ports that its own processes listen on: the events' and conditions' texts.
    pub(crate) fn ports_in_use(&self, node: &'static str) -> Vec<String> {
        let services = self.snapshot.services.clone();
        let ports = portuse::node_ports(&services);
        let holders = netns::within(&self.path(node), move || node::portuse::holders(&ports));
        let object = node_object(node);
        let snapshot = portuse::Snapshot {
            services,
            nodes: [(object.object_name(), Arc::new(object))].into_iter().collect(),
            holders: holders.unwrap(),
            now: jiff::Timestamp::UNIX_EPOCH,
        };
        let settings = Settings { node: node.to_owned(), ..self.settings.clone() };
        let actions = portuse::plan(&snapshot, &settings).actions.into_iter();
        let text = |action| match action {
            Action::Event(notice) => notice.message,
            Action::Patch { patch, .. } => patch.to_string(),
            other => panic!("{other:?}"),
        };
        actions.map(text).collect()
    }

    pub(crate) fn path(&self, place: &str) -> PathBuf {
        self.network.path(place)
    }

    /// What must happen to a packet from a pod, a node or the client.
    fn decide_as(
        &self,
        from: &str,
        source: IpAddr,
        protocol: Protocol,
        to: SocketAddr,
    ) -> Decision {
        let entry = entry(from, to.ip());
        let settings = Settings { node: entry.to_owned(), ..self.settings.clone() };
        let node = settings.node_view(Some(&node_object(entry)), &own_addresses(entry));
        let state = State {
            services: &self.snapshot.services,
            slices: &self.snapshot.slices,
            node: &node,
            settings: &settings,
        };
        let packet = Packet { source, from_node: from == entry, destination: to, protocol };
        decide(&packet, &state)
    }

    /// What the kernel does with a packet.
    pub(crate) fn ask(&self, from: &str, protocol: Protocol, to: SocketAddr) -> Reply {
        let source = source(from, Family::of(&to.ip()));
        Asker { netns: &self.path(from), source }.ask(protocol, to)
    }

    /// The same, where no answer may come.
    pub(crate) fn ask_in_vain(&self, from: &str, protocol: Protocol, to: SocketAddr) -> Reply {
        let source = source(from, Family::of(&to.ip()));
        Asker { netns: &self.path(from), source }.ask_in_vain(protocol, to)
    }

    /// Fails unless the kernel does what the specification says: every endpoint that may answer does, nobody else, and
    /// each sees the client that it should. Answers what that was.
    pub(crate) fn agree(&self, from: &str, protocol: Protocol, to: SocketAddr) -> Verdict {
        self.agree_as(from, source(from, Family::of(&to.ip())), protocol, to)
    }

    /// The same, from a certain address.
    pub(crate) fn agree_as(
        &self,
        from: &str,
        source: IpAddr,
        protocol: Protocol,
        to: SocketAddr,
    ) -> Verdict {
        let decision = self.decide_as(from, source, protocol, to);
        let path = self.path(from);
        let asker = Asker { netns: &path, source };
        let what = || format!("{from} ({source}) to {to} {protocol:?}: {decision:?}");
        match &decision.verdict {
            Verdict::Reject => assert_eq!(asker.ask(protocol, to), Reply::Refused, "{}", what()),
            Verdict::Drop => {
                assert_eq!(asker.ask_in_vain(protocol, to), Reply::Silence, "{}", what());
            }
            Verdict::Pass => {
                let reply = asker.ask_in_vain(protocol, to);
                let pod = PODS.into_iter().any(|(pod, ..)| pod == reply.name());
                assert!(!pod, "{reply:?}; {}", what());
            }
            Verdict::Forward(endpoints) => {
                let mut missing: BTreeSet<IpAddr> =
                    endpoints.keys().map(|endpoint| endpoint.ip()).collect();
                if decision.affinity_s.is_some() {
                    // One of them, and always the same.
                    let first = asker.ask(protocol, to);
                    self.check(&first, endpoints, (from, source, to), &what);
                    assert_eq!(asker.ask(protocol, to).name(), first.name(), "{}", what());
                    return decision.verdict;
                }
                let mut tries = TRIES * missing.len();
                while !missing.is_empty() {
                    assert!(tries > 0, "{missing:?} never answer; {}", what());
                    tries -= 1;
                    let reply = asker.ask(protocol, to);
                    missing.remove(&self.check(&reply, endpoints, (from, source, to), &what));
                }
            }
        }
        decision.verdict
    }

    /// Whether an answer is one of those that may come; who gave it.
    fn check(
        &self,
        reply: &Reply,
        endpoints: &BTreeMap<SocketAddr, bool>,
        (from, source, to): (&str, IpAddr, SocketAddr),
        what: &dyn Fn() -> String,
    ) -> IpAddr {
        let family = Family::of(&to.ip());
        let Some((pod, ..)) = PODS.into_iter().find(|(pod, ..)| *pod == reply.name()) else {
            panic!("{reply:?}; {}", what());
        };
        let address = pod_ip(family, pod);
        let masquerade = endpoints.iter().find(|(endpoint, _)| endpoint.ip() == address);
        let Some((_, masquerade)) = masquerade else { panic!("{reply:?}; {}", what()) };
        let peer = reply.peer().expect("a pod answered");
        if *masquerade {
            let node = own_addresses(entry(from, to.ip()));
            assert!(node.contains(&peer), "{reply:?} must see the node; {}", what());
        } else {
            assert_eq!(peer, source, "{reply:?} must see the client; {}", what());
        }
        address
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kill();
    }
}

/// All addresses of a node.
fn own_addresses(node: &str) -> BTreeSet<IpAddr> {
    let families = [Family::Ip, Family::Ip6].into_iter();
    let mut own: BTreeSet<IpAddr> =
        families.flat_map(|family| [node_ip(family, node), node_second(family, node)]).collect();
    own.extend(["127.0.0.1", "::1"].map(|text| text.parse::<IpAddr>().unwrap()));
    own
}

/// The first address of a pod, a node or the client.
pub(crate) fn source(place: &str, family: Family) -> IpAddr {
    if place == "client" {
        on_link(family, CLIENTS[0])
    } else if NODES.into_iter().any(|(node, ..)| node == place) {
        node_ip(family, place)
    } else {
        pod_ip(family, place)
    }
}

/// The node that decides about a packet: the one whose address it is for, else the first on its way.
fn entry(from: &str, to: IpAddr) -> &'static str {
    let family = Family::of(&to);
    let mut nodes = NODES.into_iter().map(|(node, ..)| node);
    let is_to = |node: &&str| node_ip(family, node) == to || node_second(family, node) == to;
    if let Some(node) = nodes.clone().find(is_to) {
        return node;
    }
    match nodes.find(|node| *node == from) {
        Some(node) => node,
        None if from == "client" => "n1",
        None => node_of(from),
    }
}
