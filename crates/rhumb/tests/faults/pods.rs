//! Pods that cannot start, do not stay, or fit nowhere.

use anyhow::{Result, ensure};
use testkit::lab::Lab;

use super::{BINARY, events, row, shows, text, told};

/// A pod with one container, which has more in its specification than the image.
fn pod(name: &str, container: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, spec: {{terminationGracePeriodSeconds: 0, {spec} \
         containers: [{{name: main, {container}}}]}}}}\n"
    )
}

/// The image that is there, and what its container does.
fn runs(command: &str) -> String {
    format!("image: 'tools:latest', imagePullPolicy: IfNotPresent, command: [sh, -c, '{command}']")
}

/// A pod that is ready while a file is there.
const SERVED: &str = "
apiVersion: v1
kind: Pod
metadata: {name: served, labels: {app: served}}
spec:
  terminationGracePeriodSeconds: 0
  initContainers: null
  containers:
  - name: main
    image: tools:latest
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'mkdir /tmp/www && cd /tmp/www && touch ready && exec python3 -m http.server 8080']
    readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Service
metadata: {name: served}
spec: {selector: {app: served}, ports: [{port: 80, targetPort: 8080}]}
";

fn waiting(lab: &Lab, name: &str) -> Result<(String, String)> {
    let state = lab.get(&["pod", name])?["status"]["containerStatuses"][0]["state"].clone();
    Ok((text(&state["waiting"]["reason"]), text(&state["waiting"]["message"])))
}

/// Waits for the reason and message of a container that waits.
fn waits(lab: &Lab, name: &str, reason: &str, message: &str) -> Result<()> {
    lab.eventually(&format!("{name} waits: {reason}: {message}"), || {
        let found = waiting(lab, name)?;
        ensure!(found.0 == reason && found.1.starts_with(message), "{found:?}");
        Ok(())
    })
}

#[test]
fn pods_that_do_not_run_say_why() -> Result<()> {
    let lab = Lab::up(BINARY, 2, &["tools"])?;
    let settings = "configMapKeyRef: {name: settings, key: colour}";
    let volume = |source: &str| format!("volumes: [{{name: conf, {source}}}],");
    let mounts = "volumeMounts: [{name: conf, mountPath: /conf}]";
    let idle = runs("sleep 1000");
    let manifests = [
        pod("crash", &runs("echo run $RANDOM; echo it broke; exit 3"), ""),
        pod("absent", "image: 'registry.invalid/nothing:1'", ""),
        pod("never", "image: 'nothing:1', imagePullPolicy: Never", ""),
        pod("misnamed", "image: 'Not//Valid:::'", ""),
        pod("unset", &format!("{idle}, env: [{{name: A, valueFrom: {{{settings}}}}}]"), ""),
        pod("keyless", &format!("{idle}, envFrom: [{{secretRef: {{name: keys}}}}]"), ""),
        pod("unmounted", &format!("{idle}, {mounts}"), &volume("secret: {secretName: keys}")),
        pod("huge", &format!("{idle}, resources: {{requests: {{cpu: '1000'}}}}"), ""),
        pod("elsewhere", &idle, "nodeSelector: {disk: ssd},"),
        pod("typo", "image: 'tools:latest', imagePullPolicy: IfNotPresent, command: [nope]", ""),
        pod(
            "stuck",
            &idle,
            &format!("initContainers: [{{name: prepare, {}}}],", runs("echo no schema; exit 7")),
        ),
        pod(
            "stuck-once",
            &idle,
            &format!(
                "restartPolicy: Never, initContainers: [{{name: prepare, {}}}],",
                runs("exit 7")
            ),
        ),
    ];
    lab.apply(&manifests.concat())?;
    lab.apply(SERVED)?;
    scheduling(&lab)?;
    images(&lab)?;
    sources(&lab)?;
    inits(&lab)?;
    starts(&lab)?;
    crashes(&lab)?;
    readiness(&lab)?;
    agent(&lab)
}

/// Nothing fits: said as the scheduler says it, and mended by the node.
fn scheduling(lab: &Lab) -> Result<()> {
    let nowhere = |pod: &str, why: &str| {
        told(lab, pod, "Warning", "FailedScheduling", why)?;
        ensure!(row(lab, pod)?[1] == "Pending");
        let condition = lab.value(&format!("pod/{pod}"), "{.status.conditions[0]}")?;
        ensure!(condition.contains("Unschedulable") && condition.contains(why), "{condition}");
        Ok(())
    };
    let after = "no new claims to deallocate, preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    nowhere("huge", &format!("0/2 nodes are available: 2 Insufficient cpu. {after}"))?;
    let selector = "2 node(s) didn't match Pod's node affinity/selector.";
    nowhere("elsewhere", &format!("0/2 nodes are available: {selector} {after}"))?;
    lab.kubectl(&["label", "node", "n2", "disk=ssd"])?;
    shows(lab, "elsewhere", "Running")?;
    lab.kubectl(&["taint", "node", "n2", "team=blue:NoSchedule"])?;
    lab.kubectl(&["cordon", "n1"])?;
    lab.apply(&pod("stranger", &runs("sleep 1000"), ""))?;
    let why = "0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were unschedulable.";
    nowhere("stranger", &format!("{why} {after}"))?;
    lab.kubectl(&["uncordon", "n1"])?;
    shows(lab, "stranger", "Running")?;
    let described = lab.kubectl(&["describe", "pod", "huge"])?;
    ensure!(described.contains("Warning  FailedScheduling"), "{described}");
    Ok(())
}

