//! `rhumb up`: a whole cluster on this machine.

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use api::core::Node;
use client::{Client, Kubeconfig, ListParams};
use ipnet::Ipv4Net;
use nix::unistd::Uid;

use crate::cli::Up;
use crate::cluster::{
    Cluster, NODES_MAX, NodeState, check_name, free_node_cidr, overlap, routed_ranges,
};
use crate::nodes::call_supervisor;
use crate::progress::{Progress, say};
use crate::{down, egress, kubeconfig, lab, processes};

/// How long the cluster may take to answer before `up` gives up and says where the logs are.
const READY_MAX: Duration = Duration::from_secs(60);
/// Between two looks at something that becomes ready.
const LOOK: Duration = Duration::from_millis(5);

/// Runs the command.
pub(crate) fn run(args: &Up) -> Result<()> {
    let (cluster, standing) = settle(args)?;
    let progress = Progress::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if standing == Standing::Running {
        return runtime.block_on(change(&cluster, progress));
    }
    let started = runtime.block_on(bring_up(&cluster, &progress));
    if let Err(error) = started {
        progress.finish();
        let error = error.context(format!(
            "cluster {:?} did not come up; logs are in {}",
            cluster.name,
            cluster.dir().join("logs").display()
        ));
        let _ = down::end(&cluster, true, &Progress::new());
        return Err(error);
    }
    let time = progress.finish();
    let what = if standing == Standing::New { "is up" } else { "is back" };
    say(format!(
        "\ncluster {:?} {what} after {:.2} s: {} node(s), API at {}",
        cluster.name,
        time.as_secs_f64(),
        cluster.nodes.len(),
        cluster.api_url()
    ));
    next_steps(&cluster);
    if args.detach {
        return Ok(());
    }
    say("\nCtrl-C ends the cluster and keeps its data.");
    runtime.block_on(async { tokio::signal::ctrl_c().await })?;
    say("");
    down::end(&cluster, true, &Progress::new())
}

fn next_steps(cluster: &Cluster) {
    let name =
        if cluster.name == "default" { String::new() } else { format!(" --name {}", cluster.name) };
    say(format!(
        "\n  export KUBECONFIG=$(rhumb kubeconfig{name})\n  kubectl get nodes -o wide\n  rhumb status{name}\n  rhumb down{name}"
    ));
}

/// What there is of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing yet.
    New,
    /// Its data.
    Stopped,
    /// Everything, but with other settings than were asked for.
    Running,
}

/// Decides what cluster to bring up, and refuses before anything is touched.
fn settle(args: &Up) -> Result<(Cluster, Standing)> {
    check_name(&args.which.name, "cluster")?;
    ensure!(
        Uid::effective().is_root(),
        "a cluster needs network namespaces and kernel rules, which belong to root: run `rhumb up` as root"
    );
    if let Some(known) = Cluster::read(&args.which.data_dir, &args.which.name)? {
        let cluster = changed(&known, args)?;
        if processes::find(&cluster, "supervisor").is_none() {
            return Ok((cluster, Standing::Stopped));
        }
        ensure!(
            cluster != known,
            "cluster {:?} is up already; `rhumb status` shows it and `rhumb down` ends it",
            cluster.name
        );
        return Ok((cluster, Standing::Running));
    }
    args.carry.check()?;
    egress::check(args.egress, args.resolv_conf.as_deref())?;
    let mut cluster = plan(args, &routed_ranges(), &Cluster::all(&args.which.data_dir))?;
    if args.egress {
        let asked = args.resolv_conf.as_deref().unwrap_or(Path::new("/etc/resolv.conf"));
        cluster.egress = Some(egress::resolvers(asked)?);
    }
    Ok((cluster, Standing::New))
}

/// A cluster that is there already, with what of it can be changed.
fn changed(known: &Cluster, args: &Up) -> Result<Cluster> {
    args.shape.is_of(known)?;
    ensure!(
        !args.egress || known.egress.is_some(),
        "cluster {:?} was made without --egress and keeps to itself; only a new one can have it",
        known.name
    );
    check_mirrors(&args.registry_mirror)?;
    let mut cluster = known.clone();
    cluster.carry.change(args.carry);
    cluster.carry.check()?;
    cluster.proxy.change(&args.proxy);
    cluster.watch.change(args.watch);
    if !args.registry_mirror.is_empty() {
        cluster.registry_mirrors.clone_from(&args.registry_mirror);
    }
    Ok(cluster)
}

fn check_mirrors(mirrors: &[String]) -> Result<()> {
    for mirror in mirrors {
        ensure!(mirror.contains('='), "--registry-mirror {mirror:?} is not HOST=URL");
    }
    Ok(())
}

