//! `rhumb node add|stop|start|cut|mend|remove`: changes the nodes of a cluster while it runs.
//!
//! Each command changes the cluster's file and calls the supervisor, which does the rest.

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use nix::unistd::Uid;

use crate::cli::{NodeCommand, OneNode, Which};
use crate::cluster::{Cluster, NodeState};
use crate::progress::say;
use crate::{down, lab, processes};

/// Runs the command.
pub(crate) fn run(command: &NodeCommand) -> Result<()> {
    anyhow::ensure!(
        Uid::effective().is_root(),
        "nodes are namespaces, which belong to root: run this as root"
    );
    match command {
        NodeCommand::Add { which, node } => add(which, node.as_deref()),
        NodeCommand::Stop(one) => {
            change(one, "stopped", |cluster, node| set_state(cluster, node, NodeState::Stopped))
        }
        NodeCommand::Start(one) => {
            change(one, "started", |cluster, node| set_state(cluster, node, NodeState::Running))
        }
        NodeCommand::Cut(one) => {
            change(one, "cut off", |cluster, node| set_cut(cluster, node, true))
        }
        NodeCommand::Mend(one) => {
            change(one, "joined again", |cluster, node| set_cut(cluster, node, false))
        }
        NodeCommand::Remove(one) => remove(one),
    }
}

fn add(which: &Which, name: Option<&str>) -> Result<()> {
    let mut cluster = Cluster::existing(&which.data_dir, &which.name)?;
    let node = cluster.add_node(name)?;
    cluster.write()?;
    block_on(lab::build_node(&cluster, &node))?;
    call_supervisor(&cluster)?;
    say(format!("node {:?} joins as {}", node.name, node.address));
    Ok(())
}

fn change(
    one: &OneNode,
    done: &str,
    edit: impl FnOnce(&mut Cluster, &str) -> Result<()>,
) -> Result<()> {
    let mut cluster = Cluster::existing(&one.which.data_dir, &one.which.name)?;
    edit(&mut cluster, &one.node)?;
    cluster.write()?;
    let node = cluster.node_mut(&one.node)?.clone();
    block_on(async {
        lab::build_node(&cluster, &node).await?;
        lab::link_node(&cluster, &node).await
    })?;
    call_supervisor(&cluster)?;
    say(format!("node {:?} is {done}", one.node));
    Ok(())
}

fn set_state(cluster: &mut Cluster, node: &str, state: NodeState) -> Result<()> {
    cluster.node_mut(node)?.state = state;
    Ok(())
}

fn set_cut(cluster: &mut Cluster, node: &str, cut: bool) -> Result<()> {
    cluster.node_mut(node)?.cut = cut;
    Ok(())
}

fn remove(one: &OneNode) -> Result<()> {
    let mut cluster = Cluster::existing(&one.which.data_dir, &one.which.name)?;
    cluster.node_mut(&one.node)?;
    cluster.nodes.retain(|node| node.name != one.node);
    cluster.write()?;
    call_supervisor(&cluster)?;
    if let Some(agent) = processes::find(&cluster, &one.node) {
        agent.stop();
    }
    down::remove_containers(&cluster, &one.node)?;
    lab::remove_node(&cluster, &one.node)?;
    block_on(delete_object(&cluster, &one.node))?;
    let dir = cluster.node_dir(&one.node);
    std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    say(format!("node {:?} is removed", one.node));
    Ok(())
}

/// Deletes the Node object, so that its pods are made again elsewhere at once.
async fn delete_object(cluster: &Cluster, node: &str) -> Result<()> {
    let client = client::Kubeconfig::read(&cluster.kubeconfig())?.client("rhumb")?;
    client.delete::<api::core::Node>("", node, &client::DeleteOptions::default()).await?;
    Ok(())
}

/// Tells the supervisor that the cluster's file has changed.
pub(crate) fn call_supervisor(cluster: &Cluster) -> Result<()> {
    let supervisor = processes::find(cluster, "supervisor");
    let supervisor = supervisor.with_context(|| {
        format!("cluster {:?} is not running; `rhumb up` starts it", cluster.name)
    })?;
    supervisor.signal(Signal::SIGHUP);
    Ok(())
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