/// Images that cannot be had.
fn images(lab: &Lab) -> Result<()> {
    let image = "\"registry.invalid/nothing:1\"";
    told(lab, "absent", "Normal", "Pulling", &format!("Pulling image {image}"))?;
    told(lab, "absent", "Warning", "Failed", &format!("Failed to pull image {image}: "))?;
    told(lab, "absent", "Warning", "Failed", "Error: ErrImagePull")?;
    told(lab, "absent", "Normal", "BackOff", &format!("Back-off pulling image {image}"))?;
    told(lab, "absent", "Warning", "Failed", "Error: ImagePullBackOff")?;
    let why = format!("Back-off pulling image {image}: ErrImagePull: ");
    waits(lab, "absent", "ImagePullBackOff", &why)?;
    ensure!(shows(lab, "absent", "ImagePullBackOff")?[0] == "0/1");
    let absent = "Container image \"nothing:1\" is not present with pull policy of Never";
    waits(lab, "never", "ErrImageNeverPull", absent)?;
    shows(lab, "never", "ErrImageNeverPull")?;
    told(lab, "never", "Warning", "ErrImageNeverPull", absent)?;
    told(lab, "never", "Warning", "Failed", "Error: ErrImageNeverPull")?;
    let misnamed = "Failed to apply default image tag \"Not//Valid:::\": couldn't parse image name";
    shows(lab, "misnamed", "InvalidImageName")?;
    told(lab, "misnamed", "Warning", "InspectFailed", misnamed)?;
    let logs = lab.refusal(&["logs", "absent"])?;
    let why = "container \"main\" in pod \"absent\" is waiting to start: trying and failing to pull image";
    ensure!(logs.contains(why), "{logs}");
    Ok(())
}

/// Config maps and secrets that are missing, and come.
fn sources(lab: &Lab) -> Result<()> {
    let missing = "configmap \"settings\" not found";
    waits(lab, "unset", "CreateContainerConfigError", missing)?;
    shows(lab, "unset", "CreateContainerConfigError")?;
    told(lab, "unset", "Warning", "Failed", &format!("Error: {missing}"))?;
    waits(lab, "keyless", "CreateContainerConfigError", "secret \"keys\" not found")?;
    shows(lab, "unmounted", "ContainerCreating")?;
    let mount = "MountVolume.SetUp failed for volume \"conf\" : secret \"keys\" not found";
    told(lab, "unmounted", "Warning", "FailedMount", mount)?;
    lab.kubectl(&["create", "configmap", "settings", "--from-literal=size=big"])?;
    let key = "couldn't find key colour in ConfigMap default/settings";
    waits(lab, "unset", "CreateContainerConfigError", key)?;
    lab.kubectl(&["create", "secret", "generic", "keys", "--from-literal=a=b"])?;
    lab.kubectl(&["patch", "configmap", "settings", "-p", "{\"data\": {\"colour\": \"red\"}}"])?;
    for pod in ["unset", "keyless", "unmounted"] {
        shows(lab, pod, "Running")?;
    }
    Ok(())
}

/// An init container that fails keeps the pod from starting, or ends it.
fn inits(lab: &Lab) -> Result<()> {
    let row = shows(lab, "stuck", "Init:CrashLoopBackOff")?;
    ensure!(row[0] == "0/1" && row[2] != "0", "{row:?}");
    let back_off = "Back-off restarting failed container prepare in pod stuck_default(";
    told(lab, "stuck", "Warning", "BackOff", back_off)?;
    let main = lab.value("pod/stuck", "{.status.containerStatuses[0].state.waiting.reason}")?;
    ensure!(main == "PodInitializing", "{main}");
    let logs = lab.kubectl(&["logs", "stuck", "-c", "prepare"])?;
    ensure!(logs == "no schema\n", "{logs}");
    let logs = lab.refusal(&["logs", "stuck", "-c", "main"])?;
    let why = "container \"main\" in pod \"stuck\" is waiting to start: PodInitializing";
    ensure!(logs.contains(why), "{logs}");
    let initialized = "{.status.conditions[?(@.type==\"Initialized\")].message}";
    let said = lab.value("pod/stuck", initialized)?;
    ensure!(said == "containers with incomplete status: [prepare]", "{said}");
    shows(lab, "stuck-once", "Init:Error")?;
    ensure!(lab.value("pod/stuck-once", "{.status.phase}")? == "Failed");
    Ok(())
}

