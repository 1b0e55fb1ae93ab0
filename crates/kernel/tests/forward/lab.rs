//! A node with a pod, a client outside, and another machine that has endpoints; real packets between them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use kernel::bpf::forward::{Behind, Forward, Leaving, NodeFacts, Timeouts};
use kernel::bpf::{Counter, Tables};
use kernel::netns;
use kernel::tc::Tc;
use net::bpf::{Choice, EndpointSet, Frontend, FrontendKey, endpoints, members};
use socket2::{Domain, Socket, Type};

const ANSWER_MAX: Duration = Duration::from_secs(3);
pub(crate) const SILENCE: Duration = Duration::from_millis(150);

/// Where pods listen.
pub(crate) const PORT: u16 = 8080;
/// Where the Service answers at the node, and at its own address.
pub(crate) const NODE_PORT: u16 = 30080;

/// Addresses, by family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) client: &'static str,
    pub(crate) node: &'static str,
    pub(crate) pod: &'static str,
    pub(crate) far: &'static str,
    pub(crate) vip: &'static str,
}

pub(crate) const V4: Addresses = Addresses {
    client: "198.18.0.9",
    node: "198.18.0.11",
    pod: "10.244.1.2",
    far: "10.244.2.2",
    vip: "10.96.0.10",
};
pub(crate) const V6: Addresses = Addresses {
    client: "fd18::9",
    node: "fd18::11",
    pod: "fd44:0:1::2",
    far: "fd44:0:2::2",
    vip: "fd96::10",
};
pub(crate) const FAMILIES: [Addresses; 2] = [V4, V6];

pub(crate) fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

const WIRES: &str = "
link add wan type veth peer name eth0 netns {p}client
link add side type veth peer name eth0 netns {p}far
link add pod0 type veth peer name eth0 netns {p}pod
addr add 198.18.0.11/24 dev wan
addr add 198.18.1.11/24 dev side
-6 addr add fd18::11/64 dev wan nodad
-6 addr add fd18:1::11/64 dev side nodad
link set lo up
link set wan up
link set side up
link set pod0 up
-n {p}client addr add 198.18.0.9/24 dev eth0
-n {p}client -6 addr add fd18::9/64 dev eth0 nodad
-n {p}client link set lo up
-n {p}client link set eth0 up
-n {p}client route add default via 198.18.0.11
-n {p}client -6 route add default via fd18::11
-n {p}far addr add 198.18.1.9/24 dev eth0
-n {p}far -6 addr add fd18:1::9/64 dev eth0 nodad
-n {p}far link set lo up
-n {p}far link set eth0 up
-n {p}far addr add 10.244.2.2/32 dev lo
-n {p}far -6 addr add fd44:0:2::2/128 dev lo
-n {p}far route add default via 198.18.1.11 src 10.244.2.2
-n {p}far -6 route add default via fd18:1::11 src fd44:0:2::2
route add 10.244.2.0/24 via 198.18.1.9
-6 route add fd44:0:2::/64 via fd18:1::9
-n {p}pod addr add 10.244.1.2/32 dev eth0
-n {p}pod -6 addr add fd44:0:1::2/128 dev eth0 nodad
-n {p}pod link set lo up
-n {p}pod link set eth0 up
-n {p}pod route add 169.254.1.1 dev eth0
-n {p}pod route add default via 169.254.1.1 dev eth0
-n {p}pod -6 route add fe80::1 dev eth0
-n {p}pod -6 route add default via fe80::1 dev eth0
route add 10.244.1.2/32 dev pod0
-6 route add fd44:0:1::2/128 dev pod0
";

/// The machines, and the program on the node. Dropped, all is gone.
pub(crate) struct Lab {
    prefix: String,
    folder: tempfile::TempDir,
    pub(crate) forward: Option<Forward>,
    pub(crate) tables: Option<Tables>,
    sets: u64,
}

