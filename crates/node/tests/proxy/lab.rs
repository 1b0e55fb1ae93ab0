//! A node with its neighbours for packet tests: namespaces, links, servers, and the proxy on the node.

#![expect(clippy::unwrap_used, reason = "a lab that cannot be built fails its test")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use api::core::Service;
use api::discovery::EndpointSlice;
use client::Reconcile;
use kernel::link::{Netlink, Route};
use kernel::netns;
use node::proxy::{Health, Proxy};
use plan::proxy::{Settings, Snapshot};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const ANSWER_MAX: Duration = Duration::from_millis(700);
const NODE: &str = "n1";
/// Pods: name, address, and the node that they are on.
const PODS: [(&str, &str, &str); 3] =
    [("a", "10.244.0.2", NODE), ("b", "10.244.0.3", NODE), ("c", "10.244.1.2", "n2")];

/// What a client got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// A pod's answer: its name, and whom it saw.
    Pod(String, String),
    /// Connection refused.
    Refused,
    /// Nothing in time.
    Silence,
}

impl Reply {
    pub(crate) fn pod(&self) -> String {
        match self {
            Self::Pod(name, _) => name.clone(),
            other => panic!("no pod answered: {other:?}"),
        }
    }

    pub(crate) fn peer(&self) -> String {
        match self {
            Self::Pod(_, peer) => peer.clone(),
            other => panic!("no pod answered: {other:?}"),
        }
    }

    pub(crate) fn is_pod(&self) -> bool {
        matches!(self, Self::Pod(..))
    }
}

/// A Service being written.
pub(crate) struct ServiceSketch(Value);

pub(crate) fn service(name: &str, ip: &str) -> ServiceSketch {
    ServiceSketch(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ports": [] },
    }))
}

impl ServiceSketch {
    fn port(mut self, name: &str, protocol: &str, port: u16, target: u16) -> Self {
        let port =
            json!({ "name": name, "protocol": protocol, "port": port, "targetPort": target });
        self.0["spec"]["ports"].as_array_mut().unwrap().push(port);
        self
    }

    pub(crate) fn tcp(self, port: u16, target: u16) -> Self {
        self.port("tcp", "TCP", port, target)
    }

    pub(crate) fn udp(self, port: u16, target: u16) -> Self {
        self.port("udp", "UDP", port, target)
    }

    fn set(mut self, field: &str, value: Value) -> Self {
        self.0["spec"][field] = value;
        self
    }

    pub(crate) fn node_port(mut self, port: u16) -> Self {
        self.0["spec"]["ports"][0]["nodePort"] = json!(port);
        self.set("type", json!("NodePort"))
    }

    pub(crate) fn load_balancer(mut self, ip: &str) -> Self {
        self.0["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": ip }] } });
        self.set("type", json!("LoadBalancer"))
    }

    pub(crate) fn source_range(self, range: &str) -> Self {
        self.set("loadBalancerSourceRanges", json!([range]))
    }

    pub(crate) fn external_local(self) -> Self {
        self.set("externalTrafficPolicy", json!("Local"))
    }

    pub(crate) fn internal_local(self) -> Self {
        self.set("internalTrafficPolicy", json!("Local"))
    }

    pub(crate) fn affinity(self, seconds: u32) -> Self {
        self.set("sessionAffinity", json!("ClientIP"))
            .set("sessionAffinityConfig", json!({ "clientIP": { "timeoutSeconds": seconds } }))
    }

    pub(crate) fn node_local(mut self) -> Self {
        self.0["metadata"]["annotations"] = json!({ "rhumb.dev/node-local": "true" });
        self
    }
}

/// An EndpointSlice being written.
pub(crate) struct SliceSketch(Value);

pub(crate) fn endpoints(service: &str, pods: &[&str]) -> SliceSketch {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": format!("{service}-1"), "namespace": "default",
            "labels": { "kubernetes.io/service-name": service } },
        "ports": [{ "name": "tcp", "protocol": "TCP", "port": 8080 }, { "name": "udp", "protocol": "UDP", "port": 8053 }],
        "endpoints": [],
    });
    let ready = json!({ "ready": true, "serving": true, "terminating": false });
    pods.iter().fold(SliceSketch(slice), |slice, pod| slice.add(pod, &ready))
}

impl SliceSketch {
    fn add(mut self, pod: &str, conditions: &Value) -> Self {
        let (_, ip, node) = PODS.into_iter().find(|(name, ..)| *name == pod).unwrap();
        let endpoint = json!({ "addresses": [ip], "nodeName": node, "conditions": conditions });
        self.0["endpoints"].as_array_mut().unwrap().push(endpoint);
        self
    }