/// A program that is not in the image: a run that could not start.
fn starts(lab: &Lab) -> Result<()> {
    let missing = "exec: \"nope\": executable file not found in $PATH";
    shows(lab, "typo", "CrashLoopBackOff")?;
    let last = lab.get(&["pod", "typo"])?["status"]["containerStatuses"][0]["lastState"].clone();
    let last = &last["terminated"];
    ensure!(last["reason"] == "StartError" && last["exitCode"] == 128, "{last}");
    ensure!(text(&last["message"]).contains(missing), "{last}");
    lab.eventually("and as an event", || {
        let events = events(lab, "typo")?;
        let wanted = |event: &[String; 3]| event[1] == "Failed" && event[2].contains(missing);
        ensure!(events.iter().any(wanted), "{events:#?}");
        Ok(())
    })
}

/// A container that ends again and again.
fn crashes(lab: &Lab) -> Result<()> {
    let row = shows(lab, "crash", "CrashLoopBackOff")?;
    ensure!(row[0] == "0/1" && row[2] != "0", "{row:?}");
    let message = lab.eventually("the delay is told", || {
        let (reason, message) = waiting(lab, "crash")?;
        ensure!(reason == "CrashLoopBackOff", "{reason}");
        Ok(message)
    })?;
    let wanted = "s restarting failed container=main pod=crash_default(";
    ensure!(message.starts_with("back-off ") && message.contains(wanted), "{message}");
    let back_off = "Back-off restarting failed container main in pod crash_default(";
    told(lab, "crash", "Warning", "BackOff", back_off)?;
    let last = lab.get(&["pod", "crash"])?["status"]["containerStatuses"][0]["lastState"].clone();
    ensure!(last["terminated"]["exitCode"] == 3, "{last}");
    ensure!(last["terminated"]["reason"] == "Error", "{last}");
    // While it waits, the log is that of the last run, and --previous of the one before it.
    lab.eventually("both logs are there", || {
        let (last, previous) =
            (lab.kubectl(&["logs", "crash"])?, lab.kubectl(&["logs", "crash", "--previous"])?);
        ensure!(last.ends_with("it broke\n") && previous.ends_with("it broke\n"), "{last}");
        Ok(())
    })?;
    let described = lab.kubectl(&["describe", "pod", "crash"])?;
    for wanted in ["Reason:       CrashLoopBackOff", "Exit Code:    3", "Warning  BackOff"] {
        ensure!(described.contains(wanted), "{wanted} is not in {described}");
    }
    Ok(())
}

/// A pod whose probe fails says with what, gets no more connections, and gets them again.
fn readiness(lab: &Lab) -> Result<()> {
    let endpoints = |wanted: usize| {
        lab.eventually(&format!("{wanted} ready endpoints"), || {
            let path = "{.items[*].endpoints[?(@.conditions.ready==true)].addresses[0]}";
            let path = format!("jsonpath={path}");
            let label = "kubernetes.io/service-name=served";
            let found = lab.kubectl(&["get", "endpointslices", "-l", label, "-o", &path])?;
            ensure!(found.split_whitespace().count() == wanted, "{found}");
            Ok(())
        })
    };
    endpoints(1)?;
    lab.exec("served", &["rm", "/tmp/www/ready"])?;
    let why = "Readiness probe failed: HTTP probe failed with statuscode: 404";
    told(lab, "served", "Warning", "Unhealthy", why)?;
    endpoints(0)?;
    ensure!(row(lab, "served")? == ["0/1", "Running", "0"].map(str::to_owned));
    let message = "{.status.conditions[?(@.type==\"Ready\")].message}";
    let message = lab.value("pod/served", message)?;
    ensure!(message == "containers with unready status: [main]", "{message}");
    lab.exec("served", &["touch", "/tmp/www/ready"])?;
    endpoints(1)
}

/// An agent that is killed while containers crash goes on where it was: it forgets no run and starts none twice.
fn agent(lab: &Lab) -> Result<()> {
    let restarts = || -> Result<u32> {
        let path = "{.status.containerStatuses[0].restartCount}";
        Ok(lab.value("pod/crash", path)?.parse()?)
    };
    let node = lab.value("pod/crash", "{.spec.nodeName}")?;
    let before = restarts()?;
    let pid = lab.pid(&node)?;
    let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
    ensure!(killed.success(), "the agent was not killed");
    lab.eventually("the agent is back", || {
        ensure!(lab.pid(&node)? != pid, "not yet");
        Ok(())
    })?;
    lab.eventually("the container is started again", || {
        let now = restarts()?;
        ensure!(now > before, "{now} after {before}");
        Ok(())
    })?;
    ensure!(restarts()? <= before + 2, "it waits between runs");
    shows(lab, "crash", "CrashLoopBackOff")?;
    lab.kubectl(&["logs", "crash", "--previous"]).map(drop)
}
