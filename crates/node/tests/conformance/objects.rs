//! Services and their endpoints, written shortly.

use std::net::{IpAddr, SocketAddr};

use api::core::Service;
use api::discovery::EndpointSlice;
use net::nft::Family;
use plan::proxy::FAMILIES;
use plan::service::Protocol;
use serde_json::{Value, json};

use super::topology::{node_of, pod_ip};
use super::traffic::{SCTP_TARGET, TCP_TARGET, UDP_TARGET};

/// The cluster address of this number.
pub(crate) fn cluster_ip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::Ip => IpAddr::from([10, 96, 0, number]),
        Family::Ip6 => format!("fd96::{number}").parse().unwrap(),
    }
}

/// The load balancer's address of this number.
pub(crate) fn balancer_ip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::Ip => IpAddr::from([203, 0, 113, number]),
        Family::Ip6 => format!("fd20::{number}").parse().unwrap(),
    }
}

/// The external address of this number.
pub(crate) fn external_ip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::Ip => IpAddr::from([192, 0, 2, number]),
        Family::Ip6 => format!("fd30::{number}").parse().unwrap(),
    }
}

/// The port of every Service port of a protocol.
pub(crate) fn port(protocol: Protocol) -> u16 {
    if protocol == Protocol::Udp { 53 } else { 80 }
}

/// The cluster address and port.
pub(crate) fn cluster(family: Family, number: u8, protocol: Protocol) -> SocketAddr {
    SocketAddr::new(cluster_ip(family, number), port(protocol))
}

/// An endpoint: a pod, with conditions and hints.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pod: &'static str,
    conditions: Value,
    hints: Value,
}

/// A ready one.
pub(crate) fn end(pod: &'static str) -> End {
    let conditions = json!({ "ready": true, "serving": true, "terminating": false });
    End { pod, conditions, hints: json!({}) }
}

impl End {
    pub(crate) fn draining(mut self) -> Self {
        self.conditions = json!({ "ready": false, "serving": true, "terminating": true });
        self
    }

    /// It is being deleted, and does not serve any more.
    pub(crate) fn gone(mut self) -> Self {
        self.conditions = json!({ "ready": false, "serving": false, "terminating": true });
        self
    }

    pub(crate) fn unready(mut self) -> Self {
        self.conditions = json!({ "ready": false, "serving": false, "terminating": false });
        self
    }

    pub(crate) fn zone(mut self, zone: &str) -> Self {
        self.hints["forZones"] = json!([{ "name": zone }]);
        self
    }

    pub(crate) fn node(mut self, node: &str) -> Self {
        self.hints["forNodes"] = json!([{ "name": node }]);
        self
    }
}

/// A Service of both families with a TCP and a UDP port, and its endpoints.
#[derive(Clone, Debug)]
pub(crate) struct Sketch {
    number: u8,
    families: Vec<Family>,
    object: Value,
    ends: Vec<End>,
}

/// A Service named `s<number>` with the cluster addresses of this number, served by these pods.
pub(crate) fn service(number: u8, pods: &[&'static str]) -> Sketch {
    let port = |name: &str, protocol: Protocol, target: u16| json!({ "name": name, "protocol": name, "port": port(protocol), "targetPort": target });
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": format!("s{number}"), "namespace": "default", "annotations": {}, "labels": {} },
        "spec": { "type": "ClusterIP", "ports": [
            port("TCP", Protocol::Tcp, TCP_TARGET),
            port("UDP", Protocol::Udp, UDP_TARGET),
        ] },
        "status": { "loadBalancer": { "ingress": [] } },
    });
    let ends = pods.iter().map(|pod| end(pod)).collect();
    Sketch { number, families: FAMILIES.into(), object, ends }
}

impl Sketch {
    /// Sets a field of the specification.
    pub(crate) fn set(mut self, field: &str, value: Value) -> Self {
        self.object["spec"][field] = value;
        self
    }

