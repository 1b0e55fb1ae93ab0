//! Ingresses, NetworkPolicies, ServiceCIDRs and IPAddresses. Upstream: `pkg/apis/networking/validation`.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::at::{At, immutable};
use super::meta::{self, named_invalid};
use super::names;
use crate::field::FieldError;

const CONTROLLER_BYTES_MAX: usize = 250;

/// Checks a new Ingress.
pub(crate) fn create_ingress(object: &Value) -> Vec<FieldError> {
    const ANNOTATION: &str = "kubernetes.io/ingress.class";
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    errors.extend(ingress(object));
    let annotation = &object["metadata"]["annotations"][ANNOTATION];
    let class = &object["spec"]["ingressClassName"];
    if annotation.is_string() && class.is_string() && annotation != class {
        let why = "must match `ingressClassName` when both are specified";
        errors.push(FieldError::invalid(format!("annotations.{ANNOTATION}"), annotation, why));
    }
    errors
}

/// Checks a changed Ingress.
pub(crate) fn update_ingress(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(ingress(new));
    errors
}

fn ingress(object: &Value) -> Vec<FieldError> {
    let spec = At::root(object).get("spec");
    let (rules, backend_at) = (spec.get("rules"), spec.get("defaultBackend"));
    let mut errors = Vec::new();
    if rules.is_empty() && !backend_at.is_set() {
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid(&*spec.path, rules.value, why));
    }
    if backend_at.is_set() {
        errors.extend(backend(&backend_at));
    }
    errors.extend(rules.items().flat_map(|rule| ingress_rule(&rule)));
    for tls in spec.get("tls").items() {
        errors.extend(
            tls.get("hosts").items().flat_map(|host| host.all_invalid(host_name(host.text()))),
        );
        let secret = tls.get("secretName");
        if !secret.text().is_empty() {
            errors.extend(secret.all_invalid(names::dns1123_subdomain(secret.text())));
        }
    }
    let class = spec.get("ingressClassName");
    if class.is_set() {
        errors.extend(class.all_invalid(names::dns1123_subdomain(class.text())));
    }
    errors
}

fn host_name(host: &str) -> Vec<String> {
    if host.contains('*') {
        names::wildcard_subdomain(host)
    } else {
        names::dns1123_subdomain(host)
    }
}

fn ingress_rule(rule: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let host = rule.get("host");
    if !host.text().is_empty() {
        if host.text().parse::<IpAddr>().is_ok() {
            errors.push(host.invalid("must be a DNS name, not an IP address"));
        }
        errors.extend(host.all_invalid(host_name(host.text())));
    }
    let http = rule.get("http");
    if http.is_set() {
        let paths = http.get("paths");
        if paths.is_empty() {
            errors.push(paths.required(""));
        }
        errors.extend(paths.items().flat_map(|path| ingress_path(&path)));
    }
    errors
}

fn ingress_path(place: &At<'_>) -> Vec<FieldError> {
    let (kind, path) = (place.get("pathType"), place.get("path"));
    let wrong = |why: String| FieldError::invalid(&*path.path, &json!(path.text()), why);
    let mut errors = Vec::new();
    if !kind.is_set() {
        return vec![kind.required("pathType must be specified")];
    }
    match kind.text() {
        "Exact" | "Prefix" => {
            if !path.text().starts_with('/') {
                errors.push(wrong("must be an absolute path".to_owned()));
            }
            for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
                if path.text().contains(sequence) {
                    errors.push(wrong(format!("must not contain '{sequence}'")));
                }
            }
            for suffix in ["/..", "/."] {
                if path.text().ends_with(suffix) {
                    errors.push(wrong(format!("cannot end with '{suffix}'")));
                }
            }
        }
        "ImplementationSpecific" => {
            if !path.text().is_empty() && !path.text().starts_with('/') {
                errors.push(wrong("must be an absolute path".to_owned()));
            }
        }
        _ => errors.push(kind.unsupported(&["Exact", "ImplementationSpecific", "Prefix"])),
    }
    errors.extend(backend(&place.get("backend")));
    errors
}

fn backend(backend: &At<'_>) -> Vec<FieldError> {
    let (resource, service) = (backend.get("resource"), backend.get("service"));
    let wrong = |why: &str| FieldError::invalid(&*backend.path, &json!(""), why);
    match (resource.is_set(), service.is_set()) {
        (true, true) => vec![wrong("cannot set both resource and service backends")],
        (true, false) => typed_reference(&resource),
        (false, false) => vec![wrong("resource or service backend is required")],
        (false, true) => {
            let mut errors = Vec::new();
            let name = service.get("name");
            if name.text().is_empty() {
                errors.push(name.required(""));
            } else {
                errors.extend(name.all_invalid(names::dns1123_label(name.text())));
            }
            let (port, number) = (service.get("port.name"), service.get("port.number"));
            let numbered = number.int().filter(|number| *number != 0);
            match (port.text().is_empty(), numbered) {
                (false, Some(_)) => errors.push(wrong("cannot set both port name & port number")),
                (false, None) => errors.extend(port.all_invalid(names::port_name(port.text()))),
                (true, Some(value)) => errors.extend(number.all_invalid(names::port_number(value))),
                (true, None) => errors.push(backend.required("port name or number is required")),
            }
            errors
        }
    }
}

