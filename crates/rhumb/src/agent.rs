//! `rhumb node`: everything on one node in one process: kubelet, proxy, pod network, cluster DNS, load balancer speaker.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use api::core::{Namespace, Node, Service};
use api::discovery::EndpointSlice;
use client::{Applied, Client, Kubeconfig, ListParams, Reflector};
use ipnet::{IpNet, Ipv4Net};
use kernel::link::Netlink;
use node::guard::Guard;
use node::kubelet::{self, KubeletHandle};
use node::liveness::Silence;
use node::{liveness, loadbalancer, podnet, portuse, proxy};
use plan::proxy::{EbpfPlace, Settings};
use runtime::{ImageStore, Runtime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cli::Agent;
use crate::telemetry;

/// The host number of the cluster DNS Service in the Service range, as kubeadm has it.
const DNS_HOST: u32 = 10;
/// DNS answers are memory lookups: one thread keeps up with a node's pods, a second rides out a busy core.
const DNS_THREADS: usize = 2;

/// How long requests under way may take to end.
const END_MAX: Duration = Duration::from_secs(1);

/// Runs the agent until it is told to end; its pods go on.
pub(crate) fn run(args: Agent) -> Result<()> {
    telemetry::start();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(serve(args));
    runtime.shutdown_background();
    result
}

/// The reflectors that several parts of the agent share.
struct Sources {
    services: Reflector<Service>,
    slices: Reflector<EndpointSlice>,
    nodes: Reflector<Node>,
    namespaces: Reflector<Namespace>,
}

impl Sources {
    fn start(client: &Client) -> Self {
        Self {
            services: Reflector::start(client, ListParams::default()),
            slices: Reflector::start(client, ListParams::default()),
            nodes: Reflector::start(client, ListParams::default()),
            namespaces: Reflector::start(client, ListParams::default()),
        }
    }

    fn of_guard(&self, silence: Silence) -> node::guard::Sources {
        node::guard::Sources {
            services: self.services.clone(),
            slices: self.slices.clone(),
            nodes: self.nodes.clone(),
            silence,
        }
    }
}

/// How far the parts of the agent that carry connections are with the EndpointSlices.
#[derive(Default)]
struct Followed {
    proxy: Applied,
    dns: Applied,
}

impl Followed {
    fn all(&self) -> Vec<Applied> {
        vec![self.proxy.clone(), self.dns.clone()]
    }
}

async fn serve(args: Agent) -> Result<()> {
    let path = args
        .kubeconfig
        .as_ref()
        .context("--kubeconfig says how to reach the API server, and is not given")?;
    let kubeconfig = Kubeconfig::read(path)?;
    let client = kubeconfig.client("node")?;
    let name = match &args.node_name {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname()?.to_string_lossy().to_ascii_lowercase(),
    };
    let ip = args.node_ip.context(
        "--node-ip is the address that the other nodes reach this one by, and is not given",
    )?;
    args.carry.check()?;
    std::fs::create_dir_all(&args.node_dir)
        .with_context(|| format!("cannot make {}", args.node_dir.display()))?;
    let shutdown = CancellationToken::new();
    let sources = Sources::start(&client);
    let dns_ip = dns_address(args.service_cidr);

    let (tell_cidr, cidr) = watch::channel(None);
    let pod_network = podnet::Options {
        node: name.clone(),
        pod_cidrs: vec![IpNet::V4(args.pod_cidr)],
        service_cidrs: vec![IpNet::V4(args.service_cidr)],
        node_ip: ip,
        link: args.link.clone(),
    };
    podnet::follow_nodes(&client, &sources.nodes, pod_network, tell_cidr, shutdown.clone()).await?;
    let network = Arc::new(podnet::PodNet::open(&args.node_dir.join("podnet"), ip, cidr)?);
    let applied = Followed::default();
    let of_dns = (dns_ip, applied.dns.clone());
    let _dns = start_dns(&args, &client, &sources, of_dns, &shutdown).await?;
    let settings = proxy_settings(&args, &name);
    let silence = start_watch(&args, &client, &sources, (&name, ip), &shutdown);
    let config = proxy::Config {
        applied: applied.proxy.clone(),
        namespaces: network.namespaces(),
        silence: silence.clone(),
        ..proxy::Config::new(settings.clone())
    };
    start_proxy(&client, &sources, config, &shutdown);
    let speaker = loadbalancer::Sources {
        services: sources.services.clone(),
        slices: sources.slices.clone(),
        nodes: sources.nodes.clone(),
        silence: silence.clone(),
    };
    loadbalancer::spawn(&client, speaker, &name, &args.link, shutdown.clone())?;

    let handle = KubeletHandle::new();
    let runtime = open_runtime(&args, &name).await?;
    let of_streams = (settings, applied.all(), silence.clone());
    start_streams(&args, &handle, &runtime, of_streams, &shutdown).await?;
    let guard = Guard::new(&name, sources.of_guard(silence), applied.all(), kubeconfig.tls()?);
    let options = kubelet::Options {
        guard: Some(guard),
        ..kubelet_options(&args, (name, ip), network, runtime, handle)
    };
    let kubelet = tokio::spawn(kubelet::run(options, client, shutdown.clone()));
    terminated().await?;
    shutdown.cancel();
    // The pods go on, and the next agent reads their state anew: nothing is lost when a request hangs.
    match tokio::time::timeout(END_MAX, kubelet).await {
        Ok(ended) => Ok(ended??),
        Err(_elapsed) => Ok(()),
    }
}

/// Waits for SIGTERM or Ctrl-C.
pub(crate) async fn terminated() -> Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        done = tokio::signal::ctrl_c() => Ok(done?),
    }
}

