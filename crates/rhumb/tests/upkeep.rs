//! Controllers that keep a cluster in order beside its workloads: disruption budgets, CronJobs, quotas.

use anyhow::{Result, ensure};
use testkit::lab::Lab;

const BINARY: &str = env!("CARGO_BIN_EXE_rhumb");

const OBJECTS: &str = r"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: web}}}
      containers: [{name: web, image: 'tools:latest', imagePullPolicy: IfNotPresent, command: [sleep, '1000']}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {maxUnavailable: 0, selector: {matchLabels: {app: web}}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: '@every 1s'
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: main, image: 'tools:latest', imagePullPolicy: IfNotPresent, command: [echo, tock]}]
";

#[test]
fn budgets_hold_evictions_and_cron_jobs_run() -> Result<()> {
    let lab = Lab::up(BINARY, 2, &["tools"])?;
    lab.apply(OBJECTS)?;
    lab.ready("app=web", 2)?;
    budget(&lab)?;
    nulls(&lab)?;
    cron_job(&lab)?;
    refused(&lab)
}

const REFUSED: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: full}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: none, namespace: full}
spec: {hard: {pods: '0'}}
---
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: set, namespace: full}
spec:
  selector: {matchLabels: {app: set}}
  template: {metadata: {labels: {app: set}}, spec: {containers: [{name: main, image: 'tools:latest'}]}}
---
apiVersion: v1
kind: ReplicationController
metadata: {name: controller, namespace: full}
spec:
  selector: {app: controller}
  template: {metadata: {labels: {app: controller}}, spec: {containers: [{name: main, image: 'tools:latest'}]}}
";

/// Whoever makes pods says why the server refuses them.
fn refused(lab: &Lab) -> Result<()> {
    lab.apply(REFUSED)?;
    for owner in ["rs/set", "rc/controller"] {
        lab.eventually(&format!("{owner} says that its pods are refused"), || {
            let path = "-o=jsonpath={.status.conditions[?(@.type==\"ReplicaFailure\")]}";
            let told = lab.kubectl(&["get", "-n", "full", owner, path])?;
            ensure!(told.contains("FailedCreate") && told.contains("exceeded quota"), "{told}");
            Ok(())
        })?;
    }
    Ok(())
}

/// What `kubectl get pdb` shows, without the age.
fn shows(lab: &Lab, wanted: &str) -> Result<()> {
    lab.eventually(&format!("the budget shows {wanted}"), || {
        let row = lab.kubectl(&["get", "pdb", "web", "--no-headers"])?;
        let words: Vec<&str> = row.split_whitespace().take(4).collect();
        ensure!(words.join(" ") == wanted, "{row}");
        Ok(())
    })
}

/// Nothing is drained that the budget does not allow; what it allows goes.
fn budget(lab: &Lab) -> Result<()> {
    shows(lab, "web N/A 0 0")?;
    let drain = ["drain", "n2", "--ignore-daemonsets", "--force", "--timeout=3s"];
    let refused = lab.refusal(&drain)?;
    let why = "Cannot evict pod as it would violate the pod's disruption budget.";
    ensure!(refused.contains(why), "{refused}");
    lab.kubectl(&[
        "patch",
        "pdb",
        "web",
        "--type=merge",
        "-p",
        "{\"spec\": {\"maxUnavailable\": 1}}",
    ])?;
    shows(lab, "web N/A 1 1")?;
    lab.kubectl(&["drain", "n2", "--ignore-daemonsets", "--force", "--timeout=60s"])?;
    lab.ready("app=web", 2)?;
    shows(lab, "web N/A 1 1")?;
    let status = lab.get(&["pdb", "web"])?["status"].clone();
    ensure!(status["expectedPods"] == 2 && status["desiredHealthy"] == 1, "{status}");
    ensure!(status["conditions"][0]["reason"] == "SufficientPods", "{status}");
    Ok(())
}

/// `kubectl set env` leaves a null where there are no init containers: as if nothing was said.
fn nulls(lab: &Lab) -> Result<()> {
    lab.kubectl(&["set", "env", "deployment/web", "A=b"])?;
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    let null = r#"[{"op": "add", "path": "/spec/template/spec/initContainers", "value": null}]"#;
    lab.kubectl(&["patch", "deployment", "web", "--type=json", "-p", null])?;
    let stored = lab.get(&["deployment", "web"])?["spec"]["template"]["spec"].clone();
    ensure!(stored.get("initContainers").is_none(), "{stored}");
    lab.kubectl(&["set", "env", "deployment/web", "A=c"])?;
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).map(drop)
}

/// A Job comes at its time, belongs to its CronJob, and is noted when it is complete.
fn cron_job(lab: &Lab) -> Result<()> {
    lab.eventually("a Job succeeded", || {
        let last = lab.value("cronjob/tick", "{.status.lastSuccessfulTime}")?;
        ensure!(!last.is_empty(), "not yet");
        Ok(())
    })?;
    let owner =
        "{.items[0].metadata.ownerReferences[0].kind}/{.items[0].metadata.ownerReferences[0].name}";
    let owner = lab.value("jobs", owner)?;
    ensure!(owner == "CronJob/tick", "{owner}");
    lab.eventually("its events are there", || {
        let events =
            lab.kubectl(&["get", "events", "--field-selector", "involvedObject.name=tick"])?;
        for wanted in ["Created job tick-", "Saw completed job: tick-"] {
            ensure!(events.contains(wanted), "{events}");
        }
        Ok(())
    })?;
    lab.kubectl(&["delete", "cronjob", "tick"])?;
    lab.eventually("its Jobs go with it", || {
        let left = lab.kubectl(&["get", "jobs", "-o", "name"])?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
}