impl Lab {
    /// With the program attached to the links of the node.
    pub(crate) fn new(name: &str) -> Self {
        let prefix = format!("rhumb-fwd-{}-{name}-", std::process::id());
        testkit::leftovers::sweep();
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        let mut lab = Self { prefix, folder, forward: None, tables: None, sets: 0 };
        for place in ["client", "node", "pod", "far"] {
            netns::create(&lab.path(place)).unwrap();
        }
        lab.node("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        for line in WIRES.lines().filter(|line| !line.is_empty()) {
            let line = line.replace("{p}", &lab.prefix);
            let line =
                if line.starts_with("-n") { line } else { format!("-n {}node {line}", lab.prefix) };
            // A new IPv6 address is no route's source for a moment.
            let done = (0..200).any(|_| {
                let done = Command::new("ip").args(line.split(' ')).status().unwrap().success();
                if !done {
                    std::thread::sleep(Duration::from_millis(10));
                }
                done
            });
            assert!(done, "{line}");
        }
        lab.neighbours();
        lab.start();
        lab.tell(&NodeFacts { ports: Some(20_000..=29_999), ..facts() });
        for (place, name) in [("pod", "pod"), ("far", "far")] {
            serve(&lab.path(place), name);
        }
        lab
    }

    /// Pods have no ARP: both ends know each other.
    fn neighbours(&self) {
        let mac = |place: &str, link: &str| {
            let shown = self.at(place, &format!("ip -br link show dev {link}"));
            shown.split_whitespace().nth(2).unwrap().to_owned()
        };
        let (near, far) = (mac("node", "pod0"), mac("pod", "eth0"));
        for gateway in ["169.254.1.1", "fe80::1"] {
            self.at("pod", &format!("ip neigh add {gateway} lladdr {near} dev eth0 nud permanent"));
        }
        for pod in [V4.pod, V6.pod] {
            self.node(&format!("ip neigh add {pod} lladdr {far} dev pod0 nud permanent"));
        }
    }

    pub(crate) fn path(&self, place: &str) -> PathBuf {
        netns::named(&format!("{}{place}", self.prefix))
    }

    pub(crate) fn pins(&self) -> PathBuf {
        self.folder.path().join("pins")
    }

    /// The agent starts.
    pub(crate) fn start(&mut self) {
        let pins = self.pins();
        let (forward, tables) = netns::within(&self.path("node"), || {
            let mut forward = Forward::open(&pins).unwrap();
            let mut tc = Tc::open().unwrap();
            let links = tc.links().unwrap();
            let links = links.into_iter().filter_map(|(index, name)| match name.as_str() {
                "wan" | "side" => Some((index, Behind::Outside)),
                "pod0" => Some((index, Behind::Pod)),
                _ => None,
            });
            forward.attach(&mut tc, &links.collect()).unwrap();
            (forward, Tables::of(&pins).unwrap())
        })
        .unwrap();
        (self.forward, self.tables) = (Some(forward), Some(tables));
    }

    pub(crate) fn tell(&mut self, facts: &NodeFacts) {
        self.forward.as_mut().unwrap().tell(facts).unwrap();
    }

    fn set(&mut self, ends: &[SocketAddr]) -> Choice {
        if ends.is_empty() {
            return Choice::default();
        }
        self.sets += 1;
        let set = Arc::new(EndpointSet {
            endpoints: ends.to_vec(),
            remembered: true,
            ..EndpointSet::default()
        });
        let tables = self.tables.as_mut().unwrap();
        for (key, endpoint) in endpoints(self.sets, &set) {
            tables.put_endpoint(key, endpoint).unwrap();
        }
        for member in members(self.sets, &set) {
            tables.put_member(&member).unwrap();
        }
        Choice { set: self.sets, count: u32::try_from(ends.len()).unwrap(), ..Choice::default() }
    }

    /// Makes a frontend of both protocols lead to these endpoints.
    pub(crate) fn serve(
        &mut self,
        frontend: SocketAddr,
        ends: &[SocketAddr],
        masquerade: bool,
    ) -> Choice {
        let choice = self.set(ends);
        let outside = Choice { masquerade, ..choice };
        let frontend_of = Frontend { pods: choice, outside, ..Frontend::default() };
        for protocol in [6, 17] {
            let key = FrontendKey { address: frontend, protocol };
            self.tables.as_mut().unwrap().put_frontend(&key, &frontend_of).unwrap();
        }
        choice
    }

