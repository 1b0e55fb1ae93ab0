//! A node that the others cannot reach, and that is reached again.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use testkit::lab::Lab;

use super::{BINARY, text, told};

/// A pod on each node; the patient one waits long for its node, the hasty one two seconds.
const PODS: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      containers: [{name: web, image: 'mycompany/web-app:latest'}]
---
apiVersion: v1
kind: Pod
metadata: {name: patient, labels: {app: patient}}
spec: {nodeName: n2, containers: [{name: web, image: 'mycompany/web-app:latest'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: patient}
spec: {selector: {app: patient}, ports: [{port: 80, targetPort: 8080}]}
";

fn condition(lab: &Lab, node: &str) -> Result<String> {
    lab.value(&format!("node/{node}"), "{.status.conditions[?(@.type==\"Ready\")].status}")
}

/// Pods with a label, by node, and whether they are being deleted.
fn placed(lab: &Lab, label: &str) -> Result<BTreeSet<(String, bool)>> {
    let pods = lab.get(&["pods", "-l", label])?;
    let one = |pod: &serde_json::Value| {
        (text(&pod["spec"]["nodeName"]), pod["metadata"].get("deletionTimestamp").is_some())
    };
    Ok(pods["items"].as_array().into_iter().flatten().map(one).collect())
}

/// The ready addresses of a Service.
fn ready(lab: &Lab, service: &str) -> Result<usize> {
    let path = "{.items[*].endpoints[?(@.conditions.ready==true)].addresses[0]}";
    let label = format!("kubernetes.io/service-name={service}");
    let output =
        lab.kubectl(&["get", "endpointslices", "-l", &label, "-o", &format!("jsonpath={path}")])?;
    Ok(output.split_whitespace().count())
}

#[test]
fn a_node_that_is_cut_off_is_left_and_taken_back() -> Result<()> {
    let lab = Lab::up(BINARY, 2, &["web-app"])?;
    lab.apply(PODS)?;
    lab.ready("app=web", 2)?;
    lab.ready("app=patient", 1)?;
    ensure!(placed(&lab, "app=web")?.len() == 2, "one on each node");
    still(&lab)?;
    lab.rhumb(&["node", "cut", "n2"])?;
    lost(&lab)?;
    left(&lab)?;
    lab.rhumb(&["node", "mend", "n2"])?;
    back(&lab)
}

/// A node that has nothing new to say writes its lease alone.
fn still(lab: &Lab) -> Result<()> {
    let lease = || {
        lab.kubectl(&[
            "get",
            "lease",
            "-n",
            "kube-node-lease",
            "n1",
            "-o",
            "jsonpath={.spec.renewTime}",
        ])
    };
    let renewed = lease()?;
    let revision = lab.value("node/n1", "{.metadata.resourceVersion}")?;
    lab.eventually("the lease is renewed", || {
        ensure!(lease()? != renewed, "not yet");
        Ok(())
    })?;
    let now = lab.value("node/n1", "{.metadata.resourceVersion}")?;
    // The first look after the images came may have had news of them.
    let renewed = lease()?;
    lab.eventually("the lease is renewed again", || {
        ensure!(lease()? != renewed, "not yet");
        Ok(())
    })?;
    let later = lab.value("node/n1", "{.metadata.resourceVersion}")?;
    ensure!(now == later, "the node was written: {revision}, {now}, {later}");
    Ok(())
}

/// Silence is noticed, and said as upstream says it.
fn lost(lab: &Lab) -> Result<()> {
    lab.eventually("the node is missed", || {
        let found = condition(lab, "n2")?;
        ensure!(found == "Unknown", "{found}");
        Ok(())
    })?;
    let row = lab.kubectl(&["get", "node", "n2", "--no-headers"])?;
    ensure!(row.split_whitespace().nth(1) == Some("NotReady"), "{row}");
    let node = lab.get(&["node", "n2"])?;
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    for condition in conditions.filter(|one| one["type"] != "NetworkUnavailable") {
        ensure!(condition["reason"] == "NodeStatusUnknown", "{condition}");
        ensure!(condition["message"] == "Kubelet stopped posting node status.", "{condition}");
    }
    lab.eventually("the node is tainted", || {
        let taints = lab.value("node/n2", "{.spec.taints[*].effect} {.spec.taints[*].key}")?;
        let key = "node.kubernetes.io/unreachable";
        ensure!(taints == format!("NoSchedule NoExecute {key} {key}"), "{taints}");
        Ok(())
    })?;
    told(lab, "n2", "Normal", "NodeNotReady", "Node n2 status is now: NodeNotReady")?;
    told(lab, "patient", "Warning", "NodeNotReady", "Node is not ready")
}

/// Pods that do not wait are deleted, others stay but are no endpoints; new ones go elsewhere.
fn left(lab: &Lab) -> Result<()> {
    lab.eventually("the pod that does not wait is replaced on the other node", || {
        let found = placed(lab, "app=web")?;
        let wanted = BTreeSet::from([("n1".to_owned(), false), ("n2".to_owned(), true)]);
        ensure!(found == wanted, "{found:?}");
        ensure!(ready(lab, "web")? == 2, "both on the other node");
        Ok(())
    })?;
    let pods = lab.kubectl(&["get", "pods", "-l", "app=web", "--no-headers"])?;
    ensure!(pods.lines().any(|line| line.contains("Terminating")), "{pods}");
    let gone = lab.get(&["pods", "-l", "app=web"])?;
    let mut leaving = gone["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|pod| pod["spec"]["nodeName"] == "n2");
    let leaving = text(
        &leaving.next().map_or(serde_json::Value::Null, |pod| pod["metadata"]["name"].clone()),
    );
    let marked = format!("Marking for deletion Pod default/{leaving}");
    told(lab, &leaving, "Normal", "TaintManagerEviction", &marked)?;
    ensure!(placed(lab, "app=patient")? == BTreeSet::from([("n2".to_owned(), false)]));
    let row = lab.kubectl(&["get", "pod", "patient", "--no-headers"])?;
    ensure!(row.contains("Running"), "as far as anybody knows: {row}");
    ensure!(ready(lab, "patient")? == 0, "a pod on a silent node is no endpoint");
    Ok(())
}

/// The node says that it lives, ends what was deleted meanwhile, and keeps what was not.
fn back(lab: &Lab) -> Result<()> {
    lab.eventually("the node is ready again", || {
        let found = condition(lab, "n2")?;
        ensure!(found == "True", "{found}");
        let taints = lab.value("node/n2", "{.spec.taints}")?;
        ensure!(taints.is_empty(), "{taints}");
        Ok(())
    })?;
    lab.eventually("the deleted pod is gone and the other is an endpoint again", || {
        let found = placed(lab, "app=web")?;
        ensure!(found == BTreeSet::from([("n1".to_owned(), false)]), "{found:?}");
        ensure!(ready(lab, "patient")? == 1);
        Ok(())
    })?;
    let restarts = lab.value("pod/patient", "{.status.containerStatuses[0].restartCount}")?;
    ensure!(restarts == "0", "it ran on: {restarts}");
    lab.kubectl(&["delete", "pods", "-l", "app=web", "--now"])?;
    lab.ready("app=web", 2)?;
    lab.eventually("pods go there again", || {
        lab.kubectl(&["scale", "deployment/web", "--replicas=4"])?;
        let nodes: BTreeSet<String> =
            placed(lab, "app=web")?.into_iter().map(|(node, _)| node).collect();
        ensure!(nodes.contains("n2"), "{nodes:?}");
        Ok(())
    })
}
