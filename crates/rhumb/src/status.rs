//! `rhumb status`: nodes, parts, addresses, and what is not well and why.

use anyhow::Result;
use api::Kind as _;
use api::core::{Node, Pod, Service};
use client::{Client, Kubeconfig, ListParams};

use crate::cli::Which;
use crate::cluster::{Cluster, NodeState};
use crate::processes;
use crate::progress::say;

/// Runs the command.
pub(crate) fn run(which: &Which) -> Result<()> {
    let cluster = Cluster::existing(&which.data_dir, &which.name)?;
    say(format!(
        "cluster   {}  (rhumb {}, Kubernetes API v1.36)",
        cluster.name,
        env!("CARGO_PKG_VERSION")
    ));
    say(format!("API       {}", cluster.api_url()));
    let (first, last) = cluster.load_balancer_pool();
    say(format!(
        "networks  nodes {}, pods {}, Services {}, load balancers {first}-{last}\n",
        cluster.node_cidr, cluster.pod_cidr, cluster.service_cidr
    ));
    processes_table(&cluster);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let issues = runtime.block_on(api_issues(&cluster));
    let issues: Vec<String> = process_issues(&cluster).into_iter().chain(issues).collect();
    if issues.is_empty() {
        say("\neverything is well");
    } else {
        say("\nnot well:");
        issues.iter().for_each(|issue| say(format!("  - {issue}")));
    }
    Ok(())
}

fn processes_table(cluster: &Cluster) {
    let server = ("server".to_owned(), cluster.server_address().to_string(), String::new());
    let nodes = cluster.nodes.iter().map(|node| {
        let note = match (node.state, node.cut) {
            (NodeState::Stopped, _) => "stopped",
            (NodeState::Running, true) => "cut off",
            (NodeState::Running, false) => "",
        };
        (node.name.clone(), node.address.to_string(), note.to_owned())
    });
    let rows = std::iter::once(server).chain(nodes).map(|(name, address, note)| {
        let running = processes::find(cluster, &name);
        let pid = running.map_or("-".to_owned(), |running| running.pid.to_string());
        let memory = running.map_or("-".to_owned(), |running| {
            format!("{} MB", resident_bytes(running.pid) / 1_000_000)
        });
        [name, address, pid, memory, note]
    });
    table(&["PART", "ADDRESS", "PID", "MEMORY", "NOTE"], &rows.collect::<Vec<_>>());
}

/// Resident memory of a process, from `/proc/PID/status`; 0 when it is gone.
fn resident_bytes(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

fn process_issues(cluster: &Cluster) -> Vec<String> {
    let nodes = cluster
        .nodes
        .iter()
        .filter(|node| node.state == NodeState::Running)
        .map(|node| node.name.as_str());
    let parts = ["supervisor", "server"].into_iter().chain(nodes);
    let dead = parts.filter(|part| processes::find(cluster, part).is_none());
    dead.map(|part| format!("{part} is not running; its log is {}", cluster.log(part).display()))
        .collect()
}

async fn api_issues(cluster: &Cluster) -> Vec<String> {
    match ask(cluster).await {
        Ok(issues) => issues,
        Err(error) => vec![format!("the API server does not answer: {error:#}")],
    }
}

async fn ask(cluster: &Cluster) -> Result<Vec<String>> {
    let client: Client = Kubeconfig::read(&cluster.kubeconfig())?.client("rhumb")?;
    let nodes = client.list::<Node>(&ListParams::default()).await?.items;
    let pods = client.list::<Pod>(&ListParams::default()).await?.items;
    let services = client.list::<Service>(&ListParams::default()).await?.items;
    let ill_nodes = nodes
        .iter()
        .filter(|node| !is_ready(node))
        .map(|node| format!("node {} is not ready{}", node.name(), why(node)));
    let ill_pods = pods
        .iter()
        .filter_map(|pod| pod_issue(pod).map(|why| format!("pod {}: {why}", pod.object_name())));
    let waiting = services.iter().filter(|service| {
        plan::loadbalancer::is_ours(service) && plan::loadbalancer::held(service).is_empty()
    });
    let waiting = waiting
        .map(|service| format!("Service {} has no load balancer address", service.object_name()));
    Ok(ill_nodes.chain(ill_pods).chain(waiting).collect())
}

/// Whether a node's condition Ready is True.
pub(crate) fn is_ready(node: &Node) -> bool {
    ready_condition(node).is_some_and(|condition| condition.status == "True")
}

fn ready_condition(node: &Node) -> Option<&api::core::NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == "Ready")
}

fn why(node: &Node) -> String {
    let message = ready_condition(node).and_then(|condition| condition.message.as_deref());
    message.map_or_else(String::new, |message| format!(": {message}"))
}

/// Why a pod that should run does not.
fn pod_issue(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded")) || pod.is_deleting() {
        return None;
    }
    let containers =
        status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let waiting = containers.filter_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting
            .reason
            .as_deref()
            .filter(|reason| !matches!(*reason, "ContainerCreating" | "PodInitializing"))?;
        let message = waiting.message.as_deref().unwrap_or_default();
        Some(
            format!("container {} is waiting: {reason} {message}", container.name)
                .trim_end()
                .to_owned(),
        )
    });
    let unmet = status.conditions.iter().flatten().filter(|condition| condition.status == "False");
    let unmet =
        unmet.filter(|condition| condition.type_ == "PodScheduled" || condition.type_ == "Ready");
    let unmet = unmet.filter_map(|condition| condition.message.clone());
    waiting.chain(unmet).next()
}

/// Prints rows under a head, in columns as wide as they need.
pub(crate) fn table<const N: usize>(head: &[&str; N], rows: &[[String; N]]) {
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].len()).chain([head[column].len()]).max().unwrap_or(0)
    });
    let line = |cells: [&str; N]| {
        let cells: Vec<String> =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        say(cells.join("   ").trim_end());
    };
    line(*head);
    for row in rows {
        line(row.each_ref().map(String::as_str));
    }
}