    /// Makes a TCP frontend lead clients to these endpoints with affinity, and with a table.
    pub(crate) fn serve_staying(
        &mut self,
        frontend: SocketAddr,
        ends: &[SocketAddr],
        seconds: u32,
    ) {
        let outside = self.set(ends);
        let places = std::array::from_fn(|place| u16::try_from(place % ends.len()).unwrap());
        self.forward.as_mut().unwrap().put_table(outside.set, &places).unwrap();
        let identity = u64::from(frontend.port());
        let told = Frontend { outside, identity, affinity_s: seconds, ..Frontend::default() };
        let key = FrontendKey { address: frontend, protocol: 6 };
        self.tables.as_mut().unwrap().put_frontend(&key, &told).unwrap();
    }

    /// The table of flows, as bytes.
    fn tracked(&self) -> HashMap<MapData, [u8; 40], [u8; 80]> {
        let folders = std::fs::read_dir(self.pins()).unwrap().flatten();
        let mut paths = folders.map(|folder| folder.path().join("tracked"));
        let path = paths.find(|path| path.exists()).unwrap();
        Map::from_map_data(MapData::from_pin(path).unwrap()).unwrap().try_into().unwrap()
    }

    /// Makes the table forget one direction of every flow, as it does when it is full.
    pub(crate) fn lose(&self, direction: Direction) {
        let mut tracked = self.tracked();
        let keys: Vec<[u8; 40]> = tracked.keys().flatten().collect();
        for key in keys {
            let is_reply = tracked.get(&key, 0).unwrap()[64] & 1 != 0;
            if is_reply == (direction == Direction::Reply) {
                tracked.remove(&key).unwrap();
            }
        }
    }

    /// Puts in what is left of a TCP connection whose client is gone: the endpoint's answers to it.
    pub(crate) fn leave_over(
        &self,
        endpoint: SocketAddr,
        client: SocketAddr,
        frontend: SocketAddr,
    ) {
        let mut track = [0; 80];
        track[..40].copy_from_slice(&tuple(frontend, client));
        let seen = std::fs::read_to_string("/proc/uptime").unwrap();
        let (seconds, _) = seen.split_once('.').unwrap();
        let seen_ns = seconds.parse::<u64>().unwrap() * 1_000_000_000;
        track[48..56].copy_from_slice(&seen_ns.to_ne_bytes());
        track[56] = 1;
        track[64] = 3;
        track[76] = 1;
        self.tracked().insert(tuple(endpoint, client), track, 0).unwrap();
    }

    /// What becomes of the program when its mode is left.
    pub(crate) fn leaving(&self) -> Leaving {
        Leaving::of(&self.pins()).unwrap().unwrap()
    }

    pub(crate) fn counted(&self, counter: Counter) -> u64 {
        self.tables.as_ref().unwrap().counted(counter).unwrap()
    }

    /// Runs a command on the node.
    pub(crate) fn node(&self, command: &str) -> String {
        self.at("node", command)
    }

    pub(crate) fn at(&self, place: &str, command: &str) -> String {
        netns::within(&self.path(place), || run(command)).unwrap()
    }

    /// Asks from a place: the name of who answered, and whom it saw.
    pub(crate) fn ask(&self, from: &str, to: SocketAddr) -> Option<(String, IpAddr)> {
        netns::within(&self.path(from), || ask(to, ANSWER_MAX)).unwrap()
    }

    /// A TCP connection from an address and port of the client.
    pub(crate) fn talk_as(&self, client: SocketAddr, to: SocketAddr) -> Talk {
        let connect = || {
            let socket = Socket::new(Domain::for_address(client), Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&client.into()).unwrap();
            socket.connect_timeout(&to.into(), ANSWER_MAX).unwrap();
            socket.set_read_timeout(Some(ANSWER_MAX)).unwrap();
            TcpStream::from(socket)
        };
        let mut talk = Talk(BufReader::new(netns::within(&self.path("client"), connect).unwrap()));
        talk.line();
        talk
    }

