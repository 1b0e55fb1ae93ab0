//! Rows as users see them, a table a kind.

mod pods;
mod rows;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::resource;

/// The cells below the columns of that name.
fn cells(group: &str, plural: &str, object: &Value, columns: &[&str]) -> Vec<String> {
    let version = "v1";
    let row = resource::find(group, version, plural).unwrap().rules;
    let now: Timestamp = "2026-01-10T12:00:00Z".parse().unwrap();
    let cells = (row.row)(object, now);
    assert_eq!(cells.len(), row.columns.len(), "{plural}");
    columns
        .iter()
        .map(|column| {
            let at = row.columns.iter().position(|known| known.name == *column).unwrap();
            match &cells[at] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            }
        })
        .collect()
}

fn pod(status: Value) -> Value {
    json!({
        "metadata": {"name": "web", "creationTimestamp": "2026-01-04T17:00:00Z"},
        "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}], "nodeName": "n1"},
        "status": status,
    })
}

#[test]
fn pods_show_what_their_containers_do() {
    let running = |name: &str| json!({"name": name, "ready": true, "restartCount": 0, "state": {"running": {}}});
    let over = json!([{"name": "i", "restartCount": 3, "state": {"terminated": {"exitCode": 0}}}]);
    let waiting = |reason: &str| {
        json!({"name": "b", "ready": false, "restartCount": 2, "state": {"waiting": {"reason": reason}},
            "lastState": {"terminated": {"finishedAt": "2026-01-10T11:55:00Z"}}})
    };
    let ended = |reason: &str, code: i32| json!({"name": "b", "ready": false, "restartCount": 0, "state": {"terminated": {"reason": reason, "exitCode": code}}});
    for (status, expected) in [
        (json!({"phase": "Pending"}), ["0/2", "Pending", "0"]),
        (
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            ["0/2", "SchedulingGated", "0"],
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 0, "state": {"running": {}}}]}),
            ["0/2", "Init:0/1", "0"],
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
            ["0/2", "Init:CrashLoopBackOff", "4"],
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 0, "state": {"terminated": {"reason": "Error", "exitCode": 1}}}]}),
            ["0/2", "Init:Error", "0"],
        ),
        (
            json!({"phase": "Running", "initContainerStatuses": over, "containerStatuses": [running("a"), running("b")]}),
            ["2/2", "Running", "0"],
        ),
        (
            json!({"phase": "Running", "initContainerStatuses": over, "containerStatuses": [running("a"), waiting("CrashLoopBackOff")]}),
            ["1/2", "CrashLoopBackOff", "2 (5m ago)"],
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": over, "containerStatuses": [running("a"), waiting("ImagePullBackOff")]}),
            ["1/2", "ImagePullBackOff", "2 (5m ago)"],
        ),
        (
            json!({"phase": "Running", "initContainerStatuses": over, "containerStatuses": [ended("Completed", 0), running("b")], "conditions": [{"type": "Ready", "status": "False"}]}),
            ["1/2", "NotReady", "0"],
        ),
        (
            json!({"phase": "Succeeded", "containerStatuses": [ended("Completed", 0)]}),
            ["0/2", "Completed", "0"],
        ),
        (
            json!({"phase": "Failed", "containerStatuses": [ended("Error", 1)]}),
            ["0/2", "Error", "0"],
        ),
        (
            json!({"phase": "Failed", "containerStatuses": [ended("", 137)]}),
            ["0/2", "ExitCode:137", "0"],
        ),
        (json!({"phase": "Failed", "reason": "Evicted"}), ["0/2", "Evicted", "0"]),
    ] {
        let row = cells("", "pods", &pod(status.clone()), &["Ready", "Status", "Restarts"]);
        assert_eq!(row, expected, "{status}");
    }
}

