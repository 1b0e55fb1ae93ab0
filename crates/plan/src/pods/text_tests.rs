//! Environment and files of pods, as containers see them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::core::{ConfigMap, Pod, PodStatus, Secret, Service};
use api::{Kind, Objects};
use serde_json::{Value, json};

use super::env::{Sources, Subject, container_env, expand, service_env};
use super::files::{Dns, hosts, hosts_of_node, resolv_conf, uts_hostname};
use super::volumes::{Content, files, references};

fn mk_pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u1", "labels": {"b": "2", "a": "1"}},
        "spec": spec,
    }))
    .unwrap()
}

fn mk_services(list: &[Value]) -> Objects<Service> {
    list.iter()
        .map(|value| {
            let service: Service = serde_json::from_value(value.clone()).unwrap();
            (service.object_name(), Arc::new(service))
        })
        .collect()
}

fn mk_sources() -> Sources {
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "cm"}, "data": {"k": "v", "a=b": "x"}}))
            .unwrap();
    let secret: Secret =
        serde_json::from_value(json!({"metadata": {"name": "s"}, "data": {"pw": "aHVudGVy"}}))
            .unwrap();
    Sources {
        config_maps: BTreeMap::from([("cm".to_owned(), Arc::new(map))]),
        secrets: BTreeMap::from([("s".to_owned(), Arc::new(secret))]),
        ..Sources::default()
    }
}

#[test]
fn variables_expand_and_unknown_ones_stay() {
    let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
    for (text, expected) in [
        ("$(A)", "1"),
        ("x$(A)y$(B)", "x1y$(B)"),
        ("$$(A)", "$(A)"),
        ("$A $", "$A $"),
        ("$(A", "$(A"),
        ("$$$(A)", "$1"),
    ] {
        assert_eq!(expand(text, lookup), expected, "{text}");
    }
}

#[test]
fn services_appear_as_upstream_spells_them() {
    let services = mk_services(&[
        json!({"metadata": {"name": "kubernetes", "namespace": "default"},
               "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]}}),
        json!({"metadata": {"name": "redis-master", "namespace": "ns"},
               "spec": {"clusterIP": "10.0.0.11", "ports": [{"port": 6379, "protocol": "TCP"}]}}),
        json!({"metadata": {"name": "headless", "namespace": "ns"}, "spec": {"clusterIP": "None"}}),
        json!({"metadata": {"name": "other", "namespace": "default"},
               "spec": {"clusterIP": "10.0.0.12", "ports": [{"port": 1}]}}),
    ]);
    let env: Vec<String> = service_env(&services, "ns", true)
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let expected = [
        "KUBERNETES_PORT=tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
        "KUBERNETES_PORT_443_TCP_PORT=443",
        "KUBERNETES_PORT_443_TCP_PROTO=tcp",
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
        "KUBERNETES_SERVICE_PORT=443",
        "KUBERNETES_SERVICE_PORT_HTTPS=443",
        "REDIS_MASTER_PORT=tcp://10.0.0.11:6379",
        "REDIS_MASTER_PORT_6379_TCP=tcp://10.0.0.11:6379",
        "REDIS_MASTER_PORT_6379_TCP_ADDR=10.0.0.11",
        "REDIS_MASTER_PORT_6379_TCP_PORT=6379",
        "REDIS_MASTER_PORT_6379_TCP_PROTO=tcp",
        "REDIS_MASTER_SERVICE_HOST=10.0.0.11",
        "REDIS_MASTER_SERVICE_PORT=6379",
    ];
    assert_eq!(env, expected);
    let without = service_env(&services, "ns", false);
    assert_eq!(without.len(), 8, "kubernetes stays without service links");
}

#[test]
fn environment_from_all_sources() {
    let pod = mk_pod(json!({"nodeName": "n1", "containers": [{
        "name": "c",
        "resources": {"limits": {"memory": "64Mi"}},
        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}},
                    {"secretRef": {"name": "none", "optional": true}}],
        "env": [
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)-$(P_k)"},
            {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pw"}}},
            {"name": "OPT", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "x", "optional": true}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a']"}}},
            {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        ],
    }]}));
    let status = PodStatus { pod_ip: Some("10.1.1.1".to_owned()), ..PodStatus::default() };
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let subject = Subject { pod: &pod, status: &status };
    let env = container_env(subject, container, &mk_sources()).unwrap();
    let text: Vec<String> = env.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let expected = ["P_k=v", "A=1", "B=1-v", "PW=hunter", "IP=10.1.1.1", "LABEL=1", "MEM=64"];
    assert_eq!(text, expected);
}

