//! A node that loses its power is left alone before the API knows, and used again as soon as it is back; a node whose agent
//! stands still or ends is not.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use testkit::knocks::{Knock, Knocks};
use testkit::lab::Lab;

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

/// A pod on each node.
const WEB: &str = r"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: 'nginx:stable', imagePullPolicy: IfNotPresent}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 80, nodePort: 30080}]}
";

/// The kernel tries again after a second.
const RETRIED: Duration = Duration::from_millis(900);

/// Knocks from a node and from outside.
fn knock(lab: &Lab) -> Result<[Knocks; 2]> {
    let service: SocketAddrV4 =
        format!("{}:80", lab.value("service/web", "{.spec.clusterIP}")?).parse()?;
    let node = lab.value("node/n2", "{.status.addresses[0].address}")?;
    let node_port: SocketAddrV4 = format!("{node}:30080").parse()?;
    let namespace = |part: &str| PathBuf::from(format!("/run/netns/rhumb-{}-{part}", lab.name()));
    Ok([Knocks::start(&namespace("n1"), service)?, Knocks::start(&namespace("client"), node_port)?])
}

fn end(knocks: [Knocks; 2]) -> Result<Vec<Knock>> {
    let all: Result<Vec<_>> = knocks.into_iter().map(Knocks::end).collect();
    Ok(all?.into_iter().flatten().collect())
}

/// A figure of a node's agent about who watches whom.
fn figure(lab: &Lab, node: &str, name: &str) -> Result<u64> {
    let url = "http://127.0.0.1:10249/metrics";
    let text = lab.within(node, &["curl", "--silent", "--show-error", "--fail", url])?;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("rhumb_liveness_{name} ")));
    Ok(line.with_context(|| format!("{name} is not in {text}"))?.parse()?)
}

/// Where a node's kernel sends new connections.
fn endpoints(lab: &Lab, node: &str) -> Result<String> {
    lab.within(node, &["nft", "list", "map", "ip", "rhumb_proxy", "endpoints"])
}

fn all_watch(lab: &Lab) -> Result<()> {
    lab.eventually("every node watches and hears the others", || {
        for node in ["n1", "n2", "n3"] {
            ensure!(figure(lab, node, "watched_nodes")? == 2, "{node}");
            ensure!(figure(lab, node, "received_messages_total")? > 10, "{node}");
        }
        Ok(())
    })
}

fn events(lab: &Lab, reason: &str) -> Result<usize> {
    let only = format!("reason={reason},involvedObject.name=n3");
    Ok(lab.kubectl(&["get", "events", "--field-selector", &only, "-o", "name"])?.lines().count())
}

fn is_ready(lab: &Lab) -> Result<bool> {
    let path = "{.status.conditions[?(@.type==\"Ready\")].status}";
    Ok(lab.value("node/n3", path)? == "True")
}