    /// Asks from an address and port of the client.
    pub(crate) fn ask_as(&self, client: SocketAddr, to: SocketAddr) -> Option<(String, IpAddr)> {
        let socket = || {
            let socket = Socket::new(Domain::for_address(client), Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&client.into()).unwrap();
            socket.connect_timeout(&to.into(), ANSWER_MAX).ok()?;
            socket.set_read_timeout(Some(ANSWER_MAX)).unwrap();
            let mut answer = String::new();
            BufReader::new(TcpStream::from(socket)).read_line(&mut answer).ok()?;
            Some(parse(&answer))
        };
        netns::within(&self.path("client"), socket).unwrap()
    }

    /// Sends the first packet of a connection, and does not wait.
    pub(crate) fn knock(&self, from: &str, to: SocketAddr) -> Knock {
        let knock = || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket.connect(&to.into()).expect_err("it takes a moment");
            socket
        };
        Knock(netns::within(&self.path(from), knock).unwrap())
    }

    pub(crate) fn ask_udp(&self, from: &str, to: SocketAddr) -> Option<(String, IpAddr)> {
        self.udp(from, to).ask(ANSWER_MAX)
    }

    /// A UDP flow.
    pub(crate) fn udp(&self, from: &str, to: SocketAddr) -> Flow {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = netns::within(&self.path(from), || UdpSocket::bind(any).unwrap()).unwrap();
        socket.connect(to).unwrap();
        Flow(socket)
    }

    /// A TCP connection.
    pub(crate) fn talk(&self, from: &str, to: SocketAddr) -> Talk {
        let stream = netns::within(&self.path(from), || {
            TcpStream::connect_timeout(&to, ANSWER_MAX).unwrap()
        })
        .unwrap();
        stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
        let mut talk = Talk(BufReader::new(stream));
        talk.line();
        talk
    }
}

/// A connection that is being opened.
pub(crate) struct Knock(Socket);

impl Knock {
    /// The name of who answered, and whom it saw.
    pub(crate) fn answer(self) -> Option<(String, IpAddr)> {
        self.0.set_nonblocking(false).unwrap();
        self.0.set_read_timeout(Some(ANSWER_MAX)).unwrap();
        let mut answer = String::new();
        BufReader::new(TcpStream::from(self.0)).read_line(&mut answer).ok()?;
        Some(parse(&answer))
    }
}

/// Of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Forth,
    Reply,
}

