//! Pods and pod templates.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, NAME, NONE, age, containers, count, int, labels, list, name, number, or, string, text,
    wide,
};
use crate::duration;
use crate::resource::Column;

/// `pods`
pub(crate) const POD: &[Column] = &[
    NAME,
    text("Ready", "The aggregate readiness state of this pod for accepting traffic."),
    text("Status", "The aggregate status of the containers in this pod."),
    text("Restarts", "How often the containers were restarted and when last."),
    AGE,
    wide("IP", "The address of the pod."),
    wide("Node", "The node that the pod is on."),
    wide("Nominated Node", "The node that the pod waits for."),
    wide("Readiness Gates", "Gates that are open, of all."),
];

/// Containers that have restarted.
#[derive(Default)]
struct Restarts {
    all: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.all += int(&status["restartCount"]);
        let ended = &status["lastState"]["terminated"]["finishedAt"];
        let ended = ended.as_str().and_then(|time| time.parse::<Timestamp>().ok());
        self.last = self.last.max(ended);
    }

    fn text(&self, now: Timestamp) -> String {
        match self.last.filter(|_| self.all != 0) {
            Some(last) => {
                let ago = duration::human(duration::seconds_between(last, now));
                format!("{} ({ago} ago)", self.all)
            }
            None => self.all.to_string(),
        }
    }
}

/// Init containers that run along with the others.
fn is_sidecar(pod: &Value, name: &Value) -> bool {
    list(&pod["spec"]["initContainers"])
        .iter()
        .any(|one| one["name"] == *name && one["restartPolicy"] == "Always")
}

/// What a container's end is called.
fn ended(terminated: &Value) -> String {
    let reason = string(&terminated["reason"]);
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match int(&terminated["signal"]) {
        0 => format!("ExitCode:{}", int(&terminated["exitCode"])),
        signal => format!("Signal:{signal}"),
    }
}

/// How far the init containers are.
#[derive(Default)]
struct Initialization {
    /// Why they are not done.
    reason: Option<String>,
    /// Of all of them, up to the first that is not done.
    restarts: Restarts,
    /// Of those that run along with the others, up to the same one.
    sidecar_restarts: Restarts,
    /// Sidecars that are ready, up to the same one.
    ready: usize,
}

/// Init containers up to the first that is not done: those behind it do not count.
fn initialization(pod: &Value) -> Initialization {
    let all = count(&pod["spec"]["initContainers"]);
    let mut found = Initialization::default();
    for (index, status) in list(&pod["status"]["initContainerStatuses"]).iter().enumerate() {
        found.restarts.add(status);
        let sidecar = is_sidecar(pod, &status["name"]);
        if sidecar {
            found.sidecar_restarts.add(status);
        }
        let state = &status["state"];
        let (terminated, waiting) = (&state["terminated"], &state["waiting"]);
        if terminated.is_object() && int(&terminated["exitCode"]) == 0 {
            continue;
        }
        if sidecar && status["started"] == true {
            found.ready += usize::from(status["ready"] == true);
            continue;
        }
        let why = string(&waiting["reason"]);
        found.reason = Some(if terminated.is_object() {
            format!("Init:{}", ended(terminated))
        } else if !why.is_empty() && why != "PodInitializing" {
            format!("Init:{why}")
        } else {
            format!("Init:{index}/{all}")
        });
        break;
    }
    found
}

fn has_condition(pod: &Value, kind: &str) -> bool {
    list(&pod["status"]["conditions"])
        .iter()
        .any(|condition| condition["type"] == kind && condition["status"] == "True")
}

