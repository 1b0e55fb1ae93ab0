//! Watches other nodes, and is watched by them, over the node network. Decisions: [`plan::liveness`].
//!
//! Messages are UDP datagrams between the nodes' own addresses, authenticated with a key that the control plane keeps in a
//! Secret. Whoever sends new connections to nodes reads [`Silence`].
//!
//! A thread of its own looks at the clock and the sockets: what else keeps the agent busy does not make this node late, and
//! one wake-up costs a fraction of what a task's would.

mod seal;
mod silence;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Kind;
use api::core::{Node, Secret};
use client::{Client, EventKind, ListParams, Recorder, Reflector};
use kernel::ping::Ping;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use plan::liveness::{Beat, Id, Liveness, Output, Verdict};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use seal::Seal;
use silence::Reason;

pub use silence::Silence;

/// The UDP port on which nodes watch each other, where `--node-liveness-port` says nothing else.
pub const PORT: u16 = 10253;
/// Where the cluster's key is.
const SECRET: (&str, &str) = ("kube-system", "rhumb-node-liveness");
/// The field of the Secret.
const KEY: &str = "key";
/// Bytes of a datagram: the presence of 60,000 nodes.
const DATAGRAM_MAX: usize = 65_535;
/// Datagrams that are taken before what is due is done.
const BURST_MAX: usize = 256;
/// How soon a port that somebody else has is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// After its beats went out, a node reads nothing for so long: others send theirs at the same time, so that the next look
/// finds them all. Not while anybody is late.
const REST: Duration = Duration::from_millis(5);
/// The socket for echo requests is closed when nobody was asked for so long.
const PING_IDLE_MS: u64 = 5_000;

/// How to watch.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name.
    pub node: String,
    /// The address that other nodes reach it by.
    pub address: IpAddr,
    /// The port, on all nodes.
    pub port: u16,
}

/// The nodes as the API tells of them, for one look.
type Members = BTreeMap<String, IpAddr>;

/// Watches until `shutdown`, and tells `silence` who has fallen silent.
pub async fn run(
    client: Client,
    nodes: Reflector<Node>,
    config: Config,
    silence: Silence,
    shutdown: CancellationToken,
) {
    let socket = tokio::select! {
        () = shutdown.cancelled() => return,
        socket = bind(SocketAddr::new(config.address, config.port)) => socket,
    };
    let recorder = Recorder::new(&client, "node-liveness", &config.node);
    // A reflector lives as long as somebody has it.
    let (_secrets, key) = follow_key(&client);
    let members = follow_nodes(&nodes, config.address);
    nodes.synced().await;
    let mut watcher = Watcher::new(config, socket, silence, (recorder, nodes));
    let ended = shutdown.clone();
    let watch = move || watcher.watch(key, members, &ended);
    if let Err(error) = std::thread::Builder::new().name("liveness".to_owned()).spawn(watch) {
        tracing::error!(component = "liveness", %error, "nodes are not watched");
    }
    shutdown.cancelled().await;
}

