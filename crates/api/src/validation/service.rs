//! Services. Upstream: `ValidateService`, `ValidateServiceUpdate`, `ValidateServiceStatusUpdate`.

mod addresses;
mod warnings;

pub(crate) use warnings::warnings;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::at::At;
use super::container::PROTOCOLS;
use super::meta::{self, named_invalid};
use super::names;
use super::probe::port_or_name;
use crate::field::FieldError;

/// Longest `ClientIP` affinity, in seconds: a day.
const AFFINITY_SECONDS_MAX: i64 = 86_400;
const ONLY_LOAD_BALANCER: &str = "may only be used when `type` is 'LoadBalancer'";

/// Whether the Service has no address on purpose.
pub(crate) fn is_headless(service: &Value) -> bool {
    service["spec"]["clusterIPs"] == json!(["None"])
}

/// Whether traffic from outside the cluster reaches the Service.
pub(crate) fn is_externally_accessible(service: &Value) -> bool {
    let spec = &service["spec"];
    match spec["type"].as_str() {
        Some("LoadBalancer" | "NodePort") => true,
        Some("ClusterIP") => spec["externalIPs"].as_array().is_some_and(|ips| !ips.is_empty()),
        _ => false,
    }
}

/// Whether load balancers ask each node for its endpoints.
pub(crate) fn needs_health_check(service: &Value) -> bool {
    let spec = &service["spec"];
    spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local"
}

/// Checks a new Service.
pub(crate) fn create(service: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(service, true, names::dns1123_label);
    errors.extend(whole(service));
    errors
}

/// Checks a change of a Service.
pub(crate) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(addresses::changes(new, old));
    let class = &new["spec"]["loadBalancerClass"];
    let both = [new, old].iter().all(|service| service["spec"]["type"] == "LoadBalancer");
    if both && *class != old["spec"]["loadBalancerClass"] {
        errors.push(FieldError::invalid(
            "spec.loadBalancerClass",
            class,
            "may not change once set",
        ));
    }
    let checked = needs_health_check(new) && needs_health_check(old);
    if checked && new["spec"]["healthCheckNodePort"] != old["spec"]["healthCheckNodePort"] {
        errors.push(FieldError::forbidden("spec.healthCheckNodePort", "field is immutable"));
    }
    errors.extend(whole(new));
    errors
}

fn whole(service: &Value) -> Vec<FieldError> {
    let spec = At::root(service).get("spec");
    let kind = spec.get("type");
    let mut errors: Vec<FieldError> = topology_annotations(service).into_iter().collect();
    let ports = spec.get("ports");
    if ports.is_empty() && !is_headless(service) && kind.text() != "ExternalName" {
        errors.push(ports.required(""));
    }
    errors.extend(by_type(service, &spec));
    let mut names = BTreeSet::new();
    for port in ports.items() {
        errors.extend(service_port(&port, ports.len() > 1, &mut names));
    }
    errors.extend(meta::labels(&spec.get("selector")));
    errors.extend(affinity(&spec));
    errors.extend(addresses::related_fields(service));
    for ip in spec.get("externalIPs").items() {
        let wrong = names::ip(ip.text());
        let wrong = if wrong.is_empty() { names::non_special_ip(ip.text()) } else { wrong };
        errors.extend(ip.all_invalid(wrong));
    }
    errors.extend(kind.one_of(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]));
    errors.extend(repeated_ports(&spec));
    errors.extend(source_ranges(service, &spec));
    errors.extend(load_balancer_fields(&spec));
    errors.extend(traffic_policies(service, &spec));
    errors
}

fn topology_annotations(service: &Value) -> Option<FieldError> {
    const MODE: &str = "service.kubernetes.io/topology-mode";
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    let annotations = &service["metadata"]["annotations"];
    let (mode, hints) = (annotations.get(MODE)?, annotations.get(HINTS)?);
    (mode != hints).then(|| {
        let why = format!("must match annotations[{HINTS}] when both are specified");
        FieldError::invalid(format!("metadata.annotations[{MODE}]"), mode, why)
    })
}

