//! Nodes, namespaces, events, configuration, quotas, leases, priorities, and who may do what.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, NAME, NONE, UNKNOWN, age, amount, count, int, list, name, number, or, since, string, text,
    wide,
};
use crate::resource::Column;

/// `nodes`
pub(crate) const NODE: &[Column] = &[
    NAME,
    text("Status", "The status of the node"),
    text("Roles", "The roles of the node"),
    AGE,
    text("Version", "The version of the node agent."),
    wide("Internal-IP", "The node's address inside the cluster."),
    wide("External-IP", "The node's address outside the cluster."),
    wide("OS-Image", "The operating system."),
    wide("Kernel-Version", "The kernel."),
    wide("Container-Runtime", "What runs the containers."),
];

/// The row of a node.
pub(crate) fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let info = &object["status"]["nodeInfo"];
    let address = |kind: &str| {
        let addresses = list(&object["status"]["addresses"]);
        let found = addresses.iter().find(|address| address["type"] == kind);
        json!(found.map_or(NONE, |address| or(&address["address"], NONE)))
    };
    vec![
        name(object),
        json!(node_status(object)),
        json!(roles(&object["metadata"]["labels"])),
        age(object, now),
        json!(string(&info["kubeletVersion"])),
        address("InternalIP"),
        address("ExternalIP"),
        json!(or(&info["osImage"], UNKNOWN)),
        json!(or(&info["kernelVersion"], UNKNOWN)),
        json!(or(&info["containerRuntimeVersion"], UNKNOWN)),
    ]
}

fn node_status(object: &Value) -> String {
    let conditions = list(&object["status"]["conditions"]);
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
    let mut status = match ready.map(|condition| string(&condition["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if object["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn roles(labels: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/") {
            roles.insert(role);
        } else if key == "kubernetes.io/role" {
            roles.insert(string(value));
        }
    }
    roles.remove("");
    let roles: Vec<&str> = roles.into_iter().collect();
    if roles.is_empty() { NONE.to_owned() } else { roles.join(",") }
}

/// `namespaces`
pub(crate) const NAMESPACE: &[Column] = &[NAME, text("Status", "The status of the namespace"), AGE];

/// The row of a namespace.
pub(crate) fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), json!(string(&object["status"]["phase"])), age(object, now)]
}

/// `events`
pub(crate) const EVENT: &[Column] = &[
    text("Last Seen", "When it happened last."),
    text("Type", "Normal or Warning."),
    text("Reason", "Why, in one word."),
    text("Object", "What it is about."),
    wide("Subobject", "The part that it is about."),
    wide("Source", "Who says it."),
    text("Message", "What happened."),
    wide("First Seen", "When it happened first."),
    wide("Count", "How often it happened."),
    Column { priority: 1, ..NAME },
];

/// The row of an event, of either group.
pub(crate) fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let either = |core: &str, served: &str| {
        let value = &object[core];
        if value.is_null() { &object[served] } else { value }
    };
    let about = either("involvedObject", "regarding");
    let series = &object["series"];
    let mut first = since(either("firstTimestamp", "deprecatedFirstTimestamp"), now);
    if first == UNKNOWN {
        first = since(&object["eventTime"], now);
    }
    let mut last = since(either("lastTimestamp", "deprecatedLastTimestamp"), now);
    if last == UNKNOWN {
        last.clone_from(&first);
    }
    let mut times = int(either("count", "deprecatedCount"));
    if series.is_object() {
        last = since(&series["lastObservedTime"], now);
        times = int(&series["count"]);
    } else if times == 0 {
        times = 1;
    }
    let kind = string(&about["kind"]).to_lowercase();
    let target = match string(&about["name"]) {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    vec![
        json!(last),
        json!(string(&object["type"])),
        json!(string(&object["reason"])),
        json!(target),
        json!(string(&about["fieldPath"])),
        json!(source(object, either("source", "deprecatedSource"))),
        json!(string(either("message", "note")).trim()),
        json!(first),
        json!(times),
        name(object),
    ]
}