#[test]
fn missing_references_are_named() {
    for (from, error) in [
        (json!({"configMapKeyRef": {"name": "no", "key": "k"}}), "configmap \"no\" not found"),
        (
            json!({"configMapKeyRef": {"name": "cm", "key": "no"}}),
            "couldn't find key no in ConfigMap ns/cm",
        ),
        (json!({"secretKeyRef": {"name": "no", "key": "k"}}), "secret \"no\" not found"),
        (
            json!({"secretKeyRef": {"name": "s", "key": "no"}}),
            "couldn't find key no in Secret ns/s",
        ),
    ] {
        let pod = mk_pod(json!({"containers": [{
            "name": "c", "env": [{"name": "X", "valueFrom": from}],
        }]}));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let subject = Subject { pod: &pod, status: &PodStatus::default() };
        assert_eq!(container_env(subject, container, &mk_sources()).unwrap_err(), error);
    }
}

#[test]
fn resolv_conf_follows_the_policy() {
    let host = Dns::parse("search lan example.com\nnameserver 192.0.2.53\noptions edns0\n");
    let server: Option<IpAddr> = Some("10.96.0.10".parse().unwrap());
    let render = |spec: Value| resolv_conf(&mk_pod(spec), &host, server, "cluster.local").render();
    let cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local lan example.com\n\
                   nameserver 10.96.0.10\noptions ndots:5\n";
    let default = "search lan example.com\nnameserver 192.0.2.53\noptions edns0\n";
    assert_eq!(render(json!({"containers": []})), cluster);
    assert_eq!(render(json!({"containers": [], "dnsPolicy": "Default"})), default);
    assert_eq!(render(json!({"containers": [], "hostNetwork": true})), default);
    let with_host =
        json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"});
    assert_eq!(render(with_host), cluster);
    let own = json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
        "nameservers": ["1.2.3.4"], "searches": ["a.b"],
        "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
    }});
    assert_eq!(render(own), "search a.b\nnameserver 1.2.3.4\noptions edns0 ndots:2\n");
}

#[test]
fn hosts_file_names_the_pod_and_its_aliases() {
    let pod = mk_pod(json!({"containers": [], "hostname": "db-0", "subdomain": "db",
        "hostAliases": [{"ip": "10.9.9.9", "hostnames": ["x", "y"]}]}));
    let text = hosts(&pod, &["10.244.0.5".parse().unwrap()], "cluster.local");
    let expected = "# Kubernetes-managed hosts file.\n\
        127.0.0.1\tlocalhost\n\
        ::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\n\
        fe00::0\tip6-mcastprefix\n\
        fe00::1\tip6-allnodes\n\
        fe00::2\tip6-allrouters\n\
        10.244.0.5\tdb-0.db.ns.svc.cluster.local\tdb-0\n\
        \n\
        # Entries added by HostAliases.\n\
        10.9.9.9\tx\ty\n";
    assert_eq!(text, expected);
    assert_eq!(uts_hostname(&pod, "cluster.local"), "db-0");
    let plain = mk_pod(json!({"containers": []}));
    let text = hosts_of_node(&plain, "127.0.0.1 localhost\n");
    assert_eq!(text, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 localhost\n");
}

#[test]
fn projected_volumes_put_their_sources_side_by_side() {
    let pod = mk_pod(json!({"containers": [], "volumes": [{"name": "v", "projected": {
        "defaultMode": 0o400,
        "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
            {"configMap": {"name": "cm", "items": [{"key": "k", "path": "dir/k"}]}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"secret": {"name": "none", "optional": true}},
        ],
    }}]}));
    let volume = &pod.spec.as_ref().unwrap().volumes.as_ref().unwrap()[0];
    let subject = Subject { pod: &pod, status: &PodStatus::default() };
    let made = files(subject, volume, &mk_sources()).unwrap();
    let names: Vec<&str> = made.keys().map(String::as_str).collect();
    assert_eq!(names, ["dir/k", "labels", "token"]);
    assert_eq!(made["dir/k"].mode, 0o400);
    assert_eq!(made["labels"].content, Content::Bytes(b"a=\"1\"\nb=\"2\"".to_vec()));
    let token = Content::Token { audience: String::new(), expiration_seconds: 600 };
    assert_eq!(made["token"].content, token);
    assert_eq!(references(&pod), (vec!["cm".to_owned()], vec!["none".to_owned()]));
}

#[test]
fn missing_keys_fail_the_mount_in_upstreams_words() {
    let pod = mk_pod(json!({"containers": [], "volumes": [
        {"name": "v", "configMap": {"name": "cm", "items": [{"key": "no", "path": "x"}]}},
        {"name": "w", "secret": {"secretName": "no"}},
    ]}));
    let volumes = pod.spec.as_ref().unwrap().volumes.as_ref().unwrap();
    let subject = Subject { pod: &pod, status: &PodStatus::default() };
    let error = |index: usize| files(subject, &volumes[index], &mk_sources()).unwrap_err();
    assert_eq!(error(0), "references non-existent config key: no");
    assert_eq!(error(1), "secret \"no\" not found");
}
