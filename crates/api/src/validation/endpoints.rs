//! EndpointSlices and Endpoints. Upstream: `pkg/apis/discovery/validation`, `ValidateEndpoints`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::at::{At, immutable};
use super::container::PROTOCOLS;
use super::meta::{self, named_invalid};
use super::names;
use crate::field::FieldError;

const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 100;
const TOPOLOGY_LABELS_MAX: usize = 16;
const ZONE_HINTS_MAX: usize = 8;

/// Checks a new EndpointSlice.
pub(crate) fn create_slice(slice: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(slice, true, meta::SUBDOMAIN);
    errors.extend(slice_content(slice));
    errors
}

/// Checks a changed EndpointSlice.
pub(crate) fn update_slice(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(slice_content(new));
    errors.extend(immutable(&At::root(new).get("addressType"), &At::root(old).get("addressType")));
    errors
}

fn slice_content(slice: &Value) -> Vec<FieldError> {
    let root = At::root(slice);
    let kind = root.get("addressType");
    let mut errors: Vec<FieldError> = kind.one_of(&["FQDN", "IPv4", "IPv6"]).into_iter().collect();
    let endpoints = root.get("endpoints");
    if endpoints.len() > ENDPOINTS_MAX {
        errors.push(FieldError::too_many(&*endpoints.path, endpoints.len(), ENDPOINTS_MAX));
    } else {
        errors
            .extend(endpoints.items().flat_map(|endpoint| slice_endpoint(&endpoint, kind.text())));
    }
    errors.extend(slice_ports(&root.get("ports")));
    errors
}

fn slice_endpoint(endpoint: &At<'_>, kind: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let addresses = endpoint.get("addresses");
    if addresses.is_empty() {
        errors.push(addresses.required("must contain at least 1 address"));
    } else if addresses.len() > ADDRESSES_MAX {
        errors.push(FieldError::too_many(&*addresses.path, addresses.len(), ADDRESSES_MAX));
    }
    for address in addresses.items() {
        errors.extend(address.all_invalid(slice_address(address.text(), kind)));
    }
    let topology = endpoint.get("deprecatedTopology");
    if topology.len() > TOPOLOGY_LABELS_MAX {
        errors.push(FieldError::too_many(&*topology.path, topology.len(), TOPOLOGY_LABELS_MAX));
    }
    errors.extend(meta::labels(&topology));
    let (host, node, zone) =
        (endpoint.get("hostname"), endpoint.get("nodeName"), endpoint.get("zone"));
    if host.is_set() {
        errors.extend(host.all_invalid(names::dns1123_label(host.text())));
    }
    if node.is_set() {
        errors.extend(node.all_invalid(names::dns1123_subdomain(node.text())));
    }
    if zone.is_set() {
        errors.extend(zone.all_invalid(names::label_value(zone.text())));
    }
    errors.extend(hints(&endpoint.get("hints.forZones"), names::label_value));
    errors.extend(hints(&endpoint.get("hints.forNodes"), names::dns1123_subdomain));
    errors
}

fn slice_address(address: &str, kind: &str) -> Vec<String> {
    let family = |six: bool| {
        let mut wrong = names::ip(address);
        if !wrong.is_empty() {
            return wrong;
        }
        if address.contains(':') != six {
            let name = if six { "IPv6" } else { "IPv4" };
            wrong.push(format!("must be an {name} address"));
        }
        wrong.extend(names::non_special_ip(address));
        wrong
    };
    match kind {
        "IPv4" => family(false),
        "IPv6" => family(true),
        "FQDN" => fqdn(address),
        _ => Vec::new(),
    }
}

fn fqdn(name: &str) -> Vec<String> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    let wrong = names::dns1123_subdomain(bare);
    if !wrong.is_empty() {
        return vec![wrong.join(",")];
    }
    if bare.contains('.') {
        return Vec::new();
    }
    vec!["should be a domain with at least two segments separated by dots".to_owned()]
}

