//! What Services tell of themselves in a running cluster: events in `kubectl describe svc`, node ports that are taken,
//! repaired addresses; and the proxy's flags.

use std::process::{Child, Command, Stdio};

use anyhow::{Result, ensure};
use testkit::lab::Lab;

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

const OBJECTS: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  nodeName: n1
  containers: [{name: web, image: 'mycompany/web-app:latest'}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: far}}
spec:
  terminationGracePeriodSeconds: 0
  nodeName: n2
  containers: [{name: web, image: 'mycompany/web-app:latest'}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, clusterIP: 10.96.0.80, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30007}]}
---
apiVersion: v1
kind: Service
metadata: {name: typo}
spec: {selector: {app: wbe}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: spread, annotations: {service.kubernetes.io/topology-mode: Auto}}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

/// A process of a node that listens, until it is dropped.
struct Listens(Child);

impl Listens {
    fn on(lab: &Lab, node: &str, port: u16) -> Result<Self> {
        let netns = format!("--net=/run/netns/rhumb-{}-{node}", lab.name());
        let port = port.to_string();
        let listen = ["python3", "-m", "http.server", &port];
        let mut command = Command::new("nsenter");
        command.arg(netns).args(listen).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn()?))
    }
}

impl Drop for Listens {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn services_tell_what_is_wrong_and_proxies_follow_their_flags() -> Result<()> {
    let flags = ["--nodes", "2", "--masquerade-all", "--nodeport-addresses", "localhost"];
    let lab = Lab::up_flagged(BINARY, &["web-app"], &flags)?;
    let listens = Listens::on(&lab, "n1", 30007)?;
    lab.apply(OBJECTS)?;
    lab.ready("app=web", 1)?;
    lab.ready("app=far", 1)?;
    described(&lab, "typo", "selector app=wbe matches no pod")?;
    described(&lab, "typo", "SelectorMatchesNoPods")?;
    described(&lab, "spread", "TopologyAwareHintsDisabled")?;
    described(&lab, "spread", "Insufficient Node information")?;
    taken(&lab, listens)?;
    repaired(&lab)?;
    through_the_server(&lab)?;
    flagged(&lab)
}

/// `services/proxy`, with and without scheme and port.
fn through_the_server(lab: &Lab) -> Result<()> {
    for service in ["web", "web:80", "http:web:80"] {
        let path = format!("/api/v1/namespaces/default/services/{service}/proxy/x");
        lab.eventually("the server passes it on", || {
            let answer = lab.kubectl(&["get", "--raw", &path])?;
            ensure!(answer.contains("app=web-app") && answer.contains("path=/x"), "{answer}");
            Ok(())
        })?;
    }
    Ok(())
}

/// `kubectl describe svc` shows the words among the events.
fn described(lab: &Lab, service: &str, words: &str) -> Result<()> {
    lab.eventually("it is described", || {
        let text = lab.kubectl(&["describe", "service", service])?;
        let events = text.split_once("Events:").map_or("", |(_, events)| events);
        ensure!(events.contains(words), "{words:?} is not in {text}");
        Ok(())
    })
}

fn taken(lab: &Lab, listens: Listens) -> Result<()> {
    described(lab, "web", "NodePortInUse")?;
    described(lab, "web", "on node n1: 30007/TCP is python3 (")?;
    let condition = "{.status.conditions[?(@.type==\"NodePortsFree\")].status}";
    lab.eventually("the condition says so", || {
        ensure!(lab.value("service/web", condition)? == "False", "not yet");
        Ok(())
    })?;
    drop(listens);
    lab.eventually("the condition says that it is over", || {
        ensure!(lab.value("service/web", condition)? == "True", "not yet");
        Ok(())
    })
}

fn repaired(lab: &Lab) -> Result<()> {
    lab.eventually("it has an address", || lab.value("ipaddress/10.96.0.80", "{.metadata.uid}"))?;
    lab.kubectl(&["delete", "ipaddress", "10.96.0.80"])?;
    lab.eventually("the address is there again", || {
        let owner = lab.value("ipaddress/10.96.0.80", "{.spec.parentRef.name}")?;
        ensure!(owner == "web", "it is {owner:?}'s");
        Ok(())
    })
}

fn flagged(lab: &Lab) -> Result<()> {
    let node = lab.value("node/n2", "{.status.addresses[?(@.type==\"InternalIP\")].address}")?;
    lab.eventually("a pod is masqueraded", || {
        let seen = lab.from_pod("far", &["curl", "-sf", "-m", "2", "http://10.96.0.80/"])?;
        // The node's end of the pod's link, or the node's own address, and not the pod's.
        let pod = lab.value("pod/far", "{.status.podIP}")?;
        ensure!(seen.contains("client=") && !seen.contains(&format!("client={pod} ")), "{seen}");
        Ok(())
    })?;
    let inside = ["curl", "-sf", "-m", "2", "http://127.0.0.1:30007/"];
    lab.eventually("a node port answers on the node itself", || lab.within("n2", &inside))?;
    let outside = format!("http://{node}:30007/");
    let outside = lab.within("client", &["curl", "-sf", "-m", "2", &outside]);
    ensure!(outside.is_err(), "and nowhere else: {outside:?}");
    let exposed = lab.rhumb(&["exposed"])?;
    ensure!(!exposed.contains("30007"), "no node port answers from outside: {exposed}");
    let told = lab.rhumb(&["explain", "pod/far", "svc/web:80"])?;
    ensure!(
        told.contains("source becomes the address of node n2"),
        "what the proxy was told is known: {told}"
    );
    Ok(())
}
