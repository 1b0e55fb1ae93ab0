//! Servers in pods and clients anywhere.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kernel::netns;
use net::nft::Family;
use nix::sys::socket::{setsockopt, sockopt};
use plan::service::Protocol;
use socket2::{Domain, Socket, Type};

use super::topology::group;

/// How long a client waits where an answer must come: only a failure takes so long.
const ANSWER_MAX: Duration = Duration::from_secs(8);
/// How long where the kernel's second or third try brings it.
const LATE_ANSWER_MAX: Duration = Duration::from_secs(20);
/// How long it waits where none may come.
const SILENCE: Duration = Duration::from_millis(120);
/// Where pods listen.
pub(crate) const TCP_TARGET: u16 = 8080;
pub(crate) const UDP_TARGET: u16 = 8053;
pub(crate) const SCTP_TARGET: u16 = 8132;

/// What a client got.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reply {
    /// A server's answer: its name, and whom it saw.
    From(String, IpAddr),
    /// Connection refused.
    Refused,
    /// Nothing in time.
    Silence,
}

impl Reply {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::From(name, _) => name,
            Self::Refused => "refused",
            Self::Silence => "silence",
        }
    }

    pub(crate) fn peer(&self) -> Option<IpAddr> {
        match self {
            Self::From(_, peer) => Some(*peer),
            Self::Refused | Self::Silence => None,
        }
    }
}

/// Answers TCP and UDP of both families in a namespace with a name and the asker's address. A TCP client may go on
/// asking; each line is answered with the name.
pub(crate) fn serve(path: &Path, name: &'static str) {
    serve_at(path, name, &["0.0.0.0".parse().unwrap(), "::".parse().unwrap()]);
}

/// The same at these addresses only.
pub(crate) fn serve_at(path: &Path, name: &'static str, addresses: &[IpAddr]) {
    for address in addresses {
        let (tcp, udp) = netns::within(path, || {
            let tcp = listen(Type::STREAM, SocketAddr::new(*address, TCP_TARGET));
            tcp.listen(1024).unwrap();
            (TcpListener::from(tcp), listen(Type::DGRAM, SocketAddr::new(*address, UDP_TARGET)))
        })
        .unwrap();
        let udp = UdpSocket::from(udp);
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                std::thread::spawn(move || converse(stream, name));
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                // Somebody who is gone needs no answer.
                let _ = udp.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
            }
        });
    }
}

/// The same with SCTP, which not every kernel has.
pub(crate) fn serve_sctp(path: &Path, name: &'static str, address: IpAddr) {
    let sctp = netns::within(path, || {
        let sctp =
            listen_to(Type::STREAM, kind(Protocol::Sctp), SocketAddr::new(address, SCTP_TARGET));
        sctp.listen(1024).unwrap();
        sctp
    });
    let sctp = TcpListener::from(sctp.unwrap());
    std::thread::spawn(move || {
        for stream in sctp.incoming().flatten() {
            std::thread::spawn(move || converse(stream, name));
        }
    });
}

/// What a stream of this protocol asks for at its socket.
fn kind(protocol: Protocol) -> Option<socket2::Protocol> {
    (protocol == Protocol::Sctp).then(|| i32::from(protocol.number()).into())
}

fn listen(kind: Type, address: SocketAddr) -> Socket {
    listen_to(kind, None, address)
}

fn listen_to(kind: Type, protocol: Option<socket2::Protocol>, address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), kind, protocol).unwrap();
    if address.is_ipv6() {
        socket.set_only_v6(true).unwrap();
    }
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

fn converse(mut stream: TcpStream, name: &str) {
    let Ok(peer) = stream.peer_addr() else { return };
    if stream.write_all(format!("{name} {}\n", peer.ip()).as_bytes()).is_err() {
        return;
    }
    let Ok(read) = stream.try_clone() else { return };
    for line in BufReader::new(read).lines() {
        if line.is_err() || stream.write_all(format!("{name}\n").as_bytes()).is_err() {
            return;
        }
    }
}

/// Runs in a namespace and, where there are control groups that take threads, in that of its node.
fn within<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> T {
    let takes_threads = |group: &PathBuf| {
        let kind = std::fs::read_to_string(group.join("cgroup.type"));
        kind.is_ok_and(|kind| kind.trim_end() == "threaded")
    };
    let group = group(path);
    let work = || {
        if let Some(group) = group.filter(takes_threads) {
            let thread = nix::unistd::gettid().to_string();
            std::fs::write(group.join("cgroup.threads"), thread).unwrap();
        }
        work()
    };
    netns::within(path, work).unwrap()
}