fn hints(list: &At<'_>, rule: fn(&str) -> Vec<String>) -> Vec<FieldError> {
    if list.len() > ZONE_HINTS_MAX {
        return vec![FieldError::too_many(&*list.path, list.len(), ZONE_HINTS_MAX)];
    }
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for hint in list.items() {
        let name = hint.get("name");
        if !seen.insert(name.text()) {
            errors.push(name.duplicate());
        }
        errors.extend(name.all_invalid(rule(name.text())));
    }
    errors
}

fn slice_ports(list: &At<'_>) -> Vec<FieldError> {
    if list.len() > PORTS_MAX {
        return vec![FieldError::too_many(&*list.path, list.len(), PORTS_MAX)];
    }
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for port in list.items() {
        let name = port.get("name");
        if !name.text().is_empty() {
            errors.extend(name.all_invalid(names::dns1123_label(name.text())));
        }
        if !seen.insert(name.text()) {
            errors.push(FieldError::duplicate(&*name.path, &json!(name.text())));
        }
        let number = port.get("port");
        if let Some(value) = number.int() {
            errors.extend(number.all_invalid(names::port_number(value)));
        }
        errors.extend(port.get("protocol").one_of(PROTOCOLS));
        let protocol = port.get("appProtocol");
        if protocol.is_set() {
            errors.extend(protocol.all_invalid(names::label_key(protocol.text())));
        }
    }
    errors
}

/// Checks new Endpoints.
pub(crate) fn create(endpoints: &Value) -> Vec<FieldError> {
    let mut errors = meta::create(endpoints, true, meta::SUBDOMAIN);
    errors.extend(subsets(&At::root(endpoints).get("subsets")));
    errors
}

/// Checks changed Endpoints.
pub(crate) fn update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = meta::update(new, old);
    errors.extend(subsets(&At::root(new).get("subsets")));
    errors
}

fn subsets(list: &At<'_>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for subset in list.items() {
        let (ready, unready, ports) =
            (subset.get("addresses"), subset.get("notReadyAddresses"), subset.get("ports"));
        if ready.len() + unready.len() == 0 {
            errors.push(subset.required("must specify `addresses` or `notReadyAddresses`"));
        }
        errors.extend(
            ready.items().chain(unready.items()).flat_map(|address| endpoint_address(&address)),
        );
        errors.extend(ports.items().flat_map(|port| endpoint_port(&port, ports.len() > 1)));
    }
    errors
}

fn endpoint_address(address: &At<'_>) -> Vec<FieldError> {
    let (ip, host, node) = (address.get("ip"), address.get("hostname"), address.get("nodeName"));
    let malformed = names::ip(ip.text());
    let special = if malformed.is_empty() { names::non_special_ip(ip.text()) } else { Vec::new() };
    let mut errors = named_invalid(&ip.path, ip.text(), malformed);
    if !host.text().is_empty() {
        errors.extend(host.all_invalid(names::dns1123_label(host.text())));
    }
    if node.is_set() {
        errors.extend(node.all_invalid(names::dns1123_subdomain(node.text())));
    }
    errors.extend(named_invalid(&ip.path, ip.text(), special));
    errors
}

fn endpoint_port(port: &At<'_>, named: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (name, number, protocol) = (port.get("name"), port.get("port"), port.get("appProtocol"));
    if !name.text().is_empty() {
        errors.extend(name.all_invalid(names::dns1123_label(name.text())));
    } else if named {
        errors.push(name.required(""));
    }
    let value = number.int().unwrap_or(0);
    for why in names::port_number(value) {
        errors.push(FieldError::invalid(&*number.path, &json!(value), why));
    }
    errors.extend(port.get("protocol").one_of(PROTOCOLS));
    if protocol.is_set() {
        errors.extend(protocol.all_invalid(names::label_key(protocol.text())));
    }
    errors
}
