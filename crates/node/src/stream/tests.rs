//! The API's parts behind a real HTTP connection: upgrades, sessions, and forwards into a network namespace.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use kernel::link::Netlink;
use kernel::netns;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::forward::Target;
use super::spdy::{Decoder, Encoder, Frame as Spdy, Headers};
use super::upgrade::{Io, Wanted};
use super::wire::{Channel, Size, Streams, Wire};
use super::*;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A server of one connection.
fn serve_one(
    answer: impl Fn(Request<Incoming>) -> Response<Body> + Send + Sync + 'static,
) -> DuplexStream {
    let (near, far) = tokio::io::duplex(1 << 16);
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let answer = Arc::clone(&answer);
            async move { Ok::<_, Infallible>(answer(request)) }
        });
        let http = hyper::server::conn::http1::Builder::new();
        http.serve_connection(TokioIo::new(far), service).with_upgrades().await.unwrap();
    });
    near
}

/// Sends a request and reads the head of the answer.
async fn ask(io: &mut DuplexStream, headers: &str) -> String {
    ask_at(io, "/", headers).await
}

async fn ask_at(io: &mut DuplexStream, path: &str, headers: &str) -> String {
    let request =
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n{headers}\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap().to_ascii_lowercase()
}

const WEB_SOCKET: &str = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// kubectl's end of SPDY.
struct Client<T> {
    io: T,
    encoder: Encoder,
    decoder: Decoder,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Client<T> {
    fn new(io: T) -> Self {
        Self { io, encoder: Encoder::default(), decoder: Decoder::new() }
    }

    async fn send(&mut self, frames: &[Spdy]) {
        let mut out = BytesMut::new();
        frames.iter().for_each(|frame| self.encoder.encode(frame, &mut out));
        self.io.write_all(&out).await.unwrap();
        self.io.flush().await.unwrap();
    }

    /// What comes on each stream until all of them ended.
    async fn collect(&mut self, streams: &[u32]) -> std::collections::BTreeMap<u32, Vec<u8>> {
        let mut all: std::collections::BTreeMap<u32, Vec<u8>> = Default::default();
        let mut open = streams.to_vec();
        let mut buffer = vec![0; 4096];
        while !open.is_empty() {
            let read = self.io.read(&mut buffer).await.unwrap();
            assert_ne!(read, 0, "the server hung up");
            self.decoder.feed(&buffer[..read]);
            while let Some(frame) = self.decoder.next().unwrap() {
                if let Spdy::Data { id, fin, data } = frame {
                    all.entry(id).or_default().extend_from_slice(&data);
                    open.retain(|one| !(fin && *one == id));
                }
            }
        }
        all
    }
}

fn opened(id: u32, fin: bool, headers: &[(&str, &str)]) -> Spdy {
    let headers: Headers =
        headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Spdy::SynStream { id, fin, headers }
}

fn data(id: u32, fin: bool, text: &[u8]) -> Spdy {
    Spdy::Data { id, fin, data: Bytes::copy_from_slice(text) }
}

/// A pod's namespace with an echo server that ends when its client does.
async fn pod(path: &Path) -> u16 {
    netns::create(path).unwrap();
    Netlink::open_in(path).unwrap().set_up("lo", true).await.unwrap();
    let listener = netns::within(path, || std::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let listener = listener.unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let listener = TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
            });
        }
    });
    port
}