#[test]
fn a_node_without_power_is_left_alone_before_the_api_knows() -> Result<()> {
    let lab = Lab::up(BINARY, 3, &["nginx"])?;
    lab.apply(WEB)?;
    lab.ready("app=web", 3)?;
    all_watch(&lab)?;
    agents_are_no_nodes(&lab)?;

    let pods = ["pods", "-l", "app=web", "--field-selector", "spec.nodeName=n3"];
    let gone = lab.get(&pods)?["items"][0]["status"]["podIP"].as_str().unwrap().to_owned();
    for node in ["n1", "n2"] {
        ensure!(endpoints(&lab, node)?.contains(&gone), "{node}");
    }
    let knocks = knock(&lab)?;
    std::thread::sleep(Duration::from_millis(300)); // Before, all is well.
    let cut = Instant::now();
    lab.rhumb(&["node", "cut", "n3"])?;
    for node in ["n1", "n2"] {
        lab.eventually("the silent node is left alone", || {
            ensure!(!endpoints(&lab, node)?.contains(&gone), "{node}");
            Ok(())
        })?;
    }
    let left = Instant::now();
    ensure!(is_ready(&lab)?, "the API knew before");
    lab.rhumb(&["node", "stop", "n3"])?;
    std::thread::sleep(Duration::from_millis(500)); // Afterwards, all is well again.
    let knocks = end(knocks)?;
    let explained = lab.rhumb(&["explain", "node/n1", "svc/web:80"])?;
    ensure!(explained.contains("its node n3 is silent"), "{explained}");
    ensure!(explained.contains("no answer from n3"), "{explained}");
    a_rollout_does_not_wait_for_it(&lab)?;
    let lost = |knock: &&Knock| !knock.answered;
    let lost: Vec<_> = knocks.iter().filter(lost).map(|knock| knock.at - cut).collect();
    ensure!(lost.is_empty(), "their next try did not go elsewhere: {lost:?}");
    // Only the first try of some went to it.
    let late = |knock: &&Knock| knock.took > RETRIED;
    ensure!(knocks.iter().any(|knock| late(&knock)), "nobody felt the cut");
    ensure!(knocks.iter().filter(late).all(|knock| knock.at >= cut), "late without a reason");
    let late = knocks.iter().filter(late).filter(|knock| knock.at > left);
    let late: Vec<_> = late.map(|knock| knock.at.duration_since(left)).collect();
    ensure!(late.is_empty(), "new connections went to it afterwards: {late:?}");
    let after = knocks.iter().filter(|knock| knock.at > left).count();
    ensure!(after > 10, "only {after} connections afterwards");
    lab.eventually("one node tells it", || {
        ensure!(events(&lab, "NodeSilent")? == 1);
        Ok(())
    })?;

    lab.rhumb(&["node", "mend", "n3"])?;
    for node in ["n1", "n2"] {
        lab.eventually("the node is used again, with its agent or without", || {
            ensure!(endpoints(&lab, node)?.contains(&gone), "{node}");
            Ok(())
        })?;
    }
    lab.rhumb(&["node", "start", "n3"])?;
    lab.eventually("one node tells it", || {
        ensure!(events(&lab, "NodeHeard")? == 1 && events(&lab, "NodeSilent")? == 1);
        Ok(())
    })
}

/// The guard of rollouts asks the nodes that are there, though the API still calls all ready.
fn a_rollout_does_not_wait_for_it(lab: &Lab) -> Result<()> {
    let on_n2 = ["-l", "app=web", "--field-selector", "spec.nodeName=n2"];
    lab.kubectl(&[&["delete", "pods"], &on_n2[..]].concat())?;
    lab.eventually("a pod's end is told", || {
        let only = "reason=ConnectionsStopped";
        let told = lab.get(&["events", "--field-selector", only])?;
        let told = told["items"][0]["message"].as_str().unwrap_or_default().to_owned();
        ensure!(told.starts_with("2 of 2 nodes send no new connections here"), "{told:?}");
        Ok(())
    })
}

/// An agent that stands still, is killed or is stopped leaves the kernel forwarding: nobody may notice.
fn agents_are_no_nodes(lab: &Lab) -> Result<()> {
    let knocks = knock(lab)?;
    let agent = lab.pid("n3")?;
    kill(Pid::from_raw(agent), Signal::SIGSTOP)?;
    std::thread::sleep(Duration::from_secs(3));
    kill(Pid::from_raw(agent), Signal::SIGCONT)?;
    kill(Pid::from_raw(agent), Signal::SIGKILL)?;
    lab.eventually("the agent is back", || {
        ensure!(lab.pid("n3")? != agent, "not yet");
        Ok(())
    })?;
    lab.rhumb(&["node", "stop", "n3"])?;
    std::thread::sleep(Duration::from_secs(3));
    lab.rhumb(&["node", "start", "n3"])?;
    all_watch(lab)?;
    for node in ["n1", "n2"] {
        ensure!(figure(lab, node, "missed_nodes")? == 0 && figure(lab, node, "silent_nodes")? == 0);
        ensure!(figure(lab, node, "echo_requests_total")? > 10, "its kernel was not asked");
    }
    ensure!(events(lab, "NodeSilent")? == 0, "somebody was told");
    let lost = end(knocks)?.into_iter().filter(|knock| !knock.answered).count();
    ensure!(lost == 0, "{lost} connections were lost");
    Ok(())
}

#[test]
fn nodes_that_are_told_not_to_watch_do_not() -> Result<()> {
    let lab = Lab::up_flagged(BINARY, &[], &["--nodes", "3", "--node-liveness=off"])?;
    ensure!(figure(&lab, "n1", "sent_messages_total")? == 0);
    let sockets = lab.within("n1", &["ss", "--udp", "--listening", "--numeric"])?;
    ensure!(!sockets.contains(":10253"), "{sockets}");
    Ok(())
}
