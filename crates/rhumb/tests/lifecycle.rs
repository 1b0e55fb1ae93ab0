//! A cluster comes up, comes back, and leaves nothing behind.

use anyhow::{Result, ensure};
use testkit::lab::Lab;

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

const CONFIG: &str = "{apiVersion: v1, kind: ConfigMap, metadata: {name: kept}, data: {a: b}}";

#[test]
fn a_cluster_leaves_nothing_behind() -> Result<()> {
    let lab = Lab::up(BINARY, 3, &[])?;
    let nodes = lab.get(&["nodes"])?;
    ensure!(nodes["items"].as_array().map(Vec::len) == Some(3), "{nodes}");
    let status = lab.rhumb(&["status"])?;
    ensure!(status.contains("everything is well"), "{status}");
    ensure!(!lab.traces()?.is_empty(), "the test looks at the right places");
    lab.rhumb(&["down"])?;
    let traces = lab.traces()?;
    ensure!(traces.is_empty(), "{traces:#?}");
    Ok(())
}

#[test]
fn the_same_name_brings_the_same_cluster_back() -> Result<()> {
    let lab = Lab::up(BINARY, 1, &[])?;
    lab.apply(CONFIG)?;
    let before = lab.get(&["configmap", "kept"])?;
    let address = lab.value("node/n1", "{.status.addresses[0].address}")?;
    lab.rhumb(&["down", "--keep-data"])?;
    lab.rhumb(&["up", "--detach"])?;
    ensure!(lab.get(&["configmap", "kept"])? == before, "the object is as it was");
    ensure!(
        lab.value("node/n1", "{.status.addresses[0].address}")? == address,
        "the node has its address"
    );
    Ok(())
}

#[test]
fn a_second_up_is_refused_in_one_sentence() -> Result<()> {
    let lab = Lab::up(BINARY, 1, &[])?;
    let error = lab.rhumb(&["up", "--detach"]).unwrap_err().to_string();
    ensure!(error.contains("is up already"), "{error}");
    Ok(())
}

#[test]
fn nodes_join_and_leave_while_the_cluster_runs() -> Result<()> {
    let lab = Lab::up(BINARY, 1, &[])?;
    lab.rhumb(&["node", "add", "extra"])?;
    lab.kubectl(&["wait", "--for=condition=Ready", "node/extra", "--timeout=60s"])?;
    lab.rhumb(&["node", "remove", "extra"])?;
    let gone = lab.refusal(&["get", "node", "extra"])?;
    ensure!(gone.contains("nodes \"extra\" not found"), "{gone}");
    Ok(())
}