fn typed_reference(reference: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let group = reference.get("apiGroup");
    if group.is_set() {
        errors.extend(group.all_invalid(names::dns1123_subdomain(group.text())));
    }
    for field in ["kind", "name"] {
        let field = reference.get(field);
        if field.text().is_empty() {
            errors.push(field.required(""));
        } else {
            errors.extend(field.all_invalid(meta::path_segment(field.text())));
        }
    }
    errors
}

/// Checks a changed status of an Ingress.
pub(crate) fn status_ingress(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    for ingress in At::root(new).get("status.loadBalancer.ingress").items() {
        let (ip, host) = (ingress.get("ip"), ingress.get("hostname"));
        if !ip.text().is_empty() {
            errors.extend(ip.all_invalid(names::ip(ip.text())));
        }
        if !host.text().is_empty() {
            errors.extend(host.all_invalid(names::dns1123_subdomain(host.text())));
            if host.text().parse::<IpAddr>().is_ok() {
                errors.push(host.invalid("must be a DNS name, not an IP address"));
            }
        }
    }
    errors
}

/// Checks a new IngressClass.
pub(crate) fn create_class(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, false, meta::SUBDOMAIN);
    errors.extend(class(object));
    errors
}

/// Checks a changed IngressClass.
pub(crate) fn update_class(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    let controller = |object| At::root(object).get("spec.controller");
    errors.extend(immutable(&controller(new), &controller(old)));
    errors.extend(class(new));
    errors
}

fn class(object: &Value) -> Vec<FieldError> {
    let spec = At::root(object).get("spec");
    let controller = spec.get("controller");
    let mut errors = Vec::new();
    let text = controller.text();
    if text.is_empty() {
        errors.push(controller.required(""));
    } else {
        if text.len() > CONTROLLER_BYTES_MAX {
            errors.push(FieldError::too_long(&*controller.path, CONTROLLER_BYTES_MAX));
        }
        match text.split_once('/') {
            Some((host, rest)) if !host.is_empty() && !rest.is_empty() => {
                errors.extend(named_invalid(
                    &controller.path,
                    host,
                    names::dns1123_subdomain(host),
                ));
            }
            _ => errors.push(
                controller.invalid("must be a domain-prefixed path (such as \"acme.io/foo\")"),
            ),
        }
    }
    let parameters = spec.get("parameters");
    if !parameters.is_set() {
        return errors;
    }
    errors.extend(typed_reference(&parameters));
    let (scope, namespace) = (parameters.get("scope"), parameters.get("namespace"));
    match scope.text() {
        "" => errors.push(scope.required("")),
        "Namespace" if !namespace.is_set() => {
            errors.push(namespace.required("`parameters.scope` is set to 'Namespace'"));
        }
        "Namespace" => errors.extend(namespace.all_invalid(names::dns1123_label(namespace.text()))),
        "Cluster" if namespace.is_set() => {
            errors.push(namespace.forbidden("`parameters.scope` is set to 'Cluster'"));
        }
        "Cluster" => {}
        _ => errors.push(scope.unsupported(&["Cluster", "Namespace"])),
    }
    errors
}

/// Checks a new NetworkPolicy.
pub(crate) fn create_policy(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, true, meta::SUBDOMAIN);
    errors.extend(policy(object));
    errors
}

/// Checks a changed NetworkPolicy.
pub(crate) fn update_policy(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(policy(new));
    errors
}

fn policy(object: &Value) -> Vec<FieldError> {
    const TYPES: &[&str] = &["Ingress", "Egress"];
    let spec = At::root(object).get("spec");
    let mut errors = meta::selector(&spec.get("podSelector"));
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for rule in spec.get(direction).items() {
            errors.extend(rule.get("ports").items().flat_map(|port| policy_port(&port)));
            errors.extend(rule.get(peers).items().flat_map(|peer| policy_peer(&peer)));
        }
    }
    let types = spec.get("policyTypes");
    if types.len() > TYPES.len() {
        errors.push(types.invalid("may not specify more than two policyTypes"));
        return errors;
    }
    let unknown = types.items().filter(|kind| !TYPES.contains(&kind.text()));
    errors.extend(unknown.map(|kind| kind.unsupported(TYPES)));
    errors
}