async fn forwards<T: AsyncRead + AsyncWrite + Unpin>(io: T, port: u16) {
    let mut client = Client::new(io);
    let port = port.to_string();
    let with = |kind: &'static str, request: &'static str, port: &str| {
        [("streamtype", kind), ("requestid", request), ("port", port)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    let open = |id, fin, headers: [(String, String); 3]| Spdy::SynStream {
        id,
        fin,
        headers: headers.into_iter().collect(),
    };
    // More than a window of 64 KiB, which the peer never widens.
    let big = vec![b'x'; 300_000];
    client
        .send(&[
            open(1, true, with("error", "0", &port)),
            open(3, false, with("data", "0", &port)),
            open(5, true, with("error", "1", "1")),
            open(7, false, with("data", "1", "1")),
        ])
        .await;
    let (answers, text) = {
        let (mut read, mut write) = tokio::io::split(&mut client.io);
        let mut out = BytesMut::new();
        for part in big.chunks(32 << 10) {
            client.encoder.encode(&data(3, false, part), &mut out);
        }
        client.encoder.encode(&data(3, true, b"end"), &mut out);
        let sending = async {
            write.write_all(&out).await.unwrap();
            write.flush().await.unwrap();
        };
        let mut all: std::collections::BTreeMap<u32, Vec<u8>> = Default::default();
        let receiving = async {
            let (mut open, mut buffer) = (4, vec![0; 4096]);
            while open > 0 {
                let length = read.read(&mut buffer).await.unwrap();
                assert_ne!(length, 0, "the server hung up");
                client.decoder.feed(&buffer[..length]);
                while let Some(frame) = client.decoder.next().unwrap() {
                    if let Spdy::Data { id, fin, data } = frame {
                        all.entry(id).or_default().extend_from_slice(&data);
                        open -= i32::from(fin);
                    }
                }
            }
        };
        tokio::join!(sending, receiving);
        let text = String::from_utf8(all.remove(&5).unwrap()).unwrap();
        (all, text)
    };
    assert_eq!(answers[&3].len(), big.len() + 3);
    assert!(answers[&3].ends_with(b"xend") && answers[&1].is_empty());
    assert!(
        text.starts_with("error forwarding port 1 to pod web, uid u1: failed to execute"),
        "{text}"
    );
    assert!(text.contains("dial tcp4 127.0.0.1:1: connect: connection refused"), "{text}");
}

#[tokio::test]
async fn ports_are_forwarded_into_the_pods_namespace() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pod");
    let port = pod(&path).await;
    let target = Target { pod: "web".into(), uid: "u1".into(), netns: Some(path.clone()) };
    let server = || {
        let target = target.clone();
        serve_one(move |request| forward::start(target.clone(), request, CancellationToken::new()))
    };
    let checks = async {
        let mut io = server();
        let head = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n";
        let answer = ask(&mut io, head).await;
        assert!(answer.starts_with("http/1.1 101"), "{answer}");
        assert!(answer.contains("x-stream-protocol-version: portforward.k8s.io"));
        forwards(io, port).await;

        let mut io = server();
        let head = format!("{WEB_SOCKET}Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io\r\n");
        let answer = ask(&mut io, &head).await;
        assert!(answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{answer}");
        assert!(answer.contains("sec-websocket-protocol: spdy/3.1+portforward.k8s.io"));
        let socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
        forwards(messages(socket), port).await;

        let mut io = server();
        let refused = ask(&mut io, "Upgrade: SPDY/3.1\r\n").await;
        assert!(refused.starts_with("http/1.1 403"), "{refused}");
    };
    let done = tokio::time::timeout(TIMEOUT, checks).await;
    netns::delete(&path).unwrap();
    done.unwrap();
}

#[tokio::test]
async fn ports_are_forwarded_over_channels() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pod");
    let port = pod(&path).await;
    let target = Target { pod: "web".into(), uid: "u1".into(), netns: Some(path.clone()) };
    let head = format!("{WEB_SOCKET}Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n");
    let server = || {
        let target = target.clone();
        serve_one(move |request| forward::start(target.clone(), request, CancellationToken::new()))
    };
    let checks = async {
        let refused = ask(&mut server(), &head).await;
        assert!(refused.starts_with("http/1.1 400"), "{refused}");
        let mut io = server();
        let answer = ask_at(&mut io, &format!("/?port={port}&port=1"), &head).await;
        assert!(answer.contains("sec-websocket-protocol: v4.channel.k8s.io"), "{answer}");
        let mut socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
        let mut heard: std::collections::BTreeMap<u8, Vec<u8>> = Default::default();
        for part in [&b"\0hello"[..], b"\x02lost", b"\0 pod", b""] {
            socket.send(Message::Binary(part.into())).await.unwrap();
        }
        while heard.get(&0).is_none_or(|data| data.len() < 11)
            || heard.get(&3).is_none_or(|data| data.len() < 3)
        {
            let Message::Binary(part) = socket.next().await.unwrap().unwrap() else { continue };
            heard.entry(part[0]).or_default().extend_from_slice(&part[1..]);
        }
        let number = port.to_le_bytes();
        assert_eq!(heard[&0], [&number[..], b"hello pod"].concat());
        assert_eq!((&heard[&1][..], &heard[&2][..]), (&number[..], &[1, 0][..]));
        assert!(heard[&3].starts_with(b"\x01\0error forwarding port 1 to pod web, uid u1: "));
        socket.close(None).await.unwrap();
        while socket.next().await.is_some_and(|message| message.is_ok()) {}
    };
    let done = tokio::time::timeout(TIMEOUT, checks).await;
    netns::delete(&path).unwrap();
    done.unwrap();
}

/// Binary messages as a stream of bytes.
fn messages(socket: WebSocketStream<DuplexStream>) -> DuplexStream {
    let (near, far) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        let (mut sink, mut source) = socket.split();
        let (mut read, mut write) = tokio::io::split(far);
        let outward = async {
            let mut buffer = vec![0; 8192];
            while let Ok(length @ 1..) = read.read(&mut buffer).await {
                let message = Message::Binary(buffer[..length].to_vec().into());
                if sink.send(message).await.is_err() {
                    return;
                }
            }
        };
        let inward = async {
            while let Some(Ok(Message::Binary(data))) = source.next().await {
                if write.write_all(&data).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(outward, inward);
    });
    near
}

/// Sends back what it is told, in capitals, then the last size and a Status.
async fn echo(mut wire: Wire) {
    while let Some(data) = wire.stdin.recv().await {
        wire.out.send((Channel::Stdout, data.to_ascii_uppercase().into())).await.unwrap();
    }
    let Size { width, height } = wire.sizes.recv().await.unwrap();
    wire.out.send((Channel::Stderr, format!("{width}x{height}").into())).await.unwrap();
    wire.out.send((Channel::Error, "done".into())).await.unwrap();
}

const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: true };

