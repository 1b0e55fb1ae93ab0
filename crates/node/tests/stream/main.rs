//! Logs, exec and attach of real containers over TLS, as kubectl asks for them. Needs what the kubelet's test needs, and
//! leaves nothing behind.

#![expect(
    clippy::unwrap_used,
    reason = "a test without the harness, which the lint does not recognise"
)]

#[allow(dead_code, reason = "the kubelet's test needs the rest")]
#[path = "../kubelet/fake_api.rs"]
mod fake_api;
#[path = "../kubelet/image.rs"]
mod image;
#[allow(dead_code, reason = "the kubelet's test needs the rest")]
#[path = "../kubelet/world.rs"]
mod world;

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_util::sync::CancellationToken;
use world::World;

/// Longest wait for anything.
const WAIT_MAX: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|word| word == "shim") {
        return runtime::shim_main(&args[1..]);
    }
    if args.iter().any(|word| word == "--list") {
        if !args.iter().any(|word| word == "--ignored") {
            world::say("streams_reach_containers: test");
        }
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let world = World::new().await;
        let outcome = AssertUnwindSafe(story(&world)).catch_unwind().await;
        world.end().await;
        if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    })
}

/// The API server's side.
struct Client {
    address: SocketAddr,
    tls: tokio_rustls::TlsConnector,
}

impl Client {
    /// Starts the server and trusts it.
    async fn start(world: &World, shutdown: CancellationToken) -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["node".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        // The port is asked of the system first: the server does not tell which it took.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let options = node::stream::Options {
            address,
            handle: world.handle.clone(),
            runtime: world.runtime().clone(),
            settings: plan::proxy::Settings::default(),
            applied: Vec::new(),
            silence: node::liveness::Silence::default(),
            tls: Arc::new(server),
        };
        node::stream::start(options, shutdown).await.unwrap();
        Self { address, tls: Arc::new(client).into() }
    }

    async fn open(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        self.tls.connect(ServerName::try_from("node").unwrap(), stream).await.unwrap()
    }

    async fn get(&self, path: &str) -> String {
        let mut stream = self.open().await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await; // hyper leaves out TLS's goodbye
        String::from_utf8(answer).unwrap()
    }

    /// Runs a session over a WebSocket: what came on each channel.
    async fn talk(&self, path: &str, say: &[&[u8]]) -> [String; 4] {
        let mut request = format!("ws://node{path}").into_client_request().unwrap();
        let protocol = "v5.channel.k8s.io".parse().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", protocol);
        let stream = self.open().await;
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        for message in say {
            socket.send(Message::Binary(message.to_vec().into())).await.unwrap();
        }
        let mut seen = <[String; 4]>::default();
        while let Some(message) = socket.next().await {
            match message.unwrap() {
                Message::Binary(data) => {
                    let (channel, text) = data.split_first().unwrap();
                    seen[usize::from(*channel)].push_str(std::str::from_utf8(text).unwrap());
                }
                Message::Close(frame) => assert_eq!(u16::from(frame.unwrap().code), 1000),
                other => panic!("{other:?}"),
            }
        }
        seen
    }
}

async fn story(world: &World) {
    let shutdown = CancellationToken::new();
    let client = Client::start(world, shutdown.clone()).await;
    let script = "echo started; read line; echo got $line; echo end >&2; sleep 1; exit 0";
    world.pod(
        "web",
        json!({
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
            "containers": [
                {"name": "main", "image": "busybox:1", "command": ["sleep", "1000"]},
                {"name": "asks", "image": "busybox:1", "stdin": true, "command": ["sh", "-c", script]},
            ],
        }),
    );
    let running = |pod: &Value| pod["status"]["phase"] == "Running";
    world.until("pods", "default", "web", running).await;
    world
        .until_true(|| {
            world.handle.lookup("default", "web", "asks").is_ok_and(|found| found.running)
        })
        .await;
    tokio::time::timeout(WAIT_MAX, commands(&client)).await.unwrap();
    tokio::time::timeout(WAIT_MAX, attached_and_followed(&client)).await.unwrap();
    let pods = client.get("/pods").await;
    assert!(pods.contains(r#""kind":"PodList""#) && pods.contains(r#""name":"web""#), "{pods}");
    shutdown.cancel();
}

async fn commands(client: &Client) {
    let script = "command=sh&command=-c&command=cat%3B+echo+err+%3E%262%3B+exit+3";
    let path = format!("/exec/default/web/main?{script}&input=1&output=1&error=1");
    let [_, out, err, status] = client.talk(&path, &[b"\x00hello", b"\xff\x00"]).await;
    assert_eq!((out.as_str(), err.as_str()), ("hello", "err\n"));
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));

    let [_, out, _, status] =
        client.talk("/exec/default/web/main?command=echo&command=a+b&stdout=true", &[]).await;
    assert_eq!(out, "a b\n");
    assert_eq!(status, r#"{"metadata":{},"status":"Success"}"#);

    let script = "command=sh&command=-c&command=read+x%3B+busybox+stty+size";
    let path = format!("/exec/default/web/main?{script}&stdin=true&stdout=true&tty=true");
    let resize = b"\x04{\"Width\":101,\"Height\":37}";
    let [_, out, _, _] = client.talk(&path, &[resize, b"\x00go\n"]).await;
    assert!(out.contains("37 101"), "{out:?}");

    let [_, _, _, status] =
        client.talk("/exec/default/web/main?command=nonsense&stdout=true", &[]).await;
    assert!(
        status.contains("InternalError") && status.contains("error executing command in container"),
        "{status}"
    );
}

async fn attached_and_followed(client: &Client) {
    let path = "/attach/default/web/asks?input=1&output=1&error=1";
    let say: [&[u8]; 1] = [b"\x00word\n"];
    let log = "/containerLogs/default/web/asks?follow=true";
    // The follower ends with the container, which ends with its line.
    let (seen, log) = tokio::join!(client.talk(path, &say), client.get(log));
    let [_, out, err, status] = seen;
    assert!(out.ends_with("got word\n") && err == "end\n", "{out:?} {err:?}");
    assert!(status.contains("Success"));
    for line in ["started\n", "got word\n", "end\n"] {
        assert!(log.contains(line), "{log}");
    }
    let log = client.get("/containerLogs/default/web/asks?tailLines=1&stream=Stdout").await;
    assert!(!log.contains("started"), "{log}");
    let gone = client.get("/containerLogs/default/web/asks?previous=true").await;
    assert!(gone.contains("previous terminated container"), "{gone}");
}