fn policy_port(place: &At<'_>) -> Vec<FieldError> {
    let (protocol, port, end) = (place.get("protocol"), place.get("port"), place.get("endPort"));
    let mut errors = Vec::new();
    if protocol.is_set() && !["TCP", "UDP", "SCTP"].contains(&protocol.text()) {
        errors.push(protocol.unsupported(&["TCP", "UDP", "SCTP"]));
    }
    match port.value {
        Value::Null => {
            if end.is_set() {
                errors.push(end.invalid("may not be specified when `port` is not specified"));
            }
        }
        Value::String(name) => {
            if end.is_set() {
                errors.push(end.invalid("may not be specified when `port` is non-numeric"));
            }
            errors.extend(port.all_invalid(names::port_name(name)));
        }
        number => {
            let number = number.as_i64().unwrap_or(0);
            errors.extend(port.all_invalid(names::port_number(number)));
            if let Some(last) = end.int() {
                if last < number {
                    errors.push(end.invalid("must be greater than or equal to `port`"));
                }
                errors.extend(end.all_invalid(names::port_number(last)));
            }
        }
    }
    errors
}

fn policy_peer(peer: &At<'_>) -> Vec<FieldError> {
    let block = peer.get("ipBlock");
    let mut errors = Vec::new();
    let mut others = 0;
    for selector in ["podSelector", "namespaceSelector"] {
        let selector = peer.get(selector);
        if selector.is_set() {
            others += 1;
            errors.extend(meta::selector(&selector));
        }
    }
    if block.is_set() {
        errors.extend(ip_block(&block));
        if others > 0 {
            errors.push(peer.forbidden("may not specify both ipBlock and another peer"));
        }
    } else if others == 0 {
        errors.push(peer.required("must specify a peer"));
    }
    errors
}

fn ip_block(block: &At<'_>) -> Vec<FieldError> {
    let cidr = block.get("cidr");
    if cidr.text().is_empty() {
        return vec![cidr.required("")];
    }
    let mut errors = cidr.all_invalid(names::cidr(cidr.text()));
    let Ok(outer) = cidr.text().parse::<ipnet::IpNet>() else { return errors };
    for except in block.get("except").items() {
        errors.extend(except.all_invalid(names::cidr(except.text())));
        let Ok(inner) = except.text().parse::<ipnet::IpNet>() else { continue };
        if !outer.contains(&inner.addr()) || outer.prefix_len() >= inner.prefix_len() {
            errors.push(except.invalid("must be a strict subset of `cidr`"));
        }
    }
    errors
}

/// Checks a new ServiceCIDR.
pub(crate) fn create_service_cidr(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, false, meta::SUBDOMAIN);
    errors.extend(cidrs(&At::root(object).get("spec.cidrs")));
    errors
}

fn cidrs(list: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match list.len() {
        0 => return vec![list.required("at least one CIDR required")],
        1 => {}
        2 => {
            let six = list.items().filter(|cidr| cidr.text().contains(':')).count();
            if six != 1 {
                errors.push(list.invalid("may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"));
            }
        }
        _ => errors.push(list.invalid("may only hold up to 2 values")),
    }
    errors
        .extend(list.items().flat_map(|cidr| cidr.all_invalid(names::canonical_cidr(cidr.text()))));
    errors
}

/// Checks a changed ServiceCIDR.
pub(crate) fn update_service_cidr(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    let (after, before) = (At::root(new).get("spec.cidrs"), At::root(old).get("spec.cidrs"));
    let (now, was) = (after.items().count(), before.items().count());
    // A second family may be added; nothing else changes the number.
    if now == was || (now, was) == (2, 1) {
        errors.extend(after.items().zip(before.items()).filter_map(|(a, b)| immutable(&a, &b)));
    } else {
        errors.extend(immutable(&after, &before));
    }
    errors
}

/// Checks a new IPAddress.
pub(crate) fn create_ip_address(object: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(object, false, names::canonical_ip);
    let parent = At::root(object).get("spec.parentRef");
    if !parent.is_set() {
        errors.push(parent.required(""));
        return errors;
    }
    let group = parent.get("group");
    if !group.text().is_empty() {
        errors.extend(group.all_invalid(names::dns1123_subdomain(group.text())));
    }
    for field in ["resource", "name"] {
        let field = parent.get(field);
        if field.text().is_empty() {
            errors.push(field.required(""));
        } else {
            errors.extend(field.all_invalid(meta::path_segment(field.text())));
        }
    }
    let namespace = parent.get("namespace");
    if !namespace.text().is_empty() {
        errors.extend(namespace.all_invalid(meta::path_segment(namespace.text())));
    }
    errors
}

/// Checks a changed IPAddress.
pub(crate) fn update_ip_address(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    let parent = |object| At::root(object).get("spec.parentRef");
    errors.extend(immutable(&parent(new), &parent(old)));
    errors
}