/// The cluster DNS Service's address in a Service range.
pub(crate) fn dns_address(services: Ipv4Net) -> IpAddr {
    IpAddr::V4((u32::from(services.network()) + DNS_HOST).into())
}

/// Listens on the DNS Service's own address, which every node has for itself.
async fn start_dns(
    args: &Agent,
    client: &Client,
    sources: &Sources,
    (address, applied): (IpAddr, Applied),
    shutdown: &CancellationToken,
) -> Result<dns::Server> {
    let netlink = Netlink::open()?;
    netlink.set_up("lo", true).await?;
    netlink.add_address("lo", IpNet::from(address)).await?;
    let zone: dns::SharedZone =
        Arc::new(arc_swap::ArcSwap::from_pointee(plan::dns::Zone::new(&args.dns_domain)));
    let feed = dns::Sources {
        services: sources.services.clone(),
        slices: sources.slices.clone(),
        namespaces: sources.namespaces.clone(),
    };
    dns::follow(client, feed, Arc::clone(&zone), applied, shutdown.clone());
    let resolvers = match &args.resolv_conf {
        Some(path) => {
            dns::resolvers(path).with_context(|| format!("cannot read {}", path.display()))?
        }
        None => Vec::new(),
    };
    Ok(dns::Server::start(
        SocketAddr::new(address, 53),
        DNS_THREADS,
        zone,
        dns::Forwarder::new(&resolvers),
    )?)
}

/// Logs, exec and port-forward, for the API server alone.
async fn start_streams(
    args: &Agent,
    handle: &KubeletHandle,
    runtime: &Runtime,
    (settings, applied, silence): (Settings, Vec<Applied>, Silence),
    shutdown: &CancellationToken,
) -> Result<()> {
    let Some(tls) = crate::tls::kubelet(args)? else {
        tracing::warn!(
            component = "kubelet",
            "no --tls-cert-file is given: logs, exec and port-forward are off"
        );
        return Ok(());
    };
    let address = SocketAddr::from(([0, 0, 0, 0], kubelet::PORT));
    let (handle, runtime) = (handle.clone(), runtime.clone());
    let options =
        node::stream::Options { address, handle, runtime, settings, applied, silence, tls };
    Ok(node::stream::start(options, shutdown.clone()).await?)
}

async fn open_runtime(args: &Agent, name: &str) -> Result<Runtime> {
    let mut mirrors = BTreeMap::new();
    for mirror in &args.registry_mirror {
        let (host, url) = mirror
            .split_once('=')
            .with_context(|| format!("--registry-mirror {mirror:?} is not HOST=URL"))?;
        mirrors.insert(host.to_owned(), url.to_owned());
    }
    let images = args.images_dir.clone().unwrap_or_else(|| args.node_dir.join("images"));
    let images = ImageStore::open(images, mirrors)?;
    Ok(Runtime::open(runtime_options(&args.node_dir, images, name)).await?)
}

