//! `rhumb explain` on a running cluster: a Service is broken in five ways, each is told, and the verdict is what curl sees.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testkit::lab::Lab;

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

/// A Deployment that stays as it is, and one Service for each way to break one.
const SERVICES: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      nodeName: n1
      containers:
      - {name: web, image: 'mycompany/web-app:latest', ports: [{containerPort: 8080, name: http}]}
---
apiVersion: v1
kind: Pod
metadata: {name: ill, labels: {app: ill}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: mycompany/web-app:latest
    readinessProbe: {httpGet: {path: /, port: 9}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: client}}
spec:
  terminationGracePeriodSeconds: 0
  nodeName: n2
  containers: [{name: web, image: 'mycompany/web-app:latest'}]
---
apiVersion: v1
kind: Pod
metadata: {name: edge, labels: {app: edge}}
spec:
  terminationGracePeriodSeconds: 0
  nodeName: n2
  containers: [{name: web, image: 'mycompany/web-app:latest', ports: [{containerPort: 8080, hostPort: 8088}]}]
---
apiVersion: v1
kind: Service
metadata: {name: well}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: http, nodePort: 30007}]}
---
apiVersion: v1
kind: Service
metadata: {name: selector}
spec: {selector: {app: wbe}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: port-name}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: htp}]}
---
apiVersion: v1
kind: Service
metadata: {name: not-ready}
spec: {selector: {app: ill}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: deaf}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8081}]}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {selector: {app: web}, internalTrafficPolicy: Local, ports: [{port: 80, targetPort: 8080}]}
";

/// What each Service is told to be, and what curl ends with: 0 answered, 7 refused, 28 timed out.
const TOLD: [(&str, &str, &str, i64); 6] = [
    ("well", "answer", "pod default/web-", 0),
    ("selector", "refused", "selector app=wbe matches no pod", 7),
    ("port-name", "refused", "port name htp is not on", 7),
    ("not-ready", "refused", "it is not ready", 7),
    ("deaf", "refused", "does not listen there; it listens on 8080", 7),
    ("local", "silence", "only endpoints on node n2, and there is none", 28),
];

/// Runs `rhumb explain` on the lab: its exit code and what it says.
fn explain(lab: &Lab, args: &[&str]) -> Result<(i32, String)> {
    let mut command = Command::new(BINARY);
    command.arg("explain").args(args).env("KUBECONFIG", lab.kubeconfig());
    let output = command.output().context("rhumb does not start")?;
    let said = String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?;
    Ok((output.status.code().context("rhumb ended by a signal")?, said))
}

#[test]
fn what_is_explained_is_what_curl_sees() -> Result<()> {
    let lab = Lab::up(BINARY, 2, &["web-app"])?;
    lab.apply(SERVICES)?;
    lab.ready("app=web", 1)?;
    lab.ready("app=client", 1)?;
    lab.eventually("the pod that is not ready has its address", || {
        let address = lab.value("pod/ill", "{.status.podIP}")?;
        ensure!(!address.is_empty(), "none yet");
        Ok(())
    })?;
    for (service, sees, words, code) in TOLD {
        lab.eventually(&format!("Service {service} is explained"), || {
            told(&lab, service, sees, words)?;
            let address = lab.value(&format!("svc/{service}"), "{.spec.clusterIP}")?;
            let script = format!("curl -s -o /dev/null -m 2 http://{address}/ || echo $?");
            let ended = lab.from_pod("far", &["sh", "-c", &script])?;
            let ended = ended.trim().parse::<i64>().unwrap_or(0);
            ensure!(ended == code, "curl ended with {ended}, not {code}, at {service}");
            Ok(())
        })?;
    }
    outside(&lab)?;
    tampered(&lab)
}

fn told(lab: &Lab, service: &str, sees: &str, words: &str) -> Result<()> {
    let target = format!("svc/{service}:80");
    let (code, said) = explain(lab, &["pod/far", &target])?;
    ensure!(said.contains(words), "{words:?} is not told:\n{said}");
    ensure!(code == i32::from(sees != "answer"), "exit code {code}:\n{said}");
    let (_, json) = explain(lab, &["pod/far", &target, "-o", "json"])?;
    let json: Value = serde_json::from_str(&json)?;
    ensure!(json["clientSees"] == sees, "{json:#}");
    let steps = json["steps"].as_array().context("steps are a list")?;
    let kernel = steps.iter().find(|step| step["step"] == "kernel").context("a kernel is asked")?;
    ensure!(kernel["agrees"] == true, "the kernel differs: {kernel:#}");
    Ok(())
}

/// From outside: the node port answers, the ClusterIP does not, and both are told; so is what is exposed.
fn outside(lab: &Lab) -> Result<()> {
    let node = "{.status.addresses[?(@.type==\"InternalIP\")].address}";
    let address = lab.value("node/n2", node)?;
    let url = format!("http://{address}:30007/");
    lab.eventually("the node port answers", || {
        lab.within("client", &["curl", "-sf", "-m", "2", &url])
    })?;
    let (code, said) = explain(lab, &["--from", "outside", "node/n2:30007"])?;
    ensure!(code == 0 && said.contains("node port 30007 of Service default/well"), "{said}");
    let url = format!("http://{address}:8088/");
    lab.eventually("the host port answers", || {
        lab.within("client", &["curl", "-sf", "-m", "2", &url])?;
        let (code, said) = explain(lab, &["--from", "outside", "node/n2:8088"])?;
        ensure!(code == 0 && said.contains("host port 8088 of pod default/edge"), "{said}");
        ensure!(said.contains("pod default/edge listens"), "{said}");
        Ok(())
    })?;
    let open = lab.rhumb(&["exposed"])?;
    ensure!(open.contains("HostPort") && open.contains("pod default/edge:8080"), "{open}");
    let inside = lab.value("svc/well", "{.spec.clusterIP}")?;
    let (code, said) = explain(lab, &["outside", &format!("{inside}:80")])?;
    ensure!(code == 1 && said.contains("nobody routes it"), "{said}");
    let open = lab.rhumb(&["exposed", "-o", "json"])?;
    let open: Value = serde_json::from_str(&open)?;
    let addresses = open.as_array().context("a list")?.iter().filter(|one| one["port"] == 30007);
    ensure!(addresses.count() == 2, "one for each node: {open:#}");
    Ok(())
}

/// An element that somebody took from the kernel is missed, until the agent has put it back.
fn tampered(lab: &Lab) -> Result<()> {
    let address = lab.value("svc/well", "{.spec.clusterIP}")?;
    let element = format!("{{ {address} . tcp . 80 }}");
    let remove = ["nft", "delete", "element", "ip", "rhumb_proxy", "services", &element];
    lab.eventually("the loss is told", || {
        lab.within("n2", &remove)?;
        let (code, said) = explain(lab, &["pod/far", "svc/well:80"])?;
        ensure!(code == 1 && said.contains("services lacks"), "{said}");
        Ok(())
    })?;
    lab.eventually("the agent has repaired it", || {
        let (code, said) = explain(lab, &["pod/far", "svc/well:80"])?;
        ensure!(code == 0, "{said}");
        Ok(())
    })
}
