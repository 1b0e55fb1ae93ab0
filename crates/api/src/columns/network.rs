//! Ingresses, NetworkPolicies, ServiceCIDRs and IPAddresses.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::service::ingress as addresses;
use super::{AGE, NAME, NONE, SHOWN_MAX, age, joined, list, name, or, selector, string, text};
use crate::resource::Column;

/// `ingresses`
pub(crate) const INGRESS: &[Column] = &[
    NAME,
    text(
        "Class",
        "The name of the IngressClass resource that should be used for additional configuration",
    ),
    text("Hosts", "Hosts that incoming requests are matched against before the ingress rule"),
    text("Address", "Where the Ingress answers."),
    text("Ports", "Ports of TLS configurations that open"),
    AGE,
];

/// The row of an Ingress.
pub(crate) fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let ports = if list(&spec["tls"]).is_empty() { "80" } else { "80, 443" };
    vec![
        name(object),
        json!(or(&spec["ingressClassName"], NONE)),
        json!(hosts(list(&spec["rules"]))),
        json!(addresses(&object["status"]["loadBalancer"])),
        json!(ports),
        age(object, now),
    ]
}

fn hosts(rules: &[Value]) -> String {
    let (mut hosts, mut more) = (Vec::new(), false);
    for rule in rules {
        more |= hosts.len() == SHOWN_MAX;
        let host = string(&rule["host"]);
        if !more && !host.is_empty() {
            hosts.push(host);
        }
    }
    match (hosts.is_empty(), more) {
        (true, _) => "*".to_owned(),
        (false, true) => format!("{} + {} more...", hosts.join(","), rules.len() - SHOWN_MAX),
        (false, false) => hosts.join(","),
    }
}

/// `ingressclasses`
pub(crate) const CLASS: &[Column] = &[
    NAME,
    text("Controller", "Controller that is responsible for handling this class"),
    text("Parameters", "A reference to a resource with additional parameters"),
    AGE,
];

/// The row of an IngressClass.
pub(crate) fn class(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let parameters = match &spec["parameters"] {
        Value::Null => NONE.to_owned(),
        parameters => {
            let (kind, group) = (string(&parameters["kind"]), string(&parameters["apiGroup"]));
            let dot = if group.is_empty() { "" } else { "." };
            format!("{kind}{dot}{group}/{}", string(&parameters["name"]))
        }
    };
    vec![name(object), json!(string(&spec["controller"])), json!(parameters), age(object, now)]
}

/// `networkpolicies`
pub(crate) const POLICY: &[Column] =
    &[NAME, text("Pod-Selector", "The pods that the policy is about."), AGE];

/// The row of a NetworkPolicy.
pub(crate) fn policy(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), json!(selector(&object["spec"]["podSelector"])), age(object, now)]
}

/// `servicecidrs`
pub(crate) const SERVICE_CIDR: &[Column] =
    &[NAME, text("CIDRs", "The ranges that Services get addresses from."), AGE];

/// The row of a ServiceCIDR.
pub(crate) fn service_cidr(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), json!(joined(&object["spec"]["cidrs"], ",")), age(object, now)]
}

/// `ipaddresses`: upstream shows no age.
pub(crate) const IP_ADDRESS: &[Column] =
    &[NAME, text("ParentRef", "The object that holds the address.")];

/// The row of an IPAddress.
pub(crate) fn ip_address(object: &Value, _: Timestamp) -> Vec<Value> {
    let parent = &object["spec"]["parentRef"];
    let reference = if parent.is_null() {
        NONE.to_owned()
    } else {
        let group = string(&parent["group"]);
        let dot = if group.is_empty() { "" } else { "." };
        let resource = format!("{}{dot}{group}", string(&parent["resource"])).to_lowercase();
        let place = [resource.as_str(), string(&parent["namespace"]), string(&parent["name"])];
        place.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
    };
    vec![name(object), json!(reference)]
}
