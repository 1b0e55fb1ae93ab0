//! Services: what they choose, what they promise, and what is not theirs to choose.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use testkit::lab::Lab;

use super::{BINARY, items, names, text};

const WEB: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web-service}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-headless}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-sticky}
spec: {selector: {app: web}, sessionAffinity: ClientIP, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-front}
spec: {selector: {app: web, tier: front}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: web, image: 'mycompany/web-app:latest', ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: gate, labels: {app: gate}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: mycompany/web-app:latest
    readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Service
metadata: {name: gate}
spec: {selector: {app: gate}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: gate-ready}
spec: {clusterIP: None, selector: {app: gate}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: gate-early}
spec: {clusterIP: None, publishNotReadyAddresses: true, selector: {app: gate}, ports: [{port: 8080}]}
";

/// One pod on n2 behind Services that ask for local endpoints, and one that echoes datagrams.
const LOCAL: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: local, labels: {app: local}}
spec:
  nodeSelector: {kubernetes.io/hostname: n2}
  containers: [{name: web, image: 'mycompany/web-app:latest'}]
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {app: local}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: anywhere}
spec: {type: NodePort, selector: {app: local}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: inside}
spec: {internalTrafficPolicy: Local, selector: {app: local}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: echo, labels: {app: echo}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: echo
    image: tools:latest
    imagePullPolicy: IfNotPresent
    command: [python3, -c]
    args:
    - |
      import socket
      server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
      server.bind(('', 5353))
      while True:
          data, peer = server.recvfrom(2048)
          server.sendto(b'heard ' + data, peer)
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {type: NodePort, selector: {app: echo}, ports: [{port: 53, targetPort: 5353, protocol: UDP, nodePort: 30053}]}
";

/// Made after the Services, on each of two nodes: what they know of Services is complete.
const VISITORS: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: visitor, labels: {app: visitor}}
spec:
  nodeSelector: {kubernetes.io/hostname: n1}
  terminationGracePeriodSeconds: 0
  containers: [{name: tools, image: 'tools:latest', imagePullPolicy: IfNotPresent}]
---
apiVersion: v1
kind: Pod
metadata: {name: neighbour, labels: {app: visitor}}
spec:
  nodeSelector: {kubernetes.io/hostname: n2}
  enableServiceLinks: false
  terminationGracePeriodSeconds: 0
  containers: [{name: tools, image: 'tools:latest', imagePullPolicy: IfNotPresent}]
";

/// Two Services without a selector, before a server outside the cluster.
const OUTSIDE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: by-endpoints}
spec: {ports: [{name: http, port: 80, targetPort: 9000}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: by-endpoints}
subsets: [{addresses: [{ip: ADDRESS}], ports: [{name: http, port: 9000}]}]
---
apiVersion: v1
kind: Service
metadata: {name: by-slice}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: by-slice-1, labels: {kubernetes.io/service-name: by-slice}}
addressType: IPv4
ports: [{name: http, port: 9000, protocol: TCP}]
endpoints: [{addresses: [ADDRESS], conditions: {ready: true}}, {addresses: [192.0.2.1], conditions: {ready: false}}]
";

/// A server outside the cluster, gone with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn services_choose_and_serve_as_they_say() -> Result<()> {
    let lab = Lab::up(BINARY, 3, &["web-app", "tools"])?;
    lab.apply(WEB)?;
    lab.apply(LOCAL)?;
    for service in ["web-service", "local"] {
        lab.value(&format!("svc/{service}"), "{.spec.clusterIP}")?;
    }
    lab.apply(VISITORS)?;
    lab.ready("app=web", 3)?;
    lab.ready("app=visitor", 2)?;
    lab.ready("app=local", 1)?;
    lab.ready("app=echo", 1)?;
    headless(&lab)?;
    affinity(&lab)?;
    labels_are_and(&lab)?;
    only_ready_pods(&lab)?;
    managed_slices(&lab)?;
    variables(&lab)?;
    resolvers(&lab)?;
    datagrams(&lab)?;
    external_local(&lab)?;
    internal_local(&lab)?;
    without_selector(&lab)
}