/// Connections that servers in a namespace have in a family.
pub(crate) fn connections(path: &Path, family: Family) -> usize {
    const ESTABLISHED: &str = "01";
    let file = if family == Family::Ip { "tcp" } else { "tcp6" };
    let read = || std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let table = netns::within(path, read).unwrap();
    let port = format!(":{TCP_TARGET:04X}");
    let is_open = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, state) = (words.next(), words.nth(1));
        local.is_some_and(|local| local.ends_with(&port)) && state == Some(ESTABLISHED)
    };
    table.lines().filter(is_open).count()
}

/// Somebody who asks: in a namespace, under an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker<'a> {
    pub(crate) netns: &'a Path,
    pub(crate) source: IpAddr,
}

impl Asker<'_> {
    /// Asks where an answer must come.
    pub(crate) fn ask(&self, protocol: Protocol, to: SocketAddr) -> Reply {
        within(self.netns, || ask(protocol, self.source, to, ANSWER_MAX))
    }

    /// Asks by TCP where an answer comes at a later try only.
    pub(crate) fn ask_patiently(&self, to: SocketAddr) -> Reply {
        within(self.netns, || ask(Protocol::Tcp, self.source, to, LATE_ANSWER_MAX))
    }

    /// Asks where no answer may come.
    pub(crate) fn ask_in_vain(&self, protocol: Protocol, to: SocketAddr) -> Reply {
        within(self.netns, || ask(protocol, self.source, to, SILENCE))
    }

    /// Asks so often; how often each answer came.
    pub(crate) fn ask_often(
        &self,
        protocol: Protocol,
        to: SocketAddr,
        times: u32,
    ) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        within(self.netns, || {
            for _ in 0..times {
                let reply = ask(protocol, self.source, to, ANSWER_MAX);
                *counts.entry(reply.name().to_owned()).or_default() += 1;
            }
        });
        counts
    }

    /// A UDP socket that keeps its port.
    pub(crate) fn udp(&self) -> UdpFlow {
        let socket = within(self.netns, || UdpSocket::bind((self.source, 0)).unwrap());
        UdpFlow(socket)
    }

    /// A TCP connection that stays.
    pub(crate) fn connect(&self, to: SocketAddr) -> Conversation {
        let stream = within(self.netns, || connect(self.source, to, ANSWER_MAX));
        let stream = stream.unwrap();
        stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
        let mut conversation = Conversation { reader: BufReader::new(stream) };
        conversation.line();
        conversation
    }

    /// The status and the body of an HTTP answer, its head in lower case before it.
    pub(crate) fn get(&self, to: SocketAddr, path: &str) -> Option<(u16, String)> {
        within(self.netns, || {
            let mut stream = connect(self.source, to, ANSWER_MAX).ok()?;
            stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).ok()?;
            let status = text.split(' ').nth(1)?.parse().ok()?;
            Some((status, text))
        })
    }
}

/// One UDP flow.
pub(crate) struct UdpFlow(UdpSocket);

impl UdpFlow {
    pub(crate) fn ask(&self, to: SocketAddr) -> Reply {
        self.ask_within(to, ANSWER_MAX)
    }

    pub(crate) fn ask_in_vain(&self, to: SocketAddr) -> Reply {
        self.ask_within(to, SILENCE)
    }

    pub(crate) fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// Asks with a datagram of so many bytes.
    pub(crate) fn ask_much(&self, to: SocketAddr, bytes: usize) -> Reply {
        self.0.set_read_timeout(Some(ANSWER_MAX)).unwrap();
        self.0.send_to(&vec![b'?'; bytes], to).unwrap();
        let mut buffer = [0; 256];
        match self.0.recv(&mut buffer) {
            Ok(len) => parse(&String::from_utf8_lossy(&buffer[..len])),
            Err(error) => failed(&error),
        }
    }

    fn ask_within(&self, to: SocketAddr, timeout: Duration) -> Reply {
        udp_ask(&self.0, to, timeout)
    }
}

/// One TCP connection.
pub(crate) struct Conversation {
    reader: BufReader<TcpStream>,
}