fn source(object: &Value, source: &Value) -> String {
    let reporter = or(&object["reportingComponent"], string(&object["reportingController"]));
    let component = or(&source["component"], reporter);
    let host = or(&source["host"], string(&object["reportingInstance"]));
    if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") }
}

/// `secrets`
pub(crate) const SECRET: &[Column] = &[
    NAME,
    text("Type", "What the Secret is for."),
    text("Data", "How many values it holds."),
    AGE,
];

/// The row of a Secret.
pub(crate) fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(string(&object["type"])),
        json!(count(&object["data"])),
        age(object, now),
    ]
}

/// `configmaps`
pub(crate) const CONFIG_MAP: &[Column] = &[NAME, text("Data", "How many values it holds."), AGE];

/// The row of a ConfigMap.
pub(crate) fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    let all = count(&object["data"]) + count(&object["binaryData"]);
    vec![name(object), json!(all), age(object, now)]
}

/// `serviceaccounts`
pub(crate) const SERVICE_ACCOUNT: &[Column] =
    &[NAME, text("Secrets", "How many Secrets its pods may use."), AGE];

/// The row of a ServiceAccount.
pub(crate) fn service_account(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), json!(count(&object["secrets"])), age(object, now)]
}

/// `resourcequotas`
pub(crate) const QUOTA: &[Column] = &[
    NAME,
    text("Request", "What is asked for, of what may be."),
    text("Limit", "The limits in use, of what may be."),
    AGE,
];

/// The row of a ResourceQuota.
pub(crate) fn quota(object: &Value, now: Timestamp) -> Vec<Value> {
    let (hard, used) = (&object["status"]["hard"], &object["status"]["used"]);
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (key, value) in hard.as_object().into_iter().flatten() {
        let text = format!("{key}: {}/{}", amount(&used[key]), amount(value));
        if key.starts_with("limits.") { limits.push(text) } else { requests.push(text) }
    }
    vec![name(object), json!(requests.join(", ")), json!(limits.join(", ")), age(object, now)]
}

/// `leases`
pub(crate) const LEASE: &[Column] = &[NAME, text("Holder", "Who holds the lease."), AGE];

/// The row of a Lease.
pub(crate) fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), json!(string(&object["spec"]["holderIdentity"])), age(object, now)]
}

/// `priorityclasses`
pub(crate) const PRIORITY: &[Column] = &[
    NAME,
    number("Value", "The priority of its pods."),
    Column {
        name: "Global-Default",
        kind: "boolean",
        format: "",
        description: "Whether pods without a class are of this one.",
        priority: 0,
    },
    AGE,
    text("PreemptionPolicy", "Whether its pods displace others."),
];

/// The row of a PriorityClass.
pub(crate) fn priority(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(int(&object["value"])),
        json!(object["globalDefault"] == true),
        age(object, now),
        json!(string(&object["preemptionPolicy"])),
    ]
}

/// `rolebindings` and `clusterrolebindings`
pub(crate) const BINDING: &[Column] = &[
    NAME,
    text("Role", "The role that is granted."),
    AGE,
    wide("Users", "Users in the roleBinding"),
    wide("Groups", "Groups in the roleBinding"),
    wide("ServiceAccounts", "ServiceAccounts in the roleBinding"),
];

/// The row of a binding.
pub(crate) fn binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let role = &object["roleRef"];
    let subjects = |kind: &str| {
        let found = list(&object["subjects"]).iter().filter(|subject| subject["kind"] == kind);
        let texts: Vec<String> = found
            .map(|subject| match kind {
                "ServiceAccount" => {
                    format!("{}/{}", string(&subject["namespace"]), string(&subject["name"]))
                }
                _ => string(&subject["name"]).to_owned(),
            })
            .collect();
        json!(texts.join(", "))
    };
    vec![
        name(object),
        json!(format!("{}/{}", string(&role["kind"]), string(&role["name"]))),
        age(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}