/// Has the agents of a running cluster start anew with other settings. Pods and connections stay.
async fn change(cluster: &Cluster, progress: Progress) -> Result<()> {
    progress.begin("starting the agents anew");
    cluster.write()?;
    call_supervisor(cluster)?;
    let deadline = Instant::now() + READY_MAX;
    for node in cluster.nodes.iter().filter(|node| node.state == NodeState::Running) {
        let command = processes::agent_command(cluster, node)?;
        let runs = || {
            let agent = processes::find(cluster, &node.name);
            agent.and_then(|agent| agent.is_of(&command)) == Some(true)
        };
        while !runs() {
            ensure!(Instant::now() < deadline, "the agent of node {:?} did not start", node.name);
            tokio::time::sleep(LOOK).await;
        }
    }
    progress.done("the agents run with the new settings");
    progress.finish();
    Ok(())
}

/// The new cluster that was asked for, or why it cannot be.
fn plan(args: &Up, routed: &[Ipv4Net], others: &[Cluster]) -> Result<Cluster> {
    let shape = &args.shape;
    let (nodes, pod_cidr, service_cidr) = (shape.nodes(), shape.pod_cidr(), shape.service_cidr());
    ensure!((1..=NODES_MAX).contains(&nodes), "--nodes must be 1 to {NODES_MAX}");
    check_mirrors(&args.registry_mirror)?;
    let used: Vec<Ipv4Net> =
        routed.iter().copied().chain(others.iter().map(|other| other.node_cidr)).collect();
    let node_cidr = match shape.node_cidr {
        None => free_node_cidr(&used)?,
        Some(cidr) => {
            ensure!(cidr.prefix_len() <= 24, "--node-cidr {cidr} is smaller than a /24");
            if let Some(taken) = used.iter().find(|taken| overlap(**taken, cidr)) {
                bail!("--node-cidr {cidr} overlaps {taken}, which this machine routes already");
            }
            cidr
        }
    };
    let ranges =
        [("--node-cidr", node_cidr), ("--pod-cidr", pod_cidr), ("--service-cidr", service_cidr)];
    for (index, (flag, range)) in ranges.iter().enumerate() {
        if let Some((other, taken)) =
            ranges[..index].iter().find(|(_, taken)| overlap(*taken, *range))
        {
            bail!("{flag} {range} overlaps {other} {taken}");
        }
    }
    let pods_max = 1_usize << 24_u8.saturating_sub(pod_cidr.prefix_len());
    ensure!(
        nodes <= pods_max,
        "--pod-cidr {pod_cidr} has room for {pods_max} node(s), a /24 each, not {nodes}"
    );
    let mut cluster = Cluster {
        name: args.which.name.clone(),
        data_dir: args.which.data_dir.clone(),
        node_cidr,
        pod_cidr,
        service_cidr,
        dns_domain: shape.dns_domain(),
        node_port_range: shape.node_port_range(),
        api_port: shape.api_port(),
        registry_mirrors: args.registry_mirror.clone(),
        nodes: Vec::new(),
        egress: None,
        carry: args.carry,
        proxy: args.proxy.clone(),
        watch: args.watch,
    };
    for _ in 0..nodes {
        cluster.add_node(None)?;
    }
    Ok(cluster)
}

/// Makes the lab, starts the processes and waits until the nodes are ready.
async fn bring_up(cluster: &Cluster, progress: &Progress) -> Result<()> {
    progress.begin("making the lab's network");
    cluster.write()?;
    lab::build(cluster).await?;
    progress.done(&format!(
        "lab network {} with {} node(s)",
        cluster.node_cidr,
        cluster.nodes.len()
    ));
    progress.begin("starting the control plane");
    for node in &cluster.nodes {
        kubeconfig::write_node(cluster, node)?;
    }
    let mut supervisor = start_supervisor(cluster)?;
    let deadline = Instant::now() + READY_MAX;
    let client = api_ready(cluster, deadline, &mut supervisor).await?;
    progress.done(&format!("API server answers at {}", cluster.api_url()));
    progress.begin("waiting for the nodes");
    nodes_ready(cluster, &client, deadline).await?;
    progress.done("all nodes are ready");
    Ok(())
}

/// Starts the supervisor in a session of its own, so that it outlives this command and its terminal.
fn start_supervisor(cluster: &Cluster) -> Result<std::process::Child> {
    let log = cluster.log("supervisor");
    std::fs::create_dir_all(log.parent().context("a log has a folder")?)?;
    let log = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["supervise", "--name", &cluster.name, "--data-dir"]).arg(&cluster.data_dir);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    command.spawn().context("cannot start the supervisor")
}