fn by_type(service: &Value, spec: &At<'_>) -> Vec<FieldError> {
    let kind = spec.get("type");
    let mut errors = Vec::new();
    match kind.text() {
        kind @ ("LoadBalancer" | "NodePort") if is_headless(service) => {
            errors.push(FieldError::invalid(
                "spec.clusterIPs[0]",
                &json!("None"),
                format!("may not be set to 'None' for {kind} services"),
            ));
        }
        "ExternalName" => {
            for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                let field = spec.get(field);
                if !field.is_empty() {
                    errors.push(field.forbidden("may not be set for ExternalName services"));
                }
            }
            let name = spec.get("externalName");
            let bare = name.text().strip_suffix('.').unwrap_or(name.text());
            if bare.is_empty() {
                errors.push(name.required(""));
            } else {
                errors.extend(named_invalid(&name.path, bare, names::dns1123_subdomain(bare)));
            }
        }
        _ => {}
    }
    errors
}

fn service_port<'a>(port: &At<'a>, named: bool, seen: &mut BTreeSet<&'a str>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = port.get("name");
    if !name.text().is_empty() {
        errors.extend(name.all_invalid(names::dns1123_label(name.text())));
        if !seen.insert(name.text()) {
            errors.push(name.duplicate());
        }
    } else if named {
        errors.push(name.required(""));
    }
    let number = port.get("port");
    let value = number.int().unwrap_or(0);
    for why in names::port_number(value) {
        errors.push(FieldError::invalid(&*number.path, &json!(value), why));
    }
    errors.extend(port.get("protocol").one_of(PROTOCOLS));
    errors.extend(port_or_name(&port.get("targetPort")));
    let protocol = port.get("appProtocol");
    if protocol.is_set() {
        errors.extend(protocol.all_invalid(names::label_key(protocol.text())));
    }
    errors
}

fn affinity(spec: &At<'_>) -> Vec<FieldError> {
    let (kind, config) = (spec.get("sessionAffinity"), spec.get("sessionAffinityConfig"));
    let mut errors: Vec<FieldError> = kind.one_of(&["ClientIP", "None"]).into_iter().collect();
    if kind.text() == "None" && config.is_set() {
        errors.push(config.forbidden("must not be set when session affinity is None"));
    }
    if kind.text() != "ClientIP" {
        return errors;
    }
    let client = config.get("clientIP");
    let timeout = client.get("timeoutSeconds");
    for place in [&config, &client, &timeout] {
        if !place.is_set() {
            errors.push(place.required("when session affinity type is ClientIP"));
            return errors;
        }
    }
    let seconds = timeout.int().unwrap_or(0);
    if seconds <= 0 || seconds > AFFINITY_SECONDS_MAX {
        let why = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
        errors.push(timeout.invalid(why));
    }
    errors
}