impl Conversation {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Listens for a moment, and says nothing; whether it was told that the connection is over.
    pub(crate) fn is_reset(&mut self) -> bool {
        let stream = self.reader.get_mut();
        stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        let read = loop {
            match stream.read(&mut [0; 8]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
        match read {
            Ok(bytes) => panic!("{bytes} bytes, and no reset"),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => true,
            Err(error) => failed(&error) != Reply::Silence,
        }
    }

    /// Says something; whether it is told that the connection is over.
    pub(crate) fn ends(&mut self) -> bool {
        let _ = self.reader.get_mut().write_all(b"?\n");
        let read = self.reader.get_mut().read(&mut [0; 8]);
        read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    }

    /// Says so much; who answers.
    pub(crate) fn say_much(&mut self, bytes: usize) -> String {
        self.reader.get_mut().write_all(&vec![b'x'; bytes]).unwrap();
        self.say()
    }

    /// Ends it by a reset.
    pub(crate) fn hang_up(self) {
        let socket = socket2::SockRef::from(self.reader.get_ref());
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Says something; who answers.
    pub(crate) fn say(&mut self) -> String {
        self.reader.get_mut().write_all(b"?\n").unwrap();
        self.line()
    }
}

fn connect(source: IpAddr, to: SocketAddr, timeout: Duration) -> std::io::Result<TcpStream> {
    connect_by(Protocol::Tcp, source, to, timeout)
}

fn connect_by(
    protocol: Protocol,
    source: IpAddr,
    to: SocketAddr,
    timeout: Duration,
) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, kind(protocol))?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&to.into(), timeout)?;
    Ok(socket.into())
}

fn ask(protocol: Protocol, source: IpAddr, to: SocketAddr, timeout: Duration) -> Reply {
    if protocol == Protocol::Udp {
        let socket = UdpSocket::bind((source, 0)).unwrap();
        // Both kinds of sockets, in turn: data planes may know them apart.
        let is_connected = ASKED.fetch_add(1, Ordering::Relaxed).is_multiple_of(2);
        return if is_connected {
            udp_ask(&socket, to, timeout)
        } else {
            udp_ask_unconnected(&socket, to, timeout)
        };
    }
    let stream = match connect_by(protocol, source, to, timeout) {
        Ok(stream) => stream,
        Err(error) => return failed(&error),
    };
    stream.set_read_timeout(Some(timeout)).unwrap();
    let mut answer = String::new();
    match BufReader::new(stream).read_line(&mut answer) {
        Ok(_) => parse(answer.trim_end()),
        Err(error) => failed(&error),
    }
}

/// How often somebody asked by UDP.
static ASKED: AtomicU32 = AtomicU32::new(0);

/// Each datagram with its address. The answer must come from there.
fn udp_ask_unconnected(socket: &UdpSocket, to: SocketAddr, timeout: Duration) -> Reply {
    // Without this only connected sockets are told of refusals.
    match to {
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4RecvErr, &true).unwrap(),
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvErr, &true).unwrap(),
    }
    socket.set_read_timeout(Some(timeout)).unwrap();
    let mut buffer = [0; 256];
    let sent = match socket.send_to(b"?", to) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(0),
        sent => sent,
    };
    match sent.and_then(|_| socket.recv_from(&mut buffer)) {
        Ok((len, from)) => {
            assert_eq!(from, to, "the answer must come from whom was asked");
            parse(&String::from_utf8_lossy(&buffer[..len]))
        }
        Err(error) => failed(&error),
    }
}

fn udp_ask(socket: &UdpSocket, to: SocketAddr, timeout: Duration) -> Reply {
    socket.set_read_timeout(Some(timeout)).unwrap();
    socket.connect(to).unwrap();
    let mut buffer = [0; 256];
    let sent = match socket.send(b"?") {
        // The kernel tells a sender on the node itself that its packet was discarded; what it is to be told of that, if
        // anything, comes as for everybody else.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(0),
        sent => sent,
    };
    // A signal ends the wait, for a child process, say.
    let answer = sent.and_then(|_| {
        loop {
            match socket.recv(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                answer => break answer,
            }
        }
    });
    match answer {
        Ok(len) => parse(&String::from_utf8_lossy(&buffer[..len])),
        Err(error) => failed(&error),
    }
}

fn parse(answer: &str) -> Reply {
    let (name, peer) = answer.split_once(' ').unwrap_or((answer, ""));
    Reply::From(name.to_owned(), peer.parse().unwrap())
}

fn failed(error: &std::io::Error) -> Reply {
    match error.kind() {
        ErrorKind::ConnectionRefused => Reply::Refused,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Reply::Silence,
        other => panic!("{other:?}: {error}"),
    }
}