async fn api_ready(
    cluster: &Cluster,
    deadline: Instant,
    supervisor: &mut std::process::Child,
) -> Result<Client> {
    let address = std::net::SocketAddr::from((cluster.server_address(), cluster.api_port));
    loop {
        if TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
            && let Ok(kubeconfig) = Kubeconfig::read(&cluster.kubeconfig())
        {
            let client = kubeconfig.client("rhumb")?;
            if client.list::<api::core::Namespace>(&ListParams::default()).await.is_ok() {
                return Ok(client);
            }
        }
        ensure!(supervisor.try_wait()?.is_none(), "the supervisor ended");
        ensure!(
            Instant::now() < deadline,
            "the API server did not answer within {} s",
            READY_MAX.as_secs()
        );
        tokio::time::sleep(LOOK).await;
    }
}

async fn nodes_ready(cluster: &Cluster, client: &Client, deadline: Instant) -> Result<()> {
    let expected =
        cluster.nodes.iter().filter(|node| node.state == NodeState::Running && !node.cut).count();
    loop {
        let nodes = client.list::<Node>(&ListParams::default()).await?.items;
        let ready = nodes.iter().filter(|node| crate::status::is_ready(node)).count();
        if ready >= expected {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{ready} of {expected} nodes became ready within {} s",
            READY_MAX.as_secs()
        );
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        up: Up,
    }

    fn planned(line: &str, routed: &[&str]) -> Result<Cluster> {
        let line = Line::try_parse_from(std::iter::once("up").chain(line.split_whitespace()))?;
        let routed: Vec<Ipv4Net> = routed.iter().map(|range| range.parse().unwrap()).collect();
        plan(&line.up, &routed, &[])
    }

    fn refusal(line: &str, routed: &[&str]) -> String {
        planned(line, routed).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_those_of_the_documents() {
        let cluster = planned("--nodes 3", &["10.0.0.0/8"]).unwrap();
        assert_eq!(cluster.pod_cidr.to_string(), "10.244.0.0/16");
        assert_eq!(cluster.service_cidr.to_string(), "10.96.0.0/12");
        assert_eq!(cluster.node_cidr.to_string(), "198.18.0.0/24");
        assert_eq!(
            cluster.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(),
            ["n1", "n2", "n3"]
        );
    }

    #[test]
    fn a_cluster_takes_other_settings_and_no_other_shape() {
        let known = planned("--nodes 2 --masquerade-all", &[]).unwrap();
        let asked = |line: &str| {
            let line = std::iter::once("up").chain(line.split_whitespace());
            changed(&known, &Line::try_parse_from(line).unwrap().up)
        };
        assert_eq!(asked("").unwrap(), known);
        assert_eq!(asked("--nodes 2 --pod-cidr 10.244.0.0/16 --masquerade-all").unwrap(), known);
        let other = asked("--masquerade-all=false --proxy-mode nftables").unwrap();
        assert_eq!(other.proxy.masquerade_all, Some(false));
        assert_eq!(other.carry.flags(), ["--proxy-mode=nftables"]);
        let refused = |line: &str| asked(line).unwrap_err().to_string();
        assert_eq!(
            refused("--service-cidr 10.0.0.0/16"),
            "cluster \"default\" was made with --service-cidr 10.96.0.0/12 and keeps it; only a new one can have 10.0.0.0/16"
        );
        assert!(refused("--nodes 3").contains("`rhumb node add`"));
        assert!(refused("--egress").contains("only a new one"));
        assert!(refused("--registry-mirror docker.io").contains("is not HOST=URL"));
    }

    #[test]
    fn ranges_that_collide_are_refused_in_one_sentence() {
        let taken =
            "--node-cidr 192.168.1.0/24 overlaps 192.168.0.0/16, which this machine routes already";
        assert_eq!(refusal("--node-cidr 192.168.1.0/24", &["192.168.0.0/16"]), taken);
        let twice = "--service-cidr 10.244.0.0/20 overlaps --pod-cidr 10.244.0.0/16";
        assert_eq!(refusal("--service-cidr 10.244.0.0/20", &[]), twice);
        assert!(refusal("--nodes 0", &[]).contains("--nodes must be 1 to"));
        assert!(
            refusal("--nodes 3 --pod-cidr 10.244.0.0/23", &[]).contains("has room for 2 node(s)")
        );
        assert!(refusal("--registry-mirror docker.io", &[]).contains("is not HOST=URL"));
    }
}
