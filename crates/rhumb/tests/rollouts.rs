//! Rolling updates, deletions and drains under load: no request is lost, from a pod, from a node and from outside.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use testkit::lab::Lab;
use testkit::load::{Counts, Load};

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

/// nginx ends at once when it is told to, and has no preStop hook: whoever still connects is refused.
const WEB: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 10
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}, annotations: {round: '0'}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: nginx
        image: nginx:stable
        imagePullPolicy: IfNotPresent
        ports: [{containerPort: 80}]
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: inside, labels: {app: inside}}
spec: {nodeName: n1, terminationGracePeriodSeconds: 0, containers: [{name: c, image: 'tools:latest', imagePullPolicy: IfNotPresent}]}
";
/// Each place asks at least so often in all.
const REQUESTS: u64 = 3_400;

/// Loads from everywhere while `change` happens, and until every place has asked often enough.
fn under_load(lab: &Lab, change: impl FnOnce() -> Result<()>) -> Result<Vec<(String, Counts)>> {
    let service: SocketAddr =
        format!("{}:80", lab.value("service/web", "{.spec.clusterIP}")?).parse()?;
    let node = lab.value("node/n2", "{.status.addresses[0].address}")?;
    let node_port: SocketAddr = format!("{node}:30080").parse()?;
    let namespace = |part: &str| PathBuf::from(format!("/run/netns/rhumb-{}-{part}", lab.name()));
    let places = [
        ("a pod", lab.pod_netns("inside")?, service),
        ("a node", namespace("n1"), service),
        ("outside", namespace("client"), node_port),
    ];
    let loads = places
        .map(|(place, netns, to)| Ok((place.to_owned(), Load::start(&netns, to, 2)?)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    change()?;
    lab.eventually("there are enough requests", || {
        let enough = loads.iter().all(|(_, load)| load.answered() >= REQUESTS);
        ensure!(enough, "too few requests");
        Ok(())
    })?;
    loads.into_iter().map(|(place, load)| Ok((place, load.end()?))).collect()
}

fn nothing_is_lost(what: &str, all: &[(String, Counts)]) -> Result<()> {
    let total: u64 = all.iter().map(|(_, counts)| counts.answered).sum();
    ensure!(total >= 10_000, "{what}: only {total} requests");
    let lost: Vec<_> = all.iter().filter(|(_, counts)| !counts.lost.is_empty()).collect();
    ensure!(lost.is_empty(), "{what}: of {total} requests were lost: {lost:?}");
    Ok(())
}

/// Reasons of the events about pods of the Deployment, with their number.
fn told(lab: &Lab, reason: &str) -> Result<usize> {
    let events = lab.kubectl(&[
        "get",
        "events",
        "--field-selector",
        &format!("reason={reason}"),
        "-o",
        "name",
    ])?;
    Ok(events.lines().count())
}

#[test]
fn rolling_updates_and_deletions_lose_nothing() -> Result<()> {
    let lab = Lab::up(BINARY, 3, &["nginx", "tools"])?;
    lab.apply(WEB)?;
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    lab.kubectl(&["wait", "--for=condition=Ready", "pod/inside", "--timeout=60s"])?;

    let rolled = under_load(&lab, || {
        for _ in 0..2 {
            lab.kubectl(&["rollout", "restart", "deployment/web"])?;
            lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
        }
        Ok(())
    })?;
    nothing_is_lost("two rolling updates", &rolled)?;
    lab.eventually("every pod that went says why it could", || {
        let stopped = told(&lab, "ConnectionsStopped")?;
        ensure!(stopped >= 20, "{stopped} do");
        Ok(())
    })?;
    ensure!(
        told(&lab, "ConnectionsNotStopped")? == 0,
        "a pod ended although somebody could connect"
    );
    lab.eventually("the Deployment says what each rollout cost", || {
        let of = ["--field-selector", "reason=RolloutLossless", "-o=jsonpath={.items[*].message}"];
        let told = lab.kubectl(&[&["get", "events"], &of[..]].concat())?;
        // One rollout may overtake the other, and is told of with it.
        let counts = told
            .split("Revision ")
            .filter_map(|words| words.split_once(": ")?.1.split_once(" of "));
        let ended: u32 = counts.filter_map(|(count, _)| count.parse::<u32>().ok()).sum();
        ensure!(ended == 20, "{told}");
        let path = "{.status.conditions[?(@.type==\"rhumb.dev/RolloutLossless\")].reason}";
        ensure!(lab.value("deployment/web", path)? == "Revision3");
        Ok(())
    })?;

    let path =
        "-o=jsonpath={.items[*].status.conditions[?(@.type==\"rhumb.dev/Reachable\")].status}";
    lab.eventually("every node is known to reach every pod", || {
        let reached = lab.kubectl(&["get", "pods", "-l", "app=web", path])?;
        ensure!(reached.split(' ').collect::<Vec<_>>() == ["True"; 10], "{reached}");
        Ok(())
    })?;

    // One pod alone: its successor takes over before it ends.
    lab.kubectl(&["scale", "deployment/web", "--replicas=1"])?;
    lab.ready("app=web", 1)?;
    let replaced = under_load(&lab, || {
        lab.kubectl(&["delete", "pod", "-l", "app=web"])?;
        lab.ready("app=web", 1)
    })?;
    nothing_is_lost("the only pod deleted", &replaced)?;

    lab.kubectl(&["scale", "deployment/web", "--replicas=4"])?;
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    let drained = under_load(&lab, || {
        lab.kubectl(&["drain", "n3", "--ignore-daemonsets", "--force", "--timeout=60s"])?;
        lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
        Ok(())
    });
    nothing_is_lost("a node drained", &drained?)
}

#[test]
fn the_guard_is_off_by_annotation_and_never_holds_a_pod_for_long() -> Result<()> {
    let lab = Lab::up(BINARY, 2, &["nginx"])?;
    lab.apply(
        &WEB.replace("round: '0'", "rhumb.dev/rollout-guard: 'off'")
            .replace("replicas: 10", "replicas: 2"),
    )?;
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    lab.kubectl(&["rollout", "restart", "deployment/web"])?;
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    for reason in ["ConnectionsStopped", "ConnectionsNotStopped"] {
        ensure!(told(&lab, reason)? == 0, "the guard is off, yet there is an event {reason}");
    }
    let conditions =
        lab.kubectl(&["get", "pods", "-o=jsonpath={.items[*].status.conditions[*].type}"])?;
    ensure!(!conditions.contains("rhumb.dev/"), "{conditions}");

    // A node that does not answer is waited for no longer than the budget, and is named.
    lab.kubectl(&["annotate", "deployment/web", "a=b"])?;
    lab.kubectl(&["patch", "deployment/web", "--type=json", "-p", r#"[{"op": "replace", "path": "/spec/template/metadata/annotations", "value": {"rhumb.dev/rollout-guard": "400ms"}}]"#])?;
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    let agent = lab.pid("n2")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent), nix::sys::signal::Signal::SIGSTOP)?;
    let gone = on_n1(&lab).and_then(|pod| lab.kubectl(&["delete", "--wait=false", "pod", &pod]));
    let named = gone.and_then(|_| {
        lab.eventually("the pod ends and says why", || {
            let events = lab.kubectl(&[
                "get",
                "events",
                "--field-selector",
                "reason=ConnectionsNotStopped",
                "-o=jsonpath={.items[*].message}",
            ])?;
            ensure!(events.contains("not confirmed by n2"), "{events}");
            Ok(())
        })
    });
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(agent), nix::sys::signal::Signal::SIGCONT)?;
    named
}

/// A pod of the Deployment on n1 that is not on its way out already.
fn on_n1(lab: &Lab) -> Result<String> {
    let pods = lab.get(&["pods", "-l", "app=web", "--field-selector", "spec.nodeName=n1"])?;
    let mut pods = pods["items"].as_array().into_iter().flatten().map(|pod| &pod["metadata"]);
    let stays = pods.find(|meta| meta["deletionTimestamp"].is_null());
    stays.and_then(|meta| meta["name"].as_str()).map(str::to_owned).context("n1 has no pod")
}
