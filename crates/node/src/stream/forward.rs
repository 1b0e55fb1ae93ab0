//! `/portForward`: connections into a pod, over SPDY, over SPDY's frames in WebSocket messages, or over channels of such.
//!
//! Upstream counterpart: `k8s.io/kubelet/pkg/cri/streaming/portforward`, and `k8s.io/apiserver/pkg/util/proxy` for the
//! tunnel in a WebSocket, which upstream's API server undoes and ours leaves to the node.

mod channels;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use kernel::netns;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::sync::CancellationToken;

use super::mux::{Connection, STATUS_PROTOCOL, Stream};
use super::query::Query;
use super::upgrade::{Io, Wanted, part, refused, web_socket};
use super::{Body, Place, Shared, plain};

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Bytes read at once from a pod.
const READ_BYTES: usize = 32 << 10;
/// Bytes between the SPDY frames and the messages around them.
const TUNNEL_BYTES: usize = 64 << 10;
/// For a client to go on sending after the pod has ended its half, as containerd.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(1);
/// For a client to hang up after everything is said.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Halves of a pair that wait for the other; a client opens both at once.
const PENDING_MAX: usize = 256;

/// Where a forward leads.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) pod: String,
    pub(super) uid: String,
    /// `None` is the node's own.
    pub(super) netns: Option<PathBuf>,
}

/// Answers a port-forward.
pub(super) fn respond(
    shared: &Arc<Shared>,
    place: &Place,
    request: Request<Incoming>,
) -> Response<Body> {
    let Ok(found) = shared.handle.pod(&place.namespace, &place.pod) else {
        return plain(StatusCode::NOT_FOUND, "pod does not exist");
    };
    let host = found.pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    let other = place.uid.as_ref().is_some_and(|uid| *uid != found.uid);
    if other || (found.netns.is_none() && !host) {
        let text = format!("pod not found ({:?})", place.pod);
        return plain(StatusCode::INTERNAL_SERVER_ERROR, &text);
    }
    let netns = if host { None } else { found.netns };
    let target = Target { pod: place.pod.clone(), uid: found.uid, netns };
    start(target, request, shared.shutdown.clone())
}

/// Upgrades the connection and forwards on it until `closing`.
pub(super) fn start(
    target: Target,
    request: Request<Incoming>,
    closing: CancellationToken,
) -> Response<Body> {
    let Some(upgrade) = Wanted::of(request.headers()) else {
        return plain(StatusCode::BAD_REQUEST, "Upgrade request required");
    };
    let ours: &[&str] = match upgrade {
        Wanted::Spdy => &[PROTOCOL],
        Wanted::WebSocket => &[TUNNEL, channels::PROTOCOL],
    };
    let offers = upgrade.offers(request.headers());
    let Some(protocol) = ours.iter().copied().find(|one| offers.contains(one)) else {
        return refused(&offers, ours);
    };
    // The other protocols name their ports as they go.
    let named = channels::ports(&Query::parse(request.uri().query().unwrap_or("")));
    let ports = match named {
        Err(text) if protocol == channels::PROTOCOL => {
            return plain(StatusCode::BAD_REQUEST, &text);
        }
        named => named.unwrap_or_default(),
    };
    upgrade.accept(request, protocol, move |io| async move {
        let carried = async {
            match upgrade {
                Wanted::Spdy => serve(Connection::open(io), target).await,
                Wanted::WebSocket if protocol == channels::PROTOCOL => {
                    channels::serve(io, ports, target).await;
                }
                Wanted::WebSocket => {
                    let (near, far) = tokio::io::duplex(TUNNEL_BYTES);
                    tokio::join!(tunnel(io, far), serve(Connection::open(near), target));
                }
            }
        };
        tokio::select! {
            () = Box::pin(carried) => {}
            () = closing.cancelled() => {}
        }
    })
}

/// Unwraps SPDY's bytes from binary messages and wraps them again.
async fn tunnel(io: Io, frames: DuplexStream) {
    let (mut sink, mut source) = web_socket(io).await.split();
    let (mut read, mut write) = tokio::io::split(frames);
    let inward = async {
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(data) if write.write_all(&data).await.is_err() => break,
                Message::Close(_) => break,
                _ => {}
            }
        }
        let _ = write.shutdown().await; // the other end may be gone already
    };
    let outward = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES);
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            if sink.send(Message::Binary(buffer.split().freeze())).await.is_err() {
                return;
            }
        }
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = sink.send(Message::Close(Some(normal))).await; // the client may be gone
    };
    tokio::join!(inward, outward);
    part(sink, source).await;
}

