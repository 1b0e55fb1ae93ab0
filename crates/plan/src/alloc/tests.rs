//! Rules of allocation, and that nothing is given twice.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeSet;

fn mk_allocator() -> Allocator {
    Allocator::new(&["10.96.0.0/24".parse().unwrap()], 30000..=30099)
}

fn mk_service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"namespace": "default", "name": name}, "spec": spec})
}

fn web(kind: &str) -> Value {
    mk_service(
        "web",
        json!({"type": kind, "selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP"}]}),
    )
}

fn refused(allocator: &Allocator, spec: Value) -> String {
    allocator.allocate(&mut mk_service("web", spec), None, 7).unwrap_err().message
}

#[test]
fn bands_are_those_of_the_proposals() {
    for (size, band) in [(1 << 16, 256), (1 << 10, 64), (64, 16), (16, 16), (15, 0), (1, 0)] {
        assert_eq!(address_band(size), band, "{size}");
    }
    assert_eq!(port_band(2768), 86);
    assert_eq!(port_band(32), 16);
    assert_eq!(port_band(8), 0);
}

#[test]
fn dynamic_values_come_from_the_upper_bands() {
    let allocator = mk_allocator();
    for seed in 0..500 {
        let mut service = web("NodePort");
        allocator.allocate(&mut service, None, seed).unwrap();
        let IpAddr::V4(address) = addresses_of(&service)[0] else { panic!("IPv4") };
        assert!(address.octets()[3] > 16 && address.octets()[3] < 255, "{address}");
        assert!(service["spec"]["ports"][0]["nodePort"].as_u64().unwrap() >= 30016);
    }
}

fn addresses_of(service: &Value) -> Vec<IpAddr> {
    service::addresses(service)
}

#[test]
fn a_full_upper_band_spills_into_the_lower_and_then_fails() {
    let mut allocator = Allocator::new(&["10.0.0.0/28".parse().unwrap()], 30000..=30000);
    let mut given = BTreeSet::new();
    for index in 0..14 {
        let mut service =
            mk_service(&format!("s{index}"), json!({"type": "ClusterIP", "selector": {"a": "b"}}));
        allocator.allocate(&mut service, None, index * 31).unwrap();
        allocator.take(&service);
        given.extend(addresses_of(&service));
    }
    assert_eq!(given.len(), 14);
    let spec = json!({"type": "ClusterIP", "selector": {"a": "b"}});
    assert_eq!(
        refused(&allocator, spec),
        "Internal error occurred: failed to allocate a serviceIP: range is full"
    );
}

#[test]
fn refusals_speak_as_upstream() {
    let mut allocator = mk_allocator();
    allocator.take(&mk_service(
        "other",
        json!({"type": "NodePort", "clusterIP": "10.96.0.5",
        "clusterIPs": ["10.96.0.5"], "ports": [{"port": 1, "nodePort": 30007}]}),
    ));
    let with = |clusters: &[&str]| json!({"clusterIP": clusters[0], "clusterIPs": clusters, "selector": {"a": "b"}});
    assert_eq!(
        refused(&allocator, with(&["10.96.0.5"])),
        "Service \"web\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.5\"]: failed to allocate IP 10.96.0.5: \
         provided IP is already allocated"
    );
    for outside in ["10.97.0.5", "10.96.0.0", "10.96.0.255"] {
        let message = refused(&allocator, with(&[outside]));
        assert!(message.ends_with(&format!(
            "failed to allocate IP {outside}: provided IP is not in the valid range. The range of valid IPs is \
             10.96.0.0/24"
        )));
    }
    assert_eq!(
        refused(&allocator, with(&["fd00::1"])),
        "Service \"web\" is invalid: spec.clusterIPs[0]: Invalid value: [\"fd00::1\"]: IPv6 is not configured on this \
         cluster"
    );
    let port = |number: u16| json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "nodePort": number}]});
    assert_eq!(
        refused(&allocator, port(30007)),
        "Service \"web\" is invalid: spec.ports[0].nodePort: Invalid value: 30007: provided port is already allocated"
    );
    assert_eq!(
        refused(&allocator, port(80)),
        "Service \"web\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid \
         range. The range of valid ports is 30000-30099"
    );
    assert_eq!(
        refused(&allocator, json!({"ipFamilyPolicy": "RequireDualStack", "selector": {"a": "b"}})),
        "Service \"web\" is invalid: spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not \
         configured for dual-stack services"
    );
    assert_eq!(
        refused(&allocator, json!({"ipFamilies": ["IPv6"], "selector": {"a": "b"}})),
        "Service \"web\" is invalid: spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"
    );
}

