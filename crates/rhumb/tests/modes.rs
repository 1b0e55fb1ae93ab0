//! Labs whose nodes carry Services in other ways than by nftables alone, and the same answers.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use testkit::lab::Lab;
use testkit::machine::Machine;
use testkit::tools;

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
    explained(&lab, &address)?;
    changed(&lab, &address)
}

/// What the kernel holds is compared with what is planned, and a rule that somebody took away is missed.
fn explained(lab: &Lab, address: &str) -> Result<()> {
    let kubeconfig = lab.kubeconfig();
    let explain = || -> Result<String> {
        let mut command = Command::new(BINARY);
        command.args(["explain", "node/n1", "svc/web:80"]).env("KUBECONFIG", &kubeconfig);
        Ok(String::from_utf8(command.output()?.stdout)?)
    };
    lab.eventually("the rules are as planned", || {
        let said = explain()?;
        ensure!(said.contains(&format!("rules for {address}:80/TCP, as planned")), "{said}");
        Ok(())
    })?;
    let rule = lab.within("n1", &["iptables-nft-save", "-t", "nat"])?;
    let rule = rule.lines().find(|line| line.contains("--to-destination"));
    let rule = rule.context("an endpoint has a rule")?.replacen("-A", "-D", 1).replace('"', "");
    let words: Vec<&str> =
        ["iptables-nft", "-t", "nat"].into_iter().chain(rule.split(' ')).collect();
    // The agent repairs it at once: the loss may have to be made more than once to be seen.
    lab.eventually("the loss is told", || {
        // It is not there between two repairs.
        let _ = lab.within("n1", &words);
        let said = explain()?;
        ensure!(said.contains("which is not what is planned"), "{said}");
        ensure!(said.contains("nat KUBE-SEP-"), "{said}");
        Ok(())
    })
}