/// Runs a line of shell in a pod.
fn visit(lab: &Lab, pod: &str, line: &str) -> Result<String> {
    lab.exec(pod, &["sh", "-c", line])
}

/// The pods that answer 30 new connections.
fn hosts(lab: &Lab, pod: &str, name: &str) -> Result<BTreeSet<String>> {
    let line = format!("for i in $(seq 30); do curl -sf -m 3 http://{name}/ || exit 1; done");
    let all = visit(lab, pod, &line)?;
    Ok(all.split(' ').filter_map(|word| word.strip_prefix("host=")).map(str::to_owned).collect())
}

fn answering(lab: &Lab, name: &str, wanted: &BTreeSet<String>) -> Result<()> {
    lab.eventually(&format!("{wanted:?} answer behind {name}"), || {
        let found = hosts(lab, "visitor", name)?;
        ensure!(found == *wanted, "{found:?}");
        Ok(())
    })
}

fn refused(lab: &Lab, pod: &str, name: &str) -> Result<()> {
    // 7 is "refused"; 28 would be "timed out".
    lab.eventually(&format!("{name} refuses"), || {
        let code = visit(lab, pod, &format!("curl -s -m 3 http://{name}/ >/dev/null; echo $?"))?;
        ensure!(code.trim() == "7", "curl ends with {code}");
        Ok(())
    })
}

fn dig(lab: &Lab, name: &str, kind: &str) -> Result<BTreeSet<String>> {
    let found = visit(lab, "visitor", &format!("dig +short +search {name} {kind}"))?;
    Ok(found.lines().map(str::to_owned).collect())
}

fn pod_addresses(lab: &Lab, label: &str) -> Result<BTreeSet<String>> {
    Ok(items(&lab.get(&["pods", "-l", label])?).map(|pod| text(&pod["status"]["podIP"])).collect())
}

/// S5: a headless Service's name leads to all pods of a Deployment.
fn headless(lab: &Lab) -> Result<()> {
    let pods = pod_addresses(lab, "app=web")?;
    lab.eventually("the name leads to the pods", || {
        let found = dig(lab, "web-headless", "A")?;
        ensure!(found == pods, "{found:?}");
        Ok(())
    })?;
    let services = dig(lab, "_http._tcp.web-headless.default.svc.cluster.local", "SRV")?;
    ensure!(services.len() == 3, "{services:?}");
    ensure!(services.iter().all(|one| one.contains(" 8080 ")), "the pods' own port: {services:?}");
    Ok(())
}

/// ClientIP: one pod for each client, whichever it is.
fn affinity(lab: &Lab) -> Result<()> {
    let all: BTreeSet<String> = names(&lab.get(&["pods", "-l", "app=web"])?).into_iter().collect();
    answering(lab, "web-service", &all)?;
    for pod in ["visitor", "neighbour"] {
        let one = lab.eventually("the sticky Service answers", || hosts(lab, pod, "web-sticky"))?;
        ensure!(one.len() == 1, "{pod} is led to {one:?}");
        ensure!(hosts(lab, pod, "web-sticky")? == one, "and stays there");
    }
    Ok(())
}

/// S8: every label of the selector must fit; other labels do not matter.
fn labels_are_and(lab: &Lab) -> Result<()> {
    refused(lab, "visitor", "web-front")?;
    let pods = names(&lab.get(&["pods", "-l", "app=web"])?);
    let mut chosen = BTreeSet::new();
    for pod in pods.iter().take(2) {
        lab.kubectl(&["label", "pod", pod, "tier=front", "extra=label"])?;
        chosen.insert(pod.clone());
        answering(lab, "web-front", &chosen)?;
    }
    let first = pods.first().context("there are pods")?;
    lab.kubectl(&["label", "pod", first, "tier=back", "--overwrite"])?;
    chosen.remove(first);
    answering(lab, "web-front", &chosen)
}