    /// An IPv6 endpoint instead.
    pub(crate) fn six(mut self) -> Self {
        self.0["addressType"] = json!("IPv6");
        self.0["endpoints"] = json!([{ "addresses": ["fd44::2"], "nodeName": NODE }]);
        self
    }

    pub(crate) fn draining(self, pod: &str) -> Self {
        self.add(pod, &json!({ "ready": false, "serving": true, "terminating": true }))
    }
}

/// The namespaces and the proxy. Dropped, they are gone.
pub(crate) struct Lab {
    prefix: String,
    runtime: tokio::runtime::Runtime,
    proxy: Proxy,
    snapshot: Snapshot,
    shutdown: CancellationToken,
}

static LABS: AtomicU32 = AtomicU32::new(0);

impl Lab {
    pub(crate) fn new() -> Self {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        testkit::leftovers::sweep();
        let prefix = format!("rhumb-test-{}-{number}-", std::process::id());
        let names = || ["node", "client"].into_iter().chain(PODS.into_iter().map(|pod| pod.0));
        for name in names() {
            netns::create(&netns::named(&format!("{prefix}{name}"))).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .on_thread_start({
                let path = netns::named(&format!("{prefix}node"));
                move || netns::enter(&path).unwrap()
            })
            .build()
            .unwrap();
        runtime.block_on(wire(&prefix));
        for (name, ..) in PODS {
            serve(netns::named(&format!("{prefix}{name}")), name, "0.0.0.0");
        }
        let shutdown = CancellationToken::new();
        let proxy = start(&runtime, &prefix, &shutdown);
        let node = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE },
            "status": { "addresses": [{ "type": "InternalIP", "address": "198.18.0.1" }] },
        }));
        let snapshot = Snapshot { node: Some(Arc::new(node.unwrap())), ..Snapshot::default() };
        Self { prefix, runtime, proxy, snapshot, shutdown }
    }

    fn path(&self, name: &str) -> PathBuf {
        netns::named(&format!("{}{name}", self.prefix))
    }

    /// Puts these objects in place of those of the same names, and lets the proxy act.
    pub(crate) fn apply(&mut self, service: ServiceSketch, slice: SliceSketch) {
        let service: Service = serde_json::from_value(service.0).unwrap();
        let slice: EndpointSlice = serde_json::from_value(slice.0).unwrap();
        self.snapshot.services.insert(api::Kind::object_name(&service), Arc::new(service));
        self.snapshot.slices.insert(api::Kind::object_name(&slice), Arc::new(slice));
        self.settle();
    }

    /// Lets the proxy act until there is nothing to do.
    pub(crate) fn settle(&mut self) {
        for _ in 0..3 {
            let plan = self.proxy.plan(&self.snapshot, &());
            self.runtime.block_on(self.proxy.apply(&(), plan)).unwrap_or_else(|error| {
                let cause = std::error::Error::source(&error)
                    .map(|cause| format!("{cause}: {:?}", cause.source()));
                panic!("{error}: {cause:?}")
            });
        }
    }

    /// Another proxy process takes over.
    pub(crate) fn restart(&mut self) {
        self.proxy = start(&self.runtime, &self.prefix, &self.shutdown);
    }

    pub(crate) fn tcp(&self, from: &str, to: &str) -> Reply {
        let to: SocketAddr = to.parse().unwrap();
        netns::within(&self.path(from), || connect(to)).unwrap()
    }

    pub(crate) fn udp(&self, from: &str, to: &str) -> Reply {
        self.udp_ask(&self.udp_socket(from), to)
    }

    pub(crate) fn udp_socket(&self, from: &str) -> UdpSocket {
        let socket = netns::within(&self.path(from), || UdpSocket::bind("0.0.0.0:0").unwrap());
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(ANSWER_MAX)).unwrap();
        socket
    }

    pub(crate) fn udp_ask(&self, socket: &UdpSocket, to: &str) -> Reply {
        socket.connect(to).unwrap();
        let mut buffer = [0; 256];
        match socket.send(b"?").and_then(|_| socket.recv(&mut buffer)) {
            Ok(len) => parse(&buffer[..len]),
            Err(error) => failed(&error),
        }
    }

    /// Connects without pause until stopped.
    pub(crate) fn load(&self, from: &str, to: &str) -> Load {
        let (path, to) = (self.path(from), to.parse().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            netns::enter(&path).unwrap();
            let (mut connected, mut failed) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                match connect(to) {
                    Reply::Pod(..) => connected += 1,
                    Reply::Refused | Reply::Silence => failed += 1,
                }
            }
            (connected, failed)
        });
        Load { stop, thread }
    }

    /// Runs nft on the node; what it prints.
    pub(crate) fn nft(&self, script: &str) -> String {
        let path = self.path("node");
        let output = netns::within(&path, || Command::new("nft").arg(script).output().unwrap());
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Answers on the node itself at `ip`.
    pub(crate) fn serve_on_node(&self, ip: &str) {
        let path = self.path("node");
        self.runtime.block_on(async {
            let node = Netlink::open_in(&path).unwrap();
            node.add_address("lo", format!("{ip}/32").parse().unwrap()).await.unwrap();
        });
        serve(path, "node", ip);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.shutdown.cancel();
        for name in ["node", "client", "a", "b", "c"] {
            netns::delete(&self.path(name)).unwrap();
        }
    }
}