fn session_server<F: Future<Output = ()> + Send + 'static>(
    carry: impl Fn(Io) -> F + Clone + Send + Sync + 'static,
) -> DuplexStream {
    serve_one(move |request| {
        let upgrade = Wanted::of(request.headers()).unwrap();
        let carry = carry.clone();
        upgrade.accept(request, "v5.channel.k8s.io", carry)
    })
}

#[tokio::test]
async fn web_sockets_carry_channels_and_close_normally() {
    let mut io = session_server(|io| wire::over_web_socket(io, ALL, echo));
    ask(&mut io, WEB_SOCKET).await;
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
    for message in [&b"\x04{\"Width\":80,\"Height\":24}"[..], b"\x00hello", b"\xff\x00"] {
        socket.send(Message::Binary(message.to_vec().into())).await.unwrap();
    }
    let talk = async {
        let mut seen = Vec::new();
        loop {
            match socket.next().await.unwrap().unwrap() {
                Message::Binary(data) => seen.push(data.to_vec()),
                Message::Close(frame) => {
                    assert_eq!(u16::from(frame.unwrap().code), 1000);
                    return seen;
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let seen = tokio::time::timeout(TIMEOUT, talk).await.unwrap();
    assert_eq!(seen, [&b"\x01"[..], b"\x01HELLO", b"\x0280x24", b"\x03done"]);
}

#[tokio::test]
async fn spdy_carries_a_stream_for_each() {
    let mut io = session_server(|io| wire::over_spdy(io, ALL, echo));
    let head = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
    ask(&mut io, head).await;
    let mut client = Client::new(io);
    let kinds = ["error", "stdin", "stdout", "stderr", "resize"];
    for (id, kind) in (1..).step_by(2).zip(kinds) {
        client.send(&[opened(id, false, &[("streamtype", kind)])]).await;
    }
    client
        .send(&[
            data(9, false, b"{\"Width\":80,"),
            data(9, false, b"\"Height\":24}\n"),
            data(3, false, b"hello"),
            data(3, true, b""),
        ])
        .await;
    let seen = tokio::time::timeout(TIMEOUT, client.collect(&[1, 5, 7])).await.unwrap();
    assert_eq!(seen[&1], b"done");
    assert_eq!(seen[&5], b"HELLO");
    assert_eq!(seen[&7], b"80x24");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_session() {
    let (told, hears) = tokio::sync::oneshot::channel();
    let told = Arc::new(parking_lot::Mutex::new(Some(told)));
    let mut io = session_server(move |io| {
        let told = told.lock().take().unwrap();
        wire::over_web_socket(io, ALL, |wire: Wire| async move {
            wire.gone.cancelled().await;
            told.send(()).unwrap();
        })
    });
    ask(&mut io, WEB_SOCKET).await;
    drop(io);
    tokio::time::timeout(TIMEOUT, hears).await.unwrap().unwrap();
}

#[test]
fn paths_are_upstreams() {
    let place = Place::parse("/exec/default/web-0/some-uid/main").unwrap();
    assert_eq!((place.uid.as_deref(), place.container.as_str()), (Some("some-uid"), "main"));
    let place = Place::parse("/portForward/default/web-0").unwrap();
    assert_eq!((place.verb.as_str(), place.pod.as_str()), ("portForward", "web-0"));
    assert_eq!(Place::parse("/containerLogs/default/web-0"), None);
    assert_eq!(Place::parse("/run/default/web-0/main"), None);
}

#[tokio::test]
async fn what_is_not_there_is_refused_in_upstreams_words() {
    let directory = tempfile::tempdir().unwrap();
    let images = runtime::ImageStore::open(directory.path().join("i"), Default::default()).unwrap();
    let options =
        runtime::Options::new(directory.path().join("r"), "rhumb-test".to_owned(), images);
    let runtime = Runtime::open(options).await.unwrap();
    let shutdown = CancellationToken::new();
    let shared = Arc::new(Shared {
        handle: KubeletHandle::new(),
        runtime,
        settings: Settings::default(),
        applied: Vec::new(),
        silence: Default::default(),
        shutdown,
    });
    for (request, status, text) in [
        ("GET /healthz", "200", "ok"),
        ("GET /pods", "200", r#""items":[]"#),
        ("GET /containerLogs/a/b/c", "404", r#"pod "b" does not exist"#),
        ("GET /containerLogs/a/b/c?tailLines=-1", "422", "Invalid request."),
        ("POST /containerLogs/a/b/c", "405", "Method Not Allowed"),
        ("POST /exec/a/b/c?command=x&stdout=true", "404", "pod does not exist"),
        ("POST /portForward/a/b", "404", "pod does not exist"),
        ("GET /", "404", "404 page not found"),
    ] {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        tokio::spawn(serve(far, Caller::ApiServer, Arc::clone(&shared)));
        let head = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        near.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        near.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
        assert!(answer.contains(text), "{request}: {answer}");
    }
}
