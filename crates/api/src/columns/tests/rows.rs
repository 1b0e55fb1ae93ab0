//! Whole rows, a table of objects and their cells.

use serde_json::{Value, json};

use super::super::{NONE, UNSET};
use crate::resource::{self, Resource};

const RBAC: &str = "rbac.authorization.k8s.io";
const NETWORK: &str = "networking.k8s.io";
const CREATED: &str = "2026-01-10T11:00:00Z";

/// The heads of `kubectl get`, those of `-o wide` behind a bar.
fn heads(resource: &Resource) -> String {
    let shown = |priority: u8| {
        let columns = resource.rules.columns.iter().filter(|column| column.priority == priority);
        columns.map(|column| column.name.to_uppercase()).collect::<Vec<_>>().join(" ")
    };
    format!("{} | {}", shown(0), shown(1)).trim_end().to_owned()
}

const REPLICAS: &str = "NAME DESIRED CURRENT READY AGE | CONTAINERS IMAGES SELECTOR";
const BINDING: &str = "NAME ROLE AGE | USERS GROUPS SERVICEACCOUNTS";
const EVENT: &str = "LAST SEEN TYPE REASON OBJECT MESSAGE | SUBOBJECT SOURCE FIRST SEEN COUNT NAME";

/// Groups, plurals and heads.
const HEADS: &[(&str, &str, &str)] = &[
    ("", "configmaps", "NAME DATA AGE |"),
    ("", "endpoints", "NAME ENDPOINTS AGE |"),
    ("", "events", EVENT),
    ("events.k8s.io", "events", EVENT),
    ("", "limitranges", "NAME CREATED AT |"),
    ("", "namespaces", "NAME STATUS AGE |"),
    (
        "",
        "nodes",
        "NAME STATUS ROLES AGE VERSION | INTERNAL-IP EXTERNAL-IP OS-IMAGE KERNEL-VERSION CONTAINER-RUNTIME",
    ),
    (
        "",
        "persistentvolumeclaims",
        "NAME STATUS VOLUME CAPACITY ACCESS MODES STORAGECLASS VOLUMEATTRIBUTESCLASS AGE | VOLUMEMODE",
    ),
    (
        "",
        "persistentvolumes",
        "NAME CAPACITY ACCESS MODES RECLAIM POLICY STATUS CLAIM STORAGECLASS VOLUMEATTRIBUTESCLASS REASON AGE | VOLUMEMODE",
    ),
    ("", "pods", "NAME READY STATUS RESTARTS AGE | IP NODE NOMINATED NODE READINESS GATES"),
    ("", "podtemplates", "NAME CONTAINERS IMAGES POD LABELS |"),
    ("", "replicationcontrollers", REPLICAS),
    ("", "resourcequotas", "NAME REQUEST LIMIT AGE |"),
    ("", "secrets", "NAME TYPE DATA AGE |"),
    ("", "serviceaccounts", "NAME SECRETS AGE |"),
    ("", "services", "NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE | SELECTOR"),
    ("apps", "controllerrevisions", "NAME CONTROLLER REVISION AGE |"),
    (
        "apps",
        "daemonsets",
        "NAME DESIRED CURRENT READY UP-TO-DATE AVAILABLE NODE SELECTOR AGE | CONTAINERS IMAGES SELECTOR",
    ),
    ("apps", "deployments", "NAME READY UP-TO-DATE AVAILABLE AGE | CONTAINERS IMAGES SELECTOR"),
    ("apps", "replicasets", REPLICAS),
    ("apps", "statefulsets", "NAME READY AGE | CONTAINERS IMAGES"),
    (
        "batch",
        "cronjobs",
        "NAME SCHEDULE TIMEZONE SUSPEND ACTIVE LAST SCHEDULE AGE | CONTAINERS IMAGES SELECTOR",
    ),
    ("batch", "jobs", "NAME STATUS COMPLETIONS DURATION AGE | CONTAINERS IMAGES SELECTOR"),
    ("coordination.k8s.io", "leases", "NAME HOLDER AGE |"),
    ("discovery.k8s.io", "endpointslices", "NAME ADDRESSTYPE PORTS ENDPOINTS AGE |"),
    (NETWORK, "ingressclasses", "NAME CONTROLLER PARAMETERS AGE |"),
    (NETWORK, "ipaddresses", "NAME PARENTREF |"),
    (NETWORK, "ingresses", "NAME CLASS HOSTS ADDRESS PORTS AGE |"),
    (NETWORK, "networkpolicies", "NAME POD-SELECTOR AGE |"),
    (NETWORK, "servicecidrs", "NAME CIDRS AGE |"),
    (
        "policy",
        "poddisruptionbudgets",
        "NAME MIN AVAILABLE MAX UNAVAILABLE ALLOWED DISRUPTIONS AGE |",
    ),
    (RBAC, "clusterrolebindings", BINDING),
    (RBAC, "clusterroles", "NAME CREATED AT |"),
    (RBAC, "rolebindings", BINDING),
    (RBAC, "roles", "NAME CREATED AT |"),
    ("scheduling.k8s.io", "priorityclasses", "NAME VALUE GLOBAL-DEFAULT AGE PREEMPTIONPOLICY |"),
    (
        "storage.k8s.io",
        "storageclasses",
        "NAME PROVISIONER RECLAIMPOLICY VOLUMEBINDINGMODE ALLOWVOLUMEEXPANSION AGE |",
    ),
];

