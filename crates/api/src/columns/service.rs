//! Services, Endpoints and EndpointSlices.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    AGE, NAME, NONE, UNKNOWN, UNSET, age, int, joined, labels, list, name, or, shortened, string,
    text, wide,
};
use crate::resource::Column;

/// `services`
pub(crate) const SERVICE: &[Column] = &[
    NAME,
    text("Type", "How the Service is exposed."),
    text("Cluster-IP", "The address of the Service inside the cluster."),
    text("External-IP", "Addresses that the Service answers outside the cluster."),
    text("Port(s)", "The ports that the Service exposes."),
    AGE,
    wide("Selector", "The labels of the pods behind the Service."),
];

/// The row of a Service.
pub(crate) fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let ports: Vec<String> = list(&spec["ports"]).iter().map(port).collect();
    vec![
        name(object),
        json!(string(&spec["type"])),
        json!(or(&spec["clusterIPs"][0], or(&spec["clusterIP"], NONE))),
        json!(external(object)),
        json!(if ports.is_empty() { NONE.to_owned() } else { ports.join(",") }),
        age(object, now),
        json!(labels(&spec["selector"])),
    ]
}

fn port(port: &Value) -> String {
    let (number, protocol) = (int(&port["port"]), string(&port["protocol"]));
    match int(&port["nodePort"]) {
        0 => format!("{number}/{protocol}"),
        node_port => format!("{number}:{node_port}/{protocol}"),
    }
}

fn external(object: &Value) -> String {
    let spec = &object["spec"];
    let ips = joined(&spec["externalIPs"], ",");
    let or_none = |text: String| if text.is_empty() { NONE.to_owned() } else { text };
    match string(&spec["type"]) {
        "ClusterIP" | "NodePort" => or_none(ips),
        "LoadBalancer" => {
            let balanced = ingress(&object["status"]["loadBalancer"]);
            match (balanced.is_empty(), ips.is_empty()) {
                (true, true) => "<pending>".to_owned(),
                (true, false) => ips,
                (false, true) => balanced,
                (false, false) => format!("{balanced},{ips}"),
            }
        }
        "ExternalName" => string(&spec["externalName"]).to_owned(),
        _ => UNKNOWN.to_owned(),
    }
}

/// Addresses and names of a load balancer, sorted.
pub(super) fn ingress(status: &Value) -> String {
    let points = list(&status["ingress"]).iter();
    let points: BTreeSet<&str> =
        points.map(|point| or(&point["ip"], string(&point["hostname"]))).collect();
    points.into_iter().filter(|point| !point.is_empty()).collect::<Vec<_>>().join(",")
}

/// `endpoints`
pub(crate) const ENDPOINTS: &[Column] =
    &[NAME, text("Endpoints", "Addresses and ports of the endpoints."), AGE];

/// The row of Endpoints.
pub(crate) fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut members = Vec::new();
    for subset in list(&object["subsets"]) {
        let ips: Vec<&str> =
            list(&subset["addresses"]).iter().map(|address| string(&address["ip"])).collect();
        let ports = list(&subset["ports"]);
        if ports.is_empty() {
            members.extend(ips.iter().map(|ip| (*ip).to_owned()));
        }
        for port in ports {
            members.extend(ips.iter().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{}", int(&port["port"])),
                false => format!("{ip}:{}", int(&port["port"])),
            }));
        }
    }
    // Subsets whose addresses are all unready leave the cell empty.
    let missing = if list(&object["subsets"]).is_empty() { NONE } else { "" };
    vec![name(object), json!(shortened(&members, missing)), age(object, now)]
}

/// `endpointslices`
pub(crate) const SLICE: &[Column] = &[
    NAME,
    text("AddressType", "The kind of address that all endpoints of the slice carry."),
    text("Ports", "The ports of each endpoint."),
    text("Endpoints", "The addresses of the endpoints."),
    AGE,
];

/// The row of an EndpointSlice.
pub(crate) fn slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports = list(&object["ports"]).iter();
    let ports: Vec<String> = ports
        .map(|port| match port["port"].as_i64() {
            Some(number) => number.to_string(),
            None => port["name"].as_str().unwrap_or("*").to_owned(),
        })
        .collect();
    let addresses = list(&object["endpoints"]).iter().flat_map(|one| list(&one["addresses"]));
    let addresses: Vec<String> = addresses.map(|address| string(address).to_owned()).collect();
    vec![
        name(object),
        json!(string(&object["addressType"])),
        json!(shortened(&ports, UNSET)),
        json!(shortened(&addresses, UNSET)),
        age(object, now),
    ]
}
