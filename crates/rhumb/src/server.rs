//! `rhumb server`: the control plane in one process: API server, controllers, scheduler.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use apiserver::auth::User;
use apiserver::pki::Pki;
use apiserver::{Config, Server as ApiServer};
use client::{Client, InProcess};
use http_body_util::BodyExt as _;
use ipnet::IpNet;
use plan::loadbalancer::Pool;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::agent::terminated;
use crate::cli::Server;
use crate::cluster::Cluster;
use crate::{kubeconfig, telemetry};

/// Where node-local volumes are on their node.
const VOLUMES: &str = "/var/lib/rhumb/volumes";

/// How long open connections may take to end.
const END_MAX: Duration = Duration::from_secs(1);

/// Runs the control plane until it is told to end.
pub(crate) fn run(args: Server) -> Result<()> {
    telemetry::start();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(serve(args));
    // What still waits in a thread of its own has nothing left to say.
    runtime.shutdown_background();
    result
}

/// The API server's settings for a cluster of this machine.
pub(crate) fn lab_config(cluster: &Cluster) -> Config {
    Config {
        service_cidrs: vec![IpNet::V4(cluster.service_cidr)],
        node_port_range: cluster.node_port_range.first..=cluster.node_port_range.last,
        cluster_domain: cluster.dns_domain.clone(),
        advertise_address: IpAddr::V4(cluster.server_address()),
        advertise_port: cluster.api_port,
        issuer: format!("https://kubernetes.default.svc.{}", cluster.dns_domain),
        ..Config::new(cluster.server_dir())
    }
}

fn config(args: &Server) -> Config {
    Config {
        service_cidrs: vec![IpNet::V4(args.service_cidr)],
        node_port_range: args.node_port_range.first..=args.node_port_range.last,
        cluster_domain: args.dns_domain.clone(),
        advertise_address: args.advertise_address,
        advertise_port: args.api_port,
        issuer: format!("https://kubernetes.default.svc.{}", args.dns_domain),
        ..Config::new(&args.server_dir)
    }
}

async fn serve(args: Server) -> Result<()> {
    let pool = args.load_balancer_pool.as_deref().map(parse_pool).transpose()?;
    let config = config(&args);
    let pki = Arc::new(Pki::open(&config)?);
    if let Some(path) = &args.admin_kubeconfig {
        let url = format!("https://{}", SocketAddr::new(args.advertise_address, args.api_port));
        let text = pki.kubeconfig(&url, "rhumb", "kubernetes-admin", &pki.admin()?);
        kubeconfig::write_private(path, text.as_bytes())?;
    }
    let address = SocketAddr::from(([0, 0, 0, 0], args.api_port));
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let server = ApiServer::open(config).await?;
    let shutdown = CancellationToken::new();
    let tls = pki.server_tls()?;
    let listening = Arc::clone(&server);
    tokio::spawn(async move { listening.serve(listener, tls).await });
    let options = controllers::Options {
        root_ca: pki.authority().into(),
        pod_cidr: args.pod_cidr.to_string().into(),
        volumes_directory: args.volumes_dir.as_deref().unwrap_or(VOLUMES).into(),
        load_balancer_pool: pool,
        node_ports: args.node_port_range.first..=args.node_port_range.last,
        ..controllers::Options::default()
    };
    let inside = Arc::clone(&server);
    let tasks = controllers::spawn(
        move |component| component_client(&inside, component),
        options,
        shutdown.clone(),
    );
    tracing::info!(component = "server", %address, "the control plane serves");
    terminated().await?;
    shutdown.cancel();
    // Every acknowledged write is on disk already: nothing is lost when somebody does not end in time.
    let end = async {
        futures_util::future::join_all(tasks).await;
        server.shutdown().await;
    };
    if tokio::time::timeout(END_MAX, end).await.is_err() {
        tracing::info!(component = "server", "connections were still open at the end");
    }
    Ok(())
}

/// A client inside the process; components are trusted as upstream's controller manager is.
fn component_client(server: &Arc<ApiServer>, component: &str) -> Client {
    let server = Arc::clone(server);
    let user = User {
        name: format!("system:{component}"),
        groups: vec!["system:masters".to_owned(), "system:authenticated".to_owned()],
        ..User::default()
    };
    let respond = move |request: http::Request<bytes::Bytes>| {
        let (server, user) = (Arc::clone(&server), user.clone());
        let answer = async move {
            let request = request.map(apiserver::full_body);
            server.respond(user, request).await.map(|body| body.map_err(Into::into).boxed_unsync())
        };
        Box::pin(answer) as futures_util::future::BoxFuture<'static, _>
    };
    Client::new(Arc::new(InProcess::new(respond)), component)
}

/// `FIRST-LAST`.
fn parse_pool(text: &str) -> Result<Pool> {
    let parse = |text: &str| text.trim().parse::<Ipv4Addr>().ok();
    let ends = text.split_once('-').and_then(|(first, last)| Some((parse(first)?, parse(last)?)));
    let (first, last) =
        ends.with_context(|| format!("--load-balancer-pool {text:?} is not FIRST-LAST"))?;
    anyhow::ensure!(first <= last, "--load-balancer-pool {text:?} ends before it begins");
    Ok(Pool { first, last })
}