/// TCP packets' addresses and ports, in the layout of the program.
fn tuple(source: SocketAddr, destination: SocketAddr) -> [u8; 40] {
    let mut tuple = [0; 40];
    for (at, address) in [(0, source), (16, destination)] {
        match address.ip() {
            IpAddr::V4(v4) => tuple[at..at + 4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => tuple[at..at + 16].copy_from_slice(&v6.octets()),
        }
    }
    tuple[32..34].copy_from_slice(&source.port().to_be_bytes());
    tuple[34..36].copy_from_slice(&destination.port().to_be_bytes());
    (tuple[36], tuple[37]) = (6, if source.is_ipv4() { 4 } else { 6 });
    tuple
}

/// The node, as the program is told of it, without ports for masquerade.
pub(crate) fn facts() -> NodeFacts {
    NodeFacts {
        v4: V4.node.parse().ok(),
        v6: V6.node.parse().ok(),
        ports: None,
        pods: ["10.244.0.0/16", "fd44::/32"].map(|range| range.parse().unwrap()).into(),
        nodes: BTreeSet::new(),
        timeouts: Timeouts::default(),
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        (self.forward, self.tables) = (None, None);
        for place in ["client", "node", "pod", "far"] {
            netns::delete(&self.path(place)).unwrap();
        }
        kernel::bpf::remove(&self.pins()).unwrap();
    }
}

pub(crate) struct Flow(UdpSocket);

impl Flow {
    pub(crate) fn ask(&self, timeout: Duration) -> Option<(String, IpAddr)> {
        self.ask_with(b"?", timeout)
    }

    pub(crate) fn ask_with(&self, question: &[u8], timeout: Duration) -> Option<(String, IpAddr)> {
        self.0.set_read_timeout(Some(timeout)).unwrap();
        let mut buffer = vec![0; 1 << 16];
        self.0.send(question).ok()?;
        let len = self.0.recv(&mut buffer).ok()?;
        Some(parse(&String::from_utf8_lossy(&buffer[..len])))
    }
}

impl Flow {
    /// Whether it is told that nobody is there.
    pub(crate) fn is_refused(&self) -> bool {
        self.0.set_read_timeout(Some(ANSWER_MAX)).unwrap();
        self.0.send(b"?").unwrap();
        let error = self.0.recv(&mut [0; 64]).expect_err("nobody is there");
        error.kind() == ErrorKind::ConnectionRefused
    }

    /// Sends something of so many bytes that nobody answers.
    pub(crate) fn send(&self, bytes: usize) {
        let _ = self.0.send(&vec![b'?'; bytes]);
    }
}

pub(crate) struct Talk(BufReader<TcpStream>);

impl Talk {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Whether it is told that the connection is gone.
    pub(crate) fn is_reset(&mut self) -> bool {
        let _ = self.0.get_ref().write_all(b"x\n");
        let error = self.0.read_line(&mut String::new()).expect_err("the connection is gone");
        error.kind() == ErrorKind::ConnectionReset
    }

    /// Says something of so many bytes; how many came back.
    pub(crate) fn say(&mut self, bytes: usize) -> usize {
        let mut text = vec![b'x'; bytes];
        text.push(b'\n');
        let mut stream = self.0.get_ref().try_clone().unwrap();
        let writer = std::thread::spawn(move || stream.write_all(&text).unwrap());
        let line = self.line();
        writer.join().unwrap();
        line.len()
    }
}

/// Runs a command and answers what it writes.
fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn parse(answer: &str) -> (String, IpAddr) {
    let (name, rest) = answer.trim_end().split_once(' ').unwrap();
    let peer = rest.split(' ').next().unwrap();
    (name.to_owned(), peer.parse().unwrap())
}

fn ask(to: SocketAddr, timeout: Duration) -> Option<(String, IpAddr)> {
    let stream = match TcpStream::connect_timeout(&to, timeout) {
        Ok(stream) => stream,
        Err(error) => {
            let expected =
                [ErrorKind::ConnectionRefused, ErrorKind::TimedOut, ErrorKind::HostUnreachable];
            assert!(expected.contains(&error.kind()), "{error}");
            return None;
        }
    };
    stream.set_read_timeout(Some(timeout)).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).ok()?;
    Some(parse(&answer))
}

/// Answers with its name and the asker's address: TCP first that, then each line as it came; UDP that and as many bytes
/// as the question had.
fn serve(path: &Path, name: &'static str) {
    for address in ["0.0.0.0", "::"] {
        let (tcp, udp) = netns::within(path, || {
            let tcp = listen(Type::STREAM, at(address, PORT));
            tcp.listen(1024).unwrap();
            (TcpListener::from(tcp), UdpSocket::from(listen(Type::DGRAM, at(address, PORT))))
        })
        .unwrap();
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                std::thread::spawn(move || echo(stream, name));
            }
        });
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok((len, peer)) = udp.recv_from(&mut buffer) {
                let mut answer = format!("{name} {} ", peer.ip()).into_bytes();
                answer.extend(std::iter::repeat_n(b'.', len));
                let _ = udp.send_to(&answer, peer);
            }
        });
    }
}

fn listen(kind: Type, address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), kind, None).unwrap();
    if address.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

fn echo(mut stream: TcpStream, name: &str) {
    let Ok(peer) = stream.peer_addr() else { return };
    let Ok(read) = stream.try_clone() else { return };
    if stream.write_all(format!("{name} {}\n", peer.ip()).as_bytes()).is_err() {
        return;
    }
    for line in BufReader::new(read).lines() {
        let Ok(line) = line else { return };
        if stream.write_all(format!("{line}\n").as_bytes()).is_err() {
            return;
        }
    }
}

/// Counts answers by name.
pub(crate) fn tally(
    answers: impl Iterator<Item = Option<(String, IpAddr)>>,
) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry(answer.map_or("nobody".to_owned(), |(name, _)| name)).or_default() += 1;
    }
    counts
}