#[test]
fn pods_show_where_they_are_and_whether_they_go() {
    let mut object =
        pod(json!({"phase": "Running", "podIPs": [{"ip": "10.244.1.2"}], "podIP": "10.244.1.2"}));
    let columns = ["Status", "Age", "IP", "Node", "Nominated Node", "Readiness Gates"];
    let row = cells("", "pods", &object, &columns);
    assert_eq!(row, ["Running", "5d19h", "10.244.1.2", "n1", "<none>", "<none>"]);
    object["metadata"]["deletionTimestamp"] = json!("2026-01-10T12:00:00Z");
    object["spec"]["readinessGates"] = json!([{"conditionType": "x/y"}]);
    let row = cells("", "pods", &object, &columns);
    assert_eq!((row[0].as_str(), row[5].as_str()), ("Terminating", "0/1"));
    object["status"]["reason"] = json!("NodeLost");
    assert_eq!(cells("", "pods", &object, &["Status"]), ["Unknown"]);
}

#[test]
fn services_show_addresses_and_ports() {
    for (spec, status, expected) in [
        (
            json!({"type": "ClusterIP", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 443, "protocol": "TCP"}]}),
            json!({}),
            ["ClusterIP", "10.96.0.1", "<none>", "443/TCP", "<none>"],
        ),
        (
            json!({"type": "ClusterIP", "clusterIPs": ["None"], "selector": {"b": "2", "a": "1"}}),
            json!({}),
            ["ClusterIP", "None", "<none>", "<none>", "a=1,b=2"],
        ),
        (
            json!({"type": "NodePort", "clusterIPs": ["10.96.0.2"], "externalIPs": ["1.2.3.4"], "ports": [{"port": 80, "nodePort": 30007, "protocol": "TCP"}, {"port": 53, "nodePort": 30008, "protocol": "UDP"}]}),
            json!({}),
            ["NodePort", "10.96.0.2", "1.2.3.4", "80:30007/TCP,53:30008/UDP", "<none>"],
        ),
        (
            json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.3"]}),
            json!({}),
            ["LoadBalancer", "10.96.0.3", "<pending>", "<none>", "<none>"],
        ),
        (
            json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.3"], "externalIPs": ["1.2.3.4"]}),
            json!({"loadBalancer": {"ingress": [{"ip": "198.18.0.9"}, {"hostname": "a.example"}]}}),
            ["LoadBalancer", "10.96.0.3", "198.18.0.9,a.example,1.2.3.4", "<none>", "<none>"],
        ),
        (
            json!({"type": "ExternalName", "externalName": "db.example"}),
            json!({}),
            ["ExternalName", "<none>", "db.example", "<none>", "<none>"],
        ),
    ] {
        let object = json!({"metadata": {"name": "s"}, "spec": spec, "status": status});
        let columns = ["Type", "Cluster-IP", "External-IP", "Port(s)", "Selector"];
        assert_eq!(cells("", "services", &object, &columns), expected, "{spec}");
    }
}

#[test]
fn endpoints_show_three_and_how_many_more() {
    let addresses: Vec<Value> = (2..6).map(|n| json!({"ip": format!("10.244.1.{n}")})).collect();
    let object = json!({"metadata": {"name": "e"}, "subsets": [{"addresses": addresses, "ports": [{"port": 8080}]}]});
    let shown = "10.244.1.2:8080,10.244.1.3:8080,10.244.1.4:8080 + 1 more...";
    assert_eq!(cells("", "endpoints", &object, &["Endpoints", "Age"]), [shown, "<unknown>"]);
    let six = json!({"subsets": [{"addresses": [{"ip": "fd00::1"}], "ports": [{"port": 80}]}]});
    assert_eq!(cells("", "endpoints", &six, &["Endpoints"]), ["[fd00::1]:80"]);
    assert_eq!(cells("", "endpoints", &json!({}), &["Endpoints"]), ["<none>"]);
    let slice = json!({"addressType": "IPv4", "ports": [{"port": 80}, {"name": "x"}, {}], "endpoints": [{"addresses": ["10.0.0.1"]}]});
    let row =
        cells("discovery.k8s.io", "endpointslices", &slice, &["AddressType", "Ports", "Endpoints"]);
    assert_eq!(row, ["IPv4", "80,x,*", "10.0.0.1"]);
    let empty = json!({"addressType": "IPv4", "ports": null, "endpoints": []});
    assert_eq!(
        cells("discovery.k8s.io", "endpointslices", &empty, &["Ports", "Endpoints"]),
        ["<unset>", "<unset>"]
    );
}