    pub(crate) fn ends(mut self, ends: impl IntoIterator<Item = End>) -> Self {
        self.ends = ends.into_iter().collect();
        self
    }

    pub(crate) fn family(mut self, family: Family) -> Self {
        self.families = vec![family];
        self
    }

    pub(crate) fn annotate(mut self, key: &str, value: &str) -> Self {
        self.object["metadata"]["annotations"][key] = json!(value);
        self
    }

    pub(crate) fn label(mut self, key: &str, value: &str) -> Self {
        self.object["metadata"]["labels"][key] = json!(value);
        self
    }

    /// Node ports: this one for TCP, the next for UDP.
    pub(crate) fn node_port(mut self, port: u16) -> Self {
        for (port, at) in (port..).zip(0..2) {
            self.object["spec"]["ports"][at]["nodePort"] = json!(port);
        }
        if self.object["spec"]["type"] == "ClusterIP" {
            self.object["spec"]["type"] = json!("NodePort");
        }
        self
    }

    /// With an SCTP port beside the others, and this node port for it.
    pub(crate) fn sctp(mut self, node_port: u16) -> Self {
        let ports = self.object["spec"]["ports"].as_array_mut().unwrap();
        ports.push(json!({ "name": "SCTP", "protocol": "SCTP", "port": port(Protocol::Sctp),
            "targetPort": SCTP_TARGET, "nodePort": node_port }));
        self.set("type", json!("NodePort"))
    }

    /// The load balancer's addresses of the Service's own number.
    pub(crate) fn balanced(mut self, mode: &str) -> Self {
        for family in FAMILIES {
            let ip = balancer_ip(family, self.number).to_string();
            let ingress = self.object["status"]["loadBalancer"]["ingress"].as_array_mut().unwrap();
            ingress.push(json!({ "ip": ip, "ipMode": mode }));
        }
        self.set("type", json!("LoadBalancer"))
    }

    pub(crate) fn external(self) -> Self {
        let ips = FAMILIES.map(|family| external_ip(family, self.number).to_string());
        self.set("externalIPs", json!(ips))
    }

    pub(crate) fn internal_local(self) -> Self {
        self.set("internalTrafficPolicy", json!("Local"))
    }

    pub(crate) fn external_local(self) -> Self {
        self.set("externalTrafficPolicy", json!("Local"))
    }

    pub(crate) fn sticky(self, seconds: u32) -> Self {
        self.set("sessionAffinity", json!("ClientIP"))
            .set("sessionAffinityConfig", json!({ "clientIP": { "timeoutSeconds": seconds } }))
    }

    pub(crate) fn object(&self) -> Service {
        let mut object = self.object.clone();
        let ips = self.families.iter().map(|family| cluster_ip(*family, self.number).to_string());
        let ips: Vec<String> = ips.collect();
        object["spec"]["clusterIP"] = json!(ips[0]);
        object["spec"]["clusterIPs"] = json!(ips);
        serde_json::from_value(object).unwrap()
    }

    /// A slice for each family.
    pub(crate) fn slices(&self) -> [EndpointSlice; 2] {
        FAMILIES.map(|family| {
            let word = if family == Family::Ip { "IPv4" } else { "IPv6" };
            let ends = self.ends.iter().map(|end| {
                json!({ "addresses": [pod_ip(family, end.pod).to_string()], "nodeName": node_of(end.pod),
                    "conditions": end.conditions, "hints": end.hints })
            });
            serde_json::from_value(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": word,
                "metadata": { "name": format!("s{}-{}", self.number, word.to_lowercase()), "namespace": "default",
                    "labels": { "kubernetes.io/service-name": format!("s{}", self.number) } },
                "ports": [{ "name": "TCP", "protocol": "TCP", "port": TCP_TARGET },
                    { "name": "UDP", "protocol": "UDP", "port": UDP_TARGET },
                    { "name": "SCTP", "protocol": "SCTP", "port": SCTP_TARGET }],
                "endpoints": ends.collect::<Vec<_>>(),
            }))
            .unwrap()
        })
    }
}