fn repeated_ports(spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let ports = spec.get("ports");
    let (mut node_ports, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    if spec.get("type").text() == "ClusterIP" {
        for port in ports.items() {
            if port.get("nodePort").int().unwrap_or(0) != 0 {
                let why = "may not be used when `type` is 'ClusterIP'";
                errors.push(port.get("nodePort").forbidden(why));
            }
        }
    }
    for port in ports.items() {
        let node_port = port.get("nodePort");
        let number = node_port.int().unwrap_or(0);
        if number != 0 && !node_ports.insert((port.get("protocol").text(), number)) {
            errors.push(node_port.duplicate());
        }
    }
    for port in ports.items() {
        let (protocol, number) = (port.get("protocol").text(), port.get("port").int().unwrap_or(0));
        if !numbers.insert((protocol, number)) {
            // As Go writes the key that it compares.
            let key = format!(
                "{{\"Name\":\"\",\"Protocol\":{protocol:?},\"AppProtocol\":null,\"Port\":{number},\"TargetPort\":0,\"NodePort\":0}}"
            );
            errors.push(FieldError::duplicate_shown(port.path, key));
        }
    }
    errors
}

fn source_ranges(service: &Value, spec: &At<'_>) -> Vec<FieldError> {
    const ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
    let balanced = spec.get("type").text() == "LoadBalancer";
    let ranges = spec.get("loadBalancerSourceRanges");
    let mut errors = Vec::new();
    if !ranges.is_empty() {
        // The message names the field so.
        let path = spec.child("LoadBalancerSourceRanges");
        if !balanced {
            errors.push(FieldError::forbidden(&*path, ONLY_LOAD_BALANCER));
        }
        for (index, range) in ranges.items().enumerate() {
            let range = range.text().trim();
            errors.extend(named_invalid(&format!("{path}[{index}]"), range, names::cidr(range)));
        }
    } else if let Some(value) = service["metadata"]["annotations"].get(ANNOTATION) {
        let path = format!("metadata.annotations[{ANNOTATION}]");
        if !balanced {
            errors.push(FieldError::forbidden(&*path, ONLY_LOAD_BALANCER));
        }
        let value = value.as_str().unwrap_or("").trim();
        for range in value.split(',').map(str::trim).filter(|_| !value.is_empty()) {
            errors.extend(named_invalid(&path, range, names::cidr(range)));
        }
    }
    errors
}

fn load_balancer_fields(spec: &At<'_>) -> Vec<FieldError> {
    let balanced = spec.get("type").text() == "LoadBalancer";
    let (allocate, class) =
        (spec.get("allocateLoadBalancerNodePorts"), spec.get("loadBalancerClass"));
    let mut errors = Vec::new();
    if allocate.is_set() && !balanced {
        errors.push(allocate.forbidden(ONLY_LOAD_BALANCER));
    }
    if balanced && !allocate.is_set() {
        errors.push(FieldError::required("allocateLoadBalancerNodePorts", ""));
    }
    if class.is_set() {
        if balanced {
            errors.extend(class.all_invalid(names::label_key(class.text())));
        } else {
            errors.push(class.forbidden(ONLY_LOAD_BALANCER));
        }
    }
    errors
}

fn traffic_policies(service: &Value, spec: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let external = spec.get("externalTrafficPolicy");
    if is_externally_accessible(service) {
        errors.extend(external.one_of(&["Cluster", "Local"]));
    } else if !external.text().is_empty() {
        errors.push(external.invalid("may only be set for externally-accessible services"));
    }
    let health = spec.get("healthCheckNodePort");
    let port = health.int().unwrap_or(0);
    if needs_health_check(service) {
        if port == 0 {
            errors.push(health.required(""));
        } else {
            errors.extend(health.all_invalid(names::port_number(port)));
        }
    } else if port != 0 {
        errors.push(health.invalid(
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ));
    }
    let internal = spec.get("internalTrafficPolicy");
    if !internal.is_set() {
        if ["NodePort", "LoadBalancer", "ClusterIP"].contains(&spec.get("type").text()) {
            errors.push(internal.required(""));
        }
    } else if !["Cluster", "Local"].contains(&internal.text()) {
        errors.push(internal.unsupported(&["Cluster", "Local"]));
    }
    let distribution = spec.get("trafficDistribution");
    const DISTRIBUTIONS: &[&str] = &["PreferClose", "PreferSameNode", "PreferSameZone"];
    if distribution.is_set() && !DISTRIBUTIONS.contains(&distribution.text()) {
        errors.push(distribution.unsupported(DISTRIBUTIONS));
    }
    errors
}

/// Checks a change of a Service's status.
pub(crate) fn status(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    let ingress = At::root(new).get("status.loadBalancer.ingress");
    errors.extend(load_balancer_ingress(&ingress, new["spec"]["type"] == "LoadBalancer"));
    errors
}

fn load_balancer_ingress(list: &At<'_>, balanced: bool) -> Vec<FieldError> {
    if !balanced && !list.is_empty() {
        return vec![list.forbidden("may only be used when `spec.type` is 'LoadBalancer'")];
    }
    let mut errors = Vec::new();
    for ingress in list.items() {
        let (ip, mode, host) = (ingress.get("ip"), ingress.get("ipMode"), ingress.get("hostname"));
        if !ip.text().is_empty() {
            errors.extend(ip.all_invalid(names::ip(ip.text())));
        }
        match (mode.is_set(), ip.text().is_empty()) {
            (false, false) => errors.push(mode.required("must be specified when `ip` is set")),
            (true, true) => {
                errors.push(mode.forbidden("may not be specified when `ip` is not set"));
            }
            (true, false) if !["Proxy", "VIP"].contains(&mode.text()) => {
                errors.push(mode.unsupported(&["Proxy", "VIP"]));
            }
            _ => {}
        }
        if !host.text().is_empty() {
            errors.extend(host.all_invalid(names::dns1123_subdomain(host.text())));
            if host.text().parse::<std::net::IpAddr>().is_ok() {
                errors.push(host.invalid("must be a DNS name, not an IP address"));
            }
        }
    }
    errors
}