#[test]
fn workloads_show_their_counts() {
    let template = json!({"spec": {"containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "y:2"}], "nodeSelector": {"k": "v"}}});
    let deployment = json!({
        "spec": {"replicas": 3, "template": template, "selector": {"matchLabels": {"z": "1"}, "matchExpressions": [{"key": "a", "operator": "In", "values": ["d", "c"]}]}},
        "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1, "replicas": 3},
    });
    let columns = ["Ready", "Up-to-date", "Available", "Containers", "Images", "Selector"];
    let row = cells("apps", "deployments", &deployment, &columns);
    assert_eq!(row, ["2/3", "3", "1", "a,b", "x:1,y:2", "a in (c,d),z=1"]);
    let row = cells("apps", "replicasets", &deployment, &["Desired", "Current", "Ready"]);
    assert_eq!(row, ["3", "3", "2"]);
    assert_eq!(cells("apps", "statefulsets", &deployment, &["Ready"]), ["2/3"]);
    let daemons = json!({"spec": {"template": template}, "status": {"desiredNumberScheduled": 3, "numberReady": 2}});
    assert_eq!(
        cells("apps", "daemonsets", &daemons, &["Desired", "Ready", "Node Selector"]),
        ["3", "2", "k=v"]
    );
    let job = json!({"spec": {"completions": 3}, "status": {"succeeded": 1, "startTime": "2026-01-10T11:00:00Z"}});
    assert_eq!(
        cells("batch", "jobs", &job, &["Status", "Completions", "Duration"]),
        ["Running", "1/3", "60m"]
    );
    let cron = json!({"spec": {"schedule": "* * * * *", "suspend": false}, "status": {"active": [{}], "lastScheduleTime": "2026-01-10T11:59:00Z"}});
    let row = cells(
        "batch",
        "cronjobs",
        &cron,
        &["Schedule", "Timezone", "Suspend", "Active", "Last Schedule"],
    );
    assert_eq!(row, ["* * * * *", "<none>", "False", "1", "60s"]);
    let owner = json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "controller": true}]);
    let revision = json!({"metadata": {"ownerReferences": owner}, "revision": 2});
    assert_eq!(
        cells("apps", "controllerrevisions", &revision, &["Controller", "Revision"]),
        ["statefulset.apps/web", "2"]
    );
}

#[test]
fn nodes_show_roles_and_readiness() {
    let object = json!({
        "metadata": {"labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "edge"}},
        "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "198.18.0.2"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.1", "containerRuntimeVersion": ""}},
    });
    let columns = [
        "Status",
        "Roles",
        "Version",
        "Internal-IP",
        "External-IP",
        "OS-Image",
        "Container-Runtime",
    ];
    let row = cells("", "nodes", &object, &columns);
    let expected = [
        "Ready,SchedulingDisabled",
        "control-plane,edge",
        "v1.36.0",
        "198.18.0.2",
        "<none>",
        "Debian",
        "<unknown>",
    ];
    assert_eq!(row, expected);
    assert_eq!(cells("", "nodes", &json!({}), &["Status", "Roles"]), ["Unknown", "<none>"]);
}

#[test]
fn events_show_times_and_what_they_are_about() {
    let core = json!({
        "metadata": {"name": "web.1"}, "involvedObject": {"kind": "Pod", "name": "web", "fieldPath": "spec.containers{a}"},
        "reason": "Pulled", "type": "Normal", "message": " done \n", "count": 3, "source": {"component": "kubelet", "host": "n1"},
        "firstTimestamp": "2026-01-10T11:50:00Z", "lastTimestamp": "2026-01-10T11:58:00Z",
    });
    let columns =
        ["Last Seen", "Type", "Reason", "Object", "Source", "Message", "First Seen", "Count"];
    let row = cells("", "events", &core, &columns);
    assert_eq!(row, ["2m", "Normal", "Pulled", "pod/web", "kubelet, n1", "done", "10m", "3"]);
    let served = json!({"regarding": {"kind": "Node", "name": "n1"}, "note": "x", "eventTime": "2026-01-10T11:59:30.000000Z", "reportingController": "c", "reportingInstance": "i"});
    let row = cells(
        "events.k8s.io",
        "events",
        &served,
        &["Last Seen", "Object", "Source", "Message", "Count"],
    );
    assert_eq!(row, ["30s", "node/n1", "c, i", "x", "1"]);
}

