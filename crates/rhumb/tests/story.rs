//! The documents' story, end to end: Services of every type over real containers, reached from pods, nodes and outside.

use anyhow::{Context as _, Result, ensure};
use testkit::lab::Lab;

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

/// Scenario X1 of the documents, and Services of the other types before the same pods.
const WEB: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web-app}
spec:
  replicas: 3
  selector: {matchLabels: {app: web-app}}
  template:
    metadata: {labels: {app: web-app}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: mycompany/web-app:latest
        ports: [{containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: web-service}
spec: {selector: {app: web-app}, ports: [{protocol: TCP, port: 80, targetPort: 8080}], type: ClusterIP}
---
apiVersion: v1
kind: Service
metadata: {name: web-app-service}
spec: {type: NodePort, selector: {app: web-app}, ports: [{port: 80, targetPort: 8080, nodePort: 30007}]}
---
apiVersion: v1
kind: Service
metadata: {name: frontend-service}
spec: {type: LoadBalancer, selector: {app: web-app}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: my-database}
spec: {type: ExternalName, externalName: db.example.com}
";

/// Scenario X7: stable names behind a headless Service.
const DATABASE: &str = r"
apiVersion: v1
kind: Service
metadata: {name: mongo-headless}
spec: {clusterIP: None, selector: {app: mongo}, ports: [{name: db, port: 27017, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: mongo}
spec:
  serviceName: mongo-headless
  replicas: 3
  selector: {matchLabels: {app: mongo}}
  template:
    metadata: {labels: {app: mongo}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: mongo
        image: mycompany/web-app:latest
        readinessProbe: {httpGet: {path: /healthz, port: 8080}}
        volumeMounts: [{name: mongo-storage, mountPath: /data/db}]
  volumeClaimTemplates:
  - metadata: {name: mongo-storage}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
";

/// Scenario X5: one named port, two numbers.
const TWO_VERSIONS: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: backend-v1, labels: {app.kubernetes.io/name: backend, version: v1}}
spec: {containers: [{name: backend, image: 'my-backend:v1', ports: [{containerPort: 8080, name: backend-port}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: backend-v2, labels: {app.kubernetes.io/name: backend, version: v2}}
spec: {containers: [{name: backend, image: 'my-backend:v2', ports: [{containerPort: 9090, name: backend-port}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: backend-service}
spec:
  selector: {app.kubernetes.io/name: backend}
  ports: [{name: service-port, protocol: TCP, port: 80, targetPort: backend-port}]
";

fn curl(url: &str) -> [&str; 6] {
    ["curl", "-sf", "-m", "3", "--no-keepalive", url]
}

/// How many different answers a URL gives to many new connections from a pod.
fn answers(lab: &Lab, pod: &str, url: &str) -> Result<usize> {
    let all: Result<std::collections::BTreeSet<String>> =
        (0..40).map(|_| lab.from_pod(pod, &curl(url))).collect();
    Ok(all?.len())
}

/// A pod with a label that stays: one that is being deleted may be gone by the next look.
fn first_pod(lab: &Lab, label: &str) -> Result<String> {
    let pods = lab.get(&["pods", "-l", label])?;
    let mut staying = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|pod| pod["metadata"].get("deletionTimestamp").is_none());
    let pod = staying.next().context("there is a pod")?;
    Ok(pod["metadata"]["name"].as_str().context("a pod has a name")?.to_owned())
}

#[test]
fn services_of_every_type_reach_their_pods() -> Result<()> {
    let lab = Lab::up(BINARY, 3, &["web-app", "my-backend-v1", "my-backend-v2"])?;
    lab.apply(WEB)?;
    lab.ready("app=web-app", 3)?;
    let pod = first_pod(&lab, "app=web-app")?;
    cluster_ip(&lab, &pod)?;
    // Scaling down and up again may have replaced it.
    let pod = first_pod(&lab, "app=web-app")?;
    outside(&lab)?;
    names(&lab, &pod)?;
    two_versions(&lab, &pod)?;
    the_api_has_a_service(&lab, &pod)?;
    deleting_removes_everything(&lab, &pod)
}

/// S1, S8: one address, all pods; nobody behind it is said at once; a pod that goes leaves no hole.
fn cluster_ip(lab: &Lab, pod: &str) -> Result<()> {
    let address = lab.value("svc/web-service", "{.spec.clusterIP}")?;
    let url = format!("http://{address}/");
    lab.eventually("the ClusterIP answers", || lab.from_pod(pod, &curl(&url)))?;
    lab.eventually("all three pods answer", || {
        let found = answers(lab, pod, &url)?;
        ensure!(found == 3, "{found} pods answer");
        Ok(())
    })?;
    lab.within("n1", &curl(&url)).context("a node's own process")?;
    let nobody = lab.value("svc/nobody", "{.spec.clusterIP}")?;
    // Exit code 7 is "refused"; 28 would be "timed out".
    let script = format!("curl -s -m 3 http://{nobody}/ || echo $?");
    let refused = lab.from_pod(pod, &["sh", "-c", &script])?;
    ensure!(refused.trim() == "7", "no endpoints means refused, not lost: {refused}");
    lab.kubectl(&["scale", "deployment/web-app", "--replicas=1"])?;
    lab.ready("app=web-app", 1)?;
    let left = first_pod(lab, "app=web-app")?;
    lab.eventually("only the pod that is left answers", || {
        let found = answers(lab, &left, &url)?;
        ensure!(found == 1, "{found} pods answer");
        Ok(())
    })?;
    lab.kubectl(&["scale", "deployment/web-app", "--replicas=3"])?;
    lab.ready("app=web-app", 3)
}

/// S2, S3: every node answers on the node port, the load balancer's address answers, the ClusterIP does not.
fn outside(lab: &Lab) -> Result<()> {
    for node in ["n1", "n2", "n3"] {
        let path = "{.status.addresses[?(@.type==\"InternalIP\")].address}";
        let address = lab.value(&format!("node/{node}"), path)?;
        let url = format!("http://{address}:30007/");
        lab.eventually("the node port answers", || lab.within("client", &curl(&url)))?;
    }
    let address = lab.eventually("the load balancer has an address", || {
        let address = lab.value("svc/frontend-service", "{.status.loadBalancer.ingress[0].ip}")?;
        ensure!(!address.is_empty(), "pending");
        Ok(address)
    })?;
    lab.eventually("the load balancer answers outside", || {
        lab.within("client", &curl(&format!("http://{address}/")))
    })?;
    let inside = lab.value("svc/web-service", "{.spec.clusterIP}")?;
    ensure!(
        lab.within("client", &curl(&format!("http://{inside}/"))).is_err(),
        "a ClusterIP answers outside"
    );
    Ok(())
}

fn dig(lab: &Lab, pod: &str, name: &str, kind: &str) -> Result<String> {
    lab.from_pod(
        pod,
        &[
            "dig",
            "@10.96.0.10",
            "+time=2",
            "+tries=1",
            "+noall",
            "+comments",
            "+answer",
            name,
            kind,
        ],
    )
}

/// S4, S5, S10, N1: names of every kind, and what does not exist told apart from what has no data.
fn names(lab: &Lab, pod: &str) -> Result<()> {
    let address = lab.value("svc/web-service", "{.spec.clusterIP}")?;
    let found = dig(lab, pod, "web-service.default.svc.cluster.local", "A")?;
    ensure!(found.contains(&address), "{found}");
    let missing = dig(lab, pod, "missing.default.svc.cluster.local", "A")?;
    ensure!(missing.contains("status: NXDOMAIN"), "{missing}");
    let empty = dig(lab, pod, "web-service.default.svc.cluster.local", "AAAA")?;
    ensure!(empty.contains("status: NOERROR") && !empty.contains("AAAA\tf"), "{empty}");
    let alias = dig(lab, pod, "my-database.default.svc.cluster.local", "CNAME")?;
    ensure!(alias.contains("db.example.com."), "{alias}");
    let reversed: Vec<&str> = address.rsplit('.').collect();
    let pointer = dig(lab, pod, &format!("{}.in-addr.arpa", reversed.join(".")), "PTR")?;
    ensure!(pointer.contains("web-service.default.svc.cluster.local."), "{pointer}");
    Ok(())
}

/// S6, X5: a named port is resolved for each pod.
fn two_versions(lab: &Lab, pod: &str) -> Result<()> {
    lab.apply(TWO_VERSIONS)?;
    lab.ready("app.kubernetes.io/name=backend", 2)?;
    let address = lab.value("svc/backend-service", "{.spec.clusterIP}")?;
    lab.eventually("both versions answer behind one port", || {
        let found = answers(lab, pod, &format!("http://{address}/"))?;
        ensure!(found == 2, "{found} answers");
        Ok(())
    })
}

/// S11: `kubernetes` is 10.96.0.1, answers over TLS, and is made again when it is deleted.
fn the_api_has_a_service(lab: &Lab, pod: &str) -> Result<()> {
    ensure!(lab.value("svc/kubernetes", "{.spec.clusterIP}")? == "10.96.0.1", "the first address");
    let url = "https://10.96.0.1/version";
    let version = lab.eventually("the API answers a pod", || {
        lab.from_pod(pod, &["curl", "-sk", "-m", "3", url])
    })?;
    ensure!(version.contains("gitVersion"), "{version}");
    lab.kubectl(&["delete", "svc", "kubernetes"])?;
    lab.eventually("it is made again", || {
        ensure!(
            lab.value("svc/kubernetes", "{.spec.clusterIP}")? == "10.96.0.1",
            "another address"
        );
        Ok(())
    })
}

/// S12: a deleted Service leaves no address, slice or name.
fn deleting_removes_everything(lab: &Lab, pod: &str) -> Result<()> {
    let address = lab.value("svc/web-service", "{.spec.clusterIP}")?;
    lab.kubectl(&["delete", "svc", "web-service"])?;
    lab.eventually("slices, name and address are gone", || {
        let slices =
            lab.get(&["endpointslices", "-l", "kubernetes.io/service-name=web-service"])?;
        ensure!(slices["items"].as_array().is_some_and(Vec::is_empty), "{slices}");
        let name = dig(lab, pod, "web-service.default.svc.cluster.local", "A")?;
        ensure!(name.contains("NXDOMAIN"), "{name}");
        ensure!(
            lab.from_pod(pod, &curl(&format!("http://{address}/"))).is_err(),
            "the address answers"
        );
        Ok(())
    })
}

#[test]
fn a_stateful_set_has_stable_names_and_volumes() -> Result<()> {
    let lab = Lab::up(BINARY, 3, &["web-app"])?;
    lab.apply(DATABASE)?;
    lab.ready("app=mongo", 3)?;
    let claims = lab.get(&["pvc"])?;
    let bound = claims["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|claim| claim["status"]["phase"] == "Bound")
        .count();
    ensure!(bound == 3, "{claims}");
    let lookup = |number: usize| {
        dig(
            &lab,
            "mongo-0",
            &format!("mongo-{number}.mongo-headless.default.svc.cluster.local"),
            "A",
        )
    };
    for number in 0..3 {
        let address = lab.value(&format!("pod/mongo-{number}"), "{.status.podIP}")?;
        lab.eventually("the pod has its name", || {
            let found = lookup(number)?;
            ensure!(found.contains(&address), "{found}");
            Ok(())
        })?;
    }
    let all = dig(&lab, "mongo-0", "mongo-headless.default.svc.cluster.local", "A")?;
    ensure!(all.contains("ANSWER: 3"), "{all}");
    let volume = lab.value("pvc/mongo-storage-mongo-1", "{.spec.volumeName}")?;
    lab.kubectl(&["delete", "pod", "mongo-1"])?;
    lab.ready("app=mongo", 3)?;
    ensure!(
        lab.value("pvc/mongo-storage-mongo-1", "{.spec.volumeName}")? == volume,
        "the volume stays"
    );
    let address = lab.value("pod/mongo-1", "{.status.podIP}")?;
    lab.eventually("the name follows the pod", || {
        let found = lookup(1)?;
        ensure!(found.contains(&address), "{found}");
        Ok(())
    })
}

#[test]
fn a_killed_agent_and_server_come_back_and_traffic_goes_on() -> Result<()> {
    let lab = Lab::up(BINARY, 2, &["web-app"])?;
    lab.apply(WEB)?;
    lab.ready("app=web-app", 3)?;
    let pod = first_pod(&lab, "app=web-app")?;
    let address = lab.value("svc/web-service", "{.spec.clusterIP}")?;
    let url = format!("http://{address}/");
    lab.eventually("the ClusterIP answers", || lab.from_pod(&pod, &curl(&url)))?;
    let before = lab.get(&["pods", "-l", "app=web-app"])?;
    for process in ["n1", "n2", "server"] {
        let pid = lab.pid(process)?;
        let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
        ensure!(killed.success(), "{process} was not killed");
        lab.within("n1", &curl(&url)).with_context(|| format!("while {process} is dead"))?;
        lab.eventually("the process is back", || {
            ensure!(lab.pid(process)? != pid, "not yet");
            lab.get(&["nodes"])
        })?;
    }
    let after = lab.get(&["pods", "-l", "app=web-app"])?;
    let starts = |pods: &serde_json::Value| -> Vec<String> {
        let pods = pods["items"].as_array().into_iter().flatten();
        pods.map(|pod| {
            format!(
                "{} {}",
                pod["metadata"]["name"], pod["status"]["containerStatuses"][0]["restartCount"]
            )
        })
        .collect()
    };
    ensure!(starts(&before) == starts(&after), "containers were restarted: {:?}", starts(&after));
    lab.kubectl(&["create", "configmap", "written-after", "--from-literal=a=b"])?;
    lab.kubectl(&["scale", "deployment/web-app", "--replicas=4"])?;
    lab.ready("app=web-app", 4)
}
