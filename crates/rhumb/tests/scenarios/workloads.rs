//! Pods and what makes them: controllers, the scheduler, the kubelet, each doing its step of the documents' workflow.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testkit::lab::Lab;

use super::{BINARY, items, names, reasons, text};

/// A Deployment of `VERSION` v1 behind a Service.
const WEB: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers:
      - name: web
        image: mycompany/web-app:latest
        env: [{name: VERSION, value: v1}]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
";

/// Each member is ready when the test says so.
const ORDERED: &str = r"
apiVersion: v1
kind: Service
metadata: {name: ordered}
spec: {clusterIP: None, selector: {app: ordered}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: ordered}
spec:
  serviceName: ordered
  replicas: 3
  selector: {matchLabels: {app: ordered}}
  template:
    metadata: {labels: {app: ordered}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: tools:latest
        imagePullPolicy: IfNotPresent
        readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1}
";

const JOBS: &str = r"
apiVersion: batch/v1
kind: Job
metadata: {name: counted}
spec:
  completions: 4
  parallelism: 2
  completionMode: Indexed
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: main, image: 'tools:latest', imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo index $JOB_COMPLETION_INDEX']}
---
apiVersion: batch/v1
kind: Job
metadata: {name: hopeless}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: 'tools:latest', imagePullPolicy: IfNotPresent, command: ['false']}]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: 'tools:latest', imagePullPolicy: IfNotPresent}]
";

const PROBED: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: probed, labels: {app: probed}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: tools:latest
    imagePullPolicy: IfNotPresent
    resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 500m, memory: 64Mi}}
    livenessProbe: {exec: {command: [sh, -c, '! test -e /tmp/dead']}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: greedy, labels: {app: greedy}}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: tools:latest
    imagePullPolicy: IfNotPresent
    resources: {limits: {memory: 32Mi}}
    command: [python3, -c, 'print(len(bytearray(200 << 20)))']
";

#[test]
fn workloads_do_as_they_say() -> Result<()> {
    let lab = Lab::up(BINARY, 3, &["web-app", "tools"])?;
    lab.apply(WEB)?;
    lab.apply(ORDERED)?;
    lab.apply(JOBS)?;
    lab.apply(PROBED)?;
    workflow(&lab)?;
    rollout(&lab)?;
    ordered(&lab)?;
    jobs(&lab)?;
    daemons(&lab)?;
    limits(&lab)?;
    constraints(&lab)
}

/// C7: the steps of a pod's creation, in their order, and the spread that was asked for.
fn workflow(lab: &Lab) -> Result<()> {
    lab.ready("app=web", 3)?;
    let pods = lab.get(&["pods", "-l", "app=web"])?;
    let nodes: BTreeSet<String> = items(&pods).map(|pod| text(&pod["spec"]["nodeName"])).collect();
    ensure!(nodes.len() == 3, "one on each node: {nodes:?}");
    for pod in names(&pods) {
        let steps = ["Scheduled", "Pulled", "Created", "Started"];
        lab.eventually("all steps are told", || {
            let told = reasons(lab, &pod)?;
            let order: Vec<&str> = told.iter().map(|(reason, _)| reason.as_str()).collect();
            let order: Vec<&str> =
                order.into_iter().filter(|reason| steps.contains(reason)).collect();
            ensure!(order == steps, "{told:?}");
            ensure!(
                told.iter().any(|(_, message)| {
                    message.starts_with(&format!("Successfully assigned default/{pod} to n"))
                }),
                "{told:?}"
            );
            Ok(())
        })?;
    }
    let sets = names(&lab.get(&["replicasets", "-l", "app=web"])?);
    let set = sets.first().context("the Deployment made a ReplicaSet")?;
    let told = reasons(lab, "web")?;
    let scaled = format!("Scaled up replica set {set} from 0 to 3");
    ensure!(
        told.iter().any(|(reason, said)| reason == "ScalingReplicaSet" && *said == scaled),
        "{told:?}"
    );
    let made = reasons(lab, set)?;
    ensure!(
        made.iter().filter(|(reason, _)| reason == "SuccessfulCreate").count() == 3,
        "{made:?}"
    );
    Ok(())
}

/// The versions that answer 20 new connections of a node.
fn versions(lab: &Lab) -> Result<BTreeSet<String>> {
    let address = lab.value("svc/web", "{.spec.clusterIP}")?;
    let each = format!("curl -sf -m 3 http://{address}/ || exit 1");
    let all = lab.within("n1", &["sh", "-c", &format!("for i in $(seq 20); do {each}; done")])?;
    let words = all.split(' ').filter_map(|word| word.strip_prefix("version="));
    Ok(words.map(str::to_owned).collect())
}

