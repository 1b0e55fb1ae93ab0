//! `rhumb down`: ends a cluster and removes what it left on this machine.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, umount2};
use nix::unistd::Uid;

use crate::cli::Down;
use crate::cluster::Cluster;
use crate::progress::{Progress, say};
use crate::{egress, kubeconfig, lab, processes};

/// Runs the command.
pub(crate) fn run(args: &Down) -> Result<()> {
    anyhow::ensure!(
        Uid::effective().is_root(),
        "a cluster's namespaces and rules belong to root: run `rhumb down` as root"
    );
    let Some(cluster) = Cluster::read(&args.which.data_dir, &args.which.name)? else {
        say(format!("there is no cluster {:?} here", args.which.name));
        return Ok(());
    };
    let progress = Progress::new();
    end(&cluster, args.keep_data, &progress)?;
    let time = progress.finish();
    say(format!("cluster {:?} is down after {:.1} s", cluster.name, time.as_secs_f64()));
    Ok(())
}

/// Ends the processes, containers, mounts, namespaces and links of a cluster, and its data unless they are kept.
pub(crate) fn end(cluster: &Cluster, keep_data: bool, progress: &Progress) -> Result<()> {
    progress.begin("stopping the processes");
    processes::all(cluster).into_iter().for_each(processes::Running::stop);
    progress.done("processes stopped");
    progress.begin("removing the containers");
    for node in &cluster.nodes {
        remove_containers(cluster, &node.name)?;
    }
    for node in &cluster.nodes {
        runtime::forget_group(&crate::agent::control_group(&node.name));
    }
    progress.done("containers removed");
    let nodes: Vec<String> = cluster.nodes.iter().map(|node| node.name.clone()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    egress::close(cluster)?;
    runtime.block_on(lab::remove(&cluster.name, &nodes))?;
    progress.done("namespaces and links removed");
    unmount_below(&cluster.dir())?;
    let _ = fs::remove_dir_all(cluster.run_dir());
    if !keep_data {
        kubeconfig::unmerge(cluster)?;
        fs::remove_dir_all(cluster.dir())
            .with_context(|| format!("cannot remove {}", cluster.dir().display()))?;
        progress.done("data removed");
    }
    Ok(())
}

/// Ends the containers of a node whose agent has stopped, and forgets their networks.
pub(crate) fn remove_containers(cluster: &Cluster, node: &str) -> Result<()> {
    let dir = cluster.node_dir(node);
    crate::agent::remove_pods(&dir, &cluster.images_dir())?;
    kernel::bpf::remove(&crate::agent::pins(&dir))?;
    unmount_below(&dir)?;
    let _ = fs::remove_dir_all(dir.join("podnet"));
    Ok(())
}

/// Unmounts everything below a folder, the deepest first.
pub(crate) fn unmount_below(dir: &Path) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(1)).map(unescape);
    let mut points: Vec<String> =
        points.filter(|point| Path::new(point).starts_with(dir)).collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    for point in points {
        umount2(point.as_str(), MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {point}"))?;
    }
    Ok(())
}

/// `/proc/mounts` writes blanks and backslashes in octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}
