//! Labs whose nodes carry Services in other ways than by nftables alone, and the same answers.

use anyhow::{Context as _, Result, ensure};
use testkit::lab::Lab;

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

const SHOP: &str = r"
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
      containers:
      - {name: web, image: 'mycompany/web-app:latest', ports: [{containerPort: 8080, name: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: http, nodePort: 30007}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
";

#[test]
fn services_are_carried_by_iptables() -> Result<()> {
    let flags = ["--nodes", "2", "--proxy-mode", "iptables"];
    let lab = Lab::up_flagged(BINARY, &["web-app"], &flags)?;
    lab.apply(SHOP)?;
    lab.ready("app=web", 2)?;
    let address = lab.value("svc/web", "{.spec.clusterIP}")?;
    let node = "{.status.addresses[?(@.type==\"InternalIP\")].address}";
    let node = lab.value("node/n2", node)?;
    for (from, url) in [
        ("n1", format!("http://{address}/")),
        ("n2", format!("http://{address}/")),
        ("client", format!("http://{node}:30007/")),
    ] {
        lab.eventually(&format!("{url} answers {from}"), || {
            lab.within(from, &["curl", "-sf", "-m", "2", &url])
        })?;
    }
    let empty = lab.value("svc/empty", "{.spec.clusterIP}")?;
    let refused = format!("curl -s -m 2 http://{empty}/ || echo $?");
    ensure!(lab.within("n1", &["sh", "-c", &refused])?.trim() == "7", "it is refused");
    let rules = lab.within("n1", &["iptables-nft-save", "-t", "nat"])?;
    ensure!(rules.contains("\"default/web cluster IP\""), "{rules}");
    ensure!(rules.contains("-j KUBE-SEP-") && rules.contains("-m statistic"), "{rules}");
    let mode = lab.within("n1", &["curl", "-sf", "http://127.0.0.1:10249/proxyMode"])?;
    ensure!(mode == "iptables", "{mode}");
    Ok(())
}

/// A pod to ask from.
const INSIDE: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: inside, labels: {app: inside}}
spec:
  terminationGracePeriodSeconds: 0
  nodeName: n1
  containers: [{name: c, image: 'tools:latest', imagePullPolicy: IfNotPresent}]
";

/// A metric of the proxy on n1.
fn metric(lab: &Lab, name: &str) -> Result<u64> {
    let text = lab.within("n1", &["curl", "-sf", "http://127.0.0.1:10249/metrics"])?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.with_context(|| format!("{name} is not in {text}"))?.trim().parse()?)
}

#[test]
fn services_are_carried_by_ebpf() -> Result<()> {
    let flags = ["--nodes", "2", "--proxy-mode", "ebpf"];
    let lab = Lab::up_flagged(BINARY, &["web-app", "tools"], &flags)?;
    lab.apply(SHOP)?;
    lab.apply(INSIDE)?;
    lab.ready("app=web", 2)?;
    lab.ready("app=inside", 1)?;
    let mode = lab.within("n1", &["curl", "-sf", "http://127.0.0.1:10249/proxyMode"])?;
    ensure!(mode == "ebpf", "{mode}");
    let address = lab.value("svc/web", "{.spec.clusterIP}")?;
    let url = format!("http://{address}/");
    // A container's process, and an exec's: both are in the pod's control group.
    lab.eventually("the pod is answered", || {
        lab.exec("inside", &["curl", "-sf", "-m", "2", &url])
    })?;
    let led = "kubeproxy_ebpf_connections_total{ip_family=\"IPv4\"} ";
    lab.eventually("the connect was led at its socket", || {
        lab.exec("inside", &["curl", "-sf", "-m", "2", &url])?;
        ensure!(metric(&lab, led)? > 0, "none was");
        Ok(())
    })?;
    let empty = lab.value("svc/empty", "{.spec.clusterIP}")?;
    let refused = format!("curl -s -m 2 http://{empty}/ || echo $?");
    ensure!(lab.exec("inside", &["sh", "-c", &refused])?.trim() == "7", "it is refused");
    let node = lab.value("node/n2", "{.status.addresses[?(@.type==\"InternalIP\")].address}")?;
    let outside = format!("http://{node}:30007/");
    lab.eventually("a node port answers", || {
        lab.within("client", &["curl", "-sf", "-m", "2", &outside])
    })?;
    Ok(())
}