/// `rhumb up` on a running cluster changes the mode of its nodes.
fn changed(lab: &Lab, address: &str) -> Result<()> {
    let mode = |lab: &Lab| lab.within("n1", &["curl", "-sf", "http://127.0.0.1:10249/proxyMode"]);
    ensure!(mode(lab)? == "iptables", "the mode is told");
    let again = lab.rhumb(&["up", "--detach"]).expect_err("nothing is to be changed");
    ensure!(format!("{again:#}").contains("is up already"), "{again:#}");
    let other = lab.rhumb(&["up", "--detach", "--pod-cidr", "10.1.0.0/16"]);
    let other = format!("{:#}", other.expect_err("pods have addresses"));
    ensure!(other.contains("was made with --pod-cidr 10.244.0.0/16 and keeps it"), "{other}");
    let pods = lab.value("pods", "{.items[*].metadata.uid}")?;
    lab.rhumb(&["up", "--detach", "--proxy-mode", "nftables", "--masquerade-all"])?;
    lab.eventually("the mode is another", || {
        let mode = mode(lab)?;
        ensure!(mode == "nftables", "{mode}");
        let rules = lab.within("n1", &["iptables-nft-save"])?;
        ensure!(!rules.contains("KUBE-"), "{rules}");
        Ok(())
    })?;
    let told = lab.kubectl(&["get", "--raw", "/api/v1/nodes/n2/proxy/rhumb/v1/settings"])?;
    ensure!(told.contains("\"masquerade_all\":true"), "{told}");
    for node in ["n1", "n2"] {
        lab.within(node, &["curl", "-sf", "-m", "2", &format!("http://{address}/")])?;
    }
    ensure!(lab.value("pods", "{.items[*].metadata.uid}")? == pods, "the pods are the same");
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

/// The test that runs in the virtual machine.
const INNER: &str = "a_lab_in_the_machine";

#[test]
fn services_are_carried_by_ipvs() -> Result<()> {
    let mut machine = Machine::new()?.memory_mb(3072).patience(Duration::from_secs(280));
    for program in ["ip", "nft", "ipvsadm", "curl", "nsenter", "mount", "umount"] {
        machine = machine.program(program)?;
    }
    for module in ["veth", "bridge", "nf_conntrack", "nft_chain_nat", "nft_ct"] {
        machine = machine.module(module);
    }
    let binary = Path::new(BINARY);
    let kubectl = tools::kubectl()?;
    let kubectl_inside = kubectl.to_str().context("a path is text")?;
    machine = machine.executable(binary, BINARY)?.executable(&kubectl, kubectl_inside)?;
    machine.run_test(INNER)?;
    Ok(())
}

#[test]
#[ignore = "runs in the virtual machine"]
fn a_lab_in_the_machine() -> Result<()> {
    let flags = ["--nodes", "2", "--proxy-mode", "ipvs", "--ipvs-scheduler", "sh"];
    let lab = Lab::up_flagged(BINARY, &[], &flags)?;
    // The API server's own Service needs no pod.
    let address = lab.value("svc/kubernetes", "{.spec.clusterIP}")?;
    let url = format!("https://{address}/version");
    for node in ["n1", "n2"] {
        let said = lab.eventually("the API server answers", || {
            lab.within(node, &["curl", "-skf", "-m", "5", &url])
        })?;
        ensure!(said.contains("gitVersion"), "{said}");
        let servers = lab.within(node, &["ipvsadm", "-S", "-n"])?;
        ensure!(servers.contains(&format!("-A -t {address}:443 -s sh")), "{servers}");
        let mode = lab.within(node, &["curl", "-sf", "http://127.0.0.1:10249/proxyMode"])?;
        ensure!(mode == "ipvs", "{mode}");
    }
    lab.apply(SHOP)?;
    let empty = lab.value("svc/empty", "{.spec.clusterIP}")?;
    let refused = format!("curl -s -m 5 http://{empty}/ || echo $?");
    lab.eventually("a Service without endpoints refuses", || {
        let said = lab.within("n1", &["sh", "-c", &refused])?;
        ensure!(said.trim() == "7", "{said}");
        Ok(())
    })
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
    answered_directly(&lab)
}

/// With direct return, an endpoint's node answers the clients of another node's port.
fn answered_directly(lab: &Lab) -> Result<()> {
    lab.rhumb(&["up", "--detach", "--ebpf-dsr"])?;
    let home = lab.value("pods", "{.items[?(@.metadata.labels.app==\"web\")].spec.nodeName}")?;
    let (home, first) = if home.starts_with("n1") { ("n1", "n2") } else { ("n2", "n1") };
    let [home, first] = [home, first].map(|node| {
        let path = "{.status.addresses[?(@.type==\"InternalIP\")].address}";
        lab.value(&format!("node/{node}"), path)
    });
    let (home, first) = (home?, first?);
    let ask = |node: &str| {
        let url = format!("http://{node}:30007/");
        lab.within("client", &["curl", "-sf", "-m", "2", &url])
    };
    lab.eventually("both nodes answer", || ask(&home).and(ask(&first)))?;
    let shown = lab.within("client", &["ip", "neigh", "show", "to", &home])?;
    let mac = shown.split(" lladdr ").nth(1).and_then(|rest| rest.split(' ').next());
    let mac = mac.context("the node has a link address")?;
    let shown = lab.within("client", &["ip", "route", "get", &home])?;
    let link = shown.split(" dev ").nth(1).and_then(|rest| rest.split(' ').next());
    let link = link.context("there is a way to the node")?;
    let rule = format!("ip saddr {first} tcp sport 30007 ether saddr {mac} counter");
    let chain = format!("type filter hook ingress device \"{link}\" priority 0; {rule};");
    let script = format!("table netdev ways {{ chain come {{ {chain} }}; }}");
    lab.within("client", &["nft", &script])?;
    lab.eventually("the endpoint's node answers as the other one", || {
        ask(&first)?;
        let seen = lab.within("client", &["nft", "list", "table", "netdev", "ways"])?;
        ensure!(!seen.contains("counter packets 0 "), "{seen}");
        Ok(())
    })
}