#[test]
fn families_default_by_policy_and_cluster() {
    let single = mk_allocator();
    let dual = Allocator::new(
        &["10.96.0.0/24".parse().unwrap(), "fd00::/112".parse().unwrap()],
        30000..=30099,
    );
    let complete = |allocator: &Allocator, spec: Value| {
        let mut service = mk_service("web", spec);
        allocator.allocate(&mut service, None, 3).unwrap();
        service["spec"].clone()
    };
    let plain = complete(&single, json!({"selector": {"a": "b"}}));
    assert_eq!(
        (&plain["ipFamilyPolicy"], &plain["ipFamilies"]),
        (&json!("SingleStack"), &json!(["IPv4"]))
    );
    let headless = complete(&single, json!({"clusterIP": "None"}));
    assert_eq!(headless["ipFamilyPolicy"], "RequireDualStack");
    assert_eq!(headless["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(headless["clusterIPs"], json!(["None"]));
    let headless = complete(&single, json!({"clusterIP": "None", "selector": {"a": "b"}}));
    assert_eq!(
        (&headless["ipFamilyPolicy"], &headless["ipFamilies"]),
        (&json!("SingleStack"), &json!(["IPv4"]))
    );
    let prefer = json!({"ipFamilyPolicy": "PreferDualStack", "selector": {"a": "b"}});
    assert_eq!(complete(&single, prefer.clone())["ipFamilies"], json!(["IPv4"]));
    let both = complete(&dual, prefer);
    assert_eq!(both["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(both["clusterIPs"].as_array().unwrap().len(), 2);
    assert_eq!(both["clusterIP"], both["clusterIPs"][0]);
    assert!(
        complete(&single, json!({"type": "ExternalName", "externalName": "a.b"}))
            .get("ipFamilies")
            .is_none()
    );
}

#[test]
fn what_prefers_two_families_stays_content_with_one() {
    let single = mk_allocator();
    let mut old =
        mk_service("web", json!({"ipFamilyPolicy": "PreferDualStack", "selector": {"a": "b"}}));
    single.allocate(&mut old, None, 3).unwrap();
    let mut dual = Allocator::new(
        &["10.96.0.0/24".parse().unwrap(), "fd00::/112".parse().unwrap()],
        30000..=30099,
    );
    dual.take(&old);
    let mut same = old.clone();
    same["spec"]["selector"] = json!({"a": "c"});
    dual.allocate(&mut same, Some(&old), 3).unwrap();
    assert_eq!(same["spec"]["ipFamilies"], json!(["IPv4"]), "the cluster got the other one");
    assert_eq!(same["spec"]["clusterIPs"], old["spec"]["clusterIPs"]);
    same["spec"]["ipFamilyPolicy"] = "RequireDualStack".into();
    dual.allocate(&mut same, Some(&old), 3).unwrap();
    assert_eq!(same["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]), "asked for, it comes");
    assert_eq!(same["spec"]["clusterIPs"][0], old["spec"]["clusterIPs"][0]);
}

#[test]
fn addresses_of_others_are_not_given() {
    let mut allocator = Allocator::new(&["10.96.0.0/30".parse().unwrap()], 30000..=30099);
    allocator.reserve("10.96.0.1".parse().unwrap());
    for seed in 0..10 {
        let mut service = web("ClusterIP");
        allocator.allocate(&mut service, None, seed).unwrap();
        assert_eq!(service["spec"]["clusterIP"], "10.96.0.2");
    }
    let asked = json!({"clusterIP": "10.96.0.1", "selector": {"a": "b"}});
    assert!(refused(&allocator, asked).ends_with("provided IP is already allocated"));
}

#[test]
fn updates_keep_and_release_by_type() {
    let mut allocator = mk_allocator();
    let mut old = web("NodePort");
    allocator.allocate(&mut old, None, 9).unwrap();
    allocator.take(&old);
    let mut same = web("NodePort");
    allocator.allocate(&mut same, Some(&old), 10).unwrap();
    assert_eq!(same["spec"], old["spec"]);
    let mut cluster_ip = old.clone();
    cluster_ip["spec"]["type"] = "ClusterIP".into();
    allocator.allocate(&mut cluster_ip, Some(&old), 10).unwrap();
    assert!(cluster_ip["spec"]["ports"][0].get("nodePort").is_none());
    assert_eq!(cluster_ip["spec"]["clusterIP"], old["spec"]["clusterIP"]);
    let mut external = old.clone();
    external["spec"]["type"] = "ExternalName".into();
    allocator.allocate(&mut external, Some(&old), 10).unwrap();
    assert!(
        external["spec"].get("clusterIP").is_none() && external["spec"].get("ipFamilies").is_none()
    );
    let mut back = external.clone();
    back["spec"]["type"] = "ClusterIP".into();
    allocator.allocate(&mut back, Some(&external), 10).unwrap();
    assert!(!addresses_of(&back).is_empty());
}

#[test]
fn protocols_of_one_port_share_a_node_port() {
    let ports = json!([{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}, {"port": 9153, "protocol": "TCP"}]);
    let mut service = mk_service("dns", json!({"type": "NodePort", "ports": ports}));
    mk_allocator().allocate(&mut service, None, 1).unwrap();
    let port = |index: usize| service["spec"]["ports"][index]["nodePort"].as_u64().unwrap();
    assert_eq!(port(0), port(1));
    assert_ne!(port(0), port(2));
}

#[test]
fn local_load_balancers_get_a_health_check_port() {
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "allocateLoadBalancerNodePorts": false,
        "ports": [{"port": 80, "protocol": "TCP"}]});
    let mut service = mk_service("lb", spec);
    mk_allocator().allocate(&mut service, None, 1).unwrap();
    assert!(service["spec"]["ports"][0].get("nodePort").is_none());
    let old = service.clone();
    assert!(service["spec"]["healthCheckNodePort"].as_u64().is_some());
    service["spec"]["externalTrafficPolicy"] = "Cluster".into();
    mk_allocator().allocate(&mut service, Some(&old), 1).unwrap();
    assert!(service["spec"].get("healthCheckNodePort").is_none());
}

proptest! {
    #[test]
    fn nothing_is_given_twice(steps in proptest::collection::vec((0u8..40, 0u8..4, any::<u64>()), 1..120)) {
        let mut allocator = Allocator::new(&["10.0.0.0/26".parse().unwrap()], 30000..=30063);
        let mut stored: BTreeMap<u8, Value> = BTreeMap::new();
        for (which, action, seed) in steps {
            let kind = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"][usize::from(action)];
            let spec = json!({"type": kind, "selector": {"a": "b"}, "externalTrafficPolicy": "Local",
                "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}]});
            let mut new = mk_service(&format!("s{which}"), spec);
            let old = stored.get(&which).cloned();
            if old.is_some() && seed % 3 == 0 {
                allocator.release(&old.unwrap());
                stored.remove(&which);
            } else if allocator.allocate(&mut new, old.as_ref(), seed).is_ok() {
                if let Some(old) = &old {
                    allocator.release(old);
                }
                allocator.take(&new);
                stored.insert(which, new);
            }
            let all: Vec<IpAddr> = stored.values().flat_map(addresses_of).collect();
            prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
            let ports: Vec<u16> = stored.values().flat_map(service::node_ports).collect();
            prop_assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len());
            prop_assert_eq!(allocator.addresses_taken.len(), all.len());
            prop_assert_eq!(allocator.ports_taken.len(), ports.len());
        }
    }
}
