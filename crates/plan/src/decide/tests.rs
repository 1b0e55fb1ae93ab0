//! Who is left out, and why: that no data plane can show. What happens to packets is tested against data planes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use api::{Kind, Objects};
use serde_json::{Value, json};

use super::{Decision, LeftOut, Packet, State, Verdict, decide};
use crate::proxy::Settings;
use crate::service::{FrontendKind, NodeView, Protocol};

fn endpoint(number: u8, node: &str, conditions: &str, hints: &Value) -> Value {
    let is = |word: &str| conditions.contains(word);
    json!({
        "addresses": [format!("10.244.0.{number}")], "nodeName": node, "hints": hints,
        "conditions": { "ready": is("ready"), "serving": is("ready") || is("serving"), "terminating": is("terminating") },
    })
}

fn ask(policy: &str, endpoints: &[Value]) -> Decision {
    let service: api::core::Service = serde_json::from_value(json!({
        "kind": "Service", "apiVersion": "v1", "metadata": { "name": "web", "namespace": "default" },
        "spec": { "type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
            "internalTrafficPolicy": policy, "sessionAffinity": "ClientIP", "ports": [{ "port": 80 }] },
    }))
    .unwrap();
    let slice = |name: &str, family: &str, endpoints: &[Value]| {
        let slice: api::discovery::EndpointSlice = serde_json::from_value(json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": family,
            "metadata": { "name": name, "namespace": "default", "labels": { "kubernetes.io/service-name": "web" } },
            "ports": [{ "name": "", "port": 8080 }], "endpoints": endpoints,
        }))
        .unwrap();
        (slice.object_name(), Arc::new(slice))
    };
    let other = [json!({ "addresses": ["fd44::1"], "nodeName": "n1" })];
    let decision = decide(
        &Packet {
            source: "10.244.0.200".parse().unwrap(),
            from_node: false,
            destination: "10.96.0.10:80".parse().unwrap(),
            protocol: Protocol::Tcp,
        },
        &State {
            services: &Objects::from_iter([(service.object_name(), Arc::new(service))]),
            slices: &Objects::from_iter([
                slice("web-4", "IPv4", endpoints),
                slice("web-6", "IPv6", &other),
            ]),
            node: &NodeView {
                name: "n1".to_owned(),
                zone: Some("z1".to_owned()),
                silent: Arc::new(["n9".to_owned()].into()),
                ..NodeView::default()
            },
            settings: &Settings::default(),
        },
    );
    assert_eq!(decision.frontend, Some(FrontendKind::ClusterIp));
    assert_eq!(decision.affinity_s, Some(10_800));
    decision
}

fn why(decision: &Decision) -> BTreeMap<String, LeftOut> {
    decision.left_out.iter().map(|(address, why)| (address.ip().to_string(), *why)).collect()
}

fn zone(name: &str) -> Value {
    json!({ "forZones": [{ "name": name }] })
}

#[test]
fn everybody_left_out_has_a_reason() {
    let nothing = Value::Null;
    let decision = ask(
        "Cluster",
        &[
            endpoint(1, "n1", "ready", &nothing),
            endpoint(2, "n1", "serving terminating", &nothing),
            endpoint(3, "n1", "", &nothing),
        ],
    );
    let expected = [
        ("10.244.0.2", LeftOut::Terminating),
        ("10.244.0.3", LeftOut::NotReady),
        ("fd44::1", LeftOut::WrongFamily),
    ];
    assert_eq!(why(&decision), expected.map(|(ip, why)| (ip.to_owned(), why)).into());
    assert!((decision.verdict.chance() - 1.0).abs() < f64::EPSILON);
}

#[test]
fn hints_leave_out_other_zones_and_then_other_nodes() {
    let near = ask(
        "Cluster",
        &[endpoint(1, "n2", "ready", &zone("z1")), endpoint(2, "n3", "ready", &zone("z2"))],
    );
    assert_eq!(why(&near)["10.244.0.2"], LeftOut::OtherZone);
    let node = |zone: &str, node: &str| json!({ "forZones": [{ "name": zone }], "forNodes": [{ "name": node }] });
    let here = ask(
        "Cluster",
        &[
            endpoint(1, "n1", "ready", &node("z1", "n1")),
            endpoint(2, "n2", "ready", &node("z1", "n2")),
            endpoint(3, "n3", "ready", &node("z2", "n3")),
        ],
    );
    assert_eq!(why(&here)["10.244.0.2"], LeftOut::OtherNode);
    assert_eq!(why(&here)["10.244.0.3"], LeftOut::OtherZone);
    let to: SocketAddr = "10.244.0.1:8080".parse().unwrap();
    assert_eq!(here.verdict, Verdict::Forward([(to, false)].into()));
}

#[test]
fn policy_local_leaves_out_other_nodes_whatever_their_hints() {
    let decision = ask(
        "Local",
        &[endpoint(1, "n1", "ready", &zone("z2")), endpoint(2, "n2", "ready", &zone("z1"))],
    );
    assert_eq!(why(&decision)["10.244.0.2"], LeftOut::NotLocal);
    assert!(matches!(decision.verdict, Verdict::Forward(to) if to.len() == 1));
}

#[test]
fn silent_nodes_are_left_alone_unless_nobody_else_could_serve() {
    let nothing = Value::Null;
    let decision = ask(
        "Cluster",
        &[
            endpoint(1, "n9", "ready", &nothing),
            endpoint(2, "n2", "serving terminating", &nothing),
            endpoint(3, "n9", "", &nothing),
        ],
    );
    let to: SocketAddr = "10.244.0.2:8080".parse().unwrap();
    assert_eq!(decision.verdict, Verdict::Forward([(to, false)].into()));
    let expected = [
        ("10.244.0.1", LeftOut::Silent),
        ("10.244.0.3", LeftOut::NotReady),
        ("fd44::1", LeftOut::WrongFamily),
    ];
    assert_eq!(why(&decision), expected.map(|(ip, why)| (ip.to_owned(), why)).into());
    // The zone's own endpoint is silent: the others are meant for everybody then.
    let hinted = ask(
        "Cluster",
        &[endpoint(1, "n9", "ready", &zone("z1")), endpoint(2, "n2", "ready", &zone("z2"))],
    );
    assert_eq!(hinted.verdict, Verdict::Forward([(to, false)].into()));
    // Better a chance than none.
    let alone =
        ask("Cluster", &[endpoint(1, "n9", "ready", &nothing), endpoint(2, "n2", "", &nothing)]);
    assert!(matches!(&alone.verdict, Verdict::Forward(to) if to.len() == 1));
    assert_eq!(why(&alone).get("10.244.0.1"), None);
}
