//! Deployments, ReplicaSets, StatefulSets, DaemonSets, Jobs, CronJobs and their revisions.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, NAME, NONE, UNSET, age, containers, count, int, labels, list, name, number, or, selector,
    since, string, text, wide,
};
use crate::duration;
use crate::resource::Column;

const CONTAINERS: Column = wide("Containers", "Names of each container in the template.");
const IMAGES: Column = wide("Images", "Images referenced by each container in the template.");
const SELECTOR: Column = wide("Selector", "The labels of the pods that are counted.");

/// `deployments`
pub(crate) const DEPLOYMENT: &[Column] = &[
    NAME,
    text("Ready", "Number of the pod with ready state"),
    text("Up-to-date", "Pods of the newest template."),
    text("Available", "Pods that have been ready long enough."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// The row of a Deployment.
pub(crate) fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]["spec"]);
    vec![
        name(object),
        json!(format!("{}/{}", int(&status["readyReplicas"]), int(&spec["replicas"]))),
        json!(int(&status["updatedReplicas"])),
        json!(int(&status["availableReplicas"])),
        age(object, now),
        names,
        images,
        json!(selector(&spec["selector"])),
    ]
}

/// `replicasets` and `replicationcontrollers`
pub(crate) const REPLICA_SET: &[Column] = &[
    NAME,
    number("Desired", "Pods that should be."),
    number("Current", "Pods that are."),
    number("Ready", "Pods that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn replicas(object: &Value, now: Timestamp, selected: String) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]["spec"]);
    vec![
        name(object),
        json!(int(&spec["replicas"])),
        json!(int(&status["replicas"])),
        json!(int(&status["readyReplicas"])),
        age(object, now),
        names,
        images,
        json!(selected),
    ]
}

/// The row of a ReplicaSet.
pub(crate) fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    replicas(object, now, selector(&object["spec"]["selector"]))
}

/// The row of a ReplicationController.
pub(crate) fn controller(object: &Value, now: Timestamp) -> Vec<Value> {
    replicas(object, now, labels(&object["spec"]["selector"]))
}

/// `statefulsets`
pub(crate) const STATEFUL_SET: &[Column] =
    &[NAME, text("Ready", "Number of the pod with ready state"), AGE, CONTAINERS, IMAGES];

/// The row of a StatefulSet.
pub(crate) fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]["spec"]);
    vec![
        name(object),
        json!(format!("{}/{}", int(&status["readyReplicas"]), int(&spec["replicas"]))),
        age(object, now),
        names,
        images,
    ]
}

/// `daemonsets`
pub(crate) const DAEMON_SET: &[Column] = &[
    NAME,
    number("Desired", "Nodes that should run the pod."),
    number("Current", "Nodes that run the pod and should."),
    number("Ready", "Nodes whose pod is ready."),
    number("Up-to-date", "Nodes whose pod is of the newest template."),
    number("Available", "Nodes whose pod has been ready long enough."),
    text("Node Selector", "The labels of the nodes that run the pod."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// The row of a DaemonSet.
pub(crate) fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]["spec"]);
    let mut row = vec![name(object)];
    row.extend(
        [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
        ]
        .map(|field| json!(int(&status[field]))),
    );
    row.extend([
        json!(labels(&spec["template"]["spec"]["nodeSelector"])),
        age(object, now),
        names,
        images,
        json!(selector(&spec["selector"])),
    ]);
    row
}

/// `controllerrevisions`
pub(crate) const REVISION: &[Column] = &[
    NAME,
    text("Controller", "The object that made the revision."),
    text("Revision", "Its number."),
    AGE,
];

/// The row of a ControllerRevision.
pub(crate) fn revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let owners = list(&object["metadata"]["ownerReferences"]);
    let owner = owners.iter().find(|owner| owner["controller"] == true);
    let controller = owner.map_or_else(
        || NONE.to_owned(),
        |owner| {
            let group = string(&owner["apiVersion"]).split_once('/').map_or("", |(group, _)| group);
            let kind = string(&owner["kind"]).to_lowercase();
            let dot = if group.is_empty() { "" } else { "." };
            format!("{kind}{dot}{group}/{}", string(&owner["name"]))
        },
    );
    vec![name(object), json!(controller), json!(int(&object["revision"])), age(object, now)]
}

/// `jobs`
pub(crate) const JOB: &[Column] = &[
    NAME,
    text("Status", "Status of the job."),
    text("Completions", "Pods that have succeeded, of those that should."),
    text("Duration", "Time required to complete the job."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// The row of a Job.
pub(crate) fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]["spec"]);
    let done = int(&status["succeeded"]);
    let completions = match (spec["completions"].as_i64(), int(&spec["parallelism"])) {
        (Some(all), _) => format!("{done}/{all}"),
        (None, parallel) if parallel > 1 => format!("{done}/1 of {parallel}"),
        (None, _) => format!("{done}/1"),
    };
    vec![
        name(object),
        json!(job_status(object)),
        json!(completions),
        json!(job_duration(status, now)),
        age(object, now),
        names,
        images,
        json!(selector(&spec["selector"])),
    ]
}

fn job_duration(status: &Value, now: Timestamp) -> String {
    let time = |field: &str| status[field].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let Some(start) = time("startTime") else { return String::new() };
    let end = time("completionTime").unwrap_or(now);
    duration::human(duration::seconds_between(start, end))
}

fn job_status(object: &Value) -> &'static str {
    let has = |kind: &str| {
        list(&object["status"]["conditions"])
            .iter()
            .any(|condition| condition["type"] == kind && condition["status"] == "True")
    };
    if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if !object["metadata"]["deletionTimestamp"].is_null() {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

/// `cronjobs`
pub(crate) const CRON_JOB: &[Column] = &[
    NAME,
    text("Schedule", "When Jobs are made, as in a crontab."),
    text("Timezone", "The time zone of the schedule."),
    Column {
        name: "Suspend",
        kind: "boolean",
        format: "",
        description: "Whether no Jobs are made for now.",
        priority: 0,
    },
    number("Active", "Jobs that run."),
    text("Last Schedule", "When a Job was made last."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// The row of a CronJob.
pub(crate) fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let template = &spec["jobTemplate"]["spec"];
    let [names, images] = containers(&template["template"]["spec"]);
    let last = match &status["lastScheduleTime"] {
        Value::Null => NONE.to_owned(),
        time => since(time, now),
    };
    let suspended = match spec["suspend"].as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => UNSET,
    };
    vec![
        name(object),
        json!(string(&spec["schedule"])),
        json!(or(&spec["timeZone"], NONE)),
        json!(suspended),
        json!(count(&status["active"])),
        json!(last),
        age(object, now),
        names,
        images,
        json!(selector(&template["selector"])),
    ]
}