/// S8, S5: a pod serves from when it is ready until it is not; a Service may publish it before.
fn only_ready_pods(lab: &Lab) -> Result<()> {
    let address = lab.eventually("the pod has an address", || {
        let addresses = pod_addresses(lab, "app=gate")?;
        ensure!(addresses.iter().all(|one| !one.is_empty()), "not yet");
        Ok(addresses)
    })?;
    lab.eventually("the early name is there", || {
        let found = dig(lab, "gate-early", "A")?;
        ensure!(found == address, "{found:?}");
        Ok(())
    })?;
    ensure!(dig(lab, "gate-ready", "A")?.is_empty(), "a name leads to a pod that is not ready");
    refused(lab, "visitor", "gate")?;
    lab.exec("gate", &["touch", "/tmp/ready"])?;
    answering(lab, "gate", &BTreeSet::from(["gate".to_owned()]))?;
    lab.eventually("the name is there", || {
        ensure!(dig(lab, "gate-ready", "A")? == address, "not yet");
        Ok(())
    })?;
    lab.exec("gate", &["rm", "/tmp/ready"])?;
    refused(lab, "visitor", "gate")?;
    let slices = lab.get(&["endpointslices", "-l", "kubernetes.io/service-name=gate"])?;
    let slice = &slices["items"][0]["endpoints"][0];
    ensure!(slice["conditions"]["ready"] == false, "it stays in the slice, not ready: {slices}");
    Ok(())
}

/// S9: what a controller manages is put back.
fn managed_slices(lab: &Lab) -> Result<()> {
    let of_web = ["endpointslices", "-l", "kubernetes.io/service-name=web-service"];
    let slices = names(&lab.get(&of_web)?);
    let slice = slices.first().context("there is a slice")?;
    let pods = pod_addresses(lab, "app=web")?;
    for patch in [
        "[{\"op\": \"replace\", \"path\": \"/endpoints\", \"value\": []}]",
        "[{\"op\": \"replace\", \"path\": \"/endpoints/0/addresses/0\", \"value\": \"192.0.2.7\"}]",
        "[{\"op\": \"replace\", \"path\": \"/ports/0/port\", \"value\": 1}]",
    ] {
        lab.kubectl(&["patch", "endpointslice", slice, "--type=json", "-p", patch])?;
        put_back(lab, &of_web, &pods)?;
    }
    lab.kubectl(&["delete", "endpointslice", slice])?;
    put_back(lab, &of_web, &pods)?;
    let patch = "{\"subsets\": null}";
    lab.kubectl(&["patch", "endpoints", "web-service", "--type=merge", "-p", patch])?;
    lab.eventually("the Endpoints are as before", || {
        let found = lab.value("endpoints/web-service", "{.subsets[*].addresses[*].ip}")?;
        ensure!(found.split(' ').map(str::to_owned).collect::<BTreeSet<_>>() == pods, "{found}");
        Ok(())
    })?;
    ensure!(hosts(lab, "visitor", "web-service")?.len() == 3, "all pods answer again");
    Ok(())
}

fn put_back(lab: &Lab, slices: &[&str], pods: &BTreeSet<String>) -> Result<()> {
    lab.eventually("the slice is as before", || {
        let found = lab.get(slices)?;
        let ends = items(&found).flat_map(|one| one["endpoints"].as_array().into_iter().flatten());
        let addresses: BTreeSet<String> = ends.map(|one| text(&one["addresses"][0])).collect();
        ensure!(addresses == *pods && found["items"][0]["ports"][0]["port"] == 8080, "{found}");
        Ok(())
    })
}