#[test]
fn heads_are_upstreams() {
    for (group, plural, expected) in HEADS {
        let resource = resource::find(group, "v1", plural).unwrap();
        assert_eq!(heads(resource), *expected, "{plural}");
    }
}

/// The row of an object named `x` that is an hour old.
fn row(group: &str, plural: &str, object: &Value) -> Value {
    let mut object = object.clone();
    object["metadata"]["name"] = json!("x");
    object["metadata"]["creationTimestamp"] = json!(CREATED);
    let now = "2026-01-10T12:00:00Z".parse().unwrap();
    (resource::find(group, "v1", plural).unwrap().rules.row)(&object, now).into()
}

#[test]
fn small_kinds_read_as_upstreams() {
    for (group, plural, object, expected) in [
        ("", "namespaces", json!({"status": {"phase": "Active"}}), json!(["x", "Active", "60m"])),
        (
            "",
            "configmaps",
            json!({"data": {"a": "1"}, "binaryData": {"b": "", "c": ""}}),
            json!(["x", 3, "60m"]),
        ),
        (
            "",
            "secrets",
            json!({"type": "Opaque", "data": {"a": ""}}),
            json!(["x", "Opaque", 1, "60m"]),
        ),
        ("", "serviceaccounts", json!({}), json!(["x", 0, "60m"])),
        ("", "limitranges", json!({}), json!(["x", CREATED])),
        (RBAC, "roles", json!({}), json!(["x", CREATED])),
        (RBAC, "clusterroles", json!({}), json!(["x", CREATED])),
        (
            "coordination.k8s.io",
            "leases",
            json!({"spec": {"holderIdentity": "n1"}}),
            json!(["x", "n1", "60m"]),
        ),
        ("coordination.k8s.io", "leases", json!({"spec": {}}), json!(["x", "", "60m"])),
        (
            "policy",
            "poddisruptionbudgets",
            json!({"spec": {"minAvailable": 2}, "status": {"disruptionsAllowed": 1}}),
            json!(["x", "2", "N/A", 1, "60m"]),
        ),
        (
            "policy",
            "poddisruptionbudgets",
            json!({"spec": {"maxUnavailable": "30%"}}),
            json!(["x", "N/A", "30%", 0, "60m"]),
        ),
        (
            "scheduling.k8s.io",
            "priorityclasses",
            json!({"value": 7, "preemptionPolicy": "Never"}),
            json!(["x", 7, false, "60m", "Never"]),
        ),
        (
            NETWORK,
            "ingressclasses",
            json!({"spec": {"controller": "e/c"}}),
            json!(["x", "e/c", NONE, "60m"]),
        ),
        (
            NETWORK,
            "ingressclasses",
            json!({"spec": {"controller": "e/c", "parameters": {"apiGroup": "g", "kind": "K", "name": "n"}}}),
            json!(["x", "e/c", "K.g/n", "60m"]),
        ),
        ("apps", "controllerrevisions", json!({"revision": 3}), json!(["x", NONE, 3, "60m"])),
        (
            RBAC,
            "clusterrolebindings",
            json!({"roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "Group", "name": "g"}, {"kind": "Group", "name": "h"}]}),
            json!(["x", "ClusterRole/r", "60m", "", "g, h", ""]),
        ),
    ] {
        assert_eq!(row(group, plural, &object), expected, "{plural} {object}");
    }
}

#[test]
fn templates_and_controllers_read_as_upstreams() {
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    assert_eq!(
        row("", "podtemplates", &json!({"template": template})),
        json!(["x", "c", "i:1", "a=b"])
    );
    let controller = json!({"spec": {"replicas": 2, "selector": {"a": "b"}, "template": template}, "status": {"replicas": 1}});
    let expected = json!(["x", 2, 1, 0, "60m", "c", "i:1", "a=b"]);
    assert_eq!(row("", "replicationcontrollers", &controller), expected);
    let job = json!({"spec": {"parallelism": 3, "selector": {"matchLabels": {"a": "b"}}, "template": template},
        "status": {"succeeded": 1, "startTime": CREATED, "completionTime": "2026-01-10T11:00:09Z", "conditions": [{"type": "Complete", "status": "True"}]}});
    let expected = json!(["x", "Complete", "1/1 of 3", "9s", "60m", "c", "i:1", "a=b"]);
    assert_eq!(row("batch", "jobs", &job), expected);
}

#[test]
fn amounts_are_zero_where_they_are_unknown() {
    let volume = row("", "persistentvolumes", &json!({"metadata": {"deletionTimestamp": CREATED}}));
    assert_eq!(volume, json!(["x", "0", "", "", "Terminating", "", "", UNSET, "", "60m", UNSET]));
    let claim = json!({"spec": {"volumeName": "v"}, "status": {"phase": "Bound"}});
    let expected = json!(["x", "Bound", "v", "0", "", "", UNSET, "60m", UNSET]);
    assert_eq!(row("", "persistentvolumeclaims", &claim), expected);
    let claim = row("", "persistentvolumeclaims", &json!({"status": {"phase": "Pending"}}));
    assert_eq!(claim, json!(["x", "Pending", "", "", "", "", UNSET, "60m", UNSET]));
    let class = row("storage.k8s.io", "storageclasses", &json!({"provisioner": "p"}));
    assert_eq!(class, json!(["x", "p", "Delete", "Immediate", false, "60m"]));
}

#[test]
fn endpoints_that_are_not_ready_leave_the_cell_empty() {
    let unready =
        json!({"subsets": [{"notReadyAddresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]});
    assert_eq!(row("", "endpoints", &unready), json!(["x", "", "60m"]));
    let headless = json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]}]});
    assert_eq!(row("", "endpoints", &headless), json!(["x", "10.0.0.1,10.0.0.2", "60m"]));
    let slice = json!({"addressType": "FQDN", "ports": [{"name": ""}],
        "endpoints": [{"addresses": ["a", "b"]}, {"addresses": ["c"]}, {"addresses": ["d"]}]});
    let expected = json!(["x", "FQDN", UNSET, "a,b,c + 1 more...", "60m"]);
    assert_eq!(row("discovery.k8s.io", "endpointslices", &slice), expected);
}