/// Pairs the streams that clients open and forwards each pair, until the client hangs up.
async fn serve(mut connection: Connection, target: Target) {
    let mut halves: BTreeMap<String, Stream> = BTreeMap::new();
    let mut pairs = JoinSet::new();
    let gone = connection.gone.clone();
    loop {
        let stream = tokio::select! {
            stream = connection.streams.recv() => stream,
            _ = pairs.join_next(), if !pairs.is_empty() => continue,
            () = gone.cancelled() => None,
        };
        let Some(stream) = stream else { break };
        let known = matches!(stream.header("streamtype"), "error" | "data");
        let port = stream.header("port").parse::<u16>().ok().filter(|port| *port > 0);
        let (Some(port), true) = (port, known) else {
            if stream.writer.reset(STATUS_PROTOCOL).await.is_err() {
                break;
            }
            continue;
        };
        let request = match stream.header("requestid") {
            // Clients of before 1.1 opened a data stream right after its error stream.
            "" if stream.header("streamtype") == "data" => stream.id.saturating_sub(2).to_string(),
            "" => stream.id.to_string(),
            id => id.to_owned(),
        };
        match halves.remove(&request) {
            Some(other) if other.header("streamtype") == "error" => {
                pairs.spawn(forward(target.clone(), port, stream, other));
            }
            Some(other) => {
                pairs.spawn(forward(target.clone(), port, other, stream));
            }
            None if halves.len() < PENDING_MAX => {
                halves.insert(request, stream);
            }
            None => break,
        }
    }
    connection.close(CLOSE_TIMEOUT).await;
}

async fn forward(target: Target, port: u16, mut data: Stream, error: Stream) {
    let told = match connect(&target, port).await {
        Ok(pod) => {
            copy(pod, &mut data).await;
            Ok(())
        }
        Err(why) => {
            let Target { pod, uid, .. } = &target;
            let text = format!("error forwarding port {port} to pod {pod}, uid {uid}: {why}");
            let told = error.writer.send(text.into()).await;
            told.and(data.writer.finish().await)
        }
    };
    // Clients take the end of both for the end of the forward.
    if told.is_ok() {
        let _ = error.writer.finish().await; // the client may be gone
    }
}

/// Copies both ways until the pod has said all.
async fn copy(pod: TcpStream, data: &mut Stream) {
    let (mut read, mut write) = pod.into_split();
    let writer = data.writer.clone();
    let inward = async {
        while let Some(bytes) = data.data.recv().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await; // the pod may have hung up
    };
    let outward = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES);
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            if writer.send(buffer.split().freeze()).await.is_err() {
                return;
            }
        }
        let _ = writer.finish().await; // the client may be gone
    };
    tokio::pin!(inward, outward);
    tokio::select! {
        () = &mut inward => outward.await,
        () = &mut outward => {
            let _ = tokio::time::timeout(HALF_CLOSED_TIMEOUT, inward).await; // it had its time
        }
    }
}

/// Connects to the port on the pod's own loopback.
async fn connect(target: &Target, port: u16) -> Result<TcpStream, String> {
    let addresses = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    let mut failures = Vec::new();
    for address in addresses {
        let address = SocketAddr::new(address, port);
        match dial(target.netns.clone(), address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failures.push(error),
        }
    }
    let why = |index: usize| failures.get(index).map(reason).unwrap_or_default();
    let path = target.netns.as_ref().map_or("host".into(), |path| path.to_string_lossy());
    Err(format!(
        "failed to execute portforward in network namespace {path:?}: failed to connect to localhost:{port} inside \
         namespace {:?}, IPv4: dial tcp4 127.0.0.1:{port}: {} IPv6 dial tcp6: [::1]:{port}: {} ",
        target.uid,
        why(0),
        why(1)
    ))
}

/// A socket belongs to the namespace it was made in, wherever it is used then.
async fn dial(netns: Option<PathBuf>, address: SocketAddr) -> io::Result<TcpStream> {
    let make = move || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = match netns {
        None => make()?,
        Some(path) => {
            let made = tokio::task::spawn_blocking(move || netns::within(&path, make)).await;
            made.map_err(io::Error::other)?.map_err(io::Error::other)??
        }
    };
    socket.connect(address).await
}

/// Go's words for why a connection failed.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::TimedOut => "connect: connection timed out".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        io::ErrorKind::AddrNotAvailable => "connect: cannot assign requested address".to_owned(),
        _ => error.to_string(),
    }
}
