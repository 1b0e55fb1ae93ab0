//! `--egress`: the lab's way out through this machine, which a closed lab does not have.
//!
//! Nodes get a default route over the lab's link; this machine forwards, and masquerades what comes from nodes. Pods are
//! masqueraded by their nodes before. `rhumb down` takes all of it back.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use kernel::nftables::Nftables;
use kernel::sysctl;
use net::nft::{Family, Op, Transaction};
use plan::podnet::egress;

use crate::cluster::Cluster;

const FORWARD: &str = "net/ipv4/ip_forward";
/// Where systemd-resolved writes the resolvers that its own loopback address stands for.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// The resolvers' file that nodes can use: one with an address that is not this machine's loopback.
pub(crate) fn resolvers(asked: &Path) -> Result<PathBuf> {
    let usable = |path: &&Path| {
        let found = dns::resolvers(path).unwrap_or_default();
        found.iter().any(|address: &IpAddr| !address.is_loopback())
    };
    let file = [asked, Path::new(RESOLVED)].into_iter().find(usable);
    let file = file.with_context(|| {
        format!(
            "--egress forwards names to this machine's resolvers, and {} has none but loopback: name another file with --resolv-conf",
            asked.display()
        )
    })?;
    Ok(file.to_owned())
}

/// Forwards and masquerades for the lab.
pub(crate) fn open(cluster: &Cluster) -> Result<()> {
    if cluster.egress.is_none() {
        return Ok(());
    }
    if sysctl::get(FORWARD)? == "0" {
        fs::create_dir_all(cluster.run_dir())?;
        fs::write(marker(cluster), "")?;
        sysctl::set(FORWARD, "1")?;
    }
    let table = egress::table(&cluster.name, IpNet::V4(cluster.node_cidr));
    let mut ops = vec![Op::AddTable, Op::DeleteTable];
    ops.extend(table.creation());
    Nftables::open()?
        .commit(&Transaction { family: table.family, table: table.name, ops })
        .context("this machine does not masquerade the lab")
}

/// Takes back what [`open`] did, also when the cluster's file says nothing of it.
pub(crate) fn close(cluster: &Cluster) -> Result<()> {
    if cluster.egress.is_none() {
        return Ok(());
    }
    let name = egress::name(&cluster.name);
    let mut nft = Nftables::open()?;
    if nft.has_table(Family::Ip, &name)? {
        nft.commit(&Transaction {
            family: Family::Ip,
            table: name.into(),
            ops: vec![Op::DeleteTable],
        })?;
    }
    let marker = marker(cluster);
    if marker.exists() && !others_forward(cluster) {
        sysctl::set(FORWARD, "0")?;
    }
    let _ = fs::remove_file(marker);
    Ok(())
}

/// Says that this machine did not forward before.
fn marker(cluster: &Cluster) -> PathBuf {
    cluster.run_dir().join("forwarding")
}

/// Whether another cluster of this machine still needs the forwarding; it takes over the duty to end it.
fn others_forward(cluster: &Cluster) -> bool {
    let mut others = Cluster::all(&cluster.data_dir).into_iter();
    let other = others.find(|other| {
        other.name != cluster.name && other.egress.is_some() && other.run_dir().exists()
    });
    other.is_some_and(|other| fs::write(marker(&other), "").is_ok())
}

/// Refuses a file of resolvers where nothing is forwarded.
pub(crate) fn check(egress: bool, resolv_conf: Option<&Path>) -> Result<()> {
    ensure!(egress || resolv_conf.is_none(), "--resolv-conf needs --egress");
    Ok(())
}
