//! What quotas count, by example.

use super::*;

fn used(spec: Value, contents: Contents) -> BTreeMap<String, String> {
    let quota: ResourceQuota =
        serde_json::from_value(json!({"metadata": {"name": "q"}, "spec": spec})).expect("decodes");
    let plan = plan(&quota, &contents);
    let [Action::UpdateStatus(object)] = plan.actions.as_slice() else { panic!("{plan:?}") };
    let value = json!(object);
    assert_eq!(value["status"]["hard"], value["spec"]["hard"]);
    serde_json::from_value(value["status"]["used"].clone()).expect("a map of quantities")
}

fn of(group: &str, plural: &str, objects: &[Value]) -> Contents {
    [((group.to_owned(), plural.to_owned()), objects.to_vec())].into_iter().collect()
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn pod(requests: &Value, spec: &Value) -> Value {
    let mut pod = json!({"spec": {"containers": [{"resources": {"requests": requests}}]}});
    for (field, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][field] = value.clone();
    }
    pod
}

#[test]
fn an_empty_namespace_uses_nothing() {
    let used = used(json!({"hard": {"pods": "5", "cpu": "1"}}), Contents::new());
    assert_eq!(used, map(&[("cpu", "0"), ("pods", "0")]));
}

#[test]
fn pods_count_by_their_requests_until_they_end() {
    let running = pod(&json!({"cpu": "500m", "memory": "252Mi", "example.com/d": "2"}), &json!({}));
    let mut ended = running.clone();
    ended["status"]["phase"] = "Succeeded".into();
    let hard = json!({"pods": "5", "cpu": "1", "requests.memory": "1Gi",
        "requests.example.com/d": "3", "count/pods": "9"});
    let used = used(json!({"hard": hard}), of("", "pods", &[running, ended]));
    let expected = [
        ("pods", "1"),
        ("cpu", "500m"),
        ("requests.memory", "252Mi"),
        ("requests.example.com/d", "2"),
        ("count/pods", "2"),
    ];
    assert_eq!(used, map(&expected));
}

#[test]
fn sidecars_count_beside_the_containers() {
    let init = json!({"initContainers": [
        {"restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
        {"resources": {"requests": {"cpu": "2"}}},
    ]});
    let pod = pod(&json!({"cpu": "500m"}), &init);
    assert_eq!(pod_resources(&pod)["requests"]["cpu"], "3");
}

#[test]
fn a_quota_with_scopes_is_about_the_pods_in_them() {
    let best = pod(&json!({}), &json!({}));
    let burst = pod(&json!({"cpu": "1"}), &json!({"activeDeadlineSeconds": 5}));
    let important = pod(&json!({}), &json!({"priorityClassName": "high"}));
    let pods = of("", "pods", &[best, burst, important]);
    for (scope, count) in [
        (json!({"scopes": ["BestEffort"]}), "2"),
        (json!({"scopes": ["NotBestEffort", "NotTerminating"]}), "0"),
        (json!({"scopes": ["Terminating"]}), "1"),
        (json!({"scopes": ["PriorityClass"]}), "1"),
        (
            json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}),
            "1",
        ),
    ] {
        let mut spec = json!({"hard": {"pods": "5"}});
        merge(&mut spec, &scope);
        assert_eq!(used(spec, pods.clone()), map(&[("pods", count)]), "{scope}");
    }
}

fn merge(into: &mut Value, from: &Value) {
    for (field, value) in from.as_object().into_iter().flatten() {
        into[field] = value.clone();
    }
}

#[test]
fn services_and_claims_count_by_what_they_take() {
    let service = json!({"spec": {"type": "LoadBalancer", "ports": [{"nodePort": 30000}, {}]}});
    let hard = json!({"services": "3", "services.nodeports": "3", "services.loadbalancers": "1"});
    let expected =
        [("services", "1"), ("services.nodeports", "1"), ("services.loadbalancers", "1")];
    assert_eq!(used(json!({"hard": hard}), of("", "services", &[service])), map(&expected));

    let claim = json!({"spec": {"storageClassName": "gold",
        "resources": {"requests": {"storage": "1Gi"}}}});
    let hard = json!({"persistentvolumeclaims": "3", "requests.storage": "9Gi",
        "gold.storageclass.storage.k8s.io/requests.storage": "9Gi",
        "gold.storageclass.storage.k8s.io/persistentvolumeclaims": "9"});
    let expected = [
        ("persistentvolumeclaims", "1"),
        ("requests.storage", "1Gi"),
        ("gold.storageclass.storage.k8s.io/requests.storage", "1Gi"),
        ("gold.storageclass.storage.k8s.io/persistentvolumeclaims", "1"),
    ];
    assert_eq!(
        used(json!({"hard": hard}), of("", "persistentvolumeclaims", &[claim])),
        map(&expected)
    );
}

#[test]
fn any_kind_can_be_counted() {
    let hard = json!({"count/replicasets.apps": "3"});
    let limits = super::hard(&json!({"spec": {"hard": hard}}));
    assert!(concerns("apps", "replicasets", &limits));
    assert!(!concerns("apps", "deployments", &limits) && !concerns("", "pods", &limits));
    let used = used(json!({"hard": hard}), of("apps", "replicasets", &[json!({})]));
    assert_eq!(used, map(&[("count/replicasets.apps", "1")]));
}