/// S10: the variables of Services that were there before the pod, in both forms.
fn variables(lab: &Lab) -> Result<()> {
    let address = lab.value("svc/web-service", "{.spec.clusterIP}")?;
    let found = lab.exec("visitor", &["env"])?;
    for line in [
        format!("WEB_SERVICE_SERVICE_HOST={address}"),
        "WEB_SERVICE_SERVICE_PORT=80".to_owned(),
        "WEB_SERVICE_SERVICE_PORT_HTTP=80".to_owned(),
        format!("WEB_SERVICE_PORT=tcp://{address}:80"),
        format!("WEB_SERVICE_PORT_80_TCP=tcp://{address}:80"),
        "WEB_SERVICE_PORT_80_TCP_PROTO=tcp".to_owned(),
        "WEB_SERVICE_PORT_80_TCP_PORT=80".to_owned(),
        format!("WEB_SERVICE_PORT_80_TCP_ADDR={address}"),
        "ECHO_PORT_53_UDP_PROTO=udp".to_owned(),
        "KUBERNETES_SERVICE_HOST=10.96.0.1".to_owned(),
        "KUBERNETES_SERVICE_PORT_HTTPS=443".to_owned(),
    ] {
        ensure!(found.lines().any(|one| one == line), "{line} is not in\n{found}");
    }
    ensure!(!found.contains("WEB_HEADLESS"), "a headless Service has no variables");
    let few = lab.exec("neighbour", &["env"])?;
    ensure!(
        few.contains("KUBERNETES_SERVICE_HOST=10.96.0.1") && !few.contains("WEB_SERVICE"),
        "without links only the API's are left: {few}"
    );
    Ok(())
}

/// S10: short names through the search path, with the resolver of the container's own C library.
fn resolvers(lab: &Lab) -> Result<()> {
    let conf = lab.exec("visitor", &["cat", "/etc/resolv.conf"])?;
    for line in [
        "nameserver 10.96.0.10",
        "search default.svc.cluster.local svc.cluster.local cluster.local",
        "options ndots:5",
    ] {
        ensure!(conf.lines().any(|one| one.trim() == line), "{conf}");
    }
    let address = lab.value("svc/web-service", "{.spec.clusterIP}")?;
    for name in [
        "web-service",
        "web-service.default",
        "web-service.default.svc",
        "web-service.default.svc.cluster.local",
    ] {
        let line = format!("python3 -c 'import socket; print(socket.gethostbyname(\"{name}\"))'");
        let found = visit(lab, "visitor", &line)?;
        ensure!(found.trim() == address, "{name} is {found}");
    }
    let line = "python3 -c 'import socket; print(socket.gethostbyaddr(\"ADDRESS\")[0])'";
    let found = visit(lab, "visitor", &line.replace("ADDRESS", &address))?;
    ensure!(found.trim() == "web-service.default.svc.cluster.local", "{address} is {found}");
    Ok(())
}

/// A Service of datagrams, inside and on a node's port.
fn datagrams(lab: &Lab) -> Result<()> {
    let ask = "import socket,sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(2)
s.sendto(b'ping', (sys.argv[1], int(sys.argv[2])))
print(s.recv(100).decode())";
    let inside = lab.eventually("a datagram comes back", || {
        lab.exec("visitor", &["python3", "-c", ask, "echo", "53"])
    })?;
    ensure!(inside.trim() == "heard ping", "{inside}");
    let node = node_address(lab, "n3")?;
    let outside = lab.eventually("a datagram comes back outside", || {
        lab.within("client", &["python3", "-c", ask, &node, "30053"])
    })?;
    ensure!(outside.trim() == "heard ping", "{outside}");
    Ok(())
}

fn node_address(lab: &Lab, node: &str) -> Result<String> {
    let path = "{.status.addresses[?(@.type==\"InternalIP\")].address}";
    lab.value(&format!("node/{node}"), path)
}

/// The client host's own address.
fn client_address(lab: &Lab) -> Result<String> {
    let line = lab.within("client", &["ip", "-4", "-o", "addr", "show", "dev", "eth0"])?;
    let word = line.split_whitespace().find(|word| word.contains('/'));
    Ok(word.and_then(|word| word.split('/').next()).context("it has an address")?.to_owned())
}