/// C3: a rollout replaces all pods while the Service answers; undoing brings the version before back.
fn rollout(lab: &Lab) -> Result<()> {
    let version = |wanted: &str| {
        lab.eventually(&format!("{wanted} answers alone"), || {
            let found = versions(lab)?;
            ensure!(found == BTreeSet::from([wanted.to_owned()]), "{found:?}");
            Ok(())
        })
    };
    version("v1")?;
    lab.kubectl(&["set", "env", "deployment/web", "VERSION=v2"])?;
    let served = lab.eventually("the rollout is over", || {
        let served = versions(lab);
        let status = lab.kubectl(&["rollout", "status", "deployment/web", "--watch=false"])?;
        let is_over = served.is_err() || status.contains("successfully rolled out");
        ensure!(is_over, "{status}");
        Ok(served)
    })?;
    served.context("during the rollout")?;
    version("v2")?;
    let history = lab.kubectl(&["rollout", "history", "deployment/web"])?;
    let revisions: Vec<&str> = history
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| word.chars().all(|letter| letter.is_ascii_digit()))
        .collect();
    ensure!(revisions == ["1", "2"], "{history}");
    lab.kubectl(&["rollout", "undo", "deployment/web"])?;
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    version("v1")?;
    let sets = lab.get(&["replicasets", "-l", "app=web"])?;
    let sizes: BTreeMap<String, &Value> = items(&sets)
        .map(|set| {
            let revision = &set["metadata"]["annotations"]["deployment.kubernetes.io/revision"];
            (text(revision), &set["spec"]["replicas"])
        })
        .collect();
    let wanted = [("2".to_owned(), Value::from(0)), ("3".to_owned(), Value::from(3))];
    ensure!(sizes.into_iter().map(|(one, size)| (one, size.clone())).eq(wanted), "{sets}");
    Ok(())
}

/// C3: members start one after the other, each when the one before is ready, and end from the last.
fn ordered(lab: &Lab) -> Result<()> {
    for number in 0..3 {
        let pod = format!("ordered-{number}");
        lab.eventually(&format!("{pod} runs"), || {
            ensure!(lab.value(&format!("pod/{pod}"), "{.status.phase}")? == "Running", "not yet");
            Ok(())
        })?;
        let all = names(&lab.get(&["pods", "-l", "app=ordered"])?);
        ensure!(all.len() == number + 1, "the next waits until {pod} is ready: {all:?}");
        lab.exec(&pod, &["touch", "/tmp/ready"])?;
    }
    lab.ready("app=ordered", 3)?;
    lab.kubectl(&["scale", "statefulset/ordered", "--replicas=1"])?;
    lab.eventually("one is left", || {
        let left = names(&lab.get(&["pods", "-l", "app=ordered"])?);
        ensure!(left == ["ordered-0"], "{left:?}");
        Ok(())
    })?;
    let told = lab.eventually("both deletions are told", || {
        let told: Vec<String> = reasons(lab, "ordered")?
            .into_iter()
            .filter(|(reason, _)| reason == "SuccessfulDelete")
            .map(|(_, message)| message)
            .collect();
        ensure!(told.len() == 2, "{told:?}");
        Ok(told)
    })?;
    let wanted =
        |number: u32| format!("delete Pod ordered-{number} in StatefulSet ordered successful");
    ensure!(told == [wanted(2), wanted(1)], "{told:?}");
    Ok(())
}

/// C3: a Job ends when enough pods have succeeded, or when it has failed too often.
fn jobs(lab: &Lab) -> Result<()> {
    lab.kubectl(&["wait", "--for=condition=Complete", "job/counted", "--timeout=60s"])?;
    let status = lab.get(&["job", "counted"])?["status"].clone();
    ensure!(status["succeeded"] == 4 && status["completedIndexes"] == "0-3", "{status}");
    let logs = lab.kubectl(&["logs", "-l", "job-name=counted", "--tail=-1"])?;
    let lines: BTreeSet<&str> = logs.lines().collect();
    ensure!(lines == BTreeSet::from(["index 0", "index 1", "index 2", "index 3"]), "{logs}");
    lab.kubectl(&["wait", "--for=condition=Failed", "job/hopeless", "--timeout=60s"])?;
    let why = lab.value("job/hopeless", "{.status.conditions[?(@.type==\"Failed\")].reason}")?;
    ensure!(why == "BackoffLimitExceeded", "{why}");
    Ok(())
}

/// C3: one on every node, and on a node that joins.
fn daemons(lab: &Lab) -> Result<()> {
    lab.ready("app=everywhere", 3)?;
    let pods = lab.get(&["pods", "-l", "app=everywhere"])?;
    let nodes: BTreeSet<String> = items(&pods).map(|pod| text(&pod["spec"]["nodeName"])).collect();
    ensure!(nodes.len() == 3, "{nodes:?}");
    lab.kubectl(&["delete", "pod", names(&pods).first().context("there is one")?, "--now"])?;
    lab.ready("app=everywhere", 3)
}