#[test]
fn storage_and_access_read_as_upstreams() {
    let volume = json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"], "claimRef": {"namespace": "d", "name": "c"}, "persistentVolumeReclaimPolicy": "Retain"}, "status": {"phase": "Bound"}});
    let columns = ["Capacity", "Access Modes", "Status", "Claim", "VolumeAttributesClass"];
    assert_eq!(
        cells("", "persistentvolumes", &volume, &columns),
        ["1Gi", "RWO,RWX", "Bound", "d/c", "<unset>"]
    );
    let claim = json!({"spec": {"volumeName": "v", "storageClassName": "local", "volumeMode": "Filesystem"}, "status": {"phase": "Bound", "capacity": {"storage": "2048Mi"}, "accessModes": ["ReadWriteOnce"]}});
    let columns = ["Status", "Volume", "Capacity", "Access Modes", "StorageClass", "VolumeMode"];
    assert_eq!(
        cells("", "persistentvolumeclaims", &claim, &columns),
        ["Bound", "v", "2Gi", "RWO", "local", "Filesystem"]
    );
    let class = json!({"metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p", "volumeBindingMode": "Immediate"});
    let columns =
        ["Name", "Provisioner", "ReclaimPolicy", "VolumeBindingMode", "AllowVolumeExpansion"];
    assert_eq!(
        cells("storage.k8s.io", "storageclasses", &class, &columns),
        ["local (default)", "p", "Delete", "Immediate", "false"]
    );
    let binding = json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]});
    let row = cells(
        "rbac.authorization.k8s.io",
        "rolebindings",
        &binding,
        &["Role", "Users", "Groups", "ServiceAccounts"],
    );
    assert_eq!(row, ["Role/r", "u", "", "n/s"]);
    let quota =
        json!({"status": {"hard": {"pods": "4", "limits.cpu": "2000m"}, "used": {"pods": "1"}}});
    assert_eq!(
        cells("", "resourcequotas", &quota, &["Request", "Limit"]),
        ["pods: 1/4", "limits.cpu: 0/2"]
    );
}

#[test]
fn network_kinds_read_as_upstreams() {
    let group = "networking.k8s.io";
    let rules: Vec<Value> = ["a", "b", "c", "d"].iter().map(|host| json!({"host": host})).collect();
    let ingress = json!({"spec": {"rules": rules, "tls": [{}]}, "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}});
    let row = cells(group, "ingresses", &ingress, &["Class", "Hosts", "Address", "Ports"]);
    assert_eq!(row, ["<none>", "a,b,c + 1 more...", "1.2.3.4", "80, 443"]);
    assert_eq!(cells(group, "ingresses", &json!({}), &["Hosts", "Ports"]), ["*", "80"]);
    let policy = json!({"spec": {"podSelector": {}}});
    assert_eq!(cells(group, "networkpolicies", &policy, &["Pod-Selector"]), ["<none>"]);
    let address = json!({"spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "kubernetes"}}});
    assert_eq!(
        cells(group, "ipaddresses", &address, &["ParentRef"]),
        ["services/default/kubernetes"]
    );
    let range = json!({"spec": {"cidrs": ["10.96.0.0/12", "fd00::/112"]}});
    assert_eq!(cells(group, "servicecidrs", &range, &["CIDRs"]), ["10.96.0.0/12,fd00::/112"]);
}

#[test]
fn every_row_has_a_cell_for_every_column() {
    let now: Timestamp = "2026-01-10T12:00:00Z".parse().unwrap();
    for resource in resource::RESOURCES {
        let cells = (resource.rules.row)(&json!({"metadata": {"name": "x"}}), now);
        assert_eq!(cells.len(), resource.rules.columns.len(), "{resource:?}");
        assert!(
            resource.rules.columns.iter().any(|column| column.format == "name"),
            "{resource:?}"
        );
    }
}