/// externalTrafficPolicy Local keeps the client's address and stays on nodes with a pod; Cluster does neither.
fn external_local(lab: &Lab) -> Result<()> {
    let client = client_address(lab)?;
    let port = lab.value("svc/local", "{.spec.ports[0].nodePort}")?;
    let health = lab.value("svc/local", "{.spec.healthCheckNodePort}")?;
    let get = |url: &str| lab.within("client", &["curl", "-sf", "-m", "2", url]);
    let [first, second] = [node_address(lab, "n1")?, node_address(lab, "n2")?];
    let answer =
        lab.eventually("the pod's node answers", || get(&format!("http://{second}:{port}/")))?;
    ensure!(answer.contains(&format!("client={client} ")), "the source is kept: {answer}");
    ensure!(get(&format!("http://{first}:{port}/")).is_err(), "a node without a pod answers");
    let status = |node: &str| {
        let url = format!("http://{node}:{health}/healthz");
        lab.within(
            "client",
            &["curl", "-s", "-m", "2", "-o", "/dev/null", "-w", "%{http_code}", &url],
        )
    };
    ensure!(status(&second)? == "200" && status(&first)? == "503", "load balancers are told");
    let external = lab.eventually("the load balancer has an address", || {
        let found = lab.value("svc/local", "{.status.loadBalancer.ingress[0].ip}")?;
        ensure!(!found.is_empty(), "pending");
        Ok(found)
    })?;
    let answer =
        lab.eventually("the load balancer answers", || get(&format!("http://{external}/")))?;
    ensure!(answer.contains(&format!("client={client} ")), "the source is kept: {answer}");
    let port = lab.value("svc/anywhere", "{.spec.ports[0].nodePort}")?;
    let answer = get(&format!("http://{first}:{port}/"))?;
    ensure!(!answer.contains(&format!("client={client} ")), "another node's way back: {answer}");
    Ok(())
}

/// internalTrafficPolicy Local: a pod reaches only the endpoints of its own node.
fn internal_local(lab: &Lab) -> Result<()> {
    let near = lab.eventually("the neighbour is answered", || hosts(lab, "neighbour", "inside"))?;
    ensure!(near == BTreeSet::from(["local".to_owned()]), "{near:?}");
    let far = visit(lab, "visitor", "curl -s -m 1 http://inside/ >/dev/null; echo $?")?;
    ensure!(far.trim() != "0", "another node's pod was reached");
    Ok(())
}

/// S7: without a selector, endpoints are the user's: here a host outside the cluster.
fn without_selector(lab: &Lab) -> Result<()> {
    let address = client_address(lab)?;
    let serve = "import http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'host=outside \\n')
http.server.HTTPServer(('', 9000), Answer).serve_forever()";
    let netns = format!("--net=/run/netns/rhumb-{}-client", lab.name());
    let _server = Server(
        Command::new("nsenter")
            .args([&netns, "python3", "-c", serve])
            .stderr(Stdio::null())
            .spawn()?,
    );
    lab.apply(&OUTSIDE.replace("ADDRESS", &address))?;
    let outside = BTreeSet::from(["outside".to_owned()]);
    answering(lab, "by-endpoints", &outside)?;
    answering(lab, "by-slice", &outside)?;
    let mirrored = lab.get(&["endpointslices", "-l", "kubernetes.io/service-name=by-endpoints"])?;
    let manager =
        &mirrored["items"][0]["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"];
    ensure!(manager == "endpointslicemirroring-controller.k8s.io", "{mirrored}");
    lab.kubectl(&["delete", "endpoints", "by-endpoints"])?;
    refused(lab, "visitor", "by-endpoints")?;
    lab.kubectl(&["delete", "endpointslice", "by-slice-1"])?;
    refused(lab, "visitor", "by-slice")
}