/// The reason of the regular containers, the number that is ready among them.
fn running(pod: &Value, reason: &mut String, restarts: &mut Restarts, ready: &mut usize) {
    let mut any_running = false;
    for status in list(&pod["status"]["containerStatuses"]).iter().rev() {
        restarts.add(status);
        let state = &status["state"];
        let (terminated, waiting) = (&state["terminated"], string(&state["waiting"]["reason"]));
        if !waiting.is_empty() {
            waiting.clone_into(reason);
        } else if terminated.is_object() {
            *reason = ended(terminated);
        } else if status["ready"] == true && state["running"].is_object() {
            any_running = true;
            *ready += 1;
        }
    }
    if reason == "Completed" && any_running {
        *reason = if has_condition(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
    }
}

/// The cell below `STATUS`, with `RESTARTS` and the number of ready containers.
fn summary(pod: &Value) -> (String, Restarts, usize) {
    let status = &pod["status"];
    let mut reason = or(&status["reason"], string(&status["phase"])).to_owned();
    let scheduling_gated = list(&status["conditions"]).iter().any(|condition| {
        condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated"
    });
    if scheduling_gated {
        "SchedulingGated".clone_into(&mut reason);
    }
    let Initialization { reason: waiting, mut restarts, sidecar_restarts, mut ready } =
        initialization(pod);
    let initialized = waiting.is_none() || has_condition(pod, "Initialized");
    if let Some(waiting) = waiting {
        reason = waiting;
    }
    if initialized {
        // Init containers that run no more do not count; those that run along do.
        restarts = sidecar_restarts;
        running(pod, &mut reason, &mut restarts, &mut ready);
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        let lost = status["reason"] == "NodeLost";
        let over = ["Succeeded", "Failed"].contains(&string(&status["phase"]));
        if lost {
            "Unknown".clone_into(&mut reason);
        } else if !over {
            "Terminating".clone_into(&mut reason);
        }
    }
    (reason, restarts, ready)
}

/// The row of a pod.
pub(crate) fn pod(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let sidecars =
        list(&spec["initContainers"]).iter().filter(|one| one["restartPolicy"] == "Always");
    let all = count(&spec["containers"]) + sidecars.count();
    let (reason, restarts, ready) = summary(pod);
    let address = or(&status["podIPs"][0]["ip"], or(&status["podIP"], NONE));
    vec![
        name(pod),
        json!(format!("{ready}/{all}")),
        json!(reason),
        json!(restarts.text(now)),
        age(pod, now),
        json!(address),
        json!(or(&spec["nodeName"], NONE)),
        json!(or(&status["nominatedNodeName"], NONE)),
        json!(gates(pod)),
    ]
}

fn gates(pod: &Value) -> String {
    let gates = list(&pod["spec"]["readinessGates"]);
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let open = gates.iter().filter(|gate| has_condition(pod, string(&gate["conditionType"])));
    format!("{}/{}", open.count(), gates.len())
}

/// `podtemplates`
pub(crate) const TEMPLATE: &[Column] = &[
    NAME,
    text("Containers", "Names of each container in the template."),
    text("Images", "Images referenced by each container in the template."),
    text("Pod Labels", "The labels for the pod template."),
];

/// The row of a pod template.
pub(crate) fn template(object: &Value, _: Timestamp) -> Vec<Value> {
    let [names, images] = containers(&object["template"]["spec"]);
    vec![name(object), names, images, json!(labels(&object["template"]["metadata"]["labels"]))]
}

/// `poddisruptionbudgets`
pub(crate) const BUDGET: &[Column] = &[
    NAME,
    text("Min Available", "The minimum number of pods that must be available."),
    text("Max Unavailable", "The maximum number of pods that may be unavailable."),
    number("Allowed Disruptions", "Calculated number of pods that may be disrupted at this time."),
    AGE,
];

/// The row of a pod disruption budget.
pub(crate) fn budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let bound = |field: &str| match &object["spec"][field] {
        Value::Null => json!("N/A"),
        Value::String(text) => json!(text),
        other => json!(other.to_string()),
    };
    vec![
        name(object),
        bound("minAvailable"),
        bound("maxUnavailable"),
        json!(int(&object["status"]["disruptionsAllowed"])),
        age(object, now),
    ]
}
