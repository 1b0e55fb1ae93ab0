//! A cluster comes up, comes back, and leaves nothing behind.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
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

/// Its node may have been mended since the cluster's file was read.
fn an_agent_that_starts_leaves_its_link_alone(lab: &Lab) -> Result<()> {
    let wire = format!("rhumb-{}", lab.name());
    let ip = |args: &[&str]| -> Result<String> {
        let output = Command::new("ip").args(args).output()?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let show = ["ip", "link", "show", "eth0"];
    let is_up = || anyhow::Ok(lab.within("extra", &show)?.contains("state UP"));
    ensure!(is_up()?, "it has a link");
    lab.rhumb(&["node", "cut", "extra"])?;
    ensure!(!is_up()?, "it is cut");
    let links = ip(&["-n", &wire, "-o", "link"])?;
    let down = links.lines().find(|line| line.contains("state DOWN")).context("none is down")?;
    let port = down.split([' ', '@']).nth(1).context("a link has a name")?;
    ip(&["-n", &wire, "link", "set", port, "up"])?;
    let agent = lab.pid("extra")?;
    kill(Pid::from_raw(agent), Signal::SIGKILL)?;
    lab.eventually("the agent is back", || {
        ensure!(lab.pid("extra")? != agent, "not yet");
        Ok(())
    })?;
    ensure!(is_up()?, "the start of an agent cut its node's link");
    lab.rhumb(&["node", "mend", "extra"])?;
    Ok(())
}

#[test]
fn nodes_join_and_leave_while_the_cluster_runs() -> Result<()> {
    let lab = Lab::up(BINARY, 1, &[])?;
    lab.rhumb(&["node", "add", "extra"])?;
    lab.kubectl(&["wait", "--for=condition=Ready", "node/extra", "--timeout=60s"])?;
    an_agent_that_starts_leaves_its_link_alone(&lab)?;
    lab.rhumb(&["node", "remove", "extra"])?;
    let gone = lab.refusal(&["get", "node", "extra"])?;
    ensure!(gone.contains("nodes \"extra\" not found"), "{gone}");
    Ok(())
}