/// Connections that are being made.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u32, u32)>,
}

impl Load {
    /// How many were made, and how many failed.
    pub(crate) fn stop(self) -> (u32, u32) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn start(runtime: &tokio::runtime::Runtime, prefix: &str, shutdown: &CancellationToken) -> Proxy {
    let settings = Settings {
        node: NODE.to_owned(),
        service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        external_ips: false,
        ..Settings::default()
    };
    netns::within(&netns::named(&format!("{prefix}node")), || {
        let _guard = runtime.enter();
        let health = Health::start("127.0.0.1:0".parse().unwrap(), shutdown.clone());
        Proxy::open(settings, health).unwrap()
    })
    .unwrap()
}

/// Links the namespaces: the client on 198.18.0.0/24, each pod on a link of its own.
async fn wire(prefix: &str) {
    let path = |name: &str| netns::named(&format!("{prefix}{name}"));
    let all = "0.0.0.0/0".parse().unwrap();
    let node = Netlink::open_in(&path("node")).unwrap();
    node.set_up("lo", true).await.unwrap();
    netns::within(&path("node"), || {
        kernel::sysctl::set("net/ipv4/ip_forward", "1").unwrap();
        kernel::sysctl::set("net/ipv4/conf/all/rp_filter", "0").unwrap();
    })
    .unwrap();
    node.add_veth("out", "eth0", &path("client"), None).await.unwrap();
    node.add_address("out", "198.18.0.1/24".parse().unwrap()).await.unwrap();
    node.replace_route(&Route::via(all, "198.18.0.9".parse().unwrap())).await.unwrap();
    let client = Netlink::open_in(&path("client")).unwrap();
    client.set_up("lo", true).await.unwrap();
    client.set_up("eth0", true).await.unwrap();
    client.add_address("eth0", "198.18.0.9/24".parse().unwrap()).await.unwrap();
    client.replace_route(&Route::via(all, "198.18.0.1".parse().unwrap())).await.unwrap();
    for (name, ip, _) in PODS {
        let link = format!("pod-{name}");
        node.add_veth(&link, "eth0", &path(name), None).await.unwrap();
        node.add_address(&link, "10.244.0.1/32".parse().unwrap()).await.unwrap();
        let index = node.link(&link).await.unwrap().index;
        node.replace_route(&Route::through(format!("{ip}/32").parse().unwrap(), index))
            .await
            .unwrap();
        let pod = Netlink::open_in(&path(name)).unwrap();
        pod.set_up("lo", true).await.unwrap();
        pod.set_up("eth0", true).await.unwrap();
        pod.add_address("eth0", format!("{ip}/32").parse().unwrap()).await.unwrap();
        let index = pod.link("eth0").await.unwrap().index;
        pod.replace_route(&Route::through("10.244.0.1/32".parse().unwrap(), index)).await.unwrap();
        pod.replace_route(&Route::via(all, "10.244.0.1".parse().unwrap())).await.unwrap();
    }
}

/// Answers TCP on 8080 and UDP on 8053 with the name and the asker's address, for as long as the process lives.
fn serve(path: PathBuf, name: &'static str, ip: &str) {
    let sockets = netns::within(&path, || {
        (TcpListener::bind((ip, 8080)).unwrap(), UdpSocket::bind((ip, 8053)).unwrap())
    });
    let (tcp, udp) = sockets.unwrap();
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
            let _ = stream.write_all(format!("{name} {peer}").as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
        }
    });
}

fn connect(to: SocketAddr) -> Reply {
    let mut stream = match TcpStream::connect_timeout(&to, ANSWER_MAX) {
        Ok(stream) => stream,
        Err(error) => return failed(&error),
    };
    stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => parse(&answer),
        Err(error) => failed(&error),
    }
}

fn parse(answer: &[u8]) -> Reply {
    let text = String::from_utf8_lossy(answer);
    let (pod, peer) = text.split_once(' ').unwrap_or((&text, ""));
    Reply::Pod(pod.to_owned(), peer.to_owned())
}

fn failed(error: &std::io::Error) -> Reply {
    match error.kind() {
        ErrorKind::ConnectionRefused => Reply::Refused,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Reply::Silence,
        other => panic!("{other:?}: {error}"),
    }
}