/// What the kernel keeps of a container, under the file's name of either version of control groups.
fn kernel_limit(container: &str, files: &[&str]) -> Result<String> {
    let found = Command::new("find")
        .args(["/sys/fs/cgroup", "-path", &format!("*/{container}/*"), "("])
        .args(files.iter().flat_map(|file| ["-o", "-name", file]).skip(1))
        .arg(")")
        .output()?;
    let paths = String::from_utf8(found.stdout)?;
    let path = paths.lines().next().with_context(|| format!("no control group of {container}"))?;
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

/// C5: limits hold in the kernel; a container that is not well is started again, one that takes too much is ended.
fn limits(lab: &Lab) -> Result<()> {
    lab.ready("app=probed", 1)?;
    let id = lab.value("pod/probed", "{.status.containerStatuses[0].containerID}")?;
    let id = id.rsplit('/').next().unwrap_or_default();
    let limit = kernel_limit(id, &["memory.max", "memory.limit_in_bytes"])?;
    ensure!(limit == (64 << 20).to_string(), "the memory limit is {limit}");
    let quota = kernel_limit(id, &["cpu.max", "cpu.cfs_quota_us"])?;
    ensure!(quota.starts_with("50000"), "the CPU limit is {quota}");
    lab.exec("probed", &["touch", "/tmp/dead"])?;
    lab.eventually("the container is started again", || {
        let count = lab.value("pod/probed", "{.status.containerStatuses[0].restartCount}")?;
        ensure!(count == "1", "{count} restarts");
        Ok(())
    })?;
    lab.eventually("why is told", || {
        let told = reasons(lab, "probed")?;
        ensure!(told.iter().any(|(reason, _)| reason == "Unhealthy"), "{told:?}");
        let killing = "Container main failed liveness probe, will be restarted";
        ensure!(
            told.iter().any(|(reason, said)| reason == "Killing" && said == killing),
            "{told:?}"
        );
        Ok(())
    })?;
    lab.eventually("the greedy container is ended", || {
        let state = lab.value("pod/greedy", "{.status.containerStatuses[0].state.terminated}")?;
        ensure!(state.contains("OOMKilled") && state.contains("137"), "{state}");
        Ok(())
    })
}

/// A pod with more in its specification.
fn pinned(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0, {spec}, \
         containers: [{{name: main, image: 'tools:latest', imagePullPolicy: IfNotPresent}}]}}}}"
    )
}

fn node_of(lab: &Lab, pod: &str, wanted: &str) -> Result<()> {
    lab.eventually(&format!("{pod} is on {wanted}"), || {
        let found = lab.value(&format!("pod/{pod}"), "{.spec.nodeName}")?;
        ensure!(found == wanted, "it is on {found:?}");
        Ok(())
    })
}

fn unschedulable(lab: &Lab, pod: &str, why: &str) -> Result<()> {
    lab.eventually(&format!("{pod} waits for {why}"), || {
        let path = "{.status.conditions[?(@.type==\"PodScheduled\")]}";
        let condition = lab.value(&format!("pod/{pod}"), path)?;
        ensure!(condition.contains("Unschedulable") && condition.contains(why), "{condition}");
        Ok(())
    })
}

/// C4: node labels, taints and what a pod asks for decide where it runs, and what it waits for is told.
fn constraints(lab: &Lab) -> Result<()> {
    lab.apply(&pinned("fast", "nodeSelector: {disk: ssd}"))?;
    unschedulable(
        lab,
        "fast",
        "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.",
    )?;
    lab.kubectl(&["label", "node", "n2", "disk=ssd"])?;
    node_of(lab, "fast", "n2")?;
    lab.kubectl(&["taint", "node", "n3", "dedicated=db:NoSchedule"])?;
    let third = "nodeSelector: {kubernetes.io/hostname: n3}";
    lab.apply(&pinned("stranger", third))?;
    unschedulable(lab, "stranger", "1 node(s) had untolerated taint")?;
    let tolerant = format!(
        "{third}, tolerations: [{{key: dedicated, operator: Equal, value: db, effect: NoSchedule}}]"
    );
    lab.apply(&pinned("member", &tolerant))?;
    node_of(lab, "member", "n3")?;
    lab.kubectl(&["taint", "node", "n3", "dedicated-"])?;
    node_of(lab, "stranger", "n3")?;
    let huge = pinned("huge", "restartPolicy: Never");
    let asked = "imagePullPolicy: IfNotPresent, resources: {requests: {cpu: '1000'}}";
    lab.apply(&huge.replace("imagePullPolicy: IfNotPresent", asked))?;
    unschedulable(lab, "huge", "0/3 nodes are available: 3 Insufficient cpu.")?;
    lab.kubectl(&["taint", "node", "n2", "broken=yes:NoExecute"])?;
    lab.eventually("a pod that does not tolerate it leaves", || {
        let left = names(&lab.get(&["pods", "--field-selector", "spec.nodeName=n2"])?);
        ensure!(!left.iter().any(|one| one == "fast"), "{left:?}");
        Ok(())
    })?;
    Ok(())
}
