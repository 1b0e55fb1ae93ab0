//! The sockets: UDP on threads of their own (an answer is a memory lookup, and a runtime would only be in the way),
//! TCP and forwarding on the runtime.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::SharedZone;
use crate::codec::{Reply, TCP_BYTES_MAX, Transport, reply};
use crate::forward::Forwarder;
use crate::known::Known;

/// How often a waiting thread looks whether it should end.
const LOOK: Duration = Duration::from_millis(500);
/// Queries that may wait for a resolver at once; more are dropped and clients ask again.
const FORWARDS_MAX: usize = 1000;
/// Connections that may be open at once.
const CONNECTIONS_MAX: usize = 1000;
/// A connection without a query for this long is closed (RFC 7766 asks for some seconds).
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for DNS on {address}")]
pub struct ServerError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

struct Shared {
    zone: SharedZone,
    forwarder: Forwarder,
    queries: AtomicU64,
    ended: AtomicBool,
    forwards: Arc<Semaphore>,
}

/// A running server; it ends when dropped.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    tcp: tokio::task::JoinHandle<()>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens on `address` for UDP, on `threads` threads, and TCP. Needs a tokio runtime. Port 0 takes any free one.
    ///
    /// # Errors
    /// When the address is not of this host or the port is taken.
    pub fn start(
        address: SocketAddr,
        threads: usize,
        zone: SharedZone,
        forwarder: Forwarder,
    ) -> Result<Self, ServerError> {
        let failed = |source| ServerError { address, source };
        let forwards = Arc::new(Semaphore::new(FORWARDS_MAX));
        let shared = Shared {
            zone,
            forwarder,
            queries: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            forwards,
        };
        let shared = Arc::new(shared);
        let first = udp(address).map_err(failed)?;
        let address = first.local_addr().map_err(failed)?;
        let mut sockets = vec![first];
        for _ in 1..threads.max(1) {
            sockets.push(udp(address).map_err(failed)?);
        }
        let listener = tcp(address).map_err(failed)?;
        for socket in sockets {
            let (shared, runtime) = (Arc::clone(&shared), Handle::current());
            thread::Builder::new()
                .name("dns".into())
                .spawn(move || serve_udp(&Arc::new(socket), &shared, &runtime))
                .map_err(failed)?;
        }
        let tcp = tokio::spawn(serve_tcp(listener, Arc::clone(&shared)));
        Ok(Self { shared, address, tcp })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many queries have been answered.
    #[must_use]
    pub fn queries(&self) -> u64 {
        self.shared.queries.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        self.tcp.abort();
    }
}

fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    socket.set_read_timeout(Some(LOOK))?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

fn serve_udp(socket: &Arc<UdpSocket>, shared: &Arc<Shared>, runtime: &Handle) {
    let mut buffer = vec![0; TCP_BYTES_MAX];
    let (mut known, mut answer) = (Known::default(), Vec::new());
    let mut turn = 0_usize;
    while !shared.ended.load(Ordering::Relaxed) {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        let packet = &buffer[..length];
        turn = turn.wrapping_add(1);
        shared.queries.fetch_add(1, Ordering::Relaxed);
        let zone = shared.zone.load();
        if known.find(&zone, packet, &mut answer) {
            // A client that is gone is no concern of the others.
            let _ = socket.send_to(&answer, peer);
            continue;
        }
        match reply(&zone, packet, Transport::Udp, turn) {
            Reply::Ignore => {}
            Reply::Send(bytes) => {
                let _ = socket.send_to(&bytes, peer);
                known.keep(packet, &bytes);
            }
            other => {
                let Ok(permit) = Arc::clone(&shared.forwards).try_acquire_owned() else { continue };
                let (socket, shared, packet) =
                    (Arc::clone(socket), Arc::clone(shared), packet.to_vec());
                runtime.spawn(async move {
                    if let Some(bytes) = elsewhere(&shared, &packet, other, Transport::Udp).await {
                        let _ = socket.send_to(&bytes, peer);
                    }
                    drop(permit);
                });
            }
        }
    }
}

/// The answer to a query that needs the host's resolvers.
async fn elsewhere(
    shared: &Shared,
    packet: &[u8],
    reply: Reply,
    transport: Transport,
) -> Option<Vec<u8>> {
    match reply {
        Reply::Ignore => None,
        Reply::Send(bytes) => Some(bytes),
        Reply::Forward => shared.forwarder.answer(packet, transport).await,
        Reply::Follow(answer, target) => {
            shared.forwarder.complete(packet, *answer, &target, transport).await
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let open = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&open).acquire_owned().await;
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            if let Err(error) = serve_stream(stream, &shared).await {
                tracing::trace!(component = "dns", %error, "a connection ended");
            }
            drop(permit);
        });
    }
}

async fn serve_stream(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        let length = match tokio::time::timeout(IDLE_MAX, stream.read_u16()).await {
            Ok(length) => usize::from(length?),
            Err(_) => return Ok(()),
        };
        let mut packet = vec![0; length];
        tokio::time::timeout(IDLE_MAX, stream.read_exact(&mut packet)).await??;
        let turn = shared.queries.fetch_add(1, Ordering::Relaxed);
        let turn = usize::try_from(turn % 1024).unwrap_or(0);
        let decided = reply(&shared.zone.load(), &packet, Transport::Tcp, turn);
        let Some(bytes) = elsewhere(shared, &packet, decided, Transport::Tcp).await else {
            return Ok(());
        };
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await?;
    }
}