/// Listens, as soon as the port is to be had: an agent before this one may have it for a moment.
async fn bind(address: SocketAddr) -> UdpSocket {
    let mut told = false;
    loop {
        let socket = UdpSocket::bind(address);
        match socket.and_then(|socket| socket.set_nonblocking(true).map(|()| socket)) {
            Ok(socket) => return socket,
            Err(error) if !told => {
                tracing::warn!(component = "liveness", %address, %error, "cannot listen yet");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The key, and every later one.
fn follow_key(client: &Client) -> (Reflector<Secret>, watch::Receiver<Option<Arc<Seal>>>) {
    let (tell, follow) = watch::channel(None);
    let (namespace, name) = SECRET;
    let params = ListParams {
        namespace: namespace.to_owned(),
        ..ListParams::fields(format!("metadata.name={name}"))
    };
    let secrets: Reflector<Secret> = Reflector::start(client, params);
    secrets.listen(move |change| {
        let data = change.new.and_then(|secret| secret.data.as_ref());
        let key = data.and_then(|data| data.get(KEY)).and_then(|key| Seal::new(&key.0));
        if key.is_none() {
            tracing::warn!(
                component = "liveness",
                "Secret {namespace}/{name} has no key: nodes do not watch each other"
            );
        }
        tell.send_replace(key.map(Arc::new));
    });
    (secrets, follow)
}

/// The addresses of all nodes in the family of `own`, whenever one changes.
fn follow_nodes(nodes: &Reflector<Node>, own: IpAddr) -> watch::Receiver<Members> {
    let (tell, follow) = watch::channel(Members::new());
    let tell = move |node: &Node, is_there: bool| {
        let address = address(node, own).filter(|_| is_there);
        let name = node.name();
        tell.send_if_modified(|members| {
            let before = match address {
                Some(address) => members.insert(name.to_owned(), address),
                None => members.remove(name),
            };
            before != address
        });
    };
    nodes.listen(move |change| {
        if let Some(node) = change.new.or(change.old) {
            tell(node, change.new.is_some());
        }
    });
    follow
}

fn address(node: &Node, own: IpAddr) -> Option<IpAddr> {
    let listed = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let internal = listed.filter(|address| address.type_ == "InternalIP");
    let mut parsed = internal.filter_map(|address| address.address.parse::<IpAddr>().ok());
    parsed.find(|address| address.is_ipv4() == own.is_ipv4())
}

/// The loop around the state machine.
struct Watcher {
    config: Config,
    socket: UdpSocket,
    ping: Option<Ping>,
    pinged_at: u64,
    machine: Liveness,
    began: Instant,
    names: BTreeMap<Id, String>,
    addresses: BTreeMap<Id, IpAddr>,
    silence: Silence,
    tells: (Recorder, Reflector<Node>),
}

impl Watcher {
    fn new(
        config: Config,
        socket: UdpSocket,
        silence: Silence,
        tells: (Recorder, Reflector<Node>),
    ) -> Self {
        let epoch = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0);
        Self {
            machine: Liveness::new(Id::of(&config.node), epoch, 0),
            config,
            socket,
            ping: None,
            pinged_at: 0,
            began: Instant::now(),
            names: BTreeMap::new(),
            addresses: BTreeMap::new(),
            silence,
            tells,
        }
    }

    /// Milliseconds since it began.
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A key or members that changed are seen at the next look, a beat later at most.
    fn watch(
        &mut self,
        mut key: watch::Receiver<Option<Arc<Seal>>>,
        mut members: watch::Receiver<Members>,
        shutdown: &CancellationToken,
    ) {
        let mut buffer = vec![0; DATAGRAM_MAX];
        members.mark_changed();
        while !shutdown.is_cancelled() {
            if members.has_changed().is_ok_and(|changed| changed) {
                let all = members.borrow_and_update().clone();
                self.follow(all);
            }
            let seal = key.borrow_and_update().clone();
            self.wait();
            self.hear(seal.as_deref(), &mut buffer);
            self.machine.tick(self.now());
            let sent = self.act(seal.as_deref());
            if sent && self.machine.is_calm(self.now()) {
                std::thread::sleep(REST);
            }
        }
    }

    /// Until something comes or is due.
    fn wait(&self) {
        let left = self.machine.wake().saturating_sub(self.now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut sockets = vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        sockets.extend(self.ping.iter().map(|ping| PollFd::new(ping.as_fd(), PollFlags::POLLIN)));
        // A signal ends it early, which does no harm.
        let _ = poll(&mut sockets, left);
    }

    fn follow(&mut self, members: Members) {
        self.names = members.keys().map(|name| (Id::of(name), name.clone())).collect();
        self.addresses =
            members.into_iter().map(|(name, address)| (Id::of(&name), address)).collect();
        let ids: BTreeSet<Id> = self.names.keys().copied().collect();
        self.machine.members(self.now(), &ids);
        self.publish();
    }

    /// Takes what has come, as much as there is: who was busy sees the newest before it judges.
    fn hear(&mut self, seal: Option<&Seal>, buffer: &mut [u8]) {
        for _ in 0..BURST_MAX {
            match self.socket.recv(buffer) {
                Ok(length) => self.take(seal, buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // An answer to what was sent before: a port where nobody listens.
                Err(_) => {}
            }
        }
        let Some(ping) = &self.ping else { return };
        let replies: Vec<(IpAddr, u16)> =
            (0..BURST_MAX).map_while(|_| ping.receive().ok()).flatten().collect();
        for (from, number) in replies {
            let id = self.addresses.iter().find(|(_, address)| **address == from);
            if let Some(id) = id.map(|(id, _)| *id) {
                self.machine.pong(self.now(), id, number);
            }
        }
    }

    fn take(&mut self, seal: Option<&Seal>, datagram: &[u8]) {
        let counts = &self.silence.counts;
        let Some(message) = seal.and_then(|seal| seal.open(datagram)) else {
            return counts.ignored(Reason::Foreign);
        };
        let Ok(beat) = Beat::decode(message) else { return counts.ignored(Reason::Malformed) };
        let now = self.now();
        match self.machine.receive(now, beat) {
            Ok(()) => drop(self.silence.counts.received.inc()),
            Err(why) => self.silence.counts.ignored(why.into()),
        }
    }

    /// Does what is to be done; answers whether a message went out.
    fn act(&mut self, seal: Option<&Seal>) -> bool {
        let (mut changed, mut sent) = (false, false);
        for output in self.machine.outputs() {
            match output {
                Output::Send(beat) => {
                    self.send(seal, &beat);
                    sent = true;
                }
                Output::Ping(to, number) => self.ask(to, number),
                Output::Verdict(verdict) => {
                    self.log(verdict);
                    changed = true;
                }
                Output::Tell(verdict) => self.tell(verdict),
            }
        }
        if changed {
            self.publish();
        }
        let missed = self.machine.missed().count();
        self.silence.counts.missed.set(i64::try_from(missed).unwrap_or(i64::MAX));
        if self.now() > self.pinged_at + PING_IDLE_MS {
            self.ping = None;
        }
        sent
    }

    /// What cannot be sent is lost, as on the way.
    fn send(&self, seal: Option<&Seal>, beat: &Beat) {
        let (Some(seal), Some(to)) = (seal, self.addresses.get(&beat.to)) else { return };
        let datagram = seal.seal(beat.encode());
        let to = SocketAddr::new(*to, self.config.port);
        if self.socket.send_to(&datagram, to).is_ok() {
            self.silence.counts.sent.inc();
            self.silence.counts.sent_bytes.inc_by(datagram.len().try_into().unwrap_or(0));
        }
    }

    /// Asks a node's kernel.
    fn ask(&mut self, to: Id, number: u16) {
        let Some(to) = self.addresses.get(&to) else { return };
        if self.ping.is_none() {
            let identifier = u16::try_from(std::process::id() & 0xffff).unwrap_or(0);
            match Ping::open(to.is_ipv4(), identifier) {
                Ok(ping) => self.ping = Some(ping),
                Err(error) => {
                    return tracing::warn!(component = "liveness", %error, "cannot ask kernels");
                }
            }
        }
        if let Some(ping) = &self.ping
            && ping.send(*to, number).is_ok()
        {
            self.silence.counts.pings.inc();
        }
        self.pinged_at = self.now();
    }

    fn publish(&self) {
        let silent = self.machine.silent().iter().filter_map(|id| self.names.get(id).cloned());
        self.silence.set(silent.collect());
        let watched = i64::try_from(self.machine.watched()).unwrap_or(i64::MAX);
        self.silence.counts.watched.set(watched);
    }

    fn log(&self, verdict: Verdict) {
        let Some(node) = self.names.get(&verdict.node) else { return };
        if verdict.silent {
            tracing::warn!(
                component = "liveness",
                node,
                "left alone: most of its watchers miss it"
            );
        } else {
            tracing::info!(component = "liveness", node, "used again: it is heard");
        }
    }

    /// Tells the cluster's users, for all nodes.
    fn tell(&self, verdict: Verdict) {
        let (recorder, nodes) = &self.tells;
        let Some(name) = self.names.get(&verdict.node) else { return };
        let view = nodes.view();
        let Some(node) = view.get("", name) else { return };
        if verdict.silent {
            let message = "Most of the nodes that watch it miss it: new connections go elsewhere";
            recorder.event(&**node, EventKind::Warning, "NodeSilent", message);
        } else {
            let message = "It is heard again: new connections go there";
            recorder.event(&**node, EventKind::Normal, "NodeHeard", message);
        }
    }
}