fn runtime_options(node_dir: &Path, images: ImageStore, name: &str) -> runtime::Options {
    runtime::Options::new(runtime_dir(node_dir), control_group(name), images)
}

/// Where the pods of a node are.
pub(crate) fn control_group(name: &str) -> String {
    format!("rhumb/{name}")
}

/// eBPF programs lead all processes of a machine that is a node, and the pods of a node that is one of several on it.
fn ebpf_place(node_dir: &Path, name: &str) -> EbpfPlace {
    let network = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let is_machine = network("1").is_some() && network("1") == network("self");
    let cgroup = if is_machine { String::new() } else { control_group(name) };
    EbpfPlace { pins: pins(node_dir), cgroup }
}

/// Where eBPF programs stay while the agent does not run.
pub(crate) fn pins(node_dir: &Path) -> PathBuf {
    std::path::absolute(node_dir).unwrap_or_else(|_| node_dir.to_owned()).join("bpf")
}

fn runtime_dir(node_dir: &Path) -> PathBuf {
    node_dir.join("runtime")
}

/// Removes all pods of a node whose agent does not run.
pub(crate) fn remove_pods(node_dir: &Path, images_dir: &Path) -> Result<()> {
    let Some(name) = node_dir.file_name().and_then(|name| name.to_str()) else { return Ok(()) };
    if !runtime_dir(node_dir).exists() {
        return Ok(());
    }
    let executor =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    executor.block_on(async {
        let images = ImageStore::open(images_dir, BTreeMap::new())?;
        let runtime = Runtime::open(runtime_options(node_dir, images, name)).await?;
        for pod in runtime.pods() {
            runtime.remove_pod(&pod.sandbox.uid).await?;
        }
        Ok(())
    })
}

fn proxy_settings(args: &Agent, name: &str) -> Settings {
    args.proxy.settle(args.carry.settle(Settings {
        node: name.to_owned(),
        service_cidrs: vec![IpNet::V4(args.service_cidr)],
        pod_cidrs: vec![IpNet::V4(args.pod_cidr)],
        ebpf: ebpf_place(&args.node_dir, name),
        ..Settings::default()
    }))
}

fn start_proxy(
    client: &Client,
    sources: &Sources,
    config: proxy::Config,
    shutdown: &CancellationToken,
) {
    let settings = config.settings.clone();
    let (services, nodes) = (&sources.services, &sources.nodes);
    portuse::spawn(client, services, nodes, settings, shutdown.clone());
    let (client, shutdown) = (client.component("kube-proxy"), shutdown.clone());
    let sources = proxy::Sources {
        services: sources.services.clone(),
        slices: sources.slices.clone(),
        nodes: sources.nodes.clone(),
    };
    tokio::spawn(async move {
        if let Err(error) = proxy::run(client, sources, config, shutdown).await {
            let error: &(dyn std::error::Error + 'static) = &error;
            tracing::error!(component = "kube-proxy", error, "the proxy cannot start");
        }
    });
}

/// Watches the other nodes, and lets them watch this one; tells which of them are silent.
fn start_watch(
    args: &Agent,
    client: &Client,
    sources: &Sources,
    (name, address): (&str, IpAddr),
    shutdown: &CancellationToken,
) -> Silence {
    let silence = Silence::default();
    let Some(port) = args.watch.port() else { return silence };
    let config = liveness::Config { node: name.to_owned(), address, port };
    let (client, nodes) = (client.component("node-liveness"), sources.nodes.clone());
    tokio::spawn(liveness::run(client, nodes, config, silence.clone(), shutdown.clone()));
    silence
}

fn kubelet_options(
    args: &Agent,
    (node_name, ip): (String, IpAddr),
    network: Arc<podnet::PodNet>,
    runtime: Runtime,
    handle: KubeletHandle,
) -> kubelet::Options {
    kubelet::Options {
        node_name,
        node_ips: vec![ip],
        data_dir: args.node_dir.join("kubelet"),
        dns_service_ip: Some(dns_address(args.service_cidr)),
        cluster_domain: args.dns_domain.clone(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        network,
        runtime,
        resolv_conf: args.resolv_conf.clone().unwrap_or_else(|| PathBuf::from("/dev/null")),
        pods_max: kubelet::PODS_MAX,
        port: kubelet::PORT,
        use_present_images: true,
        guard: None,
        handle,
    }
}
